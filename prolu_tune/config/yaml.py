"""Strict reading of YAML: plain data and the line and column of every key and value.

What a configuration never needs is refused: duplicate keys, aliases, tags, more than 1 MB, more than 5,000 values,
nesting deeper than 20.
Numbers and booleans follow YAML 1.2 (`1e-3` is a number, `no` is a word), unlike PyYAML's own rules.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prolu_tune.errors import InputError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 5_000
"""Each value takes a kilobyte while it is read, and half a million of them fit into a file of MAX_BYTES."""

KeyPath = tuple[str | int, ...]
"""Where a value stands: mapping keys and sequence indices from the top."""


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain scalars of YAML 1.2: no dates, no octal, no `yes`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own class attribute


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _Yaml12Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass
class Document:
    """A mapping read from a file, and where each of its parts was written."""

    source: str
    """The file, as the user named it."""
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[KeyPath, str] = field(default_factory=dict)
    """`file:line:column` of a key (of an item, in a sequence), or the `--set` that gave it."""
    values: dict[KeyPath, str] = field(default_factory=dict)
    """The same of the value."""

    def whereabouts(self, path: KeyPath, *, of_key: bool = False) -> tuple[str, KeyPath]:
        """Returns (place, path) of the deepest part of `path` that was written; elements nobody wrote are skipped."""
        places = self.keys if of_key else self.values
        found: KeyPath = ()
        for element in path:
            if (*found, element) in self.values:
                found = (*found, element)
        return places.get(found, self.source), found

    def override(self, setting: str) -> None:
        """Applies `dotted.key=value`, the value read as YAML; below `grid` the whole rest is one key.

        Raises:
            InputError: if the setting has no key, no value, or a value that is not YAML.
        """
        place = f"--set {setting}"
        dotted, equals, text = setting.partition("=")
        if not equals or not dotted.strip() or any(not part for part in dotted.strip().split(".")):
            raise InputError(f"{place}: not a setting; write --set dotted.key=value, such as --set training.lr=3e-4")
        if not text.strip():
            raise InputError(f"{place}: gives no value; write --set {dotted}=null for none")
        value, _ = parse(text, source=place, positions=False)
        parts = dotted.strip().split(".")
        path: KeyPath = ("grid", ".".join(parts[1:])) if parts[0] == "grid" and len(parts) > 1 else tuple(parts)
        target = self.data
        for depth, part in enumerate(path[:-1], start=1):
            inner = target.get(str(part))
            if inner is None:
                inner = target[str(part)] = {}
            if not isinstance(inner, dict):
                raise InputError(f"{place}: {'.'.join(map(str, path[:depth]))} is a value, not a section with keys below it")
            self.keys.setdefault(path[:depth], place)
            self.values.setdefault(path[:depth], place)
            target = inner
        for places in (self.keys, self.values):
            for known in [known for known in places if known[: len(path)] == path]:
                del places[known]
        target[str(path[-1])] = value
        _mark(value, path, place, self)


def _mark(value: object, path: KeyPath, place: str, document: Document) -> None:
    """Notes that everything at and below `path` comes from `place`."""
    document.keys[path] = document.values[path] = place
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        _mark(child, (*path, key), place, document)


def load_document(path: str | Path) -> Document:
    """Returns the mapping in a YAML file with its positions.

    Raises:
        InputError: if the file is missing, too large, not text, not YAML, or not one mapping.
    """
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(
            f"{source}: no such file; give the path of a search space such as search_spaces/quickstart.yaml"
        ) from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{source}: larger than {MAX_BYTES:,} bytes; a search space is a short text file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not text (byte {error.start} is not UTF-8); give a YAML file") from None
    data, document = parse(text, source=source)
    if data is None:
        raise InputError(f"{source}: empty; write a search space, see search_spaces/quickstart.yaml for an example")
    if not isinstance(data, dict):
        raise InputError(f"{source}: holds {_kind(data)}, not a mapping of keys such as `architectures:`")
    document.data = data
    return document


def parse(text: str, *, source: str, positions: bool = True) -> tuple[Any, Document]:
    """Returns (data, document with positions but no data) of one YAML text.

    Raises:
        InputError: if it is not YAML, or uses what a configuration never needs.
    """

    def place(mark: yaml.Mark | None) -> str:
        return f"{source}:{mark.line + 1}:{mark.column + 1}" if mark is not None and positions else source

    document = Document(source)
    try:
        _refuse_unneeded(text, place)
        loader = _Yaml12Loader(text)
        try:
            node = loader.get_single_node()
            data = None if node is None else _construct(loader, node, (), document, place)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise InputError(f"{source}: not text (character {error.position} is {error.character!r}); give a YAML file") from None
    except yaml.MarkedYAMLError as error:
        raise InputError(
            f"{place(error.problem_mark or error.context_mark)}: not YAML: {error.problem or error.context}"
        ) from None
    except InputError:
        raise
    except (ValueError, OverflowError) as error:  # PyYAML on escapes beyond Unicode, Python on numbers of thousands of digits
        raise InputError(f"{source}: not YAML: {error}") from None
    return data, document


def _refuse_unneeded(text: str, place: Any) -> None:
    """Checks the stream of events, before anything is built from it."""
    depth = num_values = 0
    for event in yaml.parse(text, Loader=_Yaml12Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise InputError(f"{place(event.start_mark)}: aliases and anchors (* and &) are not allowed; write the value out")
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            depth += 1
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            depth -= 1
        num_values += isinstance(event, yaml.NodeEvent)
        if num_values > MAX_VALUES:
            raise InputError(
                f"{place(event.start_mark)}: more than {MAX_VALUES:,} keys and values; "
                "give coefficients as {low, high, count} or {start, factor, count}"
            )
        if depth > MAX_DEPTH:
            raise InputError(f"{place(event.start_mark)}: nested deeper than {MAX_DEPTH} levels; a search space needs four")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise InputError(f"{place(event.start_mark)}: tags such as {tag} are not allowed; write plain values")


def _construct(loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, document: Document, place: Any) -> Any:
    """Returns the plain data below a node and notes every position on the way."""
    document.values[path] = place(node.start_mark)
    document.keys.setdefault(path, place(node.start_mark))
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, child, (*path, i), document, place) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        _refuse_half_characters(node, place)
        return int(node.value) if node.tag == "tag:yaml.org,2002:int" else loader.construct_object(node)
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{place(key_node.start_mark)}: a key must be a word, not a list or mapping")
        _refuse_half_characters(key_node, place)
        key = str(key_node.value)
        if key in data:
            raise InputError(f"{place(key_node.start_mark)}: {key} stands twice in the same mapping; keep one")
        document.keys[(*path, key)] = place(key_node.start_mark)
        data[key] = _construct(loader, value_node, (*path, key), document, place)
    return data


def _refuse_half_characters(node: yaml.Node, place: Any) -> None:
    """Refuses one half of a surrogate pair, which an escape can spell and no file or terminal can show."""
    if any("\ud800" <= character <= "\udfff" for character in node.value):
        raise InputError(
            f"{place(node.start_mark)}: an escape between \\ud800 and \\udfff is no character; write the whole one"
        )


def _kind(data: object) -> str:
    return "a list" if isinstance(data, list) else f"the value {str(data)[:40]!r}"
