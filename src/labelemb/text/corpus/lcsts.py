"""The LCSTS distribution (Hu et al. 2015): Weibo posts and their headlines.

Either the original files, `PART_I.txt`, `PART_II.txt`, `PART_III.txt`, with blocks of the form

    <doc id=0>
        <human_label>4</human_label>
        <summary>
            ...
        </summary>
        <short_text>
            ...
        </short_text>
    </doc>

(no label in Part I; not XML: text is not escaped), or its form as JSON lines with `text` and `summary`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from labelemb.errors import InputError
from labelemb.files import read_lines

PARTS = {"train": "PART_I.txt", "valid": "PART_II.txt", "test": "PART_III.txt"}
JSON_LINES = {
    "train": ("train.jsonl",),
    "valid": ("valid.jsonl", "dev.jsonl"),
    "test": ("test.jsonl", "test_public.jsonl"),
}
SMALLEST_SCORE = 3  # of 5: how well the headline sums up the post, in the opinion of the people who labelled it

_FIELDS = {name: re.compile(f"<{name}>(.*?)</{name}>", re.DOTALL) for name in ("short_text", "summary", "human_label")}
_OPENING = re.compile(r"\s*<doc\b")


class Headline(NamedTuple):
    """A post, its headline, and the score of the pair: 1 to 5, None where it has none."""

    text: str
    summary: str
    score: int | None
    line: int  # where the pair begins in its file


def split_path(folder: Path, split: str) -> Path:
    """The file of `train`, `valid` or `test` in an LCSTS folder; the original file where both forms are there.

    Raises:
        InputError: the folder holds neither.
    """
    names = [name + ending for name in (PARTS[split], *JSON_LINES[split]) for ending in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder}: expected {PARTS[split]} or {JSON_LINES[split][0]} of LCSTS for {split}; neither is there"
    )


def read_headlines(path: Path) -> Iterator[Headline]:
    """The pairs of one file, in its order, read as a stream.

    Raises:
        InputError: a block or a JSON line is not of the form above (with its line number).
    """
    return _read_json_lines(path) if ".jsonl" in path.name else _read_blocks(path)


def is_wanted(headline: Headline, split: str) -> bool:
    """Part I is used whole; of the labelled Parts II and III only the pairs with a score of 3 or more."""
    return split == "train" or headline.score is None or headline.score >= SMALLEST_SCORE


def _read_blocks(path: Path) -> Iterator[Headline]:
    block: list[str] = []
    start = 0
    for number, line in enumerate(read_lines(path), 1):
        opens = _OPENING.match(line) is not None
        if opens and block:
            raise InputError(f"{path}, line {number}: a <doc> begins before that of line {start} has ended")
        if opens:
            start = number
        elif not block and line.strip():
            raise InputError(f"{path}, line {number}: expected <doc id=...>, found {line.strip()[:40]!r}")
        if opens or block:
            block.append(line)
        if block and line.rstrip().endswith("</doc>"):
            yield _parse_block("\n".join(block), path, start)
            block = []
    if block:
        raise InputError(f"{path}, line {start}: the file ends before this <doc> does")


def _parse_block(block: str, path: Path, line: int) -> Headline:
    fields = {name: pattern.search(block) for name, pattern in _FIELDS.items()}
    text, summary, label = fields["short_text"], fields["summary"], fields["human_label"]
    if text is None or summary is None:
        missing = "short_text" if text is None else "summary"
        raise InputError(f"{path}, line {line}: this <doc> has no <{missing}>...</{missing}>")
    score = label[1].strip() if label else ""
    if label and not score.isdecimal():
        raise InputError(f"{path}, line {line}: <human_label> is {score!r}, expected a number from 1 to 5")
    return Headline(_one_line(text[1]), _one_line(summary[1]), int(score) if score else None, line)


def _read_json_lines(path: Path) -> Iterator[Headline]:
    for number, line in enumerate(read_lines(path), 1):
        try:
            entry = json.loads(line)
            text, summary = entry["text"], entry["summary"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number}: expected a JSON object with text and summary, found {line[:40]!r}"
            ) from None
        if not isinstance(text, str) or not isinstance(summary, str):
            raise InputError(f"{path}, line {number}: text and summary must be strings")
        yield Headline(_one_line(text), _one_line(summary), None, number)


def _one_line(text: str) -> str:
    return " ".join(text.split())
