"""The one training loop: device, precision, schedule, checkpoints, resume. A task gives it batches and a module.

The update is a function of (settings, step) and of the saved state alone, so a run that was killed and resumed ends
with the same bits as one that was not (on the CPU, with the same number of threads).
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from shutil import which
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from labelemb.losses.catalogue import MODES
from labelemb.losses.terms import LossTerms
from labelemb.run_folder import RunFolder, missing_rows
from labelemb.settings.config import InputError, RunSettings
from labelemb.training.checkpoint import save_checkpoint, whole_checkpoints
from labelemb.training.optimizers import lay_out_as_parameters, learning_rate_factor, make_optimizers
from labelemb.training.stopping import Stopped, StopSignals


class StepOutput(NamedTuple):
    """What a task's module returns for one batch: `terms.total` is differentiated, the rest is recorded."""

    terms: LossTerms
    num_items: int
    num_errors: Tensor | None  # 0-d on the device, or None where errors are not counted


class Task(Protocol):
    """What the engine trains."""

    num_batches: int  # steps an epoch
    varying_shapes: bool  # of the batches, beyond a short last one

    @property
    def module(self) -> nn.Module:
        """Holds `.network` and `.criterion`; module(*batch) returns StepOutput."""

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Any, ...]]:
        """The batches of an epoch from number `first` on: a function of the seed and the epoch alone."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluate after an epoch (counted from 1); the columns of its row in metrics.jsonl."""

    def finish(self) -> None:
        """Write what the run leaves behind, besides metrics and checkpoints. May be cut short and called anew."""


Progress = Callable[[int, int, str], None]  # (steps done, steps planned, what to say)


def train(task: Task, settings: RunSettings, folder: RunFolder, progress: Progress) -> None:
    """Train `task` to its end, from its newest checkpoint where the folder has one.

    Args:
        task: batches, module, evaluation.
        settings: of the run.
        folder: receives metrics, checkpoints and what `task.finish` writes.
        progress: called after steps and evaluations.

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
        print(f"{settings.name}: soft labels from epoch {first} of {settings.epochs}", file=sys.stderr)
    with StopSignals() as stop:
        loop.restore()
        while loop.epoch < settings.epochs:
            loop.run_epoch(stop)
        loop.save()  # before what may take minutes: a run stopped there goes on with it
        stop.answer_at_once()
        task.finish()


class Loop:
    """The state of training: where it stands, and the steps it takes. See `train` for the arguments."""

    def __init__(self, task: Task, settings: RunSettings, folder: RunFolder, progress: Progress) -> None:
        self.task, self.settings, self.folder, self.progress = task, settings, folder, progress
        self.device = next(task.module.parameters()).device
        self.optimizers = make_optimizers(task.module, settings)
        self.learning_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.planned_steps = settings.epochs * task.num_batches
        self.soft_after = planned_soft_after(settings, task.num_batches)
        self.epoch = self.batch = 0
        dtype = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self.sums = torch.zeros(8, dtype=dtype, device=self.device)  # items, errors, the six terms
        self.seconds = 0.0
        self.last_save, self.save_seconds = time.monotonic(), 0.0
        if self.device.type == "cuda" and not task.varying_shapes:
            torch.backends.cudnn.benchmark = True  # the few shapes of convolutions are each tried once
        if settings.compile or (settings.compile is None and self.device.type == "cuda" and _can_compile()):
            _compile(task)

    @property
    def step(self) -> int:
        return self.epoch * self.task.num_batches + self.batch

    def run_epoch(self, stop: StopSignals) -> None:
        """Train to the end of the current epoch, evaluate, write its row."""
        self.task.module.train()
        start = time.perf_counter() - self.seconds
        for batch in self.task.batches(self.epoch, self.batch):
            self.take_step(batch)
            self.batch += 1
            due = time.monotonic() - self.last_save > checkpoint_pause(self.save_seconds)
            if due or stop.signal_number is not None:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # steps still queued are training too
                self.seconds = time.perf_counter() - start
                self.save()
                start = time.perf_counter() - self.seconds
            if stop.signal_number is not None:
                raise Stopped(stop.signal_number)
            self.progress(self.step, self.planned_steps, "")
        row = self.training_row()  # reads from the device, and so waits for it
        row["seconds"] = time.perf_counter() - start
        self.end_epoch(row)

    def take_step(self, batch: tuple[Any, ...]) -> None:
        """One optimiser update. Nothing here waits for the device."""
        rate = learning_rate_factor(self.settings.schedule, self.step, self.task.num_batches, self.settings.epochs)
        for optimizer, rates in zip(self.optimizers, self.learning_rates, strict=True):
            for group, learning_rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate * rate
        self.criterion.progress = self.step / self.planned_steps  # of the update count, so resume needs nothing
        if self.soft_after:
            self.criterion.soft_weight = self.settings.loss["soft_weight"] if self.step >= self.soft_after else 0.0
        for optimizer in self.optimizers:
            optimizer.zero_grad()  # before the forward pass, which then has their memory
        bfloat16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=bfloat16):
            output: StepOutput = self.task.module(*batch)
        output.terms.total.backward()  # type: ignore[no-untyped-call]
        if self.settings.optimizer.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.optimizer.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.record(output)

    @torch.no_grad()
    def record(self, output: StepOutput) -> None:
        means = torch.stack(output.terms)
        self.sums[2:].add_(means, alpha=output.num_items)
        self.sums[0] += output.num_items
        # Where errors are not counted, NaN says so: the row has null, and a resumed run the same.
        self.sums[1] += math.nan if output.num_errors is None else output.num_errors

    def training_row(self) -> dict[str, Any]:
        items, errors, hard, soft, aux, cap, match, loss = self.sums.tolist()
        values = {"loss": loss, "hard": hard, "soft": soft, "aux": aux, "cap": cap, "match": match, "error": errors}
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step}
        row |= {f"train_{name}": value / items for name, value in values.items()}
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss became {loss} in epoch {self.epoch + 1}: try a lower optimizer.lr"
            )
        return row

    def end_epoch(self, row: dict[str, Any]) -> None:
        self.task.module.eval()
        row |= self.task.end_epoch(self.epoch + 1)
        self.folder.append_metrics(row)
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        self.progress(self.step, self.planned_steps, f"loss {row['train_loss']:.3f}")

    @property
    def network(self) -> nn.Module:
        network = self.task.module.network
        assert isinstance(network, nn.Module)
        return network

    @property
    def criterion(self) -> Any:
        return self.task.module.criterion

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        start = time.monotonic()
        state: dict[str, Any] = {
            "position": {"epoch": self.epoch, "batch": self.batch, "seconds": self.seconds},
            "sums": self.sums,
            "module": self.task.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": {"cpu": torch.get_rng_state()},
        }
        if self.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        save_checkpoint(self.folder.checkpoints, self.step, state)
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - start

    def restore(self) -> None:
        """Go back to the newest checkpoint whose rows are there, if it has any, and drop the rows that came after it.

        Raises:
            InputError: there are checkpoints, and for each one rows of its epochs are lost.
        """
        state = self._newest_state()
        if state is None:
            self.folder.write_metrics([])
            return
        self.task.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            lay_out_as_parameters(optimizer)
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        position = state["position"]
        self.epoch, self.batch, self.seconds = position["epoch"], position["batch"], position["seconds"]
        self.sums.copy_(state["sums"])
        self.folder.write_metrics([row for row in self.folder.metrics if row["epoch"] <= self.epoch])

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


def _can_compile() -> bool:
    """Whether torch.compile can make programs for a GPU: it needs Triton, and a C compiler to call its kernels."""
    return find_spec("triton") is not None and any(which(name) for name in ("cc", "gcc", "clang"))


def checkpoint_pause(save_seconds: float) -> float:
    """Seconds of training between two checkpoints, when one takes `save_seconds`.

    A run that is killed loses half a minute, or, where checkpoints are large, twenty times what writing one takes.
    """
    return max(30.0, 20 * save_seconds)


def planned_soft_after(settings: RunSettings, steps_per_epoch: int) -> int:
    """After how many updates the soft labels join in; 0 for modes that use them from the start or not at all.

    Raises:
        InputError: the run would end before.
    """
    planned = settings.epochs * steps_per_epoch
    after = settings.loss.get("soft_after", 0.0)
    updates = round(after * planned) if after < 1 else int(after)
    if updates >= planned:
        raise InputError(
            f"{MODES[settings.mode].section}.soft_after={after:g}: the soft labels would join in after {updates} "
            f"updates, but the run has only "
            f"{planned} ({settings.epochs} epochs of {steps_per_epoch}); a value below 1 is a fraction of them"
        )
    return updates
