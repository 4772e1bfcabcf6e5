"""A trained network with its vocabularies: raw lines in, raw lines out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature

import numpy as np
import torch
from torch import Tensor

from labelemb.errors import InputError
from labelemb.settings.config import DecodeSettings, TextModelSettings
from labelemb.text.beam import Hypothesis, beam_search, greedy
from labelemb.text.corpus.corpus import Integers, Side
from labelemb.text.corpus.vocab import UNK, Vocabulary
from labelemb.text.lstm import AttentionLSTM
from labelemb.text.transformer import Transformer

Network = AttentionLSTM | Transformer
NETWORKS: dict[str, type[AttentionLSTM | Transformer]] = {"lstm": AttentionLSTM, "transformer": Transformer}

_BATCH_LINES = 64
_BATCH_TOKENS = 2**15  # source tokens with padding: one very long line is searched alone


@dataclass(frozen=True)
class Translation:
    """The output for one line. Tokens are as in the text, unknown ones already replaced; attention is (T, S)."""

    text: str
    tokens: list[str]
    source_tokens: list[str]
    attention: Tensor


@dataclass(frozen=True)
class Translator:
    """Translates, summarises: whatever the network was trained for. The network is in evaluation mode."""

    network: Network
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    settings: DecodeSettings

    def translate(self, lines: Sequence[str], *, beam: int | None = None) -> list[Translation]:
        """The outputs for raw lines, in their order; an empty line gives an empty line.

        Args:
            lines: raw text.
            beam: hypotheses kept, 1 for greedy; None takes the settings'.
        """
        side = Side.encode(self.source_vocabulary, lines)
        results = [Translation("", [], [], torch.empty(0, 0))] * len(lines)
        for indices in _batches(side):
            for index, hypothesis in zip(indices, self._search(side, indices, beam), strict=True):
                results[index] = self._in_words(lines[index], hypothesis)
        return results

    def _search(self, side: Side, indices: Integers, beam: int | None) -> list[Hypothesis]:
        device = self.network.head.weight.device
        rows, row_lengths = (torch.from_numpy(array) for array in side.padded(indices))
        source, max_length = rows.to(device), self.settings.max_length
        beam = self.settings.beam if beam is None else beam
        penalty = self.settings.length_penalty
        if beam == 1:
            return greedy(self.network, source, row_lengths, max_length=max_length)
        return beam_search(
            self.network, source, row_lengths, beam_size=beam, max_length=max_length, length_penalty=penalty
        )

    def _in_words(self, line: str, hypothesis: Hypothesis) -> Translation:
        source_tokens = self.source_vocabulary.split(line)
        tokens = [self.target_vocabulary.tokens[token] for token in hypothesis.tokens]
        if self.settings.replace_unknown:
            most_attended = hypothesis.attention.argmax(1).tolist() if UNK in hypothesis.tokens else []
            for place, source_place in enumerate(most_attended):
                if hypothesis.tokens[place] == UNK:
                    tokens[place] = source_tokens[source_place]
        return Translation(self.target_vocabulary.join(tokens), tokens, source_tokens, hypothesis.attention)


def make_network(settings: TextModelSettings, source_size: int, target_size: int, *, shared: bool) -> Network:
    """The network that a recipe describes, from torch's current random state.

    Raises:
        InputError: settings that do not go together.
    """
    network = NETWORKS[settings.name]
    taken = signature(network).parameters  # the others are another network's
    options = {name: value for name, value in settings.model_dump(exclude={"name"}).items() if name in taken}
    try:
        return network(source_size, target_size, shared=shared, **options)
    except ValueError as error:
        raise InputError(f"model: {error}") from None


def _batches(side: Side) -> Iterator[Integers]:
    """The lines that are not empty, by length, in batches of limited lines and tokens; (B,) int64 each."""
    order = np.argsort(side.lengths, kind="stable")
    order = order[side.lengths[order] > 0]
    start = 0
    for stop in range(1, len(order) + 1):
        longest_next = side.lengths[order[stop]] if stop < len(order) else _BATCH_TOKENS
        lines = stop - start
        if lines == _BATCH_LINES or (lines + 1) * longest_next > _BATCH_TOKENS:
            yield order[start:stop]
            start = stop
