import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.predict import predict_images
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


def test_file_holds_the_probabilities_whose_error_the_run_measured(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = trained(folder)
    message = predict_images(folder, settings, tmp_path / "predicted.csv", None, CPU)
    assert message == f"test error {100 * folder.metrics[-1]['test_error']:.2f} % of 719 images"
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
    message = predict_images(folder, settings, tmp_path / "predicted.csv", None, CPU)
    assert message == f"test error {100 * folder.metrics[-1]['test_error']:.2f} % of 719 images"
    assert set(computed) == {torch.bfloat16}


def test_run_without_checkpoint_or_of_other_shape_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = trained(folder)
    with pytest.raises(InputError, match="no checkpoint yet"):
        predict_images(RunFolder(tmp_path / "none"), settings, tmp_path / "predicted.csv", None, CPU)
    wider = load_recipe("digits", ["model.hidden=[17]"])
    assert isinstance(wider, ClassifySettings)
    with pytest.raises(InputError, match="trained with other labels or image sizes"):
        predict_images(folder, wider, tmp_path / "predicted.csv", None, CPU)
