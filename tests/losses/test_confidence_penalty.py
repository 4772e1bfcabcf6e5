"""The confidence penalty against its formula, an item and a label at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax

from labelemb.losses.confidence_penalty import ConfidencePenaltyLoss


def entropy(row: list[float]) -> float:
    """H(p) of a row of logits; a masked label adds nothing."""
    seen = [value for value in row if value > -math.inf]
    return -math.fsum(math.exp(log_p) * log_p for log_p in log_softmax(seen))


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize("soft_weight", [0.1, 0.7])
def test_the_confidence_penalty_is_its_formula(num_classes: int, soft_weight: float) -> None:
    logits, target = batch(num_classes=num_classes)
    expected = math.fsum(
        -log_softmax(row)[label] - soft_weight * entropy(row)
        for row, label in zip(logits.tolist(), target.tolist(), strict=True)
    )
    found = ConfidencePenaltyLoss(num_classes, soft_weight=soft_weight)(logits, target)
    assert found.item() == pytest.approx(expected / len(target), rel=1e-12, abs=1e-12)


def test_equal_logits_have_the_largest_entropy_and_one_that_towers_none() -> None:
    criterion = ConfidencePenaltyLoss(4)
    equal, towering = torch.zeros(1, 4, dtype=torch.float64), 1e4 * torch.eye(4, dtype=torch.float64)[:1]
    target = torch.tensor([0])
    assert criterion.terms(equal, target).soft.item() == pytest.approx(-math.log(4), rel=1e-12)
    assert criterion.terms(towering, target).soft.item() == 0


def test_the_gradient_of_the_confidence_penalty_is_its_closed_form() -> None:
    logits, target = batch()
    logits.requires_grad_()
    ConfidencePenaltyLoss(5)(logits, target).backward()
    log_probs = logits.detach().log_softmax(dim=1)
    probs = log_probs.exp()
    entropies = -(probs * log_probs).sum(dim=1, keepdim=True)
    expected = probs - F.one_hot(target, 5).double() + 0.1 * probs * (log_probs + entropies)
    assert logits.grad is not None
    assert_exact(logits.grad, expected / len(target))


def test_a_masked_label_adds_nothing_to_the_entropy() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 4.0]], dtype=torch.float64, requires_grad=True)
    criterion = ConfidencePenaltyLoss(3)
    criterion(logits, torch.tensor([0])).backward()
    soft = criterion.terms(logits, torch.tensor([0])).soft
    assert soft.item() == pytest.approx(-entropy([1.0, 4.0]), rel=1e-12)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0


def test_terms_of_the_confidence_penalty_are_cross_entropy_and_negative_entropy() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    terms = ConfidencePenaltyLoss(5, class_weight=weight).terms(logits, target)
    assert_exact(terms.hard, F.cross_entropy(logits, target, weight))
    entropies = torch.tensor([entropy(row) for row in logits.tolist()], dtype=torch.float64)
    assert_exact(terms.soft, -(weight[target] * entropies).sum() / weight[target].sum())
    assert_exact(terms.total, terms.hard + 0.1 * terms.soft)
