"""Mutates bytes and trees: seeded, so that input i of a seed is the same for ever."""

import copy
import json
import random
from typing import Any

HOSTILE_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**53 + 1,
        10**30,
        -(10**30),
        0.0,
        -0.0,
        1e-320,
        1e308,
        -1e308,
        float("inf"),
        float("nan"),
    ),
    *(
        "",
        "x",
        "..",
        ".",
        "/",
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "a\0b",
        "a\nb",
        "\ud800",
        "\U0001f9ea" * 50,
        "A" * 5000,
    ),
    *(
        "embedded",
        "gpt2",
        "nan",
        "1e400",
        "9" * 400,
        "__import__('prolu_canary')",
        "!!python/name:os.system",
        "${HOME}",
        "%s%n",
    ),
    *([], {}, [[]], [None], [1] * 200, {"": None}, {"kind": "coverage"}, {"__class__": "os"}, [{}] * 3, {"low": 1, "high": 2}),
)
TOKENS = (
    *(
        b"!!python/object/apply:prolu_canary.run []",
        b"!!python/module:prolu_canary",
        b"!!binary aGk=",
        b"&a ",
        b"*a",
        b"<<: *a",
    ),
    *(
        b"[" * 30,
        b"{a: " * 25,
        b"? ",
        b"- " * 30,
        b"\t",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"---\n",
        b"...\n",
        b"%YAML 9.9\n",
    ),
    *(
        b"1e9999",
        b"-.inf",
        b".nan",
        b"0x7fffffffffffffff",
        b"9" * 5000,
        b"1_000",
        b"''",
        b'"\\ud800"',
        b'"\\U0010ffff"',
        b"|+9\n",
        b">-\n",
    ),
    *(
        b"null",
        b"true",
        b"~",
        b"..",
        b"../../../../tmp/prolu_canary",
        b"/dev/zero",
        b"cos\nsystem\n(S'id'\ntR.",
        b"\x80\x04\x95",
    ),
    *(
        b"kind: coverage",
        b"l0: [1, 2]",
        b"count: 10000",
        b"factor: 1e300",
        b"grid: {training.lr: [1, 2]}",
        b"name: ..",
        b"seeds: [",
        b": ",
    ),
)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Returns the bytes with one to six changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(out) + 1)
        length = min(len(out) - at, rng.choice((1, 1, 2, 4, 8, 16, 64, 1000)))
        change = rng.randrange(9)
        if change == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif change == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif change == 2:
            del out[at : at + length]
        elif change == 3:
            out[at:at] = out[at : at + length] * rng.choice((1, 2, 30))
        elif change == 4:
            out[at:at] = rng.choice(TOKENS)
        elif change == 5:
            out[at : at + length] = rng.choice(TOKENS)
        elif change == 6:
            del out[at:]
        elif change == 7 and at + 8 <= len(out):
            out[at : at + 8] = rng.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, rng.getrandbits(64))).to_bytes(8, "little")
        elif change == 8:
            other = rng.randrange(len(out) + 1)
            out[at : at + length] = data[other : other + length]
        if len(out) > 2_000_000:
            break
    return bytes(out)


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """Returns a copy of JSON data with one to four values or keys changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _collect(tree, places)
        if not places:
            return rng.choice(HOSTILE_VALUES)
        owner, key = rng.choice(places)
        change = rng.randrange(6)
        value = copy.deepcopy(rng.choice(HOSTILE_VALUES))
        if change == 0:
            del owner[key]
        elif change == 1 and isinstance(owner, dict):
            owner[str(value)[:50]] = owner.pop(key)
        elif change == 2 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
            owner[key] = owner[key] * rng.choice((-1, 0, 2, 1e-9, 1e9, 10**25))
        elif change == 3:
            owner[key] = [owner[key]] * rng.choice((1, 2, 40))
        elif change == 4:
            owner[key] = _nested(rng.choice((5, 30, 200)))
        else:
            owner[key] = value
    return tree


def as_json(tree: Any, **options: Any) -> bytes:
    """Returns a tree as JSON bytes, lone surrogates and NaN included."""
    return json.dumps(tree, **options).encode()


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _collect(node: Any, places: list[tuple[Any, Any]]) -> None:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        places.append((node, key))
        _collect(child, places)


def forged(rng: random.Random) -> bool:
    """Whether the checksum is made to fit, so that what lies behind it is reached."""
    return rng.random() < 0.6
