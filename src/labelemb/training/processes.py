"""The processes of one run: who is first, what they agree on, what is gathered. One alone is the usual case."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from labelemb.errors import InputError
from labelemb.training.launch import launched_together, num_restarts

_PATIENCE = timedelta(hours=12)  # how long the others wait where one alone works, as at a search with a beam
Value = TypeVar("Value")


class Processes(NamedTuple):
    """This process among those of its run."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, num_items: int) -> slice:
        """Which of so many items are this process's: each is somebody's, and nobody else's."""
        return slice(self.rank * num_items // self.size, (self.rank + 1) * num_items // self.size)

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes, which must all ask."""
        if self.size == 1:
            return list(values)
        asked = torch.tensor(values)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return [int(value) for value in asked]

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes in the order of their ranks; all must ask."""
        if self.size == 1:
            return [value]
        values: list[Value | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def first_before_others(self, make: Callable[[], Value]) -> Value:
        """What `make` gives, called by the first process before the others call it; all must ask."""
        if self.size == 1:
            return make()
        mine = make() if self.is_first else None
        dist.barrier()
        return make() if mine is None else mine

    def first_decides(self, decide: Callable[[], Value]) -> Value:
        """What the first process's `decide` gives, or the mistake of the user's that it finds; all must ask."""
        decision: Value | None = None
        mistake: InputError | None = None
        try:
            decision = decide() if self.is_first else None
        except InputError as error:
            mistake = error
        decision, mistake = self.from_first((decision, mistake))
        if mistake is not None:
            raise mistake
        return decision  # type: ignore[return-value]

    def from_first(self, value: Value) -> Value:
        """The first process's value; all must ask."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


ALONE = Processes()


def together(module: nn.Module) -> DistributedDataParallel:
    """The module as all processes train it: their gradients are averaged.

    Counted rows are the same on all, sums of an epoch each process's own, and batch norm's statistics are made equal
    once an epoch: no buffer is sent at every step.
    """
    name = "forward_sync_buffers"  # from torch 2.13 on
    has_name = name in signature(DistributedDataParallel).parameters
    sent: dict[str, Any] = {name if has_name else "broadcast_buffers": False}
    return DistributedDataParallel(module, **sent)


def processes() -> Processes:
    """This process among those of its run, after `joined`."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the others that torchrun started, where it did: gloo for what lies on the CPU, nccl for GPUs."""
    if not launched_together():
        yield ALONE
        return
    store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    # A restart would otherwise find where the processes before it had listened.
    own = dist.PrefixStore(f"attempt {num_restarts()}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield processes()
    finally:
        dist.destroy_process_group()
