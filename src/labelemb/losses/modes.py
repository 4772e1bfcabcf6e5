"""The soft-label modes behind one call: this method and the usual alternatives to it.

Every criterion is called as `criterion(logits, target, features, num_items=...)` and has `terms` and `fused` (but for
`online-smoothing`, which needs every probability).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Never, Self, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labelemb.losses.label_embedding import LabelEmbeddingLoss, hard_values
from labelemb.losses.large.fused import fused_fixed_soft_label_loss
from labelemb.losses.table import LabelTable, check_dense
from labelemb.losses.terms import (
    LossTerms,
    Reduction,
    Weights,
    check_call,
    check_reduction,
    checked_class_weight,
    expected_rows,
    is_distribution,
    prepare,
    refuse_unknown,
    weighted_terms,
    widened,
)


class _Options(TypedDict, total=False):
    hard_weight: float
    soft_weight: float
    class_weight: Tensor | Sequence[float] | None
    ignore_index: int
    reduction: Reduction


class _SoftLabelLoss(nn.Module, ABC):
    """hard_weight*hard + soft_weight*soft, with soft labels that no gradient trains; features are not used."""

    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        hard_weight: float = 0.5,
        soft_weight: float = 0.5,
        class_weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        **unknown: Never,
    ) -> None:
        super().__init__()
        refuse_unknown(type(self).__name__, unknown)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        check_reduction(reduction)
        self.num_classes = num_classes
        self.hard_weight = hard_weight
        self.soft_weight = soft_weight
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.register_buffer("class_weight", checked_class_weight(class_weight, num_classes), persistent=False)

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        settings = ("num_classes", "hard_weight", "soft_weight", "ignore_index", "reduction")
        shown = [f"{name}={getattr(self, name)!r}" for name in settings]
        return ", ".join(shown if self.class_weight is None else [*shown, f"class_weight=({self.num_classes},)"])

    def forward(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> Tensor:
        """The loss: 0-d, or (N,) with reduction "none". See LabelEmbeddingLoss for the arguments."""
        return self.terms(logits, target, features, num_items=num_items).total

    def terms(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> LossTerms:
        """The unweighted terms and the loss; aux, cap and match are 0."""
        check_call(logits, target, self.num_classes, self.ignore_index, num_items, self.reduction)
        log_probs = widened(logits).log_softmax(dim=1)  # (N, C)
        target, item_weight = prepare(
            target, self.class_weight, self.ignore_index, num_items, self.reduction, log_probs.dtype
        )
        hard = hard_values(log_probs, target)
        zero = torch.zeros_like(hard)
        values = torch.stack([hard, self._soft_values(log_probs, hard, target), zero, zero, zero])  # (5, N)
        weights = Weights(self.hard_weight, self.soft_weight, 0.0, 1.0, 1.0)
        terms, total = weighted_terms(values, item_weight, weights, self.reduction)
        hard, soft, aux, cap, match = terms.unbind()
        return LossTerms(hard, soft, aux, cap, match, total)

    @abstractmethod
    def _soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        """The soft term (N,) of each item, from log p (N, C) and the hard term (N,)."""


class FixedSoftLabelLoss(_SoftLabelLoss):
    """Soft labels that are the same all the time: `true_prob` on the label, the rest spread evenly over the others.

        loss = mean over items of (hard_weight*H(onehot(y), p) + soft_weight*D(t_y, p)),   p = softmax(logits)

    D is the cross entropy H, or with `divergence` Kullback-Leibler's, which differs by the constant H(t_y).

    Args:
        num_classes: C.
        true_prob: t_y[y], in [0, 1].
        divergence: which D.
        options: hard_weight, soft_weight, class_weight, ignore_index, reduction as for LabelEmbeddingLoss.

    Source: uniform rows make label smoothing (Szegedy et al. 2016); see `teacher_free`.
    """

    def __init__(
        self, num_classes: int, *, true_prob: float, divergence: bool = False, **options: Unpack[_Options]
    ) -> None:
        super().__init__(num_classes, **options)
        if not 0 <= true_prob <= 1:
            raise ValueError(f"true_prob must lie in 0 to 1, got {true_prob}")
        self.true_prob = true_prob
        self.other_prob = (1 - true_prob) / (num_classes - 1) if num_classes > 1 else 0.0
        self.entropy = _entropy(true_prob) + (num_classes - 1) * _entropy(self.other_prob) if divergence else 0.0

    def fused(
        self,
        features: Tensor,
        target: Tensor,
        head: nn.Linear,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """The same loss from features (N, D), without an (N, C) tensor; see LabelEmbeddingLoss.fused."""
        return fused_fixed_soft_label_loss(self, features, target, head, num_items, chunk_size).total

    def _soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        # H(t_y, p) = (t - o)*H(onehot(y), p) - o*sum log p: no row of t is ever made, so any number of labels will do
        mass = target.sum(dim=1) if is_distribution(target) else 1.0
        soft = (self.true_prob - self.other_prob) * hard - mass * self.entropy
        if self.other_prob == 0:  # 0 times the infinite log p of a masked class would be NaN
            return soft
        return soft - self.other_prob * mass * log_probs.sum(dim=1)


class OnlineLabelSmoothing(_SoftLabelLoss):
    """A label's soft row is the mean prediction of its correctly classified items in the previous epoch.

    The first epoch has uniform rows; a label without a hit keeps its row. Training calls with gradients gather the
    sums; `end_epoch()` makes them the rows of the next epoch, over all processes. Rows, sums and counts are in the
    state dict.

    Args:
        num_classes: C, at most 20,000: the rows are a (C, C) table.
        options: hard_weight, soft_weight, class_weight, ignore_index, reduction as for LabelEmbeddingLoss.

    Source: Zhang et al. 2021, "Delving Deep into Label Smoothing".
    """

    rows: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, **options: Unpack[_Options]) -> None:
        super().__init__(num_classes, **options)
        check_dense(num_classes)
        self.register_buffer("rows", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))

    def terms(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> LossTerms:
        """The unweighted terms and the loss; training calls also gather the next epoch's rows."""
        terms = super().terms(logits, target, features, num_items=num_items)
        if self.training and torch.is_grad_enabled():
            self._gather(logits.detach(), target)
        return terms

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep rows, sums and counts at least in float32: in half precision a count stops at 256 or 2,048."""
        before = dict(self.named_buffers(recurse=False))
        apply: Callable[..., Self] = super()._apply
        apply(fn, recurse)
        for name in ("rows", "sums", "counts"):
            if (after := getattr(self, name)).dtype.itemsize < torch.float32.itemsize:
                setattr(self, name, before[name].to(after.device, torch.float32))
        return self

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Take the gathered means as rows, summed over processes, and begin the next epoch's sums."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.sums)
            dist.all_reduce(self.counts)
        means = self.sums / self.counts.clamp_min(torch.finfo(self.counts.dtype).tiny)[:, None]
        self.rows.copy_(torch.where(self.counts[:, None] > 0, means, self.rows))
        self.sums.zero_()
        self.counts.zero_()

    def _gather(self, logits: Tensor, target: Tensor) -> None:
        target, kept = prepare(target, None, self.ignore_index, None, "sum", self.sums.dtype)
        hit = (logits == logits.amax(dim=1, keepdim=True)).to(self.sums.dtype)  # (N, C)
        probs = widened(logits).softmax(dim=1).to(self.sums.dtype)
        if is_distribution(target):
            weight = target * hit  # (N, C)
            self.sums.add_(expected_rows(weight.T, probs))
            self.counts.add_(weight.sum(dim=0))
        else:
            weight = hit.gather(1, target[:, None]).squeeze(1) * kept  # (N,)
            self.sums.index_add_(0, target, probs * weight[:, None])
            self.counts.index_add_(0, target, weight)

    def _soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        rows = self.rows.to(log_probs.dtype)
        soft = expected_rows(target, rows) if is_distribution(target) else rows[target]  # (N, C)
        return -(soft * log_probs).sum(dim=1)


Criterion = LabelEmbeddingLoss | FixedSoftLabelLoss | OnlineLabelSmoothing


def baseline(num_classes: int) -> FixedSoftLabelLoss:
    """Cross entropy."""
    return FixedSoftLabelLoss(num_classes, hard_weight=1.0, soft_weight=0.0, true_prob=1.0)


def smoothing(num_classes: int, epsilon: float = 0.1) -> FixedSoftLabelLoss:
    """Uniform label smoothing: cross entropy with (1 - epsilon)*onehot(y) + epsilon/C. Source: Szegedy et al. 2016."""
    return FixedSoftLabelLoss(num_classes, hard_weight=1 - epsilon, soft_weight=epsilon, true_prob=1 / num_classes)


def teacher_free(num_classes: int) -> FixedSoftLabelLoss:
    """0.9*H(onehot(y), p) + 0.1*KL(t_y, p), t_y = softmax(u/20), u = 0.99 on the label and 0.01/(C-1) elsewhere.

    Source: Yuan et al. 2020, "Revisiting Knowledge Distillation via Label Smoothing Regularization".
    """
    others = num_classes - 1
    true, other = math.exp(0.99 / 20), math.exp(0.01 / max(others, 1) / 20)
    true_prob = true / (true + others * other)
    return FixedSoftLabelLoss(num_classes, hard_weight=0.9, soft_weight=0.1, true_prob=true_prob, divergence=True)


def _entropy(prob: float) -> float:
    return -prob * math.log(prob) if prob > 0 else 0.0


class EmbeddingOptions(TypedDict, total=False):
    """Settings of LabelEmbeddingLoss, which has their defaults; the other modes have none to set."""

    rank: int | None
    hard_weight: float
    soft_weight: float
    temperature: float
    cap: float
    cap_weight: float


def _label_embedding(
    num_features: int, num_classes: int, table: LabelTable | None, options: EmbeddingOptions
) -> LabelEmbeddingLoss:
    return LabelEmbeddingLoss(num_features, num_classes, table=table, **options)


def _frozen_label_embedding(
    num_features: int, num_classes: int, table: LabelTable | None, options: EmbeddingOptions
) -> LabelEmbeddingLoss:
    return LabelEmbeddingLoss(num_features, num_classes, table=table, freeze_table=True, **options)


_Maker = Callable[[int, int, LabelTable | None, EmbeddingOptions], Criterion]
MODES: dict[str, _Maker] = {
    "baseline": lambda _, num_classes, *__: baseline(num_classes),
    "smoothing": lambda _, num_classes, *__: smoothing(num_classes),
    "online-smoothing": lambda _, num_classes, *__: OnlineLabelSmoothing(num_classes),
    "tfkd": lambda _, num_classes, *__: teacher_free(num_classes),
    "emb": _label_embedding,
    "emb-start": _label_embedding,
    "emb-frozen": _frozen_label_embedding,
}


def make_criterion(
    mode: str,
    num_features: int,
    num_classes: int,
    *,
    table: LabelTable | None = None,
    **options: Unpack[EmbeddingOptions],
) -> Criterion:
    """The criterion of a mode.

    Args:
        mode: a key of MODES.
        num_features: D.
        num_classes: C.
        table: the learned table that `emb-start` and `emb-frozen` need; the other modes take none.
        options: of LabelEmbeddingLoss; the other modes use none.

    Raises:
        ValueError: a table is missing or not wanted, or does not fit the labels.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if (table is not None) != (mode in ("emb-start", "emb-frozen")):
        needs = "needs" if table is None else "takes no"
        raise ValueError(f"mode {mode} {needs} learned label table (--table FILE)")
    return MODES[mode](num_features, num_classes, table, options)
