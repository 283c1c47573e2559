"""A small search space as a file, and what is said when one is refused."""

from pathlib import Path

import pytest

from prolu_tune.errors import InputError
from prolu_tune.search.space import load_space

SMALL = """\
name: small
training:
  num_tokens: 1e6
resampling: {steps: []}
architectures:
  relu+l1: {l1_coefficient: [3, 1, 2]}
  prolu_ste+sqrt_l1: {l1_coefficient: {start: 0.5, factor: 2, count: 2}}
"""


def space_file(tmp_path: Path, text: str = SMALL) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


def refused(path: Path, *overrides: str, name: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_space(path, overrides=list(overrides), name=name)
    return str(caught.value)
