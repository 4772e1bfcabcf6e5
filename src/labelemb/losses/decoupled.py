"""The decoupled loss (ours): how sure the network should be of a label, and what else it should think of, apart.

Cross entropy with the target (1-eps)*onehot(y) + eps*r_y splits exactly into a binary cross entropy of "y or not", and
eps times the cross entropy of r_y with the prediction over the other labels alone. Here the second has a weight of its
own, and r_y is learned by counting what the network itself predicts. docs/method.md has the derivation.
"""

from collections.abc import Sequence
from typing import Never, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.losses.arguments import check_plain_linear, is_traced, is_transformed
from labelemb.losses.decoupled_closed_form import decoupled_index_terms
from labelemb.losses.decoupled_tables import make_others_table
from labelemb.losses.hits import Hits, hits_of, match_values
from labelemb.losses.items import Reduction, SparseTarget, dense_target, expected, expected_rows, is_distribution
from labelemb.losses.large.fused_decoupled import fused_decoupled_terms
from labelemb.losses.large.label_plan import LabelPlan
from labelemb.losses.others import log_rests, weighted_entropy
from labelemb.losses.others_table import OthersTable
from labelemb.losses.soft_label import Options, SoftLabelLoss
from labelemb.losses.table import LabelTable
from labelemb.losses.terms import DecoupledTerms, check_weights


def log_odds(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """log p_y/(1 - p_y) of each item (N,), and the log-sum-exp of the other logits (N,).

    The label is left out of the sum, never taken off again: log(1 - p) made of p dies where p is nearly 1.
    """
    others = logits.scatter(1, target[:, None], -torch.inf).logsumexp(dim=1)
    return logits.gather(1, target[:, None]).squeeze(1) - others, others


def certainty_values(odds: Tensor, epsilon: float) -> Tensor:
    """(1-eps)*(-log p_y) + eps*(-log(1-p_y)) of each item (N,), from its log odds."""
    return -(1 - epsilon) * F.logsigmoid(odds) - epsilon * F.logsigmoid(-odds)


def shape_values(log_mass: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """H(r_y, p~) of each item (N,), from the log-sum-exp of the other logits and the row, which is 0 on the label.

    A class masked with -inf that the row has nothing on counts for nothing.
    """
    return log_mass - (rows.detach() * logits).nansum(dim=1)


class DecoupledLabelEmbeddingLoss(SoftLabelLoss):
    """Learned soft labels whose two statements have a weight each: how sure, and what else.

    With p = softmax(z), p~ = softmax of z over the labels other than y, r_y the learned row, a distribution over them:

        certainty = -(1-epsilon)*log p_y - epsilon*log(1-p_y)          shape = H(r_y, p~)
        loss      = mean over items of (certainty + shape_weight*shape)

    The shape term never touches the label's own logit: a bad row can at worst rearrange the wrong labels. Rows start
    uniform and are counted: over the correctly classified items (ties are) of each training call, r_y moves towards
    their mean p~ by max(1 - momentum^n, n/N_y), n the hits of this step and N_y all so far. So there are no parameters,
    no auxiliary head, no cap, no temperature and no warm-up, and `criterion(logits, target)` stands wherever
    nn.CrossEntropyLoss stands; features are accepted and not used.

    Above 20,000 labels there are two ways. `neighbors` counts rows that keep their largest shares alone. `rank` trains
    rows r_y = softmax of (B a_y + c) over the other labels, by a further term

        match = [z_y = max z] * H(sg p~, r_y)

    which reaches the rows alone. Give them to an optimiser, best Adam with 1e-2 and without weight decay.

    What a training call counts is applied when the next one begins, or the table is read. Where one optimiser step has
    several calls (accumulation), call `end_step()` after it: from then on steps end there alone. Over several processes
    the counts are summed.

    Args:
        num_classes: C.
        epsilon: the share of the target that is not the label's, in [0, 1).
        shape_weight: at least 0; epsilon and uniform rows make label smoothing.
        momentum: of rows that are counted, in [0, 1).
        rank: R of rows that are trained, at least 1; None for rows that are counted.
        neighbors: keep so many of a counted row's shares, the largest, and an even rest; None for all, up to 20,000
            labels.
        class_weight: (C,) weights that multiply all terms of a label's items; the mean divides by their sum.
        ignore_index: items with this target have no part in any term.
        reduction: "mean", "sum" or "none" (one value an item, 0 for ignored ones).
        table: learned rows to start from, which fix their kind but for `neighbors`, to which they may be cut: a
            CountedTable, NeighborTable or LowRankTable, or a LabelTable, whose soft labels are taken without the label
            itself and counted further; it is copied.
        freeze_table: use `table` as it is.

    Calls take `logits` (N, C), `target` of indices (N,) or class probabilities (N, C), and `num_items`, which replaces
    the divisor of the mean. Over one label the loss is 0.

    Raises:
        TypeError: an argument that there is not.
        ValueError: settings out of range or contradicting each other, shapes that do not fit.

    Source: docs/method.md, "The decoupled form". Relatives: Label Smoothing++ (learned rows, one weight), Zipf's label
    smoothing and USKD (this form of the term, rows by rank), decoupled knowledge distillation (a teacher's rows).

    Example:
        >>> criterion = DecoupledLabelEmbeddingLoss(num_classes=3)
        >>> loss = criterion(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> criterion.table.nearest([0], k=1)[0][0][0]  # what else was thought of: label 1
        1
    """

    def __init__(
        self,
        num_classes: int,
        *,
        epsilon: float = 0.1,
        shape_weight: float = 1.0,
        momentum: float = 0.99,
        rank: int | None = None,
        neighbors: int | None = None,
        class_weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        table: OthersTable | LabelTable | None = None,
        freeze_table: bool = False,
        **unknown: Never,
    ) -> None:
        super().__init__(
            num_classes, class_weight=class_weight, ignore_index=ignore_index, reduction=reduction, **unknown
        )
        check_weights(shape_weight=shape_weight)
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must lie in 0 to 1, 1 excluded, got {epsilon}")
        self.epsilon = epsilon
        self.shape_weight = shape_weight
        self.table = make_others_table(
            num_classes, momentum=momentum, rank=rank, neighbors=neighbors, table=table, freeze=freeze_table
        )
        self._steps_end_elsewhere = False

    @property
    def factors(self) -> tuple[float, ...]:
        """What hard, certainty, shape and match are multiplied by."""
        return 0.0, 1.0, self.shape_weight, 1.0

    def terms(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> DecoupledTerms:
        """The unweighted terms and the loss, all reduced alike."""
        terms, total = self._terms_and_total(logits, target, features, num_items)
        hard, certainty, shape, match = terms.unbind()
        return DecoupledTerms(hard, certainty, shape, match, total)

    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (4, N) of the terms by the functions above."""
        if self.num_classes == 1:  # there is nothing else to be, or to think of
            return (0 * logits).T.expand(4, -1)
        rows, log_rows = self._rows(target, logits.dtype)
        if is_distribution(target):
            log_probs = logits.log_softmax(dim=1)
            rests = expected(log_rests(log_probs), target)
            hard, rows = -expected(log_probs, target), expected_rows(target, rows)
            log_mass = logits.logsumexp(dim=1) * target.sum(dim=1) + rests
            certainty = (1 - self.epsilon) * hard - self.epsilon * rests
        else:
            odds, log_mass = log_odds(logits, target)
            hard, certainty = -F.logsigmoid(odds), certainty_values(odds, self.epsilon)
        shape = shape_values(log_mass, logits, rows)
        match = torch.zeros_like(hard) if log_rows is None else match_values(logits.detach(), target, log_rows)
        return torch.stack([hard, certainty, shape, match])

    def fused_terms(
        self,
        features: Tensor,
        target: Tensor | SparseTarget,
        head: nn.Linear,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
        plan: LabelPlan | None = None,
    ) -> DecoupledTerms:
        """The terms over `head(features)`, without an (N, C) tensor; hits are counted as `forward` counts them."""
        target = dense_target(target, type(self).__name__)
        check_plain_linear(head)
        if self.num_classes == 1:
            return self.terms(head(features), target, num_items=num_items)
        self.notice_call(head.weight)
        return fused_decoupled_terms(
            features,
            (head.weight, head.bias),
            self.table,
            self.items(target, num_items),
            epsilon=self.epsilon,
            shape_weight=self.shape_weight,
            counts=self._begins_counting(),
            plan=plan,
            chunk_size=chunk_size,
            classes=self.classes,
        )

    def end_step(self) -> None:
        """Apply what the calls of this optimiser step counted; from now on nothing else ends a step."""
        self._steps_end_elsewhere = True
        self.table.end_step()

    def _reduced(
        self, logits: Tensor, target: Tensor, features: Tensor | None, item_factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Two ways to the same values, as in label_embedding.py; tests/losses/test_decoupled.py holds them equal.
        counts = self._begins_counting()
        kept = item_factors != 0
        if is_distribution(target) or is_traced() or self.num_classes == 1:
            if counts:
                self.table.add(hits_of(logits.detach(), target, kept))
            return super()._reduced(logits, target, features, item_factors)
        rows, log_rows = self._rows(target, logits.dtype)
        settings = self.epsilon, self.shape_weight, self.reduction != "none"
        found = decoupled_index_terms(logits, rows, target, item_factors, *settings)
        if counts:
            self.table.add(Hits(target, found.hits & kept, found.others))
        if log_rows is None:
            return found.terms, found.total
        match = found.hits * weighted_entropy(found.others, log_rows) * item_factors
        match = match.sum() if self.reduction != "none" else match
        return torch.cat([found.terms[:3], match[None]]), found.total + match

    def _rows(self, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The rows without gradient, and log r with it where they are parameters: (N, C), or all (C, C)."""
        log_rows = self.table.log_rows_of(target)
        rows = self.table.rows_of(target, dtype) if log_rows is None else log_rows.detach().exp().to(dtype)
        return rows, log_rows

    def _begins_counting(self) -> bool:
        """Whether this call counts hits; where it begins a step of its own, that ends the one before."""
        counts = self.training and torch.is_grad_enabled() and self.num_classes > 1 and not is_transformed()
        counts = counts and self.table.gathers
        if counts and not self._steps_end_elsewhere:
            self.table.end_step()
        return counts

    def _shown(self) -> tuple[str, ...]:
        return "epsilon", "shape_weight"


def frozen_decoupled(
    num_classes: int,
    *,
    table: OthersTable | LabelTable,
    epsilon: float = 0.1,
    shape_weight: float = 1.0,
    neighbors: int | None = None,
    **options: Unpack[Options],
) -> DecoupledLabelEmbeddingLoss:
    """The loss with learned rows that stay as they are."""
    return DecoupledLabelEmbeddingLoss(
        num_classes,
        epsilon=epsilon,
        shape_weight=shape_weight,
        neighbors=neighbors,
        table=table,
        freeze_table=True,
        **options,
    )
