"""Files of these tests lie in memory where there is a file system in it: they sync thousands of times."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="prolu-test-", dir=in_memory) as folder:
        yield Path(folder)
