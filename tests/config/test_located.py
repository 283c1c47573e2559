"""Finding the key that a person meant, and showing values and paths as people write them."""

import pytest

from prolu_tune.config.located import dotted, dotted_keys, nearest_key, shown
from prolu_tune.config.trial import TrainingConfig, TrialConfig


@pytest.mark.parametrize(
    ("key", "section", "meant"),
    [
        ("learning_rate", "training", "lr"),
        ("learning-rate", "training", "lr"),
        ("LR", "training", "lr"),
        ("batchsize", "training", "batch_size"),
        ("expansion", "training", "sae.expansion_factor"),
        ("dead_frequency", "training", "resampling.dead_frequency"),
        ("contextlength", "training", "activations.context_length"),
        ("flux_capacitor", "training", None),
    ],
)
def test_the_key_that_was_meant_is_relative_in_its_section_and_dotted_elsewhere(
    key: str, section: str, meant: str | None
) -> None:
    assert nearest_key(key, section, TrainingConfig.model_fields, dotted_keys(TrialConfig)) == meant


def test_dotted_keys_are_sections_and_leaves() -> None:
    keys = list(dotted_keys(TrialConfig))
    assert {"seed", "training", "training.lr", "activations.hook_name"} <= set(keys) and len(keys) == len(set(keys))


def test_paths_and_values_are_shown_as_they_are_written() -> None:
    assert dotted(("architectures", "relu+l1", "l1_coefficient", 0)) == "architectures.relu+l1.l1_coefficient[0]"
    assert [shown(value) for value in (True, None, 1e-3, "a")] == ["true", "nothing", "0.001", "'a'"]
    assert len(shown("a" * 500)) == 60
