"""The decoupled loss against its formulas, written with loops in float64; its rows against counting by hand."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch
from torch import Tensor

from labelemb import LabelEmbeddingLoss, LabelTable
from labelemb.losses import decoupled
from labelemb.losses.counted_table import CountedTable
from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss, certainty_values, log_odds
from labelemb.losses.others import log_rests

C = 5


def made(**settings: Any) -> DecoupledLabelEmbeddingLoss:
    """Rows other than the uniform one, in float64."""
    criterion = DecoupledLabelEmbeddingLoss(C, **settings).double()
    rows = torch.randn(C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    counted(criterion).shares.copy_(rows.masked_fill(torch.eye(C, dtype=torch.bool), -torch.inf).softmax(dim=1))
    return criterion


def counted(criterion: DecoupledLabelEmbeddingLoss) -> CountedTable:
    assert isinstance(criterion.table, CountedTable)
    return criterion.table


def reference(row: list[float], label: int, shares: list[float], epsilon: float) -> tuple[float, float, list[float]]:
    """Certainty, shape and p~ of one item, a label at a time."""
    largest = max(row)
    powers = [math.exp(value - largest) for value in row]
    rest = math.fsum(power for j, power in enumerate(powers) if j != label)
    total = rest + powers[label]
    others = [0.0 if j == label else power / rest for j, power in enumerate(powers)]
    certainty = -(1 - epsilon) * math.log(powers[label] / total) - epsilon * math.log(rest / total)
    shape = -math.fsum(shares[j] * math.log(others[j]) for j in range(len(row)) if j != label)
    return certainty, shape, others


def loop(criterion: DecoupledLabelEmbeddingLoss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each item (N,), and the gradient of their sum (N, C): docs/method.md by loops."""
    losses, gradients = [], []
    epsilon, weight = criterion.epsilon, criterion.shape_weight
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        shares = counted(criterion).shares[label].tolist()
        certainty, shape, others = reference(row, label, shares, epsilon)
        p = 1 / (1 + math.fsum(math.exp(value - row[label]) for j, value in enumerate(row) if j != label))
        losses.append(certainty + weight * shape)
        gradients.append(
            [
                p - (1 - epsilon) if j == label else others[j] * ((1 - p) - epsilon) + weight * (others[j] - shares[j])
                for j in range(len(row))
            ]
        )
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)


@pytest.mark.parametrize(("epsilon", "shape_weight"), [(0.1, 1.0), (0.0, 1.0), (0.3, 0.6), (0.1, 0.0)])
def test_loss_and_gradient_are_those_of_the_loops(epsilon: float, shape_weight: float) -> None:
    criterion = made(epsilon=epsilon, shape_weight=shape_weight, reduction="none")
    logits, target = batch()
    losses, gradients = loop(criterion, logits, target)
    found = criterion(logits.requires_grad_(), target)
    assert_exact(found, losses)
    assert_exact(torch.autograd.grad(found.sum(), logits)[0], gradients)


def test_cross_entropy_with_a_soft_target_splits_into_certainty_and_shape() -> None:
    criterion = made(epsilon=0.2, shape_weight=0.2)
    logits, target = batch()
    soft = 0.8 * F.one_hot(target, C).double() + 0.2 * counted(criterion).shares[target]
    assert_exact(criterion(logits, target), F.cross_entropy(logits, soft))


def test_label_smoothing_is_the_special_case_of_uniform_rows() -> None:
    smoothed = 0.1 * (C - 1) / C
    criterion = DecoupledLabelEmbeddingLoss(C, epsilon=smoothed, shape_weight=smoothed).double()
    counted(criterion).shares.copy_((1 - torch.eye(C, dtype=torch.float64)) / (C - 1))  # float64's fourth
    logits, target = batch()
    assert_exact(criterion(logits, target), F.cross_entropy(logits, target, label_smoothing=0.1))


def test_the_shape_term_never_touches_the_label_s_own_logit() -> None:
    logits, target = batch()
    shape = made().terms(logits.requires_grad_(), target).shape
    (gradient,) = torch.autograd.grad(shape, logits)
    assert torch.equal(gradient.gather(1, target[:, None]), torch.zeros(len(target), 1, dtype=torch.float64))
    assert gradient.abs().max() > 0


def test_hard_is_cross_entropy_and_no_part_of_the_loss() -> None:
    logits, target = batch()
    terms = made(epsilon=0.3, shape_weight=0.6).terms(logits, target)
    assert_exact(terms.hard, F.cross_entropy(logits, target))
    assert_exact(terms.total, terms.certainty + 0.6 * terms.shape)
    assert terms.match == 0


@pytest.mark.parametrize("term", ["hard", "certainty", "shape", "total"])
def test_gradcheck_of_each_term_and_of_its_gradient(term: str) -> None:
    criterion, (logits, target) = made(shape_weight=0.7).eval(), batch()
    target[3] = -100
    logits.requires_grad_()
    check = lambda z: getattr(criterion.terms(z, target), term)  # noqa: E731
    assert torch.autograd.gradcheck(check, (logits,))
    assert torch.autograd.gradgradcheck(check, (logits,))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_closed_form_equals_the_functions(weighted: bool, reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [0.5, 2.0, 0.1, 1.0, 3.0] if weighted else None
    criterion = made(class_weight=weights, reduction=reduction).eval()
    logits, target = batch()
    target[1] = -100

    def results() -> list[Tensor]:
        z = logits.clone().requires_grad_()
        terms = criterion.terms(z, target)
        return [*terms, torch.autograd.grad(terms.total.sum(), z)[0]]

    closed = results()
    monkeypatch.setattr(decoupled, "is_traced", lambda: True)
    for one, other in zip(closed, results(), strict=True):
        assert_exact(one, other)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_a_sure_network_keeps_its_digits(scale: float) -> None:
    """log(1 - p) made of p is -inf from a logit of 37 on."""
    logits = torch.zeros(1, 3, dtype=torch.float64)
    logits[0, 0] = scale
    odds, _ = log_odds(logits, torch.tensor([0]))
    assert odds.item() == pytest.approx(scale - math.log(2), rel=1e-14)
    assert certainty_values(odds, 0.1).item() == pytest.approx(
        0.9 * math.log1p(math.exp(-odds.item())) + 0.1 * (odds.item() + math.log1p(math.exp(-odds.item()))), rel=1e-14
    )
    rests = log_rests(logits.log_softmax(dim=1))
    assert rests[0, 0].item() == pytest.approx(-odds.item() - math.log1p(math.exp(-odds.item())), rel=1e-12)
    criterion = DecoupledLabelEmbeddingLoss(3).double()
    loss = criterion(logits.requires_grad_(), torch.tensor([0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(1 / (1 + math.exp(-odds.item())) - 0.9, rel=1e-12)


def test_distributions_are_the_expectation_over_their_labels_and_count_as_such() -> None:
    logits, _ = batch(num_items=9)
    target = torch.rand(9, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = target / target.sum(dim=1, keepdim=True)
    singles, mixed = made(reduction="none"), made()
    singles.end_step()
    expected = sum(target[:, c] * singles(logits, torch.full((9,), c)) for c in range(C))
    singles = made()
    assert isinstance(expected, Tensor)
    assert_exact(mixed(logits, target), expected.mean())
    mixed.end_step()
    # The rows by hand: an item counts for its likeliest label, with that label's weight.
    top = logits.argmax(dim=1)
    for label in range(C):
        hits = [i for i in range(9) if top[i] == label]
        if not hits:
            assert torch.equal(counted(mixed).shares[label], counted(singles).shares[label])
            continue
        weights = [target[i, label].item() for i in hits]
        others = [reference(logits[i].tolist(), label, [0.2] * C, 0.1)[2] for i in hits]
        mean = [math.fsum(w * o[j] for w, o in zip(weights, others, strict=True)) / sum(weights) for j in range(C)]
        assert counted(mixed).counts[label].item() == pytest.approx(sum(weights), rel=1e-12)
        assert counted(mixed).shares[label].tolist() == pytest.approx(mean, rel=1e-10)


def test_rows_follow_the_formula_whatever_the_split() -> None:
    """Three steps of 40 items; the second in four calls, the third in one as distributions of weight 1."""
    criterion = DecoupledLabelEmbeddingLoss(C, momentum=0.9).double()
    criterion.end_step()
    rows = [[0.0 if j == y else 1 / (C - 1) for j in range(C)] for y in range(C)]
    counts = [0] * C
    for step in range(3):
        logits, target = batch(num_items=40, seed=step)
        target[5] = -100
        if step == 1:
            for part in range(4):
                criterion(logits[part * 10 : part * 10 + 10], target[part * 10 : part * 10 + 10], num_items=39)
        elif step == 2:
            criterion(logits, F.one_hot(target.clamp(min=0), C).double() * (target >= 0)[:, None])
        else:
            criterion(logits, target)
        criterion.end_step()
        for y in range(C):
            hits = [z for z in logits[target == y].tolist() if z[y] == max(z)]
            if hits:
                counts[y] += len(hits)
                means = [reference(z, y, rows[y], 0.1)[2] for z in hits]
                a = max(1 - 0.9 ** len(hits), len(hits) / counts[y])
                rows[y] = [r + a * (math.fsum(m[j] for m in means) / len(hits) - r) for j, r in enumerate(rows[y])]
    assert counted(criterion).counts.tolist() == counts
    torch.testing.assert_close(counted(criterion).shares, torch.tensor(rows, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_a_call_ends_the_step_of_the_one_before_until_end_step_is_called() -> None:
    logits, target = batch()
    criterion = DecoupledLabelEmbeddingLoss(C)
    criterion(logits, target)
    assert not counted(criterion).counts.any()
    criterion(logits, target)
    once = counted(criterion).counts.clone()
    assert once.any()
    criterion.end_step()
    assert torch.equal(counted(criterion).counts, 2 * once)
    criterion(logits, target)
    criterion(logits, target)
    assert torch.equal(counted(criterion).counts, 2 * once)


def test_reading_and_saving_settle_what_waits() -> None:
    logits, target = batch()
    criterion = DecoupledLabelEmbeddingLoss(C)
    criterion(logits, target)
    again = DecoupledLabelEmbeddingLoss(C)
    again.load_state_dict(criterion.state_dict())
    assert set(criterion.state_dict()) == {"table.shares", "table.counts"}
    assert counted(again).counts.any()
    assert torch.equal(again.table.soft_labels(), criterion.table.soft_labels())


def test_nothing_is_counted_in_evaluation_without_gradients_or_of_wrong_items() -> None:
    criterion = DecoupledLabelEmbeddingLoss(2)
    logits = torch.tensor([[2.0, 0.0]])
    criterion.eval()(logits, torch.tensor([0]))
    with torch.no_grad():
        criterion.train()(logits, torch.tensor([0]))
    criterion(logits, torch.tensor([1]))
    criterion(logits, torch.tensor([-100]))
    criterion.end_step()
    assert not counted(criterion).counts.any()
    criterion(torch.tensor([[1.0, 1.0]]), torch.tensor([1]))  # a tie is a hit
    criterion.end_step()
    assert counted(criterion).counts.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_and_counts_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    criterion = DecoupledLabelEmbeddingLoss(3, momentum=0.0).to(dtype)
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=dtype).expand(3000, 3)
    criterion(logits, torch.zeros(3000, dtype=torch.long))
    criterion.end_step()
    assert counted(criterion).counts.tolist() == [3000.0, 0.0, 0.0]
    expected = torch.tensor([1.0, 0.0]).softmax(dim=0)
    torch.testing.assert_close(counted(criterion).shares[0, 1:], expected, rtol=1e-3, atol=1e-4)  # 3,000 float32 sums


def test_one_label_has_no_loss() -> None:
    logits = torch.randn(4, 1, requires_grad=True)
    loss = DecoupledLabelEmbeddingLoss(1)(logits, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_masked_class_that_the_row_has_nothing_on_counts_for_nothing() -> None:
    criterion = made()
    counted(criterion).shares[:, 4] = 0
    logits, target = batch()
    target = target.clamp(max=3)
    masked = logits.masked_fill(torch.arange(C) == 4, -torch.inf).requires_grad_()
    loss = criterion(masked, target)
    loss.backward()
    assert loss.isfinite()
    assert masked.grad is not None
    assert masked.grad.isfinite().all()


def test_it_compiles_into_one_graph_and_counts_there() -> None:
    logits, target = batch()
    eager, compiled = made(), made()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        assert_exact(run(logits.requires_grad_(), target), eager(logits, target))
    assert_exact(compiled.table.soft_labels(), eager.table.soft_labels())


def test_vmap_gives_the_loss_of_each() -> None:
    logits, target = batch()
    stacked = torch.stack([logits, 2 * logits])
    criterion = made()
    found = torch.vmap(lambda z: criterion(z, target))(stacked)
    assert_exact(found, torch.stack([made()(z, target) for z in stacked]))


def test_tables_go_from_one_form_to_the_other() -> None:
    criterion = made()
    learned = criterion.table.as_label_table()
    torch.testing.assert_close(learned.soft_labels().diagonal(), torch.full((C,), 0.5))
    start = LabelEmbeddingLoss(4, C, table=criterion.table)
    torch.testing.assert_close(start.table.soft_labels(), learned.soft_labels())
    back = DecoupledLabelEmbeddingLoss(C, table=learned, freeze_table=True)
    torch.testing.assert_close(counted(back).shares, counted(criterion).shares.float(), rtol=1e-5, atol=1e-6)
    logits, target = batch()
    back(logits.float(), target)
    back.end_step()
    torch.testing.assert_close(counted(back).shares, counted(criterion).shares.float(), rtol=1e-5, atol=1e-6)


def test_a_table_is_saved_and_read(tmp_path: Any) -> None:
    table = made().table
    table.label_names = list("abcde")
    table.save(tmp_path / "rows.safetensors")
    again = CountedTable.load(tmp_path / "rows.safetensors", list("abcde"))
    assert torch.equal(again.soft_labels(), table.soft_labels())
    assert again.nearest(["a"], 2) == table.nearest(["a"], 2)
    with pytest.raises(ValueError, match="other labels"):
        CountedTable.load(tmp_path / "rows.safetensors", list("abcdf"))
    LabelTable(3).save(tmp_path / "learned.safetensors")
    with pytest.raises(ValueError, match="no counted rows"):
        CountedTable.load(tmp_path / "learned.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 1.0}, "epsilon must lie in 0 to 1"),
        ({"epsilon": -0.1}, "epsilon must lie in 0 to 1"),
        ({"shape_weight": -1.0}, "shape_weight must be finite and at least 0"),
        ({"momentum": 1.0}, "momentum must lie in 0 to 1"),
        ({"freeze_table": True}, "needs learned rows"),
        ({"table": LabelTable(3)}, "the table has 3 labels"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoupledLabelEmbeddingLoss(C, **settings)


def test_copies_are_their_own() -> None:
    logits, target = batch()
    criterion = made()
    criterion(logits, target)
    other = copy.deepcopy(criterion)
    other.end_step()
    assert counted(other).counts.any()
    assert not counted(criterion).counts.any()


def test_more_labels_than_rows_can_be_counted_for_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"20,001 x 20,001 labels take 1\.6 GB; above 20,000 .* neighbors=32, or .* rank=256"
    ):
        DecoupledLabelEmbeddingLoss(20_001)
