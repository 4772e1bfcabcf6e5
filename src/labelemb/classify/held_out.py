"""Items held out for validation, where a recipe asks for a share: at random, of each label alike."""

import torch
from torch import Tensor

from labelemb.errors import InputError
from labelemb.training.seeds import derived_seed


def drawn_of_each_label(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """(N,) bool: which items are held out; the same ones in all modes of a seed.

    Each seed has its own: with few items a single draw would decide what a comparison chooses.

    Items are shuffled, put in order of their labels, and taken from places of equal distance: of n items with a label
    `share` n are drawn, rounded up or down, in whatever order the data set has them.

    Args:
        labels: (N,) int64.
        share: between 0 and 1; one item at least is drawn, and one is left.
        seed: of the run.

    Raises:
        InputError: there are fewer than two items.
    """
    if len(labels) < 2:
        raise InputError(f"data.validation={share}: there is nothing to train on, of {len(labels)} images")
    num_drawn = min(max(1, round(share * len(labels))), len(labels) - 1)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derived_seed(seed, "held out")))
    by_label = shuffled[labels[shuffled].sort(stable=True).indices]  # (N,)
    places = (torch.arange(num_drawn) * len(labels) + len(labels) // 2) // num_drawn
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    drawn[by_label[places]] = True
    return drawn
