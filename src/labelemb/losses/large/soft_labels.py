"""The soft labels of a block of items, as a pass needs them: what is expected under them, and their gradient.

Axes: B items of a block, C classes, K labels that have a share of their own.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class DenseSoftLabels(NamedTuple):
    """A share for every label."""

    shares: Tensor  # (B, C)

    def expected_scores(self, scores: Tensor) -> Tensor:
        """Of scores (B, C): (B, 1). A score of -inf where there is no share counts for nothing."""
        expected: Tensor = torch.linalg.vecdot(self.shares, scores)
        if scores.device.type != "cpu" or bool(expected.isnan().any()):  # elsewhere asking would wait for the device
            expected = torch.where(expected.isnan(), (self.shares * scores).nansum(dim=1), expected)
        return expected[:, None]

    def subtract_from(self, gradient: Tensor, weight: Tensor) -> None:
        """Take weight (B, 1) times the soft labels from a gradient (B, C), in place."""
        gradient.addcmul_(self.shares, weight, value=-1)


class SparseSoftLabels(NamedTuple):
    """The same share for every label, and an excess for K of them, which add up where one is named twice."""

    indices: Tensor  # (B, K) int64
    excess: Tensor  # (B, K)
    rest: Tensor | None  # (B, 1) the share of every label; None for nothing

    def expected_scores(self, scores: Tensor) -> Tensor:
        """Of scores (B, C): (B, 1)."""
        expected = (scores.gather(1, self.indices) * self.excess).sum(dim=1, keepdim=True)
        return expected if self.rest is None else expected.addcmul_(self.rest, scores.sum(dim=1, keepdim=True))

    def subtract_from(self, gradient: Tensor, weight: Tensor) -> None:
        """Take weight (B, 1) times the soft labels from a gradient (B, C), in place."""
        if self.rest is not None:
            gradient.sub_(weight * self.rest)
        gradient.scatter_add_(1, self.indices, -weight * self.excess)


SoftLabels = DenseSoftLabels | SparseSoftLabels
