"""What a step's hits predict beyond the labels that a sparse row keeps: which may join it.

Axes: N hits, P rows, C classes, K labels that a row keeps, F labels that each hit found. No shape depends on a value:
no step waits for the device.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Found(NamedTuple):
    """Of N hits, or means of several."""

    labels: Tensor  # (N,) int64
    weights: Tensor  # (N,) how many hits each stands for, 0 for one that is none
    shares: Tensor  # (N, K) p~ of the labels that the row keeps
    others: Tensor  # (N, F) int64, the labels of the largest p~
    other_shares: Tensor  # (N, F) these p~


def newcomers(found: Found, rows: Tensor, per_hit: Tensor, kept: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The labels outside of a row that its hits predict most, at most F of them.

    Args:
        found: of the hits.
        rows: (N,) the number of each hit's row.
        per_hit: (N, 1) its share in the mean of the row's hits.
        kept: (P, K) int64, what the rows keep.
        num_classes: C.

    Returns:
        Labels (P, F) and the means of what was found (P, F), 0 where there is none. A mean is at most the true one: a
        hit that did not find the label counts as 0.
    """
    num_rows, num_found = len(kept), found.others.shape[1]
    is_kept = (found.others[:, :, None] == kept[rows][:, None, :]).any(dim=2)  # (N, F)
    is_new = ~is_kept & (found.others != found.labels[:, None])
    keys = (rows[:, None] * num_classes + found.others).flatten()  # (N*F,)
    values = (found.other_shares * per_hit * is_new).flatten()
    keys, sums = _summed(keys, values)
    # The rows in turn, in each the largest sum first.
    order = sums.argsort(descending=True, stable=True)
    order = order[(keys[order] // num_classes).argsort(stable=True)]
    keys, sums = keys[order], sums[order]
    of_row = keys // num_classes
    ranks = torch.arange(len(keys), device=keys.device) - torch.searchsorted(of_row, of_row)
    # What has no place goes behind the last one, and is cut off.
    places = torch.where((sums > 0) & (ranks < num_found), of_row * num_found + ranks, num_rows * num_found)
    labels = keys.new_zeros(num_rows * num_found + 1).scatter_(0, places, keys % num_classes)
    means = sums.new_zeros(num_rows * num_found + 1).scatter_(0, places, sums)
    return labels[:-1].view(num_rows, num_found), means[:-1].view(num_rows, num_found)


def _summed(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Each key once with the sum of its values, both (X,) as given; what is left over repeats a key with the sum 0."""
    keys, order = keys.sort(stable=True)
    is_first = torch.ones_like(keys, dtype=torch.bool)
    is_first[1:] = keys[1:] != keys[:-1]
    places = is_first.cumsum(0) - 1
    sums = torch.zeros_like(values).index_add_(0, places, values[order])
    return keys.clone().scatter_(0, places, keys), sums


def gathered(found: Found, group: "dist.ProcessGroup | None" = None) -> Found:
    """The hits of all processes of a group, in the order of their ranks; all must call this."""
    sizes = [torch.zeros(1, dtype=torch.long, device=found.labels.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(found.labels)], device=found.labels.device), group)
    longest = int(torch.stack(sizes).max())
    parts = []
    for part in found:
        padded = part.new_zeros(longest, *part.shape[1:])  # a hit of weight 0 is none
        padded[: len(part)] = part
        all_parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(all_parts, padded, group)
        parts.append(torch.cat([part[: int(size)] for part, size in zip(all_parts, sizes, strict=True)]))
    return Found(*parts)
