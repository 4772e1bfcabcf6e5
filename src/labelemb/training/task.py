"""What the training loop asks of a task: batches, a module that holds network and criterion, an evaluation."""

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.terms import Terms


class StepOutput(NamedTuple):
    """What a task's module returns for one batch: `terms.total` is differentiated, the rest is recorded."""

    terms: Terms
    num_items: int
    num_errors: Tensor | None  # 0-d on the device, or None where errors are not counted


AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module, covariant=True)


class TrainedModule(nn.Module, Generic[AnyNetwork]):
    """Network and criterion together, so that whatever wraps or compiles the module sees both.

    A task's own has a `forward` that takes one of the task's batches and returns a StepOutput.
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

    def evaluate_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluate after an epoch (counted from 1); the columns of its row in metrics.jsonl."""

    def finish(self) -> None:
        """Write what the run leaves behind, besides metrics and checkpoints. May be cut short and called anew."""
