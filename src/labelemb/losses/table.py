"""The label table: for each label the distribution over labels that the network learns, dense or low rank."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.losses.items import is_distribution
from labelemb.losses.soft_rows import SoftRows, check_dense, check_every_row, filled, own_copy, read_rows


class LabelTable(SoftRows):
    """Rows e_y of unnormalised log-probabilities over the labels, one row a label.

    Dense: a (C, C) parameter `weight` that starts as the identity. Low rank: e_y = relu(B a_y + c) with `rows.weight`
    A (C, R), `decoder.weight` B (C, R) and `decoder.bias` c (C,), which need 2*C*R + C numbers in place of C*C. Until a
    label has been seen often its low-rank row is nearly uniform: expect nothing from labels seen a few times.

    Args:
        num_classes: C, at least 1.
        rank: R of a low-rank table, at least 1; None for a dense one (at most 20,000 labels).
        label_names: C names, kept when the table is saved and used by `nearest`. Labels of one name are told apart by
            their index alone.

    Raises:
        ValueError: a size is not positive, the names are not C strings, or a dense table is asked for too many labels.

    Source: Sun et al. 2017, arXiv 1710.10393, sections 2.2 (dense) and 2.3 (compressed).

    Example:
        >>> table = LabelTable(3, label_names=["cat", "dog", "ship"])
        >>> table.soft_labels().shape
        torch.Size([3, 3])
        >>> [name for name, value in table.nearest(["cat"], k=2)[0]]
        ['dog', 'ship']
    """

    def __init__(self, num_classes: int, *, rank: int | None = None, label_names: Sequence[str] | None = None) -> None:
        super().__init__(num_classes, label_names)
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, or None for a dense table, got {rank}")
        if rank is None:
            check_dense(num_classes)
        self.rank = rank
        if rank is None:
            self.weight = nn.Parameter(torch.eye(num_classes))
        else:
            self.rows = nn.Embedding(num_classes, rank)
            self.decoder = nn.Linear(rank, num_classes)

    def row_logits(self, labels: Tensor | None = None) -> Tensor:
        """The unnormalised rows e of `labels` (K,) int64, or of all labels in order; (K, C), differentiable."""
        if self.rank is None:
            return self.weight if labels is None else F.embedding(labels, self.weight)
        codes = self.rows.weight if labels is None else self.rows(labels)  # (K, R)
        return F.relu(self.decoder(codes))  # (K, C)

    @property
    def low_rank(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes A (C, R), decoder's weight B (C, R) and bias c (C,) of a low-rank table."""
        return self.rows.weight, self.decoder.weight, self.decoder.bias

    def rows_of(self, target: Tensor) -> Tensor:
        """What a loss reads: the row of each index, (N, C), or all rows, (C, C), for distributions as targets.

        Raises:
            ValueError: distributions, whose expectation needs every row, over more labels than a dense table may have.
        """
        if not is_distribution(target):
            return self.row_logits(target)
        check_every_row(self.num_classes)
        return self.row_logits()

    def copy(self, *, frozen: bool = False) -> "LabelTable":
        """A table of its own with the same values; a frozen one holds buffers under the same names."""
        return own_copy(self, frozen=frozen)

    @torch.no_grad()
    def soft_labels(self, labels: Tensor | None = None) -> Tensor:
        """The soft labels softmax(e): each row sums to 1.

        Args:
            labels: (K,) int64 in [0, C); None for all labels, which for a large table needs C*C numbers: ask for
                the rows you need.

        Returns:
            (K, C) in float32 or the table's wider type, without gradient.
        """
        rows = self.row_logits(labels)
        return rows.to(torch.promote_types(rows.dtype, torch.float32)).softmax(dim=1)  # (K, C)

    @classmethod
    def load(cls, path: str | Path, label_names: Sequence[str] | None = None) -> "LabelTable":
        """Read a table that `save` wrote. No code of the file is executed.

        Args:
            path: of the file.
            label_names: the labels it is wanted for; a table that has names must have these.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, cut short, of another format or a later version, or has other names.
        """
        tensors, names = read_rows(path)
        if "weight" not in tensors and "rows.weight" not in tensors:
            raise ValueError(f"{path} has neither a dense nor a low-rank table: {sorted(tensors)}")
        is_dense = "weight" in tensors
        shape = (*tensors["weight" if is_dense else "rows.weight"].shape, 0, 0)  # a damaged file's may have no axes
        try:
            with torch.device("meta"):  # the file's tensors take the place of the initial values: draw none
                table = cls(shape[0], rank=None if is_dense else shape[1], label_names=names)
        except ValueError as error:
            raise ValueError(f"{path} is not a whole label table: {error}") from error
        filled(table, tensors, path, label_names)
        return table


def make_table(num_classes: int, rank: int | None, table: LabelTable | None, freeze: bool) -> LabelTable:
    """The table of a criterion: a new one, or a copy of a given one, whose rank counts.

    Raises:
        ValueError: the given table has other labels or another rank, or there is none to freeze.
    """
    if table is None:
        if freeze:
            raise ValueError("freeze_table=True needs a learned table: pass table=LabelTable.load(...)")
        return LabelTable(num_classes, rank=rank)
    if table.num_classes != num_classes:
        raise ValueError(f"the table has {table.num_classes} labels, num_classes is {num_classes}")
    if rank is not None and rank != table.rank:
        raise ValueError(f"rank={rank} contradicts the table's rank {table.rank}; leave it out")
    return table.copy(frozen=freeze)
