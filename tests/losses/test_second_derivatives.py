"""Gradients of gradients, as gradient penalties and meta learning need them: right in `forward`, refused by `fused`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb import LabelEmbeddingLoss
from labelemb.losses import label_embedding as loss_module

N, D, C = 7, 4, 5
RANKS = [None, 3]


def make_criterion(rank: int | None = None, **settings: Any) -> LabelEmbeddingLoss:
    torch.manual_seed(1)
    criterion = LabelEmbeddingLoss(D, C, rank=rank, **{"cap": 0.3, "cap_weight": 3.0, **settings})
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.normal_()
    return criterion.double()


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    logits, features = torch.randn(N, C, dtype=torch.float64), torch.randn(N, D, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(C, (N,)), features


def second_derivatives(criterion: LabelEmbeddingLoss) -> list[Tensor]:
    """The gradient of the squared first gradients of a loss that is itself squared."""
    logits, target, features = make_batch()
    assert criterion.aux_head is not None
    target[3:] = criterion.aux_head(features[3:]).argmax(dim=1)  # so that some match
    target[2] = -100
    tensors = [logits, *criterion.parameters()]
    first = torch.autograd.grad(criterion(logits, target, features).square().sum(), tensors, create_graph=True)
    penalty = torch.stack([(gradient + 0.1).square().sum() for gradient in first]).sum()
    return list(torch.autograd.grad(penalty, tensors, allow_unused=True))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_are_those_of_the_plain_formulas(
    rank: int | None, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = make_criterion(rank, reduction=reduction)
    found = second_derivatives(criterion)
    monkeypatch.setattr(loss_module, "is_traced", lambda: True)  # what compilers and torch.func are given
    expected = second_derivatives(criterion)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("term", ["hard", "soft", "aux", "cap", "match"])
def test_gradgradcheck_of_each_term_in_what_it_trains(term: str) -> None:
    criterion = make_criterion(reduction="sum")
    logits, target, features = make_batch()
    assert criterion.aux_head is not None
    trained = {"hard": logits, "soft": logits, "match": criterion.table.weight}.get(term, criterion.aux_head.weight)

    def value(_: Tensor) -> Tensor:
        found: Tensor = getattr(criterion.terms(logits, target, features), term)
        return found

    assert torch.autograd.gradgradcheck(value, (trained,), rtol=1e-7, atol=1e-7)


def test_a_gradient_penalty_equals_that_of_cross_entropy() -> None:
    criterion = make_criterion(hard_weight=1.0, soft_weight=0.0)
    torch.manual_seed(0)
    inputs, weight = torch.randn(N, 3, dtype=torch.float64), torch.randn(3, C, dtype=torch.float64, requires_grad=True)
    _, target, features = make_batch()

    def penalty(loss: Callable[[Tensor], Tensor]) -> Tensor:
        points = inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(points @ weight), points, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    found = penalty(lambda logits: criterion(logits, target, features))
    torch.testing.assert_close(found, penalty(lambda logits: F.cross_entropy(logits, target)), rtol=1e-12, atol=1e-12)


def test_a_backward_pass_without_a_graph_gives_gradients_without_one() -> None:
    criterion, (logits, target, features) = make_criterion(), make_batch()
    criterion(logits, target, features).backward()
    assert logits.grad is not None
    assert not logits.grad.requires_grad


def test_fused_refuses_a_graph_of_its_gradients_and_names_the_way() -> None:
    criterion, head = make_criterion(), nn.Linear(D, C).double()
    _, target, features = make_batch()
    loss = criterion.fused(features.requires_grad_(), target, head)
    with pytest.raises(RuntimeError, match=r"second derivatives.*criterion\(head\(features\), target, features\)"):
        torch.autograd.grad(loss, features, create_graph=True)
