from typing import Any

import pytest
import torch
from tests.small_text import small_network
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from labelemb.text.beam import State, greedy, select
from labelemb.text.corpus.vocab import BOS, EOS, PAD
from labelemb.text.lstm import AttentionLSTM
from labelemb.text.transformer import Transformer
from labelemb.text.translate import NETWORKS, Network

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # source, its lengths, target in, target out, its lengths


def make_network(name: str, *, shared: bool = False, layers: int = 2) -> Network:
    torch.manual_seed(3)
    network = small_network(name, 13, 13 if shared else 11, layers=layers, shared=shared)
    return network.double().eval()


def make_batch(source_lengths: list[int], target_lengths: list[int], *, more_padding: int = 0) -> Batch:
    """Random sentences; the same for any padding."""
    generator = torch.Generator().manual_seed(1)
    rows = len(source_lengths)
    source = torch.full((rows, max(source_lengths) + more_padding), PAD)
    target_in = torch.full((rows, max(target_lengths) + more_padding), PAD)
    target_out = target_in.clone()
    for row, (length, steps) in enumerate(zip(source_lengths, target_lengths, strict=True)):
        source[row, :length] = torch.randint(4, 11, (length,), generator=generator)
        words = torch.randint(4, 11, (steps - 1,), generator=generator)
        target_in[row, :steps] = torch.cat((torch.tensor([BOS]), words))
        target_out[row, :steps] = torch.cat((words, torch.tensor([EOS])))
    return source, torch.tensor(source_lengths), target_in, target_out, torch.tensor(target_lengths)


def features_of(network: Network, batch: Batch) -> Tensor:
    source, source_lengths, target_in, _, target_lengths = batch
    return network.features(source, source_lengths, target_in, target_lengths)


def reference_features(network: AttentionLSTM, source: Tensor, target_in: Tensor) -> Tensor:
    """One unpadded sentence, from the formulas: a loop over layers and time."""

    def run(lstm: torch.nn.LSTM, inputs: list[Tensor], starts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        for layer, (hidden, cell) in enumerate(starts):
            outputs = []
            w_ih, w_hh = getattr(lstm, f"weight_ih_l{layer}"), getattr(lstm, f"weight_hh_l{layer}")
            bias = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
            for x in inputs:
                i, f, g, o = (w_ih @ x + w_hh @ hidden + bias).chunk(4)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * cell.tanh()
                outputs.append(hidden)
            starts[layer] = hidden, cell
            inputs = outputs
        return inputs

    zero = torch.zeros(network.num_features, dtype=torch.float64)
    states = [(zero, zero) for _ in range(network.encoder.num_layers)]
    memory = torch.stack(run(network.encoder, list(network.source_embedding.weight[source]), states))
    result = []
    for h in run(network.decoder, list(network.target_embedding.weight[target_in]), states):
        query = network.attention_in.weight @ h
        weights = (memory @ (query.tanh() if network.query_tanh else query)).softmax(0)
        result.append((network.attention_out.weight @ torch.cat((weights @ memory, h))).tanh())
    return torch.stack(result)


@pytest.mark.parametrize("query_tanh", [False, True])
def test_lstm_equals_the_formulas_sentence_by_sentence(query_tanh: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden": 16, "layers": 2, "dropout": 0.5, "shared": False}
    network = AttentionLSTM(13, 11, query_tanh=query_tanh, **options).double().eval()
    batch = make_batch([5, 2, 7], [4, 6, 1])
    expected = [
        reference_features(network, source[:length], target[:steps])
        for source, length, target, steps in zip(batch[0], batch[1], batch[2], batch[4], strict=True)
    ]
    torch.testing.assert_close(features_of(network, batch), torch.cat(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_neither_features_nor_gradients(name: str) -> None:
    results = []
    for more_padding in (0, 4):
        network = make_network(name)
        batch = make_batch([5, 2, 7], [4, 6, 1], more_padding=more_padding)
        features = features_of(network, batch)
        loss = F.cross_entropy(network.head(features), batch[3][batch[3] != PAD])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        results.append((features, *gradients))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_embeddings_receive_no_gradient(name: str) -> None:
    network = make_network(name)
    features_of(network, make_batch([5, 2, 7], [4, 6, 1])).square().sum().backward()  # type: ignore[no-untyped-call]
    for embedding in (network.source_embedding, network.target_embedding):
        assert embedding.weight.grad is not None
        assert embedding.weight.grad[PAD].count_nonzero() == 0
        assert embedding.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_has_the_features_of_its_sentences_alone(name: str) -> None:
    network = make_network(name)
    batch = make_batch([5, 2, 7], [4, 6, 1])
    alone = []
    for row in range(3):
        source, target = int(batch[1][row]), int(batch[4][row])
        one = (batch[0][row : row + 1, :source], batch[1][row : row + 1], batch[2][row : row + 1, :target])
        alone.append(network.features(*one, batch[4][row : row + 1]))
    torch.testing.assert_close(features_of(network, batch), torch.cat(alone), rtol=0, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_stepping_equals_the_whole_sequence(name: str, layers: int) -> None:
    network = make_network(name, layers=layers)
    source, source_lengths, target_in, _, target_lengths = make_batch([5, 2, 7], [6, 6, 6])
    state = network.encode(source, source_lengths)
    stepped = []
    for tokens in target_in.T:
        features, attention, state = network.step(tokens, state)
        stepped.append(features)
        assert attention[torch.arange(7) >= source_lengths[:, None]].count_nonzero() == 0
        torch.testing.assert_close(attention.sum(1), torch.ones(3, dtype=torch.float64))
    whole = network.features(source, source_lengths, target_in, target_lengths)
    torch.testing.assert_close(torch.stack(stepped, 1).flatten(0, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_hypotheses_of_a_sentence_share_its_memory(name: str) -> None:
    """Three hypotheses a sentence over one memory row equal three copies of the sentence."""
    network = make_network(name)
    source, source_lengths, target_in, _, _ = make_batch([5, 2], [4, 4])
    first = network.encode(source, source_lengths)
    rows = torch.arange(2).repeat_interleave(3)
    wide, copied = select(first, rows), select(first, rows, rows)
    assert len(wide.memory[0]) == 2
    for tokens in torch.randint(4, 11, (3, 6), generator=torch.Generator().manual_seed(0)):
        features, attention, wide = network.step(tokens, wide)
        expected_features, expected_attention, copied = network.step(tokens, copied)
        torch.testing.assert_close(features, expected_features, rtol=0, atol=1e-12)
        torch.testing.assert_close(attention, expected_attention, rtol=0, atol=1e-12)
    assert target_in.shape == (2, 4)


def test_selecting_keeps_the_chosen_hypotheses_and_sentences() -> None:
    state = State((torch.tensor([[0], [1]]),), (torch.tensor([[0], [1], [10], [11]]),))
    chosen = select(state, torch.tensor([3, 2]), torch.tensor([1]))
    assert chosen.memory[0].tolist() == [[1]]
    assert chosen.rows[0].tolist() == [[11], [10]]
    assert select(state, torch.tensor([0, 0, 2, 3])).memory is state.memory


@pytest.mark.parametrize("name", NETWORKS)
def test_shared_is_one_embedding_for_both_sides(name: str) -> None:
    network = make_network(name, shared=True)
    assert network.target_embedding is network.source_embedding
    assert sum(parameter.shape == (13, 16) for parameter in network.parameters()) == 2  # and the classifier
    with pytest.raises(ValueError, match="one vocabulary, got 13 and 11"):
        small_network(name, 13, 11, shared=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_acts_in_training_alone(name: str) -> None:
    network = small_network(name, 13, 11, dropout=0.5)
    batch = make_batch([5, 2, 7], [4, 6, 1])
    assert not torch.equal(features_of(network, batch), features_of(network, batch))
    network.eval()
    assert torch.equal(features_of(network, batch), features_of(network, batch))


def test_transformer_refuses_heads_that_do_not_divide_the_features() -> None:
    with pytest.raises(ValueError, match="hidden is 20: expected a multiple of the 8 heads"):
        small_network("transformer", 13, 11, hidden=20)


def test_transformer_layers_start_from_different_weights() -> None:
    network = small_network("transformer", 13, 11, dropout=0.2)
    assert isinstance(network, Transformer)
    for stack in (network.encoder, network.decoder):
        first, second = (dict(layer.named_parameters()) for layer in stack.layers)
        assert all(not torch.equal(first[key], second[key]) for key in first if first[key].dim() > 1)


def reversal_batch(rows: int) -> Batch:
    words = torch.randint(4, 14, (rows, 8))
    edge = torch.ones(rows, 1, dtype=torch.int64)
    target_in = torch.cat((BOS * edge, words.flip(1)), 1)
    target_out = torch.cat((words.flip(1), EOS * edge), 1)
    return words, torch.full((rows,), 8), target_in, target_out, torch.full((rows,), 9)


@pytest.mark.parametrize(("name", "rows"), [("lstm", 64), ("transformer", 32)])
def test_a_model_learns_to_reverse_sequences(name: str, rows: int) -> None:
    torch.manual_seed(0)
    network = small_network(name, 14, 14, hidden=64, layers=1)
    updates = 300
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
    for _ in range(updates):
        batch = reversal_batch(rows)
        loss = F.cross_entropy(network.head(features_of(network, batch)), batch[3].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    source, lengths, *_ = reversal_batch(500)
    found = [hypothesis.tokens for hypothesis in greedy(network.eval(), source, lengths, max_length=12)]
    right = sum(tokens == words for tokens, words in zip(found, source.flip(1).tolist(), strict=True))
    assert right > 0.99 * len(found)
