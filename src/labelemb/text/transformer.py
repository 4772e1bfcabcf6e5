"""A Transformer encoder and decoder out of PyTorch's own layers, with a cached step for decoding."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelemb.text.beam import State
from labelemb.text.inputs import make_embeddings, padding_of, unpadded

QUERY, KEY, VALUE = range(3)  # order of the parts in nn.MultiheadAttention's input projection


class Transformer(nn.Module):
    """Vaswani et al. 2017, normalised before each block, with sinusoidal positions and a classifier that is not tied.

    Args:
        source_size: source vocabulary, ids 0 (padding) to source_size - 1.
        target_size: target vocabulary, V.
        hidden: D, also `num_features`; a multiple of `heads`.
        layers: blocks on each side.
        dropout: on embeddings, attention and every block's output, 0 to 1.
        shared: one embedding for source and target, which then have one vocabulary.
        heads: attention heads.

    Raises:
        ValueError: `hidden` not a multiple of `heads`; `shared` with two sizes of vocabulary.
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
        heads: int,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden is {hidden}: expected a multiple of the {heads} heads")
        self.num_features = hidden
        embeddings = make_embeddings(source_size, target_size, hidden, shared=shared)
        self.source_embedding, self.target_embedding = embeddings
        self.dropout = nn.Dropout(dropout)
        shape = {"d_model": hidden, "nhead": heads, "dim_feedforward": 4 * hidden, "dropout": dropout}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**shape, batch_first=True, norm_first=True),  # type: ignore[arg-type]
            layers,
            nn.LayerNorm(hidden),
            enable_nested_tensor=False,  # has no effect with norm_first, but warns
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**shape, batch_first=True, norm_first=True),  # type: ignore[arg-type]
            layers,
            nn.LayerNorm(hidden),
        )
        self.head = nn.Linear(hidden, target_size)
        self._initialize()

    def _initialize(self) -> None:
        # PyTorch's stacks copy one layer, so without this every layer would start with the same weights.
        for stack in (self.encoder, self.decoder):
            for parameter in stack.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=self.num_features**-0.5)  # the input is scaled to deviation 1

    def features(
        self, source: Tensor, source_lengths: Tensor, target_in: Tensor, target_lengths: Tensor
    ) -> Tensor:  # (N, D)
        """Features of the N unpadded target tokens, row by row of the batch, with the previous tokens given.

        Args:
            source: (B, S) int64, padded.
            source_lengths: (B,) int64, at least 1 each.
            target_in: (B, T) int64, padded, from <s>.
            target_lengths: (B,) int64; N is their sum.
        """
        memory, padding = self._encode(source, source_lengths)
        causal = torch.ones(target_in.shape[1], target_in.shape[1], dtype=torch.bool, device=source.device).triu(1)
        decoded: Tensor = self.decoder(
            self._embed(self.target_embedding, target_in),
            memory,
            tgt_mask=causal,
            tgt_is_causal=True,
            memory_key_padding_mask=padding,
        )  # (B, T, D)
        return decoded.flatten(0, 1).index_select(0, unpadded(target_lengths, target_in.shape[1], source.device))

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        """The state before the first target token.

        Memory: padding (B, S), then each layer's keys and values of the source (B, heads, S, D / heads), computed once.
        Rows: each layer's keys and values of the target so far (B, heads, t, D / heads).
        """
        memory, padding = self._encode(source, source_lengths)
        projected = []
        for layer in self._decoder_layers():
            projected += [_project(layer.multihead_attn, memory, part) for part in (KEY, VALUE)]
        return State((padding, *projected), tuple(tensor[:, :, :0] for tensor in projected))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One target position, for decoding (no dropout); costs O(t + S) a row after t tokens.

        Args:
            tokens: (B * K,) int64, the tokens before it.
            state: of B sentences and B * K hypotheses.

        Returns:
            Features (B * K, D), attention over the source (B * K, S; the mean of the last layer's heads), next state.
        """
        padding, *projected = state.memory
        num_sentences, cache = len(padding), []
        x = self._embed(self.target_embedding, tokens[:, None], start=state.rows[0].shape[2])  # (B * K, 1, D)
        weights = torch.empty(0)
        for i, layer in enumerate(self._decoder_layers()):
            own = layer.norm1(x)
            query, key, value = (_project(layer.self_attn, own, part) for part in (QUERY, KEY, VALUE))
            keys = torch.cat((state.rows[2 * i], key), dim=2)
            values = torch.cat((state.rows[2 * i + 1], value), dim=2)
            cache += [keys, values]
            x = x + _attend(layer.self_attn, query, keys, values)[0]
            # The K hypotheses of a sentence are K queries to its one memory.
            crossing = layer.norm2(x).view(num_sentences, -1, self.num_features)  # (B, K, D)
            query = _project(layer.multihead_attn, crossing, QUERY)
            context, weights = _attend(layer.multihead_attn, query, projected[2 * i], projected[2 * i + 1], padding)
            x = x + context.view_as(x)
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
        assert self.decoder.norm is not None
        features: Tensor = self.decoder.norm(x).squeeze(1)
        return features, weights.mean(1).flatten(0, 1), State(state.memory, tuple(cache))

    def _decoder_layers(self) -> list[nn.TransformerDecoderLayer]:
        return [layer for layer in self.decoder.layers if isinstance(layer, nn.TransformerDecoderLayer)]

    def _encode(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        padding = padding_of(source, source_lengths)
        memory: Tensor = self.encoder(self._embed(self.source_embedding, source), src_key_padding_mask=padding)
        return memory, padding

    def _embed(self, embedding: nn.Embedding, tokens: Tensor, start: int = 0) -> Tensor:
        scaled = embedding(tokens) * math.sqrt(self.num_features)
        embedded: Tensor = self.dropout(scaled + _positions(start, tokens.shape[1], scaled))
        return embedded


def _positions(start: int, count: int, like: Tensor) -> Tensor:
    """Sines in the first half of the features, cosines in the second: (count, D)."""
    size = like.shape[-1]
    rates = torch.exp(torch.arange(0, size, 2, dtype=torch.float64) * (-math.log(10_000) / size))
    angles = torch.arange(start, start + count, dtype=torch.float64)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :size].to(like, non_blocking=True)


def _project(attention: nn.MultiheadAttention, x: Tensor, part: int) -> Tensor:
    """(n, t, D) -> the queries, keys or values of every head (n, heads, t, D / heads)."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    assert weight is not None
    assert bias is not None
    x = F.linear(x, weight.chunk(3)[part], bias.chunk(3)[part])
    return x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _attend(
    attention: nn.MultiheadAttention, query: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The attention's output (n, t, D) and weights (n, heads, t, S) from projected heads; padding (n, S)."""
    scores = query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1])
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    weights = scores.softmax(-1)
    output: Tensor = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    return output, weights
