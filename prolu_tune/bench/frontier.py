"""A short real sweep with the sparse step and without it: whether both give the same frontier, within the noise of seeds.

The language model's activations, several coefficients and seeds, every autoencoder evaluated on held-out tokens.
"""

import argparse
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from prolu_tune.activations.source import ActivationSource
from prolu_tune.activations.stream import ActivationStream
from prolu_tune.bench.options import show
from prolu_tune.bench.source import SourceOptions, fresh_source, source_parser
from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.evaluation import EvaluationData, evaluate_saes
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.trainer import train

EVAL_TOKENS = 8192
SEEDS = (0, 1)


class FrontierOptions(SourceOptions):
    """The flags of model and data and this measurement's own."""

    coefficients: int
    nonlinearity: str
    penalty: str


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the model is not to be had.
    """
    options = parser().parse_args(namespace=FrontierOptions())
    show(measure(options), as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of this measurement's flags."""
    made = source_parser("frontier", __doc__, tokens=0, d_sae=2048, batch=2048, steps=150)
    made.add_argument("--coefficients", type=int, default=4)
    made.add_argument("--nonlinearity", choices=NONLINEARITIES, default="prolu_ste")
    made.add_argument("--penalty", choices=PENALTIES, default="l1")
    return made


def measure(options: FrontierOptions) -> dict[str, float | int | str]:
    """Returns L0 and CE degradation of each training, and how far dense and sparse lie apart beside how far seeds do.

    Raises:
        InputError: if the model is not there.
    """
    coefficients = [round(float(c), 3) for c in np.geomspace(1, 8, options.coefficients)]
    trials = list(itertools.product(coefficients, SEEDS, (True, False)))
    with fresh_source(options) as source:
        saes = [_trained(options, source, *trial) for trial in trials]
        records = evaluate_saes(saes, EvaluationData(source, num_tokens=EVAL_TOKENS))
    found = dict(zip(trials, records, strict=True))
    result: dict[str, float | int | str] = {}
    for c, seed in itertools.product(coefficients, SEEDS):
        both = [found[c, seed, sparse] for sparse in (True, False)]
        texts = [f"L0 {record['l0']:.2f} CE {record['ce_degradation']:+.4f}" for record in both]
        result[f"coefficient {c:g} seed {seed}"] = f"sparse {texts[0]}, dense {texts[1]}"
    for name, of in (("log_l0", lambda record: math.log(record["l0"])), ("ce", lambda record: record["ce_degradation"])):
        value = {trial: of(record) for trial, record in found.items()}
        result[f"{name}_dense_sparse_rms"] = _rms(
            value[c, seed, True] - value[c, seed, False] for c in coefficients for seed in SEEDS
        )
        result[f"{name}_seeds_rms"] = _rms(
            value[c, SEEDS[0], sparse] - value[c, SEEDS[1], sparse] for c in coefficients for sparse in (True, False)
        )
    named = {
        name: getattr(options, name) for name in ("d_sae", "batch", "steps", "threads", "nonlinearity", "penalty", "model")
    }
    return result | named


def _rms(differences: Iterator[float]) -> float:
    return float(np.sqrt(np.mean(np.square(list(differences)))))


def _trained(
    options: FrontierOptions, source: ActivationSource, coefficient: float, seed: int, sparse: bool
) -> SparseAutoencoder:
    num_tokens = options.steps * options.batch
    config = TrialConfig(
        seed=seed,
        sae=SaeConfig(nonlinearity=options.nonlinearity, penalty=options.penalty, d_sae=options.d_sae),
        training=TrainingConfig(
            l1_coefficient=coefficient, lr=2e-3, num_tokens=num_tokens, batch_size=options.batch, sparse_step=sparse
        ),
        resampling=ResamplingConfig(steps=()),
    )
    stream = ActivationStream(source.layout, source.ensure)

    def batches(first_token: int) -> Iterator[Tensor]:
        return stream.batches(first_token, batch_size=options.batch, num_tokens=num_tokens)

    result = train(
        config,
        plan=plan_trial(config, d_in=source.d_in),
        batches=batches,
        report=lambda row: None,
        checkpoint_dir=None,
        device=options.device,
        should_stop=lambda: False,
    )
    assert result.outcome == "finished", result.message
    torch.set_num_threads(options.threads)
    return result.sae


if __name__ == "__main__":
    main()
