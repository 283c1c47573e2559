"""Costs of a sweep against numbers worked out by hand."""

from pathlib import Path

import pytest

from prolu_tune.search.space import read_space
from prolu_tune.sweep.estimate import Machine, estimate, this_machine, trials_at_once

SPACES = Path(__file__).parents[2] / "search_spaces"
MACHINE = Machine(num_cpus=4, num_gpus=0, memory_bytes=16 * 10**9, flops=1e11)
SPACE = """\
activations: {model: gpt2, hook_name: blocks.6.hook_resid_pre, cache_gb: 2}
sae: {d_sae: 1000}
training: {num_tokens: 1024000, batch_size: 1024, num_threads: 2}
resampling: {steps: []}
evaluation: {num_tokens: 10240}
architectures: {relu+l1: {l1_coefficient: [1, 2, 3]}}
resources: {cpus_per_trial: 2}
"""


def test_costs_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SPACE)
    loaded = read_space(tmp_path / "x.yaml")
    assert loaded.shape is not None and loaded.d_in == 768
    costs = estimate(loaded.space, MACHINE, shape=loaded.shape, d_in=768)
    weights = 2 * 768 * 1000 + 768 + 1000
    assert costs.trials_at_once == 2
    assert costs.tokens == 3 * 1_024_000
    assert costs.stream_tokens == 1_024_000  # 1.57 GB of float16 fit into the cache: read once
    assert costs.cache_bytes == 1_024_000 * 768 * 2
    assert costs.trial_disk_bytes == (1 + 2 * 3) * 4 * weights  # one SAE, two checkpoints of weights and both moments
    assert costs.trial_memory_bytes == 450_000_000 + 16 * weights + 1024 * (4 * 1000 + 3 * 768) * 4
    training = 3 * 1000 * 10 * 1024 * 768 * 1000  # trials, steps, five products of two operations, batch, widths
    model = 2 * loaded.shape.num_parameters * (1_024_000 * 7 / 12 + 3 * 10_240)
    assert costs.flop == pytest.approx(training + model)
    elements = 3 * 1000 * 1024 * 1000 * 2.5e-8
    # Two trials of two threads fill four cores; the language model has two of them.
    assert costs.wall_s == pytest.approx(15 + training / 1e11 + elements / 4 + model / 5e10)


def test_a_cache_too_small_makes_the_model_read_once_per_wave(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SPACE.replace("cache_gb: 2", "cache_gb: 1"))
    loaded = read_space(tmp_path / "x.yaml")
    costs = estimate(loaded.space, MACHINE, shape=loaded.shape, d_in=768)
    assert costs.stream_tokens == 2 * 1_024_000  # three trials, two at once
    assert costs.cache_bytes == 10**9


def test_what_is_not_known_is_none_and_tokens_are_there_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SPACE.replace("gpt2", "some-one/some-model"))
    loaded = read_space(tmp_path / "x.yaml")
    costs = estimate(loaded.space, MACHINE, shape=None, d_in=None)
    assert costs.tokens == 3 * 1_024_000
    unknown = (costs.trial_memory_bytes, costs.model_memory_bytes, costs.trial_disk_bytes, costs.flop, costs.wall_s)
    assert unknown == (None,) * 5


@pytest.mark.parametrize(("num_gpus", "at_once"), [(0, 4), (1, 4), (2, 8)])
def test_a_quarter_of_a_gpu_puts_four_trials_on_each(num_gpus: int, at_once: int) -> None:
    space = read_space(SPACES / "exp3.yaml").space
    machine = Machine(num_cpus=64, num_gpus=num_gpus, memory_bytes=10**12, flops=1e12)
    assert trials_at_once(space, machine) == at_once


def test_this_machine_has_sizes_and_a_measured_rate() -> None:
    machine = this_machine()
    assert machine.num_cpus >= 1 and machine.memory_bytes > 10**8
    assert 1e8 < machine.flops < 1e15
