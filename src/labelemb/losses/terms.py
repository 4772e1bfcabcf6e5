"""The terms of a loss and their weighted sum, from the values of single items. For all modes."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from labelemb.losses.items import Reduction


class Terms(Protocol):
    """A mode's named tuple of terms, each 0-d or (N,): `hard` is cross entropy, `total` the loss that they make."""

    @property
    def _fields(self) -> tuple[str, ...]: ...

    @property
    def hard(self) -> Tensor: ...

    @property
    def total(self) -> Tensor: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    @property
    def _replace(self) -> Callable[..., Self]: ...


class LossTerms(NamedTuple):
    """The five terms, unweighted, and the loss they make. Each 0-d, or (N,) with reduction "none".

    hard: cross entropy with the target. soft: cross entropy with the soft labels. aux: cross entropy of the auxiliary
    head. cap: its confidence above the cap. match: cross entropy of the label table with the auxiliary predictions of
    the matched items. total: hard_weight*hard + soft_weight*soft + aux + cap_weight*cap + match, what `forward`
    returns. A mode without a term has 0 there; what others than label embedding have there, their criterion says.

    Example:
        >>> from labelemb import LabelEmbeddingLoss
        >>> criterion = LabelEmbeddingLoss(num_features=8, num_classes=3)
        >>> terms = criterion.terms(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 8))
        >>> round(terms.hard.item(), 4)  # log 3, whatever its weight in the total
        1.0986
    """

    hard: Tensor
    soft: Tensor
    aux: Tensor
    cap: Tensor
    match: Tensor
    total: Tensor


class DecoupledTerms(NamedTuple):
    """The terms, unweighted, and the loss they make. Each 0-d, or (N,) with reduction "none".

    hard: cross entropy with the target, for comparison with other modes; no part of the loss. certainty: binary cross
    entropy of the label's probability with 1 - epsilon. shape: cross entropy of the learned row with the prediction
    over the other labels. match: what trains a low-rank table; 0 where rows are counted. total: certainty +
    shape_weight*shape + match, what `forward` returns.
    """

    hard: Tensor
    certainty: Tensor
    shape: Tensor
    match: Tensor
    total: Tensor


class Weights(NamedTuple):
    """The settings of the label embedding loss that enter the values of single items, named as its constructor does."""

    hard_weight: float
    soft_weight: float
    temperature: float
    cap: float
    cap_weight: float

    @property
    def factors(self) -> tuple[float, float, float, float, float]:
        """What the terms hard, soft, aux, cap and match are multiplied by."""
        return self.hard_weight, self.soft_weight, 1.0, self.cap_weight, 1.0

    def check(self) -> None:
        """Raise ValueError where a setting is out of its range."""
        check_weights(hard_weight=self.hard_weight, soft_weight=self.soft_weight, cap_weight=self.cap_weight)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and above 0, got {self.temperature}")
        if not 0 < self.cap <= 1:
            raise ValueError(f"cap must lie above 0 and at most at 1, got {self.cap}")


def weighted_sum(factors: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """The sum of terms, of any one shape, each times its factor.

    A term without weight has no part, also where it is infinite: the soft term of a class masked with -inf.
    """
    total: Tensor | None = None
    for factor, term in zip(factors, terms, strict=True):
        if factor != 0:  # the first product is a tensor of its own: a loss may be divided in place
            total = factor * term if total is None else torch.add(total, term, alpha=factor)
    return torch.zeros_like(terms[0]) if total is None else total


def reduced_terms(
    values: Tensor, item_factors: Tensor, factors: Sequence[float], reduction: Reduction
) -> tuple[Tensor, Tensor]:
    """The terms (T,) and their weighted sum 0-d, or (T, N) and (N,), from the values (T, N) of the items.

    Args:
        values: of the T terms.
        item_factors: (N,) what each item's values are multiplied by.
        factors: T numbers, what the terms are multiplied by in the sum.
        reduction: of the loss.
    """
    terms = values * item_factors  # (T, N); no matrix product: autocast would narrow it
    terms = terms if reduction == "none" else terms.sum(dim=1)  # (T, N) or (T,)
    return terms, weighted_sum(factors, terms.unbind())


def check_weights(**weights: float) -> None:
    """Raise ValueError unless all are finite and at least 0."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and at least 0, got {value}")


def widened(values: Tensor) -> Tensor:
    """`values` in float32 where they are narrower: every reduction runs at least there."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
