import json
from typing import Any

import pytest

from prolu_tune.training.choice import CPU, CUDA, HYSTERESIS, Crossover, StepChoice

LARGE = {"batch_size": 4096, "d_in": 768, "d_sae": 12288, "num_threads": 1}


def active(density: float) -> int:
    return round(density * LARGE["batch_size"] * LARGE["d_sae"])


def test_a_fresh_autoencoder_is_trained_densely_and_a_sparse_one_sparsely():
    choice = StepChoice(CPU, **LARGE)
    assert choice.path == "dense"
    choice.observe(active(0.5))
    assert choice.path == "dense"
    choice.observe(active(0.005))
    assert choice.path == "sparse"


def test_between_the_two_limits_the_path_stays_what_it_was():
    choice = StepChoice(CPU, **LARGE)
    limit = CPU.dense_from(**LARGE)
    between = active(limit * (1 + HYSTERESIS) / 2)
    choice.observe(between)
    assert choice.path == "dense"
    choice.observe(active(limit * HYSTERESIS * 0.99))
    choice.observe(between)
    assert choice.path == "sparse"
    choice.observe(active(limit * 1.01))
    assert choice.path == "dense"


def test_a_density_that_swings_about_a_limit_does_not_swing_the_path():
    choice = StepChoice(CPU, **LARGE)
    limit = CPU.dense_from(**LARGE)
    paths = []
    for step in range(100):
        choice.observe(active(limit * (0.99 if step % 2 else 1.01)))
        paths.append(choice.path)
    assert set(paths) == {"dense"}


def test_at_small_shapes_the_step_is_dense_at_any_density():
    choice = StepChoice(CPU, batch_size=64, d_in=64, d_sae=256, num_threads=1)
    choice.observe(0)
    assert choice.path == "dense"


def test_narrow_activations_small_batches_and_more_threads_lower_the_limit():
    limit = CPU.dense_from(**LARGE)
    assert 0.07 < limit < CPU.density
    for change in ({"d_in": 32}, {"batch_size": 16}, {"d_sae": 64}, {"num_threads": 2}, {"num_threads": 16}):
        assert CPU.dense_from(**LARGE | change) < limit
    assert CPU.dense_from(**LARGE | {"num_threads": 16}) < CPU.dense_from(**LARGE | {"num_threads": 2})


def measured(shape: tuple[int, int, int], num_threads: int, crossing: float) -> Any:
    return pytest.param(shape, num_threads, crossing, id=f"{'x'.join(map(str, shape))}-{num_threads}")


@pytest.mark.parametrize(
    ("shape", "num_threads", "crossing"),
    [
        # Batch, d_in, d_sae; where the two took equally long, two cores of an AMD EPYC, ReLU and L1, 22 November 2026.
        measured((256, 32, 512), 1, 0.016),
        measured((256, 32, 512), 2, 0.0),
        measured((256, 128, 512), 2, 0.038),
        measured((256, 32, 2048), 1, 0.043),
        measured((256, 32, 2048), 2, 0.027),
        measured((1024, 32, 512), 1, 0.033),
        measured((1024, 32, 512), 2, 0.028),
        measured((256, 1024, 512), 1, 0.134),
        measured((4096, 32, 8192), 1, 0.101),
        measured((4096, 32, 8192), 2, 0.079),
        measured((4096, 32, 512), 2, 0.077),
        measured((256, 512, 512), 2, 0.117),
        measured((4096, 128, 512), 1, 0.118),
        measured((4096, 1024, 512), 1, 0.121),
        measured((1024, 1024, 8192), 1, 0.147),
        measured((1024, 1024, 8192), 2, 0.148),
    ],
)
def test_the_sparse_step_is_not_taken_where_it_was_measured_to_be_slower(shape, num_threads, crossing):
    batch_size, d_in, d_sae = shape
    limit = CPU.dense_from(batch_size=batch_size, d_in=d_in, d_sae=d_sae, num_threads=num_threads)
    assert limit <= crossing
    if batch_size * d_sae >= 2**21:
        assert limit > crossing / 3, "and it is taken where it pays"


def test_where_there_is_no_sparse_step_no_count_is_asked_for():
    choice = StepChoice(None, **LARGE)
    assert not any(choice.due(step) for step in range(200))
    choice.observe(0)
    assert choice.path == "dense"


def test_a_gpu_is_asked_for_counts_once_in_many_steps():
    choice = StepChoice(CUDA, **LARGE)
    assert sum(choice.due(step) for step in range(1, 6401)) == 100
    assert all(StepChoice(CPU, **LARGE).due(step) for step in range(5))


def test_a_choice_restored_from_json_decides_as_the_one_that_went_on():
    crossover = Crossover(density=0.2, fixed_columns=0, every=1)
    counts = [active(0.01), active(0.17), active(0.19), active(0.3), active(0.19), active(0.1)]
    for cut in range(len(counts)):
        whole, first = StepChoice(crossover, **LARGE), StepChoice(crossover, **LARGE)
        for count in counts[:cut]:
            whole.observe(count)
            first.observe(count)
        second = StepChoice(crossover, **LARGE)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for count in counts[cut:]:
            whole.observe(count)
            second.observe(count)
            assert whole.path == second.path


def test_a_state_without_a_path_is_refused():
    with pytest.raises(ValueError, match="'fast', which must be one of"):
        StepChoice(CPU, **LARGE).load_state_dict({"path": "fast"})
