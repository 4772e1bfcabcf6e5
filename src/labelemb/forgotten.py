"""A warning for the commonest fault with losses that own parameters: the optimiser was never given them."""

import warnings

import torch
from torch import Tensor, nn

from labelemb.terms import is_traced

_NUM_CALLS = 100
_SAMPLE_SIZE = 1024  # numbers of a parameter that are compared


class ForgottenParameters:
    """Watches a criterion: where in 100 training calls the network moved and the criterion did not, warns once.

    Values are compared, not version counters: fused optimisers change parameters without counting. Gradient
    accumulation leaves the network still as well, so it is never mistaken for a forgotten criterion.
    """

    def __init__(self) -> None:
        self._num_calls = 0
        self._is_settled = False
        self._before: tuple[Tensor, Tensor] | None = None

    def check(self, criterion: nn.Module, logits: Tensor) -> None:
        """Count one call; a call in a hundred compares some numbers, which waits for the device."""
        if self._is_settled or is_traced() or logits.is_meta or not (torch.is_grad_enabled() and criterion.training):
            return
        if self._num_calls % _NUM_CALLS == 0:
            self._compare(criterion, logits)
        self._num_calls += 1

    def _compare(self, criterion: nn.Module, logits: Tensor) -> None:
        own = [parameter for parameter in criterion.parameters() if parameter.requires_grad]
        of_network = _parameter_of_network(logits)
        if not own or of_network is None:
            return
        now = _sample(min(own, key=Tensor.numel)), _sample(of_network)
        before, self._before = self._before or now, now
        criterion_moved, network_moved = (not torch.equal(a, b) for a, b in zip(before, now, strict=True))
        self._is_settled = criterion_moved or network_moved
        if network_moved and not criterion_moved:
            warnings.warn(
                f"after {_NUM_CALLS} training calls the network has changed but no parameter of "
                f"{type(criterion).__name__} has: give them to the optimiser, e.g. "
                '{"params": criterion.parameters(), "weight_decay": 0.0}',
                stacklevel=7,  # the caller of criterion(...)
            )


def _sample(parameter: Tensor) -> Tensor:
    return parameter.detach().flatten()[:_SAMPLE_SIZE].cpu().clone()


def _parameter_of_network(logits: Tensor) -> Tensor | None:
    """The first parameter found behind `logits`; None where there is none."""
    if logits.is_leaf:
        return logits
    seen = set()
    stack = [logits.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable: Tensor | None = getattr(node, "variable", None)
        if variable is not None:
            return variable
        stack.extend(next_node for next_node, _ in reversed(node.next_functions))
    return None
