"""PolyLoss: cross entropy whose first polynomial coefficient is another."""

from typing import Unpack

from torch import Tensor

from labelemb.losses.items import expected
from labelemb.losses.soft_label import Options, TwoTermLoss


class PolyLoss(TwoTermLoss):
    """Cross entropy and the probability that the true label lacks: "Poly-1".

        loss = mean over items of (H(onehot(y), p) + soft_weight*(1 - p_y)),   p = softmax(z)

    -log p_y is the sum of (1 - p_y)^k / k over k >= 1; this makes the first coefficient 1 + soft_weight. The gradient
    passes through both terms. `terms` has 1 - p_y as `soft`. A distribution as target is the expectation over its
    labels.

    Args:
        num_classes: C.
        soft_weight: at least 0.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Raises:
        ValueError: the weight is negative, infinite or NaN.

    Source: Leng et al. 2022, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions".
    """

    def __init__(self, num_classes: int, *, soft_weight: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(num_classes, hard_weight=1.0, soft_weight=soft_weight, **options)

    def soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        """1 - p_y of each item (N,); see TwoTermLoss."""
        return expected(1 - log_probs.exp(), target)
