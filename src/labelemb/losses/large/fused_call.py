"""What every fused loss does around its pass: checks, types and sizes, and gradients that the forward pass makes."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from labelemb.losses.arguments import check_num_items, check_target
from labelemb.losses.items import Items, is_distribution
from labelemb.losses.large.class_shard import EVERY_CLASS, Classes
from labelemb.losses.terms import weighted_sum

_CPU_BUFFER_BYTES, _GPU_BUFFER_BYTES = 2**27, 2**30  # a GPU wants larger products
_PARAMETERS_PER_BUFFER = 5  # buffers may take a fifth of large parameters: each chunk reads and writes all gradients

Gradients = Sequence[Tensor | None]


class PassInputs(Protocol):
    """A named tuple of the tensors that a pass may differentiate: features (N, D), all others (C, ...)."""

    @property
    def _fields(self) -> tuple[str, ...]: ...

    @property
    def features(self) -> Tensor: ...

    @property
    def head_weight(self) -> Tensor: ...

    def _asdict(self) -> dict[str, Tensor | None]: ...


def with_gradients(
    run: Callable[[], tuple[Tensor, Gradients]], factors: Sequence[float], inputs: PassInputs
) -> tuple[Tensor, Tensor]:
    """The loss of a pass with all gradients, and its terms (T,) without.

    They have no graph: `create_graph=True` raises. `backward` scales them in place: a second one over a retained graph
    raises, unless the loss stood alone on the CPU.

    Args:
        run: the pass, which gives the terms (T,), summed, and a gradient for each of the inputs.
        factors: T numbers, what the terms are multiplied by in the loss.
        inputs: of the pass.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _GradientsOfForward.apply
    return apply(run, factors, *inputs._asdict().values())


class _GradientsOfForward(torch.autograd.Function):
    """Gradients are made by the forward pass; what is left to the backward pass is the factor of the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[], tuple[Tensor, Gradients]],
        factors: Sequence[float],
        features: Tensor,
        *others: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):  # the pass has its own types
            terms, gradients = run()
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(terms)
        return weighted_sum(factors, terms.unbind()), terms

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the gradients are numbers by now, and would pass for constants
            raise RuntimeError(
                "the fused loss has no second derivatives: use criterion(head(features), target, features) with "
                "create_graph=True"
            )
        gradients: tuple[Tensor | None, ...] = ctx.saved_tensors
        if grad_total.device.type != "cpu" or grad_total != 1:  # elsewhere reading it would wait for the device
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad_total)  # in place: a copy would double the memory of the largest tensors
        return None, None, *gradients


def needed_gradients(inputs: PassInputs) -> tuple[bool, ...]:
    """Which of the inputs want gradients: only these are computed, none without grad mode."""
    tensors = inputs._asdict().values()
    return tuple(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors)


def product_dtype(features: Tensor) -> torch.dtype:
    """The type of the matrix products: that of the features, under autocast its own."""
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return features.dtype


def default_chunk_size(inputs: PassInputs, item_bytes: int, classes: Classes = EVERY_CLASS) -> int:
    """How many items the budget of the buffers has room for, which take so many bytes for an item and a label.

    All ranks that share the classes must take the same: that of the one with the most.
    """
    largest = _CPU_BUFFER_BYTES if inputs.features.device.type == "cpu" else _GPU_BUFFER_BYTES
    parameters = [tensor for name, tensor in inputs._asdict().items() if name != "features" and tensor is not None]
    num_here = len(inputs.head_weight)
    most = classes.most(num_here)
    parameter_bytes = sum(tensor.nbytes for tensor in parameters) * most // num_here
    budget = max(largest, parameter_bytes // _PARAMETERS_PER_BUFFER)
    return max(1, budget // (item_bytes * most))


def check_inputs(inputs: PassInputs, chunk_size: int | None, classes: Classes = EVERY_CLASS) -> None:
    """Raise ValueError where features, head and table do not fit each other, or for a chunk of no items."""
    features, weight = inputs.features, inputs.head_weight
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features must be (N, D) for a head of (C, D), got {tuple(features.shape)} and {tuple(weight.shape)}; "
            "flatten (batch, time), drop padding first"
        )
    num_here = len(weight)
    total = classes.total(num_here)
    for name, tensor in inputs._asdict().items():
        expected = total if name == "table" else num_here  # a dense table has all labels' rows, each of what is here
        if name != "features" and tensor is not None and len(tensor) != expected:
            raise ValueError(f"{name} must have one row a label, {expected} as the head has, got {len(tensor)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, or None, got {chunk_size}")


def check_items(items: Items, num_items: int, num_classes: int) -> None:
    """Raise ValueError unless the targets are (N,) class indices whose values are reduced to a sum or a mean."""
    if is_distribution(items.target):
        raise ValueError(f"the fused loss takes class indices, got {items.target.dtype}; give probabilities to forward")
    check_summed(items)
    check_target(items, num_items, num_classes)


def check_summed(items: Items) -> None:
    """Raise ValueError unless the values of the items are reduced: each would want a gradient of its own."""
    if items.reduction == "none":
        raise ValueError("the fused loss has gradients of a sum: reduction must be 'mean' or 'sum', got 'none'")
    check_num_items(items)
