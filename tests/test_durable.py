"""Files that are replaced whole."""

from pathlib import Path

from prolu_tune.durable import replace_file


def test_replacing_a_file_leaves_the_new_bytes_and_no_temporary_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", [b"o", b"ld"])
    replace_file(tmp_path / "a", [b"new"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]
