"""The confidence penalty: predictions of low entropy cost."""

from typing import Unpack

from torch import Tensor

from labelemb.losses.items import is_distribution
from labelemb.losses.soft_label import Options, TwoTermLoss


class ConfidencePenaltyLoss(TwoTermLoss):
    """Cross entropy less a share of the prediction's entropy.

        loss = mean over items of (H(onehot(y), p) - soft_weight*H(p)),   p = softmax(z),   H(p) = -sum_j p_j log p_j

    The gradient passes through both. `terms` has -H(p) as `soft`, so that `total` is hard + soft_weight*soft. A label
    masked with a logit of -inf adds nothing to H(p). A distribution as target counts H(p) with its sum.

    Args:
        num_classes: C.
        soft_weight: at least 0.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Raises:
        ValueError: the weight is negative, infinite or NaN.

    Source: Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output Distributions".
    """

    def __init__(self, num_classes: int, *, soft_weight: float = 0.1, **options: Unpack[Options]) -> None:
        super().__init__(num_classes, hard_weight=1.0, soft_weight=soft_weight, **options)

    def soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        """-H(p) of each item (N,); see TwoTermLoss."""
        # 0 times the infinite log p of a masked class would be NaN, in the value and in the gradient
        negative_entropy = (log_probs.exp() * log_probs.masked_fill(log_probs.isneginf(), 0)).sum(dim=1)
        return target.sum(dim=1) * negative_entropy if is_distribution(target) else negative_entropy
