"""Pairs of raw lines, as the files hold them: parallel text, or LCSTS."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from labelemb.errors import InputError
from labelemb.files import read_lines
from labelemb.text.corpus import lcsts


class Pair(NamedTuple):
    """One pair of raw lines, and the line number where it stands in its file."""

    source: str
    target: str
    line: int
    wanted: bool = True  # False: its distribution scores it too low


Stream = Callable[[], Iterator[Pair]]


def parallel_lines(source_path: Path, target_path: Path) -> Iterator[Pair]:
    """The pairs of two files that are line by line translations of each other.

    Raises:
        InputError: they have different numbers of lines.
    """
    lines = [read_lines(source_path), read_lines(target_path)]
    for number, sides in enumerate(zip_longest(*lines), 1):
        source, target = sides
        if source is None or target is None:
            counts = [number - (line is None) + sum(1 for _ in rest) for line, rest in zip(sides, lines, strict=True)]
            raise InputError(
                f"{source_path} has {counts[0]:,} lines, {target_path} has {counts[1]:,}: "
                "expected as many, line by line translations of each other"
            )
        yield Pair(source, target, number)


def headlines(path: Path, split: str) -> Iterator[Pair]:
    """The pairs of one file of the LCSTS distribution: text and headline."""
    for headline in lcsts.read_headlines(path):
        yield Pair(headline.text, headline.summary, headline.line, lcsts.is_wanted(headline, split))


def has_empty_side(pair: Pair) -> bool:
    """Whether one side holds nothing but white space."""
    return not pair.source.strip() or not pair.target.strip()
