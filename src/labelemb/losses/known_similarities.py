"""Soft labels that are known and not learned: rows given as a matrix, or by groups of labels that are alike."""

from collections.abc import Collection, Hashable, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from labelemb.losses.soft_rows import check_dense

TOLERANCE = 1e-3  # what a row's sum may be off 1: rounded to a few digits
_OF_GROUP = 0.8  # of what is not the label's own


def checked_rows(matrix: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """The rows (C, C) of a matrix of soft labels, in float64, as they are: sums are 1 but for TOLERANCE.

    Raises:
        ValueError: it is not square, a number is negative or not finite, or a row does not sum to 1.
    """
    rows = torch.as_tensor(matrix).detach().cpu()
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or not len(rows) or rows.is_complex():
        raise ValueError(f"a matrix of soft labels must be (C, C) numbers, got {tuple(rows.shape)} of {rows.dtype}")
    check_dense(len(rows))
    rows = rows.double()
    bad = ((rows < 0) | ~rows.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(f"soft labels must be finite and at least 0, got {rows[row, column]:g} at ({row}, {column})")
    sums = rows.sum(dim=1, keepdim=True)
    off = ((sums - 1).abs() > TOLERANCE).squeeze(1).nonzero()
    if len(off):
        row = int(off[0])
        raise ValueError(
            f"each row of soft labels must sum to 1 (within {TOLERANCE}), row {row} sums to {sums[row].item():g}; "
            "similarities on another scale need P / P.sum(dim=1, keepdim=True) first"
        )
    return rows


def rows_of_groups(
    groups: Sequence[Collection[int | str]] | Sequence[int | str] | Tensor,
    true_share: float,
    group_share: float | None,
    label_names: Sequence[str] | None,
) -> Tensor:
    """The rows (C, C) in float64 that groups of labels make; see `LabelTable.from_groups`.

    Raises:
        ValueError: a share is out of range, or the groups do not hold every label once.
    """
    if not 0 <= true_share <= 1:
        raise ValueError(f"true_share must lie in 0 to 1, got {true_share}")
    others_share = 1 - true_share
    group_share = _OF_GROUP * others_share if group_share is None else group_share
    if not 0 <= group_share <= others_share + 1e-12:
        raise ValueError(f"group_share must lie in 0 to 1 - true_share = {others_share:g}, got {group_share}")
    number = torch.tensor(_group_numbers(groups, label_names))  # (C,)
    check_dense(len(number))
    own = torch.eye(len(number), dtype=torch.float64)
    inside = (number[:, None] == number).double() - own  # (C, C) 1 for the others of the label's group
    outside = 1 - own - inside
    num_inside, num_outside = inside.sum(dim=1, keepdim=True), outside.sum(dim=1, keepdim=True)  # (C, 1)
    share = torch.where(num_outside == 0, others_share, group_share) * (num_inside > 0)  # of the group: (C, 1)
    rows = own * true_share + inside * share / num_inside.clamp_min(1)
    rows += outside * (others_share - share) / num_outside.clamp_min(1)
    return rows if len(rows) > 1 else own


def _group_numbers(
    groups: Sequence[Collection[int | str]] | Sequence[int | str] | Tensor, label_names: Sequence[str] | None
) -> list[int]:
    """The number of each label's group."""
    given: list[Any] = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if not given:
        raise ValueError("there are no groups: give a list of lists of labels, or the group of each label")
    are_lists = [isinstance(group, Collection) and not isinstance(group, str) for group in given]
    if all(are_lists):
        return _from_lists(given, label_names)
    if any(are_lists):
        raise ValueError("groups must be lists of labels, or the group of each label: got some of both")
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in given]


def _from_lists(groups: Sequence[Collection[int | str]], label_names: Sequence[str] | None) -> list[int]:
    num_classes = sum(len(group) for group in groups) if label_names is None else len(label_names)
    group_of: dict[int, int] = {}
    for number, group in enumerate(groups):
        for label in group:
            index = _index(label, num_classes, label_names)
            if index in group_of:
                raise ValueError(f"label {label!r} stands in the groups twice")
            group_of[index] = number
    missing = [index for index in range(num_classes) if index not in group_of]
    if missing:
        first = missing[0] if label_names is None else label_names[missing[0]]
        raise ValueError(f"{len(missing)} labels are in no group, e.g. {first!r}: one alone is a group, too")
    return [group_of[index] for index in range(num_classes)]


def _index(label: int | str, num_classes: int, label_names: Sequence[str] | None) -> int:
    if isinstance(label, str):
        if label_names is None:
            raise ValueError(f"groups of names such as {label!r} need label_names, in the order of the data")
        if list(label_names).count(label) != 1:
            several = "several labels are" if label in label_names else "no label is"
            raise ValueError(f"{several} named {label!r} in label_names")
        return list(label_names).index(label)
    if not isinstance(label, SupportsIndex) or isinstance(label, bool) or not 0 <= label.__index__() < num_classes:
        raise ValueError(f"there is no label {label!r} among {num_classes}: expected 0 to {num_classes - 1}, each once")
    return label.__index__()
