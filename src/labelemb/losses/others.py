"""The labels other than the true one: their log-probabilities among themselves, and weights by their rank."""

from collections.abc import Callable

import torch
from torch import Tensor

from labelemb.losses.items import is_distribution


def log_probs_of_others(log_probs: Tensor, label: Tensor) -> Tensor:
    """log p~ (K, C): log-softmax over the labels other than `label` (K,), -inf there and where a label is masked.

    Where every other label is masked, or there is none, the row is -inf throughout.
    """
    others = log_probs.scatter(1, label[:, None], -torch.inf)  # (K, C)
    masked = others.isneginf()
    # A row of -inf would be NaN, in the gradient too, where it is masked only after the softmax.
    others = others.masked_fill(masked.all(dim=1, keepdim=True), 0)
    return others.log_softmax(dim=1).masked_fill(masked, -torch.inf)


def log_rests(log_probs: Tensor) -> Tensor:
    """log(1 - p_c) of every label (N, C): of the likeliest by leaving it out; the others are at most one half."""
    top = log_probs.argmax(dim=1, keepdim=True)
    without = log_probs.scatter(1, top, -torch.inf)
    return torch.log1p(-without.exp()).scatter(1, top, without.logsumexp(dim=1, keepdim=True))


def rank_weights(scores: Tensor) -> Tensor:
    """Weights (K, C) proportional to 1/rank of `scores` (K, C), of sum 1 and without gradient.

    Rank 1 has the largest score, ties go by index. A label whose score is -inf has weight 0; where all are, so is the
    sum.
    """
    scores = scores.detach()
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    weights = torch.zeros_like(scores).scatter(1, order, ranks.reciprocal().expand_as(scores))
    weights = weights.masked_fill(scores.isneginf(), 0)  # they come last, so no other rank counts them
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def weighted_entropy(weights: Tensor, log_probs: Tensor) -> Tensor:
    """H(weights, p) (K,) from log p (K, C); a label of probability 0 counts as if it had no weight."""
    return -(weights * log_probs.masked_fill(log_probs.isneginf(), 0)).sum(dim=1)


def expected_by_label(values: Callable[..., Tensor], target: Tensor, *of_items: Tensor) -> Tensor:
    """The expectation (N,) under `target` of `values(label, *of_items)`, for values that no table of labels holds.

    Args:
        values: from labels (K,) and rows (K, C) of K items to (K,).
        target: (N,) indices, or distributions (N, C): these cost a pass for each of the C labels, so C times the memory
            of indices. The labels with mass alone would be cheaper, but to find them means to wait for the device.
        of_items: tensors (N, C).
    """
    if not is_distribution(target):
        return values(target, *of_items)
    num_items, num_classes = target.shape
    labels = torch.arange(num_classes, device=target.device).repeat(num_items)  # (N*C,)
    rows = (of_item.repeat_interleave(num_classes, dim=0) for of_item in of_items)  # (N*C, C)
    return (values(labels, *rows).view(num_items, num_classes) * target).sum(dim=1)
