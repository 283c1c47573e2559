"""A search space: what a sweep varies around one base configuration, read from YAML and checked once."""

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from prolu_tune.config.located import RelationError, dotted, input_error, shown
from prolu_tune.config.names import split_architecture
from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.shape import ModelShape, check_dataset_exists, hook_width, model_shape
from prolu_tune.config.trial import (
    ActivationConfig,
    EvaluationConfig,
    Frozen,
    ResamplingConfig,
    SaeConfig,
    TrainingConfig,
    TrialConfig,
)
from prolu_tune.config.yaml import Document, KeyPath, load_document
from prolu_tune.errors import InputError
from prolu_tune.search.parts import MAX_TRIALS, ArchitectureSpace, CoverageSearch, GridSearch, Resources
from prolu_tune.search.relations import SET_PER_TRIAL, check_architectures, check_effect, check_factors


@dataclass(frozen=True, kw_only=True)
class Variant:
    """All of a trial but its coefficient."""

    architecture: str
    factors: tuple[tuple[str, Any], ...]
    """Dotted keys of `grid` with the values chosen."""
    seed: int


class SearchSpace(Frozen):
    """A base configuration and what is varied around it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    """Name of the sweep: letters, digits, dot, underscore, minus, at most 64. Left out of a file: the file's name."""
    architectures: Annotated[dict[str, ArchitectureSpace], Field(min_length=1)]
    """`nonlinearity+penalty` with its coefficients."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Seeds of initialisation and resampling; each repeats the whole grid."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Further factors: dotted keys of sae, training or resampling with lists of values."""
    search: Annotated[GridSearch | CoverageSearch, Field(discriminator="kind")] = GridSearch()
    """How trials are chosen."""
    resources: Resources = Resources()
    """What a trial takes of a machine."""
    sae: SaeConfig = SaeConfig()
    """The autoencoder, but for what `architectures` says."""
    training: TrainingConfig = TrainingConfig()
    """Loss, optimiser, schedule."""
    resampling: ResamplingConfig = ResamplingConfig()
    """Dead latents."""
    activations: ActivationConfig = ActivationConfig()
    """Model, hook, data."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out metrics."""

    @model_validator(mode="after")
    def _relations(self) -> Self:
        check_architectures(self)
        check_factors(self)
        check_effect(self)
        num_variants = math.prod(len(values) for values in self.grid.values()) * len(self.seeds) * len(self.architectures)
        if num_variants > MAX_TRIALS:
            raise RelationError(
                (),
                f"{num_variants:,} combinations are more than {MAX_TRIALS:,}; give fewer architectures, seeds or grid values",
            )
        if self.num_trials > MAX_TRIALS:
            raise RelationError(
                (), f"{self.num_trials:,} trials are more than {MAX_TRIALS:,}; give fewer coefficients, seeds or grid values"
            )
        return self

    @property
    def base(self) -> TrialConfig:
        """The configuration that all trials share; architecture, coefficient, seed and factors are still the defaults."""
        return TrialConfig(
            sae=self.sae,
            training=self.training,
            resampling=self.resampling,
            activations=self.activations,
            evaluation=self.evaluation,
        )

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where trials train."""
        return "cuda" if self.resources.gpus_per_trial > 0 else "cpu"

    @property
    def num_trials(self) -> int:
        """Trials of the grid, or the most that a coverage search may take."""
        if isinstance(self.search, CoverageSearch):
            return self.search.max_trials
        factors = math.prod(len(values) for values in self.grid.values()) * len(self.seeds)
        return factors * sum(len(space.l1_coefficient.numbers() or ()) for space in self.architectures.values())

    def coefficient_range(self, architecture: str) -> tuple[float, float]:
        """Returns (lowest, highest) `l1_coefficient` of an architecture."""
        coefficients = self.architectures[architecture].l1_coefficient
        numbers = coefficients.numbers()
        if numbers is not None:
            return min(numbers), max(numbers)
        assert coefficients.low is not None and coefficients.high is not None
        return coefficients.low, coefficients.high

    def variants(self) -> list[Variant]:
        """Returns every (architecture, factors, seed), architectures changing fastest."""
        combinations = list(itertools.product(*([(key, value) for value in values] for key, values in self.grid.items())))
        return [
            Variant(architecture=architecture, factors=factors, seed=seed)
            for seed in self.seeds
            for factors in combinations
            for architecture in self.architectures
        ]

    def trial(self, variant: Variant, l1_coefficient: float) -> TrialConfig:
        """Returns the complete configuration of one trial."""
        nonlinearity, penalty = split_architecture(variant.architecture)
        tree = self.base.model_dump(exclude={"activations", "evaluation"})
        tree["seed"] = variant.seed
        tree["sae"] |= {"nonlinearity": nonlinearity, "penalty": penalty}
        tree["training"]["l1_coefficient"] = l1_coefficient
        for key, value in variant.factors:
            section, _, leaf = key.partition(".")
            tree[section][leaf] = value
        return TrialConfig.model_validate(tree | {"activations": self.activations, "evaluation": self.evaluation})

    def trials(self) -> list[TrialConfig]:
        """Returns the trials of a grid in the order they run: all architectures in turn, coefficients from the middle outwards.

        A trial's place in this list is its index for good. Empty for a coverage search, which chooses as it goes.
        """
        if isinstance(self.search, CoverageSearch):
            return []
        rounds = {name: _from_middle(space.l1_coefficient.numbers() or ()) for name, space in self.architectures.items()}
        variants = self.variants()
        width = len(self.architectures)
        return [
            self.trial(variant, rounds[variant.architecture][turn])
            for start in range(0, len(variants), width)
            for turn in range(max(map(len, rounds.values())))
            for variant in variants[start : start + width]
            if turn < len(rounds[variant.architecture])
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the whole space as JSON data, defaults written out; `SearchSpace.model_validate` reads it back."""
        data = self.model_dump(mode="json")
        for key in SET_PER_TRIAL:
            section, _, leaf = key.partition(".")
            del data[section][leaf]
        return data

    def identity(self) -> dict[str, Any]:
        """Returns what two spaces must share to be the same sweep: all that decides the results of its trials.

        Not among it: the name, budgets that may be raised (`max_trials`, `bins`, `repeats`), resources but for the device,
        the size of the cache and the time between checkpoints.
        """
        data = self.to_json()
        del data["name"], data["resources"], data["activations"]["cache_gb"], data["training"]["checkpoint_every_s"]
        for key in ("max_trials", "bins", "repeats"):
            data["search"].pop(key, None)
        data["architectures"] = {
            name: space.l1_coefficient.numbers() or self.coefficient_range(name) for name, space in self.architectures.items()
        }
        return data | {"device": self.device}


def _from_middle(numbers: tuple[float, ...]) -> list[float]:
    """Returns the numbers ordered by distance from the middle of the sorted list, lower first."""
    ascending = sorted(numbers)
    middle = (len(ascending) - 1) / 2
    return [ascending[i] for i in sorted(range(len(ascending)), key=lambda i: (abs(i - middle), i))]


@dataclass(frozen=True, kw_only=True)
class LoadedSpace:
    """A search space with what was found out while reading it."""

    space: SearchSpace
    document: Document
    """Where each value was written."""
    shape: ModelShape | None
    """Sizes of the language model; None when only the hub knows them."""
    d_in: int | None
    """Width of the hook; None when the model has to be asked."""


def load_space(
    path: str | Path, *, overrides: list[str] | None = None, name: str | None = None, elsewhere: bool = False
) -> SearchSpace:
    """Returns the search space in a YAML file, checked; `name` wins over the file's.

    Raises:
        InputError: `file:line:column: key, what is wrong, remedy`, one line for each thing wrong.
    """
    return read_space(path, overrides=overrides, name=name, elsewhere=elsewhere).space


def read_space(
    path: str | Path, *, overrides: list[str] | None = None, name: str | None = None, elsewhere: bool = False
) -> LoadedSpace:
    """Returns the space with positions and the model's shape; `load_space` for those who need only the space.

    Args:
        path: the YAML file.
        overrides: `dotted.key=value` as given to `--set`, applied in order.
        name: the sweep's name as given to `--name`.
        elsewhere: the sweep may run on other machines: paths from / on are theirs, and not looked at here.

    Raises:
        InputError: see `load_space`.
    """
    document = load_document(path)
    for setting in overrides or []:
        document.override(setting)
    document.data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem))
    if name is not None:
        document.data["name"] = name
        document.keys[("name",)] = document.values[("name",)] = f"--name {name}"
    try:
        space = SearchSpace.model_validate(document.data)
    except ValidationError as error:
        raise input_error(error, document, SearchSpace) from None
    _refuse_booleans(document.data, space.model_dump(), (), document)
    paths = (space.activations.model, space.activations.dataset)
    if elsewhere and any(str(path).startswith("/") for path in paths):
        return LoadedSpace(space=space, document=document, shape=None, d_in=None)
    shape, d_in = _check_model(space, document)
    return LoadedSpace(space=space, document=document, shape=shape, d_in=d_in)


def _refuse_booleans(written: Any, read: Any, path: KeyPath, document: Document) -> None:
    """Refuses `true` where a number was read from it; pydantic takes it for 1."""
    if isinstance(written, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        place, _ = document.whereabouts(path)
        raise InputError(f"{place}: {dotted(path)} should be a number, got {shown(written)}")
    if isinstance(written, list) and isinstance(read, dict):  # coefficients given as a list
        read = read.get("values")
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            _refuse_booleans(value, read.get(key), (*path, key), document)
    elif isinstance(written, list) and isinstance(read, list | tuple):
        for i, (value, other) in enumerate(zip(written, read, strict=False)):
            _refuse_booleans(value, other, (*path, i), document)


def _check_model(space: SearchSpace, document: Document) -> tuple[ModelShape | None, int | None]:
    """Returns (shape, d_in) as far as they are known here, after checking hook, data and schedule against them."""
    shape, d_in = None, None
    try:
        shape = model_shape(space.activations)
        d_in = None if shape is None else hook_width(space.activations.hook_name, shape)
        check_dataset_exists(space.activations)
        for variant in space.variants():
            low, _ = space.coefficient_range(variant.architecture)
            config = space.trial(variant, low)
            plan_trial(config, d_in=d_in or config.sae.d_in or 1)
    except InputError as error:
        key = re.match(r"[a-z_0-9.]+", str(error))
        path = tuple(key[0].rstrip(".:").split(".")) if key else ()
        place, found = document.whereabouts(path)
        raise InputError(f"{place if found == path else document.source}: {error}") from None
    return shape, d_in
