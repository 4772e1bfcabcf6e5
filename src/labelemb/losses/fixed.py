"""Soft labels that stay as they are: cross entropy, label smoothing, teacher-free regularisation."""

import math
from typing import Unpack

from torch import Tensor, nn

from labelemb.losses.arguments import check_plain_linear
from labelemb.losses.items import SparseTarget, is_distribution
from labelemb.losses.large.class_shard import ClassShard
from labelemb.losses.large.fused import fused_terms
from labelemb.losses.large.fused_pass import FixedSoftLabel, Inputs
from labelemb.losses.large.label_plan import LabelPlan
from labelemb.losses.large.sparse_targets import fused_sparse_terms
from labelemb.losses.soft_label import Options, TwoTermLoss
from labelemb.losses.terms import LossTerms, Weights


class FixedSoftLabelLoss(TwoTermLoss):
    """Soft labels that are the same all the time: `true_prob` on the label, the rest spread evenly over the others.

        loss = mean over items of (hard_weight*H(onehot(y), p) + soft_weight*D(t_y, p)),   p = softmax(logits)

    D is the cross entropy H, or with `divergence` Kullback-Leibler's, which differs by the constant H(t_y).

    Args:
        num_classes: C.
        true_prob: t_y[y], in [0, 1].
        hard_weight, soft_weight: at least 0.
        divergence: which D.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Source: uniform rows make label smoothing (Szegedy et al. 2016); see `teacher_free`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        true_prob: float,
        hard_weight: float = 0.5,
        soft_weight: float = 0.5,
        divergence: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_classes, hard_weight=hard_weight, soft_weight=soft_weight, **options)
        if not 0 <= true_prob <= 1:
            raise ValueError(f"true_prob must lie in 0 to 1, got {true_prob}")
        self.true_prob = true_prob
        self.other_prob = (1 - true_prob) / (num_classes - 1) if num_classes > 1 else 0.0
        self.entropy = _entropy(true_prob) + (num_classes - 1) * _entropy(self.other_prob) if divergence else 0.0

    def soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        """D(t_y, p) of each item (N,); see TwoTermLoss."""
        # H(t_y, p) = (t - o)*H(onehot(y), p) - o*sum log p: no row of t is ever made, so any number of labels will do
        mass = target.sum(dim=1) if is_distribution(target) else 1.0
        soft = (self.true_prob - self.other_prob) * hard - mass * self.entropy
        if self.other_prob != 0:  # 0 times the infinite log p of a masked class would be NaN
            soft = soft - self.other_prob * mass * log_probs.sum(dim=1)
        return soft

    def fused_terms(
        self,
        features: Tensor,
        target: Tensor | SparseTarget,
        head: nn.Linear,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
        plan: LabelPlan | None = None,
    ) -> LossTerms:
        """The terms over `head(features)`: such a soft label needs only the sum of the logits.

        `target` may be (indices, values), (N, K) each: see `fused`.
        """
        check_plain_linear(head)
        fixed = FixedSoftLabel(self.true_prob, self.other_prob, self.entropy)
        inputs = Inputs(features, head.weight, head.bias)
        weights = Weights(self.hard_weight, self.soft_weight, temperature=1.0, cap=1.0, cap_weight=0.0)
        if isinstance(target, Tensor):
            items = self.items(target, num_items)
            return fused_terms(inputs, items, weights, fixed, plan, chunk_size, self.classes)
        if isinstance(self.classes, ClassShard):
            raise ValueError(
                "where classes are split over ranks, targets are class indices (N,), not (indices, values)"
            )
        if plan is not None:
            raise ValueError("a plan is made of class indices; leave it out for (indices, values)")
        return fused_sparse_terms(inputs, target, self.items(target[1], num_items), weights, fixed, chunk_size)


def baseline(num_classes: int, **options: Unpack[Options]) -> FixedSoftLabelLoss:
    """Cross entropy."""
    return FixedSoftLabelLoss(num_classes, hard_weight=1.0, soft_weight=0.0, true_prob=1.0, **options)


def smoothing(num_classes: int, epsilon: float = 0.1, **options: Unpack[Options]) -> FixedSoftLabelLoss:
    """Uniform label smoothing: cross entropy with (1 - epsilon)*onehot(y) + epsilon/C. Source: Szegedy et al. 2016.

    Raises:
        ValueError: epsilon is not in [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in 0 to 1, got {epsilon}")
    uniform = 1 / max(num_classes, 1)
    return FixedSoftLabelLoss(num_classes, hard_weight=1 - epsilon, soft_weight=epsilon, true_prob=uniform, **options)


def teacher_free(num_classes: int, **options: Unpack[Options]) -> FixedSoftLabelLoss:
    """0.9*H(onehot(y), p) + 0.1*KL(t_y, p), t_y = softmax(u/20), u = 0.99 on the label and 0.01/(C-1) elsewhere.

    As released it is label smoothing of 0.1 to within 5e-4 in every target entry.
    Source: Yuan et al. 2020, "Revisiting Knowledge Distillation via Label Smoothing Regularization".
    """
    others = num_classes - 1
    true, other = math.exp(0.99 / 20), math.exp(0.01 / max(others, 1) / 20)
    true_prob = true / (true + others * other) if others >= 0 else 1.0
    return FixedSoftLabelLoss(
        num_classes, hard_weight=0.9, soft_weight=0.1, true_prob=true_prob, divergence=True, **options
    )


def _entropy(prob: float) -> float:
    return -prob * math.log(prob) if prob > 0 else 0.0
