"""Label embedding (arXiv 1710.10393): the loss that trains a network, and the soft labels it trains with."""

import math
from collections.abc import Sequence
from typing import Never, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.losses.arguments import check_plain_linear, checked_features, is_traced
from labelemb.losses.closed_form import index_terms
from labelemb.losses.items import Reduction, SparseTarget, dense_target, expected, expected_rows, is_distribution
from labelemb.losses.large.fused import fused_terms
from labelemb.losses.large.fused_pass import Inputs
from labelemb.losses.large.label_plan import LabelPlan
from labelemb.losses.others_table import OthersTable
from labelemb.losses.soft_label import FiveTermLoss, Options
from labelemb.losses.table import LabelTable, make_table
from labelemb.losses.terms import LossTerms, Weights, widened


def hard_values(log_probs: Tensor, target: Tensor) -> Tensor:
    """H(target, p) of each item (N,), from log p (N, C); with log p' the auxiliary head's own term."""
    return -expected(log_probs, target)


def soft_values(log_probs: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """H(sg softmax(e_y), p) of each item (N,). Rows: (N, C), one an item, or all (C, C) for distributions."""
    soft = rows.detach().softmax(dim=1)
    if is_distribution(target):
        soft = expected_rows(target, soft)
    return -(soft * log_probs).sum(dim=1)


def cap_values(aux_log_probs: Tensor, target: Tensor, cap: float) -> Tensor:
    """relu(p'_y - cap) of each item (N,): how far the auxiliary head is more certain than it should be."""
    return expected(F.relu(aux_log_probs.exp() - cap), target)


def match_values(aux_logits: Tensor, rows: Tensor, target: Tensor, temperature: float) -> Tensor:
    """m * H(sg softmax(z'/temperature), softmax(e_y)) of each item (N,), m = 1 where z'_y is largest (ties are)."""
    aux_logits = aux_logits.detach()
    tempered = (aux_logits / temperature).softmax(dim=1)  # (N, C)
    matched = aux_logits == aux_logits.amax(dim=1, keepdim=True)  # (N, C)
    log_soft = rows.log_softmax(dim=1)
    if is_distribution(target):
        return -(expected_rows(target * matched, log_soft) * tempered).sum(dim=1)
    return -(tempered * log_soft).sum(dim=1) * expected(matched, target)


def balanced_temperature(num_classes: int, cap: float = 0.9) -> float:
    """The temperature that leaves half of a prediction on its label, where the cap was on it and the rest even.

        tau = log(m*cap/(1 - cap)) / log(m),   m = C - 1:   2.00 for 10 labels, 1.48 for 100, 1.24 for 8,000

    Over one or two labels there is none, and it is the paper's 2.

    Raises:
        ValueError: the cap is not above one half and below 1.
    """
    if num_classes <= 2:
        return 2.0
    if not 0.5 < cap < 1:
        raise ValueError(f"temperature=None is made from the cap, which must lie between 0.5 and 1 for it, got {cap}")
    others = num_classes - 1
    return math.log(others * cap / (1 - cap)) / math.log(others)


class LabelEmbeddingLoss(FiveTermLoss):
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
        temperature: tau, above 0; None is `balanced_temperature(num_classes, cap)`: 2.0 suits 10 labels, and leaves the
            soft labels of many nearly flat.
        cap: alpha, in (0, 1], on the untempered probability.
        cap_weight: at least 0. Below 1/cap the cap does not bind; the paper's vision code amounts to its batch size,
            here it stands under the common divisor and does not depend on the batch.
        class_weight: (C,) weights that multiply all terms of a label's items. The mean divides by their sum, also with
            class probabilities as targets, where nn.CrossEntropyLoss divides by N.
        ignore_index: items with this target have no part in any term.
        reduction: "mean", "sum" or "none" (one value an item, 0 for ignored ones).
        table: a learned table to start from; it is copied and fixes the rank. Counted rows, which say nothing of the
            label itself, get half of the share on it.
        freeze_table: use `table` as it is: no auxiliary head, no parameters, features may be left out, and the loss is
            hard_weight*hard + soft_weight*soft.

    Calls take `logits` (N, C), `target` of indices (N,) or class probabilities (N, C), `features` (N, D), and
    `num_items`: an int or 0-d tensor that replaces the divisor of the mean, for accumulation and several processes
    (with class weights: their sum). Indices outside [0, C) raise on the CPU; elsewhere they are the caller's care.
    A class masked with a logit of -inf makes the soft term infinite, as its soft labels have mass there; with
    `soft_weight` 0 the loss is that of cross entropy.

    Raises:
        TypeError: an argument that there is not.
        ValueError: settings out of range or contradicting each other, shapes that do not fit.

    Source: Sun et al. 2017, arXiv 1710.10393; docs/method.md has every formula with its function and its test.

    Example:
        >>> criterion = LabelEmbeddingLoss(num_features=8, num_classes=3)
        >>> logits, features = torch.zeros(4, 3), torch.zeros(4, 8)
        >>> terms = criterion.terms(logits, torch.tensor([0, 1, 2, -100]), features)
        >>> round(terms.hard.item(), 4)  # log 3, as plain cross entropy has it
        1.0986
        >>> criterion.table.nearest([0], k=2)[0][0][0]
        1
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        rank: int | None = None,
        hard_weight: float = 0.5,
        soft_weight: float = 0.5,
        temperature: float | None = 2.0,
        cap: float = 0.9,
        cap_weight: float = 100.0,
        class_weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        table: LabelTable | OthersTable | None = None,
        freeze_table: bool = False,
        **unknown: Never,
    ) -> None:
        super().__init__(
            num_classes, class_weight=class_weight, ignore_index=ignore_index, reduction=reduction, **unknown
        )
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        self.num_features = num_features
        self.hard_weight = hard_weight
        self.soft_weight = soft_weight
        self.temperature = balanced_temperature(num_classes, cap) if temperature is None else temperature
        self.cap = cap
        self.cap_weight = cap_weight
        self.weights.check()
        given = table if table is None or isinstance(table, LabelTable) else table.as_label_table()
        self.table = make_table(num_classes, rank, given, freeze_table)
        self.aux_head = None if freeze_table else nn.Linear(num_features, num_classes)

    @property
    def weights(self) -> Weights:
        """What the values of single items and their sum depend on."""
        return Weights(self.hard_weight, self.soft_weight, self.temperature, self.cap, self.cap_weight)

    @property
    def factors(self) -> tuple[float, ...]:
        """What hard, soft, aux, cap and match are multiplied by."""
        return self.weights.factors

    @property
    def needed_features(self) -> int | None:
        """D, or None where the table is frozen and there is no auxiliary head."""
        return None if self.aux_head is None else self.num_features

    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (5, N) of the terms by the functions above; the last three are 0 without an auxiliary head."""
        rows = widened(self.table.rows_of(target))
        log_probs = logits.log_softmax(dim=1)
        values = [hard_values(log_probs, target), soft_values(log_probs, rows, target)]
        if self.aux_head is None:
            return torch.stack([*values, *[torch.zeros_like(values[0])] * 3])
        aux_logits = self._aux_logits(features, len(logits))
        aux_log_probs = aux_logits.log_softmax(dim=1)
        values.append(hard_values(aux_log_probs, target))
        values.append(cap_values(aux_log_probs, target, self.cap))
        values.append(match_values(aux_logits, rows, target, self.temperature))
        return torch.stack(values)

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
        """The terms over `head(features)`, without an (N, C) tensor; soft is 0 while its weight is, which skips it."""
        target = dense_target(target, type(self).__name__)
        check_plain_linear(head)
        self.notice_call(head.weight)
        aux = (None, None) if self.aux_head is None else (self.aux_head.weight, self.aux_head.bias)
        table = (self.table.weight,) if self.table.rank is None else (None, *self.table.low_rank)
        inputs = Inputs(features, head.weight, head.bias, *aux, *table)
        items = self.items(target, num_items)
        return fused_terms(inputs, items, self.weights, None, plan, chunk_size, self.classes)

    def _reduced(
        self, logits: Tensor, target: Tensor, features: Tensor | None, item_factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Two ways to the same values. Class indices in eager mode take the closed form: forty operations less, a fifth
        # of a small network's step (docs/log.md). Compilers, torch.func, distributions and frozen tables take the
        # functions above. tests/losses/test_label_embedding.py and test_facts.py hold both equal.
        if self.aux_head is None or is_distribution(target) or is_traced():
            return super()._reduced(logits, target, features, item_factors)
        rows, aux_logits = widened(self.table.rows_of(target)), self._aux_logits(features, len(logits))
        return index_terms(logits, aux_logits, rows, target, item_factors, self.weights, self.reduction != "none")

    def _aux_logits(self, features: Tensor | None, num_items: int) -> Tensor:
        """z' = W' sg(h) + b', (N, C)."""
        assert self.aux_head is not None
        features = checked_features(features, num_items, self.num_features)
        features = features.detach().to(self.aux_head.weight.dtype)  # a model may be narrower than its criterion
        return widened(self.aux_head(features))

    def _shown(self) -> tuple[str, ...]:
        return "num_features", "hard_weight", "soft_weight", "temperature", "cap", "cap_weight"


def frozen_label_embedding(
    num_features: int,
    num_classes: int,
    *,
    table: LabelTable | OthersTable,
    hard_weight: float = 0.5,
    soft_weight: float = 0.5,
    **options: Unpack[Options],
) -> LabelEmbeddingLoss:
    """The loss with a learned table that stays as it is: hard_weight*hard + soft_weight*soft."""
    return LabelEmbeddingLoss(
        num_features,
        num_classes,
        hard_weight=hard_weight,
        soft_weight=soft_weight,
        table=table,
        freeze_table=True,
        **options,
    )
