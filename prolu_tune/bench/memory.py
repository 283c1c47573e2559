"""The peak memory of a training process beyond torch's own, through dense steps, the densest sparse ones, and sparse ones.

Allowed are weights, gradients and both of Adam's moments (4 copies), 3 arrays of batch x d_sae, and 100 MB. Torch's own
is what the process holds after a training of no size. Linux only: there the peak can be set back in between.
"""

import argparse
from pathlib import Path

import torch

from prolu_tune.bench.options import Options, make_parser, show
from prolu_tune.bench.step import set_l0
from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.errors import InputError
from prolu_tune.training.choice import CPU, HYSTERESIS
from prolu_tune.training.state import Trainer

ALLOWED_ARRAYS = 3
ALLOWED_BYTES = 100_000_000
STEPS = 3
"""Steps of each kind."""


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the system does not tell a process's peak.
    """
    options = parser().parse_args(namespace=Options())
    show(measure(options), as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of this measurement's flags."""
    return make_parser("memory", __doc__, threads=1, d_in=768, d_sae=12288, batch=4096, l0=64.0)


def measure(options: Options) -> dict[str, float | int | str]:
    """Returns the peak in bytes, what it is made of, and what is allowed.

    Raises:
        InputError: if the system does not tell a process's peak.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("a process's peak memory can be set back on Linux only; run bench memory there")
    _train(Options(d_in=8, d_sae=2048, batch=1024, l0=8.0, threads=options.threads))
    own = _reset_peak()
    paths = _train(options)
    peak = _status("VmHWM") - own
    weights = 2 * options.d_in * options.d_sae + options.d_in + options.d_sae
    array = 4 * options.batch * options.d_sae
    allowed = 4 * 4 * weights + ALLOWED_ARRAYS * array + ALLOWED_BYTES
    return {
        "peak_bytes": peak,
        "allowed_bytes": allowed,
        "peak_over_allowed": peak / allowed,
        "arrays_of_batch_x_d_sae": (peak - 4 * 4 * weights) / array,
        "array_bytes": array,
        "weights_and_adam_bytes": 4 * 4 * weights,
        "torch_own_bytes": own,
        "paths": " ".join(paths),
        **{name: getattr(options, name) for name in ("d_in", "d_sae", "batch", "l0", "threads")},
        "torch": torch.__version__,
    }


def _train(options: Options) -> list[str]:
    """Trains a few steps each: fresh, at the highest densities at which a step is sparse, at l0; returns the paths taken."""
    config = TrialConfig(
        sae=SaeConfig(nonlinearity="prolu_ste", penalty="sqrt_l1", d_sae=options.d_sae),
        # So small that L0 stays where it is put.
        training=TrainingConfig(
            lr=1e-12, num_tokens=100 * options.batch, batch_size=options.batch, num_threads=options.threads
        ),
        resampling=ResamplingConfig(steps=()),
    )
    trainer = Trainer(config, plan_trial(config, d_in=options.d_in))
    x = torch.randn(options.batch, options.d_in, generator=torch.Generator().manual_seed(0))
    limit = CPU.dense_from(batch_size=options.batch, d_in=options.d_in, d_sae=options.d_sae, num_threads=options.threads)
    paths: list[str] = []
    # Below the density at which the sparse step is taken up, then just below the one at which it is dropped.
    for l0 in (None, 0.9 * HYSTERESIS * limit * options.d_sae, 0.97 * limit * options.d_sae, options.l0):
        if l0 is not None:
            set_l0(trainer.sae, trainer.sae.normalize(x).x, max(l0, 1.0))
        for _ in range(STEPS):
            paths.append(trainer.path)
            trainer.train_step(x)
    return paths


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
