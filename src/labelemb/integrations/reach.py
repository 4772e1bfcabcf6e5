"""What autograd's graph says of a value: the parameters behind it, and what became of it on the way."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SELECTING = (  # names of nodes that move numbers and change none
    *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Expand", "Squeeze", "Unsqueeze", "Permute"),
    *("Transpose", "Select", "Slice", "Index", "IndexSelect", "Gather", "_Reach"),
    _SINK := "_DDPSink",  # the identity of all outputs of a wrapped model
)


class _Reach(torch.autograd.Function):
    """The identity, whose graph leads to tensors that it does not depend on: they get no gradient from it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *tensors: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *[None] * (len(ctx.needs_input_grad) - 1)


def reached(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """`values`, with a graph that leads to `tensors` as well.

    A wrapper such as DistributedDataParallel walks the graph of what a forward returns to find which parameters were
    used. A loss outside that forward uses more.
    """
    result: Tensor = _Reach.apply(values, *tensors)  # type: ignore[no-untyped-call]
    return result


def only_selects(values: Tensor, source: Tensor) -> bool:
    """Whether the numbers of `values` are numbers of `source`, moved and none changed: by the graph between them."""
    node, number, end = values.grad_fn, values.output_nr, source.grad_fn
    while node is not None and node is not end:
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if name not in _SELECTING:
            return False
        inputs = node.next_functions
        node, number = inputs[number if name == _SINK else 0]
    return node is end
