"""The parts of a search space: coefficients of an architecture, kinds of search, resources."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prolu_tune.config.trial import Frozen, NonNegativeFloat, PositiveFloat, PositiveInt

MAX_TRIALS = 10_000
"""More than this in one space is taken for a mistake."""


class Coefficients(Frozen):
    """The `l1_coefficient` of one architecture: a list, a geometric series, or a range."""

    values: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] | None = None
    """Weights of the penalty, 0 or more; in YAML simply a list."""
    start: PositiveFloat | None = None
    """First coefficient of a series; the others follow by `factor`."""
    factor: PositiveFloat | None = None
    """Ratio of two neighbours in a series."""
    low: PositiveFloat | None = None
    """Lower end of a range."""
    high: PositiveFloat | None = None
    """Upper end of a range."""
    count: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    """How many: of a series, or of a range cut evenly in log(coefficient). Left out of a range for search kind coverage."""

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {"values": value}
        return {"values": [value]} if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if given not in ({"values"}, {"start", "factor", "count"}, {"low", "high", "count"}, {"low", "high"}):
            raise ValueError(
                f"gives {', '.join(sorted(given)) or 'nothing'}; write a list, {{start, factor, count}}, {{low, high, count}}, "
                "or {low, high} for search kind coverage"
            )
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g}); swap them")
        try:
            numbers = self.numbers()
        except OverflowError:
            numbers = (math.inf,)
        if numbers is not None and not all(map(math.isfinite, numbers)):
            raise ValueError("grows beyond the largest number there is; give a smaller count or a factor nearer 1")
        if numbers is not None and len(set(numbers)) < len(numbers):
            raise ValueError("holds the same coefficient twice; use seeds to repeat a trial")
        return self

    def numbers(self) -> tuple[float, ...] | None:
        """Returns the coefficients in the order given, to twelve digits; None for a range without a count."""
        if self.values is not None:
            return self.values
        if self.count is None:
            return None
        if self.start is not None and self.factor is not None:
            series = [self.start * self.factor**i for i in range(self.count)]
        else:
            low, high = math.log(self.low or 1), math.log(self.high or 1)
            series = [math.exp(low + (high - low) * i / max(1, self.count - 1)) for i in range(self.count)]
        return tuple(float(f"{number:.12g}") for number in series)


class ArchitectureSpace(Frozen):
    """What is varied for one architecture."""

    l1_coefficient: Coefficients
    """A list, {start, factor, count}, {low, high, count}, or {low, high} for search kind coverage."""


class GridSearch(Frozen):
    """Every combination once."""

    kind: Literal["grid"] = "grid"
    """Every combination of architectures, coefficients, `grid` and seeds."""


class CoverageSearch(Frozen):
    """Coefficients chosen while the sweep runs, so that every architecture fills the same bins of L0."""

    kind: Literal["coverage"]
    """Fills gaps in L0."""
    l0: tuple[PositiveFloat, PositiveFloat]
    """Range of L0 to cover, [low, high]."""
    bins: Annotated[int, Field(ge=1, le=1000)] = 16
    """Equal bins of log L0 in that range, for each architecture."""
    max_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 200
    """Trials in all, at most. Raising it continues the same sweep."""
    window: PositiveInt | None = 8
    """Trial n is chosen from the results of trials 0 to n - window, whatever ends first; at least the trials at once.
    None: from whatever has ended, so that the same sweep may unfold differently."""
    repeats: Annotated[int, Field(ge=0)] = 0
    """Finished trials wanted in each bin beyond the first, if max_trials leaves room."""
    early_stopping: bool = True
    """Stops a trial early that is going to land in a filled bin or outside the range."""

    @field_validator("l0")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"must run from a lower to a higher L0, got [{value[0]:g}, {value[1]:g}]")
        return value


class Resources(Frozen):
    """What a trial takes of a machine, and how many run at once. No part of a sweep's results."""

    cpus_per_trial: PositiveFloat = 1.0
    """CPUs that Ray reserves for a trial; `training.num_threads` says how many it uses."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """GPUs of a trial: 0 trains on CPUs, a share such as 0.25 puts several trials on one GPU."""
    max_concurrent_trials: PositiveInt | None = None
    """Trials at once. None: as many as fit."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a trial is started again after its process or node is lost."""

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_or_share(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"must be a share below 1 or a whole number, got {value:g}")
        return value
