"""Sweeps of sparse autoencoders over language-model activations, from a search space to a Pareto frontier."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prolu_tune.results.query import load_sae, load_sweep

__version__ = "0.1.0"
__all__ = ["__version__", "load_sae", "load_sweep"]


def __getattr__(name: str) -> Any:
    """Returns a public function from its module, imported only when it is asked for."""
    if name not in ("load_sae", "load_sweep"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("prolu_tune.results.query"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
