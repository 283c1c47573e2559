"""Search spaces: the trials they give, what makes two the same sweep, and the files in the repository."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from small_space import SMALL, refused, space_file

from prolu_tune.search.parts import Coefficients
from prolu_tune.search.space import SearchSpace, load_space, read_space

SPACES = Path(__file__).parents[2] / "search_spaces"


def test_trials_take_architectures_in_turn_and_coefficients_from_the_middle(tmp_path: Path) -> None:
    trials = load_space(space_file(tmp_path)).trials()
    assert [(trial.sae.architecture, trial.training.l1_coefficient) for trial in trials] == [
        ("relu+l1", 2.0),
        ("prolu_ste+sqrt_l1", 0.5),
        ("relu+l1", 1.0),
        ("prolu_ste+sqrt_l1", 1.0),
        ("relu+l1", 3.0),
    ]
    assert {trial.training.num_tokens for trial in trials} == {1_000_000}


def test_seeds_and_grid_repeat_everything(tmp_path: Path) -> None:
    space = load_space(space_file(tmp_path), overrides=["seeds=[0, 7]", "grid.training.lr=[1e-3, 3e-4]"])
    trials = space.trials()
    seen = [(t.sae.architecture, t.training.l1_coefficient, t.training.lr, t.seed) for t in trials]
    one = [("relu+l1", 1.0), ("relu+l1", 2.0), ("relu+l1", 3.0), ("prolu_ste+sqrt_l1", 0.5), ("prolu_ste+sqrt_l1", 1.0)]
    assert sorted(seen) == sorted((a, c, lr, s) for (a, c), lr, s in itertools.product(one, (1e-3, 3e-4), (0, 7)))
    assert space.num_trials == len(trials) == 20
    assert [s[3] for s in seen] == [0] * 10 + [7] * 10


@pytest.mark.parametrize(
    ("name", "starts", "factor", "count", "lr", "encoder_scale"),
    [
        ("exp1", dict.fromkeys(("relu", "prolu_relu", "prolu_ste"), (3e-4, 3e-4)), 2, 5, 1e-3, 0.02),
        ("exp2", dict.fromkeys(("relu", "prolu_relu", "prolu_ste"), (3e-4, 3e-4)), 1.58, 8, 3e-4, 0.02),
        ("exp3", {"relu": (12e-4, 8e-4), "prolu_relu": (12e-4, 8e-4), "prolu_ste": (1.2e-4, 8e-4)}, 1.5, 5, 1e-3, 0.2),
    ],
)
def test_the_posts_experiments_have_the_posts_coefficients_times_768(
    name: str, starts: dict[str, tuple[float, float]], factor: float, count: int, lr: float, encoder_scale: float
) -> None:
    loaded = read_space(SPACES / f"{name}.yaml")
    trials = loaded.space.trials()
    assert len(trials) == 6 * count and loaded.d_in == 768
    wanted = {
        (f"{nonlinearity}+{penalty}", round(768 * start * factor**i, 9))
        for nonlinearity, pair in starts.items()
        for penalty, start in zip(("l1", "sqrt_l1"), pair, strict=True)
        for i in range(count)
    }
    assert {(trial.sae.architecture, round(trial.training.l1_coefficient, 9)) for trial in trials} == wanted
    for trial in trials:
        assert (trial.training.lr, trial.resampling.encoder_scale, trial.sae.expansion_factor) == (lr, encoder_scale, 16)
        assert (trial.activations.model, trial.activations.hook_name) == ("gpt2", "blocks.6.hook_resid_pre")


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_in_the_repository_loads(path: Path, tmp_path: Path) -> None:
    overrides = []
    if path.stem == "smollm2":
        (tmp_path / "config.json").write_text('{"hidden_size": 576, "num_hidden_layers": 30}')
        (tmp_path / "text.txt").write_text("text")
        overrides = [f"activations.model={tmp_path}", f"activations.dataset={tmp_path / 'text.txt'}"]
    space = load_space(path, overrides=overrides)
    assert space.name == path.stem
    assert SearchSpace.model_validate(json.loads(json.dumps(space.to_json()))) == space
    if path.stem in ("quickstart", "smollm2"):
        assert len(space.architectures) == 6 and len(space.trials()) == 18 and space.device == "cpu"


def test_a_space_without_a_name_has_its_files_name_and_a_flag_wins(tmp_path: Path) -> None:
    path = tmp_path / "my space!.yaml"
    path.write_text(SMALL.partition("\n")[2])
    assert load_space(path).name == "my-space-"
    assert load_space(path, overrides=["name=a"], name="b").name == "b"
    assert "--name a/b: name" in refused(path, name="a/b")


@pytest.mark.parametrize(
    ("form", "numbers"),
    [
        ([0.1, 1], (0.1, 1.0)),
        (0.5, (0.5,)),
        ({"start": 0.9216, "factor": 1.5, "count": 3}, (0.9216, 1.3824, 2.0736)),
        ({"low": 0.01, "high": 100, "count": 5}, (0.01, 0.1, 1.0, 10.0, 100.0)),
        ({"low": "1e-2", "high": "1e2"}, None),
    ],
)
def test_coefficients_are_a_list_a_series_or_a_range(form: Any, numbers: tuple[float, ...] | None) -> None:
    assert Coefficients.model_validate(form).numbers() == numbers


def test_identity_ignores_budgets_resources_and_names_but_nothing_that_decides_results(tmp_path: Path) -> None:
    text = SMALL.replace("[3, 1, 2]", "{low: 1e-3, high: 1e2}").replace(
        "{start: 0.5, factor: 2, count: 2}", "{low: 1e-3, high: 1e2}"
    )
    path = space_file(tmp_path, text + "search: {kind: coverage, l0: [5, 200]}\n")
    identity = load_space(path).identity()
    json.dumps(identity, allow_nan=False)
    for same in (
        "search.max_trials=500",
        "search.bins=32",
        "search.repeats=4",
        "resources.max_concurrent_trials=4",
        "resources.cpus_per_trial=2",
        "name=other",
        "activations.cache_gb=1",
        "training.checkpoint_every_s=5",
    ):
        assert load_space(path, overrides=[same]).identity() == identity, same
    for other in (
        "search.l0=[5, 100]",
        "search.window=16",
        "search.early_stopping=false",
        "resources.gpus_per_trial=1",
        "seeds=[1]",
        "training.lr=2e-3",
        "training.num_threads=2",
        "activations.chunk_tokens=2048",
        "evaluation.num_tokens=4096",
        "grid.training.batch_size=[1024]",
        "architectures.relu+l1.l1_coefficient.low=1e-2",
    ):
        assert load_space(path, overrides=[other]).identity() != identity, other


def test_origins_of_values_are_remembered(tmp_path: Path) -> None:
    document = read_space(space_file(tmp_path), overrides=["training.lr=2e-3"]).document
    assert document.values[("training", "lr")] == "--set training.lr=2e-3"
    assert document.values[("training", "num_tokens")].endswith("small.yaml:3:15")
