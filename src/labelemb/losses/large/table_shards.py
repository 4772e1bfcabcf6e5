"""The part of a label table that one rank holds, of each kind; labelemb.losses.large.sharded makes them.

A pass reads them as it reads whole tables. What would want every class is refused.

Axes: N items, C classes of all ranks, L of them on this one; of sparse rows K neighbours.
"""

from pathlib import Path
from typing import Any, Never

import torch
import torch.distributed as dist
from torch import Tensor

from labelemb.losses.counted_table import CountedTable
from labelemb.losses.counting import CountingTable
from labelemb.losses.hits import Hits, HitSums
from labelemb.losses.large.class_shard import ClassShard
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.neighbor_table import NeighborTable, SparseRows
from labelemb.losses.newcomers import Found
from labelemb.losses.soft_rows import SoftRows
from labelemb.losses.table import LabelTable


class TableShard(SoftRows):
    """A part of a table: no row of it is whole on one rank."""

    classes: ClassShard
    replicas: dist.ProcessGroup | None

    def soft_labels(self, labels: Tensor | None = None) -> Tensor:
        """Refused."""
        return self._refuse()

    def row_logits(self, labels: Tensor | None = None) -> Tensor:
        """Refused."""
        return self._refuse()

    def nearest(self, labels: Any = None, k: int = 5) -> list[list[tuple[str | int, float]]]:
        """Refused."""
        return self._refuse()

    def save(self, path: str | Path) -> None:
        """Refused."""
        self._refuse()

    def copy(self, *, frozen: bool = False) -> Never:
        """Refused."""
        self._refuse()

    def _refuse(self) -> Never:
        raise ValueError(
            "the rows of this table are split over ranks: unshard(criterion, head), called by all of them, gives the "
            "first rank the whole table"
        )


class LabelTableShard(TableShard, LabelTable):
    """Dense: `weight` (C, L). Low rank: `rows.weight` (L, R), `decoder.weight` (L, R), `decoder.bias` (L,)."""


class LowRankTableShard(TableShard, LowRankTable):
    """`codes` (L, R), `decoder_weight` (L, R) and `decoder_bias` (L,)."""


class CountingShard(TableShard, CountingTable):
    """Rows that are counted: all ranks of the group see the same hits, those of `replicas` others of their own."""

    @property
    def _counts_together(self) -> bool:
        return self.replicas is not None and dist.get_world_size(self.replicas) > 1

    @property
    def _group(self) -> dist.ProcessGroup | None:
        return self.replicas


class CountedTableShard(CountingShard, CountedTable):
    """`shares` (C, L), and `counts` (C,) that are the same on all ranks. Hits come with `others` (N, L)."""


class NeighborTableShard(CountingShard, NeighborTable):
    """`neighbors` (L, K), `candidates` (L, 2*K), their shares and `counts` (L,): whole rows, of the labels here."""

    def sparse_rows_of(self, labels: Tensor) -> SparseRows:
        """The rows of labels (N,) int64 of any rank."""
        indices, shares = self.classes.rows(self.neighbors, labels), self.classes.rows(self.neighbor_shares, labels)
        return self._sparse_rows(labels, indices.long(), shares)

    def found(self, hits: Hits) -> Found:
        """What a step needs of hits whose `others` are (N, L), the same on all ranks."""
        kept = self.classes.rows(torch.cat([self.neighbors, self.candidates], dim=1), hits.labels).long()  # (N, 3*K)
        places, is_here = self.classes.places(kept)
        shares = self.classes.added_up(hits.others.gather(1, places) * is_here)
        dtype = self.counts.dtype
        indices, values = self._largest(hits.others)
        return Found(hits.labels, hits.weights.to(dtype), shares.to(dtype), indices, values.to(dtype))

    def add(self, hits: Hits | HitSums) -> None:
        """Refused."""
        self._refuse()

    def _largest(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """The labels of the largest of all ranks' `others` (N, L), and these, both (N, F)."""
        values, indices = others.topk(min(self.num_found, others.shape[1]), dim=1)
        missing = self.num_found - values.shape[1]
        values = torch.nn.functional.pad(values, (0, missing))
        indices = torch.nn.functional.pad(indices + self.classes.first, (0, missing))
        values, best = self.classes.side_by_side(values).topk(self.num_found, dim=1)
        return self.classes.side_by_side(indices).gather(1, best), values

    def _apply_found(self, found: Found) -> None:
        places, is_here = self.classes.places(found.labels)
        if is_here.device.type == "cpu":  # elsewhere their number would wait for the device: those of others weigh 0
            which = is_here.nonzero().squeeze(1)
            self._move(places[which], Found(*(part[which] for part in found)))
        else:
            self._move(places, found._replace(weights=found.weights * is_here))


SHARDS: dict[type[SoftRows], type[TableShard]] = {
    LabelTable: LabelTableShard,
    LowRankTable: LowRankTableShard,
    CountedTable: CountedTableShard,
    NeighborTable: NeighborTableShard,
}
# Along which axis a tensor is split, where it is not the first; None for one that all ranks have whole.
AXES: dict[type[SoftRows], dict[str, int | None]] = {
    LabelTable: {"weight": 1},
    LowRankTable: {},
    CountedTable: {"shares": 1, "counts": None},
    NeighborTable: {},
}
