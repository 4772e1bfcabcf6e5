"""Soft labels that stay as they are, each against its formula."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax
from torch import Tensor

from labelemb.losses.fixed import FixedSoftLabelLoss, baseline, smoothing, teacher_free


def teacher_free_reference(logits: Tensor, target: Tensor) -> float:
    """0.9*H(onehot, p) + 0.1*KL(softmax(u/20), p), an item and a label at a time."""
    values = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        log_probs = log_softmax(row)
        num_classes = len(row)
        u = [0.99 if j == label else 0.01 / (num_classes - 1) for j in range(num_classes)]
        log_t = log_softmax([value / 20 for value in u])
        divergence = math.fsum(math.exp(t) * (t - log_p) for t, log_p in zip(log_t, log_probs, strict=True))
        values.append(-0.9 * log_probs[label] + 0.1 * divergence)
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_baseline_is_cross_entropy(num_classes: int) -> None:
    logits, target = batch(num_classes=num_classes)
    assert_exact(baseline(num_classes)(logits, target), F.cross_entropy(logits, target))


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_smoothing_is_cross_entropy_with_label_smoothing(num_classes: int) -> None:
    logits, target = batch(num_classes=num_classes)
    expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    assert_exact(smoothing(num_classes)(logits, target), expected)


@pytest.mark.parametrize("num_classes", [2, 5, 100])
def test_teacher_free_is_its_formula(num_classes: int) -> None:
    logits, target = batch(num_classes=num_classes)
    assert teacher_free(num_classes)(logits, target).item() == pytest.approx(
        teacher_free_reference(logits, target), rel=1e-12, abs=1e-12
    )


def test_the_divergence_of_teacher_free_is_zero_where_the_prediction_is_the_teacher() -> None:
    criterion = teacher_free(5)
    log_teacher = [math.log(criterion.true_prob if j == 2 else criterion.other_prob) for j in range(5)]
    logits = torch.tensor([log_teacher], dtype=torch.float64)
    assert abs(criterion.terms(logits, torch.tensor([2])).soft.item()) < 1e-15
    assert criterion.terms(logits + torch.eye(5)[0], torch.tensor([2])).soft.item() > 0.01


def test_the_gradient_of_smoothing_is_its_closed_form() -> None:
    logits, target = batch()
    logits.requires_grad_()
    smoothing(5)(logits, target).backward()
    expected = logits.detach().softmax(dim=1) - 0.9 * F.one_hot(target, 5).double() - 0.1 / 5
    assert logits.grad is not None
    assert_exact(logits.grad, expected / len(target))


def test_class_weights_are_those_of_cross_entropy() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    criterion = FixedSoftLabelLoss(5, hard_weight=1.0, soft_weight=0.0, true_prob=1.0, class_weight=weight)
    assert_exact(criterion(logits, target), F.cross_entropy(logits, target, weight))


def test_num_items_replaces_the_divisor() -> None:
    logits, target = batch()
    assert_exact(smoothing(5)(logits, target, num_items=14), F.cross_entropy(logits, target, label_smoothing=0.1) / 2)


def test_terms_are_unweighted_and_total_is_their_weighted_sum() -> None:
    logits, target = batch()
    terms = smoothing(5).terms(logits, target)
    assert_exact(terms.hard, F.cross_entropy(logits, target))
    assert_exact(terms.soft, -logits.log_softmax(dim=1).mean())
    assert_exact(terms.total, 0.9 * terms.hard + 0.1 * terms.soft)
    assert terms.aux.item() == terms.cap.item() == terms.match.item() == 0


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_probability_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="true_prob"):
        FixedSoftLabelLoss(5, true_prob=value)


@pytest.mark.parametrize("make", [baseline, lambda c: smoothing(c, 0.0)])
def test_a_masked_class_leaves_modes_without_a_soft_term_finite(make: Callable[[int], Any]) -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.float64)
    found = make(3)(logits, torch.tensor([0]))
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.tensor([0])), rtol=1e-12, atol=1e-12)


def test_epsilon_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon must lie in 0 to 1, got 1\.5"):
        smoothing(5, 1.5)
