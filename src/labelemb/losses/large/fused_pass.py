"""Loss and gradients in one pass over chunks of items, no (N, C) tensor: what labelemb.losses.large.fused calls.

Axes: N items, C classes, D features, R rank; in a chunk K items, sorted by label, and U distinct labels; in a block B
rows. A chunk is what a matrix product takes: its buffers are a (K, C) and up to two (U, C). A block is what row-wise
steps take: on the CPU so small that it stays in the cache from the first step to the last.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from labelemb.losses.large.blocks import block_rows, blocks, keep
from labelemb.losses.large.class_shard import EVERY_CLASS, Classes
from labelemb.losses.large.gradient_sum import GradientSum
from labelemb.losses.large.label_plan import Chunk, LabelPlan
from labelemb.losses.large.linear import Linear
from labelemb.losses.large.matches import Matches, match_gradient, match_value
from labelemb.losses.large.table_rows import DenseRows, LowRankRows, TableRows
from labelemb.losses.terms import Weights, widened

HARD, SOFT, AUX, CAP, MATCH = range(5)


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

    @property
    def true_excess(self) -> float:
        """What the label has above any other."""
        return self.true_prob - self.other_prob

    def expected_score(self, score_sum: Tensor, gold_score: Tensor) -> Tensor:
        """Under this soft label, from the sum of all scores and the label's own, and its entropy: all (B, 1)."""
        return self.other_prob * score_sum + self.true_excess * gold_score + self.entropy


class PassSettings(NamedTuple):
    """What a pass computes.

    needed: which of the Inputs want gradients; product_dtype: of the matrix products; classes: those that they have.
    """

    weights: Weights
    fixed: FixedSoftLabel | None
    needed: tuple[bool, ...]
    product_dtype: torch.dtype
    chunk_size: int
    classes: Classes = EVERY_CLASS


class FusedPass:
    """One pass: `run` it once.

    With p = softmax(z), p' = softmax(z'), s = softmax(e_y), q = softmax(z'/temperature), m the match, y the one-hot
    target, w the item's factor, a and b the hard and soft weight, the gradients in closed form are

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
        self.weights, self.classes = settings.weights, settings.classes
        self.dtype, self.device = item_weight.dtype, item_weight.device
        self.item_weight = item_weight[plan.order]  # (M,)
        self.values = item_weight.new_zeros(4, len(plan.order))  # hard, soft, aux, cap of the sorted items
        self.match = item_weight.new_zeros(())
        self.chunks = plan.chunks(settings.chunk_size)
        self._collect_gradients()
        self._allocate()

    def _collect_gradients(self) -> None:
        """A sum for each gradient that is asked for, and the maps and the table that add to them."""
        inputs, dtype = self.inputs, self.settings.product_dtype
        self.sums = sums = {
            name: GradientSum(tensor, self.dtype)
            for name, tensor, needed in zip(Inputs._fields, inputs, self.settings.needed, strict=True)
            if tensor is not None and needed
        }
        self.head = Linear(inputs.head_weight, inputs.head_bias, sums.get("head_weight"), sums.get("head_bias"), dtype)
        self.aux_head: Linear | None = None
        if inputs.aux_weight is not None:
            aux_sums = sums.get("aux_weight"), sums.get("aux_bias")
            self.aux_head = Linear(inputs.aux_weight, inputs.aux_bias, *aux_sums, dtype)
        self.table: TableRows | None = None
        if inputs.table is not None:
            self.table = DenseRows(inputs.table, sums.get("table"))
        elif inputs.codes is not None and inputs.decoder_weight is not None:
            decoder_sums = sums.get("decoder_weight"), sums.get("decoder_bias")
            decoder = Linear(inputs.decoder_weight, inputs.decoder_bias, *decoder_sums, dtype)
            self.table = LowRankRows(inputs.codes, decoder, sums.get("codes"), relu=True, classes=self.classes)

    @property
    def trains_network(self) -> bool:
        """Whether anything asks for the gradients of the classifier's logits."""
        return "features" in self.sums or self.head.is_trained

    @property
    def reads_rows(self) -> bool:
        """Whether there is a soft term that has its soft labels from the table."""
        return self.table is not None and self.weights.soft_weight != 0

    def _allocate(self) -> None:
        """The buffers, each of which holds two things in turn; whoever reads one knows by the name of its view."""
        num_classes = len(self.inputs.head_weight)
        items = max((chunk.stop - chunk.start for chunk in self.chunks), default=0)  # K
        labels = max((chunk.last_label - chunk.first_label for chunk in self.chunks), default=0)  # U
        labels = labels if self.reads_rows or self.aux_head is not None else 0
        product_dtype = self.settings.product_dtype
        row_dtype = product_dtype if self.table is None else self.table.dtype
        self.block_rows = block_rows(self.classes.most(num_classes), self.device.type)
        scratch_rows = min(self.block_rows, max(items, labels))

        def buffer(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(*shape, num_classes, dtype=dtype, device=self.device)

        self.logit_buffer = buffer(items, dtype=product_dtype)  # a head's logits, then their gradients
        self.row_buffer = buffer(labels, dtype=row_dtype)  # rows of the table, then their gradients
        self.label_buffer = buffer(labels, dtype=self.dtype)  # soft labels, then sums of tempered predictions
        self.scratch = buffer(2, scratch_rows, dtype=self.dtype)

    def run(self) -> tuple[Tensor, list[Tensor | None]]:
        """The five terms (5,), each summed with the items' factors, and a gradient for each of the Inputs."""
        for chunk in self.chunks:
            items = self.plan.order[chunk.start : chunk.stop]
            features = self.inputs.features.index_select(0, items).to(self.settings.product_dtype)  # (K, D)
            self._pass_network(chunk, features, items, self._soft_labels(chunk))
            if self.aux_head is not None and self.table is not None:
                self._pass_table(self.table, chunk, self._pass_aux_head(self.aux_head, chunk, features))
        # before a narrow gradient is copied out of its wide sum
        del self.logit_buffer, self.row_buffer, self.label_buffer, self.scratch
        if "features" in self.sums:
            self.sums["features"].combine(self.classes.added_up)
        terms = torch.cat([self.values @ self.item_weight, self.classes.added_up(self.match)[None]])
        return terms, [self.sums[name].finish() if name in self.sums else None for name in Inputs._fields]

    def _soft_labels(self, chunk: Chunk) -> Tensor | None:
        """The soft labels of the chunk's labels, (U, C), or None where the soft term reads no rows."""
        if self.table is None or not self.reads_rows:
            return None
        rows = self.table.into(self.plan.labels[chunk.first_label : chunk.last_label], self.row_buffer)  # (U, C)
        soft_labels = self.label_buffer[: len(rows)]
        for block in self._blocks(len(rows)):
            self.classes.softmax(widened(rows[block]), soft_labels[block])
        return soft_labels

    def _pass_network(self, chunk: Chunk, features: Tensor, items: Tensor, soft_labels: Tensor | None) -> None:
        """The hard and the soft term, which share one pass over the logits."""
        logits = self.head.into(features, self.logit_buffer)  # (K, C)
        for block in self._blocks(len(logits)):
            self._network_block(chunk, logits[block], chunk.start + block.start, soft_labels)
        gradient = logits  # what the blocks have left in their place
        self.head.add_gradient(gradient, features)
        if "features" in self.sums:
            self.sums["features"].add_rows(items, gradient @ self.head.weight)

    def _network_block(self, chunk: Chunk, logits: Tensor, start: int, soft_labels: Tensor | None) -> None:
        """Values of the sorted items from `start` on; their logits (B, C) become their gradients."""
        items, fixed = slice(start, start + len(logits)), self.settings.fixed
        scores, gold = widened(logits), self._gold(items)  # (B, C), (B, 1)
        expected = gold_score = self.classes.pick(scores, gold)  # (B, 1), as all columns below
        if soft_labels is not None:
            soft_labels = self._gather(soft_labels, self.plan.inverse[items] - chunk.first_label, 0)  # (B, C)
            expected = torch.linalg.vecdot(soft_labels, scores)[:, None]
        elif fixed is not None:
            expected = scores.sum(dim=1, keepdim=True)
        top, gold_score = self.classes.largest(scores.amax(dim=1, keepdim=True), gold_score)
        exponentials = scores.sub_(top).exp_()
        mass, expected = self.classes.summed(exponentials.sum(dim=1, keepdim=True), expected)
        log_mass = top + mass.log()
        self.values[HARD, items] = (log_mass - gold_score).squeeze(1)
        if fixed is not None and soft_labels is None:
            expected = fixed.expected_score(expected, gold_score)
        if soft_labels is not None or fixed is not None:
            self.values[SOFT, items] = (log_mass - expected).squeeze(1)
        if self.trains_network:
            keep(self._network_gradient(exponentials, mass, gold, items, soft_labels), logits)

    def _network_gradient(
        self, exponentials: Tensor, mass: Tensor, gold: Tensor, items: slice, soft_labels: Tensor | None
    ) -> Tensor:
        """dz of a block, (B, C), in the place of the exponentials, whose sums are `mass` (B, 1)."""
        weight = self.item_weight[items, None]  # (B, 1)
        hard, soft = self.weights.hard_weight * weight, self.weights.soft_weight * weight
        gradient = exponentials.mul_((hard + soft) / mass)
        if soft_labels is not None:
            gradient.addcmul_(soft_labels, soft, value=-1)
        elif (fixed := self.settings.fixed) is not None:
            gradient.sub_(soft * fixed.other_prob)
            hard = hard + soft * fixed.true_excess
        return self.classes.add(gradient, gold, -hard)

    def _pass_aux_head(self, aux_head: Linear, chunk: Chunk, features: Tensor) -> Matches:
        """The auxiliary head's terms, aux and cap, and what it leaves to the table, in place of the soft labels."""
        logits = aux_head.into(features, self.logit_buffer)  # (K, C)
        matches = Matches(self.plan, chunk, self.label_buffer)
        for block in self._blocks(len(logits)):
            self._aux_block(aux_head, logits[block], chunk.start + block.start, matches)
        gradient = logits  # what the blocks have left in their place
        aux_head.add_gradient(gradient, features)
        return matches

    def _aux_block(self, aux_head: Linear, logits: Tensor, start: int, matches: Matches) -> None:
        """Values and matches of the sorted items from `start` on; their logits (B, C) become their gradients."""
        items = slice(start, start + len(logits))
        scores, gold = widened(logits), self._gold(items)  # (B, C), (B, 1)
        gold_score, top = self.classes.pick(scores, gold), scores.amax(dim=1, keepdim=True)  # (B, 1), as all below
        gold_score, top = self.classes.largest(gold_score, top)
        weight = self.item_weight[items, None]
        matched = weight * (gold_score == top)
        matches.add_weight(items, matched)
        exponentials = self._exponentials(scores.sub_(top), items, matched, matches)  # (B, C)
        (mass,) = self.classes.summed(exponentials.sum(dim=1, keepdim=True))
        loss = top + mass.log() - gold_score
        gold_prob = loss.neg().exp_()
        self.values[AUX, items] = loss.squeeze(1)
        self.values[CAP, items] = (gold_prob - self.weights.cap).clamp_min_(0).squeeze(1)
        if aux_head.is_trained:
            scale = weight * (1 - self.weights.cap_weight * ((gold_prob > self.weights.cap) * gold_prob))
            keep(self.classes.add(exponentials.mul_(scale / mass), gold, -scale), logits)

    def _exponentials(self, scores: Tensor, items: slice, matched: Tensor, matches: Matches) -> Tensor:
        """exp(scores) in place (B, C); before that the tempered predictions of the matched items go into their sums."""
        any_match = self.device.type != "cpu" or bool(matched.any())  # elsewhere asking would wait for the device
        if self.weights.temperature == 2 and any_match:
            tempered = scores.mul_(0.5).exp_()
            self._add_predictions(items, tempered, matched, matches)
            return tempered.square_()  # one exponential for both temperatures
        if any_match:
            tempered = torch.div(scores, self.weights.temperature, out=self.scratch[0, : len(scores)]).exp_()
            self._add_predictions(items, tempered, matched, matches)
        return scores.exp_()

    def _add_predictions(self, items: slice, tempered: Tensor, matched: Tensor, matches: Matches) -> None:
        (mass,) = self.classes.summed(tempered.sum(dim=1, keepdim=True))
        matches.add_predictions(items, tempered, mass, matched)

    def _pass_table(self, table: TableRows, chunk: Chunk, matches: Matches) -> None:
        """The match term of P of the chunk's U labels."""
        matched = matches.places()  # (P,)
        labels = self.plan.labels[chunk.first_label : chunk.last_label][matched]
        if self.reads_rows:
            rows, places = self.row_buffer, matched  # (U, C), as the soft term has read them
        else:
            rows, places = table.into(labels, self.row_buffer), torch.arange(len(labels), device=self.device)  # (P, C)
        gradient = self.row_buffer[: len(labels)]  # (P, C): a block's stands over rows that have been read by then
        for block in self._blocks(len(labels)):
            block_rows = self._gather(rows, places[block], 0)  # (B, C)
            tempered = self._gather(matches.predictions, matched[block], 1)  # (B, C)
            weight = matches.weight[matched[block], None]  # (B, 1)
            self._table_block(table, block_rows, tempered, weight, gradient[block])
        if table.is_trained and len(labels):
            table.add_gradient(labels, gradient)

    def _table_block(self, table: TableRows, rows: Tensor, tempered: Tensor, weight: Tensor, place: Tensor) -> None:
        """The match term of B labels; their gradients go into their place (B, C)."""
        log_probs = self.classes.log_softmax(rows)
        self.match += match_value(log_probs, tempered)
        if table.is_trained:
            keep(table.cut_off(match_gradient(log_probs, tempered, weight), rows), place)

    def _gold(self, items: slice) -> Tensor:
        return self.plan.labels[self.plan.inverse[items], None]  # (B, 1)

    def _gather(self, rows: Tensor, index: Tensor, scratch: int) -> Tensor:
        if rows.dtype != self.dtype:
            return rows.index_select(0, index).to(self.dtype)
        return torch.index_select(rows, 0, index, out=self.scratch[scratch, : len(index)])

    def _blocks(self, num_rows: int) -> Iterator[slice]:
        return blocks(num_rows, self.block_rows)
