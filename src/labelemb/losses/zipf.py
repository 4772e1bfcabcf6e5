"""Zipf's label smoothing: the other labels share by their rank in the network's own prediction."""

from typing import Unpack

from torch import Tensor

from labelemb.losses.others import expected_by_label, log_probs_of_others, rank_weights, weighted_entropy
from labelemb.losses.soft_label import Options, TwoTermLoss


class ZipfLoss(TwoTermLoss):
    """Cross entropy, and a soft label over the other labels that falls off with their rank, as Zipf's law does.

        loss = mean over items of (H(onehot(y), p) + soft_weight*H(w, p~)),   p = softmax(z),
        p~ = softmax of z over the labels other than y,   w_j = (1/rank of z_j among them) / (sum of all 1/rank)

    Rank 1 is the largest logit, ties go by index. No gradient passes through w, and none of the second term reaches the
    true logit. A label masked with a logit of -inf has no rank; without another label the second term is 0. `terms`
    has H(w, p~) as `soft`.

    A distribution as target is the expectation over its labels, at C times the cost of an index.

    Args:
        num_classes: C.
        soft_weight: at least 0.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Raises:
        ValueError: the weight is negative, infinite or NaN.

    Source: Liang et al. 2022, "Efficient One Pass Self-distillation with Zipf's Label Smoothing", in its form by the
    rank of the logits alone.
    """

    def __init__(self, num_classes: int, *, soft_weight: float = 0.1, **options: Unpack[Options]) -> None:
        super().__init__(num_classes, hard_weight=1.0, soft_weight=soft_weight, **options)

    def soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        """H(w, p~) of each item (N,); see TwoTermLoss."""
        return expected_by_label(rank_values, target, log_probs)


def rank_values(label: Tensor, log_probs: Tensor) -> Tensor:
    """H(w, p~) of each item (K,), from its label (K,) and log p (K, C)."""
    others = log_probs_of_others(log_probs, label)  # (K, C); log p~ ranks as z does
    return weighted_entropy(rank_weights(others), others)
