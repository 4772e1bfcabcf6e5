"""Numeric columns: standardized by the training part, and trained on, from a file to the report's numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from labelemb.classify.tables import load_tables
from labelemb.classify.task import ClassifyTask
from labelemb.errors import InputError
from labelemb.experiments.job import Job, execute
from labelemb.run_folder import RunFolder
from labelemb.settings.config import TableSettings
from labelemb.settings.recipe import load_recipe


def write_table(path: Path, num_rows: int = 60, *, header: str = "x,constant,y") -> Path:
    """Two labels that the sign of `x` tells apart, and a column that says nothing."""
    lines = [f"{(-1) ** row * (row % 7 + 1) * 10},5,{'ab'[row % 2]}" for row in range(num_rows)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def table_settings(path: Path, *overrides: str, **options: Any) -> TableSettings:
    few = ["epochs=2", "model.hidden=[8]", "device=cpu", *overrides]
    settings = load_recipe("tables", few, {"data.path": path, **options}, beside=["emb"])
    assert isinstance(settings, TableSettings)
    return settings


def test_columns_have_mean_zero_and_deviation_one_over_the_training_rows_alone(tmp_path: Path) -> None:
    data = load_tables(table_settings(write_table(tmp_path / "a.csv")))
    rows = data.train.inputs(slice(None))
    assert data.columns == ["x", "constant"]
    assert rows.mean(dim=0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert rows[:, 0].std(correction=0).item() == pytest.approx(1)
    assert not rows[:, 1].any()
    assert data.test.inputs(slice(None))[:, 0].mean().abs() > 1e-4


def test_a_run_learns_and_says_by_what_its_inputs_were_made(tmp_path: Path) -> None:
    settings = table_settings(
        write_table(tmp_path / "a.csv"), "epochs=20", "optimizer.lr=0.05", "class_weight=balanced"
    )
    folder = RunFolder(tmp_path / "run")
    execute(Job(settings, folder))
    assert folder.metrics[-1]["test_error"] == 0
    assert folder.inputs["label_names"] == ["a", "b"]
    assert folder.inputs["columns"] == ["x", "constant"]
    assert folder.temperature is not None


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path: Path) -> None:
    settings = table_settings(write_table(tmp_path / "a.csv"))
    folder = RunFolder(tmp_path / "run")
    for header in ("x,constant,y", "x,other,y"):
        data = load_tables(table_settings(write_table(tmp_path / "a.csv", header=header)))
        task = ClassifyTask(settings, data, torch.device("cpu"), folder)
        if header == "x,constant,y":
            task.begin()
    with pytest.raises(InputError, match="the data have changed since this run began"):
        task.begin()


def test_balanced_class_weights_reach_the_criterion(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv")
    path.write_text(path.read_text() + "1,5,b\n" * 60)
    for overrides, weighs in (((), False), (("class_weight=balanced",), True)):
        settings = table_settings(path, *overrides, mode="baseline")
        task = ClassifyTask(settings, load_tables(settings), torch.device("cpu"), RunFolder(tmp_path / "run"))
        weight = task.module.criterion.class_weight
        assert (weight is not None) == weighs
    assert weight is not None
    assert weight[0] > 1 > weight[1]


def test_words_among_the_columns_are_named_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,x,y\nann,1,a\nbob,2,b\n")
    with pytest.raises(InputError, match=r"column name holds words: give the numeric ones as data.columns"):
        load_tables(table_settings(tmp_path / "a.csv"))
    path = write_table(tmp_path / "b.csv")
    assert load_tables(table_settings(path, "data.columns=[x]")).columns == ["x"]
    settings = load_recipe("tables")
    assert isinstance(settings, TableSettings)
    with pytest.raises(InputError, match="--data is missing"):
        load_tables(settings)


def test_the_test_part_must_have_the_same_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv")
    write_table(tmp_path / "test.csv", header="z,constant,y")
    with pytest.raises(InputError, match=r"data.columns=x: no such column in .*test.csv"):
        load_tables(table_settings(tmp_path))
