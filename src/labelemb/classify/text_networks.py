"""Networks for texts, and how each takes them: as rows of numbers of unlike length."""

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.classify.networks import Classifier
from labelemb.classify.ngrams import buckets_of
from labelemb.errors import InputError, first_line
from labelemb.settings.config import SentenceModelSettings

LONGEST = 512  # tokens of a text for a model of transformers
Encode = Callable[[Sequence[str]], list[list[int]]]


class NgramNetwork(Classifier):
    """The mean of the vectors of a text's buckets, then fully connected layers with ReLU.

    Args:
        num_classes: C.
        buckets: rows of the table of vectors, less the one of the padding, which is 0.
        width: of a vector.
        hidden: widths of the layers after the mean; the last one is D. None at all is a linear classifier.
    """

    takes_channels_last = False

    def __init__(self, num_classes: int, *, buckets: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.vectors = nn.Embedding(buckets + 1, width, padding_idx=0)
        widths = [width, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(one, other) for one, other in itertools.pairwise(widths))
        self.num_features = widths[-1]
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden layer (N, D) of buckets (N, S), 0 for padding; a text without any has the mean 0."""
        counts = (inputs != 0).sum(dim=1, keepdim=True).clamp_min(1)  # (N, 1)
        features: Tensor = self.vectors(inputs).sum(dim=1) / counts  # (N, width)
        for layer in self.hidden:
            features = F.relu(layer(features))
        return features


class TransformerNetwork(Classifier):
    """A pretrained model of transformers, all of it trained: its last hidden states, averaged over a text's tokens.

    Args:
        model: maps token ids and a mask to hidden states.
        num_features: D, their width.
        num_classes: C.
        padding: the token that is no part of a text.
    """

    takes_channels_last = False

    def __init__(self, model: nn.Module, num_features: int, num_classes: int, *, padding: int) -> None:
        super().__init__()
        self.model, self.padding = model, padding
        self.num_features = num_features
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """(N, D) of token ids (N, S)."""
        mask = inputs != self.padding  # (N, S)
        states: Tensor = self.model(input_ids=inputs, attention_mask=mask.long()).last_hidden_state  # (N, S, D)
        return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)


def make_text_network(settings: SentenceModelSettings, num_classes: int) -> Classifier:
    """The network that a recipe or --model names, from torch's current random state.

    Raises:
        InputError: there is none of that name.
    """
    if settings.name == "ngrams":
        return NgramNetwork(num_classes, **settings.model_dump(exclude={"name"}))
    loaded = _from_transformers("AutoModel", settings.name)
    return TransformerNetwork(loaded, loaded.config.hidden_size, num_classes, padding=_padding(loaded.config))


def encoder(settings: SentenceModelSettings) -> tuple[Encode, int]:
    """How the network that is named takes texts: as which numbers, and what pads them.

    Raises:
        InputError: there is none of that name.
    """
    if settings.name == "ngrams":
        return lambda texts: [buckets_of(text, settings.buckets) for text in texts], 0
    tokenizer = _from_transformers("AutoTokenizer", settings.name)
    longest = min(tokenizer.model_max_length, LONGEST)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        return found

    return encode, _padding(_from_transformers("AutoConfig", settings.name))


def _padding(config: Any) -> int:
    return next((token for token in (config.pad_token_id, config.eos_token_id) if isinstance(token, int)), 0)


def _from_transformers(kind: str, name: str) -> Any:
    """What transformers has of a model on this disk; nothing is downloaded, and no code that comes with it is run."""
    origin, _, path = name.partition(":")
    if origin != "transformers" or not path:
        raise InputError(f"model.name={name}: expected ngrams, or --model transformers:NAME")
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            f"model.name={name}: transformers is not installed here: pip install 'labelemb[transformers]'"
        ) from None
    try:
        return getattr(transformers, kind).from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"model.name={name}: no such model on this disk: {first_line(error)}") from None
