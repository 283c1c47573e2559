"""Sweeps to report on, made up so that every number of the report can be worked out by hand."""

import math
from collections.abc import Sequence
from typing import Any

from prolu_tune.report.collect import Course, SweepData
from prolu_tune.search.coverage import CoverageTarget

ALL = ("relu+l1", "relu+sqrt_l1", "prolu_relu+l1", "prolu_relu+sqrt_l1", "prolu_ste+l1", "prolu_ste+sqrt_l1")


def run(
    index: int, architecture: str, l0: float, ce_degradation: float, *, seed: int = 0, group: str = "", **more: Any
) -> dict[str, Any]:
    """Returns the row of a finished trial."""
    nonlinearity, _, penalty = architecture.partition("+")
    coefficient = more.pop("l1_coefficient", round(10 / l0, 6))
    return {
        "run_id": f"{index:032x}",
        "trial": index,
        "architecture": architecture,
        "nonlinearity": nonlinearity,
        "penalty": penalty,
        "l1_coefficient": coefficient,
        "lr": 1e-3,
        "seed": seed,
        "state": "finished",
        "l0": l0,
        "l1": 10 * math.sqrt(l0),
        "sqrt_l1": 8 * math.sqrt(l0),
        "mse": 1 / math.sqrt(l0),
        "fvu": 1.1 / math.sqrt(l0),
        "ce_loss_clean": 3.0,
        "ce_loss_with_sae": 3.0 + ce_degradation,
        "ce_loss_zero": 11.0,
        "ce_degradation": ce_degradation,
        "ce_loss_score": 1 - ce_degradation / 8,
        "frac_alive": 0.9,
        "frac_negative_bias": 0.9,
        "relative_norm": 0.95 - 1 / (10 * l0),
        "steps": 100,
        "tokens": 100_000,
        "wall_s": 12.5,
        "checkpoint": f"/store/trials/{index:04d}/sae",
        "on_frontier": False,
        "ce_degradation_bos_kept": ce_degradation / 2,
        "magnitude_slope": None,
        "frac_dead": 0.1 + 1 / l0,
        "label": f"{architecture} c={coefficient} s{seed}",
        "group": group or f"l1_coefficient={coefficient}",
        "message": None,
        "log": None,
        **more,
    }


def curves(
    architectures: Sequence[str] = ALL, *, seeds: int = 1, l0s: Sequence[float] = (6.0, 12.0, 24.0, 48.0, 96.0)
) -> list[dict[str, Any]]:
    """Returns runs on ce_degradation = factor / l0, the factor 1 for the first architecture, 1.1 for the next and so on."""
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(architectures):
        for setting, l0 in enumerate(l0s):
            for seed in range(seeds):
                wobble = 1 + 0.01 * (seed - (seeds - 1) / 2)
                rows.append(run(len(rows), name, l0 * wobble, (1 + 0.1 * place) / l0, seed=seed, group=f"setting {setting}"))
    return rows


def sweep(rows: list[dict[str, Any]], *, name: str = "made-up", **more: Any) -> SweepData:
    """Returns the data of a sweep with these rows and a course of training for the first run of every architecture."""
    firsts = {row["architecture"]: row for row in reversed(rows) if row["state"] == "finished"}
    courses = [
        Course(
            run_id=row["run_id"],
            label=row["label"],
            architecture=row["architecture"],
            l1_coefficient=row["l1_coefficient"],
            points=[(step, row["l0"] * (1 + 100 / (1 + step)), 1e-3 * min(1.0, step / 10)) for step in range(0, 101, 5)],
            resampled=[(50, 7)],
        )
        for row in firsts.values()
    ]
    given: dict[str, Any] = {
        "settings": {"activations.model": "gpt2", "activations.hook_name": "blocks.6.hook_resid_pre", "training.lr": "0.001"},
        "varied": {"training.l1_coefficient": ["0.1", "1.0"]},
        "versions": {"torch": "2.13.0"},
        "space": {"name": name, "search": {"kind": "grid"}},
        "num_trials": len(rows),
        "target": CoverageTarget(5.0, 200.0, 16),
        "span_s": 60.0,
    }
    return SweepData(name=name, run_id="f" * 32, rows=rows, courses=courses, **(given | more))
