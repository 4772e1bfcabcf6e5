"""What a target is: class indices or distributions, the factor of each item, and the one divisor of a mean."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
SparseTarget = tuple[Tensor, Tensor]  # indices (N, K) of labels and their values (N, K): for the fused loss


class Items(NamedTuple):
    """The targets of one call, and how the values of its items are reduced."""

    target: Tensor  # (N,) integer class indices or (N, C) class probabilities
    class_weight: Tensor | None = None  # (C,)
    ignore_index: int = -100  # the index that marks an ignored item
    num_items: Tensor | int | None = None  # what replaces the divisor of a mean
    reduction: Reduction = "mean"


def is_distribution(target: Tensor) -> bool:
    """Whether `target` holds class probabilities (N, C) and not class indices (N,)."""
    return target.is_floating_point()


def dense_target(target: Tensor | SparseTarget, owner: str) -> Tensor:
    """The target where it is one tensor.

    Raises:
        ValueError: it is sparse, which only modes of fixed soft labels take, in their fused form.
    """
    if isinstance(target, Tensor):
        return target
    raise ValueError(f"{owner} takes class indices; (indices, values) are for fused baseline, smoothing and tfkd")


def expected(values: Tensor, target: Tensor) -> Tensor:
    """The expectation (N,) of `values` (N, C) under `target`: an index picks its entry, a distribution averages."""
    if is_distribution(target):
        values = values.masked_fill((target == 0) & values.isinf(), 0)  # log p of a masked class that is not asked for
        return (values * target).sum(dim=1)
    return values.gather(1, target[:, None]).squeeze(1)


def expected_rows(target: Tensor, rows: Tensor) -> Tensor:
    """The expectation (N, C) of `rows` (C, C) under distributions (N, C); autocast may not narrow it."""
    dtype = torch.promote_types(target.dtype, rows.dtype)
    with torch.autocast(target.device.type, enabled=False):
        return target.to(dtype) @ rows.to(dtype)


def targets_and_factors(items: Items, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the terms are taken of, and what each item's values are multiplied by.

    Args:
        items: of the call.
        dtype: of the factors: that in which the terms are summed.

    Returns:
        Targets that are legal everywhere (an ignored index becomes 0; class weights are multiplied into a
        distribution), and the factors (N,): 0 for an ignored item, the class weight of the others, for a mean divided
        by the number of items not ignored (the sum of their class weights) or by `num_items`.
    """
    class_weight = None if items.class_weight is None else items.class_weight.to(dtype)
    if is_distribution(items.target):
        kept = (items.target != 0).any(dim=1).to(dtype)  # (N,)
        target = items.target.to(dtype) if class_weight is None else items.target.to(dtype) * class_weight  # (N, C)
        divisor = kept.sum() if class_weight is None else target.sum()
    else:
        target = items.target.long()  # indexing needs int64, and no narrower type can hold every ignore_index
        mask = target != items.ignore_index  # (N,)
        target = target * mask
        kept = mask.to(dtype) if class_weight is None else mask * class_weight[target]
        divisor = kept.sum()
    if items.reduction != "mean":
        return target, kept
    if items.num_items is None:
        return target, kept / (divisor + (divisor == 0))  # no items at all: 0, never NaN
    nothing = ((divisor == 0) & (items.num_items == 0)).to(dtype)
    return target, kept / (items.num_items + nothing)
