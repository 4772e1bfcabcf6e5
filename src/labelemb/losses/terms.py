"""The terms of a loss, from values of single items: ignored items, class weights, the one divisor. For all modes."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


class LossTerms(NamedTuple):
    """The five terms, unweighted, and the loss they make. Each 0-d, or (N,) with reduction "none".

    hard: cross entropy with the target. soft: cross entropy with the soft labels. aux: cross entropy of the auxiliary
    head. cap: its confidence above the cap. match: cross entropy of the label table with the auxiliary predictions of
    the matched items. total: hard_weight*hard + soft_weight*soft + aux + cap_weight*cap + match, what `forward`
    returns. A mode without a term has 0 there.
    """

    hard: Tensor
    soft: Tensor
    aux: Tensor
    cap: Tensor
    match: Tensor
    total: Tensor


class Weights(NamedTuple):
    """The settings of the loss that enter the values of single items."""

    hard: float
    soft: float
    cap_weight: float
    cap: float
    temperature: float

    @property
    def factors(self) -> tuple[float, float, float, float, float]:
        """What the terms hard, soft, aux, cap and match are multiplied by."""
        return self.hard, self.soft, 1.0, self.cap_weight, 1.0

    def total(self, terms: Sequence[Tensor]) -> Tensor:
        """The weighted sum of the five terms, of any one shape.

        A term without weight has no part, also where it is infinite: the soft term of a class masked with -inf.
        """
        parts = [
            term if factor == 1 else factor * term
            for factor, term in zip(self.factors, terms, strict=True)
            if factor != 0
        ]
        return reduce(torch.add, parts)

    def check(self) -> None:
        """Raise ValueError where a setting is out of its range."""
        for name, value in {"hard_weight": self.hard, "soft_weight": self.soft, "cap_weight": self.cap_weight}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and above 0, got {self.temperature}")
        if not 0 < self.cap <= 1:
            raise ValueError(f"cap must lie above 0 and at most at 1, got {self.cap}")


def is_traced() -> bool:
    """Whether a compiler or torch.func looks on: they take plain operations, and let no value be read."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_distribution(target: Tensor) -> bool:
    """Whether `target` holds class probabilities (N, C) and not class indices (N,)."""
    return target.is_floating_point()


def pick(values: Tensor, target: Tensor) -> Tensor:
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


def prepare(
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    num_items: Tensor | int | None,
    reduction: Reduction,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Split a target into what the terms need and the factor of each item in the reduction.

    Args:
        target: (N,) integer indices or (N, C) class probabilities.
        class_weight: (C,) or None.
        ignore_index: the index that marks an ignored item.
        num_items: what replaces the divisor of a mean, or None.
        reduction: of the loss.
        dtype: of the factors: that in which the terms are summed.

    Returns:
        A target that is legal everywhere (an ignored index becomes 0; class weights are multiplied into a
        distribution), and the factors (N,): 0 for an ignored item, the class weight of the others, for a mean divided
        by the number of items not ignored (the sum of their class weights) or by `num_items`.
    """
    class_weight = None if class_weight is None else class_weight.to(dtype)
    if is_distribution(target):
        kept = (target != 0).any(dim=1).to(dtype)  # (N,)
        target = target.to(dtype) if class_weight is None else target.to(dtype) * class_weight  # (N, C)
        divisor = kept.sum() if class_weight is None else target.sum()
    else:
        target = target.long()  # indexing needs int64, and no narrower type can hold every ignore_index
        mask = target != ignore_index  # (N,)
        target = target * mask
        kept = mask.to(dtype) if class_weight is None else mask * class_weight[target]
        divisor = kept.sum()
    if reduction != "mean":
        return target, kept
    count = divisor if num_items is None else num_items
    nothing = ((divisor == 0) & (count == 0)).to(dtype)
    return target, kept / (count + nothing)  # no items at all: 0, never NaN


def weighted_terms(
    values: Tensor, item_weight: Tensor, weights: Weights, reduction: Reduction
) -> tuple[Tensor, Tensor]:
    """The five terms (5,) and their weighted sum 0-d, or (5, N) and (N,), from values (5, N) and factors (N,)."""
    terms = values * item_weight  # (5, N); no matrix product: autocast would narrow it
    terms = terms if reduction == "none" else terms.sum(dim=1)  # (5, N) or (5,)
    return terms, weights.total(terms.unbind())


def widened(values: Tensor) -> Tensor:
    """`values` in float32 where they are narrower: every reduction runs at least there."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


TORCH_NAMES = {
    "weight": "it is called class_weight here",
    "label_smoothing": "labelemb.losses.modes.smoothing(num_classes, epsilon) is label smoothing",
    "size_average": "use reduction",
    "reduce": "use reduction",
}


def refuse_unknown(owner: str, unknown: Mapping[str, object]) -> None:
    """Raise TypeError for arguments that a criterion does not have; those of nn.CrossEntropyLoss are explained."""
    for name in unknown:
        hint = f"; {TORCH_NAMES[name]}" if name in TORCH_NAMES else ""
        raise TypeError(f"{owner} has no argument {name!r}{hint}")


def check_num_items(num_items: Tensor | int | None, reduction: Reduction) -> None:
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(f"num_items replaces the divisor of reduction='mean'; reduction={reduction!r} has none")
    if isinstance(num_items, Tensor):
        if num_items.ndim:
            raise ValueError(f"num_items must be a number or a 0-d tensor, got a tensor {tuple(num_items.shape)}")
    elif not num_items >= 0:
        raise ValueError(f"num_items must be at least 0, got {num_items}")


def checked_features(features: Tensor | None, num_items: int, num_features: int) -> Tensor:
    if features is None or tuple(features.shape) != (num_items, num_features):
        got = "none" if features is None else f"{tuple(features.shape)}"
        raise ValueError(f"features, the input of the last layer, must be ({num_items}, {num_features}), got {got}")
    return features


def checked_class_weight(class_weight: Tensor | Sequence[float] | None, num_classes: int) -> Tensor | None:
    """A copy of the class weights as a tensor (C,); None stays None."""
    if class_weight is None:
        return None
    class_weight = torch.as_tensor(class_weight)
    class_weight = class_weight if class_weight.is_floating_point() else class_weight.float()
    if class_weight.shape != (num_classes,):
        raise ValueError(f"class_weight must be ({num_classes},), got {tuple(class_weight.shape)}")
    if not bool(((class_weight >= 0) & class_weight.isfinite()).all()):
        raise ValueError(f"class_weight must be finite and at least 0, got {class_weight.tolist()}")
    return class_weight.detach().clone()


def check_call(
    logits: Tensor,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    num_items: Tensor | int | None,
    reduction: Reduction,
) -> None:
    """Raise ValueError where the arguments of a call do not fit each other; values are read on the CPU alone."""
    check_num_items(num_items, reduction)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            f"logits must be (N, {num_classes}), got {tuple(logits.shape)}; flatten (batch, time), drop padding first"
        )
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    check_labels(target, logits.shape[0], num_classes, ignore_index)
    check_divisor(target, ignore_index, num_items)


def check_divisor(target: Tensor, ignore_index: int, num_items: Tensor | int | None) -> None:
    """Raise ValueError for num_items=0 over items that count; on a GPU, where it is not read, the loss is infinite."""
    if num_items is None or is_traced() or target.device.type != "cpu" or bool(num_items != 0):
        return
    counts = (target != 0).any() if is_distribution(target) else (target != ignore_index).any()
    if counts:
        raise ValueError("num_items=0, but there are items that are not ignored: give the number over all batches")


def check_labels(target: Tensor, num_items: int, num_classes: int, ignore_index: int) -> None:
    """Raise ValueError unless `target` is (N,) integers in [0, C) or `ignore_index`, or (N, C) floats."""
    if target.dtype == torch.bool or target.is_complex():
        raise ValueError(f"target must be integer class indices or floating point probabilities, got {target.dtype}")
    expected = (num_items, num_classes) if is_distribution(target) else (num_items,)
    if tuple(target.shape) != expected:
        kind = "class probabilities" if is_distribution(target) else "class indices"
        raise ValueError(f"target of {kind} ({target.dtype}) must be {expected}, got {tuple(target.shape)}")
    if not is_distribution(target):
        _check_range(target, num_classes, ignore_index)


def _check_range(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if is_traced() or target.device.type != "cpu":
        return  # values cannot be read, or reading them would wait for the device
    target = target.long()
    if target.numel() == 0:
        return
    low, high = target.aminmax()
    if low.item() >= 0 and high.item() < num_classes:
        return
    bad = target[((target < 0) | (target >= num_classes)) & (target != ignore_index)]
    if bad.numel():
        raise ValueError(
            f"target must lie in 0 to {num_classes - 1} (or be ignore_index={ignore_index}), got {int(bad[0])}"
        )
