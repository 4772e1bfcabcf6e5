"""A run in float64 whose batches are divided, for memory or over processes; some items are ignored."""

from pathlib import Path
from typing import Any

import torch
from tests.small_runs import small_settings
from torch import Tensor

from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.task import ClassifyTask
from labelemb.run_folder import RunFolder
from labelemb.training.engine import Loop

NUM_STEPS = 20


class WideTask(ClassifyTask):
    """Inputs in float64; the second half of the first batch has no label, so that one of two processes matches none."""

    def batches(self, epoch: int, first: int) -> Any:
        for number, (inputs, target, *rest) in enumerate(super().batches(epoch, first), start=first):
            target = target.clone()
            target[slice(None, None, 7) if number else slice(len(target) // 2, None)] = -100
            yield (inputs.double(), target, *rest)


def make_loop(folder: Path, mode: str, *overrides: str) -> Loop:
    """A loop over 75 images in batches of 16: the last one has 11."""
    settings = small_settings("data.limit=75", "batch_size=16", "optimizer.name=sgd", *overrides, mode=mode)
    task = WideTask(settings, load_image_inputs(settings), torch.device("cpu"), RunFolder(folder))
    task.module.double()
    return Loop(task, settings, task.folder, lambda *_: None)


def trained(folder: Path, mode: str, *overrides: str) -> dict[str, Tensor]:
    """Loss and gradients of the first steps, and all weights after 20, with an epoch's end on the way."""
    loop = make_loop(folder, mode, *overrides)
    loop.task.module.train()
    found: dict[str, Tensor] = {}
    for step in range(NUM_STEPS):
        loop.take_step(next(iter(loop.task.batches(loop.epoch, loop.batch))))
        loop.batch += 1
        if step < 5:
            found |= {f"{step} {name}": value for name, value in _of_step(loop).items()}
        if step == 4:
            row = loop.training_row()
            found |= {name: torch.tensor(row[name], dtype=torch.float64) for name in row if name.startswith("train")}
        if loop.batch == loop.task.num_batches:
            loop.criterion.end_epoch()
            loop.epoch, loop.batch = loop.epoch + 1, 0
    return found | {f"end {name}": value.clone() for name, value in loop.task.module.state_dict().items()}


def _of_step(loop: Loop) -> dict[str, Tensor]:
    named = loop.task.module.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}
