"""The documents of the embedded text, out of Debian's packages; for `make_embedded`."""

import gzip
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

JARGON_FILE = Path("/usr/share/doc/jargon-text/jargon.txt.gz")
PACKAGES = "bible-kjv, bible-kjv-text and jargon-text"
# Half of the lexicon's entries are shorter than one row of tokens.
LEAST_CHARACTERS = 1500


@dataclass(frozen=True)
class Document:
    """One row of the text: a chapter, a lexicon entry or a section."""

    text: str
    source: str


def read_bible() -> list[Document]:
    """One document per chapter of the King James Version: its name, then one verse a line without numbers.

    Raises:
        SystemExit: the Debian packages that hold the text and decode it are not installed.
    """
    program = shutil.which("bible")
    if program is None:
        raise SystemExit(f"The King James text is decoded by the program 'bible', which is missing: install {PACKAGES}.")
    # A line width above every verse's length gives one verse a line.
    command = [program, "-l99999", "gen1:1-rev22:21"]
    output = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    chapters: list[list[str]] = []
    for line in output.stdout.splitlines():
        verse = re.fullmatch(r"  \d+ (.+)", line)
        if verse:
            chapters[-1].append(" ".join(verse[1].split()))
        elif line.strip():
            chapters.append([line.strip()])
    if output.returncode or len(chapters) != 1189 or sum(map(len, chapters)) != 1189 + 31102:
        raise SystemExit(
            f"'{' '.join(command)}' gave {len(chapters)} chapters instead of 1189 of 31102 verses: install {PACKAGES}. "
            f"It said: {output.stderr.strip()[:300] or 'nothing'}"
        )
    return [Document("\n".join(chapter), "kjv") for chapter in chapters]


def unwrap(block: list[str]) -> str:
    """The block as one line if it is a filled paragraph or list item, else its lines with their common indent removed."""
    indents = [len(line) - len(line.lstrip()) for line in block]
    filled = all(len(line) > 50 for line in block[:-1]) and len(set(indents[1:])) <= 1
    hanging = len(block) == 1 or indents[1] - indents[0] in (0, 2, 3, 4)
    if filled and hanging:
        return " ".join(" ".join(line.split()) for line in block)
    return "\n".join(line[min(indents) :].rstrip() for line in block)


def is_prose(block: list[str]) -> bool:
    """Whether letters and spaces within lines make up a long block, as they don't in tables and character drawings."""
    text = "".join(line.strip() for line in block)
    plain = sum(character.isalpha() or character == " " for character in text)
    return (len(block) < 3 or plain >= 0.7 * len(text)) and not re.search(r"[│─═]| {6}", text)


def jargon_sections(blocks: list[list[str]]) -> Iterator[list[str]]:
    """The File's sections and entries, each as paragraphs beginning with its heading; tables of contents left out."""
    titles = {block[0].strip().removeprefix("Part ").split(". ", 1)[-1] for block in blocks[: blocks_until_body(blocks)]}
    section: list[str] = []
    in_lexicon, in_contents = False, False
    for block in blocks[blocks_until_body(blocks) :]:
        line = block[0]
        centred_or_flush = not line.startswith("   ") or line.startswith(" " * 12)
        title = re.sub(r"^(Part|Chapter|Appendix) \w+\. ", "", line.strip())
        if len(block) == 1 and (line == "Glossary" or line.strip() == "Part III. Appendices"):
            in_lexicon = line == "Glossary"
            in_contents = True
        is_entry = in_lexicon and re.match(r"   :\S[^:]*:", line) is not None
        is_heading = not in_lexicon and len(block) == 1 and centred_or_flush and title in titles
        if is_entry or is_heading:
            yield section
            section, in_contents = [unwrap(block) if is_entry else title], False
        elif line == "   Table of Contents" or (in_lexicon and re.fullmatch(r"  [0A-Z]", line)):
            in_contents = True
        elif in_contents and (in_lexicon or len(block) == 1):
            continue
        elif is_prose(block):
            in_contents = False
            section.append(unwrap(block))
    yield section


def blocks_until_body(blocks: list[list[str]]) -> int:
    """The index of the block where the text proper begins, which is the second time that its first title appears."""
    welcome = [i for i, block in enumerate(blocks) if block[0].strip() == "Welcome to the Jargon File"]
    if len(welcome) < 2:
        raise SystemExit(f"{JARGON_FILE} is not the Jargon File 4.4.7 of Debian's jargon-text: no 'Welcome' twice.")
    return welcome[1]


def read_jargon() -> list[Document]:
    """The Jargon File's sections and lexicon entries, one paragraph a line, neighbours gathered until none is short.

    Raises:
        SystemExit: the Debian package is not installed or holds another edition.
    """
    if not JARGON_FILE.exists():
        raise SystemExit(f"The Jargon File is read from {JARGON_FILE}, which is missing: install {PACKAGES}.")
    text = gzip.decompress(JARGON_FILE.read_bytes()).decode("utf-8").replace("\xa0", " ")
    blocks = [block.split("\n") for block in re.split(r"\n\s*\n", text.strip("\n"))]
    gathered = [""]
    for section in jargon_sections(blocks):
        if len(gathered[-1]) >= LEAST_CHARACTERS:
            gathered.append("")
        if len(section) > 1:
            gathered[-1] += ("\n\n" if gathered[-1] else "") + "\n".join(section)
    return [Document(text, "jargon") for text in gathered]
