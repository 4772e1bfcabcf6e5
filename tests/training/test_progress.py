"""The share of training done, which the loop tells the criterion before each step."""

from pathlib import Path

import torch
from tests.small_runs import small_settings

from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.task import ClassifyTask
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.run_folder import RunFolder
from labelemb.training.engine import Loop


def make_loop(folder: Path) -> Loop:
    settings = small_settings(mode="maxsup")
    task = ClassifyTask(settings, load_image_inputs(settings), torch.device("cpu"), RunFolder(folder))
    return Loop(task, settings, task.folder, lambda *_: None)


def test_progress_is_the_share_of_updates_done_before_the_step(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)  # 3 epochs of 4 steps
    criterion = loop.task.module.criterion
    assert isinstance(criterion, SoftLabelLoss)
    assert criterion.progress == 0
    seen, weights = [], []
    for step in range(12):
        loop.epoch, loop.batch = divmod(step, 4)
        loop.take_step(next(loop.task.batches(loop.epoch, loop.batch)))
        seen.append(criterion.progress)
        weights.append(criterion.factors[1])
    assert seen == [step / 12 for step in range(12)]
    assert weights == [0.1 + (0.2 - 0.1) * share for share in seen]


def test_progress_needs_no_memory_of_the_steps_before(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    loop.epoch, loop.batch = 2, 1  # where a checkpoint would put it
    loop.take_step(next(loop.task.batches(2, 1)))
    assert loop.criterion.progress == 9 / 12
