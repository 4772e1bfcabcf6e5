"""Label embedding (arXiv 1710.10393): the loss that trains a network, and the soft labels it trains with."""

from collections.abc import Sequence
from typing import Never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.losses.closed_form import index_terms
from labelemb.losses.forgotten import ForgottenParameters
from labelemb.losses.large.fused import fused_label_embedding_terms
from labelemb.losses.ranks import RankAgreement
from labelemb.losses.table import LabelTable, make_table
from labelemb.losses.terms import (
    LossTerms,
    Reduction,
    Weights,
    check_call,
    check_reduction,
    checked_class_weight,
    checked_features,
    expected_rows,
    is_distribution,
    is_traced,
    pick,
    prepare,
    refuse_unknown,
    weighted_terms,
    widened,
)


def hard_values(log_probs: Tensor, target: Tensor) -> Tensor:
    """H(target, p) of each item (N,), from log p (N, C); with log p' the auxiliary head's own term."""
    return -pick(log_probs, target)


def soft_values(log_probs: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """H(sg softmax(e_y), p) of each item (N,). Rows: (N, C), one an item, or all (C, C) for distributions."""
    soft = rows.detach().softmax(dim=1)
    if is_distribution(target):
        soft = expected_rows(target, soft)
    return -(soft * log_probs).sum(dim=1)


def cap_values(aux_log_probs: Tensor, target: Tensor, cap: float) -> Tensor:
    """relu(p'_y - cap) of each item (N,): how far the auxiliary head is more certain than it should be."""
    return pick(F.relu(aux_log_probs.exp() - cap), target)


def match_values(aux_logits: Tensor, rows: Tensor, target: Tensor, temperature: float) -> Tensor:
    """m * H(sg softmax(z'/temperature), softmax(e_y)) of each item (N,), m = 1 where z'_y is largest (ties are)."""
    aux_logits = aux_logits.detach()
    mean = (aux_logits / temperature).softmax(dim=1)  # (N, C)
    matched = aux_logits == aux_logits.amax(dim=1, keepdim=True)  # (N, C)
    log_soft = rows.log_softmax(dim=1)
    if is_distribution(target):
        return -(expected_rows(target * matched, log_soft) * mean).sum(dim=1)
    return -(mean * log_soft).sum(dim=1) * pick(matched, target)


class LabelEmbeddingLoss(nn.Module):
    """Label embedding loss: cross entropy whose soft half the network learns about its own labels.

    With z the logits, z' = W' sg(h) + b' an auxiliary head on the detached features h, e_y a row of the label table:

        hard  = H(onehot(y), softmax z)                    soft  = H(sg softmax(e_y), softmax z)     train the network
        aux   = H(onehot(y), softmax z')                   cap   = relu(softmax(z')[y] - cap)        train the head
        match = [z'_y = max z'] * H(sg softmax(z' / temperature), softmax(e_y))                      trains the table

        loss  = mean over items of (hard_weight*hard + soft_weight*soft + aux + cap_weight*cap + match)

    The three groups of parameters receive disjoint gradients. The mean divides by the number of items not ignored (by
    the sum of their class weights, where given), or by `num_items`; over no items it is 0. Give the criterion's
    parameters to an optimiser, best Adam without weight decay. Half-precision inputs are reduced in float32. Train and
    eval mode are the same; compare modes by `terms(...).hard`.

    Args:
        num_features: D, the width of the features.
        num_classes: C.
        rank: R of a low-rank table, None for a dense one (up to 20,000 labels). A low-rank row says little before its
            label has been matched: start with `soft_weight` 0 and raise the attribute later.
        hard_weight, soft_weight: at least 0; may be changed between steps. 1 and 0 give plain cross entropy.
        temperature: tau, above 0.
        cap: alpha, in (0, 1], on the untempered probability.
        cap_weight: at least 0. Below 1/cap the cap does not bind; the paper's vision code amounts to its batch size,
            here it stands under the common divisor and does not depend on the batch.
        class_weight: (C,) weights that multiply all terms of a label's items. The mean divides by their sum, also with
            class probabilities as targets, where nn.CrossEntropyLoss divides by N.
        ignore_index: items with this target have no part in any term.
        reduction: "mean", "sum" or "none" (one value an item, 0 for ignored ones).
        table: a learned table to start from; it is copied and fixes the rank.
        freeze_table: use `table` as it is: no auxiliary head, no parameters, features may be left out, and the loss is
            hard_weight*hard + soft_weight*soft.

    Calls take `logits` (N, C), `target` of indices (N,) or class probabilities (N, C), `features` (N, D), and
    `num_items`: an int or 0-d tensor that replaces the divisor of the mean, for accumulation and several processes
    (with class weights: their sum). Indices outside [0, C) raise on the CPU; elsewhere they are the caller's care.
    A class masked with a logit of -inf makes the soft term infinite, as its soft labels have mass there; with
    `soft_weight` 0 the loss is that of cross entropy.

    Raises:
        ValueError: settings out of range or contradicting each other, shapes that do not fit.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        rank: int | None = None,
        hard_weight: float = 0.5,
        soft_weight: float = 0.5,
        temperature: float = 2.0,
        cap: float = 0.9,
        cap_weight: float = 100.0,
        class_weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        table: LabelTable | None = None,
        freeze_table: bool = False,
        **unknown: Never,
    ) -> None:
        super().__init__()
        refuse_unknown("LabelEmbeddingLoss", unknown)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        Weights(hard_weight, soft_weight, cap_weight, cap, temperature).check()
        check_reduction(reduction)
        self.num_features = num_features
        self.num_classes = num_classes
        self.hard_weight = hard_weight
        self.soft_weight = soft_weight
        self.temperature = temperature
        self.cap = cap
        self.cap_weight = cap_weight
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.register_buffer("class_weight", checked_class_weight(class_weight, num_classes), persistent=False)
        self.table = make_table(num_classes, rank, table, freeze_table)
        self.aux_head = None if freeze_table else nn.Linear(num_features, num_classes)
        self.forgotten = ForgottenParameters()
        self.ranks = RankAgreement()

    def extra_repr(self) -> str:
        """What `print` shows of it beside its modules."""
        settings = ("hard_weight", "soft_weight", "temperature", "cap", "cap_weight", "ignore_index", "reduction")
        shown = [f"{name}={getattr(self, name)!r}" for name in settings]
        weighted = [] if self.class_weight is None else [f"class_weight=({self.num_classes},)"]
        return ", ".join([f"num_features={self.num_features}, num_classes={self.num_classes}", *shown, *weighted])

    def forward(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> Tensor:
        """The loss: 0-d, or (N,) with reduction "none"."""
        return self._terms_and_total(logits, target, features, num_items)[1]

    def terms(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> LossTerms:
        """The unweighted terms and the loss, all reduced alike."""
        terms, total = self._terms_and_total(logits, target, features, num_items)
        hard, soft, aux, cap, match = terms.unbind()
        return LossTerms(hard, soft, aux, cap, match, total)

    def fused(
        self,
        features: Tensor,
        target: Tensor,
        head: nn.Linear,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """The loss of `head(features)` for large label sets: no (N, C) tensor is made, `chunk_size` items at a time.

        `target` is (N,) indices and the reduction "mean" or "sum". labelemb.losses.large.fused says what it costs.
        """
        return fused_label_embedding_terms(self, features, target, head, num_items, chunk_size).total

    def _terms_and_total(
        self, logits: Tensor, target: Tensor, features: Tensor | None, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        check_call(logits, target, self.num_classes, self.ignore_index, num_items, self.reduction)
        self.forgotten.check(self, logits)
        self.ranks.check(self, logits)
        logits = widened(logits)
        target, item_weight = prepare(
            target, self.class_weight, self.ignore_index, num_items, self.reduction, logits.dtype
        )
        rows = widened(self.table.rows_of(target))
        weights = Weights(self.hard_weight, self.soft_weight, self.cap_weight, self.cap, self.temperature)
        aux_logits = None
        if self.aux_head is not None:
            features = checked_features(features, len(logits), self.num_features)
            features = features.detach().to(self.aux_head.weight.dtype)  # a model may be narrower than its criterion
            aux_logits = widened(self.aux_head(features))  # (N, C)
        if aux_logits is None or is_distribution(target) or is_traced():
            values = _values(logits, aux_logits, rows, target, weights)
            return weighted_terms(values, item_weight, weights, self.reduction)
        return index_terms(logits, aux_logits, rows, target, item_weight, weights, self.reduction != "none")


def _values(logits: Tensor, aux_logits: Tensor | None, rows: Tensor, target: Tensor, weights: Weights) -> Tensor:
    """Values (5, N) of the terms by the functions above; the last three are 0 without an auxiliary head."""
    log_probs = logits.log_softmax(dim=1)
    values = [hard_values(log_probs, target), soft_values(log_probs, rows, target)]
    if aux_logits is None:
        return torch.stack([*values, *[torch.zeros_like(values[0])] * 3])
    aux_log_probs = aux_logits.log_softmax(dim=1)
    values.append(hard_values(aux_log_probs, target))
    values.append(cap_values(aux_log_probs, target, weights.cap))
    values.append(match_values(aux_logits, rows, target, weights.temperature))
    return torch.stack(values)
