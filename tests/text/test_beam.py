from itertools import product
from typing import Any

import pytest
import torch
from tests.small_text import small_network
from torch import Tensor

from labelemb.text.beam import Hypothesis, State, beam_search, greedy
from labelemb.text.corpus.vocab import BOS, EOS
from labelemb.text.lstm import AttentionLSTM
from labelemb.text.translate import NETWORKS, Network

Scored = tuple[list[int], float]


def make_network(name: str, *, seed: int = 0) -> Network:
    """Untrained, with weights that make sentences end after different numbers of words, some only at the limit."""
    torch.manual_seed(seed)
    network = small_network(name, 12, 9).double().eval()
    with torch.no_grad():
        network.head.weight.mul_(4)
        network.head.bias[EOS] -= 0.2 if name == "lstm" else 2.0
        if isinstance(network, AttentionLSTM):
            for parameter in (*network.encoder.parameters(), *network.decoder.parameters()):
                parameter.mul_(2.5)
    return network


def make_source(lengths: tuple[int, ...] = (5, 3, 7, 1, 6)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        source[row, :length] = torch.randint(4, 12, (length,), generator=generator)
    return source, torch.tensor(lengths)


def log_probabilities(network: Network, source: Tensor, tokens: list[int]) -> Tensor:
    """(T + 1, V) of a whole target at once; `source` is one unpadded sentence (S,)."""
    target_in = torch.tensor([[BOS, *tokens]])
    lengths = torch.tensor([len(source)]), torch.tensor([target_in.shape[1]])
    with torch.no_grad():
        features = network.features(source[None], lengths[0], target_in, lengths[1])
        result: Tensor = network.head(features).log_softmax(-1)
    return result


def full_beam_search(network: Network, source: Tensor, beam_size: int, max_length: int, penalty: float) -> Scored:
    """The documented rule without stopping early, from whole-sequence features."""
    live: list[Scored] = [([], 0.0)]
    finished: list[Scored] = []
    for step in range(1, max_length + 1):
        continuations = []
        for tokens, score in live:
            values = log_probabilities(network, source, tokens)[-1].tolist()
            continuations += [([*tokens, token], score + value) for token, value in enumerate(values)]
        continuations.sort(key=lambda item: -item[1])
        ranked = continuations[: 2 * beam_size]
        ends = [(tokens[:-1], score) for tokens, score in ranked[:beam_size] if tokens[-1] == EOS]
        live = [item for item in ranked if item[0][-1] != EOS][:beam_size]
        finished += [(tokens, score / step**penalty) for tokens, score in (ends if step < max_length else ends + live)]
    return max(finished, key=lambda item: item[1])


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score, abs=1e-10)
        torch.testing.assert_close(one.attention, other.attention, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NETWORKS)
def test_beam_one_equals_greedy(name: str, seed: int) -> None:
    network = make_network(name, seed=seed)
    found = beam_search(network, *make_source(), beam_size=1, max_length=8)
    assert_same(found, greedy(network, *make_source(), max_length=8))


def test_greedy_follows_the_largest_logit_to_the_end() -> None:
    network = make_network("lstm", seed=1)
    source, lengths = make_source()
    found = greedy(network, source, lengths, max_length=8)
    ended = [len(hypothesis.tokens) < 8 for hypothesis in found]
    assert any(ended)
    assert not all(ended)
    for row, length, hypothesis, end in zip(source, lengths, found, ended, strict=True):
        values = log_probabilities(network, row[:length], hypothesis.tokens)
        whole = hypothesis.tokens + [EOS] * end
        assert values.argmax(-1).tolist()[: len(whole)] == whole
        assert hypothesis.score == pytest.approx(values.max(-1).values[: len(whole)].sum().item(), abs=1e-10)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beam_size", [2, 3, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_stopping_early_gives_the_full_search(name: str, beam_size: int, penalty: float) -> None:
    source, lengths = make_source()
    for seed in range(3):
        network = make_network(name, seed=seed)
        found = beam_search(network, source, lengths, beam_size=beam_size, max_length=6, length_penalty=penalty)
        for row, length, hypothesis in zip(source, lengths, found, strict=True):
            tokens, score = full_beam_search(network, row[:length], beam_size, 6, penalty)
            assert hypothesis.tokens == tokens
            assert hypothesis.score == pytest.approx(score, abs=1e-10)


class ThreeWords:
    """A Markov chain over </s> and two words, ids 3, 4, 5: a beam 3**(max_length - 1) wide sees everything."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.logits[:, :3] = -1e9
        self.head = torch.nn.Linear(6, 6).double().requires_grad_(False)
        torch.nn.init.eye_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        return State((source,), (source[:, :1],))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        attention = torch.ones(len(tokens), state.memory[0].shape[1], dtype=torch.float64)
        return self.logits[tokens], attention, State(state.memory, (tokens[:, None],))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize(("beam_size", "max_length"), [(3, 2), (9, 3), (81, 5)])
def test_a_beam_of_everything_equals_exhaustive_search(beam_size: int, max_length: int, penalty: float) -> None:
    for seed in range(10):
        chain = ThreeWords(seed)
        table = chain.logits.log_softmax(-1)
        best: Scored = ([], -float("inf"))
        for length in range(max_length + 1):
            for words in product((4, 5), repeat=length):
                whole = list(words) if length == max_length else [*words, EOS]
                score = sum(table[a, b].item() for a, b in zip([BOS, *whole], whole, strict=False))
                score /= len(whole) ** penalty
                if score > best[1]:
                    best = (list(words), score)
        (found,) = beam_search(
            chain, *make_source((2,)), beam_size=beam_size, max_length=max_length, length_penalty=penalty
        )
        assert found.tokens == best[0]
        assert found.score == pytest.approx(best[1], abs=1e-12)


@pytest.mark.parametrize("search", [{"beam_size": 4}, {"beam_size": 4, "length_penalty": 1.0}, None])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_decodes_as_its_sentences_do_one_by_one(name: str, search: dict[str, Any] | None) -> None:
    source, lengths = make_source()
    for seed in range(3):
        network = make_network(name, seed=seed)

        def decode(rows: Tensor, widths: Tensor, network: Network = network) -> list[Hypothesis]:
            if search is None:
                return greedy(network, rows, widths, max_length=8)
            return beam_search(network, rows, widths, max_length=8, **search)

        alone = [decode(row[None, :width], width[None])[0] for row, width in zip(source, lengths, strict=True)]
        assert_same(decode(source, lengths), alone)
        assert_same(decode(torch.nn.functional.pad(source, (0, 3)), lengths), alone)


def test_logits_in_small_parts_give_the_same_hypotheses(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("lstm")
    whole = beam_search(network, *make_source(), beam_size=3, max_length=8)
    monkeypatch.setattr("labelemb.text.beam.LOGITS_AT_ONCE_CPU", 1)
    assert_same(beam_search(network, *make_source(), beam_size=3, max_length=8), whole)


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_is_what_each_token_was_chosen_with(name: str) -> None:
    network = make_network(name)
    source, lengths = make_source()
    for row, length, hypothesis in zip(
        source, lengths, beam_search(network, source, lengths, beam_size=4, max_length=8), strict=True
    ):
        state = network.encode(row[None, :length], length[None])
        expected = []
        for token in [BOS, *hypothesis.tokens[:-1]][: len(hypothesis.tokens)]:
            _, attention, state = network.step(torch.tensor([token]), state)
            expected.append(attention[0])
        assert hypothesis.attention.shape == (len(hypothesis.tokens), length)
        if expected:
            torch.testing.assert_close(hypothesis.attention, torch.stack(expected).detach(), rtol=0, atol=1e-10)


def test_a_length_penalty_prefers_longer_hypotheses() -> None:
    network = make_network("lstm")
    plain, normalised = (
        beam_search(network, *make_source(), beam_size=4, max_length=8, length_penalty=penalty)
        for penalty in (0.0, 2.0)
    )
    assert sum(len(found.tokens) for found in normalised) > sum(len(found.tokens) for found in plain)


def test_bad_limits_are_refused() -> None:
    network = make_network("lstm")
    with pytest.raises(ValueError, match="beam_size is 0: expected 1"):
        beam_search(network, *make_source(), beam_size=0, max_length=8)
    with pytest.raises(ValueError, match="max_length is 0: expected at least one"):
        greedy(network, *make_source(), max_length=0)
    with pytest.raises(ValueError, match=r"length_penalty is -1\.0: expected 0"):
        beam_search(network, *make_source(), beam_size=2, max_length=8, length_penalty=-1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_log_probabilities_under_bfloat16_are_float32(name: str) -> None:
    network = make_network(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            beam_search(network, *make_source(), beam_size=3, max_length=1),
            greedy(network, *make_source(), max_length=1),
        ]
    for hypotheses in found:
        scores = torch.tensor([hypothesis.score for hypothesis in hypotheses])
        assert not torch.equal(scores, scores.bfloat16().float())
