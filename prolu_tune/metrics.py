"""Every number that is reported, each formula once; training and evaluation both call these.

Activations of latents, squared errors, MSE and FVU are meant in the space the autoencoder works in (tokens rescaled to
norm sqrt(d_in) unless normalisation is off). Cross-entropies are in nats.

What one walk over tokens adds up is registered in `MEASURES`. A metric of tokens that is registered there is computed for new
trials from then on, and by `prolu-tune evaluate` for the stored checkpoints of old ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Numbers = dict[str, int | float]
"""Values by name. Both types are named because beartype, unlike type checkers, does not let an int pass for a float."""


def l0(acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, " batch"]:
    """Returns the number of active latents of each token."""
    return acts.sign().sum(1)


def l1(acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, " batch"]:
    """Returns the sum of each token's activations."""
    return acts.sum(1)


def sqrt_l1(acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, " batch"]:
    """Returns the sum of the roots of each token's activations, without the constant that training adds under the root."""
    # The smallest number is 1e-30, whose root vanishes in the sum: on AMD CPUs MKL's root of 0 takes ten times as long.
    return acts.clamp(min=1e-30).sqrt_().sum(1)


def firing_counts(acts: Float[Tensor, "batch d_sae"]) -> Int[Tensor, " d_sae"]:
    """Returns for each latent the number of tokens on which it is active; their sum over the tokens is the mean l0."""
    # Activations are never negative. Summing a bool tensor along dim 0 takes eight times as long on the CPU.
    return acts.sign().sum(0).long()


def squared_error(recon: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
    """Returns each token's squared error, summed over d_in."""
    return (recon - x).square().sum(1)


def mse(recon: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Returns the squared error averaged over tokens and over d_in."""
    return squared_error(recon, x).mean() / x.shape[1]


def fvu(recon: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Returns the fraction of variance unexplained: squared error over the variance around the tokens' mean."""
    return squared_error(recon, x).sum() / squared_error(x, x.mean(0, keepdim=True).expand_as(x)).sum()


def relative_norm(recon: Float[Tensor, "batch d_in"], x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
    """Returns each token's ||recon|| / ||x||; below 1 features are suppressed. NaN where x is 0."""
    return recon.norm(dim=1) / x.norm(dim=1)


def alive(
    counts: Int[Tensor, " d_sae"] | Float[Tensor, " d_sae"], *, tokens: int, least_frequency: float = 0.0
) -> Bool[Tensor, " d_sae"]:
    """Returns which latents fired at all, and in at least this share of the tokens."""
    return (counts > 0) & (counts.double() >= least_frequency * tokens)


def frac_negative_bias(b_enc: Float[Tensor, " d_sae"]) -> float:
    """Returns the share of latents whose encoder bias is below 0."""
    return (b_enc < 0).double().mean().item()


def ce_degradation(*, ce_loss_clean: float, ce_loss_with_sae: float) -> float:
    """Returns by how much the splice raises the language model's loss; positive is worse."""
    return ce_loss_with_sae - ce_loss_clean


def ce_loss_score(*, ce_loss_clean: float, ce_loss_with_sae: float, ce_loss_zero: float) -> float:
    """Returns the share of the loss between zeroing the hook and leaving it alone that the splice recovers.

    NaN where zeroing the hook changes nothing.
    """
    if ce_loss_zero == ce_loss_clean:
        return float("nan")
    return (ce_loss_zero - ce_loss_with_sae) / (ce_loss_zero - ce_loss_clean)


class MetricSums:
    """Adds up batches of any size; `result()` is then what one batch of all tokens would give. Sums are float64."""

    def __init__(self, *, d_in: int, d_sae: int, device: torch.device | str = "cpu") -> None:
        """Starts at no tokens."""
        self.tokens = 0
        self._d_in = d_in
        self._sums = {
            name: torch.zeros((), dtype=torch.float64, device=device)
            for name in ("l0", "l1", "sqrt_l1", "squared_error", "squared_norm", "relative_norm", "nonzero_tokens")
        }
        self._sum_x = torch.zeros(d_in, dtype=torch.float64, device=device)
        self._counts = torch.zeros(d_sae, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(
        self, x: Float[Tensor, "batch d_in"], acts: Float[Tensor, "batch d_sae"], recon: Float[Tensor, "batch d_in"]
    ) -> None:
        """Counts a batch; x and recon both as the autoencoder sees them."""
        ratio = relative_norm(recon, x)
        defined = x.norm(dim=1) > 0
        counts = firing_counts(acts)
        per_token = {
            "l0": counts,
            "l1": l1(acts),
            "sqrt_l1": sqrt_l1(acts),
            "squared_error": squared_error(recon, x),
            "squared_norm": x.double().square(),
            "relative_norm": ratio[defined],
            "nonzero_tokens": defined,
        }
        for name, values in per_token.items():
            self._sums[name] += values.sum(dtype=torch.float64)
        self._sum_x += x.sum(0, dtype=torch.float64)
        self._counts += counts
        self.tokens += x.shape[0]

    def result(self) -> Numbers:
        """Returns l0, l1, sqrt_l1, mse, fvu, relative_norm and frac_alive (share of latents that fired at all).

        Raises:
            ValueError: if no token was added.
        """
        if self.tokens == 0:
            raise ValueError("no token was added, so there is no mean; add at least one batch")
        sums = {name: value.item() for name, value in self._sums.items()}
        variance = sums["squared_norm"] - self._sum_x.square().sum().item() / self.tokens
        return {
            "l0": sums["l0"] / self.tokens,
            "l1": sums["l1"] / self.tokens,
            "sqrt_l1": sums["sqrt_l1"] / self.tokens,
            "mse": sums["squared_error"] / (self.tokens * self._d_in),
            "fvu": sums["squared_error"] / variance if variance > 0 else float("nan"),
            "relative_norm": sums["relative_norm"] / sums["nonzero_tokens"] if sums["nonzero_tokens"] else float("nan"),
            "frac_alive": alive(self._counts, tokens=self.tokens).double().mean().item(),
        }


GATHER_COST = 64
"""One inner product of gathered rows takes as long as about so many inside a matrix product."""
GATHERED = 2**13
"""Inner products of gathered rows made at once, so that the rows stay in the cache."""


class MagnitudeSums:
    """Adds up how reconstructed magnitudes follow true ones; sums are float64, per latent.

    The reconstructed magnitude of latent i on a token is acts_i. The true one is the coefficient that its direction w_i should
    have had, the others as they are: acts_i + (x - recon) . w_i / ||w_i||^2, the least-squares solution along w_i. Over the
    tokens on which a latent is active, `magnitude_slope` is the slope of the line (with an intercept of its own for every
    latent) of reconstructed over true magnitudes:

        sum_i sum_t (a_it - mean_i a) (m_it - mean_i m)  /  sum_i sum_t (m_it - mean_i m)^2

    1: magnitudes are reconstructed consistently in scale (ProLU's aim). Below 1: large ones are suppressed more than small
    ones, or what else is in the residual adds noise to m, which flattens every slope; so compare autoencoders at equal L0.
    A shift by a constant does not show here but in `relative_norm` and in L1 at equal L0.
    """

    def __init__(self, *, W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """Starts at no tokens."""
        # A row of zeros has no direction: its latent reconstructs nothing, and its m is its activation.
        self._directions = W_dec.detach() / W_dec.detach().square().sum(1, keepdim=True).clamp(min=1e-12)
        zero = torch.zeros(len(W_dec), dtype=torch.float64, device=W_dec.device)
        self._count, self._acts, self._true, self._product, self._square = (zero.clone() for _ in range(5))

    @torch.no_grad()
    def add(
        self, x: Float[Tensor, "batch d_in"], acts: Float[Tensor, "batch d_sae"], recon: Float[Tensor, "batch d_in"]
    ) -> None:
        """Counts a batch; x and recon both as the autoencoder sees them."""
        # A position is token * d_sae + latent. Most latents are silent, so this is the only pass over the whole array.
        position = acts.reshape(-1).nonzero()[:, 0]
        latent = position % acts.shape[1]
        active = acts.reshape(-1)[position]
        true = self._along(x - recon, position, latent).add_(active).double()
        active = active.double()
        self._count += torch.bincount(latent, minlength=acts.shape[1])
        for total, values in (
            (self._acts, active),
            (self._true, true),
            (self._product, active * true),
            (self._square, true.square()),
        ):
            total.index_add_(0, latent, values)

    def _along(
        self, residual: Float[Tensor, "batch d_in"], position: Int[Tensor, " active"], latent: Int[Tensor, " active"]
    ) -> Float[Tensor, " active"]:
        """Returns residual . w_i / ||w_i||^2 at the active entries, by one product or, where few are active, one by one."""
        d_sae = len(self._directions)
        if len(position) * GATHER_COST > residual.shape[0] * d_sae:
            return (residual @ self._directions.T).view(-1)[position]
        parts = zip(position.split(GATHERED), latent.split(GATHERED), strict=True)
        return torch.cat([torch.linalg.vecdot(residual[at // d_sae], self._directions[of]) for at, of in parts])

    def result(self) -> Numbers:
        """Returns magnitude_slope; NaN where no latent was active with two different true magnitudes."""
        count = self._count.clamp(min=1)
        covariance = (self._product - self._acts * self._true / count).sum().item()
        variance = (self._square - self._true.square() / count).sum().item()
        defined = variance > 1e-9 * self._square.sum().item()
        return {"magnitude_slope": covariance / variance if defined else float("nan")}


class Sums(Protocol):
    """What is added up over tokens for one autoencoder."""

    def add(
        self, x: Float[Tensor, "batch d_in"], acts: Float[Tensor, "batch d_sae"], recon: Float[Tensor, "batch d_in"]
    ) -> None:
        """Counts a batch; x and recon both as the autoencoder sees them."""
        ...

    def result(self) -> Numbers:
        """Returns the metrics by name."""
        ...


@dataclass(frozen=True)
class Measure:
    """Metrics that come out of one kind of sum."""

    names: tuple[str, ...]
    start: Callable[[Float[Tensor, "d_sae d_in"]], Sums]
    """From an autoencoder's W_dec (which tells widths and device) to sums at no tokens."""


def _token_sums(W_dec: Float[Tensor, "d_sae d_in"]) -> Sums:
    return MetricSums(d_in=W_dec.shape[1], d_sae=W_dec.shape[0], device=W_dec.device)


MEASURES: list[Measure] = [
    Measure(("l0", "l1", "sqrt_l1", "mse", "fvu", "relative_norm", "frac_alive"), _token_sums),
    Measure(("magnitude_slope",), lambda W_dec: MagnitudeSums(W_dec=W_dec)),
]
"""Everything that is measured on tokens. A new metric is a class with `add` and `result`, and a line here."""
