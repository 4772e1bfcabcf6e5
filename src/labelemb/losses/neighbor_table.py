"""Counted rows that keep their largest shares alone: for label sets whose (C, C) rows no memory holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from labelemb.losses.arguments import is_traced
from labelemb.losses.counting import CountingTable, is_distributed
from labelemb.losses.hits import Hits, HitSums
from labelemb.losses.items import is_distribution
from labelemb.losses.newcomers import Found, gathered, newcomers
from labelemb.losses.soft_rows import SoftRows, check_every_row, filled, read_rows, row_blocks

_CANDIDATES_PER_NEIGHBOR = 2
_NUM_FOUND = 8  # of each hit's own largest predictions, which may become candidates


class SparseRows(NamedTuple):
    """Rows (N, C) as the same share for every label, and an excess for some, that of the label itself below 0."""

    indices: Tensor  # (N, K + 1) int64
    excess: Tensor  # (N, K + 1)
    rest: Tensor  # (N, 1)


class NeighborTable(CountingTable):
    """For each label the K largest shares of its counted row, and an even rest for all others.

    The shares are those of CountedTable, counted by the same rule, for the labels that a row keeps: K `neighbors`,
    which make its soft label, and 2*K `candidates`, which are counted beside them and take a neighbour's place when
    their share is larger. What a step's hits predict beyond them is even at first, and becomes a candidate where its
    share, which starts from that of the rest, is larger than the smallest candidate's. With K = C - 1 rows are those of
    CountedTable.

    Buffers: `neighbors` (C, K) and `candidates` (C, 2*K), int32; `neighbor_shares`, `candidate_shares` and `counts`
    (C,), which stay in float32 in a module of half precision. No matrix product, no parameters. Steps, processes and
    reading are as for CountedTable.

    Args:
        num_classes: C.
        neighbors: K, at least 1; at most C - 1 are kept.
        momentum: in [0, 1).
        label_names: C names, as for LabelTable.
        frozen: count nothing.

    Raises:
        ValueError: a size or the momentum is out of range.

    Source: docs/method.md, section 11.

    Example:
        >>> table = NeighborTable(4, neighbors=1)
        >>> table.add(Hits(torch.tensor([0]), torch.tensor([True]), torch.tensor([[0.0, 0.8, 0.15, 0.05]])))
        >>> table.soft_labels(torch.tensor([0]))
        tensor([[0.0000, 0.8000, 0.1000, 0.1000]])
    """

    neighbors: Tensor
    neighbor_shares: Tensor
    candidates: Tensor
    candidate_shares: Tensor
    wide_buffers: ClassVar[tuple[str, ...]] = ("neighbor_shares", "candidate_shares", "counts")

    def __init__(
        self,
        num_classes: int,
        neighbors: int,
        *,
        momentum: float = 0.99,
        label_names: Sequence[str] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(num_classes, momentum=momentum, label_names=label_names, frozen=frozen)
        if neighbors < 1:
            raise ValueError(f"neighbors must be at least 1, got {neighbors}")
        self.num_neighbors = min(neighbors, num_classes - 1)
        num_kept = min((1 + _CANDIDATES_PER_NEIGHBOR) * neighbors, num_classes - 1)
        labels = torch.arange(num_classes, dtype=torch.int32)[:, None]
        for name, first, last in (("neighbor", 0, self.num_neighbors), ("candidate", self.num_neighbors, num_kept)):
            # Any labels will do at first, each once: all have the same share.
            kept = labels + torch.arange(first + 1, last + 1, dtype=torch.int32)  # the ones that follow
            self.register_buffer(f"{name}s", kept.remainder_(num_classes))  # (C, K), (C, 2*K)
            self.register_buffer(f"{name}_shares", torch.full(kept.shape, 1 / max(num_classes - 1, 1)))
        self._waiting: list[Found] = []

    @property
    def num_kept(self) -> int:
        """How many labels each row has a share of their own for: neighbours and candidates."""
        return self.neighbors.shape[1] + self.candidates.shape[1]

    @property
    def num_found(self) -> int:
        """How many of a hit's largest predictions may become candidates: none where rows keep every label."""
        return min(_NUM_FOUND, self.num_classes) if self.num_kept < self.num_classes - 1 else 0

    def rows_of(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows r of indices (N,), (N, C), or for distributions all of them, (C, C).

        Raises:
            ValueError: distributions, whose expectation needs every row, over too many labels for that.
        """
        if is_distribution(target):
            check_every_row(self.num_classes)
            target = torch.arange(self.num_classes, device=target.device)
        return self._dense(target).to(dtype)

    def sparse_rows_of(self, labels: Tensor) -> SparseRows:
        """The rows of labels (N,) int64 without the many numbers of their rest."""
        indices, shares = self.neighbors[labels].long(), self.neighbor_shares[labels]  # (N, K)
        num_others = self.num_classes - 1 - self.num_neighbors
        rest = (1 - shares.sum(dim=1, keepdim=True)).clamp_min_(0) / max(num_others, 1) * (num_others > 0)  # (N, 1)
        return SparseRows(torch.cat([indices, labels[:, None]], dim=1), torch.cat([shares - rest, -rest], dim=1), rest)

    def found(self, hits: Hits) -> Found:
        """What a step needs of hits (N, C), a few numbers each: p~ of the labels that rows keep, and the largest."""
        shares = hits.others.gather(1, self._kept(hits.labels))
        values, indices = hits.others.topk(self.num_found, dim=1)
        dtype = self.counts.dtype
        return Found(hits.labels, hits.weights.to(dtype), shares.to(dtype), indices, values.to(dtype))

    def no_hits(self, num_hits: int) -> Found:
        """Place for so many hits, of weight 0."""
        zeros = self.counts.new_zeros
        others = zeros(num_hits, self.num_found)
        labels = zeros(num_hits, dtype=torch.long)
        return Found(labels, zeros(num_hits), zeros(num_hits, self.num_kept), others.long(), others)

    @torch.no_grad()
    def add(self, hits: Hits | HitSums) -> None:
        """Gather what hits of the step that is under way say of the labels that their rows keep, and of others."""
        if self.frozen:
            return
        if isinstance(hits, HitSums):  # a row for each label, the mean of its hits
            means = hits.sums / hits.counts.clamp_min(torch.finfo(hits.counts.dtype).tiny)[:, None]
            hits = Hits(torch.arange(self.num_classes, device=means.device), hits.counts, means)
        if not is_traced() and hits.labels.device.type == "cpu":  # elsewhere their number would wait for the device
            hits = Hits(*(part[hits.weights.nonzero().squeeze(1)] for part in hits))
        if len(hits.labels):
            self._waiting.append(self.found(hits))

    @torch.no_grad()
    def add_found(self, found: Found) -> None:
        """Gather hits of which `found` has kept what counts."""
        if not self.frozen and len(found.labels):
            self._waiting.append(found)

    @torch.no_grad()
    def end_step(self) -> None:
        """Apply what was gathered, over all processes, as one step."""
        waiting, self._waiting = self._waiting, []
        if self.frozen or not (waiting or is_distributed()):
            return
        device = self.counts.device
        found = Found(*(torch.cat(parts) for parts in zip(*waiting, self.no_hits(0), strict=True)))
        found = gathered(found) if is_distributed() else found
        if device.type == "cpu":  # elsewhere their number would wait for the device: all rows then
            labels, rows = torch.unique(found.labels, return_inverse=True)  # (P,), (N,)
        else:
            labels, rows = torch.arange(self.num_classes, device=device), found.labels
        self._move(labels, rows, found)

    def _move(self, labels: Tensor, rows: Tensor, found: Found) -> None:
        """Apply a step to the rows of labels (P,), of which each hit's is number `rows` (N,)."""
        kept, shares = self._kept(labels), torch.cat([self.neighbor_shares[labels], self.candidate_shares[labels]], 1)
        num_hits = torch.zeros_like(shares[:, 0]).index_add_(0, rows, found.weights)[:, None]  # (P, 1)
        rates = self._rates(num_hits[:, 0], labels)[:, None]
        per_hit = found.weights[:, None] / num_hits.clamp_min(torch.finfo(num_hits.dtype).tiny)[rows]  # (N, 1)
        means = torch.zeros_like(shares).index_add_(0, rows, found.shares * per_hit)
        moved = shares + rates * (means - shares)  # (P, 3*K)
        if self.num_kept < self.num_classes - 1:
            rest = (1 - shares.sum(dim=1, keepdim=True)).clamp_min_(0) / (self.num_classes - 1 - self.num_kept)
            others, new_means = newcomers(found, rows, per_hit, kept, self.num_classes)  # (P, F)
            new_shares = torch.where(new_means > 0, rest + rates * (new_means - rest), -1)
            kept, moved = torch.cat([kept, others], dim=1), torch.cat([moved, new_shares], dim=1)
        moved, order = moved.sort(dim=1, descending=True, stable=True)
        kept = kept.gather(1, order).to(torch.int32)
        first, last = self.num_neighbors, self.num_kept
        self.neighbors[labels], self.neighbor_shares[labels] = kept[:, :first], moved[:, :first]
        self.candidates[labels], self.candidate_shares[labels] = kept[:, first:last], moved[:, first:last]

    def _kept(self, labels: Tensor) -> Tensor:
        """The labels that the rows of labels (P,) keep, (P, 3*K) int64."""
        return torch.cat([self.neighbors[labels], self.candidates[labels]], dim=1).long()

    @torch.no_grad()
    def soft_labels(self, labels: Tensor | None = None) -> Tensor:
        """The rows of `labels` (K,) int64, or all: (K, C), each sums to 1 over the other labels and is 0 on its own."""
        self._settle()
        return self._dense(torch.arange(self.num_classes, device=self.counts.device) if labels is None else labels)

    def _dense(self, labels: Tensor) -> Tensor:
        rows = self.sparse_rows_of(labels).rest.repeat(1, self.num_classes)  # (N, C)
        rows.scatter_(1, self.neighbors[labels].long(), self.neighbor_shares[labels])
        return rows.scatter_(1, labels[:, None], 0)

    @classmethod
    @torch.no_grad()
    def from_rows(cls, table: SoftRows, neighbors: int) -> "NeighborTable":
        """The largest shares of another table's soft labels without the label itself, as if each was hit once."""
        own = cls(table.num_classes, neighbors, label_names=table.label_names)
        own = own.to(next(iter(table.state_dict().values())).device)
        for labels in row_blocks(torch.arange(table.num_classes, device=own.counts.device), table.num_classes):
            others = table.soft_labels(labels).to(own.counts.dtype).scatter_(1, labels[:, None], 0)
            others = others / others.sum(dim=1, keepdim=True).clamp_min(torch.finfo(others.dtype).tiny)
            others.scatter_(1, labels[:, None], -1)  # never among its own neighbours
            shares, indices = others.topk(own.num_kept, dim=1)
            first, kept = own.num_neighbors, indices.to(torch.int32)
            own.neighbors[labels], own.neighbor_shares[labels] = kept[:, :first], shares[:, :first]
            own.candidates[labels], own.candidate_shares[labels] = kept[:, first:], shares[:, first:]
        own.counts.fill_(1)
        return own

    @classmethod
    def load(cls, path: str | Path, label_names: Sequence[str] | None = None) -> "NeighborTable":
        """Read a table that `save` wrote. No code of the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of another kind of table, or of other labels.
        """
        tensors, names = read_rows(path)
        if "neighbors" not in tensors:
            raise ValueError(f"{path} holds no sparse rows: {sorted(tensors)}")
        shape = (*tensors["neighbors"].shape, 0, 0)  # a damaged file's may have no axes
        try:
            table = cls(shape[0], max(shape[1], 1), label_names=names)
        except ValueError as error:
            raise ValueError(f"{path} is not a whole label table: {error}") from error
        filled(table, tensors, path, label_names)
        return table

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"{super().extra_repr()}, neighbors={self.num_neighbors}"
