"""What the text benchmarks compare with: a decoder stepped through time, the direct loss, a beam of objects.

This is how such models are usually written, on the same weights and with the same results as labelemb's own:

* `stepwise_features`: every target position is one decoder call and one attention;
* `direct_baseline`, `direct_label_embedding`: the loss term by term as its definition stands, each intermediate an
  (N, V) tensor, the label rows computed for all N tokens, gradients by autograd;
* `object_beam_search`: one Python object a hypothesis, one sentence at a time, a batch over its beam only.

Axes: B sentences, S source length, T target length, N unpadded target tokens, V vocabulary, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.text.beam import State
from labelemb.text.corpus.vocab import BOS, EOS, PAD
from labelemb.text.lstm import AttentionLSTM


def stepwise_features(model: AttentionLSTM, source: Tensor, source_lengths: Tensor, target_in: Tensor) -> Tensor:
    """Features (B, T, D) of all target positions, padded ones too, one after another."""
    state = model.encode(source, source_lengths)
    outputs = []
    for tokens in target_in.unbind(1):
        features, _, state = model.step(tokens, state)
        outputs.append(features)
    return torch.stack(outputs, 1)


def direct_baseline(features: Tensor, target: Tensor, head: nn.Linear) -> Tensor:
    """Cross entropy of the unpadded tokens; features (B, T, D), target (B, T)."""
    return F.cross_entropy(head(features.flatten(0, 1)), target.flatten(), ignore_index=PAD)


def direct_label_embedding(features: Tensor, target: Tensor, head: nn.Linear, criterion: LabelEmbeddingLoss) -> Tensor:
    """The whole loss over the unpadded tokens; features (B, T, D), target (B, T), with the criterion's parameters."""
    kept = target != PAD
    features, target = features[kept], target[kept]  # (N, D), (N,)
    assert criterion.aux_head is not None
    scores = head(features).log_softmax(-1)  # (N, V)
    aux_logits = criterion.aux_head(features.detach())  # (N, V)
    aux_scores = aux_logits.log_softmax(-1)
    rows = criterion.table.row_logits(target)  # (N, V)

    gold = target[:, None]
    hard = -scores.gather(1, gold).squeeze(1)  # (N,)
    soft = -(rows.detach().softmax(-1) * scores).sum(-1)
    aux = -aux_scores.gather(1, gold).squeeze(1)
    cap = F.relu(aux_scores.gather(1, gold).squeeze(1).exp() - criterion.cap)
    matched = aux_logits.gather(1, gold).squeeze(1) == aux_logits.max(-1).values
    tempered = (aux_logits.detach() / criterion.temperature).softmax(-1)
    match = -(tempered * rows.log_softmax(-1)).sum(-1) * matched
    total: Tensor = (
        criterion.hard_weight * hard + criterion.soft_weight * soft + aux + criterion.cap_weight * cap + match
    )
    return total.mean()


@dataclass
class BeamHypothesis:
    """One partial translation."""

    tokens: list[int]
    score: float
    rows: tuple[Tensor, ...]  # the decoder's state, each (...) without a batch axis
    attended: list[int]  # the most attended source position of each token


@torch.no_grad()
def object_beam_search(
    model: AttentionLSTM, source: Tensor, source_lengths: Tensor, *, beam_size: int, max_length: int
) -> list[BeamHypothesis]:
    """The same search as `labelemb.text.beam.beam_search` without length penalty."""
    sentences = zip(source, source_lengths.tolist(), strict=True)
    return [_search_sentence(model, row[:length], beam_size, max_length) for row, length in sentences]


def _search_sentence(model: AttentionLSTM, source: Tensor, beam_size: int, max_length: int) -> BeamHypothesis:
    state = model.encode(source[None], torch.tensor([len(source)]))
    live = [BeamHypothesis([], 0.0, tuple(rows[0] for rows in state.rows), [])]
    finished: list[BeamHypothesis] = []
    for _ in range(max_length):
        last = torch.tensor([hypothesis.tokens[-1] if hypothesis.tokens else BOS for hypothesis in live])
        rows = tuple(torch.stack(parts) for parts in zip(*(hypothesis.rows for hypothesis in live), strict=True))
        features, attention, after = model.step(last.to(source.device), State(state.memory, rows))
        scores = model.head(features).log_softmax(-1)  # (k, V)
        values, words = scores.topk(min(2 * beam_size, scores.shape[1]))
        most_attended = attention.argmax(-1).tolist()

        candidates = []
        for index, hypothesis in enumerate(live):
            next_rows = tuple(rows[index] for rows in after.rows)
            attended = [*hypothesis.attended, most_attended[index]]
            for value, word in zip(values[index].tolist(), words[index].tolist(), strict=True):
                tokens = [*hypothesis.tokens, word]
                candidates.append(BeamHypothesis(tokens, hypothesis.score + value, next_rows, attended))
        candidates.sort(key=lambda candidate: candidate.score, reverse=True)
        finished += [candidate for candidate in candidates[:beam_size] if candidate.tokens[-1] == EOS]
        live = [candidate for candidate in candidates if candidate.tokens[-1] != EOS][:beam_size]
        if finished and max(ended.score for ended in finished) >= live[0].score:
            break
    else:
        finished += live
    best = max(finished, key=lambda hypothesis: hypothesis.score)
    if best.tokens[-1] == EOS:
        best.tokens.pop()
        best.attended.pop()
    return best
