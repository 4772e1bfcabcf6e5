"""A warning for the commonest fault with losses that own parameters: the optimiser was never given them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from labelemb.losses.calls import (
    is_due,
    parameter_behind,
    sample,
    trainable_parameters,
    warn_caller,
)

_SAMPLE_SIZE = 1024  # numbers of a parameter that are compared


class _Mark(NamedTuple):
    """What a parameter was at one look, while a gradient waited for it."""

    positions: Tensor  # (2,) of the largest and the smallest number of the gradient
    values: Tensor  # the parameter there, and an even sample of it


class ForgottenParameters:
    """Watches a criterion: warns once of parameters that keep their gradients and values while the network moves.

    A parameter counts as forgotten where a gradient lay in its `.grad` at one look and at the next, the network moved
    in between, and it did not. So nothing is said of a table whose labels were not matched, nor while gradients
    accumulate: an update that moved the network would have used the gradient. Looks come after 5 and 10 calls, so
    that short runs are warned too, and after every hundredth. Where every optimiser clears its gradients before the
    next call, none is left to look at, and nothing is read.

    Values are compared, not version counters: fused optimisers change parameters without counting. They are compared
    where the gradient is extreme, which every optimiser moves, so the largest table needs no copy.

    Not seen: parameters that are in no optimiser but whose gradients are cleared by `model.zero_grad()`.
    """

    def __init__(self) -> None:
        self._num_calls = 0
        self._is_settled = False
        self._network: Tensor | None = None
        self._marks: dict[str, _Mark] = {}
        self._moved: set[str] = set()

    def check(self, criterion: nn.Module, logits: Tensor) -> None:
        """Count one training call; where a look is due, take it."""
        if self._is_settled:
            return
        if is_due(self._num_calls):
            self._look(criterion, logits)
        self._num_calls += 1

    def _look(self, criterion: nn.Module, logits: Tensor) -> None:
        parameters = trainable_parameters(criterion)
        waiting = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.grad is not None and name not in self._moved
        }
        network_parameter = parameter_behind(logits) if waiting else None
        if network_parameter is None:
            self._network, self._marks = None, {}
            return
        before = self._network
        self._network = sample(network_parameter, _SAMPLE_SIZE)
        network_moved = before is not None and not torch.equal(before, self._network)
        still = self._still(waiting) if network_moved else []
        if still:
            self._warn(criterion, still)
        if network_moved or not self._marks:
            marks = {name: _mark(parameter) for name, parameter in waiting.items() if name not in self._moved}
            self._marks = {name: mark for name, mark in marks.items() if mark is not None}
        self._is_settled = bool(still) or not parameters.keys() - self._moved

    def _still(self, waiting: dict[str, nn.Parameter]) -> list[str]:
        """The names of marked parameters that still have their gradient and their value; notes those that moved."""
        still = []
        for name in self._marks.keys() & waiting.keys():
            positions, values = self._marks[name]
            gradient = waiting[name].grad
            if not torch.equal(_values(waiting[name], positions), values):
                self._moved.add(name)
            elif gradient is not None and gradient.flatten()[positions].any():
                still.append(name)
        if self._moved:  # rounding, too, keeps single parameters of a narrow type where they are
            still = [name for name in still if waiting[name].itemsize >= torch.float32.itemsize]
        return [name for name in waiting if name in still]

    def _warn(self, criterion: nn.Module, names: list[str]) -> None:
        warn_caller(
            f"after {self._num_calls} training calls the network has changed but {', '.join(names)} of "
            f"{type(criterion).__name__} kept both value and gradient: give the criterion's parameters to the "
            'optimiser, e.g. {"params": criterion.parameters(), "weight_decay": 0.0}; where a trainer makes the '
            "optimiser itself, make the criterion a submodule of the model, e.g. model.criterion = criterion"
        )


def _mark(parameter: nn.Parameter) -> _Mark | None:
    """None where the gradient is zero."""
    assert parameter.grad is not None
    gradient = parameter.grad.flatten()
    positions = torch.stack([gradient.argmax(), gradient.argmin()])  # no |gradient|: it would take memory
    return _Mark(positions, _values(parameter, positions)) if gradient[positions].any() else None


def _values(parameter: nn.Parameter, positions: Tensor) -> Tensor:
    return torch.cat([parameter.detach().flatten()[positions].cpu(), sample(parameter, _SAMPLE_SIZE)])
