"""Label Smoothing++: a share of every target, spread over the other labels as a table learns it."""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from labelemb.losses.items import expected, expected_rows, is_distribution
from labelemb.losses.soft_label import FiveTermLoss, Options
from labelemb.losses.soft_rows import check_dense
from labelemb.losses.terms import widened


class LabelSmoothingPlusPlusLoss(FiveTermLoss):
    """Cross entropy with smoothed labels whose smoothing is learned, a row for each label.

        loss = mean over items of (H(sg q_y, p) + H(sg p, q_y)),   p = softmax(z),
        q_y  = (1 - epsilon)*onehot(y) + epsilon*r_y,   r_y = softmax of c_y over the labels other than y

    The first term trains the network and the second the table c, by gradients that stop at `sg`: dz = p - q_y and, for
    j != y, dc_yj = (1 - p_y)*r_yj - p_j. It is not halved: as released, halved, it loses accuracy. `terms` has
    H(r_y, p) as `soft` and H(sg p, q_y) as `match`, so that `total` is (1 - epsilon)*hard + epsilon*soft + match.

    The released code decays c by 5e-4 under SGD. The training loop here gives the parameters of every criterion to Adam
    without weight decay; in a loop of your own, both are a parameter group.

    A label masked with a logit of -inf makes the soft term infinite, as its soft labels have mass there. With one label
    q_y is onehot(y). A distribution as target is the expectation over its labels.

    Args:
        num_classes: C, at most 20,000: c is a (C, C) table. It starts from 0, so r_y from uniform.
        epsilon: the share that is spread, above 0 and below 1.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Raises:
        ValueError: epsilon is out of its range, or there are too many labels.

    Source: Chhabra et al. 2024, "Label Smoothing++: Enhanced Label Regularization for Training Neural Networks".
    """

    def __init__(self, num_classes: int, *, epsilon: float = 0.1, **options: Unpack[Options]) -> None:
        super().__init__(num_classes, **options)
        check_dense(num_classes)
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon must lie between 0 and 1, got {epsilon}")
        self.epsilon = epsilon
        self.rows = nn.Parameter(torch.zeros(num_classes, num_classes))  # c; its diagonal takes no part

    @property
    def factors(self) -> tuple[float, ...]:
        """What hard, soft and match are multiplied by; the other terms are 0."""
        spread = self.epsilon if self.num_classes > 1 else 0.0
        return 1 - spread, spread, 0.0, 0.0, 1.0

    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (5, N) of hard, soft and match, and zeros for the others."""
        log_probs = logits.log_softmax(dim=1)
        hard = -expected(log_probs, target)
        log_shares = self.log_shares()  # (C, C)
        soft = -(_rows_of(target, log_shares.detach().exp()) * log_probs).sum(dim=1)
        label = torch.eye(self.num_classes, dtype=torch.bool, device=log_shares.device)
        spread = self.factors[1]
        log_rows = torch.where(label, math.log1p(-spread), log_shares + (math.log(spread) if spread else 0.0))
        match = -(_rows_of(target, log_rows) * log_probs.detach().exp()).sum(dim=1)
        zero = torch.zeros_like(hard)
        return torch.stack([hard, soft, zero, zero, match])

    def log_shares(self) -> Tensor:
        """log r (C, C), a row for each label; its diagonal, which stands for probability 0, is -inf."""
        label = torch.eye(self.num_classes, dtype=torch.bool, device=self.rows.device)
        if self.num_classes == 1:
            return widened(self.rows).masked_fill(label, -torch.inf)
        return widened(self.rows).masked_fill(label, -torch.inf).log_softmax(dim=1)

    def _shown(self) -> tuple[str, ...]:
        return ("epsilon",)


def _rows_of(target: Tensor, rows: Tensor) -> Tensor:
    """A row (N, C) an item: its label's, or the expectation under its distribution."""
    return expected_rows(target, rows) if is_distribution(target) else rows[target]
