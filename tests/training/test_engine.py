"""The training loop: the same bits whatever interrupts it, and each setting does what its sentence says."""

import math
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small_runs import SMALL, bits, small_job, small_run, small_settings, what_was_learned
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import labelemb
from labelemb import __main__ as cli
from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.task import ClassifyTask
from labelemb.errors import InputError
from labelemb.experiments.job import execute
from labelemb.losses.catalogue import MODES
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ScheduleSettings
from labelemb.training import device, engine
from labelemb.training.checkpoint import load_newest, save_checkpoint
from labelemb.training.engine import Loop, checkpoint_pause
from labelemb.training.optimizers import learning_rate_factor, make_optimizers, planned_soft_after
from labelemb.training.stopping import Stopped, StopSignals
from labelemb.training.task import Task

NUM_STEPS = 12  # of a small run: 3 epochs of 4


def signal_after(step: int, number: signal.Signals) -> Callable[[int, int, str], None]:
    """A progress callback that sends this process a signal after so many steps."""

    def progress(done: int, planned: int, message: str) -> None:
        if done == step and not message:
            os.kill(os.getpid(), number)

    return progress


def make_task(folder: Path, *overrides: str, mode: str = "emb", seed: int = 0) -> ClassifyTask:
    settings = small_settings(*overrides, mode=mode, seed=seed)
    return ClassifyTask(settings, load_image_inputs(settings), torch.device("cpu"), RunFolder(folder))


def make_loop(folder: Path, *overrides: str, mode: str = "emb") -> Loop:
    task = make_task(folder, *overrides, mode=mode)
    return Loop(task, task.settings, task.folder, lambda *_: None)


def first_batch(task: Task) -> tuple[Any, ...]:
    return next(task.batches(0, 0))


def command(output: Path, *arguments: str) -> list[str]:
    return ["train", "digits", *SMALL, "--output", str(output), "--quiet", *arguments]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on stderr: one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("mode", ["emb", "baseline"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path, mode: str) -> None:
    learned = [what_was_learned(small_run(tmp_path / name, mode=mode)) for name in ("one", "two")]
    assert learned[0] == learned[1]
    other = what_was_learned(small_run(tmp_path, mode=mode, seed=1))
    assert other["state"]["module"] != learned[0]["state"]["module"]


@pytest.mark.parametrize(
    ("mode", "step", "number"),
    [
        ("emb", 2, signal.SIGINT),
        ("emb", 4, signal.SIGTERM),
        ("emb", 7, signal.SIGTERM),
        ("online-smoothing", 6, signal.SIGINT),
        ("decoupled", 5, signal.SIGTERM),
        ("maxsup", 6, signal.SIGINT),
        ("lspp", 3, signal.SIGTERM),
        ("pskd", 6, signal.SIGINT),
        ("pskd", 9, signal.SIGTERM),
        ("baseline", NUM_STEPS - 1, signal.SIGTERM),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, mode: str, step: int, number: signal.Signals) -> None:
    job = small_job(tmp_path / "stopped", "augment.flip=true", mode=mode)
    with pytest.raises(Stopped) as stopped:
        execute(job, signal_after(step, number))
    assert stopped.value.signal_number == number
    assert not job.folder.is_finished
    assert sorted(path.name for path in job.folder.checkpoints.iterdir()) == [".lock", f"step-{step + 1:08d}"]
    execute(job)
    assert job.folder.is_finished
    whole = small_run(tmp_path / "whole", "augment.flip=true", mode=mode)
    assert what_was_learned(job.folder) == what_was_learned(whole)


@pytest.mark.parametrize("moment", ["evaluate_epoch", "finish"])
def test_a_run_stopped_after_its_last_step_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    job = small_job(tmp_path / "stopped")
    method = getattr(ClassifyTask, moment)

    def interrupted(task: ClassifyTask, *epoch: int) -> Any:
        if epoch in ((), (3,)):
            os.kill(os.getpid(), signal.SIGTERM)
        return method(task, *epoch)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(ClassifyTask, moment, interrupted)
        with pytest.raises(Stopped):
            execute(job)
    assert not (job.folder.path / "evaluation.json").exists()
    assert not job.folder.is_finished
    execute(job)
    assert what_was_learned(job.folder) == what_was_learned(small_run(tmp_path / "whole"))


def test_a_run_stopped_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    job = small_job(tmp_path / "stopped", "optimizer.name=sgd", "schedule.name=cosine")
    for step in range(1, NUM_STEPS, 3):
        with pytest.raises(Stopped):
            execute(job, signal_after(step, signal.SIGTERM))
    execute(job)
    whole = small_run(tmp_path / "whole", "optimizer.name=sgd", "schedule.name=cosine")
    assert what_was_learned(job.folder) == what_was_learned(whole)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_convolutions_with_channels_innermost_resume_to_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    """In bfloat16 (and on a GPU) the optimiser's state has the memory layout of the weights, and must have it again."""
    few = ("data.limit=8", "batch_size=2", "epochs=2", "precision=bfloat16", "optimizer.lr=0.01")
    network = ("model.name=mnist-cnn", "model.hidden=null", f"optimizer.name={optimizer}")
    job = small_job(tmp_path / "stopped", *few, *network)
    with pytest.raises(Stopped):
        execute(job, signal_after(3, signal.SIGTERM))
    execute(job)
    whole = small_run(tmp_path / "whole", *few, *network)
    assert what_was_learned(job.folder) == what_was_learned(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_has_its_exit_code_and_says_that_the_run_can_be_resumed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    take_step = Loop.take_step

    def interrupted(self: Loop, batch: tuple[Any, ...]) -> None:
        take_step(self, batch)
        if self.step == 5:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Loop, "take_step", interrupted)
    before = signal.getsignal(number)
    assert cli.run(command(tmp_path)) == code
    assert one_line(capsys) == f"labelemb: stopped by {number.name}; the run can be resumed"
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert cli.run(command(tmp_path)) == 2
    assert "--resume" in one_line(capsys)
    assert cli.run(command(tmp_path, "--resume")) == 0
    whole = small_run(tmp_path / "whole")
    assert what_was_learned(RunFolder.at(tmp_path, "digits", "emb", 0)) == what_was_learned(whole)


KILLED = """
import sys, time, torch
import labelemb
from labelemb import __main__ as cli
from labelemb.training import device, engine
torch.set_num_threads(int(sys.argv[1]))
engine.checkpoint_pause = lambda save_seconds: 0.02
take_step = engine.Loop.take_step
def slowly(self, batch):  # a hundred steps take two seconds at least: no machine is done before it is killed
    take_step(self, batch)
    time.sleep(0.02)
engine.Loop.take_step = slowly
sys.exit(cli.run(sys.argv[2:]))
"""


def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(tmp_path: Path) -> None:
    epochs = "epochs=25"
    arguments = [sys.executable, "-c", KILLED, str(torch.get_num_threads()), *command(tmp_path / "killed", epochs)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    folder = RunFolder.at(tmp_path / "killed", "digits", "emb", 0)
    while not list(folder.checkpoints.glob("step-*")):
        assert process.poll() is None
        time.sleep(0.01)
    delay = random.uniform(0, 0.5)
    time.sleep(delay)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, f"it ended by itself within {delay} seconds"
    assert not folder.is_finished
    assert cli.run(command(tmp_path / "killed", epochs, "--resume")) == 0
    assert what_was_learned(folder) == what_was_learned(small_run(tmp_path / "whole", epochs)), delay


READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "repeat_interleave")


class HostReads(TorchDispatchMode):
    """Notes which functions of labelemb read values out of tensors: on a GPU they would wait for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.functions: set[str] = set()

    def note(self) -> None:
        package = Path(labelemb.__file__).parent
        frames = [frame for frame in traceback.extract_stack() if package in Path(frame.filename).parents]
        self.functions.add(f"{Path(frames[-1].filename).stem}.{frames[-1].name}")

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Note the methods too that on a CPU call no operator."""
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(Tensor, name, self.noting(getattr(Tensor, name)))

    def noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            self.note()
            return method(*arguments)

        return noted

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in READS or by_mask:
            self.note()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [mode.name for mode in MODES.values() if not mode.takes_table])
@pytest.mark.parametrize("option", ["precision=bfloat16", "optimizer.clip=1", "augment.mixup=1", "augment.cutmix=1"])
def test_an_epoch_s_steps_read_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, option: str
) -> None:
    if MODES[mode].takes_index and option.startswith("augment."):
        option = "augment.crop=2"  # it refuses what blends images
    loop = make_loop(tmp_path, "augment.crop=1", "augment.flip=true", option, mode=mode)
    reads = HostReads()
    reads.watch(monkeypatch)
    with reads:
        for batch in loop.task.batches(0, 0):
            loop.take_step(batch)
    # Labels, indices and probabilities are checked on the CPU alone, and the draws are a CPU generator's.
    checks = {"arguments._check_range", "arguments.check_index", "arguments.check_one_label"}
    allowed = checks | {"augment._draw_weight", "augment._draw_interval"}
    assert reads.functions <= allowed
    reads.functions.clear()
    loop.training_row()
    assert reads.functions == {"epoch_sums.means"}


def test_large_checkpoints_take_a_twentieth_of_the_time_at_most() -> None:
    assert checkpoint_pause(0.01) == 30
    assert checkpoint_pause(6.0) == 120


def test_a_gpu_is_compiled_for_only_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for triton, compiler in [(True, "gcc"), (True, "clang"), (False, "gcc"), (True, None)]:
        monkeypatch.setattr(device, "find_spec", lambda name, there=triton: there or None)
        monkeypatch.setattr(device, "which", lambda name, there=compiler: there if name == there else None)
        assert device.can_compile() is (triton and compiler is not None)


def graph_calls(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """From now on: the batch sizes that a module is compiled for, and how often each of those graphs was called."""
    calls: dict[int, int] = {}

    def backend(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        labels = next(
            value for value in examples if isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim
        )
        size = len(labels)

        def counted(*arguments: Any) -> Any:
            calls[size] = calls.get(size, 0) + 1
            return graph.forward(*arguments)

        return counted

    def compile_module(module: nn.Module, **options: Any) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=backend, fullgraph=True, **options)

    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", compile_module)
    return calls


def test_a_short_last_batch_leaves_the_full_ones_their_own_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_run(tmp_path / "eager", "data.limit=40", "batch_size=16", "epochs=3")
    calls = graph_calls(monkeypatch)
    compiled = small_run(tmp_path / "compiled", "data.limit=40", "batch_size=16", "epochs=3", "compile=true")
    assert calls == {16: 6, 8: 3}
    assert len(compiled.metrics) == 3
    for row, expected in zip(compiled.metrics, plain.metrics, strict=True):
        del row["seconds"], expected["seconds"]
        assert row == pytest.approx(expected, rel=1e-4)


def test_a_comparison_s_modes_in_one_process_all_stay_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = graph_calls(monkeypatch)  # with fullgraph=True, which makes the compiler's giving up an error
    modes = [mode.name for mode in MODES.values() if not mode.takes_table]
    for mode in modes:
        for seed in range(2):
            small_run(tmp_path, "data.limit=40", "batch_size=16", "epochs=1", "compile=true", mode=mode, seed=seed)
    assert calls == {16: 2 * 2 * len(modes), 8: 2 * len(modes)}


def test_a_full_disk_ends_the_run_with_code_1_and_leaves_it_resumable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = save_checkpoint

    def until_full(folder: Path, step: int, state: dict[str, Any]) -> None:
        with pytest.MonkeyPatch.context() as disk:
            if step == 7:
                disk.setattr(os, "fsync", lambda descriptor: _raise(OSError(28, "No space left on device")))
            save(folder, step, state)

    monkeypatch.setattr(engine, "save_checkpoint", until_full)
    monkeypatch.setattr(engine, "checkpoint_pause", lambda save_seconds: -1.0)
    assert cli.run(command(tmp_path)) == 1
    assert "no space left for" in one_line(capsys)
    folder = RunFolder.at(tmp_path, "digits", "emb", 0)
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == [".lock", "step-00000005", "step-00000006"]
    monkeypatch.undo()
    assert cli.run(command(tmp_path, "--resume")) == 0
    assert what_was_learned(folder) == what_was_learned(small_run(tmp_path / "whole"))


def _raise(error: Exception) -> None:
    raise error


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "checkpoint_pause", lambda save_seconds: -1.0)
    job = small_job(tmp_path)
    with pytest.raises(Stopped):
        execute(job, signal_after(8, signal.SIGTERM))
    older, newest = sorted(job.folder.checkpoints.glob("step-*"))
    assert (older.name, newest.name) == ("step-00000008", "step-00000009")
    (newest / "state.safetensors").write_bytes(b"")
    execute(job)
    assert what_was_learned(job.folder) == what_was_learned(small_run(tmp_path / "whole"))


def test_a_run_killed_before_its_end_was_written_ends_the_same(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    learned = what_was_learned(folder)
    folder.write_environment(folder.environment | {"end": None})
    (folder.path / "evaluation.json").unlink()
    folder.table.unlink()
    execute(small_job(tmp_path))
    assert what_was_learned(folder) == learned


def test_a_resumed_run_has_every_row_once(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    with pytest.raises(Stopped):
        execute(job, signal_after(6, signal.SIGTERM))
    job.folder.append_metrics(
        job.folder.metrics[-1] | {"epoch": 2}
    )  # written after the checkpoint, then the power went
    execute(job)
    assert [row["epoch"] for row in job.folder.metrics] == [1, 2, 3]
    assert [row["step"] for row in job.folder.metrics] == [4, 8, 12]


def lose_row(folder: RunFolder, epoch: int) -> None:
    folder.write_metrics([row for row in folder.metrics if row["epoch"] != epoch])


def test_a_resume_without_a_row_that_its_checkpoints_count_on_is_refused(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    with pytest.raises(Stopped):
        execute(job, signal_after(9, signal.SIGTERM))
    rows = job.folder.metrics
    lose_row(job.folder, 2)
    with pytest.raises(InputError, match=r"metrics\.jsonl: no row of epoch 2, .* train again") as error:
        execute(job)
    assert "\n" not in str(error.value)
    assert [row["epoch"] for row in job.folder.metrics] == [1], "what is left stays as it was"
    job.folder.write_metrics(rows)  # brought back, as the line says
    execute(job)
    assert what_was_learned(job.folder) == what_was_learned(small_run(tmp_path / "whole"))


def test_a_lost_last_row_is_trained_again_from_an_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "checkpoint_pause", lambda save_seconds: -1.0)
    job = small_job(tmp_path)
    with pytest.raises(Stopped):
        execute(job, signal_after(8, signal.SIGTERM))
    names = sorted(path.name for path in job.folder.checkpoints.glob("step-*"))
    assert names == ["step-00000008", "step-00000009"]  # in the second epoch, and in the third
    lose_row(job.folder, 2)
    execute(job)
    assert what_was_learned(job.folder) == what_was_learned(small_run(tmp_path / "whole"))


def test_an_unfinished_run_whose_start_is_not_known_goes_on(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    with pytest.raises(Stopped):
        execute(job, signal_after(6, signal.SIGTERM))
    environment = job.folder.environment
    del environment["start"]
    job.folder.write_environment(environment)
    execute(job)
    assert job.folder.is_finished
    assert job.folder.environment["start"] == job.folder.environment["resumed"][0]


def test_a_stop_signal_is_remembered_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_columns_are_means_over_all_items_with_a_short_last_batch(tmp_path: Path) -> None:
    rates = (f"optimizer.{name}=1e-30" for name in ("lr", "criterion_lr", "table_lr"))
    still = (*rates, "epochs=1", "data.limit=50")
    row = small_run(tmp_path, *still).metrics[0]
    task = make_task(tmp_path, *still)
    output = task.module(task.data.train.inputs(slice(None)), task.data.train.labels)
    assert output.num_items == 50
    assert row["train_error"] == output.num_errors.item() / 50
    for name, value in output.terms._asdict().items():
        name = "loss" if name == "total" else name
        assert row[f"train_{name}"] == pytest.approx(value.item(), rel=1e-5, abs=1e-7)
    assert row["seconds"] > 0


def test_a_loss_that_is_not_a_number_ends_the_run_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(command(tmp_path, "optimizer.lr=1e30", "epochs=2")) == 1
    line = one_line(capsys)
    assert "the training loss became nan in epoch 1" in line or "the training loss became inf in epoch 1" in line
    assert "optimizer.lr" in line
    assert RunFolder.at(tmp_path, "digits", "emb", 0).metrics == []


def test_the_network_has_the_recipe_s_optimiser_and_the_criterion_always_adam(tmp_path: Path) -> None:
    options = (
        "optimizer.lr=0.1",
        "optimizer.weight_decay=0.3",
        "optimizer.momentum=0.8",
        "optimizer.criterion_lr=0.02",
        "optimizer.table_lr=null",
    )
    for name, kind in {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.items():
        task = make_task(tmp_path, f"optimizer.name={name}", *options)
        network, criterion = make_optimizers(task.module, task.settings)
        assert type(network) is kind
        assert type(criterion) is torch.optim.Adam
        (of_network,), (of_criterion,) = network.param_groups, criterion.param_groups
        assert (of_network["lr"], of_network["weight_decay"]) == (0.1, 0.3)
        assert (of_criterion["lr"], of_criterion["weight_decay"]) == (0.02, 0.0)
        assert {id(p) for p in of_network["params"]} == {id(p) for p in task.module.network.parameters()}
        assert {id(p) for p in of_criterion["params"]} == {id(p) for p in task.module.criterion.parameters()}
        if name == "sgd":
            assert (of_network["momentum"], of_network["nesterov"]) == (0.8, True)


def test_the_label_table_has_a_learning_rate_of_its_own_where_one_is_set(tmp_path: Path) -> None:
    task = make_task(tmp_path, "optimizer.criterion_lr=0.02", "optimizer.table_lr=0.3")
    _, criterion = make_optimizers(task.module, task.settings)
    others, table = criterion.param_groups
    assert (others["lr"], table["lr"]) == (0.02, 0.3)
    assert {id(p) for p in table["params"]} == {
        id(p) for p in task.module.criterion.get_submodule("table").parameters()
    }
    assert {id(p) for p in others["params"]} == {
        id(p) for p in task.module.criterion.get_submodule("aux_head").parameters()
    }


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "online-smoothing", "tfkd"])
def test_a_criterion_without_parameters_needs_no_optimiser(tmp_path: Path, mode: str) -> None:
    task = make_task(tmp_path, mode=mode)
    assert len(make_optimizers(task.module, task.settings)) == 1


def test_the_clip_is_taken_over_the_network_alone(tmp_path: Path) -> None:
    def gradients(*overrides: str) -> tuple[Tensor, list[Tensor | None]]:
        loop = make_loop(tmp_path, *overrides)
        loop.take_step(first_batch(loop.task))
        network = [parameter.grad for parameter in loop.network.parameters() if parameter.grad is not None]
        own = [parameter.grad for parameter in loop.criterion.parameters()]
        return nn.utils.get_total_norm(network), own

    free_norm, free = gradients()
    clipped_norm, clipped = gradients("optimizer.clip=0.01")
    assert free_norm > 0.02
    assert clipped_norm.item() == pytest.approx(0.01, rel=1e-3)
    assert bits(free) == bits(clipped)
    assert bits(gradients("optimizer.clip=1000")[0]) == bits(free_norm)


@pytest.mark.parametrize("step", range(0, 24, 3))
def test_schedules_are_their_formulas(step: int) -> None:
    per_epoch, epochs = 4, 6
    epoch = step // per_epoch

    def factor(**settings: Any) -> float:
        return learning_rate_factor(ScheduleSettings(**settings), step, per_epoch, epochs)

    assert factor() == 1
    assert factor(name="step", every=2, factor=0.2) == pytest.approx(0.2 ** (epoch // 2))
    assert factor(name="cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 24)))
    warm = min(1.0, (step + 1) / 8) if step < 8 else 1.0
    assert factor(warmup=2) == pytest.approx(warm)
    assert factor(name="cosine", warmup=2) == pytest.approx(warm * 0.5 * (1 + math.cos(math.pi * step / 24)))


def test_a_cut_comes_with_the_first_step_of_its_epoch() -> None:
    schedule = ScheduleSettings(name="step", every=40, factor=0.2)
    for per_epoch in (1, 7, 391, 469):
        factors = [learning_rate_factor(schedule, 40 * per_epoch + shift, per_epoch, 100) for shift in (-1, 0)]
        assert factors == [1.0, 0.2]


def test_the_schedule_reaches_both_optimisers(tmp_path: Path) -> None:
    schedule = ("schedule.name=step", "schedule.every=1", "schedule.factor=0.5")
    loop = make_loop(tmp_path, *schedule, "optimizer.lr=0.4", "optimizer.criterion_lr=0.2")
    loop.epoch = 2
    loop.take_step(first_batch(loop.task))
    assert [optimizer.param_groups[0]["lr"] for optimizer in loop.optimizers] == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(
    ("soft_after", "expected"), [("0", 0), ("0.5", 6), ("5", 5), ("1", 1), ("11", 11), ("0.04", 0)]
)
def test_soft_labels_join_in_after_their_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soft_after: str, expected: int
) -> None:
    weights = []
    take_step = Loop.take_step

    def watched(self: Loop, batch: tuple[Any, ...]) -> None:
        take_step(self, batch)
        weights.append(self.criterion.soft_weight)

    monkeypatch.setattr(Loop, "take_step", watched)
    small_run(tmp_path, f"emb.soft_after={soft_after}", "emb.soft_weight=0.7")
    assert weights == [0.0] * expected + [0.7] * (NUM_STEPS - expected)


def test_when_soft_labels_join_in_is_told_under_quiet_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(command(tmp_path, "emb.soft_after=5")) == 0
    assert one_line(capsys) == "emb: soft labels from epoch 2 of 3"


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "tfkd", "online-smoothing"])
def test_modes_without_a_learned_table_do_not_wait_for_it(mode: str) -> None:
    assert planned_soft_after(small_settings("emb.soft_after=100", mode=mode), 4) == 0


@pytest.mark.parametrize("mode", ["emb-start", "emb-frozen"])
def test_a_loaded_table_is_used_from_the_start(mode: str) -> None:
    settings = small_settings("emb.soft_after=0.5", mode=mode, table=Path("a.safetensors"))
    assert planned_soft_after(settings, 4) == 0


def test_a_run_that_would_never_reach_its_soft_labels_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    job = small_job(tmp_path, "emb.soft_after=12")
    with pytest.raises(InputError, match=r"emb\.soft_after=12: .*after 12 updates.*only 12 \(3 epochs of 4\)"):
        execute(job)
    assert not job.folder.path.exists()


def test_online_smoothing_moves_on_after_each_epoch(tmp_path: Path) -> None:
    state = load_newest(small_run(tmp_path, mode="online-smoothing").checkpoints)
    assert state is not None
    rows, counts = state["module"]["criterion.rows"], state["module"]["criterion.counts"]
    assert (rows - 0.1).abs().max() > 0.01
    assert counts.sum() == 0


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    folder = small_run(tmp_path, "precision=bfloat16", "epochs=1")
    state = load_newest(folder.checkpoints)
    assert state is not None
    assert {tensor.dtype for tensor in state["module"].values()} == {torch.float32}
    assert folder.metrics[0]["train_loss"] != small_run(tmp_path / "full", "epochs=1").metrics[0]["train_loss"]
