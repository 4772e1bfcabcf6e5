"""The one training loop: device, precision, schedule, checkpoints, resume. A task gives it batches and a module.

The update is a function of (settings, step) and of the saved state alone, so a run that was killed and resumed ends
with the same bits as one that was not (on the CPU, with the same number of threads).
"""

import math
import operator
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labelemb.errors import InputError
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.run_folder import RunFolder, missing_rows
from labelemb.settings.config import RunSettings
from labelemb.training.checkpoint import must_fit, save_checkpoint, whole_checkpoints
from labelemb.training.device import autocast, can_compile
from labelemb.training.epoch_sums import EpochSums
from labelemb.training.optimizers import (
    lay_out_as_parameters,
    learning_rate_factor,
    load_moments,
    make_optimizers,
    planned_soft_after,
)
from labelemb.training.process_state import own_state, restore_own_state
from labelemb.training.processes import processes, together
from labelemb.training.stopping import Stopped, StopSignals
from labelemb.training.stopwatch import Stopwatch
from labelemb.training.task import Division, StepOutput, Task

_STEPS_BETWEEN_TALKS = 8  # of several processes, on checkpoints and stopping: a signal is answered so many steps later
Progress = Callable[[int, int, str], None]  # (steps done, steps planned, what to say)


def train(task: Task, settings: RunSettings, folder: RunFolder, progress: Progress, say: Callable[[str], None]) -> None:
    """Train `task` to its end, from its newest checkpoint where the folder has one.

    Args:
        task: batches, module, evaluation.
        settings: of the run.
        folder: receives metrics, checkpoints and what `task.finish` writes.
        progress: called after steps and evaluations.
        say: called before the first step with what is to be known of the run, a line each.

    Raises:
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first. After the last step, too: the run is then
            resumed to do what `task.finish` does.
        FloatingPointError: the loss became NaN or infinite.
        OSError: the disk is full; the last checkpoint is whole.
        InputError: rows that every checkpoint counts on are lost from metrics.jsonl.
    """
    loop = Loop(task, settings, folder, progress)
    if loop.soft_after:
        first = loop.soft_after // task.num_batches + 1
        say(f"{settings.mode}: soft labels from epoch {first} of {settings.epochs}")
    with StopSignals() as stop:
        if loop.processes.is_first:
            task.begin()
        loop.restore()
        while loop.epoch < settings.epochs:
            loop.run_epoch(stop)
        loop.save()  # before what may take minutes: a run stopped there goes on with it
        stop.answer_at_once()
        if loop.processes.is_first:
            task.finish()


class Loop:
    """The state of training: where it stands, and the steps it takes. See `train` for the arguments."""

    def __init__(self, task: Task, settings: RunSettings, folder: RunFolder, progress: Progress) -> None:
        self.task, self.settings, self.folder, self.progress = task, settings, folder, progress
        self.device = next(task.module.parameters()).device
        self.processes = processes()
        self.optimizers = make_optimizers(task.module, settings)
        self.learning_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.planned_steps = settings.epochs * task.num_batches
        self.soft_after = planned_soft_after(settings, task.num_batches)
        self.epoch = self.batch = 0
        self.sums, self.stopwatch = EpochSums(self.device), Stopwatch()
        self.last_save, self.save_seconds = time.monotonic(), 0.0
        if self.device.type == "cuda" and not task.varying_shapes:
            torch.backends.cudnn.benchmark = True  # of the whole process: each of the few shapes is tried once
        if settings.compile or (settings.compile is None and self.device.type == "cuda" and can_compile()):
            _compile(task)
        self.module: nn.Module = task.module
        if self.processes.size > 1:
            self.module = together(task.module)
        self.criterion.end_step()  # says that steps end here, not with each call

    @property
    def step(self) -> int:
        return self.epoch * self.task.num_batches + self.batch

    def run_epoch(self, stop: StopSignals) -> None:
        """Train to the end of the current epoch, evaluate, write its row."""
        self.task.module.train()
        self.stopwatch.start()
        for batch in self.task.batches(self.epoch, self.batch):
            self.take_step(batch)
            self.batch += 1
            is_due, signal_number = self.asked(stop)
            if is_due or signal_number:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # steps still queued are training too
                self.stopwatch.stop()
                self.save()
                self.stopwatch.start()
            if signal_number:
                raise Stopped(signal_number)
            self.progress(self.step, self.planned_steps, "")
        row = self.training_row()  # reads from the device, and so waits for it
        self.stopwatch.stop()
        self.close_epoch(row | {"seconds": self.stopwatch.seconds})

    def asked(self, stop: StopSignals) -> tuple[bool, int]:
        """Whether a checkpoint is due, and the signal to stop by, 0 for none: the same for all processes."""
        if self.processes.size > 1 and self.step % _STEPS_BETWEEN_TALKS:
            return False, 0
        is_due = self.processes.is_first and time.monotonic() - self.last_save > checkpoint_pause(self.save_seconds)
        any_due, signal_number = self.processes.largest(is_due, stop.signal_number or 0)
        return bool(any_due), signal_number

    def take_step(self, batch: tuple[Any, ...]) -> None:
        """One optimiser update. Nothing here waits for the device."""
        rate = learning_rate_factor(self.settings.schedule, self.step, self.task.num_batches, self.settings.epochs)
        for optimizer, rates in zip(self.optimizers, self.learning_rates, strict=True):
            for group, learning_rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate * rate
        self.criterion.progress = self.step / self.planned_steps  # of the update count, so resume needs nothing
        if self.soft_after:
            assert isinstance(self.criterion, LabelEmbeddingLoss)  # the one mode that waits
            self.criterion.soft_weight = self.settings.loss["soft_weight"] if self.step >= self.soft_after else 0.0
        for optimizer in self.optimizers:
            optimizer.zero_grad()  # before the forward pass, which then has their memory
        num_parts = self.settings.accumulate * self.processes.size
        if num_parts == 1:
            output = self._differentiated(batch, None)
        else:
            output = self._accumulated(self.task.divide(batch, num_parts))
        if self.settings.optimizer.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.optimizer.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.criterion.end_step()
        self.sums.add(output)

    def _differentiated(self, batch: tuple[Any, ...], num_items: Tensor | int | None) -> StepOutput:
        """Forward and backward."""
        with autocast(self.device, self.settings.precision):
            output: StepOutput = self.module(*batch) if num_items is None else self.module(*batch, num_items=num_items)
        loss = output.terms.total
        if self.processes.size > 1:  # which average their gradients, where the parts of one mean are to be added up
            loss = loss * self.processes.size
        loss.backward()  # type: ignore[no-untyped-call]
        return output

    def _accumulated(self, division: Division) -> StepOutput:
        """Forward and backward of this process's parts: gradients and terms add up to those of the whole batch."""
        mine = range(len(division.parts))[self.processes.share(len(division.parts))]
        outputs = []
        for place in mine:
            is_sent = place == mine[-1] or self.processes.size == 1  # gradients, to the other processes
            with nullcontext() if is_sent else self.module.no_sync():  # type: ignore[operator]
                output = self._differentiated(division.parts[place], division.num_items)
            outputs.append(output if division.sizes[place] else output.without_errors())
        return StepOutput.sum_of(outputs, sum(division.sizes))

    def training_row(self) -> dict[str, Any]:
        """The row of the current epoch as far as training makes it.

        Raises:
            FloatingPointError: the loss became NaN or infinite.
        """
        means = self.sums.means()
        if not math.isfinite(means["train_loss"]):
            raise FloatingPointError(
                f"the training loss became {means['train_loss']} in epoch {self.epoch + 1}: try a lower optimizer.lr"
            )
        return {"epoch": self.epoch + 1, "step": self.step, **means}

    def close_epoch(self, row: dict[str, Any]) -> None:
        """Let the criterion move on, evaluate, write the row; the next epoch begins."""
        self.task.module.eval()
        self.criterion.end_epoch()
        self._send_statistics()
        row |= self.task.evaluate_epoch(self.epoch + 1)
        if self.processes.is_first:
            self.folder.append_metrics(row)
        self.epoch, self.batch, self.stopwatch.seconds = self.epoch + 1, 0, 0.0
        self.sums.clear()
        self.progress(self.step, self.planned_steps, f"loss {row['train_loss']:.3f}")

    def _send_statistics(self) -> None:
        """Give all processes the first one's buffers of the network: each has seen other items."""
        for buffer in self.network.buffers() if self.processes.size > 1 else ():
            dist.broadcast(buffer, 0)

    @property
    def network(self) -> nn.Module:
        return self.task.module.network

    @property
    def criterion(self) -> SoftLabelLoss:
        return self.task.module.criterion

    def save(self) -> None:
        """Write a checkpoint of this moment; of several processes all must call it, and the first one writes."""
        start = time.monotonic()
        state = self._state()
        if self.processes.size > 1:
            state["processes"] = self.processes.gathered(own_state(self.task.module, self.sums))
        if self.processes.is_first:
            save_checkpoint(self.folder.checkpoints, self.step, state)
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - start

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "position": {"epoch": self.epoch, "batch": self.batch, "seconds": self.stopwatch.seconds},
            **self.sums.state(),
            "module": self.task.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": {"cpu": torch.get_rng_state()},
        }
        if self.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self) -> None:
        """Go back to the newest checkpoint whose rows are there, if it has any, and drop the rows that came after it.

        Raises:
            InputError: there are checkpoints, and for each one rows of its epochs are lost, or the newest does not fit.
        """
        with must_fit(self.folder.checkpoints):
            state = self.processes.from_first(self._newest_state() if self.processes.is_first else None)
            if state is not None:
                self._go_back_to(state)
        if self.processes.is_first:
            self.folder.write_metrics([row for row in self.folder.metrics if row["epoch"] <= self.epoch])

    def _go_back_to(self, state: dict[str, Any]) -> None:
        self.task.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_moments(optimizer, saved["state"])
            lay_out_as_parameters(optimizer)
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        position = state["position"]
        self.epoch, self.batch = operator.index(position["epoch"]), operator.index(position["batch"])
        self.stopwatch.seconds = float(position["seconds"])
        of_processes = state.get("processes") or [{"sums": state["sums"], "terms": state.get("terms")}]
        restore_own_state(self.task.module, self.sums, of_processes, self.processes)
        if not (0 <= self.epoch <= self.settings.epochs and 0 <= self.batch <= self.task.num_batches):
            raise ValueError(f"epoch {self.epoch} and batch {self.batch} of {self.planned_steps} steps")

    def _newest_state(self) -> dict[str, Any] | None:
        rows, missing = self.folder.metrics, ""
        for state in whole_checkpoints(self.folder.checkpoints):
            epoch = state["position"]["epoch"]
            missing = missing_rows([row for row in rows if row["epoch"] <= epoch], epoch)
            if not missing:
                return state
        if missing:
            raise InputError(
                f"{self.folder.path / 'metrics.jsonl'}: {missing}, which the run's checkpoints count on: bring the "
                "file back, or remove the run's folder and train again"
            )
        return None


def _compile(task: Task) -> None:
    """Have the task's module compiled when it is first called; runs in one process share graphs."""
    import torch._dynamo.config

    # A comparison has a graph for each mode and batch size; past the limit the compiler gives up without an error.
    torch._dynamo.config.recompile_limit = 64
    # Left to itself, it would answer the short last batch of the first epoch with a graph for any size, and from then
    # on use that slower one for the full batches too.
    task.module.compile(dynamic=None if task.varying_shapes else False)


def checkpoint_pause(save_seconds: float) -> float:
    """Seconds of training between two checkpoints, when one takes `save_seconds`.

    A run that is killed loses half a minute, or, where checkpoints are large, twenty times what writing one takes.
    """
    return max(30.0, 20 * save_seconds)
