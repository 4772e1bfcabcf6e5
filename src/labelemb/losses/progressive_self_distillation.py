"""Progressive self-distillation: each training example's target is mixed with the prediction it had an epoch ago."""

from collections.abc import Callable
from typing import ClassVar, Self, Unpack

import torch
import torch.distributed as dist
from torch import Tensor

from labelemb.losses.arguments import check_index, is_transformed
from labelemb.losses.items import expected, is_distribution
from labelemb.losses.shapes import as_rows
from labelemb.losses.soft_label import FiveTermLoss, Options
from labelemb.losses.terms import LossTerms

MAX_BYTES = 2_000_000_000  # of all predictions: they are in memory, and in every checkpoint
_KEPT = ("earlier", "gathered")


class ProgressiveSelfDistillationLoss(FiveTermLoss):
    """Cross entropy with a target that trusts the network's own prediction of an epoch ago more and more.

        loss = mean over items of H((1 - a_t)*onehot(y) + a_t*q_i, p),   p = softmax(logits),   a_t = end*t/T

    q_i is p of the same training example in the epoch before, t the epoch, counted from 1, T `num_epochs`. The first
    epoch is plain cross entropy, and so is the first time of an example that came later. Predictions are kept as two
    tables (n, C) in float16, whatever the module's type: those of the epoch before, and those that training calls with
    gradients gather. `end_epoch()` makes the gathered ones the earlier ones, over all processes; an example that was
    not seen keeps what it had. Both tables and the epoch are in the state dict. What rounding to float16 takes off a
    prediction's sum goes to the target.

    Calls need `index` (N,), or (N, ...) as the target is: which training example, in [0, n), each item is. Each should
    come once an epoch; of one that comes again the last prediction counts, of one that is in a batch twice either. In
    evaluation mode `index` may be left out: without it, the loss is cross entropy. `terms` has H(q_i, p) as `soft`, in
    the first epoch equal to `hard`. A distribution as target takes the place of onehot(y), and its sum is the weight of
    q_i; inputs that mix two examples have no prediction of their own to go by, so the recipes refuse mixup and CutMix.

    Under DistributedDataParallel give `broadcast_buffers=False`: each process gathers its own examples.

    Args:
        num_classes: C.
        num_examples: n; 4*n*C bytes may be 2 GB at most.
        num_epochs: T; later epochs have the weight of the last.
        end: the weight a_T of the earlier prediction in the last epoch, in [0, 1].
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Raises:
        ValueError: a size or `end` is out of range; in a call, an index that is missing or does not fit.

    Source: Kim et al. 2021, "Self-Knowledge Distillation with Progressive Refinement of Targets".
    """

    earlier: Tensor
    gathered: Tensor
    epoch: Tensor
    summed_buffers: ClassVar[tuple[str, ...]] = ("gathered",)

    def __init__(
        self, num_classes: int, num_examples: int, num_epochs: int, *, end: float = 0.8, **options: Unpack[Options]
    ) -> None:
        super().__init__(num_classes, **options)
        _check_sizes(num_classes, num_examples, num_epochs)
        if not 0 <= end <= 1:
            raise ValueError(f"end must lie in 0 to 1, got {end}")
        self.num_examples = num_examples
        self.num_epochs = num_epochs
        self.end = end
        for name in _KEPT:  # a row of zeros: no prediction
            self.register_buffer(name, torch.zeros(num_examples, num_classes, dtype=torch.float16))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))  # how many have ended

    @property
    def factors(self) -> tuple[float, ...]:
        """What hard and soft are multiplied by in this epoch; the other terms are 0. Waits for the device."""
        weight = float(self._weight(torch.float32))
        return 1 - weight, weight, 0.0, 0.0, 0.0

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        features: Tensor | None = None,
        *,
        num_items: Tensor | int | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The loss: 0-d, or (N,) with reduction "none"."""
        return self._hard_soft_total(logits, target, num_items, index)[2]

    def terms(
        self,
        logits: Tensor,
        target: Tensor,
        features: Tensor | None = None,
        *,
        num_items: Tensor | int | None = None,
        index: Tensor | None = None,
    ) -> LossTerms:
        """The unweighted terms and the loss, all reduced alike; aux, cap and match are 0."""
        hard, soft, total = self._hard_soft_total(logits, target, num_items, index)
        zero = torch.zeros_like(hard)
        return LossTerms(hard, soft, zero, zero, zero, total)

    def item_values(self, logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """The values (5, N) of items without an earlier prediction: hard, soft, which is the same, and zeros."""
        hard, soft, _ = self._values(logits, target, torch.zeros_like(logits))
        zero = torch.zeros_like(hard)
        return torch.stack([hard, soft, zero, zero, zero])

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Take what was gathered as the earlier predictions, from all processes, and begin the next epoch."""
        counts = self.gathered.any(dim=1, keepdim=True).int()  # (n, 1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.gathered)
            dist.all_reduce(counts)
            self.gathered.div_(counts.clamp_min(1))  # samplers give an example to two processes, to fill up
        self.earlier.copy_(torch.where(counts > 0, self.gathered, self.earlier))
        self.gathered.zero_()
        self.epoch += 1

    def _hard_soft_total(
        self, logits: Tensor, target: Tensor, num_items: Tensor | int | None, index: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        call = as_rows(logits, target, None, num_classes=self.num_classes, num_features=None)
        logits, target, item_factors = self._prepared(call.logits, call.target, num_items)
        if index is None and self.training:
            raise ValueError(
                f"index is missing: (N,) integers in 0 to {self.num_examples - 1} that say which training example each "
                "item is, e.g. criterion(logits, target, index=index); in evaluation mode it may be left out"
            )
        if index is None:
            rows = torch.zeros_like(logits)
        else:
            index = index.reshape(-1)
            check_index(index, len(logits), self.num_examples)
            rows = self.earlier[index.long()].to(logits.dtype)  # (N, C)
            if self.training and torch.is_grad_enabled() and not is_transformed():
                self._gather(logits.detach(), index.long(), item_factors != 0)
        values = torch.stack(self._values(logits, target, rows)) * item_factors  # (3, N)
        hard, soft, total = (call.restored(values) if self.reduction == "none" else values.sum(dim=1)).unbind()
        return hard, soft, total

    def _values(self, logits: Tensor, target: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hard, soft and the loss (N,) of each item, from the earlier predictions (N, C)."""
        log_probs = logits.log_softmax(dim=1)  # (N, C)
        hard = -expected(log_probs, target)
        of_rows = -expected(log_probs, rows)
        if is_distribution(target):
            of_rows = target.sum(dim=1) * of_rows
        known = rows.sum(dim=1)  # (N,) 0 without a prediction, else 1 but for rounding
        weight = self._weight(logits.dtype)
        # Not hard + weight*(soft - hard), nor (1 - weight)*hard + weight*soft: without rows this is hard to the bit.
        return hard, of_rows + (1 - known) * hard, (1 - weight * known) * hard + weight * of_rows

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """a_t, 0-d. A tensor: with a number, torch.compile would make a program for each epoch."""
        return self.end * (self.epoch + 1).clamp_max(self.num_epochs).to(dtype) / self.num_epochs

    @torch.no_grad()
    def _gather(self, logits: Tensor, index: Tensor, kept: Tensor) -> None:
        """Keep the predictions of the items that are not ignored."""
        predictions = logits.softmax(dim=1).to(self.gathered.dtype)  # (N, C)
        self.gathered.index_copy_(0, index, torch.where(kept[:, None], predictions, self.gathered[index]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Tables stay in float16: bfloat16 has too few digits, and float64 takes four times the memory."""
        before = {name: getattr(self, name) for name in _KEPT}
        super()._apply(fn, recurse)
        for name, table in before.items():
            after: Tensor = getattr(self, name)
            setattr(self, name, after if after.dtype == table.dtype else table.to(after.device))
        return self

    def _shown(self) -> tuple[str, ...]:
        return "num_examples", "num_epochs", "end"


def _check_sizes(num_classes: int, num_examples: int, num_epochs: int) -> None:
    if num_examples < 1 or num_epochs < 1:
        raise ValueError(f"num_examples and num_epochs must be at least 1, got {num_examples} and {num_epochs}")
    num_bytes = len(_KEPT) * 2 * num_examples * num_classes
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"two predictions of each of {num_examples:,} examples over {num_classes:,} labels in float16 take "
            f"{num_bytes:,} bytes, more than the {MAX_BYTES:,} that are allowed: give fewer examples, or take "
            "OnlineLabelSmoothing, which keeps a row a label"
        )
