"""What a classification task asks of its data; images, tables or texts, it does not know which."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor


class ClassifySplit(Protocol):
    """N labelled items."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    def __len__(self) -> int: ...

    def inputs(self, part: slice) -> Tensor:
        """What the network takes of some items, (B, *shape), as they are: for evaluation."""


class Items(NamedTuple):
    """What is to be predicted: a data set's test items, or others that were read by a run's record."""

    split: ClassifySplit
    label_names: list[str]
    shape: tuple[int, ...]
    """Of one input, as `ClassifyData.shape`."""
    noun: str
    """What they are, in the plural."""
    is_labeled: bool = True
    """Else the split's labels mean nothing."""
    names: list[str] | None = None
    """Of each item, where they have one: files."""


class Answers(NamedTuple):
    """What a network answered to N test items."""

    predicted: Tensor
    """(N,) int64 in [0, C)."""
    certainty: Tensor
    """(N,) floating point in [0, 1]: the probability of that label."""


class ClassifyData(Protocol):
    """A labelled data set and the way from its items to the network's inputs."""

    @property
    def label_names(self) -> list[str]:
        """C names."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input; the longest that there is, where they vary."""

    @property
    def varying_shapes(self) -> bool:
        """Whether batches differ in shape, beyond a short last one."""

    @property
    def record(self) -> dict[str, Any]:
        """As JSON holds it: label names, and what makes inputs of other items as of these; inputs.json of a run."""

    @property
    def notes(self) -> list[str]:
        """What is to be said of the data before training, a line each."""

    @property
    def train(self) -> ClassifySplit: ...

    @property
    def validation(self) -> ClassifySplit | None: ...

    @property
    def test(self) -> ClassifySplit: ...

    def inputs(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A training batch.

        Args:
            indices: (B,) int64 training items, where the data lie.
            generator: source of every draw, on the CPU; drawn from only where items are augmented.

        Returns:
            Inputs (B, *shape), float32 or integers, and their targets: (B,) labels or (B, C) probabilities.
        """

    def to(self, device: torch.device, *, channels_last: bool) -> Self:
        """The same data on a device; inputs of images then have their channels innermost if asked for."""

    def examples(self, folder: Path, answers: Answers) -> None:
        """Write some test items of every label into a folder, to be looked at, and what was answered to them."""
