"""Data of one's own: label names, the test set and the validation set held out, and what is to be said of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from labelemb.classify.columns import Columns, words
from labelemb.classify.held_out import drawn_of_each_label
from labelemb.errors import InputError, first_line
from labelemb.settings.data import SentenceDataSettings, TableDataSettings

MOST_LABELS = 10_000
FEW = 5
SAME_FOR_ALL = 0  # the seed of the test set: with one that changed, another run would train on these items

Items = TypeVar("Items", covariant=True)
ColumnSettings = TableDataSettings | SentenceDataSettings


class Part(NamedTuple, Generic[Items]):
    """Some items, which a boolean mask or a slice selects from, and their labels as they are written."""

    items: Items
    labels: Sequence[str]


class Split(NamedTuple, Generic[Items]):
    """Some items and their labels (N,) int64."""

    items: Items
    labels: Tensor


@dataclass(frozen=True)
class Division(Generic[Items]):
    """A data set as it is trained on."""

    train: Split[Items]
    validation: Split[Items] | None
    test: Split[Items]
    label_names: list[str]
    notes: list[str]


def divide(
    parts: Mapping[str, Part[Any]], settings: ColumnSettings, seed: int, names: Sequence[str] | None = None
) -> Division[Any]:
    """Number the labels, hold a test set out where there is none, then a validation set.

    Args:
        parts: `train`, and where the data have them `validation` and `test`.
        settings: shares, limit, label names.
        seed: of the run, which draws the validation set; the test set is the same for all.
        names: those that the data hold of labels 0, 1, ...

    Raises:
        InputError: one label or one example alone, too many labels, names that do not fit.
    """
    written = [label for part in parts.values() for label in part.labels]
    origin = str(settings.path or settings.source)
    index, label_names = numbered(written, origin, read_names(settings.label_names) or names)
    splits = {
        name: Split(part.items, torch.tensor([index[each] for each in part.labels])) for name, part in parts.items()
    }
    train, test = splits["train"], splits.get("test")
    if test is None:
        test, train = _drawn(train, settings.test, SAME_FOR_ALL, "data.test")
    validation = splits.get("validation")
    if settings.limit is not None and settings.limit < len(train.labels):
        train, _ = _drawn(train, settings.limit, SAME_FOR_ALL, "data.limit")
    if validation is None and settings.validation:
        validation, train = _drawn(train, settings.validation, seed, "data.validation")
    if int(torch.bincount(train.labels).count_nonzero()) < 2:
        raise InputError(f"{origin}: expected training examples of two labels or more, got {len(train.labels)} of one")
    sizes = 0 if validation is None else len(validation.labels), len(test.labels)
    notes = sentences(label_names, train.labels, *sizes, None if "test" in parts else settings.test)
    return Division(train, validation, test, label_names, notes)


def numbered(written: Sequence[str], origin: str, names: Sequence[str] | None) -> tuple[dict[str, int], list[str]]:
    """The index of each label as it is written, and the names: sorted, whole numbers by value, or as they are given.

    Raises:
        InputError: there are too many labels, only one, or one that the given names do not have.
    """
    found = in_order(set(written))
    if len(found) > MOST_LABELS or (len(found) > 20 and 2 * len(found) > len(written)):
        raise InputError(
            f"{origin}: {len(found):,} labels among {len(written):,} examples: is that the label column? Expected "
            f"several examples of each, and at most {MOST_LABELS:,} labels"
        )
    if len(found) < 2:
        raise InputError(f"{origin}: expected two labels or more, got one: {found[0]!r}")
    names = found if names is None else list(names)
    return index_of(found, names, origin), names


def index_of(found: Sequence[str], names: Sequence[str], origin: str) -> dict[str, int]:
    """The place of each label among the names, which have it as it is written or are those of labels 0, 1, ...

    Raises:
        InputError: a label is neither a name nor the number of one.
    """
    if set(found) <= set(names):
        return {name: place for place, name in enumerate(names)}
    by_number = {str(place): place for place in range(len(names))}
    strange = [label for label in found if label not in by_number]
    if strange:
        strange = [label for label in strange if label not in names] or strange
        raise InputError(
            f"{origin}: label {strange[0]!r} is neither one of the {len(names)} label names nor its number"
        )
    return by_number


def labels_of(columns: Columns, record: Mapping[str, Any]) -> Tensor | None:
    """The labels (N,) of rows that were not trained on, by the names of the run; None where they have none.

    Raises:
        InputError: a label is missing, or not one of the run's.
    """
    if record["label_column"] not in columns.frame.columns:
        return None
    written = words(columns, record["label_column"])
    index = index_of(in_order(set(written)), record["label_names"], columns.origin)
    return torch.tensor([index[label] for label in written])


def in_order(labels: Iterable[str]) -> list[str]:
    """Whole numbers by their value, then the others by the alphabet."""
    return sorted(labels, key=_by_value)


def _by_value(label: str) -> tuple[bool, int, str]:
    digits = label.removeprefix("-")
    whole = digits.isascii() and digits.isdigit() and len(digits) < 1000  # Python makes no number of many more
    return (not whole, int(label) if whole else 0, label)


def read_names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"--label-names {path} cannot be read: {first_line(error)}") from None
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if not names or twice is not None:
        found = "none" if not names else f"{twice!r} twice"
        raise InputError(f"--label-names {path}: expected a name a line, got {found}")
    return names


def _drawn(split: Split[Any], share: float, seed: int, setting: str) -> tuple[Split[Any], Split[Any]]:
    """A share of each label, or so many, and the rest."""
    if len(split.labels) < 2:
        raise InputError(f"{setting}={share}: nothing would be left to train on: there is one example alone")
    share = share if share < 1 else share / len(split.labels)
    if share >= 1:
        raise InputError(f"{setting}: there are only {len(split.labels)} training examples")
    drawn = drawn_of_each_label(split.labels, share, seed)
    return _selected(split, drawn), _selected(split, ~drawn)


def _selected(split: Split[Any], which: Tensor) -> Split[Any]:
    return Split(split.items[which.numpy()], split.labels[which])


def sentences(
    names: Sequence[str], train: Tensor, num_validation: int, num_test: int, held_out: float | None
) -> list[str]:
    """What is to be known before training: sizes, the largest and the smallest label, labels that cannot be learned.

    Args:
        names: C names.
        train: labels (N,) that are trained on.
        num_validation, num_test: how many there are beside them.
        held_out: the share that was held out as the test set; None where the data have one.
    """
    counts = torch.bincount(train, minlength=len(names)).tolist()
    order = sorted(range(len(names)), key=counts.__getitem__)
    others = {"validate": num_validation, "test": num_test}
    sizes = ", ".join(
        [f"{len(train):,} to train", *(f"{count:,} to {what}" for what, count in others.items() if count)]
    )
    ends = [f"{names[place]} {counts[place]:,}" for place in (order[0], order[-1])]
    lines = [f"data: {sizes}; {len(names):,} labels, training examples from {ends[0]} to {ends[1]}"]
    if held_out is not None:
        lines.append(f"data: no test part, so {100 * held_out:g} % of each label is held out, the same for all runs")
    few = [f"{names[place]} {counts[place]}" for place in order if counts[place] < FEW]
    if few:
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        lines.append(
            f"warning: labels with fewer than {FEW} training examples, too few to learn a row from: "
            f"{', '.join(few[:10])}{more}"
        )
    return lines


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(C,): the inverse of each label's frequency among `labels` (N,), its mean over these items 1."""
    counts = torch.bincount(labels, minlength=num_classes)  # (C,)
    return len(labels) / ((counts > 0).sum() * counts.clamp_min(1))
