"""A whole trial from its initialisation, with the sparse step where it pays and without it; the dense start is included.

Structured random data: each token is a sparse combination of more directions than dimensions, drawn by a power law,
so that training finds the sparsity by itself, as on a language model. The two trainings take turns in one run.
"""

import argparse
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune.bench.options import CLOCKS, Options, check_device, make_parser, show
from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.errors import InputError
from prolu_tune.training.state import Trainer

NUM_BATCHES = 8
"""Different batches, used again and again: making fresh ones would take longer than training on them."""
TURN_STEPS = 20
"""Steps that one training makes before it is the other's turn."""


class TrialOptions(Options):
    """The shared flags and this measurement's own."""

    l1_coefficient: float
    nonlinearity: str
    penalty: str
    lr: float
    dense_share: float


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the device is not to be had.
    """
    options = parser().parse_args(namespace=TrialOptions())
    show(measure(options), as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of this measurement's flags."""
    made = make_parser("trial", __doc__, threads=1, d_in=256, d_sae=4096, batch=2048, l0=32.0, steps=1000)
    made.add_argument(
        "--l1-coefficient", type=float, default=2.0, help="decides the L0 that training arrives at; --l0 is the data's"
    )
    made.add_argument("--nonlinearity", choices=NONLINEARITIES, default="prolu_ste")
    made.add_argument("--penalty", choices=PENALTIES, default="l1")
    made.add_argument("--lr", type=float, default=1e-3)
    made.add_argument(
        "--dense-share", type=float, default=1.0, help="share of the dense steps that are made; the rest is reckoned"
    )
    return made


def measure(options: TrialOptions) -> dict[str, float | int | str]:
    """Returns the seconds of both trainings, their ratio, and what the sparse one arrived at.

    Raises:
        InputError: if the device is not there or a share is none.
    """
    check_device(options.device)
    if not 0 < options.dense_share <= 1:
        raise InputError(f"--dense-share must lie above 0 and be at most 1, got {options.dense_share:g}")
    batches = list(structured_batches(options))
    runs = {"s": _Run(options, sparse=True), "dense_s": _Run(options, sparse=False)}
    owed = 0.0
    for first in range(0, options.steps, TURN_STEPS):
        count = min(TURN_STEPS, options.steps - first)
        runs["s"].advance(batches, first, count)
        owed += count * options.dense_share
        if owed >= count or first == 0:
            owed -= count
            runs["dense_s"].advance(batches, first, count)
    sparse, dense = runs["s"], runs["dense_s"]
    dense_s = dense.seconds * options.steps / dense.steps
    return {
        "s": sparse.seconds,
        "dense_s": dense_s,
        "dense_over_sparse": dense_s / sparse.seconds,
        "tokens_per_s": options.steps * options.batch / sparse.seconds,
        "first_sparse_step": sparse.first_sparse_step,
        "sparse_steps": sparse.sparse_steps,
        "dense_steps_made": dense.steps,
        "l0": sparse.rows[-1]["l0"],
        "loss": sparse.rows[-1]["loss"],
        "dense_l0": dense.rows[-1]["l0"],
        "dense_loss": dense.rows[-1]["loss"],
        "l0_course": " ".join(f"{row['l0']:.0f}" for row in sparse.rows[:: max(1, len(sparse.rows) // 10)]),
        **{name: getattr(options, name) for name in ("d_in", "d_sae", "batch", "steps", "threads", "nonlinearity", "penalty")},
        "l1_coefficient": options.l1_coefficient,
        "clock": options.clock,
        "torch": torch.__version__,
    }


class _Run:
    """A training that goes on turn by turn."""

    def __init__(self, options: TrialOptions, *, sparse: bool) -> None:
        self._now = CLOCKS[options.clock]
        began = self._now()
        config = trial_config(options, sparse=sparse)
        self._trainer = Trainer(config, plan_trial(config, d_in=options.d_in), device=options.device)
        self.seconds = self._now() - began
        self.steps = self.sparse_steps = 0
        self.first_sparse_step = -1
        self.rows: list[dict[str, float | int]] = []

    def advance(self, batches: list[Tensor], first: int, count: int) -> None:
        """Makes some steps; those of the batches that stand at the same place of the stream."""
        began = self._now()
        for number in range(first, first + count):
            if self._trainer.path == "sparse":
                self.sparse_steps += 1
                if self.first_sparse_step < 0:
                    self.first_sparse_step = number
            self._trainer.train_step(batches[number % len(batches)])
            self.steps += 1
            if self._trainer.row_due():
                self.rows.append(self._trainer.row())
        if self._trainer.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += self._now() - began


def trial_config(options: TrialOptions, *, sparse: bool) -> TrialConfig:
    """Returns the trial that is trained."""
    return TrialConfig(
        sae=SaeConfig(nonlinearity=options.nonlinearity, penalty=options.penalty, d_sae=options.d_sae),
        training=TrainingConfig(
            l1_coefficient=options.l1_coefficient,
            lr=options.lr,
            num_tokens=options.steps * options.batch,
            batch_size=options.batch,
            num_threads=options.threads,
            sparse_step=sparse,
        ),
        resampling=ResamplingConfig(steps=()),
    )


def structured_batches(options: Options) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Yields the batches: a token is about l0 of 2 d_sae directions, frequent and rare ones, of exponential size, and noise."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * options.d_sae
    directions = torch.nn.functional.normalize(torch.randn(count, options.d_in, generator=generator), dim=1)
    odds = 1 / torch.arange(10, count + 10, dtype=torch.float32)
    active = round(options.l0)
    for _ in range(NUM_BATCHES):
        chosen = torch.multinomial(odds, options.batch * active, replacement=True, generator=generator)
        sizes = torch.empty(options.batch, active).exponential_(generator=generator)
        tokens = torch.nn.functional.embedding_bag(
            chosen.view(options.batch, active), directions, mode="sum", per_sample_weights=sizes
        )
        yield (tokens + 0.05 * torch.randn(tokens.shape, generator=generator)).to(options.device)


if __name__ == "__main__":
    main()
