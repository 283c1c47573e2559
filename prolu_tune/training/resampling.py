"""Anthropic resampling: latents that (almost) never fire are pointed at inputs that are reconstructed badly.

The stages, each a function: who is dead, who may replace, drawing without replacement over a stream, replacing.
Squared errors are those of the loss, in the normalised space. Randomness depends on (seed, step) alone.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prolu_tune import metrics
from prolu_tune.config.trial import ResamplingConfig
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.optimizer import Adam

LEAST_EXPECTED_FIRINGS = 3
"""A latent exactly at the dead frequency is silent through a window by chance in exp(-3) = 5 % of cases."""


def dead_latents(counts: Int[Tensor, " d_sae"], *, tokens: int, dead_frequency: float) -> Bool[Tensor, " d_sae"]:
    """Returns which latents fired in a smaller share than dead_frequency of the window's tokens."""
    return counts.double() < dead_frequency * tokens


def window_resolves(*, tokens: int, dead_frequency: float) -> bool:
    """Returns whether the window is long enough to tell dead latents from rare ones (1M tokens at 3e-6)."""
    return tokens * dead_frequency >= LEAST_EXPECTED_FIRINGS


def candidate_weights(
    norms: Float[Tensor, " batch"],
    squared_error: Float[Tensor, " batch"],
    *,
    max_candidate_norm: float | None,
    candidate_weight: str,
) -> Float[Tensor, " batch"]:
    """Returns what each input's chance to be drawn is proportional to, float64; 0 for inputs that are no candidates.

    Args:
        norms: L2 norm of each raw input; 0 has no direction and is no candidate.
        squared_error: ||x - recon||^2 of each input; not finite is no candidate.
        max_candidate_norm: inputs with this norm or more are no candidates; None: no limit.
        candidate_weight: `squared_error`, or `squared_error_squared`.
    """
    weights = squared_error.double()
    if candidate_weight == "squared_error_squared":
        weights = weights.square()
    allowed = (norms > 0) & weights.isfinite()
    if max_candidate_norm is not None:
        allowed &= norms < max_candidate_norm
    return torch.where(allowed, weights, 0)


def sampling_keys(weights: Float[Tensor, "*batch"], generator: torch.Generator) -> Float[Tensor, "*batch"]:
    """Returns keys whose k largest are a draw of k without replacement, in the order of drawing; -inf for weight 0.

    Source: Efraimidis and Spirakis 2006, in logarithms. Keys make the draw a running top-k over a stream.
    """
    exponential = torch.empty(weights.shape, dtype=torch.float64).exponential_(generator=generator)
    return weights.log() - exponential.to(weights.device).log()


class Draw(NamedTuple):
    """The inputs drawn so far, best first; rows with key -inf are none."""

    keys: Float[Tensor, " drawn"]
    x: Float[Tensor, "drawn d_in"]


def merge_draw(draw: Draw, keys: Float[Tensor, " batch"], x: Float[Tensor, "batch d_in"], *, num_drawn: int) -> Draw:
    """Returns the num_drawn inputs with the largest keys among those drawn before and a new batch."""
    all_keys = torch.cat([draw.keys, keys])
    best = torch.topk(all_keys, min(num_drawn, len(all_keys)))
    return Draw(best.values, torch.cat([draw.x, x])[best.indices])


class Resampler:
    """Reads fresh batches one by one, keeps the inputs drawn, and replaces dead latents at the end.

    Nothing of the autoencoder changes before `replace`, so a resampling that is broken off can start again.
    """

    def __init__(
        self, sae: SparseAutoencoder, dead: Bool[Tensor, " d_sae"], config: ResamplingConfig, *, generator: torch.Generator
    ) -> None:
        """Waits for the device once, for the number of dead latents."""
        self.sae = sae
        self.config = config
        self.dead = dead
        self.num_dead = int(dead.sum().item())
        self._generator = generator
        self._draw = Draw(torch.empty(0, dtype=torch.float64, device=dead.device), torch.empty(0, sae.d_in, device=dead.device))
        self._num_candidates = torch.zeros((), dtype=torch.int64, device=dead.device)

    @torch.no_grad()
    def read(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Counts a batch of raw activations; without dead latents there is nothing to do."""
        if self.num_dead == 0:
            return
        normed = self.sae.normalize(x).x
        recon = self.sae.decode_normalized(self.sae.encode_normalized(normed))
        weights = candidate_weights(
            torch.linalg.vector_norm(x, dim=1),
            metrics.squared_error(recon, normed),
            max_candidate_norm=self.config.max_candidate_norm,
            candidate_weight=self.config.candidate_weight,
        )
        self._num_candidates += (weights > 0).sum()
        self._draw = merge_draw(self._draw, sampling_keys(weights, self._generator), x, num_drawn=self.num_dead)

    @torch.no_grad()
    def replace(self, adam: Adam) -> metrics.Numbers:
        """Replaces dead latents by the inputs drawn, as many as there are, and returns the counts for the row."""
        drawn = self._draw.x[self._draw.keys > -torch.inf]
        replaced = self.dead.nonzero().squeeze(1)[: len(drawn)]
        if len(drawn):
            directions = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
            replace_latents(self.sae, replaced, directions, alive=~self.dead, encoder_scale=self.config.encoder_scale)
            reset_moments(adam, replaced, alive=~self.dead, second_moment=self.config.adam_second_moment)
        return {
            "num_dead": self.num_dead,
            "num_candidates": int(self._num_candidates.item()),
            "num_resampled": len(drawn),
        }


@torch.no_grad()
def replace_latents(
    sae: SparseAutoencoder,
    latents: Int[Tensor, " replaced"],
    directions: Float[Tensor, "replaced d_in"],
    *,
    alive: Bool[Tensor, " d_sae"],
    encoder_scale: float,
) -> None:
    """Points latents at directions (unit rows): decoder row, scaled encoder column, bias 0.

    Columns get encoder_scale times the mean norm of the alive columns, or of all where none is alive.
    """
    norms = torch.linalg.vector_norm(sae.W_enc, dim=0)
    mean_norm = norms[alive].mean() if alive.any() else norms.mean()
    sae.W_dec[latents] = directions
    sae.W_enc[:, latents] = (directions * (mean_norm * encoder_scale)).T
    sae.b_enc[latents] = 0


@torch.no_grad()
def reset_moments(
    adam: Adam,
    latents: Int[Tensor, " replaced"],
    *,
    alive: Bool[Tensor, " d_sae"],
    second_moment: str,
) -> None:
    """Sets Adam's moments at the replaced entries: the first to 0, the second to the mean over the tensor's alive entries.

    Args:
        second_moment: `alive_mean`, or `zero`; 0 also where no latent is alive.
    """
    for name, latent_dim in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
        first, second = adam.first_moment[name].movedim(latent_dim, 0), adam.second_moment[name].movedim(latent_dim, 0)
        first[latents] = 0
        second[latents] = second[alive].mean() if second_moment == "alive_mean" and alive.any() else 0


def resampling_notes(step: int, event: metrics.Numbers, *, dead_frequency: float, earlier: list[str]) -> list[str]:
    """Returns sentences on what a person should know about a resampling; the one on the window comes once per trial."""
    notes = []
    window_note = (
        f"the firing window of {event['window_tokens']} tokens cannot resolve resampling.dead_frequency {dead_frequency:g}"
    )
    if event["window_unresolved"] and not any(note.startswith("the firing window") for note in earlier):
        notes.append(f"{window_note}: rarely active latents count as dead; train longer or raise resampling.window_steps")
    if event["num_resampled"] < event["num_dead"]:
        notes.append(
            f"step {step}: {event['num_dead']} latents were dead, but only {event['num_candidates']} inputs could replace one; "
            "raise resampling.num_tokens"
        )
    return notes
