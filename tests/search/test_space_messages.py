"""Every message for a search space that is wrong: file, line, column, key and remedy."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_space import SMALL, refused, space_file

from prolu_tune.config.located import OTHER_TOOLS, dotted_keys
from prolu_tune.errors import InputError
from prolu_tune.search.parts import CoverageSearch
from prolu_tune.search.space import SearchSpace, load_space

WRONG: list[tuple[str, str, str, str]] = [
    ("num_tokens: 1e6", "learning_rate: 1", "3:3", "training.learning_rate is not a key; did you mean lr?"),
    ("num_tokens: 1e6", "num_token: 1", "3:3", "training.num_token is not a key; did you mean num_tokens?"),
    ("training:", "trainig:", "2:1", "trainig is not a key; did you mean training?"),
    ("name: small", "lr: 1", "1:1", "lr is not a key; did you mean training.lr?"),
    ("name: small", "seed: 1", "1:1", "seed is not a key; did you mean seeds?"),
    ("num_tokens: 1e6", "hook_point: x", "3:3", "training.hook_point is not a key; did you mean activations.hook_name?"),
    ("l1_coefficient: [3", "l1_coeff: [3", "6:13", "architectures.relu+l1.l1_coeff is not a key; did you mean l1_coefficient?"),
    ("num_tokens: 1e6", "num_tokens: -1", "3:15", "training.num_tokens should be greater than 0, got -1"),
    ("num_tokens: 1e6", "num_tokens: 1.5", "3:15", "training.num_tokens should be a valid integer"),
    ("num_tokens: 1e6", "num_tokens: many", "3:15", "training.num_tokens should be a valid integer, got 'many'"),
    ("num_tokens: 1e6", "num_tokens: true", "3:15", "training.num_tokens should be a number, got true"),
    ("num_tokens: 1e6", "num_tokens:", "3:14", "training.num_tokens has no value"),
    ("num_tokens: 1e6", "lr: .nan", "3:7", "training.lr should be "),
    ("num_tokens: 1e6", "adam_betas: [0.9]", "3:15", "training.adam_betas"),
    ("num_tokens: 1e6", "adam_betas: [0.9, 2]", "3:21", "training.adam_betas[1] should be less than 1, got 2"),
    ("num_tokens: 1e6", "precision: fp16", "3:14", "training.precision should be 'float32' or 'bfloat16', got 'fp16'"),
    ("num_tokens: 1e6", "precision: bfloat16", "3:14", "training.precision: bfloat16 needs a GPU"),
    ("num_tokens: 1e6", "l1_coefficient: 3", "3:19", "training.l1_coefficient is set for each trial by architectures"),
    ("num_tokens: 1e6", "num_tokens: 100", "3:15", "training.num_tokens (100) is less than one training.batch_size"),
    ("[3, 1, 2]", "[3, -1, 2]", "6:33", "architectures.relu+l1.l1_coefficient[1] should be greater than or equal to 0"),
    ("[3, 1, 2]", "[3, true]", "6:33", "architectures.relu+l1.l1_coefficient[1] should be a number, got true"),
    ("[3, 1, 2]", "[3, 3]", "6:29", "architectures.relu+l1.l1_coefficient: holds the same coefficient twice"),
    ("[3, 1, 2]", "[]", "6:29", "architectures.relu+l1.l1_coefficient should have at least 1 item"),
    ("[3, 1, 2]", "{low: 1, high: 2}", "6:29", "architectures.relu+l1.l1_coefficient: a range without a count"),
    ("[3, 1, 2]", "{low: 2, high: 1, count: 2}", "6:29", "architectures.relu+l1.l1_coefficient: low (2) must be less"),
    ("[3, 1, 2]", "{start: 2, count: 2}", "6:29", "architectures.relu+l1.l1_coefficient: gives count, start; write"),
    (
        "relu+l1:",
        "relu+l2:",
        "6:12",
        "architectures.relu+l2 is not an architecture (nonlinearity+penalty); did you mean relu+l1?",
    ),
    ("relu+l1:", "prolu+l1:", "6:13", "architectures.prolu+l1 is not an architecture"),
    ("{steps: []}", "{steps: [], encoder_scale: 0.5}", "4:40", "resampling.encoder_scale has no effect"),
    ("name: small", "sae: {d_sae: 9, expansion_factor: 2}", "1:6", "sae: d_sae and expansion_factor both set"),
    ("name: small", "sae: {nonlinearity: relu}", "1:21", "sae.nonlinearity is set for each trial by architectures"),
    ("name: small", "sae: 3", "1:6", "sae should be a section with keys below it, got 3"),
    ("name: small", "name: 3", "1:7", "name should be a valid string, got 3; put it in quotes"),
    ("name: small", "name: ../x", "1:7", "name has characters or a length that are not allowed, got '../x'"),
    ("name: small", "seeds: [1, 1]", "1:8", "seeds: holds the same seed twice"),
    ("name: small", "search: coverage", "1:9", "search should be a section with keys below it"),
    ("name: small", "search: {kind: cover}", "1:9", "search.kind should be 'grid' or 'coverage', got 'cover'"),
    ("name: small", "search: {l0: [1, 2]}", "1:9", "search.kind is missing"),
    ("name: small", "search: {kind: coverage}", "1:9", "search.l0 is missing"),
    ("name: small", "search: {kind: grid, bins: 3}", "1:22", "search.bins is not a key"),
    ("name: small", "search: {kind: coverage, l0: [5, 2]}", "1:30", "search.l0: must run from a lower to a higher L0"),
    ("name: small", "search: {kind: coverage, l0: [2, 5]}", "6:29", "architectures.relu+l1.l1_coefficient: search kind"),
    ("name: small", "grid: {lr: [1]}", "1:12", "grid.lr cannot be varied; did you mean training.lr?"),
    ("name: small", "grid: {training.lrr: [1]}", "1:22", "grid.training.lrr cannot be varied; did you mean training.lr?"),
    ("name: small", "grid: {activations.seed: [1]}", "1:26", "grid.activations.seed cannot be varied"),
    ("name: small", "grid: {seed: [1]}", "1:14", "grid.seed is varied by seeds"),
    ("name: small", "grid: {sae.penalty: [l1]}", "1:21", "grid.sae.penalty is varied by architectures"),
    ("name: small", "grid: {training.lr: [1, -1]}", "1:25", "grid.training.lr[1]: should be greater than 0, got -1"),
    ("name: small", "grid: {training.lr: [1, 1.0]}", "1:25", "grid.training.lr[1]: the value 1.0 stands twice"),
    ("name: small", "grid: {training.lr: [true]}", "1:22", "grid.training.lr[0]: should be a number, got true"),
    ("name: small", "grid: {training.num_tokens: [4e6]}", "3:15", "training.num_tokens is set here and varied by grid"),
    ("name: small", "resources: {gpus: 1}", "1:13", "resources.gpus is not a key; did you mean gpus_per_trial?"),
    ("name: small", "resources: {gpus_per_trial: 1.5}", "1:29", "resources.gpus_per_trial: must be a share below 1"),
    (
        "name: small",
        "activations: {model: null}",
        "1:22",
        "activations.model has no value; write one here or give it with --set",
    ),
    ("name: small", "activations: {model: /no/such}", "1:22", "activations.model: no such folder /no/such"),
    ("name: small", "activations: {dataset: no.txt}", "1:24", "activations.dataset: no such file or folder no.txt"),
    ("name: small", "activations: {train_range: [0, 1]}", "1:14", "activations: train_range [0.0, 1.0] and eval_range"),
    (
        "name: small",
        "activations: {model: gpt2, hook_name: blocks.12.hook_resid_pre}",
        "1:39",
        "activations.hook_name: blocks.12",
    ),
    (
        "name: small",
        "activations: {model: gpt2}\nsae: {d_in: 512}",
        "2:13",
        "sae.d_in is 512, but blocks.2.hook_resid_pre is 768",
    ),
]
"""What is replaced in SMALL, by what, and the line, column and beginning of the message that follows."""


@pytest.mark.parametrize(("old", "new", "place", "message"), WRONG)
def test_wrong_input_is_one_line_with_file_line_column_key_and_remedy(
    tmp_path: Path, old: str, new: str, place: str, message: str
) -> None:
    path = space_file(tmp_path, SMALL.replace(old, new))
    found = refused(path)
    assert found.startswith(f"{path}:{place}: {message}"), found
    assert "\n" not in found


def test_a_faulty_flag_is_quoted_and_the_file_is_not_blamed(tmp_path: Path) -> None:
    assert refused(space_file(tmp_path), "training.lr=-1").startswith(
        "--set training.lr=-1: training.lr should be greater than 0"
    )


def test_two_faults_are_two_lines(tmp_path: Path) -> None:
    lines = refused(space_file(tmp_path), "training.lr=-1", "sae.width=3").splitlines()
    assert len(lines) == 2 and "did you mean d_sae?" in lines[0] and "greater than 0" in lines[1]


def test_no_architecture_is_an_error(tmp_path: Path) -> None:
    assert "architectures is missing; add it" in refused(space_file(tmp_path, "name: x"))
    assert "architectures should have at least 1 item" in refused(space_file(tmp_path), "architectures={}")


def test_more_trials_than_anyone_means_are_refused(tmp_path: Path) -> None:
    path = space_file(tmp_path, SMALL.replace("[3, 1, 2]", "{low: 1, high: 2, count: 9999}"))
    assert "10,001 trials are more than 10,000" in refused(path)


def test_every_name_of_another_tool_leads_to_a_key_that_exists() -> None:
    known = {
        *dotted_keys(SearchSpace),
        *(f"search.{name}" for name in CoverageSearch.model_fields),
        "architectures.NAME.l1_coefficient",
    }
    assert set(OTHER_TOOLS.values()) <= known


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(SMALL)), st.integers(0, 6), st.text(alphabet=" \n:{}[],-'1e+lrnull&*!#", max_size=5))
def test_a_damaged_space_loads_or_says_what_is_wrong(tmp_path: Path, start: int, cut: int, inserted: str) -> None:
    path = space_file(tmp_path, SMALL[:start] + inserted + SMALL[start + cut :])
    try:
        space = load_space(path)
    except InputError as error:
        assert str(error).startswith(str(path)), error
    else:
        assert space.trials()
