"""PolyLoss against its formula, an item and a label at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax

from labelemb.losses.poly import PolyLoss


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize("soft_weight", [1.0, 2.5])
def test_poly_is_its_formula(num_classes: int, soft_weight: float) -> None:
    logits, target = batch(num_classes=num_classes)
    values = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        log_prob = log_softmax(row)[label]
        values.append(-log_prob + soft_weight * (1 - math.exp(log_prob)))
    found = PolyLoss(num_classes, soft_weight=soft_weight)(logits, target)
    assert found.item() == pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-12)


def test_the_gradient_of_poly_is_its_closed_form() -> None:
    logits, target = batch()
    logits.requires_grad_()
    PolyLoss(5)(logits, target).backward()
    probs = logits.detach().softmax(dim=1)
    true = probs.gather(1, target[:, None])
    expected = (1 + true) * (probs - F.one_hot(target, 5).double())
    assert logits.grad is not None
    assert_exact(logits.grad, expected / len(target))


def test_a_masked_label_leaves_poly_finite() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 4.0]], dtype=torch.float64, requires_grad=True)
    loss = PolyLoss(3)(logits, torch.tensor([0]))
    loss.backward()
    assert_exact(loss, PolyLoss(2)(logits.detach()[:, [0, 2]], torch.tensor([0])))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_terms_of_poly_are_cross_entropy_and_the_missing_probability() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    terms = PolyLoss(5, class_weight=weight).terms(logits, target)
    assert_exact(terms.hard, F.cross_entropy(logits, target, weight))
    missing = 1 - logits.softmax(dim=1).gather(1, target[:, None]).squeeze(1)
    assert_exact(terms.soft, (weight[target] * missing).sum() / weight[target].sum())
    assert_exact(terms.total, terms.hard + terms.soft)
