"""Networks for texts that have come to be rows of numbers, padded with `padding`."""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.classify.networks import Classifier
from labelemb.errors import InputError
from labelemb.settings.config import SentenceModelSettings


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


def make_text_network(settings: SentenceModelSettings, num_classes: int) -> Classifier:
    """The network that a recipe or --model names, from torch's current random state.

    Raises:
        InputError: there is none of that name.
    """
    if settings.name == "ngrams":
        options = settings.model_dump(exclude={"name"})
        return NgramNetwork(num_classes, **options)
    raise InputError(f"model.name={settings.name}: expected ngrams, or --model transformers:NAME")
