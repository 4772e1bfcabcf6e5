"""Does the table know what the model mixes up? The most confused pairs beside the most similar ones."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from labelemb.errors import InputError
from labelemb.report.learned_labels import LabelTables
from labelemb.report.page.labels import LARGEST_MATRIX
from labelemb.report.page.similarity import rank_correlation, similarities
from labelemb.report.summary import Results, Run

NUM_PAIRS = 10
MOST_LABELS = 1000  # whose rows are read, of a large table


class Pair(NamedTuple):
    """Two labels, how often one was taken for the other, and how alike their soft labels are."""

    first: str
    second: str
    confused: int
    similar: str


class Confusions(NamedTuple):
    """Both lists, and how far they agree."""

    confused: list[Pair]
    similar: list[Pair]
    agreement: list[tuple[str, str]]
    """For each mode with confusions: its name, and the rank correlation of its confusions with the table."""
    mode: str
    is_whole: bool
    """Else only among pairs that were confused at all."""


def confusions(results: Results, tables: LabelTables) -> Confusions | None:
    """None where no run says which labels it took for which."""
    counts = {name: found for name, runs in results.groups.items() if (found := _counted(runs, tables.num_labels))}
    if not counts:
        return None
    mode = tables.name if tables.name in counts else next(iter(counts))
    is_whole = tables.num_labels <= LARGEST_MATRIX
    labels = list(range(tables.num_labels)) if is_whole else _involved(counts[mode])
    alike = similarities(tables.rows(labels)[:, labels])
    rows, columns = np.triu_indices(len(labels), 1)
    keys = [(min(labels[i], labels[j]), max(labels[i], labels[j])) for i, j in zip(rows, columns, strict=True)]
    values = dict(zip(keys, alike[rows, columns].tolist(), strict=True))
    confused = [pair for pair, _ in counts[mode].most_common() if pair in values][:NUM_PAIRS]
    similar = sorted(values, key=lambda pair: -values[pair])[:NUM_PAIRS]
    return Confusions(
        [_pair(tables.names, pair, counts[mode], values) for pair in confused],
        [_pair(tables.names, pair, counts[mode], values) for pair in similar],
        [(name, _agreement(each, values, is_whole)) for name, each in counts.items()],
        mode,
        is_whole,
    )


def _pair(names: Sequence[str], pair: tuple[int, int], counts: Counter[tuple[int, int]], values: Any) -> Pair:
    return Pair(names[pair[0]], names[pair[1]], counts[pair], f"{values[pair]:.3f}")


def _agreement(counts: Counter[tuple[int, int]], values: dict[tuple[int, int], float], is_whole: bool) -> str:
    pairs = list(values) if is_whole else [pair for pair in counts if pair in values]
    found = rank_correlation([float(counts[pair]) for pair in pairs], [values[pair] for pair in pairs])
    return "not defined" if found is None else f"{found:.2f}"


def _involved(counts: Counter[tuple[int, int]]) -> list[int]:
    labels: dict[int, None] = {}
    for pair, _ in counts.most_common():
        labels |= dict.fromkeys(pair)
    return sorted(list(labels)[:MOST_LABELS])


def _counted(runs: Sequence[Run], num_labels: int) -> Counter[tuple[int, int]]:
    """How often the two labels of a pair were taken for each other, over all runs."""
    counts: Counter[tuple[int, int]] = Counter()
    for run in runs:
        for entry in run.evaluation.get("confusion") or []:
            true, predicted, count = _checked(run, entry, num_labels)
            if true != predicted:
                counts[min(true, predicted), max(true, predicted)] += count
    return counts


def _checked(run: Run, entry: Any, num_labels: int) -> tuple[int, int, int]:
    if isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, int) for part in entry):
        true, predicted, count = entry
        if 0 <= true < num_labels and 0 <= predicted < num_labels:
            return true, predicted, count
    path = run.folder.path / "evaluation.json"
    raise InputError(f"{path} is damaged: expected [true, predicted, count] of {num_labels} labels, got {entry!r}")
