"""Buffers that count: half precision may not narrow them."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class WideBuffers(nn.Module):
    """A module some of whose buffers stay at least in float32: in half precision a count stops at 256 or 2,048."""

    wide_buffers: ClassVar[tuple[str, ...]] = ()  # their names

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: getattr(self, name) for name in self.wide_buffers}
        apply: Callable[..., Self] = super()._apply
        apply(fn, recurse)
        for name, buffer in before.items():
            if (after := getattr(self, name)).dtype.itemsize < torch.float32.itemsize:
                setattr(self, name, buffer.to(after.device, torch.float32))
        return self
