"""Numeric columns as a classification task takes them: see labelemb.classify.data.ClassifyData."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelemb.classify.columns import (
    Columns,
    column_named,
    is_numeric,
    label_column,
    numbers,
    read_columns,
    read_parts,
    words,
)
from labelemb.classify.data import Answers, Items
from labelemb.classify.division import Part, divide, labels_of
from labelemb.errors import InputError
from labelemb.settings.config import TableSettings


@dataclass(frozen=True)
class TableSplit:
    """Rows (N, F) float32, standardized, and labels (N,) int64."""

    rows: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, part: slice) -> Tensor:
        """The rows of a slice, (B, F)."""
        return self.rows[part]

    def to(self, device: torch.device) -> "TableSplit":
        return TableSplit(self.rows.to(device), self.labels.to(device))


@dataclass(frozen=True)
class TableInputs:
    """A data set of numbers, and the mean and deviation of the training rows, by which all are standardized."""

    train: TableSplit
    validation: TableSplit | None
    test: TableSplit
    label_names: list[str]
    columns: list[str]
    label_column: str
    mean: Tensor
    std: Tensor
    notes: list[str]

    varying_shapes = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(F,)."""
        return (len(self.columns),)

    @property
    def record(self) -> dict[str, Any]:
        """What predictions of other rows need, and an exported network."""
        moments = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        columns = {"columns": self.columns, "label_column": self.label_column}
        return {"kind": "rows", "label_names": self.label_names, "shape": list(self.shape), **columns, **moments}

    def inputs(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training rows and their labels."""
        return self.train.rows[indices], self.train.labels[indices]

    def to(self, device: torch.device, *, channels_last: bool) -> "TableInputs":
        """The same rows on a device."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))

    def examples(self, folder: Path, answers: Answers) -> None:
        """Nothing: numbers are not looked at."""


def load_tables(settings: TableSettings) -> TableInputs:
    """The data set that a run's settings name.

    Raises:
        InputError: it is not there, or has values that cannot be learned from: one line.
    """
    data = settings.data
    if data.path is None:
        raise InputError("tables: --data is missing: expected a file of columns, e.g. --data wine.csv")
    read = read_parts(data.path)
    label = label_column(read["train"], data.label)
    names = feature_columns(read["train"], label, data.columns)
    parts = {part: Part(rows_of(columns, names), words(columns, label)) for part, columns in _with(read, label)}
    division = divide(parts, data, settings.seed, read["train"].class_names.get(label))
    mean, std = moments(division.train.items)
    splits = [
        None if split is None else TableSplit(standardized(split.items, mean, std), split.labels)
        for split in (division.train, division.validation, division.test)
    ]
    train, validation, test = splits
    assert train is not None
    assert test is not None
    return TableInputs(train, validation, test, division.label_names, names, label, mean, std, division.notes)


def read_rows(record: Mapping[str, Any], path: Path) -> Items:
    """Other rows, standardized as those of the run whose record this is; `-` is standard input.

    Raises:
        InputError: the file cannot be read, or lacks one of the run's columns.
    """
    columns = read_columns(path)
    mean, std = (torch.tensor(record[name], dtype=torch.float64) for name in ("mean", "std"))
    labels = labels_of(columns, record)
    rows = standardized(rows_of(columns, record["columns"]), mean, std)
    split = TableSplit(rows, torch.zeros(len(rows), dtype=torch.int64) if labels is None else labels)
    return Items(split, record["label_names"], tuple(record["shape"]), "rows", labels is not None)


def _with(read: Mapping[str, Columns], label: str) -> list[tuple[str, Columns]]:
    """The parts, each with a column of labels."""
    for columns in read.values():
        column_named(columns, label, "data.label")
    return list(read.items())


def feature_columns(columns: Columns, label: str, wanted: Sequence[str] | None) -> list[str]:
    """The columns that are learned from: those that are wanted, else all but the label.

    Raises:
        InputError: one is not there, or holds words.
    """
    if wanted is not None:
        names = [column_named(columns, name, "data.columns") for name in wanted]
    else:
        names = [str(name) for name in columns.frame.columns if str(name) != label]
    strange = [name for name in names if not is_numeric(columns, name)]
    if strange:
        raise InputError(
            f"{columns.origin}: column {', '.join(strange[:3])} holds words: give the numeric ones as "
            f"data.columns=[NAME, NAME], or labelemb compare text-classes --data {columns.origin} "
            f"data.text={strange[0]} data.label={label}"
        )
    if not names or label in names:
        raise InputError(f"{columns.origin}: expected columns of numbers beside the label {label}, got {names}")
    return names


def rows_of(columns: Columns, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N, F) float64.

    Raises:
        InputError: a column is not there, or a value is missing or no finite number.
    """
    return np.stack([numbers(columns, column_named(columns, name, "data.columns")) for name in names], axis=1)


def moments(rows: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (F,) float64 of each column of `rows` (N, F); 1 where a column has no deviation."""
    std = rows.std(axis=0)
    return torch.from_numpy(rows.mean(axis=0)), torch.from_numpy(np.where(std > 0, std, 1.0))


def standardized(rows: np.ndarray[Any, Any], mean: Tensor, std: Tensor) -> Tensor:
    """(N, F) float32: less the mean, over the deviation."""
    return ((torch.from_numpy(rows) - mean) / std).float()
