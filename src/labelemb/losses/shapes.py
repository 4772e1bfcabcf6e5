"""Calls of any shape in PyTorch's order, classes second: they become rows, an item each, and go back."""

from typing import NamedTuple

import torch
from torch import Tensor

from labelemb.losses.arguments import check_logits, check_target_kind, features_error
from labelemb.losses.items import is_distribution


class Rows(NamedTuple):
    """A call with every position as an item of its own, N' of them in the order of `shape`."""

    logits: Tensor  # (N', C)
    target: Tensor  # (N',) or (N', C)
    features: Tensor | None  # (N', D)
    shape: torch.Size  # (N, ...) of the items

    def restored(self, values: Tensor) -> Tensor:
        """Values (..., N') of the items as (..., N, ...)."""
        return values.reshape(*values.shape[:-1], *self.shape)


def as_rows(
    logits: Tensor, target: Tensor, features: Tensor | None, *, num_classes: int, num_features: int | None
) -> Rows:
    """A call as rows.

    Args:
        logits: (N, C, ...).
        target: (N, ...) class indices or (N, C, ...) class probabilities.
        features: (N, D, ...); not looked at where none are needed.
        num_classes: C.
        num_features: D, None where the mode needs no features.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    check_logits(logits, num_classes)
    check_target_kind(target, logits.shape)
    shape = torch.Size((logits.shape[0], *logits.shape[2:]))
    wanted = logits.shape if is_distribution(target) else shape
    if target.shape != wanted:
        kind = "class probabilities" if is_distribution(target) else "class indices"
        raise ValueError(f"target of {kind} ({target.dtype}) must be {tuple(wanted)}, got {tuple(target.shape)}")
    target = rows(target) if is_distribution(target) else target.reshape(-1)
    if num_features is None:
        return Rows(rows(logits), target, None, shape)
    wanted = torch.Size((logits.shape[0], num_features, *logits.shape[2:]))
    if features is None or features.shape != wanted:
        raise features_error(features, tuple(wanted))
    return Rows(rows(logits), target, rows(features), shape)


def rows(values: Tensor) -> Tensor:
    """(N, K, ...) as (N', K), the positions of an item one after another."""
    return values.movedim(1, -1).reshape(-1, values.shape[1])
