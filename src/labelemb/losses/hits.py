"""What an item says of the rows over the other labels: whether its label is a hit, and its prediction over the rest."""

from typing import NamedTuple

import torch
from torch import Tensor

from labelemb.losses.items import expected_rows, is_distribution
from labelemb.losses.others import log_rests, weighted_entropy


class Hits(NamedTuple):
    """Correctly classified items of one call, by class index; or means of several items of one label."""

    labels: Tensor  # (N,) int64
    weights: Tensor  # (N,) how many hits each stands for: 1 for a hit, 0 for an item that is none
    others: Tensor  # (N, C) p~, the prediction over the other labels; 0 on the label


class HitSums(NamedTuple):
    """The same of distributions as targets, summed by label."""

    sums: Tensor  # (C, C)
    counts: Tensor  # (C,)


def hits_of(logits: Tensor, target: Tensor, kept: Tensor) -> Hits | HitSums:
    """What a call counts, by plain operations.

    Args:
        logits: z (N, C), without gradient.
        target: (N,) indices, or (N, C) distributions, which count for their likeliest label with its weight.
        kept: (N,) bool, whether an item by index counts at all; a distribution says so by its weights.
    """
    if not is_distribution(target):
        hits, others = _index_hits(logits, target)
        return Hits(target, hits & kept, others)
    log_probs = logits.log_softmax(dim=1)
    weights, scaled = _weights_and_scaled(log_probs, target)
    return HitSums(expected_rows(scaled.T, log_probs.exp()).fill_diagonal_(0), weights.sum(dim=0))


def match_values(logits: Tensor, target: Tensor, log_rows: Tensor) -> Tensor:
    """hit * H(sg p~, r_y) of each item (N,), which trains rows that are parameters.

    Args:
        logits: z (N, C), without gradient.
        target: (N,) indices, or (N, C) distributions, of which it is the expectation.
        log_rows: log r, -inf on the label itself: (N, C) of indices, (C, C) for distributions.
    """
    if not is_distribution(target):
        hits, others = _index_hits(logits, target)
        return hits * weighted_entropy(others, log_rows)
    log_probs = logits.log_softmax(dim=1)
    _, scaled = _weights_and_scaled(log_probs, target)
    expectation = expected_rows(scaled, log_rows.masked_fill(log_rows.isneginf(), 0))  # (N, C)
    return -(expectation * log_probs.exp()).sum(dim=1)


def _index_hits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the label's logit is the largest (N,) (ties are), and p~ (N, C)."""
    top = logits.amax(dim=1)
    others = logits.scatter(1, target[:, None], -torch.inf).softmax(dim=1)
    return logits.gather(1, target[:, None]).squeeze(1) == top, others


def _weights_and_scaled(log_probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """t_c*hit_c and t_c*hit_c/(1 - p_c), both (N, C): the second times p, but for label c, is t_c*hit_c*p~."""
    weights = target * (log_probs == log_probs.amax(dim=1, keepdim=True))
    return weights, torch.where(weights > 0, weights * (-log_rests(log_probs)).exp(), 0)
