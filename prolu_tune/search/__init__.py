"""What a sweep tries next: search spaces, the coverage sampler and its simulation. Needs no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prolu_tune.search.sampler import L0CoverageSampler
    from prolu_tune.search.simulate import simulate

__all__ = ["L0CoverageSampler", "simulate"]

_HOMES = {"L0CoverageSampler": "prolu_tune.search.sampler", "simulate": "prolu_tune.search.simulate"}


def __getattr__(name: str) -> Any:
    """Returns a public name from its module; Optuna and SciPy are imported only then."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
