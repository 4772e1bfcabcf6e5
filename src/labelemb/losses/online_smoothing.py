"""Online label smoothing: soft rows that are counted from the network's own predictions, epoch by epoch."""

from typing import ClassVar, Unpack

import torch
import torch.distributed as dist
from torch import Tensor

from labelemb.losses.items import Items, expected_rows, is_distribution, targets_and_factors
from labelemb.losses.soft_label import Options, TwoTermLoss
from labelemb.losses.soft_rows import check_dense
from labelemb.losses.terms import widened


class OnlineLabelSmoothing(TwoTermLoss):
    """A label's soft row is the mean prediction of its correctly classified items in the previous epoch.

        loss = mean over items of (hard_weight*H(onehot(y), p) + soft_weight*H(row_y, p)),   p = softmax(logits)

    The first epoch has uniform rows; a label without a hit keeps its row. Training calls with gradients gather the
    sums; `end_epoch()` makes them the rows of the next epoch, over all processes. Rows, sums and counts are in the
    state dict, and stay in float32 in a module of half precision.

    Args:
        num_classes: C, at most 20,000: the rows are a (C, C) table.
        hard_weight, soft_weight: at least 0.
        options: class_weight, ignore_index, reduction as for SoftLabelLoss.

    Source: Zhang et al. 2021, "Delving Deep into Label Smoothing".
    """

    rows: Tensor
    sums: Tensor
    counts: Tensor
    wide_buffers: ClassVar[tuple[str, ...]] = ("rows", "sums", "counts")
    summed_buffers: ClassVar[tuple[str, ...]] = ("sums", "counts")

    def __init__(
        self, num_classes: int, *, hard_weight: float = 0.5, soft_weight: float = 0.5, **options: Unpack[Options]
    ) -> None:
        super().__init__(num_classes, hard_weight=hard_weight, soft_weight=soft_weight, **options)
        check_dense(num_classes)
        self.register_buffer("rows", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))

    def soft_values(self, log_probs: Tensor, hard: Tensor, target: Tensor) -> Tensor:
        """H(row_y, p) of each item (N,); see TwoTermLoss."""
        rows = self.rows.to(log_probs.dtype)
        soft = expected_rows(target, rows) if is_distribution(target) else rows[target]  # (N, C)
        return -(soft * log_probs).sum(dim=1)

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

    def _of_rows(
        self, logits: Tensor, target: Tensor, features: Tensor | None, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        terms_and_total = super()._of_rows(logits, target, features, num_items)
        if self.training and torch.is_grad_enabled():
            self._gather(logits.detach(), target)
        return terms_and_total

    def _gather(self, logits: Tensor, target: Tensor) -> None:
        items = Items(target, ignore_index=self.ignore_index, reduction="sum")
        target, kept = targets_and_factors(items, self.sums.dtype)
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
