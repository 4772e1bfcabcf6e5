"""What the training loop asks of a task: batches, a module that holds network and criterion, an evaluation."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.terms import Terms


class Division(NamedTuple):
    """A batch in parts of nearly equal size, for memory or for several processes.

    A part without items has one that is ignored: it is computed, as every process computes, and counts for nothing.
    """

    parts: list[tuple[Any, ...]]
    """Each what the task's module takes."""
    sizes: list[int]
    """How many items each has."""
    num_items: Tensor | int
    """The divisor of a mean over the whole batch, for the criterion's calls on its parts."""


class StepOutput(NamedTuple):
    """What a task's module returns for one batch: `terms.total` is differentiated, the rest is recorded."""

    terms: Terms
    num_items: int
    num_errors: Tensor | None  # 0-d on the device, or None where errors are not counted

    def without_errors(self) -> "StepOutput":
        """Of a part without items, whose ignored one is no error."""
        return self._replace(num_errors=None if self.num_errors is None else torch.zeros_like(self.num_errors))

    @classmethod
    def sum_of(cls, parts: Sequence["StepOutput"], num_items: int) -> "StepOutput":
        """Of parts of a batch of `num_items`, each of whose terms has the divisor of the whole."""
        first = parts[0].terms
        sums = [torch.stack(values).detach().sum(0) for values in zip(*(part.terms for part in parts), strict=True)]
        errors = [part.num_errors for part in parts if part.num_errors is not None]
        terms = first._replace(**dict(zip(first._fields, sums, strict=True)))
        return cls(terms, num_items, torch.stack(errors).sum() if errors else None)


AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module, covariant=True)


class TrainedModule(nn.Module, Generic[AnyNetwork]):
    """Network and criterion together, so that whatever wraps or compiles the module sees both.

    A task's own has a `forward` that takes one of the task's batches and returns a StepOutput,
    and with `num_items`, for a part of one, as a criterion takes it.
    """

    def __init__(self, network: AnyNetwork, criterion: SoftLabelLoss) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion


class Task(Protocol):
    """What the engine trains."""

    @property
    def num_batches(self) -> int:
        """Steps an epoch."""

    @property
    def varying_shapes(self) -> bool:
        """Whether batches differ in shape, beyond a short last one."""

    @property
    def module(self) -> TrainedModule[nn.Module]:
        """What is trained: module(*batch) returns StepOutput."""

    def begin(self) -> None:
        """Write what the run folder needs from its first step on; the run's lock is held.

        Called at every start, of a resumed run too.
        """

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Any, ...]]:
        """The batches of an epoch from number `first` on: a function of the seed and the epoch alone."""

    def divide(self, batch: tuple[Any, ...], num_parts: int) -> Division:
        """A batch in so many parts."""

    def evaluate_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluate after an epoch (counted from 1); the columns of its row in metrics.jsonl.

        Several processes all call it, and share the work.
        """

    def finish(self) -> None:
        """Write what the run leaves behind, besides metrics and checkpoints. May be cut short and called anew.

        Of several processes the first alone calls it.
        """
