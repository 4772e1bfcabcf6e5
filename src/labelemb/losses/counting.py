"""What tables that are counted share: hits wait for the end of a step, the rate of a row, the momentum."""

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence, Sized
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from labelemb.losses.others_table import OthersTable
from labelemb.losses.wide_buffers import WideBuffers


class CountingTable(WideBuffers, OthersTable):
    """Rows that move towards the mean prediction of each step's hits, by a rate that falls with the hits so far.

    Args:
        num_classes: C.
        momentum: in [0, 1).
        label_names: C names, as for LabelTable.
        frozen: count nothing.

    Raises:
        ValueError: a size or the momentum is out of range.
    """

    counts: Tensor
    _waiting: Sized  # hits of the step that is under way

    def __init__(
        self, num_classes: int, *, momentum: float, label_names: Sequence[str] | None = None, frozen: bool = False
    ) -> None:
        super().__init__(num_classes, label_names)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in 0 to 1, 1 excluded, got {momentum}")
        self.momentum = momentum
        self.frozen = frozen
        self.register_buffer("counts", torch.zeros(num_classes))

    @property
    def waits(self) -> bool:
        """Whether there are hits that no step has applied yet."""
        return len(self._waiting) > 0

    @property
    def gathers(self) -> bool:
        """Whether `add` does anything."""
        return not self.frozen

    def save(self, path: str | Path) -> None:
        """Write the rows as a safetensors file with label names and a checksum, atomically."""
        self._settle()
        super().save(path)

    @abstractmethod
    def end_step(self) -> None:
        """Apply what was gathered, over all processes, as one step."""

    def _rates(self, counts: Tensor, labels: Tensor | None = None) -> Tensor:
        """a of labels (K,), or of all, for their numbers of hits in this step, which are added to those so far."""
        if labels is None:
            total = self.counts.add_(counts)
        else:
            self.counts[labels] += counts
            total = self.counts[labels]
        fading = (counts * self._log_momentum).expm1_().neg_()  # 1 - momentum^n
        return torch.maximum(fading, counts / total.clamp_min(torch.finfo(counts.dtype).tiny))

    @property
    def _log_momentum(self) -> float:
        return math.log(max(self.momentum, sys.float_info.min))

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        self._settle()
        write: Callable[..., None] = super()._save_to_state_dict
        write(destination, prefix, keep_vars)

    def _settle(self) -> None:
        """Apply what waits before the rows are read; over several processes one alone may read, and must not wait."""
        if not self._counts_together:
            self.end_step()

    @property
    def _counts_together(self) -> bool:
        """Whether several processes count together: those of `_group`."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self._group) > 1

    @property
    def _group(self) -> "dist.ProcessGroup | None":
        """The processes that count together; None for all there are."""
        return None

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"num_classes={self.num_classes}, momentum={self.momentum}, frozen={self.frozen}"
