"""Max suppression against its formula, an item and a label at a time."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax
from torch._dynamo.testing import CompileCounter

from labelemb.losses.items import Reduction
from labelemb.losses.maxsup import MaxSupLoss
from labelemb.losses.modes import make_criterion


def distance(row: list[float]) -> float:
    """Max z - mean z over the labels that are not masked."""
    seen = [value for value in row if value > -math.inf]
    return max(seen) - math.fsum(seen) / len(seen)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_maxsup_is_its_formula_at_every_point_of_training(num_classes: int, progress: float) -> None:
    logits, target = batch(num_classes=num_classes)
    criterion = MaxSupLoss(num_classes, start=0.3, end=0.7)
    criterion.progress = progress
    expected = math.fsum(
        -log_softmax(row)[label] + (0.3 * (1 - progress) + 0.7 * progress) * distance(row)
        for row, label in zip(logits.tolist(), target.tolist(), strict=True)
    )
    assert criterion(logits, target).item() == pytest.approx(expected / len(target), rel=1e-12, abs=1e-12)


def test_a_compiled_maxsup_stays_one_program_while_its_weight_grows() -> None:
    logits, target = batch()
    criterion = MaxSupLoss(5)
    programs = CompileCounter()
    compiled = torch.compile(criterion, backend=programs, fullgraph=True, dynamic=False)
    for progress in (0.0, 0.25, 0.5, 1.0):
        criterion.progress = progress
        found = compiled(logits, target)
        assert_exact(found, criterion(logits, target))
        terms = criterion.terms(logits, target)
        assert_exact(found, terms.hard + 0.1 * (1 + progress) * terms.soft)
    assert programs.frame_count == 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_maxsup_keeps_the_type_of_its_logits(reduction: Reduction) -> None:
    logits, target = batch()
    assert MaxSupLoss(5, reduction=reduction)(logits.float(), target).dtype == torch.float32
    assert MaxSupLoss(5, reduction=reduction)(logits, target).dtype == torch.float64


def test_the_gradient_of_maxsup_is_its_closed_form() -> None:
    logits, target = batch()
    logits.requires_grad_()
    MaxSupLoss(5, start=0.4)(logits, target).backward()
    largest = F.one_hot(logits.detach().argmax(dim=1), 5).double()
    expected = logits.detach().softmax(dim=1) - F.one_hot(target, 5).double() + 0.4 * (largest - 1 / 5)
    assert logits.grad is not None
    assert_exact(logits.grad, expected / len(target))


def test_labels_that_tie_for_the_maximum_share_its_gradient() -> None:
    logits = torch.tensor([[2.0, -1.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    MaxSupLoss(4)(logits, torch.tensor([1])).backward()
    assert logits.grad is not None
    expected = logits.detach().softmax(dim=1) - F.one_hot(torch.tensor([1]), 4)
    expected = expected + 0.1 * (torch.tensor([[0.5, 0.0, 0.5, 0.0]], dtype=torch.float64) - 0.25)
    assert_exact(logits.grad, expected)


def test_a_masked_label_counts_neither_in_the_maximum_nor_in_the_mean() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 4.0, 0.5]], dtype=torch.float64, requires_grad=True)
    loss = MaxSupLoss(4)(logits, torch.tensor([0]))
    loss.backward()
    kept = [0, 2, 3]
    without = logits.detach()[:, kept].requires_grad_()
    expected = MaxSupLoss(3)(without, torch.tensor([0]))
    expected.backward()
    assert_exact(loss, expected)
    assert logits.grad is not None
    assert without.grad is not None
    assert_exact(logits.grad[:, kept], without.grad)
    assert logits.grad[0, 1] == 0


def test_terms_of_maxsup_are_cross_entropy_and_the_distance() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    terms = MaxSupLoss(5, class_weight=weight).terms(logits, target)
    assert_exact(terms.hard, F.cross_entropy(logits, target, weight))
    distances = torch.tensor([distance(row) for row in logits.tolist()], dtype=torch.float64)
    assert_exact(terms.soft, (weight[target] * distances).sum() / weight[target].sum())
    assert_exact(terms.total, terms.hard + 0.1 * terms.soft)


@pytest.mark.parametrize("name", ["start", "end"])
def test_a_weight_of_maxsup_out_of_range_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0, got -1"):
        make_criterion("maxsup", 4, 5, **options)
