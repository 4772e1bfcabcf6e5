"""What a criterion and its calls may be given: one line that says what was expected and what came."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from labelemb.losses.items import Items, is_distribution

_HINTS = {  # for the names that nn.CrossEntropyLoss has
    "weight": "it is called class_weight here",
    "label_smoothing": "labelemb.losses.fixed.smoothing(num_classes, epsilon) is label smoothing",
    "size_average": "use reduction",
    "reduce": "use reduction",
}


def is_traced() -> bool:
    """Whether a compiler or torch.func looks on: they take plain operations, and let no value be read."""
    return torch.compiler.is_compiling() or is_transformed()


def is_transformed() -> bool:
    """Whether torch.func looks on: its tensors may be kept nowhere."""
    # There is no public question after it; the tests under vmap and grad fail should this one go.
    return torch._C._are_functorch_transforms_active()


def refuse_unknown(owner: str, unknown: Mapping[str, object]) -> None:
    """Raise TypeError for arguments that a criterion does not have; those of nn.CrossEntropyLoss are explained."""
    for name in unknown:
        hint = f"; {_HINTS[name]}" if name in _HINTS else ""
        raise TypeError(f"{owner} has no argument {name!r}{hint}")


def check_reduction(reduction: str) -> None:
    """Raise ValueError for what is no reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def checked_class_weight(class_weight: Tensor | Sequence[float] | None, num_classes: int) -> Tensor | None:
    """A copy of the class weights as a tensor (C,); None stays None.

    Raises:
        ValueError: there are not C of them, or one is negative, infinite or NaN.
    """
    if class_weight is None:
        return None
    class_weight = torch.as_tensor(class_weight)
    class_weight = class_weight if class_weight.is_floating_point() else class_weight.float()
    if class_weight.shape != (num_classes,):
        raise ValueError(f"class_weight must be ({num_classes},), got {tuple(class_weight.shape)}")
    if not bool(((class_weight >= 0) & class_weight.isfinite()).all()):
        raise ValueError(f"class_weight must be finite and at least 0, got {class_weight.tolist()}")
    return class_weight.detach().clone()


def checked_features(features: Tensor | None, num_items: int, num_features: int) -> Tensor:
    """The features (N, D), which must be there; ValueError where they are not, or of another shape."""
    if features is None or tuple(features.shape) != (num_items, num_features):
        raise features_error(features, (num_items, num_features))
    return features


def features_error(features: Tensor | None, wanted: tuple[int, ...]) -> ValueError:
    """What is raised where features are missing or of another shape."""
    got = "none" if features is None else f"{tuple(features.shape)}"
    return ValueError(f"features, the input of the last layer, must be {wanted}, got {got}")


def check_call(logits: Tensor, items: Items, num_classes: int) -> None:
    """Raise ValueError where the arguments of a call do not fit each other; values are read on the CPU alone."""
    check_num_items(items)
    check_logits(logits, num_classes)
    check_target(items, len(logits), num_classes)


def check_logits(logits: Tensor, num_classes: int) -> None:
    """Raise ValueError unless the logits are (N, C, ...) floats."""
    if logits.ndim < 2 or logits.shape[1] != num_classes:
        last = logits.ndim > 2 and logits.shape[-1] == num_classes
        hint = "; classes come second, as in nn.CrossEntropyLoss: logits.movedim(-1, 1)" if last else ""
        raise ValueError(
            f"logits must be (N, {num_classes}) or (N, {num_classes}, ...), got {tuple(logits.shape)}{hint}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")


def check_num_items(items: Items) -> None:
    """Raise ValueError unless `num_items` is a number of items, and there is a divisor that it may replace."""
    if items.num_items is None:
        return
    if items.reduction != "mean":
        raise ValueError(f"num_items replaces the divisor of reduction='mean'; reduction={items.reduction!r} has none")
    if isinstance(items.num_items, Tensor):
        if items.num_items.ndim:
            raise ValueError(f"num_items must be a number or a 0-d tensor, got a tensor {tuple(items.num_items.shape)}")
    elif not items.num_items >= 0:
        raise ValueError(f"num_items must be at least 0, got {items.num_items}")


def check_target(items: Items, num_items: int, num_classes: int) -> None:
    """Raise ValueError unless the target is (N,) integers in [0, C) or `ignore_index`, or (N, C) floats."""
    target = items.target
    check_target_kind(target, (num_items, num_classes))
    expected = (num_items, num_classes) if is_distribution(target) else (num_items,)
    if tuple(target.shape) != expected:
        kind = "class probabilities" if is_distribution(target) else "class indices"
        raise ValueError(f"target of {kind} ({target.dtype}) must be {expected}, got {tuple(target.shape)}")
    if is_traced() or target.device.type != "cpu":
        return  # values cannot be read, or reading them would wait for the device
    if not is_distribution(target):
        _check_range(target.long(), num_classes, items.ignore_index)
    if items.num_items is not None and bool(items.num_items == 0):
        kept = (target != 0).any() if is_distribution(target) else (target != items.ignore_index).any()
        if kept:  # elsewhere the loss is infinite
            raise ValueError("num_items=0, but there are items that are not ignored: give the number over all batches")


_SEVERAL = "; where an item may have several labels, use nn.BCEWithLogitsLoss"


def check_target_kind(target: Tensor, shape_of_logits: Sequence[int]) -> None:
    """Raise ValueError for a target that is neither class indices nor probabilities, by its dtype and shape alone."""
    if target.dtype == torch.bool or target.is_complex():
        more = _SEVERAL if target.dtype == torch.bool else ""
        raise ValueError(
            f"target must be integer class indices or floating point probabilities, got {target.dtype}{more}"
        )
    if not is_distribution(target) and tuple(target.shape) == tuple(shape_of_logits):
        wanted = (shape_of_logits[0], *shape_of_logits[2:])
        raise ValueError(
            f"target of class indices ({target.dtype}) must be {wanted}, got {tuple(target.shape)}; class "
            f"probabilities are floating point{_SEVERAL}"
        )


def check_one_label(target: Tensor) -> None:
    """Raise ValueError for probabilities (N, C) that hold several ones an item; values are read on the CPU alone."""
    if target.device.type == "cpu" and target.numel() and ((target == 1).sum(dim=1) > 1).any():
        raise ValueError(f"target of class probabilities has items with several ones{_SEVERAL}")


def _check_range(target: Tensor, num_classes: int, ignore_index: int) -> None:
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


def check_index(index: Tensor, num_items: int, num_examples: int) -> None:
    """Raise ValueError unless the index is (N,) integers in [0, n); values are read on the CPU alone."""
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool or index.shape != (num_items,):
        raise ValueError(f"index must be ({num_items},) integers, got {tuple(index.shape)} of {index.dtype}")
    if is_traced() or index.device.type != "cpu" or not index.numel():
        return
    low, high = index.aminmax()
    if low.item() < 0 or high.item() >= num_examples:
        raise ValueError(f"index must lie in 0 to {num_examples - 1}, got {int(low if low < 0 else high)}")


def check_plain_linear(head: nn.Module) -> None:
    """Raise ValueError for a head that is more than its weight and bias: they are all that a fused loss reads.

    An adapter's own `forward`, hooks (old weight norm and pruning among them) and replaced methods would be dropped
    without a word. Parametrisations act on the weight itself, and are read.
    """
    if not isinstance(head, nn.Linear):
        more = f"got {type(head).__name__}" if isinstance(head, nn.Module) else f"got {type(head)}"
    elif type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        more = f"{type(head).__name__} has a forward of its own"
    elif any((_acting_hooks(head), head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)):
        more = "it has hooks"
    else:
        return
    raise ValueError(
        f"a fused loss reads weight and bias of a plain nn.Linear and does not call it, but {more}; "
        "use criterion(head(features), target, features)"
    )


def _acting_hooks(head: nn.Module) -> list[object]:
    """The forward hooks but those of `criterion.watch`, which change nothing."""
    return [hook for hook in head._forward_hooks.values() if not getattr(hook, "only_watches", False)]
