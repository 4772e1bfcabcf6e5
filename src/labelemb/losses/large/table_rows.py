"""How a fused pass reads rows of a label table and trains them: a dense table, and one of low rank.

Axes: U labels, C classes, R rank.
"""

import torch
from torch import Tensor

from labelemb.losses.large.class_shard import EVERY_CLASS, Classes
from labelemb.losses.large.gradient_sum import GradientSum
from labelemb.losses.large.linear import Linear


class DenseRows:
    """The rows of a dense table (C, C), in its own type; table_sum: of its gradient, None if not asked for."""

    def __init__(self, table: Tensor, table_sum: GradientSum | None) -> None:
        self._table, self._table_sum = table, table_sum
        self.dtype = table.dtype

    @property
    def is_trained(self) -> bool:
        """Whether `add_gradient` does anything."""
        return self._table_sum is not None

    def into(self, labels: Tensor, buffer: Tensor) -> Tensor:
        """The rows of labels (U,), in the first of a buffer: (U, C)."""
        return torch.index_select(self._table, 0, labels, out=buffer[: len(labels)])

    def cut_off(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """The gradient of the rows (U, C) is that of the table's."""
        return gradient

    def add_gradient(self, labels: Tensor, gradient: Tensor) -> None:
        """Add the gradient (U, C) of the rows of distinct labels (U,)."""
        if self._table_sum is not None:
            self._table_sum.add_rows(labels, gradient)


class LowRankRows:
    """The rows relu(B a_y + c) of a table of low rank, in the type of its decoder B, c; codes A (C, R).

    relu: whether there is one; rows over the other labels have none. classes: those that are here, and the codes of the
    same labels.
    """

    def __init__(
        self,
        codes: Tensor,
        decoder: Linear,
        codes_sum: GradientSum | None,
        *,
        relu: bool,
        classes: Classes = EVERY_CLASS,
    ) -> None:
        self._codes, self._decoder, self._codes_sum, self._relu = codes, decoder, codes_sum, relu
        self._classes = classes
        self.dtype = decoder.weight.dtype

    @property
    def is_trained(self) -> bool:
        """Whether `add_gradient` does anything."""
        return self._codes_sum is not None or self._decoder.is_trained

    def into(self, labels: Tensor, buffer: Tensor) -> Tensor:
        """The rows of labels (U,), in the first of a buffer: (U, C)."""
        rows = self._decoder.into(self._codes_of(labels), buffer)
        return rows.relu_() if self._relu else rows

    def cut_off(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """The gradient (U, C) before the relu, in place, from that of the rows (U, C)."""
        return gradient.mul_(rows > 0) if self._relu else gradient

    def add_gradient(self, labels: Tensor, gradient: Tensor) -> None:
        """Add the gradient (U, C) before the relu, of the rows of distinct labels (U,)."""
        if self._codes_sum is not None:
            self._classes.add_rows(self._codes_sum, labels, gradient @ self._decoder.weight)  # (U, R)
        if self._decoder.is_trained:
            self._decoder.add_gradient(gradient, self._codes_of(labels))

    def _codes_of(self, labels: Tensor) -> Tensor:
        return self._classes.rows(self._codes, labels).to(self.dtype)  # (U, R)


TableRows = DenseRows | LowRankRows
