"""Label Smoothing++ against its formula, an item and a label at a time; gradients where they stop."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax
from torch import Tensor, nn

from labelemb.losses.label_smoothing_plus_plus import LabelSmoothingPlusPlusLoss


class MatchAlone(nn.Module):
    """The term that trains the rows; the total is the gradient of nothing, as the other term stops before them."""

    def __init__(self, criterion: LabelSmoothingPlusPlusLoss) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.criterion.terms(logits, target).match


def learned(num_classes: int = 5, epsilon: float = 0.1) -> LabelSmoothingPlusPlusLoss:
    """A criterion in float64 whose rows have learned something."""
    criterion = LabelSmoothingPlusPlusLoss(num_classes, epsilon=epsilon).double()
    with torch.no_grad():
        criterion.rows.normal_(generator=torch.Generator().manual_seed(1))
    return criterion


def soft_label(rows: list[list[float]], label: int, epsilon: float) -> list[float]:
    """q: 1 - epsilon on the label, the rest shared by the softmax of its row over the others."""
    if len(rows) == 1:
        return [1.0]
    others = [j for j in range(len(rows)) if j != label]
    total = math.fsum(math.exp(rows[label][j]) for j in others)
    return [1 - epsilon if j == label else epsilon * math.exp(rows[label][j]) / total for j in range(len(rows))]


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize("epsilon", [0.1, 0.6])
def test_label_smoothing_plus_plus_is_its_formula(num_classes: int, epsilon: float) -> None:
    logits, target = batch(num_classes=num_classes)
    criterion = learned(num_classes, epsilon)
    values = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        log_p = log_softmax(row)
        q = soft_label(criterion.rows.tolist(), label, epsilon)
        values += [-q[j] * log_p[j] - math.exp(log_p[j]) * math.log(q[j]) for j in range(num_classes)]
    expected = math.fsum(values) / len(target)
    assert criterion(logits, target).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_each_side_learns_from_its_own_term_alone() -> None:
    logits, target = batch(num_items=12)
    logits.requires_grad_()
    criterion = learned()
    criterion(logits, target).backward()
    probs = logits.detach().softmax(dim=1)
    of_rows = torch.zeros(5, 5, dtype=torch.float64)
    rows = criterion.rows.tolist()
    q = torch.tensor([soft_label(rows, label, 0.1) for label in range(5)], dtype=torch.float64)
    for i, label in enumerate(target.tolist()):
        for j in range(5):
            if j != label:  # the diagonal takes no part
                of_rows[label, j] += (1 - probs[i, label]) * q[label, j] / 0.1 - probs[i, j]
    assert logits.grad is not None
    assert criterion.rows.grad is not None
    assert_exact(logits.grad, (probs - q[target]) / 12)
    assert_exact(criterion.rows.grad, of_rows / 12)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_the_term_of_the_rows_has_the_gradient_of_finite_differences(num_classes: int) -> None:
    logits, target = batch(num_classes=num_classes)
    criterion = learned(num_classes)

    def match(rows: Tensor) -> Tensor:
        found = torch.func.functional_call(MatchAlone(criterion), {"criterion.rows": rows}, (logits, target))
        assert isinstance(found, Tensor)
        return found

    torch.autograd.gradcheck(match, criterion.rows.detach().clone().requires_grad_())


def test_it_starts_as_smoothing_over_the_others() -> None:
    logits, target = batch()
    terms = LabelSmoothingPlusPlusLoss(5).double().terms(logits, target)
    log_probs = logits.log_softmax(dim=1)
    of_others = log_probs.sum(dim=1) - log_probs.gather(1, target[:, None]).squeeze(1)
    assert_exact(terms.soft, -of_others.mean() / 4)


def test_terms_of_label_smoothing_plus_plus_make_its_total() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    criterion = learned()
    criterion.class_weight = weight
    terms = criterion.terms(logits, target)
    assert_exact(terms.hard, F.cross_entropy(logits, target, weight))
    assert_exact(terms.total, 0.9 * terms.hard + 0.1 * terms.soft + terms.match)
    assert terms.aux.item() == terms.cap.item() == 0


def test_a_masked_label_makes_the_soft_term_infinite_and_no_other() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 4.0]], dtype=torch.float64)
    terms = learned(3).terms(logits, torch.tensor([0]))
    assert terms.soft.item() == math.inf
    assert terms.hard.isfinite()
    assert terms.match.isfinite()


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_a_share_that_leaves_a_side_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
        LabelSmoothingPlusPlusLoss(5, epsilon=epsilon)


def test_label_smoothing_plus_plus_is_refused_for_many_labels() -> None:
    with pytest.raises(ValueError, match=r"20,?000"):
        LabelSmoothingPlusPlusLoss(20_001)
