import json

import pytest

from prolu_tune.training.choice import CPU, CUDA, HYSTERESIS, Crossover, StepChoice

LARGE = {"batch_size": 4096, "d_sae": 12288}


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
    choice = StepChoice(CPU, batch_size=64, d_sae=256)
    choice.observe(0)
    assert choice.path == "dense"


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
    crossover = Crossover(density=0.2, fixed_entries=0, every=1)
    counts = [active(0.01), active(0.16), active(0.19), active(0.3), active(0.16), active(0.1)]
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
