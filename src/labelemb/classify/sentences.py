"""Texts with one label each as a classification task takes them: see labelemb.classify.data.ClassifyData."""

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
    is_column_file,
    is_numeric,
    label_column,
    read_columns,
    read_parts,
    words,
)
from labelemb.classify.data import Answers, Items
from labelemb.classify.division import Part, Split, divide, labels_of
from labelemb.classify.ngrams import MOST
from labelemb.classify.text_networks import encoder
from labelemb.errors import InputError
from labelemb.files import STDIN, read_lines
from labelemb.settings.config import SentenceSettings


@dataclass(frozen=True)
class SentenceSplit:
    """Texts of unlike length as numbers, one after another, and labels (N,) int64."""

    numbers: Tensor
    """(all,) int32."""
    starts: Tensor
    """(N + 1,) int64: text i has the numbers from starts[i] to starts[i + 1]."""
    labels: Tensor
    padding: int

    @classmethod
    def of(cls, encoded: Sequence[Sequence[int]], labels: Tensor, padding: int) -> "SentenceSplit":
        """Of a list of numbers for each text."""
        lengths = torch.tensor([len(each) for each in encoded], dtype=torch.int64)
        flat = torch.tensor([number for each in encoded for number in each], dtype=torch.int32)
        return cls(flat, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]), labels, padding)

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, part: slice) -> Tensor:
        """The texts of a slice, padded to the longest of them, (B, S) int64."""
        return self.padded(torch.arange(len(self), device=self.labels.device)[part])

    def padded(self, indices: Tensor) -> Tensor:
        """The texts of these indices (B,), padded to the longest of them, (B, S) int64; S is at least 1."""
        starts = self.starts[indices]
        lengths = self.starts[indices + 1] - starts
        longest = max(int(lengths.max()), 1)  # waits for the device, which has to know its memory
        places = torch.arange(longest, device=starts.device)
        inside = places < lengths[:, None]  # (B, S)
        if not len(self.numbers):
            return torch.full_like(inside, self.padding, dtype=torch.int64)
        numbers = self.numbers[(starts[:, None] + places).clamp_max(len(self.numbers) - 1)].long()
        return torch.where(inside, numbers, self.padding)

    def to(self, device: torch.device) -> "SentenceSplit":
        return replace(
            self, numbers=self.numbers.to(device), starts=self.starts.to(device), labels=self.labels.to(device)
        )


@dataclass(frozen=True)
class SentenceInputs:
    """A data set of texts, as numbers."""

    train: SentenceSplit
    validation: SentenceSplit | None
    test: SentenceSplit
    label_names: list[str]
    text_column: str
    label_column: str
    notes: list[str]

    varying_shapes = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(S,) at most."""
        return (MOST,)

    @property
    def record(self) -> dict[str, Any]:
        """What predictions of other texts need."""
        columns = {"text_column": self.text_column, "label_column": self.label_column}
        return {"kind": "texts", "label_names": self.label_names, "shape": list(self.shape), **columns}

    def inputs(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training texts and their labels."""
        return self.train.padded(indices), self.train.labels[indices]

    def to(self, device: torch.device, *, channels_last: bool) -> "SentenceInputs":
        """The same texts on a device."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))

    def examples(self, folder: Path, answers: Answers) -> None:
        """Nothing: the page shows pictures, and sentences with their outputs."""


def load_sentences(settings: SentenceSettings) -> SentenceInputs:
    """The data set that a run's settings name.

    Raises:
        InputError: it is not there, or has values that cannot be learned from: one line.
    """
    data = settings.data
    if data.path is None or data.path == STDIN:
        raise InputError("text-classes: --data is missing: expected a file with a text and a label, e.g. --data a.csv")
    read = read_parts(data.path)
    label = label_column(read["train"], data.label)
    text = text_column(read["train"], label, data.text)
    parts = {
        part: Part(
            np.array(texts_of(columns, text), dtype=object), words(columns, column_named(columns, label, "data.label"))
        )
        for part, columns in read.items()
    }
    division = divide(parts, data, settings.seed, read["train"].class_names.get(label))
    encode, padding = encoder(settings.model)

    def split(part: Split[Any]) -> SentenceSplit:
        return SentenceSplit.of(encode(list(part.items)), part.labels, padding)

    validation = None if division.validation is None else split(division.validation)
    return SentenceInputs(
        split(division.train), validation, split(division.test), division.label_names, text, label, division.notes
    )


def read_texts(settings: SentenceSettings, record: Mapping[str, Any], path: Path) -> Items:
    """Other texts than a run's own: a file of columns, or lines of text; `-` are lines from standard input.

    Raises:
        InputError: the file cannot be read, or lacks the run's column of texts.
    """
    labels = None
    if path != STDIN and is_column_file(path):
        columns = read_columns(path)
        texts, labels = texts_of(columns, record["text_column"]), labels_of(columns, record)
    else:
        texts = list(read_lines(path))
    encode, padding = encoder(settings.model)
    split = SentenceSplit.of(
        encode(texts), torch.zeros(len(texts), dtype=torch.int64) if labels is None else labels, padding
    )
    return Items(split, record["label_names"], tuple(record["shape"]), "texts", labels is not None)


def text_column(columns: Columns, label: str, wanted: str | None) -> str:
    """The column of texts: the one that is wanted, else the only one of words beside the label.

    Raises:
        InputError: there is no such column, or several.
    """
    if wanted is not None:
        return column_named(columns, wanted, "data.text")
    names = [str(name) for name in columns.frame.columns]
    found = [name for name in names if name != label and not is_numeric(columns, name)]
    if len(found) == 1:
        return found[0]
    state = f"{len(found)} columns of words: {', '.join(found[:5])}" if found else "no column of words"
    raise InputError(f"{columns.origin}: which column is the text? There is {state}: give data.text=COLUMN")


def texts_of(columns: Columns, name: str) -> list[str]:
    """The texts of a column; raises InputError where there is no such column, or one of them is missing."""
    return words(columns, column_named(columns, name, "data.text"))
