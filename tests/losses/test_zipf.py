"""Zipf's label smoothing against its formula, an item and a label at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax

from labelemb.losses.zipf import ZipfLoss


def shape(row: list[float], label: int) -> float:
    """H(w, p~): the cross entropy of Zipf's law over the ranks of the others with their share of the prediction."""
    others = [j for j in range(len(row)) if j != label and row[j] > -math.inf]
    if not others:
        return 0.0
    ranked = sorted(others, key=lambda j: (-row[j], j))
    total = math.fsum(1 / rank for rank in range(1, len(ranked) + 1))
    log_shares = log_softmax([row[j] for j in ranked])
    return -math.fsum(log_share / rank / total for rank, log_share in enumerate(log_shares, start=1))


def reference(rows: list[list[float]], labels: list[int], soft_weight: float) -> float:
    values = [
        -log_softmax(row)[label] + soft_weight * shape(row, label) for row, label in zip(rows, labels, strict=True)
    ]
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 7])
@pytest.mark.parametrize("soft_weight", [0.1, 2.0])
def test_zipf_is_its_formula(num_classes: int, soft_weight: float) -> None:
    logits, target = batch(num_items=20, num_classes=num_classes)
    expected = reference(logits.tolist(), target.tolist(), soft_weight)
    found = ZipfLoss(num_classes, soft_weight=soft_weight)(logits, target)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("row", [[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 2.0], [3.0, -1.0, -1.0, 3.0]])
def test_ties_rank_by_index(row: list[float]) -> None:
    for label in range(4):
        logits = torch.tensor([row], dtype=torch.float64, requires_grad=True)
        ZipfLoss(4)(logits, torch.tensor([label])).backward()
        assert logits.grad is not None
        others = sorted((j for j in range(4) if j != label), key=lambda j: (-row[j], j))
        for rank, j in enumerate(others, start=1):
            share = math.exp(row[j]) / math.fsum(math.exp(row[k]) for k in others)
            probability = math.exp(log_softmax(row)[j])
            expected = probability + 0.1 * (share - (1 / rank) / (1 + 1 / 2 + 1 / 3))
            assert logits.grad[0, j].item() == pytest.approx(expected, rel=1e-12)


def test_the_shape_term_does_not_reach_the_true_logit() -> None:
    logits, target = batch()
    logits.requires_grad_()
    ZipfLoss(5, soft_weight=5.0)(logits, target).backward()
    assert logits.grad is not None
    true = (logits.detach().softmax(dim=1) - 1).gather(1, target[:, None])
    torch.testing.assert_close(logits.grad.gather(1, target[:, None]), true / len(target), rtol=1e-10, atol=1e-12)


def test_a_masked_label_has_no_rank() -> None:
    rows = [[1.0, -math.inf, 4.0, 0.5], [-math.inf, 2.0, -math.inf, -math.inf]]
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    loss = ZipfLoss(4)(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(reference(rows, [0, 1], 0.1), rel=1e-12)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[logits.detach().isneginf()] == 0).all()
    assert (logits.grad[0, [0, 2, 3]] != 0).all()


def test_masked_labels_do_not_spoil_a_distribution() -> None:
    rows = [[1.0, -math.inf, 4.0, 0.5]]
    target = torch.tensor([[0.25, 0.0, 0.0, 0.75]], dtype=torch.float64)
    expected = 0.25 * reference(rows, [0], 0.1) + 0.75 * reference(rows, [3], 0.1)
    found = ZipfLoss(4)(torch.tensor(rows, dtype=torch.float64), target)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_terms_of_zipf_are_cross_entropy_and_the_shape() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    target[2] = -100
    terms = ZipfLoss(5, class_weight=weight).terms(logits, target)
    assert_exact(terms.hard, F.cross_entropy(logits, target, weight))
    kept = [(row, label) for row, label in zip(logits.tolist(), target.tolist(), strict=True) if label >= 0]
    weights = [weight[label].item() for _, label in kept]
    expected = math.fsum(w * shape(row, label) for w, (row, label) in zip(weights, kept, strict=True))
    assert terms.soft.item() == pytest.approx(expected / math.fsum(weights), rel=1e-12)
    assert_exact(terms.total, terms.hard + 0.1 * terms.soft)
