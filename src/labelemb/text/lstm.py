"""The paper's sequence model: LSTM encoder, LSTM decoder, Luong attention, no input feeding.

Without input feeding nothing the attention finds goes back into the decoder, so in training the decoder reads the whole
target in one call, and the attention of all positions is one batched product.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from labelemb.text.beam import State
from labelemb.text.inputs import make_embeddings, padding_of, unpadded


class AttentionLSTM(nn.Module):
    """Encoder and decoder of one direction with attention over the source (Luong et al. 2015, "general" score).

    With the decoder's output h at a target position and the encoder's outputs m_1..m_S over the unpadded source:

        a = softmax_s(m_s . W_in h),   c = sum_s a_s m_s,   features = dropout(tanh(W_out [c; h]))

    The decoder starts from the encoder's state after each source's last token; dropout also between layers.

    Args:
        source_size: source vocabulary, ids 0 (padding) to source_size - 1.
        target_size: target vocabulary, V.
        hidden: D, of embeddings and layers, also `num_features`.
        layers: on each side.
        dropout: 0 to 1.
        shared: one embedding for source and target, which then have one vocabulary.
        query_tanh: tanh(W_in h) instead of W_in h in the score.

    Raises:
        ValueError: `shared` with two sizes of vocabulary.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        *,
        hidden: int,
        layers: int,
        dropout: float,
        shared: bool,
        query_tanh: bool,
    ) -> None:
        super().__init__()
        self.num_features = hidden
        self.query_tanh = query_tanh
        embeddings = make_embeddings(source_size, target_size, hidden, shared=shared)
        self.source_embedding, self.target_embedding = embeddings
        between = dropout if layers > 1 else 0.0  # nn.LSTM warns of a dropout between the layers of a single one
        self.encoder = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=between)
        self.decoder = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=between)
        self.attention_in = nn.Linear(hidden, hidden, bias=False)
        self.attention_out = nn.Linear(2 * hidden, hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, target_size)

    def features(
        self, source: Tensor, source_lengths: Tensor, target_in: Tensor, target_lengths: Tensor
    ) -> Tensor:  # (N, D)
        """Features of the N unpadded target tokens, row by row of the batch, with the previous tokens given.

        Args:
            source: (B, S) int64, padded.
            source_lengths: (B,) int64, at least 1 each; on the CPU, or the call waits for the device.
            target_in: (B, T) int64, padded, from <s>.
            target_lengths: (B,) int64; N is their sum; on the CPU, or the call waits for the device.
        """
        state = self.encode(source, source_lengths)
        memory, padding = state.memory
        start = tuple(tensor.transpose(0, 1).contiguous() for tensor in state.rows)
        output, _ = self.decoder(self.target_embedding(target_in), start)  # (B, T, D)
        context, _ = self._attend(output, memory, padding)  # (B, T, D)
        index = unpadded(target_lengths, target_in.shape[1], source.device)
        return self._combine(context.flatten(0, 1).index_select(0, index), output.flatten(0, 1).index_select(0, index))

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        """The state before the first target token.

        Memory: outputs (B, S, D), padding (B, S). Rows: hidden and cell state (B, layers, D).
        """
        embedded = self.source_embedding(source)
        # Only a packed sequence gives every layer's cell state at a source's own last token.
        packed = pack_padded_sequence(embedded, source_lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, (hidden, cell) = self.encoder(packed)
        memory, _ = pad_packed_sequence(output, batch_first=True, total_length=source.shape[1])
        return State((memory, padding_of(source, source_lengths)), (hidden.transpose(0, 1), cell.transpose(0, 1)))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One target position, for decoding.

        Args:
            tokens: (B * K,) int64, the tokens before it.
            state: of B sentences and B * K hypotheses.

        Returns:
            Features (B * K, D), attention over the source (B * K, S), the next state.
        """
        memory, padding = state.memory
        start = tuple(tensor.transpose(0, 1).contiguous() for tensor in state.rows)
        output, (hidden, cell) = self.decoder(self.target_embedding(tokens[:, None]), start)  # (B * K, 1, D)
        # The K hypotheses of a sentence are K queries to its one memory.
        context, weights = self._attend(output.view(len(memory), -1, self.num_features), memory, padding)
        features = self._combine(context.flatten(0, 1), output.squeeze(1))
        return features, weights.flatten(0, 1), State(state.memory, (hidden.transpose(0, 1), cell.transpose(0, 1)))

    def _attend(self, output: Tensor, memory: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Context (B, T, D) and weights (B, T, S) for decoder outputs (B, T, D)."""
        query = self.attention_in(output)
        if self.query_tanh:
            query = query.tanh()
        scores = torch.bmm(query, memory.transpose(1, 2)).masked_fill(padding[:, None], -torch.inf)
        weights = scores.softmax(-1)
        return torch.bmm(weights, memory), weights

    def _combine(self, context: Tensor, output: Tensor) -> Tensor:
        features: Tensor = self.dropout(torch.tanh(self.attention_out(torch.cat((context, output), dim=-1))))
        return features
