"""Online label smoothing: rows counted by loops, whatever the type, saved whole."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch, log_softmax

from labelemb.losses.online_smoothing import OnlineLabelSmoothing


def online() -> OnlineLabelSmoothing:
    """Five labels whose rows are distributions other than the uniform one, in float64."""
    criterion = OnlineLabelSmoothing(5).double()
    generator = torch.Generator().manual_seed(1)
    criterion.rows.copy_(torch.randn(5, 5, generator=generator, dtype=torch.float64).softmax(dim=1))
    return criterion


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
