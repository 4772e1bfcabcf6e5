"""What every soft-label mode shares: one call, the options of nn.CrossEntropyLoss, terms, a form for many labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Never, TypedDict, Unpack

import torch
from torch import Tensor, nn

from labelemb.losses.arguments import (
    check_call,
    check_one_label,
    check_reduction,
    checked_class_weight,
    is_traced,
    refuse_unknown,
)
from labelemb.losses.calls import is_training_call
from labelemb.losses.forgotten import ForgottenParameters
from labelemb.losses.items import Items, Reduction, SparseTarget, expected, is_distribution, targets_and_factors
from labelemb.losses.large.class_shard import EVERY_CLASS, Classes, ClassShard
from labelemb.losses.large.label_plan import LabelPlan
from labelemb.losses.ranks import RankAgreement
from labelemb.losses.shapes import as_rows
from labelemb.losses.terms import LossTerms, Terms, check_weights, reduced_terms, widened
from labelemb.losses.watch import WatchesHead
from labelemb.losses.wide_buffers import WideBuffers


class Options(TypedDict, total=False):
    """The options that all modes share, for constructors that hand them on."""

    class_weight: Tensor | Sequence[float] | None
    ignore_index: int
    reduction: Reduction


class SoftLabelLoss(WatchesHead, WideBuffers, ABC):
    """The call, the checks and the reduction of all modes.

    A mode says in `item_values` what its terms are for each item, in `factors` how they are weighed, and everything
    else is here.

    Args:
        num_classes: C, at least 1.
        class_weight: (C,) weights that multiply all terms of a label's items.
        ignore_index: items with this target have no part in any term.
        reduction: "mean", "sum" or "none" (one value an item, 0 for ignored ones).

    Calls take `logits` (N, C), `target` of indices (N,) or class probabilities (N, C), `features` (N, D) where the mode
    uses them, and `num_items`: an int or 0-d tensor that replaces the divisor of the mean. As in PyTorch there may be
    more axes, for pixels or tokens: `logits` (N, C, ...), `target` (N, ...) or (N, C, ...), `features` (N, D, ...).
    Each position is an item of its own then, and "none" gives back (N, ...).

    Modes that keep something of each training example take `index` (N,) too: which one each item is.

    The plain attribute `progress` is the share of training done, in [0, 1]: set by the loop before each step, read by
    modes whose weights change.

    Raises:
        TypeError: an argument that there is not.
        ValueError: settings out of range, shapes that do not fit.
    """

    class_weight: Tensor | None
    summed_buffers: ClassVar[tuple[str, ...]] = ()
    """Buffers that each of several processes sums up for itself until an epoch ends."""
    classes: Classes = EVERY_CLASS
    """Those that this process has; labelemb.losses.large.sharded splits them over several."""
    _saw_probabilities = False

    def __init__(
        self,
        num_classes: int,
        *,
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
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.progress = 0.0
        self.register_buffer("class_weight", checked_class_weight(class_weight, num_classes), persistent=False)
        self.forgotten = ForgottenParameters()
        self.ranks = RankAgreement()

    @property
    @abstractmethod
    def factors(self) -> tuple[float, ...]:
        """What the terms of `item_values` are multiplied by, in their order."""

    def forward(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> Tensor:
        """The loss: 0-d, or (N, ...) with reduction "none". While a head is watched, without gradients: `hard`."""
        if features is None and not torch.is_grad_enabled() and self._watched() is not None:
            return self.hard(logits, target, num_items=num_items)
        return self._terms_and_total(logits, target, features, num_items)[1]

    @abstractmethod
    def terms(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> Terms:
        """The unweighted terms and the loss, all reduced alike."""

    def hard(self, logits: Tensor, target: Tensor, *, num_items: Tensor | int | None = None) -> Tensor:
        """Cross entropy, `terms(...).hard`, of logits and target alone: the validation loss, comparable over modes.

        Reduced as the loss is. It needs no features, and no mode counts or learns anything by it.
        """
        call = as_rows(logits, target, None, num_classes=self.num_classes, num_features=None)
        items = self.items(call.target, num_items)
        check_call(call.logits, items, self.num_classes)
        logits = widened(call.logits)  # (N', C)
        target, item_factors = targets_and_factors(items, logits.dtype)
        values = -expected(logits.log_softmax(dim=1), target) * item_factors  # (N',)
        return call.restored(values) if self.reduction == "none" else values.sum()

    def fused(
        self,
        features: Tensor,
        target: Tensor | SparseTarget,
        head: nn.Linear,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """The loss of `head(features)` for large label sets: no (N, C) tensor is made, `chunk_size` items at a time.

        `target` is (N,) indices, the reduction "mean" or "sum", `head` a plain nn.Linear without hooks. Modes of fixed
        soft labels (baseline, smoothing, tfkd) also take soft targets of a few labels each, such as a teacher's best:
        `target=(indices, values)`, (N, K) each, as if they stood in a target (N, C) of zeros.
        labelemb.losses.large.fused says what it costs.
        """
        return self.fused_terms(features, target, head, num_items=num_items, chunk_size=chunk_size).total

    def fused_terms(
        self,
        features: Tensor,
        target: Tensor | SparseTarget,
        head: nn.Linear,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
        plan: LabelPlan | None = None,
    ) -> Terms:
        """The terms of `fused`, without gradient, and the loss `total` with it."""
        raise ValueError(f"{type(self).__name__} needs every probability and has no fused form")

    def end_step(self) -> None:
        """What a mode does after an optimiser step; most do nothing. In a loop with accumulation, call it."""

    def end_epoch(self) -> None:
        """What a mode does when all items were seen once; most do nothing. In a loop of your own, call it."""

    def extra_repr(self) -> str:
        """What `print` shows of it beside its modules."""
        names = ("num_classes", *self._shown(), "ignore_index", "reduction")
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        return ", ".join(shown if self.class_weight is None else [*shown, f"class_weight=({self.num_classes},)"])

    @abstractmethod
    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (T, N) of the terms in their order, by plain operations that autograd differentiates.

        Args:
            logits: (N, C), float32 or wider.
            target: (N,) int64 in [0, C), or (N, C) with class weights multiplied in.
            features: as given.
        """

    def num_items(self, target: Tensor) -> Tensor:
        """What a mean over these targets (N,) or (N, C) divides by, 0-d: for calls on parts of a batch.

        A batch in parts, one after another or on several processes, has the loss of the whole where each part is called
        with the `num_items` of all of them, and the parts are added up.
        """
        items = Items(target, self.class_weight, self.ignore_index, reduction="sum")
        dtype = torch.float32 if self.class_weight is None else self.class_weight.dtype
        target, kept = targets_and_factors(items, dtype)
        weighted = is_distribution(target) and self.class_weight is not None
        return target.sum() if weighted else kept.sum()

    def items(self, target: Tensor, num_items: Tensor | int | None) -> Items:
        """The targets of a call with this criterion's options."""
        return Items(target, self.class_weight, self.ignore_index, num_items, self.reduction)

    def notice_call(self, logits: Tensor) -> None:
        """Let the two warnings look on where a call trains: parameters without an optimiser, ranks that drift apart."""
        if is_training_call(self, logits):
            self.forgotten.check(self, logits)
            if not isinstance(self.classes, ClassShard):  # of which each rank has its own
                self.ranks.check(self, logits)

    def _terms_and_total(
        self, logits: Tensor, target: Tensor, features: Tensor | None, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """Terms (T,) and loss 0-d, or (T, N, ...) and (N, ...)."""
        if (caught := self._watched()) is not None:
            features = caught.take(logits, features)
        if logits.ndim == 2:
            return self._of_rows(logits, target, features, num_items)
        width = self.needed_features
        call = as_rows(logits, target, features, num_classes=self.num_classes, num_features=width)
        terms, total = self._of_rows(call.logits, call.target, call.features, num_items)
        return (call.restored(terms), call.restored(total)) if self.reduction == "none" else (terms, total)

    def _of_rows(
        self, logits: Tensor, target: Tensor, features: Tensor | None, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """The same of logits (N, C): terms (T,) and loss 0-d, or (T, N) and (N,)."""
        logits, target, item_factors = self._prepared(logits, target, num_items)
        return self._reduced(logits, target, features, item_factors)

    def _prepared(
        self, logits: Tensor, target: Tensor, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a call computes with, after its checks: logits and target as in `item_values`, what each item counts."""
        items = self.items(target, num_items)
        if isinstance(self.classes, ClassShard):
            raise ValueError(
                "a criterion whose classes are split over ranks has its fused form alone: use "
                "criterion.fused(features, target, head)"
            )
        check_call(logits, items, self.num_classes)
        if not self._saw_probabilities and is_distribution(target) and not is_traced():
            self._saw_probabilities = True  # one look will do: later calls are not to be slower
            check_one_label(target)
        self.notice_call(logits)
        logits = widened(logits)
        target, item_factors = targets_and_factors(items, logits.dtype)
        return logits, target, item_factors

    def _reduced(
        self, logits: Tensor, target: Tensor, features: Tensor | None, item_factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        values = self.item_values(logits, target, features)
        return reduced_terms(values, item_factors, self.factors, self.reduction)

    def _shown(self) -> tuple[str, ...]:
        """The settings that `print` shows."""
        return ()


class FiveTermLoss(SoftLabelLoss):
    """A mode whose terms are those of the paper, or some of them."""

    def terms(
        self, logits: Tensor, target: Tensor, features: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> LossTerms:
        """The unweighted terms and the loss, all reduced alike; a mode without a term has 0 there."""
        terms, total = self._terms_and_total(logits, target, features, num_items)
        hard, soft, aux, cap, match = terms.unbind()
        return LossTerms(hard, soft, aux, cap, match, total)


class TwoTermLoss(FiveTermLoss):
    """hard_weight*H(target, p) + soft_weight*soft: a mode that adds one term to cross entropy, and learns nothing.

    Args:
        num_classes: C.
        hard_weight, soft_weight: finite and at least 0; plain attributes, which may be changed between steps.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.
    """

    def __init__(self, num_classes: int, *, hard_weight: float, soft_weight: float, **options: Unpack[Options]) -> None:
        super().__init__(num_classes, **options)
        check_weights(hard_weight=hard_weight, soft_weight=soft_weight)
        self.hard_weight = hard_weight
        self.soft_weight = soft_weight

    @property
    def factors(self) -> tuple[float, ...]:
        """What hard and soft are multiplied by; the other terms are 0."""
        return self.hard_weight, self.soft_weight, 0.0, 0.0, 0.0

    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (5, N) of hard and soft, and zeros."""
        log_probs = logits.log_softmax(dim=1)  # (N, C)
        hard = -expected(log_probs, target)
        zero = torch.zeros_like(hard)
        return torch.stack([hard, self.soft_values(log_probs, hard, target), zero, zero, zero])

    @abstractmethod
    def soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        """The soft term (N,) of each item, from log p (N, C) and the hard term (N,)."""

    def _shown(self) -> tuple[str, ...]:
        return "hard_weight", "soft_weight"
