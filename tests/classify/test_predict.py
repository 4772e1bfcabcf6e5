import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from labelemb.classify.data import Items
from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.predict import Shown, predict_classes
from labelemb.classify.task import ClassifyTask
from labelemb.errors import InputError
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.settings.recipe import load_recipe
from labelemb.training.engine import train

CPU = torch.device("cpu")


def trained(folder: RunFolder, *overrides: str) -> ClassifySettings:
    settings = load_recipe("digits", ["epochs=2", "model.hidden=[16]", *overrides])
    assert isinstance(settings, ClassifySettings)
    folder.path.mkdir(parents=True)
    task = ClassifyTask(settings, load_image_inputs(settings), CPU, folder)
    train(task, settings, folder, lambda *_: None, lambda line: None)
    return settings


def items_of(settings: ClassifySettings) -> Items:
    data = load_image_inputs(settings)
    return Items(data.test, data.label_names, data.shape, "test images")


def test_file_holds_the_probabilities_whose_error_the_run_measured(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = trained(folder)
    message = predict_classes(folder, settings, items_of(settings), tmp_path / "predicted.csv", CPU)
    assert message == f"error {100 * folder.metrics[-1]['test_error']:.2f} % of 719 test images"
    rows = list(csv.DictReader((tmp_path / "predicted.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 719
    for row in rows:
        name = row.pop("predicted")
        assert sum(map(float, row.values())) == pytest.approx(1, abs=1e-4)
        assert float(row[name]) == max(map(float, row.values()))


def test_a_run_in_bfloat16_predicts_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = trained(folder, "precision=bfloat16", "data.limit=20")
    computed: list[torch.dtype] = []
    linear = torch.nn.functional.linear

    def watched(*arguments: Any) -> torch.Tensor:
        result = linear(*arguments)
        computed.append(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    message = predict_classes(folder, settings, items_of(settings), tmp_path / "predicted.csv", CPU)
    assert message == f"error {100 * folder.metrics[-1]['test_error']:.2f} % of 719 test images"
    assert set(computed) == {torch.bfloat16}


def test_run_without_checkpoint_or_of_other_shape_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = trained(folder)
    with pytest.raises(InputError, match="no checkpoint yet"):
        predict_classes(RunFolder(tmp_path / "none"), settings, items_of(settings), None, CPU)
    wider = load_recipe("digits", ["model.hidden=[17]"])
    assert isinstance(wider, ClassifySettings)
    with pytest.raises(InputError, match="trained with other labels or sizes"):
        predict_classes(folder, wider, items_of(wider), None, CPU)


def test_the_best_k_come_in_order_with_their_probabilities(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = trained(folder)
    items = items_of(settings)
    every, best = tmp_path / "every.csv", tmp_path / "best.csv"
    predict_classes(folder, settings, items, every, CPU)
    predict_classes(folder, settings, items, best, CPU, Shown(top_k=3))
    rows = [list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) for path in (every, best)]
    for whole, few in zip(*rows, strict=True):
        assert list(few) == [f"{name}{rank}" for rank in ("", "_2", "_3") for name in ("predicted", "probability")]
        assert few["predicted"] == whole.pop("predicted")
        largest = sorted(whole, key=lambda name: -float(whole[name]))[:3]
        assert [float(few[f"probability{rank}"]) for rank in ("", "_2", "_3")] == [
            float(whole[name]) for name in largest
        ]
    with pytest.raises(InputError, match="--top-k 11: expected 1 to 10"):
        predict_classes(folder, settings, items, best, CPU, Shown(top_k=11))


def test_a_temperature_at_the_edge_of_the_search_is_used_only_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = trained(folder)
    folder.write_calibration({"temperature": 0.05, "num_items": 14, "nll_before": 0.1, "nll_after": 0.0})
    said = [
        predict_classes(folder, settings, items_of(settings), tmp_path / "a.csv", CPU, Shown(calibrated))
        for calibrated in (None, True, False)
    ]
    assert said[0] == f"{said[2]}; probabilities as trained: 14 held-out items tell no temperature"
    assert said[1] == f"{said[2]}; probabilities at temperature 0.05"
