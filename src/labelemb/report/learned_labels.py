"""What the runs' tables learned: soft rows, the labels nearest to a label, and which labels are worth showing.

Rows are read from label_embedding.safetensors without torch, only those asked for.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelemb.errors import InputError
from labelemb.report.summary import Results, Run
from labelemb.report.table_rows import read_labels, row_cost, row_logits

Array = NDArray[np.float64]

NUM_NEAREST = 5
NUM_KEPT = 10
NUM_WORDS = 10
NUM_FREQUENT = 100  # the most frequent words, which are articles and punctuation
NUM_SEARCHED = 2000  # labels among which strong pairs are looked for; vocabularies are in order of frequency
MAX_COST = 2 * 10**10  # products, some seconds on one core
_BLOCK_NUMEL = 2**23
_STRETCH = 64  # values of a long row, of which the largest alone is looked at first


class LabelTables:
    """softmax(E) of several runs of one name, whose rows are aligned by label, and its mean over the runs.

    Args:
        name: the runs' mode, or variant of a mode.
        runs: at least one, each with a table.
        num_runs: how many there are, where these are not all.

    Raises:
        InputError: a file is damaged, or two tables have different labels.
    """

    def __init__(self, name: str, runs: Sequence[Run], num_runs: int | None = None) -> None:
        self.name = name
        self.num_runs = len(runs) if num_runs is None else num_runs
        self.runs = list(runs)
        labels = [read_labels(run.folder.table) for run in runs]
        for run, other in zip(runs, labels, strict=True):
            if other != labels[0]:
                raise InputError(f"{runs[0].folder.table} and {run.folder.table} have different labels")
        self.names, self.num_labels = labels[0], len(labels[0])
        self._index = {name: index for index, name in reversed(list(enumerate(self.names)))}

    def find(self, label: str) -> int | None:
        """The index of a label given by name, or else by number."""
        if label in self._index:
            return self._index[label]
        is_number = label.isdecimal() and len(label) < 20  # of thousands of digits Python makes none
        return int(label) if is_number and int(label) < self.num_labels else None

    def run_rows(self, labels: Sequence[int]) -> Iterator[Array]:
        """For each run, softmax(e_y) of `labels` (K,): (K, C), rows sum to 1."""
        for run in self.runs:
            logits = row_logits(run.folder.table, labels).astype(np.float64)  # (K, C)
            with np.errstate(invalid="ignore"):  # what is no number is refused below, by its label
                logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            soft = logits / logits.sum(axis=1, keepdims=True)
            if np.isnan(soft).any():
                name = self.names[labels[int(np.isnan(soft).any(axis=1).argmax())]]
                raise InputError(f"{run.folder.table}: the row of label {name!r} has no soft labels: it holds NaN")
            yield soft

    def rows(self, labels: Sequence[int]) -> Array:
        """The mean over runs of softmax(e_y): (K, C)."""
        total = np.zeros((len(labels), self.num_labels))
        for rows in self.run_rows(labels):
            total += rows
        return total / len(self.runs)

    def nearest(self, labels: Sequence[int], k: int = NUM_NEAREST) -> list[list[tuple[str, float]]]:
        """For each label the `k` other labels with the largest mean soft label values, descending, ties by index."""
        indices, shares = self.nearest_indices(labels, k)
        return [
            [(self.names[index], share) for index, share in zip(*pair, strict=True)]
            for pair in zip(indices.tolist(), shares.tolist(), strict=True)
        ]

    def nearest_indices(self, labels: Sequence[int], k: int) -> tuple[NDArray[np.int64], Array]:
        """The same as positions and values, each (K, k), with fewer columns where there are no k others."""
        k = min(k, self.num_labels - 1)
        indices, shares = np.empty((len(labels), k), np.int64), np.empty((len(labels), k))
        done = 0
        for block in _blocks(labels, self.num_labels):
            for label, row in zip(block, self.rows(block), strict=True):
                row[label] = -1.0
                indices[done] = largest(row, k)
                shares[done] = row[indices[done]]
                done += 1
        return indices, shares

    def affordable(self) -> list[int]:
        """The labels whose rows a report can compute in some seconds: all, or the first of a large table."""
        cost = self.num_labels * len(self.runs) * row_cost(self.runs[0].folder.table)
        count = max(1, MAX_COST // cost)
        return list(range(min(self.num_labels, count)))

    def strongest(self, count: int) -> list[int]:
        """The `count` labels of the largest off-diagonal values, pairs side by side.

        Looked for among the first 2,000 labels, fewer of a large table: later ones are the rare words of a vocabulary.
        """
        keep = count * count  # more than the pairs among `count` labels, so that a new label is always found
        best = np.argsort(-self._searched_values, axis=None, kind="stable")[:keep]
        chosen: dict[int, None] = {}
        for row, column in zip(*np.unravel_index(best, self._searched_values.shape), strict=True):
            chosen.setdefault(self._searched[row])
            chosen.setdefault(self._searched[column])
        return list(chosen)[:count]

    @cached_property
    def first_nearest(self) -> tuple[NDArray[np.int64], Array]:
        """The ten nearest labels of every affordable one, as positions and values; from the pass that is kept."""
        return self._pass[:2]

    @cached_property
    def _searched(self) -> list[int]:
        return [label for label in self.affordable()[:NUM_SEARCHED] if not is_special(self.names[label])]

    @property
    def _searched_values(self) -> Array:
        """The mean rows among the labels searched, -1 on the diagonal."""
        return self._pass[2]

    @cached_property
    def _pass(self) -> tuple[NDArray[np.int64], Array, Array]:
        """One pass over the rows of all affordable labels, which takes seconds of a large table."""
        labels, searched, k = self.affordable(), self._searched, min(NUM_KEPT, self.num_labels - 1)
        indices, shares = np.empty((len(labels), k), np.int64), np.empty((len(labels), k))
        values = np.empty((len(labels), len(searched)))
        for block in _blocks(labels, self.num_labels):
            for label, row in zip(block, self.rows(block), strict=True):
                row[label] = -1.0
                indices[label] = largest(row, k)
                shares[label] = row[indices[label]]
                values[label] = row[searched]
        return indices, shares, values[searched]


def largest(row: Array, k: int) -> NDArray[np.int64]:
    """Positions of the `k` largest values of a row, descending, ties by position."""
    if k == 0:
        return np.empty(0, np.int64)
    whole = len(row) // _STRETCH * _STRETCH
    tops = row[:whole].reshape(-1, _STRETCH).max(axis=1) if whole >= k * _STRETCH else row
    least = np.partition(tops, len(tops) - k)[len(tops) - k]  # at least k values are no smaller
    found = np.flatnonzero(row >= least)
    best: NDArray[np.int64] = found[np.argsort(-row[found], kind="stable")][:k]
    return best


def learned_tables(results: Results) -> LabelTables | None:
    """The tables of the first mode that learned them; None where no finished run has one."""
    for name in results.names_by_table:
        runs = [run for run in results.groups[name] if run.folder.table.is_file()]
        if runs:
            return LabelTables(name, runs[: _num_read(runs[0].folder.table)], num_runs=len(runs))
    return None


def chosen_labels(tables: LabelTables, labels: Sequence[str]) -> list[int]:
    """Indices of labels that somebody asked for, each once.

    Raises:
        InputError: the table has no such label; the nearest name is given. Or several labels have that name.
    """
    indices = []
    for label in labels:
        index = tables.find(label)
        if index is None:
            close = get_close_matches(label, tables.names[:NUM_SEARCHED], 1)
            raise InputError(f"the table has no label {label!r}" + (f", nearest is {close[0]!r}" if close else ""))
        same = [other for other, name in enumerate(tables.names) if name == label]
        if len(same) > 1:
            raise InputError(f"labels {same[0]} and {same[-1]} are both named {label!r}: ask by number")
        indices.append(index)
    return list(dict.fromkeys(indices))


def frequent_words(tables: LabelTables, words: Sequence[str] | None) -> list[int]:
    """The recipe's words, or the ten most frequent of three characters or more outside the hundred most frequent.

    A vocabulary is in order of frequency. Words that it lacks are left out; where no word is that long (characters),
    any length will do.
    """
    found = [index for word in words or () if (index := tables.find(word)) is not None]
    if found:
        return list(dict.fromkeys(found))
    words_alone = [index for index, name in enumerate(tables.names) if not is_special(name)]
    rare = [index for index in words_alone[NUM_FREQUENT:] if any(map(str.isalpha, tables.names[index]))] or words_alone
    return ([index for index in rare if len(tables.names[index]) >= 3] or rare)[:NUM_WORDS]


def is_special(name: str) -> bool:
    """Whether a name is a vocabulary's own mark, like <unk> or &apos;."""
    return (name[:1], name[-1:]) in {("<", ">"), ("&", ";")} or not name.strip()


def _num_read(table: Path) -> int:
    """How many runs a mean is taken over: all, but of large tables the first ones, as reading takes its time."""
    num_labels = len(read_labels(table))
    searched = min(NUM_SEARCHED, num_labels)
    return max(1, MAX_COST // max(1, searched * num_labels * row_cost(table)))


def _blocks(labels: Sequence[int], num_labels: int) -> Iterator[list[int]]:
    size = max(1, _BLOCK_NUMEL // num_labels)
    for start in range(0, len(labels), size):
        yield list(labels[start : start + size])
