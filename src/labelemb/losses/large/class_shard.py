"""Which classes a fused pass has: all of them, or one rank's part, whose sums are combined with those of other ranks.

A pass asks one of the two kinds below for everything that looks along the classes: the label's own logit, maxima, sums,
softmax, and rows that stand with their label. Where all classes are here these are torch's own functions and nothing is
combined.

Axes: B rows of a block, U labels, C classes of all ranks, L of them on this one, R rank of a table.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from labelemb.losses.large.gradient_sum import GradientSum


class EveryClass:
    """All classes are here, L = C."""

    def total(self, num_here: int) -> int:
        """C, of L."""
        return num_here

    def most(self, num_here: int) -> int:
        """The largest L of any rank: what sizes that must be the same on all ranks are made of."""
        return num_here

    def check(self, features: Tensor, target: Tensor) -> None:
        """Nobody else has items that must be the same."""

    def pick(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Of scores (B, L) the label's own, labels (B, 1): (B, 1), -inf where it is on another rank."""
        return scores.gather(1, labels)

    def put(self, values: Tensor, labels: Tensor, fill: Tensor | float) -> Tensor:
        """Write `fill`, a number or (B, 1), to the label's place of values (B, L), which come back."""
        return values.scatter_(1, labels, fill)

    def add(self, values: Tensor, labels: Tensor, summands: Tensor) -> Tensor:
        """Add (B, 1) to the label's place of values (B, L), which come back."""
        return values.scatter_add_(1, labels, summands)

    def here(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and their values, both (B, K), as places on this rank, where values of other ranks' labels are 0."""
        return indices, values

    def largest(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """The maxima of columns (B, 1) over the ranks."""
        return columns

    def summed(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """The sums of columns (B, 1) over the ranks."""
        return columns

    def added_up(self, values: Tensor) -> Tensor:
        """The sum of a tensor of any shape over the ranks."""
        return values

    def softmax(self, rows: Tensor, out: Tensor) -> None:
        """Of rows (B, L), over all classes, into `out` (B, L)."""
        torch.softmax(rows, dim=1, out=out)

    def log_softmax(self, rows: Tensor) -> Tensor:
        """Of rows (B, L), over all classes: (B, L)."""
        return rows.log_softmax(dim=1)

    def logsumexp(self, rows: Tensor) -> Tensor:
        """Of rows (B, L), over all classes: (B, 1)."""
        return rows.logsumexp(dim=1, keepdim=True)

    def rows(self, table: Tensor, labels: Tensor) -> Tensor:
        """The rows of labels (U,) from a table (L, ...) that has those of the labels here: (U, ...)."""
        return table.index_select(0, labels)

    def add_rows(self, gradient: GradientSum, labels: Tensor, rows: Tensor) -> None:
        """Add the gradient (U, R) of such rows, of which each rank has a part."""
        gradient.add_rows(labels, rows)


class ClassShard:
    """The classes `first` to `first + size` (exclusive) of C, one rank's part; all are split as evenly as can be.

    All ranks of the group ask the same questions in the same order, each of which is one collective: what decides about
    them is the same on all, as are all maxima and sums.

    Args:
        num_classes: C, at least one a rank.
        group: the ranks that the classes are split over; None for all.

    Raises:
        ValueError: there are more ranks than classes.
    """

    def __init__(self, num_classes: int, group: dist.ProcessGroup | None = None) -> None:
        num_ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        if rank < 0:
            raise ValueError("this process is no member of the group that the classes are to be split over")
        if num_ranks > num_classes:
            raise ValueError(f"{num_classes} classes cannot be split over {num_ranks} ranks: each must have one")
        self.num_classes, self.group = num_classes, group
        self.rank, self.num_ranks = rank, num_ranks
        self.first, stop = self.bounds(rank)
        self.size = stop - self.first
        self._is_checked = False

    def bounds(self, rank: int) -> tuple[int, int]:
        """The first class of a rank, and the first of the next one."""
        size, rest = divmod(self.num_classes, self.num_ranks)
        return rank * size + min(rank, rest), (rank + 1) * size + min(rank + 1, rest)

    def total(self, num_here: int) -> int:
        """C, of L.

        Raises:
            ValueError: L is not what this rank has.
        """
        if num_here != self.size:
            raise ValueError(
                f"head must have the {self.size} classes of this rank, {self.first} to {self.first + self.size - 1}, "
                f"got {num_here} rows: give the head that `shard` returned"
            )
        return self.num_classes

    def most(self, num_here: int) -> int:
        """The largest L of any rank."""
        return -(-self.num_classes // self.num_ranks)

    @torch.no_grad()
    def check(self, features: Tensor, target: Tensor) -> None:
        """Raise ValueError, in the first call, on all ranks, where they do not hold the same items."""
        if self._is_checked:
            return
        self._is_checked = True
        order = torch.arange(1, len(target) + 1, device=target.device)
        exact = torch.stack([order.new_tensor(len(target)), (target.long() * order).sum()])
        size = features.detach().double().abs().sum()[None]
        extremes = torch.cat([exact.double(), -exact.double(), size, -size])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, self.group)
        *pairs, high, negative_low = extremes.tolist()
        if pairs[:2] != [-value for value in pairs[2:]] or high + negative_low > 1e-3 * high:
            raise ValueError(
                "the ranks that share the classes must hold the same items, features (N, D) and target (N,), and do "
                "not: give them the same batch and the same dropout, or gather each rank's with gathered_items"
            )

    def pick(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Of scores (B, L) the label's own, labels (B, 1): (B, 1), -inf where it is on another rank."""
        places, is_here = self.places(labels)
        return scores.gather(1, places).masked_fill_(~is_here, -torch.inf)

    def put(self, values: Tensor, labels: Tensor, fill: Tensor | float) -> Tensor:
        """Write `fill`, a number or (B, 1), to the label's place of values (B, L), which come back."""
        places, is_here = self.places(labels)
        return values.scatter_(1, places, torch.where(is_here, fill, values.gather(1, places)))

    def add(self, values: Tensor, labels: Tensor, summands: Tensor) -> Tensor:
        """Add (B, 1) to the label's place of values (B, L), which come back."""
        return values.scatter_add_(1, *self.here(labels, summands))

    def here(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and their values, both (B, K), as places on this rank, where values of other ranks' labels are 0."""
        places, is_here = self.places(indices)
        return places, values * is_here

    def largest(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """The maxima of columns (B, 1) over the ranks."""
        return self._combined(columns, dist.ReduceOp.MAX)

    def summed(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """The sums of columns (B, 1) over the ranks."""
        return self._combined(columns, dist.ReduceOp.SUM)

    def added_up(self, values: Tensor) -> Tensor:
        """The sum of a tensor of any shape over the ranks, in its place."""
        dist.all_reduce(values, dist.ReduceOp.SUM, self.group)
        return values

    def side_by_side(self, values: Tensor) -> Tensor:
        """The values (B, F) of all ranks, as many on each: (B, ranks*F)."""
        parts = [torch.empty_like(values) for _ in range(self.num_ranks)]
        dist.all_gather(parts, values.contiguous(), self.group)
        return torch.cat(parts, dim=1)

    def softmax(self, rows: Tensor, out: Tensor) -> None:
        """Of rows (B, L), over all classes, into `out` (B, L)."""
        torch.sub(rows, self.largest(rows.amax(dim=1, keepdim=True))[0], out=out).exp_()
        out.div_(self.summed(out.sum(dim=1, keepdim=True))[0])

    def log_softmax(self, rows: Tensor) -> Tensor:
        """Of rows (B, L), over all classes: (B, L)."""
        return rows - self.logsumexp(rows)

    def logsumexp(self, rows: Tensor) -> Tensor:
        """Of rows (B, L), over all classes: (B, 1)."""
        (top,) = self.largest(rows.amax(dim=1, keepdim=True))
        (mass,) = self.summed((rows - top).exp_().sum(dim=1, keepdim=True))
        return top + mass.log()

    def rows(self, table: Tensor, labels: Tensor) -> Tensor:
        """The rows of labels (U,) from a table (L, ...) that has those of the labels here: (U, ...)."""
        places, is_here = self.places(labels)
        rows = table.index_select(0, places)  # a copy
        return self.added_up(rows.masked_fill_(~is_here.view(-1, *[1] * (rows.ndim - 1)), 0))

    def add_rows(self, gradient: GradientSum, labels: Tensor, rows: Tensor) -> None:
        """Add the gradient (U, R) of such rows, of which each rank has a part."""
        places, is_here = self.places(labels)
        gradient.add_rows(places, self.added_up(rows.to(gradient.dtype)) * is_here[:, None])

    def places(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Where labels stand on this rank, any place where they do not, and whether they do."""
        places = labels - self.first
        is_here = (places >= 0) & (places < self.size)
        return places * is_here, is_here

    def _combined(self, columns: tuple[Tensor, ...], how: dist.ReduceOp.RedOpType) -> tuple[Tensor, ...]:
        together = torch.cat(columns, dim=1)
        dist.all_reduce(together, how, self.group)
        return together.tensor_split(len(columns), dim=1)


Classes = EveryClass | ClassShard
EVERY_CLASS = EveryClass()
