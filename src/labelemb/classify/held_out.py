"""Which training items are held out, where a recipe asks for a share of them."""

import torch
from torch import Tensor


def held_out_share(labels: Tensor, share: float) -> Tensor:
    """A share of the items of every label, drawn at random, the same ones whatever the run.

    Args:
        labels: (N,) int64, N at least 1.
        share: between 0 and 1. Of each label it is rounded down: one with too few items keeps them all.

    Returns:
        (N,) bool: whether an item is held out.
    """
    generator = torch.Generator().manual_seed(0)  # not the run's seed: all runs are compared on the same split
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        items = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(items), generator=generator)
        chosen[items[order[: int(share * len(items))]]] = True
    return chosen
