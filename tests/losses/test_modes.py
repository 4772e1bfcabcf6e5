"""The other soft-label modes, each against its formula."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labelemb import LabelEmbeddingLoss, LabelTable
from labelemb.losses.modes import (
    MODES,
    Criterion,
    FixedSoftLabelLoss,
    OnlineLabelSmoothing,
    baseline,
    make_criterion,
    smoothing,
    teacher_free,
)
from labelemb.settings import config


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def batch(num_items: int = 7, num_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_items, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (num_items,), generator=generator)


def log_softmax(row: list[float]) -> list[float]:
    largest = max(row)
    log_sum = largest + math.log(math.fsum(math.exp(value - largest) for value in row))
    return [value - log_sum for value in row]


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


def online() -> OnlineLabelSmoothing:
    """Five labels whose rows are distributions other than the uniform one, in float64."""
    criterion = OnlineLabelSmoothing(5).double()
    generator = torch.Generator().manual_seed(1)
    criterion.rows.copy_(torch.randn(5, 5, generator=generator, dtype=torch.float64).softmax(dim=1))
    return criterion


def embedding(mode: str) -> Criterion:
    table = LabelTable(5)
    with torch.no_grad():
        table.weight.copy_(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)))
    return make_criterion(mode, 4, 5, table=None if mode == "emb" else table).double()


ALL: dict[str, Callable[[], Criterion]] = {
    "baseline": lambda: baseline(5).double(),
    "smoothing": lambda: smoothing(5).double(),
    "tfkd": lambda: teacher_free(5).double(),
    "online-smoothing": online,
    "emb": lambda: embedding("emb"),
    "emb-start": lambda: embedding("emb-start"),
    "emb-frozen": lambda: embedding("emb-frozen"),
}


def test_the_modes_of_the_settings_are_the_modes_of_the_library() -> None:
    assert sorted(MODES) == sorted(config.MODES) == sorted(ALL)


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


@pytest.mark.parametrize("make", [baseline, smoothing, teacher_free, OnlineLabelSmoothing])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_are_those_of_finite_differences(make: Callable[[int], Any], reduction: str) -> None:
    logits, target = batch()
    criterion = make(5).double()
    criterion.reduction = reduction
    target[3] = -100
    torch.autograd.gradcheck(lambda z: criterion(z, target), logits.requires_grad_(), atol=1e-7)


def test_the_gradient_of_smoothing_is_its_closed_form() -> None:
    logits, target = batch()
    logits.requires_grad_()
    smoothing(5)(logits, target).backward()
    expected = logits.detach().softmax(dim=1) - 0.9 * F.one_hot(target, 5).double() - 0.1 / 5
    assert logits.grad is not None
    assert_exact(logits.grad, expected / len(target))


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_distribution_of_weight_one_equals_its_index(mode: str, weighted: bool) -> None:
    logits, target = batch()
    features = torch.randn(7, 4, dtype=torch.float64)
    criterion = ALL[mode]().eval()
    if weighted:
        criterion.class_weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    by_index = criterion.terms(logits, target, features)
    by_distribution = criterion.terms(logits, F.one_hot(target, 5).double(), features)
    for one, other in zip(by_index, by_distribution, strict=True):
        assert_exact(one, other)


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "tfkd", "online-smoothing"])
def test_a_distribution_is_the_expectation_over_its_labels(mode: str) -> None:
    logits, _ = batch()
    criterion = ALL[mode]().eval()
    target = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(dim=1)
    expected = math.fsum(
        target[i, label].item() * criterion(logits[i : i + 1], torch.tensor([label])).item()
        for i in range(7)
        for label in range(5)
    )
    assert criterion(logits, target).item() == pytest.approx(expected / 7, rel=1e-12)


@pytest.mark.parametrize("mode", ALL)
def test_ignored_items_have_no_part_in_any_mode(mode: str) -> None:
    logits, target = batch()
    features = torch.randn(7, 4, dtype=torch.float64)
    marked = target.clone()
    marked[[1, 4]] = -100
    kept = marked != -100
    of_all = ALL[mode]()
    of_kept = ALL[mode]()
    of_kept.load_state_dict(of_all.state_dict())
    assert_exact(of_all(logits, marked, features), of_kept(logits[kept], target[kept], features[kept]))
    if isinstance(of_all, OnlineLabelSmoothing) and isinstance(of_kept, OnlineLabelSmoothing):
        assert_exact(of_all.sums, of_kept.sums)
        assert_exact(of_all.counts, of_kept.counts)


def test_class_weights_are_those_of_cross_entropy() -> None:
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    criterion = FixedSoftLabelLoss(5, hard_weight=1.0, soft_weight=0.0, true_prob=1.0, class_weight=weight)
    assert_exact(criterion(logits, target), F.cross_entropy(logits, target, weight))


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "tfkd", "online-smoothing"])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_give_finite_losses_and_gradients(mode: str, scale: float) -> None:
    logits = (scale * torch.eye(5))[:4].requires_grad_()
    criterion = MODES[mode](4, 5, None, {})
    loss = criterion(logits, torch.tensor([0, 2, 2, 4]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "tfkd", "online-smoothing"])
def test_no_items_at_all_are_zero(mode: str) -> None:
    logits, target = batch()
    assert ALL[mode]()(logits, torch.full_like(target, -100)).item() == 0
    assert ALL[mode]()(logits[:0], target[:0]).item() == 0


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


def test_the_first_epoch_of_online_smoothing_has_uniform_rows() -> None:
    logits, target = batch(num_classes=4)  # float32 has a quarter exactly
    loss = OnlineLabelSmoothing(4).double()(logits, target)
    expected = 0.5 * F.cross_entropy(logits, target) - 0.5 * logits.log_softmax(dim=1).mean()
    assert_exact(loss, expected)


def test_the_rows_of_online_smoothing_are_the_mean_predictions_of_the_hits() -> None:
    criterion = online()
    before = criterion.rows.clone()
    hits: dict[int, list[list[float]]] = {}
    for seed in (0, 1):
        logits, target = batch(num_items=12, seed=seed)
        target[target == 4] = 0  # label 4 never occurs
        criterion(logits, target)
        for row, label in zip(logits.tolist(), target.tolist(), strict=True):
            if row[label] == max(row):
                hits.setdefault(label, []).append([math.exp(value) for value in log_softmax(row)])
    torch.testing.assert_close(criterion.rows, before)  # nothing moves within an epoch
    criterion.end_epoch()
    assert 1 < len(hits) < 5
    for label in range(5):
        if label not in hits:
            assert torch.equal(criterion.rows[label], before[label])  # a label without a hit keeps its row
            continue
        mean = [math.fsum(row[j] for row in hits[label]) / len(hits[label]) for j in range(5)]
        assert criterion.rows[label].tolist() == pytest.approx(mean, rel=1e-12)


def test_an_epoch_of_online_smoothing_forgets_the_sums_of_the_one_before() -> None:
    criterion = online()
    criterion(10 * torch.eye(5, dtype=torch.float64), torch.arange(5))
    criterion.end_epoch()
    criterion(torch.eye(5, dtype=torch.float64), torch.arange(5))
    criterion.end_epoch()
    assert_exact(criterion.rows, torch.eye(5, dtype=torch.float64).softmax(dim=1))


def test_online_smoothing_gathers_nothing_in_evaluation() -> None:
    logits, target = batch()
    criterion = online()
    with torch.no_grad():
        criterion(logits, target)
    criterion.eval()(logits, target)
    assert criterion.counts.sum() == 0
    criterion.train()(logits, target)
    assert criterion.counts.sum() > 0


def test_distributions_are_gathered_by_their_weight_on_the_hit() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    criterion = OnlineLabelSmoothing(2).double()
    criterion(logits, torch.tensor([[0.25, 0.75], [0.25, 0.75]], dtype=torch.float64))
    assert criterion.counts.tolist() == [0.25, 0.75]
    criterion.end_epoch()
    assert_exact(criterion.rows, logits.softmax(dim=1))


def test_the_state_of_online_smoothing_is_saved_whole() -> None:
    logits, target = batch()
    criterion = online()
    criterion(logits, target)
    assert set(criterion.state_dict()) == {"rows", "sums", "counts"}
    again = OnlineLabelSmoothing(5).double()
    again.load_state_dict(criterion.state_dict())
    for one in (criterion, again):
        one.end_epoch()
    assert torch.equal(criterion.rows, again.rows)


def test_online_smoothing_is_refused_for_many_labels() -> None:
    with pytest.raises(ValueError, match=r"20,?000"):
        OnlineLabelSmoothing(20_001)


@pytest.mark.parametrize("mode", ["emb-start", "emb-frozen"])
def test_a_mode_that_needs_a_table_says_so(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} needs"):
        make_criterion(mode, 4, 5)


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "online-smoothing", "tfkd", "emb"])
def test_a_mode_that_takes_no_table_says_so(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} takes no"):
        make_criterion(mode, 4, 5, table=LabelTable(5))


def test_settings_reach_the_label_embedding_loss() -> None:
    criterion = make_criterion("emb", 4, 5, rank=2, hard_weight=0.3, soft_weight=0.6, temperature=3, cap=0.8)
    assert isinstance(criterion, LabelEmbeddingLoss)
    assert (criterion.hard_weight, criterion.soft_weight, criterion.temperature) == (0.3, 0.6, 3)
    assert (criterion.cap, criterion.table.rank) == (0.8, 2)


def test_a_frozen_table_leaves_nothing_to_train() -> None:
    assert not list(embedding("emb-frozen").parameters())
    assert list(embedding("emb-start").parameters())


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_probability_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="true_prob"):
        FixedSoftLabelLoss(5, true_prob=value)


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "tfkd", "online-smoothing"])
def test_targets_that_do_not_fit_are_refused(mode: str) -> None:
    logits, target = batch()
    criterion = ALL[mode]()
    with pytest.raises(ValueError, match="0 to 4"):
        criterion(logits, target + 5)
    with pytest.raises(ValueError, match="logits"):
        criterion(logits[:, :4], target)
    with pytest.raises(ValueError, match="class probabilities"):
        criterion(logits, torch.ones(7, 4))
    criterion.reduction = "sum"
    with pytest.raises(ValueError, match="num_items"):
        criterion(logits, target, num_items=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_online_smoothing_counts_exactly_in_half_precision(dtype: torch.dtype) -> None:
    criterion = OnlineLabelSmoothing(2).to(dtype)
    logits = torch.tensor([[2.0, 0.0]], dtype=dtype).expand(300, 2).clone().requires_grad_()
    target = torch.zeros(300, dtype=torch.long)
    for _ in range(10):  # 3,000 items, past where either type stops counting
        criterion(logits, target)
    assert criterion.counts.tolist() == [3000.0, 0.0]
    criterion.end_epoch()
    torch.testing.assert_close(criterion.rows[0], torch.tensor([2.0, 0.0]).softmax(dim=0), rtol=1e-5, atol=1e-5)


def test_online_smoothing_keeps_its_rows_to_the_bit_on_the_way_to_half_precision_and_widens_with_the_model() -> None:
    criterion = OnlineLabelSmoothing(3)
    rows = criterion.rows.clone()
    assert torch.equal(criterion.half().rows, rows)
    assert criterion.double().rows.dtype == torch.float64


@pytest.mark.parametrize("make", [baseline, lambda c: smoothing(c, 0.0)])
def test_a_masked_class_leaves_modes_without_a_soft_term_finite(make: Callable[[int], Any]) -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.float64)
    found = make(3)(logits, torch.tensor([0]))
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.tensor([0])), rtol=1e-12, atol=1e-12)


def test_printing_a_mode_shows_its_settings() -> None:
    assert "soft_weight=0.1" in repr(smoothing(3))
