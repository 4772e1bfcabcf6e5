"""An exported classifier computes, without labelemb, what the run predicts: skipped without the extra `export`."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.classify.test_sentences import text_settings, write_texts
from tests.classify.test_tables import table_settings, write_table
from tests.small_runs import small_settings
from torch import nn

from labelemb import __main__ as cli
from labelemb.classify.export import export_classifier
from labelemb.classify.ngrams import buckets_of
from labelemb.errors import InputError
from labelemb.experiments.job import Job, execute
from labelemb.experiments.tasks import TASKS
from labelemb.run_folder import RunFolder
from labelemb.settings.config import LabelingSettings, Settings
from labelemb.settings.recipe import load_recipe

Output = pytest.CaptureFixture[str]


def exported(settings: Settings, folder: RunFolder) -> Any:
    """A session of onnxruntime with the run's exported network."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export: pip install '.[export]'")
    pytest.importorskip("onnxscript", reason="needs the extra export: pip install '.[export]'")
    execute(Job(settings, folder))
    assert isinstance(settings, LabelingSettings)
    said = export_classifier(folder, settings, folder.path / "model.onnx")
    assert "onnxruntime agrees" in said
    return onnxruntime.InferenceSession(folder.path / "model.onnx", providers=["CPUExecutionProvider"])


def predicted(run: RunFolder, capsys: Output, *arguments: str) -> np.ndarray[Any, Any]:
    """The probabilities (N, C) that `labelemb predict` writes."""
    capsys.readouterr()
    assert cli.run(["predict", str(run.path), *arguments]) == 0
    _, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    return np.array([[float(value) for value in row[1:]] for row in rows])


def test_a_table_s_raw_values_give_the_calibrated_probabilities(tmp_path: Path, capsys: Output) -> None:
    settings, folder = table_settings(write_table(tmp_path / "a.csv")), RunFolder(tmp_path / "run")
    session = exported(settings, folder)
    (tmp_path / "new.csv").write_text("x,constant\n30,5\n-20,5\n7.5,4\n0,5\n1,5\n")
    raw = np.array([[30, 5], [-20, 5], [7.5, 4], [0, 5], [1, 5]], dtype=np.float32)
    logits, probabilities = session.run(["logits", "probabilities"], {"inputs": raw})
    np.testing.assert_allclose(probabilities, predicted(folder, capsys, str(tmp_path / "new.csv")), atol=2e-6)
    scaled = (
        torch.from_numpy(logits).div(float(session.get_modelmeta().custom_metadata_map["temperature"])).softmax(dim=1)
    )
    np.testing.assert_allclose(probabilities, scaled.numpy(), atol=1e-6)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["label_names"]) == ["a", "b"]
    assert json.loads(metadata["columns"]) == ["x", "constant"]
    assert float(metadata["temperature"]) == folder.temperature
    assert folder.temperature not in (None, 1.0)


def test_images_as_they_are_stored_give_the_probabilities(tmp_path: Path, capsys: Output) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    settings, folder = small_settings(), RunFolder(tmp_path / "run")
    session = exported(settings, folder)
    pixels, labels = load_digits(return_X_y=True)
    test = train_test_split(pixels, labels, test_size=0.4, stratify=labels, random_state=0)[1]
    images = test.reshape(-1, 1, 8, 8).astype(np.float32)
    probabilities = session.run(["probabilities"], {"inputs": images})[0]
    np.testing.assert_allclose(probabilities, predicted(folder, capsys), atol=2e-6)


def test_texts_of_any_length_give_the_probabilities(tmp_path: Path, capsys: Output) -> None:
    settings, folder = text_settings(write_texts(tmp_path / "a.csv")), RunFolder(tmp_path / "run")
    session = exported(settings, folder)
    (tmp_path / "new.txt").write_text("a red fox of some length\n")
    numbers = np.array([buckets_of("a red fox of some length", 512)])
    probabilities = session.run(["probabilities"], {"inputs": numbers})[0]
    np.testing.assert_allclose(probabilities, predicted(folder, capsys, str(tmp_path / "new.txt")), atol=2e-6)


def convolutions(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes))


def test_a_network_of_one_s_own_is_exported(tmp_path: Path, capsys: Output) -> None:
    settings = small_settings("model.hidden=null", "epochs=1").model_copy(
        update={
            "model": small_settings("model.hidden=null").model.model_copy(update={"name": f"{__name__}:convolutions"})
        }
    )
    folder = RunFolder(tmp_path / "run")
    session = exported(settings, folder)
    assert session.run(["logits"], {"inputs": np.zeros((5, 1, 8, 8), np.float32)})[0].shape == (5, 10)


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run on parallel text: export is for"):
        TASKS["text"].export(RunFolder(tmp_path), load_recipe("multi30k"), tmp_path / "model.onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra export: pip install '.[export]'")
    with pytest.raises(InputError, match=r"has no inputs\.json"):
        export_classifier(RunFolder(tmp_path), small_settings(), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
