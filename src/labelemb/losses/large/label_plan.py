"""The order in which a fused pass takes its items: sorted by label, so that a chunk meets each of its labels once."""

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """Sorted items start to stop, whose distinct labels are first_label to last_label (exclusive) of the plan."""

    start: int
    stop: int
    first_label: int
    last_label: int


class LabelPlan(NamedTuple):
    """M items that are not ignored, sorted by label, and their U distinct labels.

    order: (M,) int64, where the sorted items stand in the batch. inverse: (M,) int64 in [0, U), the place of each
    sorted item's label in `labels`. labels: (U,) int64, ascending. ends: U integers, the number of sorted items up to
    and including each label; they live on the host, where they decide shapes.
    """

    order: Tensor
    inverse: Tensor
    labels: Tensor
    ends: tuple[int, ...]

    def to(self, device: torch.device | str) -> "LabelPlan":
        """The plan with its tensors on a device; returns itself where they are already there."""
        if self.order.device == torch.device(device):
            return self
        order, inverse, labels = (part.to(device, non_blocking=True) for part in self[:3])
        return LabelPlan(order, inverse, labels, self.ends)

    def chunk(self, start: int, stop: int) -> Chunk:
        """The chunk of the sorted items start to stop (exclusive), at least one."""
        return Chunk(start, stop, bisect_right(self.ends, start), bisect_right(self.ends, stop - 1) + 1)

    def chunks(self, chunk_size: int) -> list[Chunk]:
        """All items in as few chunks as `chunk_size` allows, of nearly equal size."""
        num_items = len(self.order)
        num_chunks = -(-num_items // chunk_size)
        bounds = [index * num_items // num_chunks for index in range(num_chunks + 1)] if num_chunks else []
        return [self.chunk(start, stop) for start, stop in pairwise(bounds)]


def plan_labels(target: Tensor, ignore_index: int = -100) -> LabelPlan:
    """Sort the items of a batch by label.

    On the CPU this waits for nothing, so a loader can make the plan while the device runs the previous step, and hand
    it in as `plan=plan_labels(target).to(device)`. Where `target` lives on another device, this waits for it once.

    Args:
        target: (N,) integer labels.
        ignore_index: items with this target are left out.

    Returns:
        The plan, on the CPU.
    """
    target = target.detach().cpu().long()
    kept = (target != ignore_index).nonzero().squeeze(1)  # (M,)
    sorted_target, order = target[kept].sort(stable=True)
    labels, inverse, counts = torch.unique_consecutive(sorted_target, return_inverse=True, return_counts=True)
    return LabelPlan(kept[order], inverse, labels, tuple(counts.cumsum(0).tolist()))
