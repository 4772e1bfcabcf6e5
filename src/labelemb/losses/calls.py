"""The training calls of a criterion, for checks that look now and then: which count, when one is due, who is warned."""

import sys
import warnings
from types import FrameType

import torch
from torch import Tensor, nn

from labelemb.losses.arguments import is_traced

_EARLY = (5, 10)  # short runs end before the hundredth call
_EVERY = 100
_LIBRARIES = ("labelemb", "torch")


def is_training_call(criterion: nn.Module, logits: Tensor) -> bool:
    """Whether a call trains: not while a compiler looks on, in eval mode or without gradients."""
    return not is_traced() and not logits.is_meta and torch.is_grad_enabled() and criterion.training


def is_due(num_calls: int) -> bool:
    """Whether checks look after so many training calls. A look may wait for the device."""
    return num_calls in _EARLY or (num_calls > 0 and num_calls % _EVERY == 0)


def sample(parameter: Tensor, size: int) -> Tensor:
    """Up to `size` values spread evenly over a parameter, (S,), on the CPU."""
    values = parameter.detach().flatten()
    return values[:: max(1, -(-values.numel() // size))].cpu().clone()


def trainable_parameters(criterion: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, but for those of which each rank holds a shard."""
    return {
        name: parameter
        for name, parameter in criterion.named_parameters()
        if parameter.requires_grad and not hasattr(parameter, "to_local") and is_present(parameter)
    }


def is_present(parameter: Tensor) -> bool:
    """Whether the values can be read: a sharding trainer frees those of a layer between its passes."""
    return not parameter.is_meta and parameter.untyped_storage().nbytes() >= parameter.nbytes > 0


def parameter_behind(logits: Tensor) -> Tensor | None:
    """A parameter of the network, the first that is found behind `logits`; None where there is none to be read."""
    if logits.is_leaf:
        return logits
    seen = set()
    stack = [logits.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable: Tensor | None = getattr(node, "variable", None)  # of AccumulateGrad, the node of a leaf
        if variable is not None:
            return variable if is_present(variable) and not hasattr(variable, "to_local") else None
        stack.extend(next_node for next_node, _ in reversed(node.next_functions))
    return None


def warn_caller(message: str) -> None:
    """Warn at the line that called this library, through however many modules and wrappers of torch it did."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level += 1
        frame = frame.f_back
    warnings.warn(message, stacklevel=level + 1)
