"""How a fused pass of the decoupled loss reads rows over the other labels, and what it leaves to them.

A pass calls, chunk by chunk, `begin`; block by block `soft_labels`, then `take` with what the items predict; `end`.
Axes: U distinct labels of a chunk, B items of a block, C classes, P of the U that have a hit.
"""

from typing import Protocol

import torch
from torch import Tensor

from labelemb.losses.counted_table import CountedTable
from labelemb.losses.hits import Hits
from labelemb.losses.large.blocks import blocks
from labelemb.losses.large.label_plan import Chunk, LabelPlan
from labelemb.losses.large.matches import Matches, match_gradient, match_value
from labelemb.losses.large.soft_labels import DenseSoftLabels, SoftLabels, SparseSoftLabels
from labelemb.losses.large.table_rows import LowRankRows
from labelemb.losses.neighbor_table import NeighborTable
from labelemb.losses.newcomers import Found


class Predictions:
    """What a block's sorted items predict.

    Args:
        items: of the plan.
        exponentials: (B, C) exp(z - top) over the other labels, 0 on the label.
        mass: (B, 1) their sums.
        hits: (B, 1) bool, of items that count.
        weight: (B, 1) the items' factors.
    """

    def __init__(self, items: slice, exponentials: Tensor, mass: Tensor, hits: Tensor, weight: Tensor) -> None:
        self.items, self.exponentials, self.mass, self.hits, self.weight = items, exponentials, mass, hits, weight
        # elsewhere asking would wait for the device
        self.any_hit = hits.device.type != "cpu" or bool(hits.any())


class Rows(Protocol):
    """One of the kinds below."""

    match: Tensor  # 0-d, the match term so far

    def begin(self, chunk: Chunk) -> None: ...

    def soft_labels(self, items: slice) -> SoftLabels: ...

    def take(self, predictions: Predictions) -> None: ...

    def end(self) -> None: ...


class CountedRows:
    """Dense rows (C, C); counts: whether their hits are."""

    def __init__(self, table: CountedTable, plan: LabelPlan, buffers: "Buffers", *, counts: bool) -> None:
        self._table, self._plan, self._buffers, self._counts = table, plan, buffers, counts
        self.match = buffers.scratch.new_zeros(())

    def begin(self, chunk: Chunk) -> None:
        """Begin the sums of a chunk."""
        if self._counts:
            self._labels = self._plan.labels[chunk.first_label : chunk.last_label]
            self._matches = Matches(self._plan, chunk, self._buffers.labels)

    def soft_labels(self, items: slice) -> SoftLabels:
        """The rows of the sorted items."""
        return DenseSoftLabels(
            _gathered(self._table.shares, self._plan.labels[self._plan.inverse[items]], self._buffers)
        )

    def take(self, predictions: Predictions) -> None:
        """Add the hits to the sums of their labels."""
        if self._counts and predictions.any_hit:
            hits = predictions.hits.to(predictions.mass.dtype)
            self._matches.add_weight(predictions.items, hits)
            self._matches.add_predictions(predictions.items, predictions.exponentials, hits)

    def end(self) -> None:
        """Hand the table the mean of each label's hits."""
        if self._counts and len(places := self._matches.places()):
            num_hits = self._matches.weight[places]
            means = self._matches.predictions[places] / num_hits.clamp_min(1)[:, None]
            self._table.add(Hits(self._labels[places], num_hits, means))


class NeighborRows:
    """Counted rows that keep their largest shares; counts: whether their hits are."""

    def __init__(self, table: NeighborTable, plan: LabelPlan, buffers: "Buffers", *, counts: bool) -> None:
        self._table, self._plan, self._counts = table, plan, counts
        self.match = buffers.scratch.new_zeros(())

    def begin(self, chunk: Chunk) -> None:
        """Make place for what the chunk's hits leave.

        Small tensors made between the large ones would stop the memory of these from being used again.
        """
        num_items = chunk.stop - chunk.start if self._counts else 0
        self._found, self._num_hits = self._table.no_hits(num_items), 0

    def soft_labels(self, items: slice) -> SoftLabels:
        """The rows of the sorted items."""
        indices, excess, rest = self._table.sparse_rows_of(self._plan.labels[self._plan.inverse[items]])
        return SparseSoftLabels(indices, excess.to(self.match.dtype), rest.to(self.match.dtype))

    def take(self, predictions: Predictions) -> None:
        """Keep what counts of the hits."""
        if not self._counts or not predictions.any_hit:
            return
        hits, labels = predictions.hits.squeeze(1), self._plan.labels[self._plan.inverse[predictions.items]]
        exponentials, mass = predictions.exponentials, predictions.mass
        if hits.device.type == "cpu" and not hits.all():  # elsewhere their number would wait for the device
            which = hits.nonzero().squeeze(1)
            exponentials, mass, labels, hits = exponentials[which], mass[which], labels[which], hits[which]
        found = self._table.found(Hits(labels, hits, exponentials))
        found = found._replace(shares=found.shares / mass, other_shares=found.other_shares / mass)
        places = slice(self._num_hits, self._num_hits + len(labels))
        for place, part in zip(self._found, found, strict=True):
            place[places] = part
        self._num_hits = places.stop

    def end(self) -> None:
        """Hand the table the hits."""
        self._table.add_found(Found(*(part[: self._num_hits] for part in self._found)))


class TrainedRows:
    """Rows of low rank; is_matched: whether the match term joins in, which trains them."""

    def __init__(self, table: LowRankRows, plan: LabelPlan, buffers: "Buffers", *, is_matched: bool) -> None:
        self._table, self._plan, self._buffers, self._is_matched = table, plan, buffers, is_matched
        self.match = buffers.scratch.new_zeros(())

    def begin(self, chunk: Chunk) -> None:
        """Read the logits of the chunk's rows, -inf on the label itself, and their log-sum-exp."""
        self._first_label = chunk.first_label
        self._labels = self._plan.labels[chunk.first_label : chunk.last_label]
        self._logits = self._table.into(self._labels, self._buffers.rows)  # (U, C)
        self._logits.scatter_(1, self._labels[:, None], -torch.inf)
        dtype = self._buffers.scratch.dtype
        parts = [
            self._logits[block].to(dtype).logsumexp(dim=1, keepdim=True) for block in self._blocks(len(self._logits))
        ]
        self._log_mass = torch.cat(parts)  # (U, 1)
        if self._is_matched:
            self._matches = Matches(self._plan, chunk, self._buffers.labels)

    def soft_labels(self, items: slice) -> SoftLabels:
        """The rows of the sorted items."""
        places = self._plan.inverse[items] - self._first_label
        return DenseSoftLabels(self._log_rows(places).exp_())

    def take(self, predictions: Predictions) -> None:
        """Add the hits, with their factors, to the sums of their labels."""
        if self._is_matched and predictions.any_hit:
            matched = predictions.weight * predictions.hits
            self._matches.add_weight(predictions.items, matched)
            self._matches.add_predictions(predictions.items, predictions.exponentials, matched)

    def end(self) -> None:
        """The match term of P labels, and the gradient of their rows."""
        if not self._is_matched or not len(matched := self._matches.places()):
            return
        labels = self._labels[matched]
        gradient = self._buffers.rows[: len(labels)]  # (P, C): a block's stands over rows that have been read by then
        for block in self._blocks(len(labels)):
            log_rows = self._log_rows(matched[block]).scatter_(1, labels[block, None], 0)  # not -inf: 0 times it is 0
            predictions = self._matches.predictions[matched[block]]  # (B, C), 0 on the label
            self.match += match_value(log_rows, predictions)
            if self._table.is_trained:
                found = match_gradient(log_rows, predictions, self._matches.weight[matched[block], None])
                gradient[block] = found.scatter_(1, labels[block, None], 0)
        if self._table.is_trained:
            self._table.add_gradient(labels, gradient)

    def _log_rows(self, places: Tensor) -> Tensor:
        """log r of places among the chunk's labels: (B, C)."""
        return _gathered(self._logits, places, self._buffers).sub_(self._log_mass[places])

    def _blocks(self, num_rows: int) -> list[slice]:
        return list(blocks(num_rows, len(self._buffers.scratch)))


class Buffers:
    """What a pass keeps between steps; each (..., C).

    Args:
        labels: (U, C) sums of predictions by label.
        rows: (U, C) logits of rows, then their gradients.
        scratch: (B, C) rows of a block of items.
    """

    def __init__(self, labels: Tensor, rows: Tensor, scratch: Tensor) -> None:
        self.labels, self.rows, self.scratch = labels, rows, scratch


def _gathered(rows: Tensor, index: Tensor, buffers: Buffers) -> Tensor:
    """Rows (B, C) in the scratch's type, a copy."""
    if rows.dtype != buffers.scratch.dtype:
        return rows.index_select(0, index).to(buffers.scratch.dtype)
    return torch.index_select(rows, 0, index, out=buffers.scratch[: len(index)])
