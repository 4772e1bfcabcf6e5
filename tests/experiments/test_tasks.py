"""The table of tasks: complete, and each kind makes its task without writing anything."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from tests.small_runs import small_settings

from labelemb.classify.task import ClassifyTask
from labelemb.errors import InputError
from labelemb.experiments.tasks import TASKS
from labelemb.run_folder import RunFolder
from labelemb.settings.config import Settings
from labelemb.settings.recipe import load_recipe


def test_every_task_that_has_settings_is_made_and_predicts() -> None:
    assert {settings.model_fields["task"].default for settings in get_args(Settings)} == set(TASKS)


def test_a_run_on_text_has_no_calibrated_probabilities(tmp_path: Path) -> None:
    settings = load_recipe("multi30k", [])
    for calibrated in (True, False):
        with pytest.raises(InputError, match="is a run on text: --calibrated and --raw"):
            TASKS["text"].predict(RunFolder(tmp_path), settings, {"calibrated": calibrated}, "cpu")


def test_making_a_task_writes_nothing(tmp_path: Path) -> None:
    task = TASKS["classify"].make(small_settings(), RunFolder(tmp_path / "run"), torch.device("cpu"), False)
    assert isinstance(task, ClassifyTask)
    assert not (tmp_path / "run").exists()
