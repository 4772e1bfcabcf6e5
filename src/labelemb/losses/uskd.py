"""Universal self-knowledge distillation: soft labels from the network itself and from an auxiliary head."""

from typing import Unpack

import torch
from torch import Tensor, nn

from labelemb.losses.arguments import checked_features
from labelemb.losses.items import expected, is_distribution
from labelemb.losses.others import expected_by_label, log_probs_of_others, rank_weights, weighted_entropy
from labelemb.losses.soft_label import FiveTermLoss, Options
from labelemb.losses.terms import check_weights, reduced_terms, widened

_AUX_SMOOTHING = 0.1  # the auxiliary head learns from uniformly smoothed labels


class UniversalSelfDistillationLoss(FiveTermLoss):
    """Cross entropy, more of it for items the network is sure of, and a soft label over the others by their rank.

    With z the logits, p = softmax(z), p' = softmax(W' sg(h) + b') an auxiliary head on the detached features h, and ~
    for a prediction over the labels other than y alone:

        loss = mean over items of (H(onehot(y), p) + target_weight*T*log(1/p_y) + shape_weight*H(w, p~)
                                   + aux_weight*H(smoothed(y), p'))
        T    = sg(p_y^2 + 1 - mean over the batch of p_y^2),   smoothed(y) = 0.9*onehot(y) + 0.1/C
        w_j  = (1/rank of p~'_j + p~_j among the others) / (sum of all 1/rank),   p~_j = p_j/(1 - p_y), p~' likewise

    Rank 1 has the largest score, ties go by index. No gradient passes through w and T; the auxiliary head learns from
    its own term alone, which reaches nothing else, so with Adam `aux_weight` matters little. `terms` has H(w, p~) as
    `soft`, H(smoothed(y), p') as `aux` and T*log(1/p_y) as `match`.

    The mean in T is over the items of the call that are not ignored, weighted by `class_weight` where given: split into
    several calls, for accumulation or over processes, a batch has another loss. A label masked with a logit of -inf has
    no rank; without another label H(w, p~) is 0. A distribution as target is the expectation over its labels, also in
    the mean, at C times the cost of an index.

    Args:
        num_features: D, the width of the features.
        num_classes: C.
        target_weight, shape_weight, aux_weight: at least 0. For ImageNet the authors take 1, 0.1 and 0.005.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Raises:
        ValueError: a weight is negative, infinite or NaN; features are missing or of another shape.

    Source: Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels".
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        target_weight: float = 0.1,
        shape_weight: float = 0.1,
        aux_weight: float = 0.1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_classes, **options)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        check_weights(target_weight=target_weight, shape_weight=shape_weight, aux_weight=aux_weight)
        self.num_features = num_features
        self.target_weight = target_weight
        self.shape_weight = shape_weight
        self.aux_weight = aux_weight
        self.aux_head = nn.Linear(num_features, num_classes)

    @property
    def factors(self) -> tuple[float, ...]:
        """What hard, soft, aux and match are multiplied by; cap is 0."""
        return 1.0, self.shape_weight, self.aux_weight, 0.0, self.target_weight

    @property
    def needed_features(self) -> int:
        """D: the auxiliary head reads them."""
        return self.num_features

    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (5, N) of the terms where no item is ignored."""
        return self._values(logits, target, features, logits.new_ones(len(logits)))

    def _reduced(
        self, logits: Tensor, target: Tensor, features: Tensor | None, item_factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The batch's mean must know which items are ignored, which the targets no longer say.
        values = self._values(logits, target, features, item_factors)
        return reduced_terms(values, item_factors, self.factors, self.reduction)

    def _values(self, logits: Tensor, target: Tensor, features: Tensor | None, item_factors: Tensor) -> Tensor:
        log_probs = logits.log_softmax(dim=1)
        aux_log_probs = self._aux_log_probs(features, len(logits))
        hard = -expected(log_probs, target)
        soft = expected_by_label(shape_values, target, log_probs, aux_log_probs.detach())
        mass = target.sum(dim=1) if is_distribution(target) else 1.0
        aux = -(1 - _AUX_SMOOTHING) * expected(aux_log_probs, target)
        aux = aux - _AUX_SMOOTHING * mass * aux_log_probs.mean(dim=1)
        match = -expected(target_strength(log_probs, target, item_factors) * log_probs, target)
        return torch.stack([hard, soft, aux, torch.zeros_like(hard), match])

    def _aux_log_probs(self, features: Tensor | None, num_items: int) -> Tensor:
        """log p' (N, C)."""
        features = checked_features(features, num_items, self.num_features)
        features = features.detach().to(self.aux_head.weight.dtype)  # a model may be narrower than its criterion
        return widened(self.aux_head(features)).log_softmax(dim=1)

    def _shown(self) -> tuple[str, ...]:
        return "num_features", "target_weight", "shape_weight", "aux_weight"


def shape_values(label: Tensor, log_probs: Tensor, aux_log_probs: Tensor) -> Tensor:
    """H(w, p~) of each item (K,), from its label (K,), log p and log p' (K, C)."""
    others = log_probs_of_others(log_probs, label)  # (K, C)
    scores = others.exp() + log_probs_of_others(aux_log_probs, label).exp()
    return weighted_entropy(rank_weights(scores.masked_fill(others.isneginf(), -torch.inf)), others)


def target_strength(log_probs: Tensor, target: Tensor, item_factors: Tensor) -> Tensor:
    """T = p_c^2 + 1 - mean of p_y^2 over the items, for each label c: (N, C), without gradient."""
    squares = (2 * log_probs.detach()).exp()  # (N, C)
    mass = target.sum(dim=1) if is_distribution(target) else torch.ones_like(item_factors)
    total = (item_factors * mass).sum()
    mean = (item_factors * expected(squares, target)).sum() / torch.where(total > 0, total, 1.0)
    return squares + 1 - mean
