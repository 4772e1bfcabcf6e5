"""A gradient gathered chunk by chunk."""

from collections.abc import Callable

import torch
from torch import Tensor

_PART_NUMEL = 2**22  # numbers of a product that has to be widened before it is added: 8 MiB in bfloat16


class GradientSum:
    """The gradient of one tensor, summed in at least float32, written where it stays: no zeros before, no copy after.

    Args:
        tensor: what the gradient is of; only a narrower one than `dtype` has its gradient copied at the end.
        dtype: of the sum, float32 or wider.
    """

    def __init__(self, tensor: Tensor, dtype: torch.dtype) -> None:
        self._dtype, self.dtype = tensor.dtype, torch.promote_types(tensor.dtype, dtype)
        self._sum = torch.empty(tensor.shape, dtype=self.dtype, device=tensor.device)
        self._started = False

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add left @ right: (X, K), (K, Y)."""
        if left.dtype == self._sum.dtype:
            # a beta of 0 overwrites what the memory held, NaN included
            torch.addmm(self._sum, left, right, beta=int(self._started), out=self._sum)
        else:
            self._add_narrow_product(left, right)
        self._started = True

    def _add_narrow_product(self, left: Tensor, right: Tensor) -> None:
        """The same for factors of a narrower type than the sum's, a part at a time: each is a copy to be widened."""
        part_rows = max(1, _PART_NUMEL // self._sum.shape[1])
        for start in range(0, len(left), part_rows):
            part = slice(start, start + part_rows)
            product = left[part] @ right  # (X', Y)
            if self._started:
                self._sum[part].add_(product)
            else:
                self._sum[part].copy_(product)

    def add_rows(self, index: Tensor, rows: Tensor) -> None:
        """Add rows (K, ...) to those that `index` (K,) names."""
        self._start_with_zeros()
        self._sum.index_add_(0, index, rows.to(self._sum.dtype))

    def add_sum(self, rows: Tensor) -> None:
        """Add the sum of rows (K, ...), each of the tensor's own shape."""
        self._start_with_zeros()
        self._sum.add_(rows.sum(dim=0, dtype=self._sum.dtype))

    def combine(self, added_up: Callable[[Tensor], Tensor]) -> None:
        """Put what `added_up` makes of the sum in its place: with the parts of other ranks."""
        self._start_with_zeros()
        self._sum = added_up(self._sum)

    def finish(self) -> Tensor:
        """The sum in the tensor's type; nothing can be added any more."""
        self._start_with_zeros()
        result = self._sum.to(self._dtype)
        del self._sum
        return result

    def _start_with_zeros(self) -> None:
        if not self._started:
            self._sum.zero_()
            self._started = True
