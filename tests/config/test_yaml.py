"""The YAML loader: what it reads, where it says that something stands, and what it refuses."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prolu_tune.config.yaml import MAX_BYTES, MAX_DEPTH, Document, load_document, parse
from prolu_tune.errors import InputError


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, source="x.yaml")
    return str(caught.value)


def test_numbers_and_words_follow_yaml_1_2() -> None:
    text = (
        "{a: 1e-3, b: 1., c: .5, d: 010, e: no, f: on, g: 2024-1-1, h: 1:30, i: true, j: ~, k: -7, l: '1e-3', m: 1_0, n: .inf}"
    )
    data, _ = parse(text, source="x.yaml")
    wanted = {"a": 0.001, "b": 1.0, "c": 0.5, "d": 10, "e": "no", "f": "on", "g": "2024-1-1", "h": "1:30", "i": True}
    assert data == wanted | {"j": None, "k": -7, "l": "1e-3", "m": "1_0", "n": float("inf")}
    assert [type(data[key]) for key in "abdk"] == [float, float, int, int]


def test_every_key_and_value_has_its_line_and_column() -> None:
    data, document = parse("a: 1\nb:\n  c: [x,\n      y]\n", source="x.yaml")
    assert data == {"a": 1, "b": {"c": ["x", "y"]}}
    assert document.keys[("b", "c")] == "x.yaml:3:3"
    assert document.values[("b", "c")] == "x.yaml:3:6"
    assert document.values[("b", "c", 1)] == "x.yaml:4:7"
    assert document.whereabouts(("b", "tag-of-a-union", "c", 1, "more")) == ("x.yaml:4:7", ("b", "c", 1))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3:1", "a stands twice"),
        ("a: {b: 1, b: 2}", "x.yaml:1:11", "b stands twice"),
        ("a: &x 1\nb: *x", "x.yaml:1:4", "aliases and anchors"),
        ("a: &a [*a]", "x.yaml:1:4", "aliases and anchors"),
        ("a: !!python/object:os.system {}", "x.yaml:1:4", "tags such as"),
        ("a: !!binary aGk=", "x.yaml:1:4", "tags such as"),
        ("[a, b]: 1", "x.yaml:1:1", "a key must be a word"),
        ("a: [1, 2", "x.yaml:1:9", "not YAML"),
        ("a: b: c", "x.yaml:1:5", "not YAML"),
        ("a: 1\n---\nb: 2", "x.yaml:2:1", "not YAML"),
        ("\ta: 1", "x.yaml:1:1", "not YAML"),
        ('a: "\\UFFFFFFFF"', "x.yaml", "not YAML"),
        ("a: " + "9" * 5000, "x.yaml", "not YAML"),
        ("a: \x01", "x.yaml", "not text"),
        ("a: " + "[" * (MAX_DEPTH + 1), "x.yaml:1:23", "nested deeper than 20"),
        ("[" * 900_000, "x.yaml:1:21", "nested deeper than 20"),
    ],
)
def test_what_a_configuration_never_needs_is_refused_with_its_place(text: str, place: str, words: str) -> None:
    message = refused(text)
    assert message.startswith(f"{place}: "), message
    assert words in message


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"# only a remark\n", "empty"),
        (b"--- \n...\n", "empty"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not text"),
        (b"- a\n- b\n", "holds a list"),
        (b"just words", "holds the value 'just words'"),
        (b"a: 1\n" * MAX_BYTES, "larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "x.yaml").write_bytes(raw)
    with pytest.raises(InputError, match=words) as caught:
        load_document(tmp_path / "x.yaml")
    assert str(caught.value).startswith(str(tmp_path / "x.yaml")) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_document(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_document(tmp_path)


def test_an_override_replaces_a_value_and_everything_known_of_it() -> None:
    data, document = parse("training: {lr: 1e-3}\nseeds: [0, 1]", source="x.yaml")
    document.data = data
    for setting in ("training.lr=3e-4", "seeds=[5]", "grid.training.batch_size=[1024, 2048]", "activations.model=/models/a b"):
        document.override(setting)
    assert document.data == {
        "training": {"lr": 3e-4},
        "seeds": [5],
        "grid": {"training.batch_size": [1024, 2048]},
        "activations": {"model": "/models/a b"},
    }
    assert document.values[("training", "lr")] == "--set training.lr=3e-4"
    assert document.values[("seeds", 0)] == "--set seeds=[5]" and ("seeds", 1) not in document.values
    assert document.values[("training",)] == "x.yaml:1:11"


@pytest.mark.parametrize("setting", ["lr", "=3", "a..b=3", "training.lr=", "a=[1", "a=*b", "a=!!str 3", "seeds.x=1"])
def test_an_override_that_is_none_is_refused_and_quoted(setting: str) -> None:
    document = Document("x.yaml", data={"seeds": [0]})
    with pytest.raises(InputError) as caught:
        document.override(setting)
    assert str(caught.value).startswith(f"--set {setting}: ")


WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        WORDS,
        st.recursive(
            LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
        ),
    )
)
def test_json_is_read_as_json_reads_it(data: dict[str, object]) -> None:
    read, document = parse(json.dumps(data, ensure_ascii=False), source="x.yaml")
    assert read == data
    assert set(document.values) == set(document.keys)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60) | st.text(alphabet=string.printable + "é*&!|>{}[]:,#-", max_size=60).map(str.encode))
def test_any_bytes_give_a_mapping_or_an_input_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(raw)
    try:
        document = load_document(path)
    except InputError as error:
        assert str(error).startswith(str(path))
    else:
        assert isinstance(document.data, dict)
