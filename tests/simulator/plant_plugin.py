"""A pytest plugin that runs tests with the bug planted that the variable PLANT names; without it, as they are."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _planted() -> Iterator[None]:
    if not os.environ.get("PLANT"):
        yield
        return
    # Not before: jaxtyping wants to see the package imported after itself.
    from simulator.planted import PLANTS

    with next(plant for plant in PLANTS if plant.name == os.environ["PLANT"]).planted():
        yield
