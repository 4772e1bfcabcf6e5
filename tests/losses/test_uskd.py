"""Universal self-knowledge distillation against its formula, a label at a time; gradients where they stop."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax
from torch import Tensor

from labelemb.losses.items import Reduction
from labelemb.losses.modes import make_criterion
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.uskd import UniversalSelfDistillationLoss

WEIGHTS = {"target_weight": 0.3, "shape_weight": 0.2, "aux_weight": 0.7}


def made(num_classes: int = 5, /, **weights: Any) -> UniversalSelfDistillationLoss:
    torch.manual_seed(1)
    criterion = make_criterion("uskd", 4, num_classes, **weights).double()
    assert isinstance(criterion, UniversalSelfDistillationLoss)
    return criterion


def aux_logits_of(criterion: SoftLabelLoss, features: Tensor) -> Tensor:
    assert isinstance(criterion, UniversalSelfDistillationLoss)
    found: Tensor = criterion.aux_head(features)
    return found.detach()


def features_of(num_items: int) -> Tensor:
    return torch.randn(num_items, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def rank_label(row: list[float], aux_row: list[float], label: int) -> list[float]:
    """w: 1/rank of p'_j/(1 - p'_y) + p_j/(1 - p_y) among the others that are not masked, made to sum to 1."""
    probs, aux_probs = ([math.exp(value) for value in log_softmax(logits)] for logits in (row, aux_row))
    others = [j for j in range(len(row)) if j != label and row[j] > -math.inf]
    score = {j: aux_probs[j] / (1 - aux_probs[label]) + probs[j] / (1 - probs[label]) for j in others}
    ranked = sorted(others, key=lambda j: (-score[j], j))
    total = math.fsum(1 / rank for rank in range(1, len(ranked) + 1))
    return [1 / (ranked.index(j) + 1) / total if j in ranked else 0.0 for j in range(len(row))]


def shape(row: list[float], aux_row: list[float], label: int) -> float:
    """H(w, p~)."""
    w = rank_label(row, aux_row, label)
    shares = log_softmax([-math.inf if j == label else value for j, value in enumerate(row)]) if any(w) else row
    return -math.fsum(weight * share for weight, share in zip(w, shares, strict=True) if weight)


def smoothed(aux_row: list[float], label: int) -> float:
    """H(smoothed 0.1, p')."""
    log_probs = log_softmax(aux_row)
    return -0.9 * log_probs[label] - 0.1 * math.fsum(log_probs) / len(log_probs)


def reference(logits: Tensor, aux_logits: Tensor, target: Tensor, weight: Tensor) -> float:
    """The loss with WEIGHTS under class weights (C,), the mean of p_y^2 over the same weights."""
    rows, aux_rows, labels = logits.tolist(), aux_logits.tolist(), target.tolist()
    item_weights = [weight[label].item() for label in labels]
    log_true = [log_softmax(row)[label] for row, label in zip(rows, labels, strict=True)]
    squares = [math.exp(log_prob) ** 2 for log_prob in log_true]
    mean = math.fsum(w * s for w, s in zip(item_weights, squares, strict=True)) / math.fsum(item_weights)
    values = []
    for i, label in enumerate(labels):
        value = -log_true[i] * (1 + 0.3 * (squares[i] + 1 - mean))
        value += 0.2 * shape(rows[i], aux_rows[i], label) + 0.7 * smoothed(aux_rows[i], label)
        values.append(item_weights[i] * value)
    return math.fsum(values) / math.fsum(item_weights)


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_uskd_is_its_formula(num_classes: int, weighted: bool) -> None:
    logits, target = batch(num_items=12, num_classes=num_classes)
    features, criterion = features_of(12), made(num_classes, **WEIGHTS)
    weight = torch.linspace(0.5, 2, num_classes, dtype=torch.float64) if weighted else torch.ones(num_classes)
    criterion.class_weight = weight if weighted else None
    expected = reference(logits, aux_logits_of(criterion, features), target, weight)
    assert criterion(logits, target, features).item() == pytest.approx(expected, rel=1e-12)


def test_one_label_leaves_nothing_but_zeros() -> None:
    logits, target = batch(num_classes=1)
    assert made(1)(logits, target, features_of(7)).item() == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_of_the_squares_leaves_ignored_items_out(reduction: Reduction) -> None:
    logits, target = batch(num_items=12)
    features, criterion = features_of(12), made(**WEIGHTS)
    criterion.reduction = reduction
    target[[0, 5]] = -100
    kept = target != -100
    assert_exact(criterion(logits, target, features), criterion(logits[kept], target[kept], features[kept]))


def test_the_divisor_does_not_change_the_mean_of_the_squares() -> None:
    logits, target = batch()
    features, criterion = features_of(7), made(**WEIGHTS)
    whole = criterion(logits, target, features)
    assert_exact(criterion(logits, target, features, num_items=14), whole / 2)


def test_a_batch_in_two_calls_has_another_loss_only_in_the_term_of_the_target() -> None:
    logits, target = batch()
    features, criterion = features_of(7), made(**WEIGHTS)
    whole = criterion.terms(logits, target, features)
    first = criterion.terms(logits[:3], target[:3], features[:3], num_items=7)
    second = criterion.terms(logits[3:], target[3:], features[3:], num_items=7)
    for name in ("hard", "soft", "aux"):
        assert_exact(getattr(first, name) + getattr(second, name), getattr(whole, name))
    assert abs((first.match + second.match - whole.match).item()) > 1e-3


def test_gradients_of_uskd_are_those_with_weights_and_strength_held() -> None:
    logits, target = batch()
    features = features_of(7).requires_grad_()
    logits.requires_grad_()
    criterion = made(**WEIGHTS)
    criterion(logits, target, features).backward()
    probs = logits.detach().softmax(dim=1)
    aux_logits = aux_logits_of(criterion, features.detach())
    onehot = F.one_hot(target, 5).double()
    true = probs.gather(1, target[:, None])
    strength = true.square() + 1 - true.square().mean()
    shares = probs * (1 - onehot) / (1 - true)
    rows = zip(logits.tolist(), aux_logits.tolist(), target.tolist(), strict=True)
    w = torch.tensor([rank_label(row, aux_row, label) for row, aux_row, label in rows], dtype=torch.float64)
    expected = (1 + 0.3 * strength) * (probs - onehot) + 0.2 * (shares - w)
    of_aux = 0.7 * (aux_logits.softmax(dim=1) - 0.9 * onehot - 0.1 / 5)
    assert logits.grad is not None
    aux_weight = criterion.get_parameter("aux_head.weight")
    assert aux_weight.grad is not None
    assert features.grad is None  # the auxiliary head's features are detached
    assert_exact(logits.grad, expected / 7)
    assert_exact(aux_weight.grad, of_aux.T @ features.detach() / 7)


def test_ties_of_both_heads_rank_by_index() -> None:
    criterion = made(4)
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.zero_()
    row = [1.0, 1.0, 3.0, 1.0]
    soft = criterion.terms(torch.tensor([row], dtype=torch.float64), torch.tensor([2]), features_of(1)).soft
    assert soft.item() == pytest.approx(math.log(3), rel=1e-12)  # whatever w: the shares are equal
    logits = torch.tensor([row], dtype=torch.float64, requires_grad=True)
    criterion(logits, torch.tensor([2]), features_of(1)).backward()
    true = F.softmax(logits.detach(), dim=1)[0]
    assert logits.grad is not None
    for rank, j in enumerate([0, 1, 3], start=1):
        expected = 1.1 * true[j].item() + 0.1 * (1 / 3 - 1 / rank / (1 + 1 / 2 + 1 / 3))
        assert logits.grad[0, j].item() == pytest.approx(expected, rel=1e-10)


def test_a_distribution_is_the_expectation_over_its_labels_with_one_mean_for_all() -> None:
    logits, _ = batch(num_items=4)
    features, criterion = features_of(4), made(**WEIGHTS)
    target = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(dim=1)
    aux_rows = aux_logits_of(criterion, features).tolist()
    log_probs = [log_softmax(row) for row in logits.tolist()]
    pairs = [(i, label, target[i, label].item()) for i in range(4) for label in range(5)]
    mean = math.fsum(t * math.exp(log_probs[i][label]) ** 2 for i, label, t in pairs) / 4
    values = []
    for i, label, t in pairs:
        strength = math.exp(log_probs[i][label]) ** 2 + 1 - mean
        value = -log_probs[i][label] * (1 + 0.3 * strength)
        value += 0.2 * shape(logits[i].tolist(), aux_rows[i], label) + 0.7 * smoothed(aux_rows[i], label)
        values.append(t * value)
    assert criterion(logits, target, features).item() == pytest.approx(math.fsum(values) / 4, rel=1e-12)


def test_a_masked_label_has_no_rank_and_leaves_uskd_finite() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 4.0, 0.5], [-torch.inf, 2.0, 1.0, 0.0]], dtype=torch.float64)
    logits.requires_grad_()
    target, features, criterion = torch.tensor([0, 1]), features_of(2), made(4, **WEIGHTS)
    loss = criterion(logits, target, features)
    loss.backward()
    expected = reference(logits.detach(), aux_logits_of(criterion, features), target, torch.ones(4))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_terms_of_uskd_make_its_total() -> None:
    logits, target = batch()
    terms = made(**WEIGHTS).terms(logits, target, features_of(7))
    assert_exact(terms.hard, F.cross_entropy(logits, target))
    assert_exact(terms.total, terms.hard + 0.2 * terms.soft + 0.7 * terms.aux + 0.3 * terms.match)
    assert terms.cap.item() == 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_uskd_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0, got -1"):
        made(**{name: -1.0})


def test_uskd_without_features_says_what_it_needs() -> None:
    logits, target = batch()
    with pytest.raises(ValueError, match=r"features, the input of the last layer, must be \(7, 4\), got none"):
        made()(logits, target)
