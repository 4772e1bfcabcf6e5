"""The temperature against a grid in float64, at its limits, and in a run from training to predictions."""

import csv
import math
from pathlib import Path

import pytest
import torch
from tests.small_runs import small_job, small_run, what_was_learned
from torch import Tensor

from labelemb.classify.calibration import LARGEST_TEMPERATURE, LEAST_TEMPERATURE, fit_temperature
from labelemb.classify.data import Items
from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.metrics import ClassificationMetrics
from labelemb.classify.predict import Shown, predict_classes
from labelemb.errors import InputError
from labelemb.experiments.job import execute
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.settings.recipe import parse_settings

HELD_OUT = ("data.validation=60", "epochs=2")


def some_items(num_items: int, num_classes: int, scale: float) -> tuple[Tensor, Tensor]:
    """Labels drawn from softmax(z), and the logits scale * z: the temperature that fits is near `scale`."""
    generator = torch.Generator().manual_seed(num_items)
    logits = 2 * torch.randn(num_items, num_classes, generator=generator, dtype=torch.float64)
    return scale * logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


def mean_nll(logits: Tensor, target: Tensor, temperature: float) -> float:
    """From its definition, in Python's floats."""
    total = 0.0
    for row, label in zip((logits.double() / temperature).tolist(), target.tolist(), strict=True):
        largest = max(row)
        total += largest + math.log(math.fsum(math.exp(value - largest) for value in row)) - row[label]
    return total / len(target)


def grid_minimum(logits: Tensor, target: Tensor) -> float:
    """The best of 41 temperatures, then of 41 between its neighbours, and so on."""
    low, high = math.log(LEAST_TEMPERATURE), math.log(LARGEST_TEMPERATURE)
    for _ in range(6):
        grid = [low + (high - low) * step / 40 for step in range(41)]
        values = [mean_nll(logits, target, math.exp(point)) for point in grid]
        best = values.index(min(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 40)]
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
@pytest.mark.parametrize(("num_items", "num_classes"), [(40, 2), (80, 5)])
def test_the_fit_is_the_minimum_of_a_grid(num_items: int, num_classes: int, scale: float) -> None:
    logits, target = some_items(num_items, num_classes, scale)
    fit = fit_temperature(logits, target)
    assert fit is not None
    assert fit.temperature == pytest.approx(grid_minimum(logits, target), rel=1e-6)
    assert fit.nll_before == pytest.approx(mean_nll(logits, target, 1.0), rel=1e-12)
    assert fit.nll_after == pytest.approx(mean_nll(logits, target, fit.temperature), rel=1e-12)
    assert fit.num_items == num_items


def test_the_fit_is_never_worse_than_no_temperature() -> None:
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        logits = 10 ** (seed % 5 - 2) * torch.randn(6, 3, generator=generator)
        target = torch.randint(3, (6,), generator=generator)
        fit = fit_temperature(logits, target)
        assert fit is not None
        assert LEAST_TEMPERATURE <= fit.temperature <= LARGEST_TEMPERATURE
        assert fit.nll_after <= fit.nll_before


@pytest.mark.parametrize(
    ("rows", "target", "temperature"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1], LEAST_TEMPERATURE),  # all right: the surer the better
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0], LARGEST_TEMPERATURE),  # all wrong
        ([[1e4, 0.0], [0.0, 1e4]], [0, 1], 1.0),  # nothing is left to gain
        ([[3.0, 3.0], [1.0, 1.0]], [0, 1], 1.0),  # the same at every temperature
        ([[9.0, 0.0, -math.inf], [0.0, 1.0, -math.inf]], [1, 0], LARGEST_TEMPERATURE),  # a class that is masked
    ],
)
def test_the_fit_stays_in_its_range(rows: list[list[float]], target: list[int], temperature: float) -> None:
    fit = fit_temperature(torch.tensor(rows), torch.tensor(target))
    assert fit is not None
    assert fit.temperature == pytest.approx(temperature, rel=1e-12)
    assert LEAST_TEMPERATURE <= fit.temperature <= LARGEST_TEMPERATURE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_without_a_finite_loss_have_no_temperature(value: float) -> None:
    assert fit_temperature(torch.tensor([[value, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])) is None
    assert fit_temperature(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)) is None


def test_measures_at_a_temperature_are_those_of_the_scaled_logits() -> None:
    logits, target = some_items(200, 5, 3.0)
    scaled, plain = ClassificationMetrics(5, "cpu", temperature=2.5), ClassificationMetrics(5, "cpu")
    scaled.update(logits, target)
    plain.update(logits / 2.5, target)
    assert scaled.evaluation() == plain.evaluation()
    assert scaled.compute()["nll"] == pytest.approx(mean_nll(logits, target, 2.5), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_temperature_changes_a_predicted_label_nor_do_ties(dtype: torch.dtype) -> None:
    logits, target = some_items(300, 8, 1.0)
    logits[:100] = logits[:100].round()  # ties
    logits[100:110] = torch.linspace(1, 1 + 2e-7, 8).double()  # distinct in float32 before a quotient rounds them
    logits = logits.to(dtype)
    errors = []
    for temperature in (0.05, 0.7, 1.0, 3.0, 20.0):
        metrics = ClassificationMetrics(8, "cpu", temperature)
        metrics.update(logits, target)
        assert torch.equal(torch.cat(metrics._predicted), logits.argmax(dim=1))
        errors.append(metrics.compute()["error"])
    assert len(set(errors)) == 1


def test_a_run_with_held_out_images_keeps_its_temperature_and_what_it_gives(tmp_path: Path) -> None:
    folder = small_run(tmp_path, *HELD_OUT)
    found, last = folder.calibration, folder.metrics[-1]
    assert found["num_items"] == 60
    assert found["temperature"] == folder.temperature
    assert found["nll_after"] < found["nll_before"]
    assert found["nll_before"] == pytest.approx(last["valid_nll"], rel=1e-6)
    evaluation = folder.evaluation
    assert (evaluation["nll"], evaluation["ece"]) == (last["test_nll"], last["test_ece"])
    scaled = evaluation["scaled"]
    assert scaled["temperature"] == folder.temperature
    assert scaled["nll"] < evaluation["nll"]
    assert sum(each["count"] for each in scaled["calibration"]) == evaluation["num_items"]
    right = [sum(each["correct"] for each in part["calibration"]) for part in (evaluation, scaled)]
    assert right[0] == right[1]


def test_a_run_without_held_out_images_has_no_temperature(tmp_path: Path) -> None:
    folder = small_run(tmp_path, "epochs=1")
    assert not (folder.path / "calibration.json").exists()
    assert folder.temperature is None
    assert "scaled" not in folder.evaluation


def test_a_run_that_is_stopped_while_it_finishes_ends_the_same(tmp_path: Path) -> None:
    whole = small_run(tmp_path / "whole", *HELD_OUT)
    job = small_job(tmp_path / "stopped", *HELD_OUT)
    execute(job)
    for name in ("calibration.json", "evaluation.json"):
        (job.folder.path / name).unlink()
    job.folder.write_environment({key: value for key, value in job.folder.environment.items() if key != "end"})
    execute(job)
    assert job.folder.calibration == whole.calibration
    assert what_was_learned(job.folder) == what_was_learned(whole)


def predicted(folder: RunFolder, output: Path, calibrated: bool | None) -> tuple[str, list[str], Tensor]:
    """The message, the labels and the probabilities (N, C)."""
    settings = parse_settings(folder.config, "config.yaml")
    assert isinstance(settings, ClassifySettings)
    data = load_image_inputs(settings)
    items = Items(data.test, data.label_names, data.shape, "test images")
    message = predict_classes(folder, settings, items, output, torch.device("cpu"), Shown(calibrated))
    _, *rows = csv.reader(output.read_text(encoding="utf-8").splitlines())
    return message, [row[0] for row in rows], torch.tensor([[float(value) for value in row[1:]] for row in rows])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_calibrated_predictions_are_the_default_and_change_no_label(tmp_path: Path, precision: str) -> None:
    folder = small_run(tmp_path, *HELD_OUT, f"precision={precision}")
    folder.write_calibration(folder.calibration | {"temperature": 1.5})  # of few items it lies at the edge
    default, asked, raw = (predicted(folder, tmp_path / "out.csv", calibrated) for calibrated in (None, True, False))
    assert (default[0], default[1]) == (asked[0], asked[1])
    assert torch.equal(default[2], asked[2])
    assert default[1] == raw[1]
    assert default[0] == f"{raw[0]}; probabilities at temperature {folder.temperature:.4g}"
    expected = (raw[2].double().log() / folder.calibration["temperature"]).softmax(dim=1).float()
    torch.testing.assert_close(default[2], expected, rtol=0, atol=1e-3)
    assert not torch.allclose(default[2], raw[2], atol=1e-2)


def test_a_run_without_a_temperature_predicts_raw_and_refuses_calibrated(tmp_path: Path) -> None:
    folder = small_run(tmp_path, "epochs=1")
    default, raw = (predicted(folder, tmp_path / "out.csv", calibrated) for calibrated in (None, False))
    assert default[0] == raw[0]
    assert torch.equal(default[2], raw[2])
    with pytest.raises(InputError, match=r"no calibration.json: .*data\.validation"):
        predicted(folder, tmp_path / "out.csv", True)


@pytest.mark.parametrize(
    "content", ["{}", '{"temperature": 0}', '{"temperature": "warm"}', '{"temperature": true}', "{"]
)
def test_a_damaged_calibration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"calibration\.json is damaged"):
        _ = RunFolder(tmp_path).temperature
