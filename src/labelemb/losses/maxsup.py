"""Max suppression: the largest logit pays for its distance from the mean, whichever label it belongs to."""

from typing import Unpack

import torch
from torch import Tensor

from labelemb.losses.items import expected, is_distribution
from labelemb.losses.soft_label import FiveTermLoss, Options
from labelemb.losses.terms import check_weights, reduced_terms


class MaxSupLoss(FiveTermLoss):
    """Cross entropy and the distance of the largest logit from the mean logit, with a weight that grows over training.

        loss = mean over items of (H(onehot(y), p) + a*(max z - mean z)),   p = softmax(z)
        a    = start + (end - start)*progress

    Label smoothing has z_y in the place of max z, so it also pushes the true logit down where the network is wrong.
    The gradient passes through both terms; labels that tie for the maximum share it evenly. A label masked with a logit
    of -inf counts neither in the maximum nor in the mean. `terms` has max z - mean z as `soft`. A distribution as
    target counts that with its sum.

    `progress`, the share of training done, is set by the training loop before each step; in a loop of your own, set it.

    Args:
        num_classes: C.
        start, end: the weight a at the beginning and at the end of training, at least 0.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Raises:
        ValueError: a weight is negative, infinite or NaN.

    Source: Zhou et al. 2025, "MaxSup: Overcoming Representation Collapse in Label Smoothing".
    """

    def __init__(self, num_classes: int, *, start: float = 0.1, end: float = 0.2, **options: Unpack[Options]) -> None:
        check_weights(start=start, end=end)
        self.start = start
        self.end = end
        super().__init__(num_classes, **options)

    @property
    def progress(self) -> float:
        """The share of training done; it sets the weight."""
        return self._progress

    @progress.setter
    def progress(self, share: float) -> None:
        self._progress = share
        # For the call a tensor: with a number, torch.compile would make a program for each step. On the CPU, where it
        # costs no copy, and in float64, which as a 0-d tensor widens nothing.
        self._weight = torch.tensor(self.factors[1], dtype=torch.float64, device="cpu")

    @property
    def factors(self) -> tuple[float, ...]:
        """What hard and soft are multiplied by at this point of training; the other terms are 0."""
        return 1.0, self.start + (self.end - self.start) * self._progress, 0.0, 0.0, 0.0

    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (5, N) of hard and soft, and zeros."""
        hard = -expected(logits.log_softmax(dim=1), target)
        masked = logits.isneginf()
        num_seen = masked.logical_not().sum(dim=1)  # (N,)
        soft = logits.amax(dim=1) - logits.masked_fill(masked, 0).sum(dim=1) / num_seen
        if is_distribution(target):
            soft = target.sum(dim=1) * soft
        zero = torch.zeros_like(hard)
        return torch.stack([hard, soft, zero, zero, zero])

    def _reduced(
        self, logits: Tensor, target: Tensor, features: Tensor | None, item_factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        values = self.item_values(logits, target, features)
        terms, _ = reduced_terms(values, item_factors, (1.0, 0.0, 0.0, 0.0, 0.0), self.reduction)
        total = (values[0] + self._weight * values[1]) * item_factors  # (N,)
        return terms, total if self.reduction == "none" else total.sum()

    def _shown(self) -> tuple[str, ...]:
        return "start", "end"
