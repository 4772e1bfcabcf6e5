"""Greedy and beam search over batches of sentences, as tensor operations over (B, K).

Axes: B sentences, K hypotheses a sentence, S source length, T target length, V vocabulary, D features.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from labelemb.text.corpus.vocab import BOS, EOS

# More logits than this at once and each step maps fresh pages for them, which takes as long as the softmax over them;
# a GPU has an allocator of its own and wants few, large calls.
LOGITS_AT_ONCE_CPU, LOGITS_AT_ONCE_GPU = 2**22, 2**27


class State(NamedTuple):
    """What a network remembers between two target positions; every tensor has its rows along the first axis.

    The hypotheses of sentence b are the rows b * K to b * K + K - 1 of `rows`; all of them read row b of `memory`, so
    that what belongs to a source is held once however wide the beam.
    """

    memory: tuple[Tensor, ...]  # each (B, ...): computed once a source
    rows: tuple[Tensor, ...]  # each (B * K, ...): changes with every step


class Decoder(Protocol):
    """What a search needs of a network, in evaluation mode; K = tokens per sentence is free to change between steps."""

    head: nn.Linear

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        """(B, S) tokens, (B,) lengths -> a state of one hypothesis a sentence."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """(B * K,) last tokens -> features (B * K, D), attention (B * K, S), the next state."""


class Hypothesis(NamedTuple):
    """A finished translation."""

    tokens: list[int]  # without </s>
    score: float  # what it was chosen by: log-probability, over length ** length_penalty in beam search
    attention: Tensor  # (T, S): over the source tokens when each target token was chosen; on the CPU, unpadded


def select(state: State, rows: Tensor, sources: Tensor | None = None) -> State:
    """The state of the hypotheses `rows` (integers), and of the sentences `sources` (integers; None: all of them)."""
    memory = state.memory if sources is None else tuple(tensor.index_select(0, sources) for tensor in state.memory)
    return State(memory, tuple(tensor.index_select(0, rows) for tensor in state.rows))


@torch.inference_mode()
def greedy(model: Decoder, source: Tensor, source_lengths: Tensor, *, max_length: int) -> list[Hypothesis]:
    """The most probable token at each step until </s> or `max_length` tokens.

    Args:
        model: a network in evaluation mode.
        source: (B, S) int64, padded; no empty sentence.
        source_lengths: (B,) int64.
        max_length: most target tokens, at least 1.
    """
    _check_lengths(max_length=max_length)
    state = model.encode(source, source_lengths)
    num_sentences, width = source.shape
    weight = model.head.weight
    scores = weight.new_zeros(num_sentences)
    lengths = torch.zeros_like(source[:, 0])
    tokens = source.new_zeros(num_sentences, max_length)
    attention = weight.new_zeros(num_sentences, max_length, width)
    active = torch.arange(num_sentences, device=source.device)  # (b,): sentences not finished
    last = torch.full_like(active, BOS)
    for step in range(max_length):
        features, attended, state = model.step(last, state)
        value, last = model.head(features).log_softmax(-1, dtype=scores.dtype).max(-1)  # (b,)
        scores[active] += value
        going = (last != EOS).nonzero().squeeze(1)  # on a GPU this waits for the device
        if len(going) < len(active):
            active, last, attended, state = active[going], last[going], attended[going], select(state, going, going)
        if not len(active):
            break
        tokens[active, step], attention[active, step] = last, attended.to(attention.dtype)
        lengths[active] += 1
    return _hypotheses(tokens, attention, lengths, scores, source_lengths)


@torch.inference_mode()
def beam_search(
    model: Decoder,
    source: Tensor,
    source_lengths: Tensor,
    *,
    beam_size: int,
    max_length: int,
    length_penalty: float = 0.0,
) -> list[Hypothesis]:
    """The best finished hypothesis of each sentence.

    At each step the 2K best continuations of a sentence's live hypotheses are ranked by the sum of log-probabilities.
    One of the first K that ends in </s> is finished; the K best of the others live on. After `max_length` tokens the
    live ones count as finished as they stand. The result is the finished hypothesis with the largest

        log-probability / length ** length_penalty      (length counts </s>; the earlier finished wins a tie)

    A sentence is done as soon as its best live hypothesis could not beat its best finished one even if every token up
    to `max_length` had probability 1, so stopping early never changes the result. Beam 1 without penalty is greedy.

    Args:
        model: a network in evaluation mode.
        source: (B, S) int64, padded; no empty sentence.
        source_lengths: (B,) int64.
        beam_size: K, at least 1.
        max_length: most target tokens, at least 1.
        length_penalty: 0 (none) or more; 1 is the mean log-probability of a token.
    """
    _check_lengths(beam_size=beam_size, max_length=max_length, length_penalty=length_penalty)
    state = model.encode(source, source_lengths)
    num_sentences, device = len(source), source.device
    history = _History.empty(model.head.weight, source, beam_size, max_length)
    best = _Best.empty(model.head.weight, source)
    active = torch.arange(num_sentences, device=device)  # (b,): sentences still searched
    live = model.head.weight.new_zeros(num_sentences, 1)  # (b, k) log-probabilities; k grows to K
    last = torch.full((num_sentences,), BOS, device=device)  # (b * k,)
    for step in range(max_length):
        features, attended, state = model.step(last, state)
        width = live.shape[1]
        scores, parents, tokens = _continuations(model.head, features, live, 2 * beam_size)  # (b, n)
        ended = tokens == EOS
        finished, rank = scores.masked_fill(~ended, -torch.inf)[:, :beam_size].max(1)  # (b,)
        slot = parents.gather(1, rank[:, None]).squeeze(1)
        best.update(active, finished / (step + 1) ** length_penalty, slot, step)
        next_width = min(beam_size, width * (model.head.out_features - 1))
        order = ended.byte().argsort(dim=1, stable=True)[:, :next_width]  # the best that do not end, in rank order
        live, parents, tokens = scores.gather(1, order), parents.gather(1, order), tokens.gather(1, order)
        history.write(step, active, tokens, parents, attended)
        bound = live[:, 0] / max_length**length_penalty
        if step + 1 == max_length:
            best.update(active, bound, torch.zeros_like(active), max_length)
            break
        going = (bound > best.score[active]).nonzero().squeeze(1)  # on a GPU this waits for the device
        if not len(going):
            break
        dropped = len(going) < len(active)
        active, live, parents, tokens = active[going], live[going], parents[going], tokens[going]
        state = select(state, (going[:, None] * width + parents).flatten(), going if dropped else None)
        last = tokens.flatten()
    return _hypotheses(*history.trace(best), best.length, best.score, source_lengths)


def _check_lengths(*, max_length: int, beam_size: int = 1, length_penalty: float = 0.0) -> None:
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}: expected 1 (greedy) or more")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}: expected at least one target token")
    if length_penalty < 0:
        raise ValueError(f"length_penalty is {length_penalty}: expected 0 (none) or more")


def _continuations(head: nn.Linear, features: Tensor, live: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `count` (at most all) continuations of each sentence: scores, parent slots, tokens; (b, n), sorted."""
    vocabulary, (_, width) = head.out_features, live.shape
    limit = LOGITS_AT_ONCE_GPU if features.is_cuda else LOGITS_AT_ONCE_CPU
    sentences = max(1, limit // (width * vocabulary))
    count = min(count, width * vocabulary)
    scores, index = [], []
    parts = features.view(*live.shape, -1)  # (b, k, D)
    for part, base in zip(torch.split(parts, sentences), torch.split(live, sentences), strict=True):
        total = head(part).log_softmax(-1, dtype=live.dtype).add_(base[:, :, None])  # (b, k, V)
        value, place = total.flatten(1).topk(count)
        scores.append(value)
        index.append(place)
    places = torch.cat(index)
    return torch.cat(scores), places // vocabulary, places % vocabulary


class _History(NamedTuple):
    """What every hypothesis was at every step: the best is read back at the end, and no prefix is ever copied."""

    tokens: Tensor  # (max_length, B, K)
    parents: Tensor  # (max_length, B, K): slot in the step before
    attention: Tensor  # (max_length, B, K, S): by slot in the step before

    @classmethod
    def empty(cls, like: Tensor, source: Tensor, beam_size: int, max_length: int) -> "_History":
        shape = (max_length, len(source), beam_size)
        return cls(source.new_zeros(shape), source.new_zeros(shape), like.new_zeros(*shape, source.shape[1]))

    def write(self, step: int, active: Tensor, tokens: Tensor, parents: Tensor, attended: Tensor) -> None:
        width = tokens.shape[1]
        self.tokens[step, active, :width] = tokens
        self.parents[step, active, :width] = parents
        attended = attended.view(len(active), -1, attended.shape[-1]).to(self.attention.dtype)  # (b, k, S)
        self.attention[step, active, : attended.shape[1]] = attended

    def trace(self, best: "_Best") -> tuple[Tensor, Tensor]:
        """The best hypotheses' tokens (B, T) and attention (B, T, S), right of each one's length undefined."""
        sentences = torch.arange(len(best.slot), device=best.slot.device)
        slot, tokens, attention = best.slot, [], []
        for step in reversed(range(int(best.length.max()))):
            parent = self.parents[step, sentences, slot]
            tokens.append(self.tokens[step, sentences, slot])
            attention.append(self.attention[step, sentences, parent])
            slot = torch.where(step < best.length, parent, slot)
        if not tokens:
            return self.tokens.new_zeros(len(slot), 0), self.attention[0, :, :0]
        return torch.stack(tokens[::-1], 1), torch.stack(attention[::-1], 1)


class _Best(NamedTuple):
    """The best finished hypothesis of each sentence so far, updated in place; each (B,)."""

    score: Tensor
    length: Tensor  # tokens without </s>
    slot: Tensor  # of its last token, in step length - 1

    @classmethod
    def empty(cls, like: Tensor, source: Tensor) -> "_Best":
        zeros = torch.zeros_like(source[:, 0])
        return cls(like.new_full((len(source),), -torch.inf), zeros, zeros.clone())

    def update(self, active: Tensor, score: Tensor, slot: Tensor, length: int) -> None:
        better = score > self.score[active]
        self.slot[active] = torch.where(better, slot, self.slot[active])
        self.length[active] = torch.where(better, length, self.length[active])
        self.score[active] = torch.where(better, score, self.score[active])


def _hypotheses(
    tokens: Tensor, attention: Tensor, lengths: Tensor, scores: Tensor, source_lengths: Tensor
) -> list[Hypothesis]:
    attention = attention.cpu()
    columns = zip(tokens.tolist(), lengths.tolist(), scores.tolist(), source_lengths.tolist(), attention, strict=True)
    return [
        Hypothesis(words[:length], score, attended[:length, :width])
        for words, length, score, width, attended in columns
    ]
