"""A warning for criteria that drift apart: the network was given to DDP, the criterion beside it was not."""

import itertools
import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labelemb.losses.calls import (
    is_due,
    parameter_behind,
    sample,
    trainable_parameters,
    warn_caller,
)

_SAMPLE_SIZE = 64  # numbers of a parameter that are compared
_numbers = itertools.count()  # ranks make their criteria in the same order, so a number means the same on all


class RankAgreement:
    """Watches a criterion on several ranks: where they agree on the network and not on the criterion, warns once.

    Each rank leaves a sample of both in the process group's store and reads what its neighbour left there, after 5 and
    10 training calls and every hundredth. A store, and no collective, because nobody waits for anybody: with pipelines,
    uneven batches or an early end some ranks make a call that others never make, and a collective would hang there.

    That the networks agree says that they train as one and stand at the same step; ranks with networks of their own,
    or a step apart, are none of its business. It warns and does not raise: an error on one rank leaves the others
    waiting in their next collective.
    """

    def __init__(self) -> None:
        self._num_calls = 0
        self._is_settled = False
        self._number: int | None = None
        self._said: dict[int, dict[str, Any]] = {}  # what this rank left after so many calls: the last two

    def __reduce__(self) -> tuple[type["RankAgreement"], tuple[()]]:
        return RankAgreement, ()  # a copy is another criterion, with a number of its own

    def check(self, criterion: nn.Module, logits: Tensor) -> None:
        """Count one training call; where a look is due, take it."""
        if self._is_settled:
            return
        if is_due(self._num_calls) and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._look(criterion, logits)
        self._num_calls += 1

    def _look(self, criterion: nn.Module, logits: Tensor) -> None:
        parameters = trainable_parameters(criterion).values()
        network_parameter = parameter_behind(logits)
        if not parameters or network_parameter is None:
            return
        ours = {
            "calls": self._num_calls,
            "network": sample(network_parameter, _SAMPLE_SIZE).tolist(),
            "criterion": [value for parameter in parameters for value in sample(parameter, _SAMPLE_SIZE).tolist()],
        }
        self._said = dict([*self._said.items(), (self._num_calls, ours)][-2:])
        try:
            theirs = self._exchange(ours)
        except (AttributeError, RuntimeError, ValueError):  # a group without a store, or one whose host has ended
            self._is_settled = True
            return
        if theirs is not None and _drifted(self._said.get(theirs["calls"]), theirs):
            self._is_settled = True
            self._warn(criterion)

    def _exchange(self, ours: dict[str, Any]) -> dict[str, Any] | None:
        """Leave our values, under one key that is written again each time, and read the neighbour's if it has any."""
        if self._number is None:
            self._number = next(_numbers)
        group = dist.group.WORLD
        assert group is not None
        store = group.get_group_store()
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        store.set(f"labelemb/{self._number}/{rank}", json.dumps(ours))
        key = f"labelemb/{self._number}/{(rank - 1) % num_ranks}"
        if not store.check([key]):  # `get` would wait for it
            return None
        theirs: dict[str, Any] = json.loads(store.get(key))
        return theirs

    def _warn(self, criterion: nn.Module) -> None:
        warn_caller(
            f"after {self._num_calls} training calls the ranks of this process group have the same network but "
            f"different parameters of {type(criterion).__name__}: nobody averages its gradients. Call network and "
            "criterion in the forward of one module and give that to DistributedDataParallel, or wrap the criterion "
            "too: DistributedDataParallel(criterion)"
        )


def _drifted(ours: dict[str, Any] | None, theirs: dict[str, Any]) -> bool:
    """Whether two ranks, after the same number of calls, agree on the network and not on the criterion."""
    if ours is None or ours["network"] != theirs["network"]:
        return False
    one, other = torch.tensor(ours["criterion"]), torch.tensor(theirs["criterion"])
    # Ranks that compute the same gradient each for themselves may round it differently.
    return one.shape == other.shape and not one.allclose(other, rtol=1e-4, atol=1e-6, equal_nan=True)
