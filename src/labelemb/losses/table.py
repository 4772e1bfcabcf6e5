"""The label table: for each label the distribution over labels that the network learns, dense or low rank."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.losses.items import is_distribution
from labelemb.losses.known_similarities import checked_rows, rows_of_groups
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
    def from_matrix(
        cls, matrix: Tensor | Sequence[Sequence[float]], label_names: Sequence[str] | None = None
    ) -> "LabelTable":
        """A table whose soft labels are the rows of `matrix` (C, C): for similarities that are known.

        The sum of a row may be off 1 by 0.001, which softmax evens out; zeros become the smallest normal float32, whose
        logarithm is finite.

        Raises:
            ValueError: the matrix is not square, a number is negative or not finite, or a row does not sum to 1.
        """
        rows = checked_rows(matrix)
        table = cls(len(rows), label_names=label_names)
        with torch.no_grad():
            table.weight.copy_(rows.clamp_min(torch.finfo(torch.float32).tiny).log())
        return table

    @classmethod
    def from_groups(
        cls,
        groups: Sequence[Collection[int | str]] | Sequence[int | str] | Tensor,
        *,
        true_share: float = 0.5,
        group_share: float | None = None,
        label_names: Sequence[str] | None = None,
    ) -> "LabelTable":
        """A table by groups of labels that are alike.

        A label's soft label has `true_share` on itself, `group_share` evenly over the others of its group, and what is
        left evenly over the labels of other groups. A label that is alone in its group leaves the group's share to the
        others; where one group holds all labels it has all that is not the label's own.

        Args:
            groups: lists of labels, indices or names, that hold each label once; or the group of each label (C,), in
                the order of labels, as any value.
            true_share: in [0, 1].
            group_share: in [0, 1 - true_share]; None for four fifths of 1 - true_share.
            label_names: C names; groups of names need them, in the order of the data.

        Raises:
            ValueError: a share is out of range, or the groups do not hold every label once.

        Example:
            >>> table = LabelTable.from_groups([["cat", "dog"], ["ship"]], label_names=["cat", "ship", "dog"])
            >>> [round(value, 2) for value in table.soft_labels()[0].tolist()]
            [0.5, 0.1, 0.4]

        CIFAR-100 has such groups: from columns `fine` and `coarse` of its training file,

            coarse_of = dict(zip(fine, coarse))
            LabelTable.from_groups([coarse_of[label] for label in range(100)]).save("groups.safetensors")

        and then `labelemb train cifar100 --mode emb-frozen --table groups.safetensors`, or decoupled-frozen.
        """
        rows = rows_of_groups(groups, true_share, group_share, label_names)
        return cls.from_matrix(rows, label_names=label_names)

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
        shape = tensors["weight" if is_dense else "rows.weight"].shape
        if len(shape) != 2:
            raise ValueError(f"{path} is not a whole label table: expected a matrix, got {tuple(shape)}")
        num_classes, width = shape
        try:
            with torch.device("meta"):  # the file's tensors take the place of the initial values: draw none
                table = cls(num_classes, rank=None if is_dense else width, label_names=names)
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
