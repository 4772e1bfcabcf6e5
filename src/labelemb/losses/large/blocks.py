"""Blocks are what row-wise steps take: on the CPU so small that they stay in the cache from first step to last."""

from collections.abc import Iterator

from torch import Tensor

_CPU_BLOCK_NUMEL, _CPU_BLOCK_ROWS = 2**19, 64  # 2 MiB in float32
_GPU_BLOCK_NUMEL, _GPU_BLOCK_ROWS = 2**26, 256  # rows: predictions are summed by products of B*B*C, small beside B*C*D


def block_rows(num_classes: int, device_type: str) -> int:
    """How many rows (C,) a block has at most."""
    if device_type == "cpu":
        return min(max(_CPU_BLOCK_NUMEL // num_classes, 1), _CPU_BLOCK_ROWS)
    return min(max(_GPU_BLOCK_NUMEL // num_classes, 1), _GPU_BLOCK_ROWS)


def blocks(num_rows: int, size: int) -> Iterator[slice]:
    """All rows, `size` at a time."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def keep(gradient: Tensor, place: Tensor) -> None:
    """Put the gradient of B rows where the matrix products take it from; in float32 it is there already."""
    if gradient is not place:
        place.copy_(gradient)
