"""Loss and gradients in one pass over chunks of items, no (N, C) tensor: what labelemb.losses.large.fused calls.

Axes: N items, C classes, D features, R rank; in a chunk K items, sorted by label, and U distinct labels; in a block B
rows. A chunk is what a matrix product takes: its buffers are a (K, C) and up to two (U, C). A block is what row-wise
steps take: on the CPU so small that it stays in the cache from the first step to the last.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from labelemb.losses.large.gradient_sum import GradientSum
from labelemb.losses.large.label_plan import Chunk, LabelPlan
from labelemb.losses.terms import Weights, widened

HARD, SOFT, AUX, CAP, MATCH = range(5)
_CPU_BLOCK_NUMEL, _CPU_BLOCK_ROWS = 2**19, 64  # 2 MiB in float32
_BLOCK_NUMEL, _BLOCK_ROWS = 2**26, 256  # rows: predictions are summed by products of B*B*C, small beside B*C*D
_OF_NETWORK = ("features", "head_weight", "head_bias")
_OF_AUX_HEAD = ("aux_weight", "aux_bias")
_OF_TABLE = ("table", "codes", "decoder_weight", "decoder_bias")
_MULTIPLIED = ("head_weight", "head_bias", "aux_weight", "aux_bias", "decoder_weight", "decoder_bias")


class Inputs(NamedTuple):
    """The tensors a pass may differentiate; a low-rank table is codes A (C, R) and decoder B (C, R), c (C,)."""

    features: Tensor  # (N, D)
    head_weight: Tensor  # (C, D)
    head_bias: Tensor | None  # (C,)
    aux_weight: Tensor | None = None  # (C, D), None where the table is not trained
    aux_bias: Tensor | None = None  # (C,)
    table: Tensor | None = None  # (C, C), a dense table
    codes: Tensor | None = None
    decoder_weight: Tensor | None = None
    decoder_bias: Tensor | None = None


class FixedSoftLabel(NamedTuple):
    """A soft label without a table: `true_prob` on the label, `other_prob` on each other; its term less `entropy`."""

    true_prob: float
    other_prob: float
    entropy: float


class PassSettings(NamedTuple):
    """What a pass computes. needed: which of the Inputs want gradients; product_dtype: of the matrix products."""

    weights: Weights
    fixed: FixedSoftLabel | None
    needed: tuple[bool, ...]
    product_dtype: torch.dtype
    chunk_size: int


class FusedPass:
    """One pass: `run` it once.

    With p = softmax(z), p' = softmax(z'), s = softmax(e_y), q = softmax(z'/temperature), m the match, y the one-hot
    target, w the item's factor, a and b the hard and soft weight, the gradients of METHOD's closed form are

        dz  = w*((a+b)*p - a*y - b*s)
        dz' = w*(1 - cap_weight*[p'_y > cap]*p'_y)*(p' - y)
        de  = sum over the label's items of w*m*(s - q), where a low-rank row is not cut off

    Args:
        inputs: heads, table and features.
        plan: on the device of the features.
        item_weight: (N,) w, in float32 or wider: the type of all row-wise steps and sums.
        settings: of the pass.
    """

    def __init__(self, inputs: Inputs, plan: LabelPlan, item_weight: Tensor, settings: PassSettings) -> None:
        self.inputs, self.plan, self.settings = inputs, plan, settings
        self.weights = settings.weights
        self.dtype, self.device = item_weight.dtype, item_weight.device
        self.item_weight = item_weight[plan.order]  # (M,)
        self.values = item_weight.new_zeros(4, len(plan.order))  # hard, soft, aux, cap of the sorted items
        self.match = item_weight.new_zeros(())
        self.sums = {
            name: GradientSum(tensor, self.dtype)
            for name, tensor, needed in zip(Inputs._fields, inputs, settings.needed, strict=True)
            if tensor is not None and needed
        }
        self.cast: dict[str, Tensor] = {
            name: tensor.to(settings.product_dtype)
            for name, tensor in zip(Inputs._fields, inputs, strict=True)
            if tensor is not None and name in _MULTIPLIED
        }
        self.reads_rows = settings.fixed is None and self.weights.soft_weight != 0
        self.chunks = plan.chunks(settings.chunk_size)
        self._allocate()

    def _allocate(self) -> None:
        num_classes = self.inputs.head_weight.shape[0]
        self.block_rows = _block_rows(num_classes, self.device.type)
        items = max((chunk.stop - chunk.start for chunk in self.chunks), default=0)
        labels = max((chunk.last_label - chunk.first_label for chunk in self.chunks), default=0)
        labels = labels if self.reads_rows or self.inputs.aux_weight is not None else 0
        row_dtype = self.settings.product_dtype if self.inputs.table is None else self.inputs.table.dtype
        blocks = min(self.block_rows, max(items, labels))
        self.logits = torch.empty(items, num_classes, dtype=self.settings.product_dtype, device=self.device)
        self.rows = torch.empty(labels, num_classes, dtype=row_dtype, device=self.device)
        self.soft = torch.empty(labels, num_classes, dtype=self.dtype, device=self.device)
        self.scratch = torch.empty(2, blocks, num_classes, dtype=self.dtype, device=self.device)

    def run(self) -> tuple[Tensor, list[Tensor | None]]:
        """The five terms (5,), each summed with the items' factors, and a gradient for each of the Inputs."""
        for chunk in self.chunks:
            items = self.plan.order[chunk.start : chunk.stop]
            features = self.inputs.features.index_select(0, items).to(self.settings.product_dtype)  # (K, D)
            if self.reads_rows:
                self._fill_rows(self.plan.labels[chunk.first_label : chunk.last_label])
                self._fill_soft_labels(chunk.last_label - chunk.first_label)
            self._pass_network(chunk, features, items)
            if self.inputs.aux_weight is not None:
                self._pass_table(chunk, self._pass_aux_head(chunk, features))
        del self.logits, self.rows, self.soft, self.scratch  # before a narrow gradient is copied out of its wide sum
        terms = torch.cat([self.values @ self.item_weight, self.match[None]])
        return terms, [self.sums[name].finish() if name in self.sums else None for name in Inputs._fields]

    def _pass_network(self, chunk: Chunk, features: Tensor, items: Tensor) -> None:
        """The hard and the soft term, which share one pass over the logits."""
        logits = self._linear("head", features, self.logits)  # (K, C)
        for start, stop in self._blocks(len(logits)):
            self._network_block(chunk, logits[start:stop], chunk.start + start)
        self._add_linear_gradient("head", logits, features)
        if "features" in self.sums:
            self.sums["features"].add_rows(items, logits @ self.cast["head_weight"])

    def _network_block(self, chunk: Chunk, logits: Tensor, start: int) -> None:
        """Values of the sorted items from `start` on; their logits (B, C) become their gradients."""
        items = slice(start, start + len(logits))
        scores, gold = widened(logits), self._gold(items)
        gold_score = scores.gather(1, gold)  # (B, 1), as all columns below
        if self.reads_rows:
            soft_labels = self._gather(self.soft, self.plan.inverse[items] - chunk.first_label, 0)  # (B, C)
            expected = torch.linalg.vecdot(soft_labels, scores)[:, None]
        top = scores.amax(dim=1, keepdim=True)
        if (fixed := self.settings.fixed) is not None:
            true_excess = fixed.true_prob - fixed.other_prob
            expected = fixed.other_prob * scores.sum(dim=1, keepdim=True) + true_excess * gold_score + fixed.entropy
        mass = scores.sub_(top).exp_().sum(dim=1, keepdim=True)
        log_mass = top + mass.log()
        self.values[HARD, items] = (log_mass - gold_score).squeeze(1)
        if self.reads_rows or fixed is not None:
            self.values[SOFT, items] = (log_mass - expected).squeeze(1)
        if self.sums.keys().isdisjoint(_OF_NETWORK):
            return
        weight = self.item_weight[items, None]
        hard, soft = self.weights.hard_weight * weight, self.weights.soft_weight * weight
        scores.mul_((hard + soft) / mass)
        if self.reads_rows:
            scores.addcmul_(soft_labels, soft, value=-1)
        elif fixed is not None:
            scores.sub_(soft * fixed.other_prob)
            hard = hard + soft * true_excess
        _keep(scores.scatter_add_(1, gold, -hard), logits)

    def _pass_aux_head(self, chunk: Chunk, features: Tensor) -> Tensor:
        """The auxiliary head's terms; its tempered predictions of matched items are summed by label into `soft`.

        Returns:
            (U,) the sum of the factors of the matched items of each label.
        """
        logits = self._linear("aux", features, self.logits)  # (K, C)
        num_labels = chunk.last_label - chunk.first_label
        self.soft[:num_labels].zero_()
        matched_weight = self.item_weight.new_zeros(num_labels)
        for start, stop in self._blocks(len(logits)):
            self._aux_block(chunk, logits[start:stop], chunk.start + start, matched_weight)
        self._add_linear_gradient("aux", logits, features)
        return matched_weight

    def _aux_block(self, chunk: Chunk, logits: Tensor, start: int, matched_weight: Tensor) -> None:
        items = slice(start, start + len(logits))
        scores, gold = widened(logits), self._gold(items)
        gold_score, top = scores.gather(1, gold), scores.amax(dim=1, keepdim=True)  # (B, 1)
        weight = self.item_weight[items, None]
        matched = weight * (gold_score == top)
        matched_weight.index_add_(0, self.plan.inverse[items] - chunk.first_label, matched.squeeze(1))
        self._exponentials(chunk, scores.sub_(top), start, matched)
        mass = scores.sum(dim=1, keepdim=True)
        loss = top + mass.log() - gold_score
        gold_prob = loss.neg().exp_()
        self.values[AUX, items] = loss.squeeze(1)
        self.values[CAP, items] = (gold_prob - self.weights.cap).clamp_min_(0).squeeze(1)
        if self.sums.keys().isdisjoint(_OF_AUX_HEAD):
            return
        scale = weight * (1 - self.weights.cap_weight * ((gold_prob > self.weights.cap) * gold_prob))
        scores.mul_(scale / mass).scatter_add_(1, gold, -scale)
        _keep(scores, logits)

    def _exponentials(self, chunk: Chunk, scores: Tensor, start: int, matched: Tensor) -> None:
        """exp(scores) in place; before that the tempered predictions of the matched items go into their sums."""
        any_match = self.device.type != "cpu" or bool(matched.any())  # elsewhere asking would wait for the device
        if self.weights.temperature == 2 and any_match:
            self._add_means(chunk, scores.mul_(0.5).exp_(), start, matched)
            scores.square_()  # one exponential for both temperatures
            return
        if any_match:
            tempered = torch.div(scores, self.weights.temperature, out=self.scratch[0, : len(scores)]).exp_()
            self._add_means(chunk, tempered, start, matched)
        scores.exp_()

    def _add_means(self, chunk: Chunk, tempered: Tensor, start: int, matched: Tensor) -> None:
        """Add the rows of exp(scores / temperature) (B, C), normalised and times `matched` (B, 1), by label."""
        block = self.plan.chunk(start, start + len(tempered))
        num_labels = block.last_label - block.first_label
        place = self.plan.inverse[block.start : block.stop] - block.first_label  # (B,)
        factor = (matched / tempered.sum(dim=1, keepdim=True)).T  # (1, B)
        select = factor.new_zeros(num_labels, len(tempered)).scatter_(0, place[None], factor)
        first = block.first_label - chunk.first_label
        self.soft[first : first + num_labels].addmm_(select, tempered)

    def _pass_table(self, chunk: Chunk, matched_weight: Tensor) -> None:
        """The match term of the chunk's labels, from what `_pass_aux_head` left in `soft`."""
        if self.device.type == "cpu":
            picked = matched_weight.nonzero().squeeze(1)  # only labels with a match cost anything
        else:
            picked = torch.arange(len(matched_weight), device=self.device)  # their number would wait for the device
        labels = self.plan.labels[chunk.first_label : chunk.last_label][picked]
        source = picked
        if not self.reads_rows:
            self._fill_rows(labels)
            source = torch.arange(len(labels), device=self.device)
        needs_gradient = not self.sums.keys().isdisjoint(_OF_TABLE)
        for start, stop in self._blocks(len(labels)):
            part = slice(start, stop)
            rows = self._gather(self.rows, source[part], 0)  # (B, C)
            means = self._gather(self.soft, picked[part], 1)  # (B, C)
            self._table_block(rows, means, matched_weight[picked[part], None], start if needs_gradient else None)
        if needs_gradient and len(labels):
            self._add_table_gradient(labels)

    def _table_block(self, rows: Tensor, means: Tensor, weight: Tensor, write_at: int | None) -> None:
        """The match term of B labels; their gradients replace the rows from `write_at` on, all read by then."""
        soft_labels = rows.log_softmax(dim=1)
        self.match -= torch.linalg.vecdot(means, soft_labels).sum()
        if write_at is None:
            return
        gradient = soft_labels.exp_().mul_(weight).sub_(means)
        if self.inputs.table is None:
            gradient.mul_(rows > 0)
        _keep(gradient, self.rows[write_at : write_at + len(rows)])

    def _add_table_gradient(self, labels: Tensor) -> None:
        gradient = self.rows[: len(labels)]  # (U, C)
        if "table" in self.sums:
            self.sums["table"].add_rows(labels, gradient)
        if "codes" in self.sums:
            self.sums["codes"].add_rows(labels, gradient @ self.cast["decoder_weight"])
        if self.inputs.codes is not None:
            self._add_linear_gradient("decoder", gradient, self.inputs.codes[labels].to(gradient.dtype))

    def _linear(self, name: str, features: Tensor, buffer: Tensor) -> Tensor:
        """A linear map of `features` (K, D or R), into the first rows of a buffer: (K, C)."""
        weight, bias, out = self.cast[f"{name}_weight"], self.cast.get(f"{name}_bias"), buffer[: len(features)]
        if bias is None:
            return torch.mm(features, weight.T, out=out)
        return torch.addmm(bias, features, weight.T, out=out)

    def _add_linear_gradient(self, name: str, gradient: Tensor, features: Tensor) -> None:
        """What the gradient (K, C) of a linear map of `features` (K, D or R) gives its weight and bias."""
        if f"{name}_weight" in self.sums:
            self.sums[f"{name}_weight"].add_product(gradient.T, features)
        if f"{name}_bias" in self.sums:
            self.sums[f"{name}_bias"].add(gradient.sum(dim=0, dtype=self.dtype))

    def _fill_rows(self, labels: Tensor) -> None:
        """The label table's rows of some labels, into the first of `rows`."""
        rows = self.rows[: len(labels)]  # (U, C)
        if self.inputs.table is not None:
            torch.index_select(self.inputs.table, 0, labels, out=rows)
        else:
            assert self.inputs.codes is not None
            codes = self.inputs.codes.index_select(0, labels).to(rows.dtype)  # (U, R)
            self._linear("decoder", codes, rows).relu_()

    def _fill_soft_labels(self, num_labels: int) -> None:
        for start, stop in self._blocks(num_labels):
            torch.softmax(widened(self.rows[start:stop]), dim=1, out=self.soft[start:stop])

    def _gold(self, items: slice) -> Tensor:
        return self.plan.labels[self.plan.inverse[items], None]  # (B, 1)

    def _gather(self, rows: Tensor, index: Tensor, scratch: int) -> Tensor:
        if rows.dtype != self.dtype:
            return rows.index_select(0, index).to(self.dtype)
        return torch.index_select(rows, 0, index, out=self.scratch[scratch, : len(index)])

    def _blocks(self, num_rows: int) -> Iterator[tuple[int, int]]:
        for start in range(0, num_rows, self.block_rows):
            yield start, min(start + self.block_rows, num_rows)


def _keep(gradient: Tensor, place: Tensor) -> None:
    """Put the gradient of B rows where the matrix products take it from; in float32 it is there already."""
    if gradient is not place:
        place.copy_(gradient)


def _block_rows(num_classes: int, device_type: str) -> int:
    numel, most = (_CPU_BLOCK_NUMEL, _CPU_BLOCK_ROWS) if device_type == "cpu" else (_BLOCK_NUMEL, _BLOCK_ROWS)
    return min(max(numel // num_classes, 1), most)
