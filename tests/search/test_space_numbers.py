"""Every numeric key of a search space takes exponent notation, which PyYAML alone reads as a string."""

from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from prolu_tune.config.trial import (
    ActivationConfig,
    EvaluationConfig,
    ResamplingConfig,
    SaeConfig,
    TrainingConfig,
    TrialConfig,
)
from prolu_tune.config.yaml import parse
from prolu_tune.search.parts import CoverageSearch, Resources


def numeric_fields() -> list[tuple[type[BaseModel], str, str]]:
    """Every field that takes numbers, with a value in exponent notation."""

    def leaves(annotation: Any) -> list[Any]:
        return (
            [annotation] if get_origin(annotation) is None else [leaf for arg in get_args(annotation) for leaf in leaves(arg)]
        )

    found = []
    for model in (
        SaeConfig,
        TrainingConfig,
        ResamplingConfig,
        ActivationConfig,
        EvaluationConfig,
        TrialConfig,
        Resources,
        CoverageSearch,
    ):
        for name, info in model.model_fields.items():
            kinds = leaves(info.annotation)
            if int in kinds or float in kinds:
                value = "1e1" if int in kinds and name != "chunk_tokens" else "1e4" if int in kinds else "1e-3"
                if tuple in map(get_origin, (info.annotation, *get_args(info.annotation))):
                    value = f"[{value}]" if int in kinds else "[5e-1, 6e-1]"
                found.append((model, name, value))
    return found


@pytest.mark.parametrize(("model", "name", "value"), numeric_fields(), ids=lambda item: getattr(item, "__name__", str(item)))
def test_every_numeric_key_takes_exponent_notation(model: type[BaseModel], name: str, value: str) -> None:
    more = ", kind: coverage" + ", l0: [1, 2]" * (name != "l0") if model is CoverageSearch else ""
    data, _ = parse(f"{{{name}: {value}{more}}}", source="x.yaml")
    read = getattr(model.model_validate(data), name)
    numbers = read if isinstance(read, tuple) else (read,)
    assert numbers == tuple(float(part) for part in value.strip("[]").split(", "))


def test_there_are_enough_numeric_keys_to_believe_the_test_above() -> None:
    assert len(numeric_fields()) >= 38
