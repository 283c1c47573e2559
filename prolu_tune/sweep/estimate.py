"""What a sweep will take: memory, disk, arithmetic, and from a measured rate the time. Imports neither torch nor Ray."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from prolu_tune.config.resolve import TrialPlan, plan_trial
from prolu_tune.config.shape import ModelShape
from prolu_tune.config.trial import TrialConfig
from prolu_tune.search.space import SearchSpace

FLOAT = 4
PROCESS_BYTES = 450_000_000
"""Resident size of a Python process with torch, before it holds a tensor."""
ELEMENT_S = 2.5e-8
"""Core-seconds of a step for each element of (batch, d_sae) beside the products; 2.0e-8 to 3.1e-8 measured on three sizes."""
START_S = 15.0
"""Ray, MLflow and the language model, until the first step."""
ASSUMED_GPU_FLOPS = 1e14
"""Rate of a GPU, where there is none to measure: 100 TFLOP/s, a third of what a current one has in TF32."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine, as far as a plan needs it."""

    num_cpus: int
    num_gpus: int
    memory_bytes: int
    flops: float
    """Float32 multiplications and additions a second of one product on all cores, measured."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Costs of a sweep. Bytes and seconds; None where the model's size is not known."""

    trials_at_once: int
    tokens: int
    """Activations trained on, over all trials."""
    stream_tokens: int
    """Tokens that the language model reads for training, over the whole sweep."""
    trial_memory_bytes: int | None
    """Peak of one trial's process: weights, gradients, both moments, one batch."""
    model_memory_bytes: int | None
    """Peak of the process with the language model."""
    trial_disk_bytes: int | None
    """SAE and two checkpoints."""
    cache_bytes: int | None
    """Activations on disk, at most `activations.cache_gb`."""
    flop: float | None
    wall_s: float | None
    """The whole sweep on this machine; on GPUs with the rate assumed."""


def this_machine(*, measure: bool = True) -> Machine:
    """Returns this machine's sizes and its measured rate (under a second; 0 when not measured)."""
    import psutil

    gpus = Path("/proc/driver/nvidia/gpus")
    return Machine(
        num_cpus=os.cpu_count() or 1,
        num_gpus=len(list(gpus.iterdir())) if gpus.is_dir() else 0,
        memory_bytes=psutil.virtual_memory().total,
        flops=_matmul_rate() if measure else 0.0,
    )


def estimate(space: SearchSpace, machine: Machine, *, shape: ModelShape | None, d_in: int | None) -> Estimate:
    """Returns the costs of the whole sweep, with every trial of a coverage search run to its end."""
    configs = space.trials() or [space.trial(v, space.coefficient_range(v.architecture)[0]) for v in space.variants()]
    repeats = space.num_trials / len(configs)
    at_once = trials_at_once(space, machine)
    longest = max(config.training.num_tokens for config in configs)
    plans = None if d_in is None else [plan_trial(config, d_in=d_in) for config in configs]
    cache_limit = int(space.activations.cache_gb * 1e9)
    cache_bytes = None if d_in is None else min(cache_limit, longest * d_in * 2)
    fits = d_in is not None and longest * d_in * 2 <= cache_limit
    waves = 1 if fits else math.ceil(space.num_trials / at_once)
    tokens = int(repeats * sum(config.training.num_tokens for config in configs))
    flop = wall_s = None
    if plans is not None and shape is not None:
        pairs = list(zip(configs, plans, strict=True))
        model_flop = (
            2.0 * shape.num_parameters * (longest * waves * _depth(space, shape) + space.num_trials * _evaluated(space))
        )
        flop = repeats * sum(_products(config, plan) for config, plan in pairs) + model_flop
        wall_s = START_S + _seconds(space, machine, pairs, repeats=repeats, at_once=at_once, model_flop=model_flop)
    return Estimate(
        trials_at_once=at_once,
        tokens=tokens,
        stream_tokens=longest * waves,
        trial_memory_bytes=None
        if plans is None
        else PROCESS_BYTES + max(_trial_bytes(config, plan) for config, plan in zip(configs, plans, strict=True)),
        model_memory_bytes=None if shape is None else PROCESS_BYTES + _model_bytes(space, shape),
        trial_disk_bytes=None if plans is None else max(7 * num_parameters(plan) * FLOAT for plan in plans),
        cache_bytes=cache_bytes,
        flop=flop,
        wall_s=wall_s,
    )


def trials_at_once(space: SearchSpace, machine: Machine) -> int:
    """Returns how many trials run at once on this machine, at least 1 even where none would fit."""
    resources = space.resources
    fits = machine.num_cpus // resources.cpus_per_trial
    if resources.gpus_per_trial > 0:
        fits = min(fits, max(1, machine.num_gpus) // resources.gpus_per_trial)
    return max(1, min(int(fits), resources.max_concurrent_trials or space.num_trials, space.num_trials))


def num_parameters(plan: TrialPlan) -> int:
    """Returns the weights of one autoencoder."""
    return 2 * plan.d_in * plan.d_sae + plan.d_in + plan.d_sae


def _products(config: TrialConfig, plan: TrialPlan) -> float:
    """Five dense products a step: encoder, decoder, and the gradients of activations and both weights."""
    return 10.0 * plan.num_steps * config.training.batch_size * plan.d_in * plan.d_sae


def _seconds(
    space: SearchSpace,
    machine: Machine,
    pairs: list[tuple[TrialConfig, TrialPlan]],
    *,
    repeats: float,
    at_once: int,
    model_flop: float,
) -> float:
    """Returns the seconds of work: trials at once share the cores, the language model has them to itself."""
    if space.device == "cuda":
        gpus = max(1, machine.num_gpus)
        return (repeats * sum(_products(config, plan) for config, plan in pairs) + model_flop) / (ASSUMED_GPU_FLOPS * gpus)
    core = machine.flops / machine.num_cpus
    work = sum(
        _products(config, plan) / core + ELEMENT_S * plan.num_steps * config.training.batch_size * plan.d_sae
        for config, plan in pairs
    )
    cores = min(machine.num_cpus, at_once * space.training.num_threads)
    return repeats * work / cores + model_flop / (core * min(machine.num_cpus, space.activations.lm_threads))


def _depth(space: SearchSpace, shape: ModelShape) -> float:
    """Returns the share of the model that a pass up to the hook runs through."""
    parts = space.activations.hook_name.split(".")
    block = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else shape.num_layers
    return min(1.0, (block + 1) / shape.num_layers)


def _evaluated(space: SearchSpace) -> int:
    return space.evaluation.num_tokens


def _trial_bytes(config: TrialConfig, plan: TrialPlan) -> int:
    """Weights, gradients and both moments; four arrays of (batch, d_sae) live at once in a dense step."""
    return 4 * FLOAT * num_parameters(plan) + config.training.batch_size * (4 * plan.d_sae + 3 * plan.d_in) * FLOAT


def _model_bytes(space: SearchSpace, shape: ModelShape) -> int:
    """Weights, and the logits of one batch twice: as scores and as log-probabilities."""
    batch = space.activations.lm_batch_size * space.activations.context_length
    return FLOAT * (shape.num_parameters + batch * 2 * shape.vocab_size)


def _matmul_rate(size: int = 768, seconds: float = 0.3) -> float:
    """Returns multiplications and additions a second of a square float32 product, the best of several."""
    import numpy as np

    left = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    out = np.empty_like(left)
    best, start = math.inf, time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        np.matmul(left, left, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
