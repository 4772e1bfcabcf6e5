"""A warning for the commonest fault with losses that own parameters: the optimiser was never given them."""

import warnings

import torch
from torch import Tensor, nn

_NUM_CALLS = 100


class ForgottenParameters:
    """Watches a criterion: after 100 training calls in which the network moved and the criterion did not, warns once.

    Gradient accumulation leaves the network still as well, so it is never mistaken for a forgotten criterion.
    """

    def __init__(self) -> None:
        self._num_calls = 0
        self._versions: tuple[int, ...] = ()
        self._network_version: int | None = None

    def check(self, criterion: nn.Module, logits: Tensor) -> None:
        """Count one call. Tensors count their changes in place themselves, so a call costs a comparison of integers."""
        if torch.compiler.is_compiling() or self._num_calls > _NUM_CALLS or not torch.is_grad_enabled():
            return
        parameters = [parameter for parameter in criterion.parameters() if parameter.requires_grad]
        if not parameters or not criterion.training:
            return
        versions = tuple(parameter._version for parameter in parameters)
        if self._num_calls == 0 or versions != self._versions:
            # Started, or the optimiser knows them: then the count begins again only to stop for good.
            self._num_calls = 1 if self._num_calls == 0 else _NUM_CALLS + 1
            self._versions, self._network_version = versions, _version_of_network(logits)
        elif self._num_calls < _NUM_CALLS:
            self._num_calls += 1
        elif self._network_version != _version_of_network(logits):
            self._num_calls += 1
            warnings.warn(
                f"after {_NUM_CALLS} training calls the network has changed but no parameter of "
                f"{type(criterion).__name__} has: give them to the optimiser, e.g. "
                '{"params": criterion.parameters(), "weight_decay": 0.0}',
                stacklevel=4,
            )


def _version_of_network(logits: Tensor) -> int | None:
    """How often the first parameter found behind `logits` has been changed in place; None where there is none."""
    if logits.is_leaf:
        return logits._version
    seen = set()
    stack = [logits.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            version: int = variable._version
            return version
        stack.extend(next_node for next_node, _ in reversed(node.next_functions))
    return None
