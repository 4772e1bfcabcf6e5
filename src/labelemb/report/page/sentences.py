"""Test sentences: source, reference, and each mode's output with its differences to another's marked."""

import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from labelemb.errors import InputError
from labelemb.report.summary import Results, Run

MAX_SENTENCES = 8
MAX_MODES = 4
MAX_OUTPUTS = 200  # of predictions.txt, among which the most unlike are looked for

Marked = list[tuple[str, bool]]
"""Pieces of a text, and whether the other output lacks them."""


class Output(NamedTuple):
    """One mode's."""

    name: str
    pieces: Marked


class Sentence(NamedTuple):
    """One test item; source and reference are empty where the run folders do not have them."""

    source: str
    reference: str
    outputs: list[Output]
    blank: str
    """What stands between pieces."""


def sentences(results: Results) -> list[Sentence]:
    """Those of the kept ones on which the modes differ most, the first run of each mode; empty for no text."""
    kept = {}
    for name in results.names_by_table[:MAX_MODES]:
        rows = next((rows for run in results.groups[name] if (rows := _kept(run))), None)
        if rows:
            kept[name] = rows
    names = [name for name in results.groups if name in kept]
    if not names:
        return []
    count = min(len(kept[name]) for name in names)
    told = [_sentence({name: kept[name][index] for name in names}) for index in range(count)]
    return sorted(told, key=_likeness)[:MAX_SENTENCES]


def _likeness(sentence: Sentence) -> float:
    """1 where all outputs are the same."""
    pieces = [piece for output in sentence.outputs for piece in output.pieces]
    total = sum(len(text.split()) for text, _ in pieces)
    return 1 - sum(len(text.split()) for text, marked in pieces if marked) / max(1, total)


def _sentence(rows: dict[str, dict[str, str]]) -> Sentence:
    """The first output beside the second, all others beside the first."""
    names, first = list(rows), next(iter(rows.values()))
    outputs = []
    for name in names:
        other = names[1] if name == names[0] and len(names) > 1 else names[0]
        outputs.append(Output(name, marked(rows[name]["output"], rows[other]["output"])))
    blank = " " if any(" " in row["output"] for row in rows.values()) else ""
    return Sentence(first["source"], first["reference"], outputs, blank)


def marked(text: str, other: str) -> Marked:
    """`text` in pieces; marked are the words, of a text without blanks the letters, that `other` has otherwise."""
    join = " " if " " in text + other else ""
    words, others = (text.split(), other.split()) if join else (list(text), list(other))
    pieces: Marked = []
    for tag, start, end, _, _ in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if end > start:
            pieces.append((join.join(words[start:end]), tag != "equal"))
    return pieces


def _kept(run: Run) -> list[dict[str, str]]:
    """examples.jsonl, else the first lines of predictions.txt, which have no source and no reference."""
    path = run.folder.examples / "examples.jsonl"
    if path.is_file():
        return _examples(path)
    predictions = run.folder.path / "predictions.txt"
    if not predictions.is_file():
        return []
    lines = predictions.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    outputs = [line for line in lines[:1] if not line.startswith("# ")] + lines[1 : 1 + MAX_OUTPUTS]
    return [{"source": "", "reference": "", "output": line} for line in outputs]


def _examples(path: Path) -> list[dict[str, str]]:
    try:
        rows: Sequence[dict[str, object]] = [
            json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()
        ]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is damaged: objects were expected")
    return [{part: str(row.get(part, "")) for part in ("source", "reference", "output")} for row in rows]
