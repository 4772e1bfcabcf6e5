"""What a head leaves to the label table: its predictions, summed over the matched items of each label of a chunk."""

import torch
from torch import Tensor

from labelemb.losses.large.label_plan import Chunk, LabelPlan


class Matches:
    """Sums by label; axes: U distinct labels of the chunk, C classes, B items of a block.

    Args:
        plan: of all items.
        chunk: whose labels these are.
        buffer: (at least U, C), in which the predictions are summed.
    """

    def __init__(self, plan: LabelPlan, chunk: Chunk, buffer: Tensor) -> None:
        num_labels = chunk.last_label - chunk.first_label
        self._plan, self._first_label = plan, chunk.first_label
        self.weight = buffer.new_zeros(num_labels)  # (U,), of the factors of matched items
        self.predictions = buffer[:num_labels].zero_()  # (U, C), of their predictions times these factors

    def add_weight(self, items: slice, matched: Tensor) -> None:
        """Add the factors of sorted items (B, 1), 0 where one is not matched."""
        self.weight.index_add_(0, self._plan.inverse[items] - self._first_label, matched.squeeze(1))

    def add_predictions(self, items: slice, exponentials: Tensor, mass: Tensor, matched: Tensor) -> None:
        """Add exponentials (B, C), each row divided by its `mass` (B, 1), the sum, and times its `matched` (B, 1)."""
        block = self._plan.chunk(items.start, items.stop)
        num_labels = block.last_label - block.first_label
        places = self._plan.inverse[items] - block.first_label  # (B,)
        factor = (matched / mass).T  # (1, B)
        select = factor.new_zeros(num_labels, len(exponentials)).scatter_(0, places[None], factor)  # (labels of B, B)
        first = block.first_label - self._first_label
        self.predictions[first : first + num_labels].addmm_(select, exponentials)

    def places(self) -> Tensor:
        """The labels with a match, as places among the U: the only ones that cost anything; on a GPU all labels."""
        if self.weight.device.type == "cpu":
            return self.weight.nonzero().squeeze(1)
        return torch.arange(len(self.weight), device=self.weight.device)  # their number would wait for the device


def match_value(log_probs: Tensor, predictions: Tensor) -> Tensor:
    """The match term of B labels, 0-d, from log r (B, C) and the summed predictions (B, C)."""
    value: Tensor = -torch.linalg.vecdot(predictions, log_probs).sum()
    return value


def match_gradient(log_probs: Tensor, predictions: Tensor, weight: Tensor) -> Tensor:
    """Its gradient (B, C) in the rows' logits, in the place of log r; weight: (B, 1) of the summed predictions."""
    return log_probs.exp_().mul_(weight).sub_(predictions)
