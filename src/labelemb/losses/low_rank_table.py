"""Rows over the other labels that are trained and of low rank: for label sets whose (C, C) rows no memory holds."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.losses.items import is_distribution
from labelemb.losses.others import log_probs_of_others
from labelemb.losses.others_table import OthersTable
from labelemb.losses.soft_rows import check_every_row, filled, read_rows
from labelemb.losses.terms import widened


class LowRankTable(OthersTable):
    """Rows r_y = softmax over j != y of (B a_y + c), which the match term of the decoupled loss trains.

    The parameters are `codes` A (C, R), `decoder_weight` B (C, R) and `decoder_bias` c (C,): 2*C*R + C numbers in place
    of C*C. B and c start at 0, so that rows start uniform, and a_y at random with a norm of about 1: the first gradient
    reaches B and c, and through B the codes. Best trained by Adam with 1e-2 (`optimizer.table_lr` of a recipe).

    Args:
        num_classes: C.
        rank: R, at least 1.
        label_names: C names, as for LabelTable.

    Raises:
        ValueError: a size is not positive, or the names are not C strings.

    Source: docs/method.md, section 11.

    Example:
        >>> table = LowRankTable(3, rank=2)
        >>> table.soft_labels(torch.tensor([1]))
        tensor([[0.5000, 0.0000, 0.5000]])
    """

    def __init__(self, num_classes: int, rank: int, *, label_names: Sequence[str] | None = None) -> None:
        super().__init__(num_classes, label_names)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        self.codes = nn.Parameter(torch.empty(num_classes, rank))
        self.decoder_weight = nn.Parameter(torch.empty(num_classes, rank))
        self.decoder_bias = nn.Parameter(torch.empty(num_classes))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give the parameters their initial values."""
        self.codes.normal_(std=self.rank**-0.5)
        self.decoder_weight.zero_()
        self.decoder_bias.zero_()

    @property
    def is_trained(self) -> bool:
        """Whether the rows are parameters; those of a frozen table are buffers."""
        return "codes" in self._parameters

    def log_rows_of(self, target: Tensor) -> Tensor | None:
        """log r of indices (N,), (N, C), or for distributions of all labels, (C, C); None where the table is frozen.

        Differentiable, -inf on the label itself, in float32 or wider.

        Raises:
            ValueError: distributions, whose expectation needs every row, over too many labels for that.
        """
        return self._log_rows(target) if self.is_trained else None

    def rows_of(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows r of the same targets, without gradient."""
        with torch.no_grad():
            return self._log_rows(target).exp().to(dtype)

    @torch.no_grad()
    def soft_labels(self, labels: Tensor | None = None) -> Tensor:
        """The rows of `labels` (K,) int64, or all: (K, C), each sums to 1 over the other labels and is 0 on its own."""
        labels = torch.arange(self.num_classes, device=self.codes.device) if labels is None else labels
        return self._log_rows(labels).exp()

    def _log_rows(self, target: Tensor) -> Tensor:
        if is_distribution(target):
            check_every_row(self.num_classes)
            target = torch.arange(self.num_classes, device=target.device)
        row_logits = F.linear(F.embedding(target, self.codes), self.decoder_weight, self.decoder_bias)  # (N, C)
        return log_probs_of_others(widened(row_logits), target)

    @classmethod
    def load(cls, path: str | Path, label_names: Sequence[str] | None = None) -> "LowRankTable":
        """Read a table that `save` wrote. No code of the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, of another kind of table, or of other labels.
        """
        tensors, names = read_rows(path)
        if "codes" not in tensors:
            raise ValueError(f"{path} holds no trained rows over the other labels: {sorted(tensors)}")
        shape = (*tensors["codes"].shape, 0, 0)  # a damaged file's may have no axes
        try:
            with torch.device("meta"):  # the file's tensors take the place of the initial values: draw none
                table = cls(shape[0], shape[1], label_names=names)
        except ValueError as error:
            raise ValueError(f"{path} is not a whole label table: {error}") from error
        filled(table, tensors, path, label_names)
        return table

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"num_classes={self.num_classes}, rank={self.rank}"
