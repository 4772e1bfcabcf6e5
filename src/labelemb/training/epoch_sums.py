"""Means of the training terms over an epoch, summed on the device step by step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labelemb.losses.terms import LossTerms
from labelemb.training.processes import Processes, processes
from labelemb.training.task import StepOutput


class EpochSums:
    """Sums over the items of an epoch so far: how many, their errors, and each term that the criterion has.

    Of several processes each has the number of all items, and its own part of the rest.

    Adding to them does not wait for the device; which terms there are is known from the first step on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._names: tuple[str, ...] = ()
        self._values: Tensor | None = None  # (2 + terms,): items, errors, terms

    @torch.no_grad()
    def add(self, output: StepOutput) -> None:
        """Add one step's items."""
        means = torch.stack(tuple(output.terms))
        if self._values is None:
            dtype = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
            self._names = output.terms._fields
            self._values = torch.zeros(2 + len(self._names), dtype=dtype, device=self.device)
        self._values[2:].add_(means, alpha=output.num_items)
        self._values[0] += output.num_items
        # Where errors are not counted, NaN says so: the row has null, and a resumed run the same.
        self._values[1] += math.nan if output.num_errors is None else output.num_errors

    def means(self) -> dict[str, float]:
        """The means by their columns' names: the loss, its terms, the error. Waits for the device."""
        assert self._values is not None, "an epoch has at least one step"
        items, errors, *terms = self._over_processes().tolist()
        values = dict(zip(self._names, terms, strict=True))
        columns = {"loss": values.pop("total"), **values, "error": errors}
        return {f"train_{name}": value / items for name, value in columns.items()}

    def _over_processes(self) -> Tensor:
        assert self._values is not None
        values = self._values.clone()
        if processes().size > 1:
            dist.all_reduce(values[1:])
        return values

    def clear(self) -> None:
        """Begin another epoch."""
        self._values = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        return {"sums": self._values, "terms": list(self._names)}

    def restore(self, states: Sequence[Mapping[str, Any]], together: Processes) -> None:
        """Go on from what a checkpoint kept of each process; were they more or fewer, the first takes the sums of all.

        A checkpoint of a version with the five terms alone does not name them.
        """
        values = [state["sums"] for state in states]
        self._names = tuple(states[0]["terms"] or LossTerms._fields)
        if values[0] is None:
            self._values = None
            return
        if any(each.shape != (2 + len(self._names),) for each in values):
            raise ValueError(f"sums of {len(self._names)} terms in a tensor {tuple(values[0].shape)}")
        own = values[together.rank if len(values) == together.size else 0].clone()
        if len(values) != together.size:
            own[1:] = torch.stack(values)[:, 1:].sum(0) if together.is_first else 0
        self._values = own.to(self.device)
