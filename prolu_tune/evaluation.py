"""How good autoencoders are on held-out tokens: sparsity, reconstruction, and the language model's loss with them spliced in.

Clean and zero losses are measured once per model, data and hook (`Baseline`). The hook's activations are cached like
chunks of the stream, in float16, and for each autoencoder only encode, decode and the layers after the hook are run.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prolu_tune import metrics
from prolu_tune.activations.cache import open_or_remake
from prolu_tune.activations.digests import digest_of, read_json, store_json
from prolu_tune.activations.source import ActivationSource
from prolu_tune.errors import InputError
from prolu_tune.sae.model import SparseAutoencoder

BASELINE_FORMAT = 2
BOS_KEPT_SHARE = 8
"""One in so many rows is also measured with BOS kept: that takes one more pass of the language model, for comparison only."""
MIN_BOS_KEPT_ROWS = 16
CACHE_PART_TOKENS = 2**16
"""Held-out tokens whose activations share a cache file."""

Progress = Callable[[int, int], None]
LOSS_METRICS: tuple[str, ...] = tuple(
    f"{name}{suffix}"
    for suffix in ("", "_bos_kept")
    for name in ("ce_loss_clean", "ce_loss_zero", "ce_loss_with_sae", "ce_degradation", "ce_loss_score")
)
"""Metrics that take passes of the language model's layers after the hook."""


def metric_names() -> list[str]:
    """Returns the name of every metric that can be measured."""
    return [*(name for measure in metrics.MEASURES for name in measure.names), "frac_negative_bias", *LOSS_METRICS]


@dataclass(frozen=True)
class Baseline:
    """The language model's losses without an autoencoder, nats per predicted token."""

    ce_loss_clean: float
    ce_loss_zero: float
    """With the hook's activations replaced by zero."""
    ce_loss_clean_bos_kept: float
    """On the rows alone on which autoencoders are also measured with BOS kept."""
    ce_loss_zero_bos_kept: float
    """On those rows, with all activations but those at BOS replaced by zero."""
    tokens: int


class EvaluationData:
    """The held-out rows of a source in their seeded order, and the hook's activations on them."""

    def __init__(self, source: ActivationSource, *, num_tokens: int) -> None:
        """Args:
        source: of model, hook and data.
        num_tokens: held-out tokens to use.

        Raises:
            InputError: if the evaluation range holds fewer.
        """
        self.source = source
        ctx = source.config.context_length
        self.num_rows = -(-num_tokens // ctx)
        have, _ = source.rows.count("eval", at_least=self.num_rows)
        if have < self.num_rows:
            raise InputError(
                f"evaluation.num_tokens is {num_tokens:,}, but activations.eval_range {list(source.config.eval_range)} of "
                f"{source.config.dataset} holds {have * ctx:,} tokens; lower it to {have * ctx:,} or less, or widen eval_range"
            )
        self._tokens: np.ndarray | None = None
        self.clean_losses: Float[Tensor, " rows"] | None = None
        """Each row's clean loss, if they are wanted: then those found on the way to missing activations, NaN elsewhere."""
        self._lock = threading.Lock()
        self.part_rows = max(1, CACHE_PART_TOKENS // ctx)
        self.fingerprint = digest_of(
            {
                **source.content(),
                "eval_range": list(source.config.eval_range),
                "num_rows": self.num_rows,
                "part_rows": self.part_rows,
            }
        )

    @property
    def num_tokens(self) -> int:
        """Held-out tokens, whole rows."""
        return self.num_rows * self.source.config.context_length

    @property
    def num_bos_kept_rows(self) -> int:
        """How many of the first rows are also measured with BOS kept."""
        return max(self.num_rows // BOS_KEPT_SHARE, min(self.num_rows, MIN_BOS_KEPT_ROWS))

    @property
    def tokens(self) -> Int[np.ndarray, "rows ctx"]:
        """Token ids of the rows."""
        with self._lock:
            if self._tokens is None:
                self._tokens = self.source.rows.take("eval", epoch=0, start=0, count=self.num_rows)
            return self._tokens

    def batches(self) -> Iterator[tuple[Int[Tensor, "rows ctx"], Float[Tensor, "rows ctx d_in"]]]:
        """Yields token ids and the hook's activations (float32), some rows at a time."""
        size = self.source.language_model.suffix_batch_size
        for first in range(0, self.num_rows, self.part_rows):
            part = self.tokens[first : first + self.part_rows]
            activations = open_or_remake(
                lambda rows=part, at=first: self._ensure(rows, at), tokens=part.size, d_in=self.source.d_in, say=self.source.say
            )
            shaped = torch.from_numpy(activations).reshape(len(part), -1, self.source.d_in)
            for low in range(0, len(part), size):
                rows = torch.from_numpy(part[low : low + size])
                yield rows, shaped[low : low + size].to(self.source.language_model.device).float()

    def _ensure(self, rows: np.ndarray, first: int) -> Path:
        """Returns the cache file of the activations of some rows, made if it is missing."""
        name = f"eval-{self.fingerprint[:12]}-{first:07d}"
        return self.source.store.ensure(name, lambda: self._produce(rows, first))

    def _produce(self, rows: np.ndarray, first: int) -> np.ndarray:
        model, wanted = self.source.language_model, self.clean_losses
        size = self.source.config.lm_batch_size if wanted is None else model.loss_batch_size
        found: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            found.append(self.source.to_float16(x).flatten(0, 1).cpu())
            return x

        for low in range(0, len(rows), size):
            part = torch.from_numpy(rows[low : low + size])
            if wanted is None:
                keep(model.activations(part))
            else:
                wanted[first + low : first + low + len(part)] = model.losses(part, keep).cpu()
        return torch.cat(found).numpy()

    def bos(self, rows: Int[Tensor, "rows ctx"]) -> Bool[Tensor, "rows ctx"]:
        """Returns where BOS stands: at position 0 if it was written there, else wherever the id occurs."""
        mask = torch.zeros(rows.shape, dtype=torch.bool)
        if self.source.config.overwrite_bos:
            mask[:, 0] = True
        elif (bos := self.source.info.bos_token_id) is not None:
            mask = rows == bos
        return mask


def measure_baseline(data: EvaluationData, *, progress: Progress | None = None) -> Baseline:
    """Returns the losses without an autoencoder, from the cache if they were measured before.

    Args:
        data: held-out rows.
        progress: told tokens done and in all while measuring.
    """
    path = data.source.cache_dir / "baselines" / f"{data.fingerprint[:32]}.json"
    known = read_json(path)
    if known is not None and known.pop("format", None) == BASELINE_FORMAT and known.keys() == Baseline.__annotations__.keys():
        return Baseline(**known)
    if path.exists():
        data.source.say(f"damaged cache file {path.name}, clean and zero losses are measured again")
    clean, clean_kept = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    zeroed = torch.zeros(2, dtype=torch.float64)
    done = 0
    data.clean_losses = torch.full((data.num_rows,), torch.nan, dtype=torch.float64)
    for rows, x in data.batches():
        losses = data.clean_losses[done : done + len(rows)]
        if losses.isnan().any():
            losses = data.source.language_model.losses(rows).cpu()
        clean += losses.sum()
        clean_kept += losses[: max(0, data.num_bos_kept_rows - done)].sum()
        zeroed += _zero_losses(data, rows, x, first_row=done)
        done += len(rows)
        if progress is not None:
            progress(done * rows.shape[1], data.num_tokens)
    data.clean_losses = None
    per_row = data.source.config.context_length - 1
    baseline = Baseline(
        ce_loss_clean=clean.item() / (data.num_rows * per_row),
        ce_loss_zero=zeroed[0].item() / (data.num_rows * per_row),
        ce_loss_clean_bos_kept=clean_kept.item() / (data.num_bos_kept_rows * per_row),
        ce_loss_zero_bos_kept=zeroed[1].item() / (data.num_bos_kept_rows * per_row),
        tokens=data.num_tokens,
    )
    store_json(path, {"format": BASELINE_FORMAT, **asdict(baseline)})
    return baseline


def evaluate_saes(
    saes: Sequence[SparseAutoencoder],
    data: EvaluationData,
    *,
    baseline: Baseline | None = None,
    progress: Progress | None = None,
    names: Collection[str] | None = None,
) -> list[dict[str, float]]:
    """Returns the metrics of each autoencoder on the held-out rows, from one walk over the activations.

    Each dict holds what `metric_names` lists, and `tokens`; the losses once more with the activations at BOS left as they
    are (`..._bos_kept`, on the first of the rows). Sparsity and reconstruction are measured in the autoencoder's own
    normalised space, on the positions the stream holds.

    Args:
        saes: autoencoders of the hook's width.
        data: held-out rows.
        baseline: what `measure_baseline` returned, if it is at hand.
        progress: told tokens done and in all.
        names: metrics wanted; None: all. Without a loss among them the language model is not run past the hook.

    Raises:
        InputError: if an autoencoder has another width than the hook.
    """
    wanted = set(metric_names() if names is None else names)
    device = data.source.language_model.device
    saes = [sae.to(device).eval() for sae in saes]
    for sae in saes:
        if sae.d_in != data.source.d_in:
            raise InputError(
                f"the autoencoder reads activations {sae.d_in} wide, but {data.source.config.hook_name} of "
                f"{data.source.config.model} is {data.source.d_in} wide; evaluate it on the hook it was trained on"
            )
    baseline = None if wanted.isdisjoint(LOSS_METRICS) else baseline or measure_baseline(data)
    measures = [measure for measure in metrics.MEASURES if not wanted.isdisjoint(measure.names)]
    sums = [[measure.start(sae.W_dec.detach()) for measure in measures] for sae in saes]
    losses = torch.zeros(len(saes), 2, dtype=torch.float64)
    done = 0
    for rows, x in data.batches():
        counted = torch.ones_like(rows, dtype=torch.bool) if data.source.config.train_on_bos else ~data.bos(rows)
        for number, sae in enumerate(saes):
            recon = _measure(sae, x, counted.to(x.device), sums[number])
            if baseline is not None:
                losses[number] += _spliced_losses(data, rows, x, recon, first_row=done)
        done += len(rows)
        if progress is not None:
            progress(done * rows.shape[1], data.num_tokens)
    per_row = data.source.config.context_length - 1
    losses /= torch.tensor([data.num_rows * per_row, data.num_bos_kept_rows * per_row])
    records = []
    for sae, parts, loss in zip(saes, sums, losses, strict=True):
        record = {name: value for part in parts for name, value in part.result().items()}
        record["frac_negative_bias"] = metrics.frac_negative_bias(sae.b_enc)
        if baseline is not None:
            record |= _loss_record(loss.tolist(), baseline)
        records.append({name: value for name, value in record.items() if name in wanted} | {"tokens": data.num_tokens})
    return records


def evaluate_sae(
    sae: SparseAutoencoder, data: EvaluationData, *, baseline: Baseline | None = None, progress: Progress | None = None
) -> dict[str, float]:
    """Returns the metrics of one autoencoder, see `evaluate_saes`."""
    return evaluate_saes([sae], data, baseline=baseline, progress=progress)[0]


def _spliced_losses(
    data: EvaluationData,
    rows: Int[Tensor, "rows ctx"],
    x: Float[Tensor, "rows ctx d_in"],
    recon: Float[Tensor, "rows ctx d_in"],
    *,
    first_row: int,
) -> Float[Tensor, " 2"]:
    """Returns the summed loss with recon in the place of x, and with BOS kept on those of the rows where it is measured."""
    losses = torch.zeros(2, dtype=torch.float64)
    losses[0] = data.source.language_model.losses_from_hook(rows, recon).sum()
    losses[1] = _bos_kept_loss(data, rows, x, recon, first_row=first_row)
    return losses


def _zero_losses(
    data: EvaluationData, rows: Int[Tensor, "rows ctx"], x: Float[Tensor, "rows ctx d_in"], *, first_row: int
) -> Float[Tensor, " 2"]:
    """Returns `_spliced_losses` with zeros in the place of x."""
    losses = torch.zeros(2, dtype=torch.float64)
    losses[0] = data.source.language_model.losses_from_zeros(rows).sum()
    losses[1] = _bos_kept_loss(data, rows, x, torch.zeros_like(x), first_row=first_row)
    return losses


def _bos_kept_loss(
    data: EvaluationData,
    rows: Int[Tensor, "rows ctx"],
    x: Float[Tensor, "rows ctx d_in"],
    recon: Float[Tensor, "rows ctx d_in"],
    *,
    first_row: int,
) -> float:
    """Returns the summed loss of those of the rows on which BOS is also kept, with recon elsewhere."""
    count = min(len(rows), data.num_bos_kept_rows - first_row)
    if count <= 0:
        return 0.0
    bos = data.bos(rows[:count]).to(x.device)
    given = torch.where(bos[..., None], x[:count], recon[:count])
    return data.source.language_model.losses_from_hook(rows[:count], given).sum().item()


@torch.no_grad()
def _measure(
    sae: SparseAutoencoder,
    x: Float[Tensor, "rows ctx d_in"],
    counted: Bool[Tensor, "rows ctx"],
    sums: Sequence[metrics.Sums],
) -> Float[Tensor, "rows ctx d_in"]:
    """Returns the raw reconstruction of x; adds the counted positions to the sums."""
    normed, scale = sae.normalize(x.flatten(0, 1))
    acts = sae.encode_normalized(normed)
    recon = sae.decode_normalized(acts)
    chosen = counted.flatten()
    everything = bool(chosen.all())
    measured = (normed, acts, recon) if everything else (normed[chosen], acts[chosen], recon[chosen])
    for part in sums:
        part.add(*measured)
    return (recon * scale).reshape(x.shape)


def _loss_record(losses: list[float], baseline: Baseline) -> dict[str, float]:
    """Returns the metrics that come from the language model's losses, under their contract names."""
    record: dict[str, float] = {}
    cleans = (baseline.ce_loss_clean, baseline.ce_loss_clean_bos_kept)
    zeros = (baseline.ce_loss_zero, baseline.ce_loss_zero_bos_kept)
    for suffix, clean, zero, loss in zip(("", "_bos_kept"), cleans, zeros, losses, strict=True):
        record[f"ce_loss_clean{suffix}"] = clean
        record[f"ce_loss_zero{suffix}"] = zero
        record[f"ce_loss_with_sae{suffix}"] = loss
        record[f"ce_degradation{suffix}"] = metrics.ce_degradation(ce_loss_clean=clean, ce_loss_with_sae=loss)
        record[f"ce_loss_score{suffix}"] = metrics.ce_loss_score(ce_loss_clean=clean, ce_loss_with_sae=loss, ce_loss_zero=zero)
    return record
