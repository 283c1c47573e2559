"""Adam, and the steps around it that keep decoder rows at norm 1."""

import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune.config.trial import TrainingConfig
from prolu_tune.sae.model import SparseAutoencoder

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_adam(sae: SparseAutoencoder, training: TrainingConfig, *, adam_eps: float) -> torch.optim.Adam:
    """Returns torch's fused Adam over the autoencoder's parameters, its moments already there, at 0.

    Fused: one pass over each weight on CPU and GPU alike. Its bits differ from the unfused Adam's in the last place.
    """
    adam = torch.optim.Adam(sae.parameters(), lr=training.lr, betas=training.adam_betas, eps=adam_eps, fused=True)
    for parameter in sae.parameters():
        adam.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
        }
    return adam


def adam_tensors(adam: torch.optim.Adam, sae: SparseAutoencoder) -> dict[str, Tensor]:
    """Returns the moments by name, such as `exp_avg.W_enc`; the very tensors, not copies."""
    return {f"{moment}.{name}": adam.state[p][moment] for name, p in sae.named_parameters() for moment in MOMENTS}


def set_adam_step(adam: torch.optim.Adam, step: int) -> None:
    """Sets the number of steps that Adam's bias correction counts."""
    for state in adam.state.values():
        state["step"].fill_(step)


@torch.no_grad()
def project_decoder_gradient(grad: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Removes, in place, each gradient row's part along its unit decoder row, which could only change the norm."""
    grad.addcmul_(torch.linalg.vecdot(grad, W_dec).unsqueeze(1), W_dec, value=-1)


@torch.no_grad()
def renormalize_decoder(W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Rescales, in place, every decoder row to norm 1."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
