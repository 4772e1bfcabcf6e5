"""The warning about criterion parameters that no optimiser was given."""

import copy
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from labelemb import LabelEmbeddingLoss, LabelTable

NUM_CALLS = 250


def train(
    criterion: LabelEmbeddingLoss,
    optimizer_of: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
    *,
    criterion_optimizer_of: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    update_every: int = 1,
) -> list[warnings.WarningMessage]:
    """The warnings of 250 training calls; without an optimiser of its own the criterion is forgotten."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    head = nn.Linear(4, 5)
    optimizers = []
    if optimizer_of is not None:
        optimizers.append(optimizer_of([*network.parameters(), *head.parameters()]))
    if criterion_optimizer_of is not None:
        optimizers.append(criterion_optimizer_of(criterion.parameters()))
    inputs, target = torch.randn(6, 3), torch.randint(5, (6,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in range(1, NUM_CALLS + 1):
            features = network(inputs)
            loss: Tensor = criterion(head(features), target, features)
            loss.backward()  # type: ignore[no-untyped-call]
            if call % update_every == 0:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    return caught


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1)


def fused_adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=0.1, fused=True)


@pytest.mark.parametrize("optimizer_of", [sgd, fused_adam])
@pytest.mark.parametrize("rank", [None, 2])
def test_forgotten_parameters_are_warned_of_once_with_the_missing_line(
    optimizer_of: Callable[[Iterable[nn.Parameter]], Optimizer], rank: int | None
) -> None:
    caught = train(LabelEmbeddingLoss(4, 5, rank=rank), optimizer_of)
    assert len(caught) == 1
    assert "after 100 training calls" in str(caught[0].message)
    assert '{"params": criterion.parameters(), "weight_decay": 0.0}' in str(caught[0].message)


def test_the_warning_points_at_the_call_of_the_criterion() -> None:
    assert [warning.filename for warning in train(LabelEmbeddingLoss(4, 5), sgd)] == [__file__]


@pytest.mark.parametrize("criterion_optimizer_of", [sgd, fused_adam])
@pytest.mark.parametrize("optimizer_of", [sgd, fused_adam])
@pytest.mark.parametrize("update_every", [1, 7, 120])
def test_nothing_is_said_when_the_optimiser_has_them(
    optimizer_of: Callable[[Iterable[nn.Parameter]], Optimizer],
    criterion_optimizer_of: Callable[[Iterable[nn.Parameter]], Optimizer],
    update_every: int,
) -> None:
    criterion = LabelEmbeddingLoss(4, 5)
    assert not train(criterion, optimizer_of, criterion_optimizer_of=criterion_optimizer_of, update_every=update_every)


def test_nothing_is_said_while_gradients_accumulate() -> None:
    assert not train(LabelEmbeddingLoss(4, 5), sgd, update_every=NUM_CALLS)
    assert not train(LabelEmbeddingLoss(4, 5), None)


def test_accumulation_does_not_hide_forgotten_parameters() -> None:
    assert len(train(LabelEmbeddingLoss(4, 5), sgd, update_every=60)) == 1


def test_nothing_is_said_of_a_frozen_table() -> None:
    assert not train(LabelEmbeddingLoss(4, 5, table=LabelTable(5), freeze_table=True), sgd)


def test_nothing_is_said_of_parameters_frozen_on_purpose() -> None:
    assert not train(LabelEmbeddingLoss(4, 5).requires_grad_(False), sgd)


def test_evaluation_is_not_counted() -> None:
    criterion = LabelEmbeddingLoss(4, 5)
    head = nn.Linear(4, 5)
    features, target = torch.randn(6, 4), torch.randint(5, (6,))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for call in range(NUM_CALLS):
            nn.init.constant_(head.bias, call)
            with torch.no_grad():
                criterion(head(features), target, features)
            criterion.eval()(head(features), target, features)
            criterion.train()
    assert not said


def test_a_copied_criterion_counts_for_itself() -> None:
    criterion = LabelEmbeddingLoss(4, 5)
    assert len(train(criterion, sgd)) == 1
    assert not train(copy.deepcopy(criterion), sgd)  # said already
    assert len(train(LabelEmbeddingLoss(4, 5), sgd)) == 1
