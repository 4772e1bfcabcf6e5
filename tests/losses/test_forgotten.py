"""The warning about criterion parameters that no optimiser was given."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from labelemb import FusedLabelEmbeddingLoss, LabelEmbeddingLoss, LabelTable

NUM_CALLS = 205

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Call = Callable[[LabelEmbeddingLoss, nn.Linear, Tensor, Tensor], Tensor]


def by_forward(criterion: LabelEmbeddingLoss, head: nn.Linear, features: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = criterion(head(features), target, features)
    return loss


def by_terms(criterion: LabelEmbeddingLoss, head: nn.Linear, features: Tensor, target: Tensor) -> Tensor:
    return criterion.terms(head(features), target, features).total


def by_fused(criterion: LabelEmbeddingLoss, head: nn.Linear, features: Tensor, target: Tensor) -> Tensor:
    return criterion.fused(features, target, head)


def by_fused_module(criterion: LabelEmbeddingLoss, head: nn.Linear, features: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = FusedLabelEmbeddingLoss(criterion, head)(features, target)
    return loss


def train(
    criterion: LabelEmbeddingLoss,
    optimizer_of: MakeOptimizer | None,
    *,
    criterion_optimizer_of: MakeOptimizer | None = None,
    given: Callable[[str], bool] = lambda _: True,
    update_every: int = 1,
    num_calls: int = NUM_CALLS,
    call: Call = by_forward,
) -> list[warnings.WarningMessage]:
    """The warnings of training calls; the criterion's optimiser has the parameters whose names are `given`."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    head = nn.Linear(4, 5)
    optimizers = []
    if optimizer_of is not None:
        optimizers.append(optimizer_of([*network.parameters(), *head.parameters()]))
    if criterion_optimizer_of is not None:
        named = criterion.named_parameters()
        optimizers.append(criterion_optimizer_of([parameter for name, parameter in named if given(name)]))
    inputs, target = torch.randn(6, 3), torch.randint(5, (6,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(1, num_calls + 1):
            call(criterion, head, network(inputs), target).backward()  # type: ignore[no-untyped-call]
            if number % update_every == 0:
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
    optimizer_of: MakeOptimizer, rank: int | None
) -> None:
    caught = train(LabelEmbeddingLoss(4, 5, rank=rank), optimizer_of)
    assert len(caught) == 1
    assert "after 10 training calls" in str(caught[0].message)
    assert '{"params": criterion.parameters(), "weight_decay": 0.0}' in str(caught[0].message)


def test_the_warning_says_what_to_do_where_a_trainer_makes_the_optimiser() -> None:
    (caught,) = train(LabelEmbeddingLoss(4, 5), sgd)
    assert "make the criterion a submodule of the model" in str(caught.message)


@pytest.mark.parametrize("call", [by_forward, by_terms, by_fused, by_fused_module])
def test_the_warning_points_at_the_line_that_calls_the_criterion(call: Call) -> None:
    (caught,) = train(LabelEmbeddingLoss(4, 5), sgd, call=call)
    lines, first = inspect.getsourcelines(call)
    assert caught.filename == __file__
    assert first < caught.lineno < first + len(lines)
    assert "criterion" in lines[caught.lineno - first]


@pytest.mark.parametrize("call", [by_forward, by_fused])
@pytest.mark.parametrize("optimizer_of", [sgd, fused_adam])
@pytest.mark.parametrize(
    ("rank", "forgotten"),
    [
        (None, ["table.weight"]),
        (None, ["aux_head.weight", "aux_head.bias"]),
        (None, ["aux_head.bias"]),
        (2, ["table.rows.weight"]),
        (2, ["table.decoder.weight", "table.decoder.bias"]),
    ],
)
def test_what_was_forgotten_is_named_and_nothing_else(
    call: Call, optimizer_of: MakeOptimizer, rank: int | None, forgotten: list[str]
) -> None:
    criterion = LabelEmbeddingLoss(4, 5, rank=rank)
    caught = train(
        criterion,
        sgd,
        criterion_optimizer_of=optimizer_of,
        given=lambda name: name not in forgotten,
        call=call,
        num_calls=11,
    )
    assert len(caught) == 1
    named = [name for name, _ in criterion.named_parameters() if name in str(caught[0].message)]
    assert named == [name for name, _ in criterion.named_parameters() if name in forgotten]


@pytest.mark.parametrize("num_calls", [11, 60])
def test_short_runs_are_warned_too(num_calls: int) -> None:
    assert len(train(LabelEmbeddingLoss(4, 5), sgd, num_calls=num_calls)) == 1


def test_a_forgotten_table_of_many_labels_is_seen_though_few_rows_have_gradients() -> None:
    criterion = LabelEmbeddingLoss(4, 3000)
    assert criterion.aux_head is not None
    network, target = nn.Linear(4, 4), torch.tensor([2999])
    optimizer = SGD([*network.parameters(), *criterion.aux_head.parameters()], lr=0.1)
    with torch.no_grad():
        criterion.aux_head.bias[2999] = 10.0  # the label is matched
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            features = network(torch.ones(1, 4))
            criterion(features @ torch.ones(4, 3000), target, features).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert ["table.weight of" in str(warning.message) for warning in caught] == [True]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("zero_first", [True, False])
def test_nothing_is_said_of_a_table_whose_labels_are_rarely_matched(set_to_none: bool, zero_first: bool) -> None:
    """A table row moves only when its label is matched; gradients may lie there from the step before."""
    torch.manual_seed(0)
    criterion = LabelEmbeddingLoss(4, 50)
    assert criterion.aux_head is not None
    network, head = nn.Linear(4, 4), nn.Linear(4, 50)
    optimizer = SGD([*network.parameters(), *head.parameters(), *criterion.parameters()], lr=1e-3)
    before = criterion.table.weight.detach().clone()
    for number in range(320):
        with torch.no_grad():
            criterion.aux_head.bias[7] = 100.0 if number == 4 else -100.0  # matched once
        if zero_first:
            optimizer.zero_grad(set_to_none)
        features = network(torch.randn(1, 4))
        loss = criterion(head(features), torch.tensor([7]), features)  # a warning is an error
        if not zero_first:
            optimizer.zero_grad(set_to_none)
        loss.backward()
        optimizer.step()
    assert not torch.equal(criterion.table.weight, before)


def test_nothing_is_said_of_a_table_without_a_match() -> None:
    criterion = LabelEmbeddingLoss(4, 5)
    assert criterion.aux_head is not None
    nn.init.constant_(criterion.aux_head.bias, 0.0)
    with torch.no_grad():
        criterion.aux_head.bias[0] = 1000.0
    target = torch.full((6,), 3)
    network, head = nn.Linear(3, 4), nn.Linear(4, 5)
    optimizer = SGD([*network.parameters(), *head.parameters(), *criterion.parameters()], lr=1e-3)
    for _ in range(NUM_CALLS):
        features = network(torch.randn(6, 3))
        optimizer.zero_grad()
        criterion(head(features), target, features).backward()
        optimizer.step()
    assert torch.equal(criterion.table.weight, torch.eye(5))


def test_nothing_is_said_where_the_first_match_waits_for_its_update() -> None:
    """The table's first gradient accumulates when the network has long moved."""
    criterion = LabelEmbeddingLoss(4, 5)
    assert criterion.aux_head is not None
    network, head = nn.Linear(3, 4), nn.Linear(4, 5)
    optimizer = SGD([*network.parameters(), *head.parameters(), *criterion.parameters()], lr=1e-3)
    for number in range(1, NUM_CALLS):
        with torch.no_grad():
            criterion.aux_head.bias.fill_(0.0)
            criterion.aux_head.bias[3] = 1000.0 if number in (9, 10, 99, 100, 199, 200) else -1000.0
        features = network(torch.randn(1, 3))
        criterion(head(features), torch.tensor([3]), features).backward()
        if number % 8 == 0:
            optimizer.step()
            optimizer.zero_grad()


def test_parameters_too_narrow_for_their_steps_are_not_called_forgotten() -> None:
    torch.manual_seed(0)
    criterion = LabelEmbeddingLoss(4, 5).bfloat16()
    assert criterion.aux_head is not None
    nn.init.ones_(criterion.aux_head.bias)  # a step of 1e-4 leaves 1 as it is in bfloat16
    network, head = nn.Linear(3, 4), nn.Linear(4, 5)
    optimizer = SGD([*network.parameters(), *head.parameters(), *criterion.parameters()], lr=1e-4)
    inputs, target = torch.randn(6, 3), torch.randint(5, (6,))
    for _ in range(12):
        features = network(inputs)
        loss = criterion(head(features), target, features)
        optimizer.zero_grad()  # after the call, which so finds the gradients of the step before
        loss.backward()
        optimizer.step()
    assert criterion.aux_head.bias.eq(1).all()


@pytest.mark.parametrize("criterion_optimizer_of", [sgd, fused_adam])
@pytest.mark.parametrize("optimizer_of", [sgd, fused_adam])
@pytest.mark.parametrize("update_every", [1, 7, 120])
def test_nothing_is_said_when_the_optimiser_has_them(
    optimizer_of: MakeOptimizer,
    criterion_optimizer_of: MakeOptimizer,
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
