"""Error, likelihood, calibration and confusions against loops in float64."""

import json
import math

import pytest
import torch
from torch import Tensor

from labelemb.classify.metrics import ClassificationMetrics, calibration_bins, confusions


def some_items(
    num_items: int, num_classes: int, scale: float = 3.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_items)
    logits = scale * torch.randn(num_items, num_classes, generator=generator, dtype=torch.float64)
    target = torch.randint(num_classes, (num_items,), generator=generator)
    return logits.to(dtype), target


def measured(logits: Tensor, target: Tensor, batch_size: int = 1000) -> ClassificationMetrics:
    metrics = ClassificationMetrics(logits.shape[1], "cpu")
    for start in range(0, len(target), batch_size):
        metrics.update(logits[start : start + batch_size], target[start : start + batch_size])
    return metrics


def probabilities(row: list[float]) -> list[float]:
    largest = max(row)
    weights = [math.exp(value - largest) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def loop(logits: Tensor, target: Tensor) -> tuple[dict[str, float], list[tuple[int, float, int]]]:
    """The measures and the bins (count, sum of confidence, correct) from their definitions."""
    wrong, nll = 0, 0.0
    bins = [(0, 0.0, 0)] * 15
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        values = probabilities(row)
        top = max(values)
        correct = values.index(top) == label
        wrong += not correct
        nll -= math.log(values[label])
        (index,) = [k for k in range(15) if k / 15 < top <= (k + 1) / 15]
        count, confidence, right = bins[index]
        bins[index] = (count + 1, confidence + top, right + correct)
    ece = sum(count / len(target) * abs(right / count - total / count) for count, total, right in bins if count)
    return {"error": wrong / len(target), "nll": nll / len(target), "ece": ece}, bins


@pytest.mark.parametrize(("num_items", "num_classes"), [(1, 2), (7, 3), (500, 10), (300, 40), (20, 1)])
def test_measures_equal_the_loop(num_items: int, num_classes: int) -> None:
    logits, target = some_items(num_items, num_classes)
    expected, bins = loop(logits, target)
    metrics = measured(logits, target)
    assert metrics.compute() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    calibration = metrics.evaluation()["calibration"]
    assert isinstance(calibration, list)
    assert len(calibration) == 15
    for found, (count, total, right) in zip(calibration, bins, strict=True):
        assert (found["count"], found["correct"]) == (count, right)
        assert found["confidence"] == (pytest.approx(total / count, rel=1e-10) if count else None)


@pytest.mark.parametrize("batch_size", [1, 13, 128])
def test_batches_change_no_bit_of_the_result(batch_size: int) -> None:
    logits, target = some_items(500, 10, dtype=torch.float32)
    assert measured(logits, target, batch_size).compute() == measured(logits, target).compute()
    assert measured(logits, target, batch_size).evaluation() == measured(logits, target).evaluation()


def test_half_precision_logits_are_reduced_in_float32() -> None:
    logits, target = some_items(400, 10, dtype=torch.bfloat16)
    expected, _ = loop(logits.double(), target)
    assert measured(logits, target).compute() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_probability_of_exactly_one_lies_in_the_last_bin() -> None:
    logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, -1e4, 1e4], [0.0, 200.0, 0.0]])
    metrics = measured(logits, torch.tensor([0, 2, 2]))
    calibration = metrics.evaluation()["calibration"]
    assert isinstance(calibration, list)
    assert calibration[-1] == {"count": 3, "confidence": 1.0, "correct": 2}
    assert metrics.compute() == pytest.approx({"error": 1 / 3, "nll": 200 / 3, "ece": 1 / 3})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_edge_belongs_to_the_bin_it_ends(dtype: torch.dtype) -> None:
    for k in range(1, 16):
        edge = torch.tensor([k / 15], dtype=dtype)
        above, below = torch.nextafter(edge, edge + 1), torch.nextafter(edge, edge - 1)
        counts, sums, correct = calibration_bins(edge, torch.tensor([True]))
        assert counts.tolist() == [int(index == k - 1) for index in range(15)] == correct.tolist()
        assert sums[k - 1].item() == edge.item()
        assert calibration_bins(below, torch.tensor([False]))[0].argmax().item() == k - 1
        if k < 15:
            assert calibration_bins(above, torch.tensor([False]))[0].argmax().item() == k


def test_perfectly_calibrated_predictions_have_no_calibration_error() -> None:
    logits = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log().expand(10, 2)
    target = torch.tensor([0] * 8 + [1] * 2)
    assert measured(logits, target).compute() == pytest.approx(
        {"error": 0.2, "nll": -0.8 * math.log(0.8) - 0.2 * math.log(0.2), "ece": 0.0}, abs=1e-12
    )


def test_too_high_and_too_low_confidence_do_not_cancel() -> None:
    logits = torch.tensor([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10, dtype=torch.float64).log()
    target = torch.tensor([0] * 6 + [1] * 4 + [0] * 9 + [1])  # right 0.6 of the time where 0.9 is said, and the reverse
    assert measured(logits, target).compute()["ece"] == pytest.approx(0.3, abs=1e-12)


def test_certain_and_always_wrong_has_calibration_error_one() -> None:
    logits = torch.tensor([[1e4, 0.0]]).expand(6, 2)
    assert measured(logits, torch.ones(6, dtype=torch.int64)).compute()["ece"] == 1.0


def counted(target: Tensor, predicted: Tensor) -> dict[tuple[int, int], int]:
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(target.tolist(), predicted.tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def test_all_confusions_of_few_labels_are_counted_right_ones_too() -> None:
    logits, target = some_items(800, 200)
    logits[range(400), target[:400]] += 20
    expected = counted(target, logits.argmax(1))
    found = measured(logits, target, 128).evaluation()["confusion"]
    assert found == [[true, predicted, count] for (true, predicted), count in sorted(expected.items())]


def test_of_many_labels_the_largest_wrong_confusions_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(201, (9000,), generator=generator)
    predicted = (target + torch.randint(25, (9000,), generator=generator)) % 201
    expected = {pair: count for pair, count in counted(target, predicted).items() if pair[0] != pair[1]}
    assert len(expected) > 2000
    ordered = sorted(expected.items(), key=lambda entry: (-entry[1], entry[0]))[:2000]
    assert confusions(target, predicted, 201) == [[true, guess, count] for (true, guess), count in ordered]


def test_evaluation_is_plain_json() -> None:
    evaluation = measured(*some_items(50, 5)).evaluation()
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert (evaluation["num_items"], evaluation["num_classes"]) == (50, 5)


def test_gathering_keeps_no_graph() -> None:
    logits, target = some_items(5, 3)
    metrics = measured(logits.requires_grad_(), target)
    assert not any(value.requires_grad for value in metrics._nll + metrics._confidence)


def test_no_items_are_refused() -> None:
    metrics = ClassificationMetrics(3, "cpu")
    metrics.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    for result in (metrics.compute, metrics.evaluation, ClassificationMetrics(3, "cpu").compute):
        with pytest.raises(ValueError, match="no item was evaluated"):
            result()


@pytest.mark.parametrize(
    ("logits_shape", "target_shape", "got"),
    [((4, 3), (4,), r"\(4, 3\) and \(4,\)"), ((4, 5), (3,), r"\(4, 5\) and \(3,\)"), ((4, 5), (4, 5), r"and \(4, 5\)")],
)
def test_shapes_that_do_not_fit_are_refused(
    logits_shape: tuple[int, ...], target_shape: tuple[int, ...], got: str
) -> None:
    with pytest.raises(ValueError, match=rf"expected logits \(N, 5\) and target \(N,\), got .*{got}"):
        ClassificationMetrics(5, "cpu").update(torch.zeros(logits_shape), torch.zeros(target_shape, dtype=torch.int64))
