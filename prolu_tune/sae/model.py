"""The sparse autoencoder: per-token normalisation, encoder, gate, decoder with a tied bias."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prolu_tune.config.trial import SaeConfig
from prolu_tune.errors import InputError
from prolu_tune.sae.nonlinearities import nonlinearity
from prolu_tune.sae.products import decoder_product, encoder_product


class Normalized(NamedTuple):
    """Activations as the autoencoder sees them, and the factor per token that leads back."""

    x: Float[Tensor, "*batch d_in"]
    scale: Float[Tensor, "*batch 1"]


class SparseAutoencoder(nn.Module):
    """recon = f((x - b_dec) @ W_enc, b_enc) @ W_dec + b_dec, on activations rescaled to norm sqrt(d_in) per token.

    `encode`, `decode` and calling it take any leading dimensions and raw, un-normalised activations. The norm of a
    token is not part of `acts`: `decode(encode(x))` reconstructs the *normalised* token. To get raw x back carry the
    scale: `decode(sae.encode(x), scale=sae.normalize(x).scale)`, which is what `sae(x)` does.
    """

    def __init__(
        self,
        config: SaeConfig,
        d_in: int,
        d_sae: int,
        *,
        generator: torch.Generator | None = None,
        operands: torch.dtype = torch.float32,
    ) -> None:
        """Draws W_enc Kaiming-uniform (fan-in d_sae); W_dec is its transpose with unit rows; biases are 0.

        Args:
            config: nonlinearity and normalisation.
            d_in: width of the hook.
            d_sae: number of latents.
            generator: a CPU generator; None draws from torch's own.
            operands: dtype of the operands of the two matrix products, float32 or bfloat16.
        """
        super().__init__()
        self.config = config
        self.operands = operands
        self._gate = nonlinearity(config.nonlinearity)
        bound = math.sqrt(6 / d_sae)
        W_enc = torch.empty(d_in, d_sae).uniform_(-bound, bound, generator=generator)
        self.W_enc = nn.Parameter(W_enc)
        self.W_dec = nn.Parameter(nn.functional.normalize(W_enc.T, dim=1).contiguous())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def d_in(self) -> int:
        """Width of the hook."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def normalize(self, x: Float[Tensor, "*batch d_in"]) -> Normalized:
        """Returns x in the weights' dtype, each token rescaled to norm sqrt(d_in), and the scale that undoes it.

        A token of norm 0 stays 0, with scale 1.

        Raises:
            InputError: if x has another width than the autoencoder.
        """
        if x.shape[-1] != self.d_in:
            raise InputError(f"activations are {x.shape[-1]} wide, but this autoencoder reads {self.d_in}; check the hook")
        x = x.to(self.W_enc.dtype)
        if self.config.normalization == "none":
            return Normalized(x, x.new_ones(*x.shape[:-1], 1))
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(self.d_in)
        scale = torch.where(scale > 0, scale, 1)
        return Normalized(x / scale, scale)

    def encode_normalized(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Returns the latents' activations of tokens that `normalize` has rescaled."""
        return self._gate(encoder_product(x, self.b_dec, self.W_enc, self.operands), self.b_enc)

    def decode_normalized(self, acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """Returns the reconstruction in the normalised space, the one in which loss and MSE are taken."""
        return decoder_product(acts, self.W_dec, self.b_dec, self.operands)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Returns the latents' activations of raw tokens.

        Raises:
            InputError: if x has another width than the autoencoder.
        """
        flat = self.normalize(x).x.reshape(-1, self.d_in)
        return self.encode_normalized(flat).reshape(*x.shape[:-1], self.d_sae)

    def decode(
        self, acts: Float[Tensor, "*batch d_sae"], *, scale: Float[Tensor, "*batch 1"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Returns the reconstruction, raw if the tokens' scale is given, else in the normalised space."""
        recon = self.decode_normalized(acts.reshape(-1, self.d_sae)).reshape(*acts.shape[:-1], self.d_in)
        return recon if scale is None else recon * scale

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Returns the reconstruction of raw tokens, in their own scale.

        Raises:
            InputError: if x has another width than the autoencoder.
        """
        normed, scale = self.normalize(x)
        acts = self.encode_normalized(normed.reshape(-1, self.d_in))
        return self.decode_normalized(acts).reshape(x.shape) * scale
