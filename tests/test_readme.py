"""The README against the repository it describes."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PACKAGE = ROOT / "prolu_tune"


def test_the_tree_names_every_module_and_nothing_else() -> None:
    tree = README[README.index("\nprolu_tune/\n") :]
    tree = tree[: tree.index("```")]
    named: set[str] = set()
    folder = ""
    for line in tree.splitlines()[2:]:
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        elif name.endswith(".py"):
            named.add((folder if line.startswith("    ") else "") + name)
    private = {"__init__.py", "__main__.py"}
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name not in private}
    assert named == modules


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_verbs_make_targets_and_search_spaces_exist() -> None:
    verbs = set(re.findall(r"(?:^    |\$ |`|bin/)prolu-tune ([a-z]+)", README, re.MULTILINE))
    help_text = subprocess.run(
        [sys.executable, "-m", "prolu_tune.cli.main", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert {verb for verb in verbs if not re.search(rf"^\s+{verb}\b", help_text, re.MULTILINE)} == set()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\s+make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for space in re.findall(r"search_spaces/[a-z0-9-]+\.yaml", README):
        assert (ROOT / space).exists(), space
