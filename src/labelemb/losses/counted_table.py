"""Rows that are counted and not trained: what a network thinks of beside the label when it is right."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from labelemb.losses.counting import CountingTable
from labelemb.losses.hits import Hits, HitSums
from labelemb.losses.soft_rows import MAX_DENSE_CLASSES, filled, read_rows


class CountedTable(CountingTable):
    """For each label the mean prediction over the other labels of its correctly classified items.

    With n hits of label y in a step, their mean m, and N_y hits so far, these counted,

        r_y <- r_y + a*(m - r_y),   a = max(1 - momentum^n, n/N_y)

    so the first hits replace the uniform row, all count alike until there are some 1/(1 - momentum), and then old ones
    fade. The buffers `shares` (C, C), with a diagonal of 0, and `counts` (C,) stay in float32 in a module of half
    precision; there are no parameters, so no optimiser can forget them and no weight decay spoils them.

    A step's hits are gathered by `add` and applied together by `end_step`, so that it makes no difference how a batch
    is split: over calls, or over the processes of a group, whose hits are summed (all of them must call `end_step`
    then). In a single process, reading or saving the rows applies what waits.

    Args:
        num_classes: C, at most 20,000.
        momentum: in [0, 1).
        label_names: C names, as for LabelTable.
        frozen: count nothing.

    Raises:
        ValueError: a size or the momentum is out of range.

    Source: docs/method.md, section 11.

    Example:
        >>> table = CountedTable(3, label_names=["cat", "dog", "ship"])
        >>> table.add(Hits(torch.tensor([0]), torch.tensor([True]), torch.tensor([[0.0, 0.9, 0.1]])))
        >>> table.nearest(["cat"], k=1)[0][0][0]
        'dog'
    """

    shares: Tensor
    wide_buffers: ClassVar[tuple[str, ...]] = ("shares", "counts")

    def __init__(
        self,
        num_classes: int,
        *,
        momentum: float = 0.99,
        label_names: Sequence[str] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(num_classes, momentum=momentum, label_names=label_names, frozen=frozen)
        if num_classes > MAX_DENSE_CLASSES:
            raise ValueError(
                f"counted rows of {num_classes:,} x {num_classes:,} labels take {num_classes**2 * 4 / 1e9:.1f} GB; "
                f"above {MAX_DENSE_CLASSES:,} labels keep the largest shares alone, e.g. neighbors=32, or train rows "
                "of low rank, e.g. rank=256"
            )
        uniform = torch.full((num_classes, num_classes), 1 / max(num_classes - 1, 1)).fill_diagonal_(0)
        self.register_buffer("shares", uniform)
        self._waiting: list[Hits | HitSums] = []

    def rows_of(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows r of indices (N,), (N, C), or for distributions all of them, (C, C)."""
        shares = self.shares if target.is_floating_point() else self.shares.index_select(0, target)
        return shares.to(dtype)

    def add(self, hits: Hits | HitSums) -> None:
        """Gather hits of the step that is under way."""
        if not self.frozen:
            self._waiting.append(hits)

    @torch.no_grad()
    def end_step(self) -> None:
        """Apply what was gathered, over all processes, as one step."""
        waiting, self._waiting = self._waiting, []
        summed = self._counts_together
        if self.frozen or not (waiting or summed):
            return
        by_index = [hits for hits in waiting if isinstance(hits, Hits)]
        if len(by_index) == len(waiting) and not summed:
            one_call = len(by_index) == 1
            self._apply_rows(by_index[0] if one_call else Hits(*map(torch.cat, zip(*by_index, strict=True))))
        else:
            self._apply_sums(waiting, summed)

    def _apply_rows(self, hits: Hits) -> None:
        """The step of the rows that were hit alone: a (C, C) table is not walked through for a batch of a few."""
        labels, weights = hits.labels, hits.weights.to(self.counts.dtype)
        counts = torch.zeros_like(self.counts).index_add_(0, labels, weights)  # (C,) n
        steps = weights * (self._rates(counts) / counts.clamp_min(1)).index_select(0, labels)  # (N,) a/n for each hit
        moves = hits.others.to(self.shares.dtype) - self.shares.index_select(0, labels)  # (N, C); before the rows move
        self.shares.index_add_(0, labels, moves * steps[:, None])

    def _apply_sums(self, waiting: list[Hits | HitSums], summed: bool) -> None:
        sums, counts = torch.zeros_like(self.shares), torch.zeros_like(self.counts)
        for hits in waiting:
            if isinstance(hits, HitSums):
                sums += hits.sums.to(sums.dtype)
                counts += hits.counts.to(counts.dtype)
            else:
                weights = hits.weights.to(counts.dtype)
                sums.index_add_(0, hits.labels, hits.others.to(sums.dtype) * weights[:, None])
                counts.index_add_(0, hits.labels, weights)
        if summed:
            dist.all_reduce(sums, group=self._group)
            dist.all_reduce(counts, group=self._group)
        rates = self._rates(counts)[:, None]
        means = sums / counts.clamp_min(torch.finfo(counts.dtype).tiny)[:, None]
        self.shares.add_(rates * torch.where(counts[:, None] > 0, means - self.shares, 0))

    @torch.no_grad()
    def soft_labels(self, labels: Tensor | None = None) -> Tensor:
        """The rows of `labels` (K,) int64, or all: (K, C), each sums to 1 over the other labels and is 0 on its own."""
        self._settle()
        return self.shares.clone() if labels is None else self.shares[labels]

    @classmethod
    def from_soft_labels(cls, soft_labels: Tensor, label_names: Sequence[str] | None = None) -> "CountedTable":
        """A table whose rows are those of `soft_labels` (C, C) without the label itself, as if each was hit once."""
        table = cls(len(soft_labels), label_names=label_names)
        others = soft_labels.detach().float().clone().fill_diagonal_(0)
        table.shares.copy_(others / others.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
        table.counts.fill_(1)
        return table

    @classmethod
    def load(cls, path: str | Path, label_names: Sequence[str] | None = None) -> "CountedTable":
        """Read a table that `save` wrote. No code of the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of another kind of table, or of other labels.
        """
        tensors, names = read_rows(path)
        if "shares" not in tensors:
            raise ValueError(f"{path} holds no counted rows: {sorted(tensors)}; LabelTable.load reads learned ones")
        table = cls(len(tensors["shares"]), label_names=names)
        filled(table, tensors, path, label_names)
        return table
