"""Rules between the keys of a search space, checked once when it is made."""

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prolu_tune.config.located import RelationError, dotted_keys, nearest_key, rule, shown
from prolu_tune.config.names import NONLINEARITIES, PENALTIES, architecture_name, split_architecture
from prolu_tune.config.trial import TrialConfig
from prolu_tune.search.parts import CoverageSearch

if TYPE_CHECKING:
    from prolu_tune.search.space import SearchSpace

FACTOR_SECTIONS = ("sae", "training", "resampling")
"""Sections that may differ between trials; activations and evaluation are shared by a whole sweep."""
SET_PER_TRIAL = ("sae.nonlinearity", "sae.penalty", "training.l1_coefficient")
"""Keys of a trial that `architectures` decides."""


def check_architectures(space: "SearchSpace") -> None:
    """Checks the names, and that the coefficients are in a form that the search can use."""
    known = [architecture_name(nonlinearity, penalty) for nonlinearity in NONLINEARITIES for penalty in PENALTIES]
    for name, architecture in space.architectures.items():
        path = ("architectures", name)
        if name not in known:
            close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
            raise RelationError(path, f"architectures.{name} is not an architecture (nonlinearity+penalty); {remedy}")
        listed = architecture.l1_coefficient.numbers() is not None
        path = (*path, "l1_coefficient")
        if space.search.kind == "grid" and not listed:
            raise RelationError(
                path,
                "a range without a count is for search kind coverage; add count, or search: {kind: coverage, l0: [5, 200]}",
            )
        if space.search.kind == "coverage" and (listed or architecture.l1_coefficient.count is not None):
            raise RelationError(
                path, "search kind coverage chooses the coefficients itself; write a range {low: .., high: ..} without count"
            )
    if len(set(space.seeds)) < len(space.seeds):
        raise RelationError(("seeds",), "holds the same seed twice; every seed gives one repeat")
    if isinstance(space.search, CoverageSearch):
        at_once = space.resources.max_concurrent_trials or 1
        if space.search.window is not None and space.search.window < at_once:
            raise RelationError(
                ("search", "window"),
                f"search.window ({space.search.window}) is less than resources.max_concurrent_trials ({at_once}), "
                "so some of them would wait; raise window or lower max_concurrent_trials",
            )


def check_factors(space: "SearchSpace") -> None:
    """Checks every value of `grid` in its place."""
    known = [key for key in dotted_keys(TrialConfig) if key.partition(".")[0] in FACTOR_SECTIONS and "." in key]
    base = space.base
    for key, values in space.grid.items():
        section, _, leaf = key.partition(".")
        if key in SET_PER_TRIAL or key == "seed":
            raise RelationError(
                ("grid", key), f"grid.{key} is varied by {'seeds' if key == 'seed' else 'architectures'}; remove it here"
            )
        if key not in known:
            meant = nearest_key(
                leaf or section,
                section if leaf else "",
                [k.rpartition(".")[2] for k in known if k.startswith(f"{section}.")],
                known,
            )
            full = meant and (meant if "." in meant else f"{section}.{meant}")
            remedy = (
                f"did you mean {full}?"
                if full in known
                else f"write a dotted key of {', '.join(FACTOR_SECTIONS)}, such as training.lr"
            )
            raise RelationError(("grid", key), f"grid.{key} cannot be varied; {remedy}")
        here, default = getattr(getattr(base, section), leaf), getattr(getattr(TrialConfig(), section), leaf)
        if here != default:
            raise RelationError((section, leaf), f"{key} is set here and varied by grid; remove one of them")
        seen: list[Any] = []
        for i, value in enumerate(values):
            tree = base.model_dump()
            tree[section][leaf] = value
            try:
                checked = getattr(getattr(TrialConfig.model_validate(tree), section), leaf)
            except ValidationError as error:
                raise RelationError(("grid", key, i), rule(error.errors(include_url=False)[0])) from None
            if isinstance(value, bool) and not isinstance(checked, bool):
                raise RelationError(("grid", key, i), f"should be a number, got {shown(value)}")
            if checked in seen:
                raise RelationError(("grid", key, i), f"the value {shown(value)} stands twice; keep one")
            seen.append(checked)


def check_effect(space: "SearchSpace") -> None:
    """Refuses settings that would change nothing, and precisions that the device cannot have."""
    for key in SET_PER_TRIAL:
        section, _, leaf = key.partition(".")
        if leaf in getattr(space, section).model_fields_set:
            raise RelationError((section, leaf), f"{key} is set for each trial by architectures; remove it here")
    activations, resampling = space.activations, space.resampling
    idle: dict[str, str] = {}
    if not any(split_architecture(name)[1] == "sqrt_l1" for name in space.architectures):
        idle["sae.sqrt_l1_eps"] = "no architecture has the penalty sqrt_l1"
    if activations.model == "embedded":
        idle["activations.model_revision"] = "the embedded model has no revisions"
    if activations.dataset == "embedded":
        idle["activations.dataset_revision"] = idle["activations.dataset_split"] = "the embedded text is no hub data set"
    if resampling.steps == () and "resampling.steps" not in space.grid:
        idle |= {f"resampling.{name}": "resampling.steps is []" for name in type(resampling).model_fields if name != "steps"}
    for key, reason in idle.items():
        section, _, leaf = key.partition(".")
        part = getattr(space, section)
        if getattr(part, leaf) != type(part).model_fields[leaf].default or key in space.grid:
            raise RelationError((section, leaf), f"{key} has no effect: {reason}; remove it")
    for section, leaf in (("training", "precision"), ("activations", "lm_precision")):
        values = (getattr(getattr(space, section), leaf), *space.grid.get(f"{section}.{leaf}", ()))
        if "bfloat16" in values and space.device == "cpu":
            raise RelationError(
                (section, leaf), f"{section}.{leaf}: bfloat16 needs a GPU; set resources.gpus_per_trial or use float32"
            )
