"""The decoupled loss and its gradients in one pass over chunks of items, no (N, C) tensor.

What labelemb.losses.large.fused_decoupled calls, beside labelemb.losses.large.fused_pass, which has the five terms of
label embedding: here one head serves everything, and the label's own logit is left out of the sums.

Axes: N items, C classes, D features; in a chunk K items, sorted by label, and U distinct labels; in a block B rows.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from labelemb.losses.counted_table import CountedTable
from labelemb.losses.large.blocks import block_rows, blocks, keep
from labelemb.losses.large.class_shard import EVERY_CLASS, Classes
from labelemb.losses.large.decoupled_rows import Buffers, CountedRows, NeighborRows, Predictions, Rows, TrainedRows
from labelemb.losses.large.fused_call import Gradients
from labelemb.losses.large.gradient_sum import GradientSum
from labelemb.losses.large.label_plan import Chunk, LabelPlan
from labelemb.losses.large.linear import Linear
from labelemb.losses.large.soft_labels import SoftLabels
from labelemb.losses.large.table_rows import LowRankRows
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.neighbor_table import NeighborTable
from labelemb.losses.others_table import OthersTable
from labelemb.losses.terms import widened

HARD, CERTAINTY, SHAPE = range(3)


class DecoupledInputs(NamedTuple):
    """The tensors a pass may differentiate; the last three are those of rows of low rank."""

    features: Tensor  # (N, D)
    head_weight: Tensor  # (C, D)
    head_bias: Tensor | None  # (C,)
    codes: Tensor | None = None  # (C, R)
    decoder_weight: Tensor | None = None  # (C, R)
    decoder_bias: Tensor | None = None  # (C,)


class DecoupledSettings(NamedTuple):
    """What a pass computes.

    counts: whether hits are counted; needed: which of the inputs want gradients; classes: those that the inputs have.
    """

    epsilon: float
    shape_weight: float
    counts: bool
    needed: tuple[bool, ...]
    product_dtype: torch.dtype
    chunk_size: int
    classes: Classes = EVERY_CLASS


class DecoupledPass:
    """One pass: `run` it once.

    With p = softmax(z), p~ the same over the labels other than y, r the row, w the item's factor, the gradients in
    closed form are those of labelemb.losses.decoupled_closed_form,

        dz = w*((1 - p_y - epsilon + shape_weight)*p~ - shape_weight*r),   dz_y = w*(p_y - (1 - epsilon))

    and for rows of low rank the sum over the label's hits of w*(r - p~).

    Args:
        inputs: head, table and features.
        table: the rows, to which the hits are handed.
        plan: on the device of the features.
        item_weight: (N,) w, in float32 or wider: the type of all row-wise steps and sums.
        settings: of the pass.
    """

    def __init__(
        self,
        inputs: DecoupledInputs,
        table: OthersTable,
        plan: LabelPlan,
        item_weight: Tensor,
        settings: DecoupledSettings,
    ) -> None:
        self.inputs, self.plan, self.settings, self.classes = inputs, plan, settings, settings.classes
        self.item_weight = item_weight[plan.order]  # (M,)
        self.values = item_weight.new_zeros(3, len(plan.order))  # hard, certainty, shape of the sorted items
        self.chunks = plan.chunks(settings.chunk_size)
        self.sums = {
            name: GradientSum(tensor, item_weight.dtype)
            for name, tensor, needed in zip(inputs._fields, inputs, settings.needed, strict=True)
            if tensor is not None and needed
        }
        self.head = self._linear("head_weight", "head_bias")
        self.rows = self._rows(table, self._allocate(table))

    def run(self) -> tuple[Tensor, Gradients]:
        """The terms hard, certainty, shape, match (4,), each summed with the items' factors, and the gradients."""
        for chunk in self.chunks:
            items = self.plan.order[chunk.start : chunk.stop]
            features = self.inputs.features.index_select(0, items).to(self.settings.product_dtype)  # (K, D)
            self.rows.begin(chunk)
            self._pass_network(chunk, features, items)
            self.rows.end()
        if "features" in self.sums:
            self.sums["features"].combine(self.classes.added_up)
        terms = torch.cat([self.values @ self.item_weight, self.classes.added_up(self.rows.match)[None]])
        del self.logit_buffer, self.rows  # before a narrow gradient is copied out of its wide sum
        return terms, [self.sums[name].finish() if name in self.sums else None for name in self.inputs._fields]

    def _linear(self, weight: str, bias: str) -> Linear:
        """A map whose gradients go into their sums."""
        tensors = self.inputs._asdict()
        sums = self.sums.get(weight), self.sums.get(bias)
        return Linear(tensors[weight], tensors[bias], *sums, self.settings.product_dtype)

    def _allocate(self, table: OthersTable) -> Buffers:
        num_classes, dtype = len(self.inputs.head_weight), self.item_weight.dtype
        items = max((chunk.stop - chunk.start for chunk in self.chunks), default=0)  # K
        labels = max((chunk.last_label - chunk.first_label for chunk in self.chunks), default=0)  # U
        self.block_rows = block_rows(self.classes.most(num_classes), self.item_weight.device.type)

        def buffer(rows: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(rows, num_classes, dtype=dtype, device=self.item_weight.device)

        self.logit_buffer = buffer(items, self.settings.product_dtype)  # the head's logits, then their gradients
        return Buffers(
            buffer(labels if isinstance(table, CountedTable | LowRankTable) else 0, dtype),
            buffer(labels if isinstance(table, LowRankTable) else 0, self.settings.product_dtype),
            buffer(0 if isinstance(table, NeighborTable) else min(self.block_rows, max(items, labels)), dtype),
        )

    def _rows(self, table: OthersTable, buffers: Buffers) -> Rows:
        if isinstance(table, CountedTable):
            return CountedRows(table, self.plan, buffers, counts=self.settings.counts)
        if isinstance(table, NeighborTable):
            return NeighborRows(table, self.plan, buffers, self.classes, counts=self.settings.counts)
        assert isinstance(table, LowRankTable)
        assert self.inputs.codes is not None
        decoder = self._linear("decoder_weight", "decoder_bias")
        rows = LowRankRows(self.inputs.codes, decoder, self.sums.get("codes"), relu=False, classes=self.classes)
        return TrainedRows(rows, self.plan, buffers, self.classes, is_matched=table.is_trained)

    def _pass_network(self, chunk: Chunk, features: Tensor, items: Tensor) -> None:
        """All terms of the head: one pass over its logits."""
        logits = self.head.into(features, self.logit_buffer)  # (K, C)
        for block in blocks(len(logits), self.block_rows):
            self._block(logits[block], chunk.start + block.start)
        gradient = logits  # what the blocks have left in their place
        self.head.add_gradient(gradient, features)
        if "features" in self.sums:
            self.sums["features"].add_rows(items, gradient @ self.head.weight)

    def _block(self, logits: Tensor, start: int) -> None:
        """Values and hits of the sorted items from `start` on; their logits (B, C) become their gradients."""
        items = slice(start, start + len(logits))
        scores, gold = widened(logits), self.plan.labels[self.plan.inverse[items], None]  # (B, C), (B, 1)
        weight = self.item_weight[items, None]  # (B, 1), as all columns below
        soft_labels, gold_score = self.rows.soft_labels(items), self.classes.pick(scores, gold)
        expected = soft_labels.expected_scores(scores)
        self.classes.put(scores, gold, -torch.inf)  # the label is left out, never taken off again
        top, gold_score = self.classes.largest(scores.amax(dim=1, keepdim=True), gold_score)
        exponentials = scores.sub_(top).exp_()
        mass, expected = self.classes.summed(exponentials.sum(dim=1, keepdim=True), expected)
        log_mass = top + mass.log()
        hits = (gold_score >= top) & (weight != 0)
        self.rows.take(Predictions(items, exponentials, mass, hits, weight))
        log_odds = gold_score - log_mass
        self._put_values(items, log_odds, log_mass - expected)
        if "features" in self.sums or self.head.is_trained:
            keep(self._gradient(exponentials, mass, gold, log_odds.sigmoid(), weight, soft_labels), logits)

    def _put_values(self, items: slice, log_odds: Tensor, shape: Tensor) -> None:
        """The terms of a block's items, each (B, 1)."""
        epsilon = self.settings.epsilon
        hard, log_rest = -F.logsigmoid(log_odds), F.logsigmoid(-log_odds)
        certainty = (1 - epsilon) * hard - epsilon * log_rest
        self.values[:, items] = torch.cat([hard, certainty, shape], dim=1).T

    def _gradient(
        self,
        exponentials: Tensor,
        mass: Tensor,
        gold: Tensor,
        label_probs: Tensor,
        weight: Tensor,
        soft_labels: SoftLabels,
    ) -> Tensor:
        """dz of a block, (B, C), in the place of the exponentials."""
        odds, shape = label_probs - (1 - self.settings.epsilon), self.settings.shape_weight
        gradient = exponentials.mul_(weight * (shape - odds) / mass)
        if shape:
            soft_labels.subtract_from(gradient, weight * shape)
        return self.classes.put(gradient, gold, weight * odds)
