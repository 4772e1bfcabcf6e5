"""What can be wrong with text, numbers, nested values and bytes. All is drawn from one random.Random."""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from tests.fuzz.watch import CANARY

NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 3, 0.5, -0.5, 1e-300, 5e-324, 1e308, -1e308, 2**31, 2**53 + 1, 2**63, 2**64)
NUMBERS += (-(2**63), 10**30, 10**400, float("nan"), float("inf"), float("-inf"), 0.1 + 0.2, 1e5, True, False)
TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\t",
    "\0",
    "a\0b",
    "\n",
    "a\nb",
    "\r",
    "\u2028",
    "\ufeff",
    "\ud800",
    "é",
    "e\u0301",
    "İ",
    "ß",
    "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL X}",
    "١٢",
)
TEXTS += ("..", "../..", "../outside", "/", "/dev/null", "~", ".", "-", "--", "=", ":", ",", ";", "a=b", "[", "{", "*a")
TEXTS += (
    "nan",
    "null",
    "true",
    "1e999",
    "1_000",
    "0x10",
    "2026-02-30",
    "2026-11-22",
    "1:30",
    "'",
    '"',
    "\\",
    "%s %d {}",
)
TEXTS += (
    "a" * 300,
    "0x" + "f" * 5000,
    "1" * 5000,
    "-" * 200,
    "\x1b[31m",
    "<script>",
    "emb",
    "baseline",
    "label",
    "train",
    "digits",
    "cpu",
)
TEXTS += (
    f"{CANARY}:make",
    f"timm:{CANARY}",
    "transformers:nowhere",
    "__class__",
    "cuda:99",
    "lone.name",
    "tensor:",
    "int:x",
)
YAML = (
    f'!!python/object/apply:os.system ["touch {CANARY}"]',
    f"!!python/module:{CANARY} ''",
    f"!!python/name:{CANARY}.make ''",
    "!!binary aGFsbG8=",
    "!!timestamp 2026-99-99",
    "!!int abc",
    "!!float []",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!unknown x",
    "&a [*a]",
    "{<<: *a}",
    "? [1, 2] : 3",
    "{[1]: 2}",
    "- - - -",
    "--- a\n--- b",
    "%YAML 9.9\n---\na: 1",
    "a: 1\na: 2",
    "\t a: 1",
)


def number(draw: Random) -> Any:
    """A number that few expect."""
    return draw.choice(NUMBERS) if draw.random() < 0.8 else draw.uniform(-1e3, 1e3)


def text(draw: Random) -> str:
    """A text that few expect."""
    chosen = draw.choice(TEXTS)
    return chosen if draw.random() < 0.9 else chosen + draw.choice(TEXTS)


def value(draw: Random, depth: int = 3) -> Any:
    """Any value that JSON or YAML may hold."""
    kinds: list[Callable[[], Any]] = [lambda: None, lambda: number(draw), lambda: text(draw)]
    if depth:
        few = draw.randrange(4)
        kinds.append(lambda: [value(draw, depth - 1) for _ in range(few)])
        kinds.append(lambda: {text(draw): value(draw, depth - 1) for _ in range(few)})
    return draw.choice(kinds)()


def deep(draw: Random) -> str:
    """Brackets within brackets, more than any parser calls itself."""
    opening, closing = draw.choice([("[", "]"), ('{"a":', "}")])
    count = draw.choice([50, 2_000, 100_000])
    return opening * count + "1" + closing * draw.choice([0, count])


def alias_bomb(draw: Random) -> str:
    """YAML of a few hundred characters that stands for 9 ** 5 words, or for many more."""
    rows = ['a0: &a0 ["lol"]']
    for level in range(1, draw.choice([5, 30])):
        rows.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(rows)


def pickled() -> bytes:
    """What makes the canary where somebody unpickles it."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (CANARY, "w")

    return pickle.dumps(Payload())


def impostor(draw: Random) -> bytes:
    """A whole file, of another kind than its name says."""
    kinds: list[Callable[[], bytes]] = [
        bytes,
        pickled,
        lambda: gzip.compress(pickled(), mtime=0),
        lambda: gzip.compress(bytes(2**22), mtime=0),
        _zip_bomb,
        _array_of_objects,
        lambda: deep(draw).encode(),
        lambda: alias_bomb(draw).encode(),
        lambda: draw.choice(YAML).encode(),
        lambda: draw.randbytes(draw.randrange(200)),
        lambda: (2 ** draw.choice([8, 20, 40, 63])).to_bytes(8, "little") + b'{"a":',  # a safetensors' header
        lambda: b"\x89PNG\r\n\x1a\n" + draw.randbytes(40),
        lambda: json.dumps(encodable(value(draw))).encode(),
        lambda: encoded(draw, text(draw)),
    ]
    return draw.choice(kinds)()


def _zip_bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data.pkl", pickled())
        file.writestr("zeros.npy", bytes(2**22))
    return content.getvalue()


def _array_of_objects() -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return content.getvalue()


def encoded(draw: Random, given: str) -> bytes:
    """A text as bytes: most often UTF-8."""
    encoding = draw.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-7", "cp037"])
    return given.encode(encoding, "replace" if encoding in ("latin-1", "cp037") else "surrogatepass")


def damaged_bytes(draw: Random, content: bytes) -> bytes:
    """Cut short, flipped, with bytes more or less, twice, in other places."""
    if not content:
        return draw.randbytes(5)
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    some = draw.randbytes(draw.choice([1, 4, 30]))
    return draw.choice(
        [
            content[:start],
            content[start:],
            content[:start] + content[end:],
            content[:start] + some + content[start:],
            content[:start] + some + content[start + len(some) :],
            content[:start] + bytes(min(end - start, 100)) + content[end:],
            content[:end] + content[start:],
            content[start:] + content[:start],
            _flipped(draw, content),
        ]
    )


def _flipped(draw: Random, content: bytes) -> bytes:
    flipped = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 8])):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def damaged_text(draw: Random, given: str) -> str:
    """Lines and words left out, doubled, in each other's place, or replaced by odd ones."""
    separator = draw.choice(["\n", " ", ",", ":", '"'])
    parts = given.split(separator)
    place, other = draw.randrange(len(parts)), draw.randrange(len(parts))
    odd = draw.choice([text(draw), str(number(draw)), draw.choice(YAML)])
    changes: list[Callable[[], object]] = [
        lambda: parts.pop(place),
        lambda: parts.insert(place, parts[other]),
        lambda: parts.__setitem__(place, parts[other]),
        lambda: parts.__setitem__(place, odd),
        lambda: parts.insert(place, odd),
        lambda: parts.__setitem__(place, parts[place][: len(parts[place]) // 2]),
        lambda: parts.__setitem__(place, f"  {parts[place]}"),
    ]
    draw.choice(changes)()
    return separator.join(parts)


def damaged_value(draw: Random, given: Any) -> Any:
    """A nested value with one of its parts, at any depth, gone, renamed, doubled or replaced by something else."""
    if isinstance(given, dict) and given and draw.random() < 0.9:
        return damaged_mapping(draw, given)
    if isinstance(given, list) and given and draw.random() < 0.8:
        place = draw.randrange(len(given))
        inner = draw.choice([[], [given[place]] * 2, [damaged_value(draw, given[place])]])
        return [*given[:place], *inner, *given[place + 1 :]]
    return draw.choice([value(draw), value(draw), str(given), [given], {"a": given}])


def damaged_mapping(draw: Random, given: dict[Any, Any]) -> dict[Any, Any]:
    """A mapping with an entry gone, renamed, added or damaged."""
    key = draw.choice(list(given))
    action = draw.random()
    if action < 0.12:
        return {name: each for name, each in given.items() if name != key}
    if action < 0.2:
        return {(text(draw) if name == key else name): each for name, each in given.items()}
    if action < 0.28:
        return given | {text(draw): value(draw)}
    return given | {key: damaged_value(draw, given[key])}


def encodable(given: Any) -> Any:
    """The same without what JSON's writer or a file cannot hold."""
    if isinstance(given, dict):
        return {str(key): encodable(each) for key, each in given.items()}
    if isinstance(given, list | tuple):
        return [encodable(each) for each in given]
    return given if given is None or isinstance(given, str | int | float) else str(given)
