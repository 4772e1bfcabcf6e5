"""Several processes change nothing; they end, fail and are stopped as one would."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small_runs import SMALL, small_job, what_was_learned

from labelemb import __main__ as cli
from labelemb.errors import InputError, RunFailed
from labelemb.experiments import workers
from labelemb.experiments.job import Job, execute
from labelemb.experiments.standing import Standing
from labelemb.experiments.workers import execute_all
from labelemb.run_folder import RunFolder
from labelemb.training.engine import Loop
from labelemb.training.stopping import Stopped


def silent(_: Standing) -> None:
    """Report nothing."""


def test_two_processes_do_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [small_job(tmp_path / "alone", mode=mode, seed=seed) for seed in (0, 1) for mode in ("baseline", "emb")]
        for job in alone:
            execute(job)
    finally:
        torch.set_num_threads(before)
    together = [
        Job(job.settings, RunFolder(tmp_path / "two" / job.folder.path.name / job.settings.mode)) for job in alone
    ]
    seen: list[Standing] = []
    execute_all(together, 2, seen.append)
    assert seen[0] == Standing(finished=[], running=0, total=4, share=0.0)
    assert seen[-1] == Standing(finished=together, running=0, total=4, share=1.0)
    for one, other in zip(alone, together, strict=True):
        assert what_was_learned(one.folder) == what_was_learned(other.folder)
        assert one.folder.environment["jobs"] == 1
        assert (other.folder.environment["jobs"], other.folder.environment["threads"]) == (2, 1)


def test_a_worker_that_fails_gives_its_line_and_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "digits", *SMALL, "--runs", "1", "--modes", "baseline", "--jobs", "1", "--quiet"]
    assert cli.run([*arguments, "optimizer.lr=1e30", "--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed-00" in line
    assert "the training loss became" in line


class Parent:
    """The parent's end of a connection: hands over runs, remembers what the worker says of each."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)
        self.said: list[Exception | None] = []
        self.send = self.said.append

    def recv(self) -> Job:
        if not self.jobs:
            raise EOFError
        return self.jobs.pop(0)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Parent], None]]:
    """What a worker does, done in this process, which it leaves as it was."""
    monkeypatch.setattr(workers, "_end_with_parent", lambda: None)
    before, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    yield lambda parent: workers._work(parent, 1)  # type: ignore[arg-type]
    signal.signal(signal.SIGINT, before)
    torch.set_num_threads(threads)


def test_input_errors_alone_are_input_in_a_worker_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Parent], None]
) -> None:
    for raised, expected in {
        InputError("no such thing"): InputError,
        ValueError("a mistake of ours"): RunFailed,
        FileNotFoundError("no file"): RunFailed,
        FloatingPointError("nan"): RunFailed,
        OSError(13, "Permission denied"): RunFailed,
    }.items():

        def fail(job: Job, at_a_time: int, error: Exception = raised) -> None:
            raise error

        monkeypatch.setattr(workers, "execute", fail)
        parent = Parent(small_job(tmp_path))
        work(parent)
        (failure,) = parent.said
        assert type(failure) is expected
        assert str(raised) in str(failure)
        assert "in fail" in pickle.loads(pickle.dumps(failure)).__notes__[0]  # the traceback, as the parent hears it
        if expected is RunFailed:
            assert type(raised).__name__ in str(failure)
            assert "(labelemb/experiments/workers.py:" in str(failure)


def test_the_traceback_of_a_worker_is_shown_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "digits", *SMALL, "--runs", "1", "--modes", "baseline", "--jobs", "1", "--quiet"]
    assert cli.run([*arguments, "optimizer.lr=1e30", "--output", str(tmp_path), "--traceback"]) == 1
    *before, line = capsys.readouterr().err.splitlines()
    assert any("in training_row" in text for text in before)
    assert "FloatingPointError: the training loss became" in line


def test_a_full_disk_is_told_with_the_file_and_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Parent], None]
) -> None:
    fsync = os.fsync

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").rpartition("/")[2].startswith(".state.json"):
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    job = small_job(tmp_path)
    parent = Parent(job)
    work(parent)
    path = job.folder.checkpoints / ".partial-00000012" / "state.json"
    (failure,) = parent.said
    assert str(failure) == (f"{job.folder.path}: no space left for {path}: free some, then give the same command again")


@pytest.mark.parametrize(("variable", "expected"), [("1", 1), (None, 3)])
def test_a_worker_takes_the_threads_that_the_environment_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Parent], None],
    variable: str | None,
    expected: int,
) -> None:
    monkeypatch.setattr(workers, "num_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)  # what torch has made of the variable, where there is one
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    job = small_job(tmp_path, "epochs=1")
    work(Parent(job))
    assert job.folder.environment["threads"] == expected


def test_a_worker_takes_runs_until_there_are_none(tmp_path: Path, work: Callable[[Parent], None]) -> None:
    jobs = [small_job(tmp_path, seed=seed) for seed in (0, 1)]
    parent = Parent(*jobs)
    work(parent)
    assert parent.said == [None, None]
    assert all(job.folder.is_finished for job in jobs)


LONG = "epochs=4000"


def start(output: Path, *arguments: str, patch: str = "") -> "subprocess.Popen[str]":
    """`labelemb compare digits`, a real command in a group of processes of its own; `patch` is run in workers too."""
    script = output / "command.py"
    script.write_text(f"{patch}\nif __name__ == '__main__':\n    from labelemb.__main__ import main\n    main()\n")
    command = [sys.executable, str(script), "compare", "digits", *SMALL, *arguments, "--output", str(output)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_until(happened: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_comparison_leaves_checkpoints_and_no_process(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A real command, stopped as Ctrl-C and batch systems do: the signal reaches every process of the group."""
    process = start(tmp_path, LONG, "--runs", "1", "--modes", "baseline,emb", "--jobs", "2", "--quiet")
    folders = [RunFolder.at(tmp_path, "digits", mode, 0) for mode in ("baseline", "emb")]
    wait_until(lambda: all(folder.metrics for folder in folders), process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)  # which ends when the last process that could write there has ended
    assert process.returncode == code
    assert errors.splitlines() == [f"labelemb: stopped by {number.name}; the run can be resumed"]
    for folder in folders:
        assert len(list(folder.checkpoints.glob("step-*"))) == 1


# In place of `finish` or of the last evaluation: says that it is there, and takes its time.
SLOW = """
import time
from labelemb.classify.task import ClassifyTask
def slow(task, *_):
    (task.folder.path / "there").touch()
    time.sleep(3)
    return {{}}
ClassifyTask.{} = slow
"""


@pytest.mark.parametrize("moment", ["evaluate_epoch", "finish"])
def test_a_stop_after_the_last_step_starts_no_other_run(tmp_path: Path, moment: str) -> None:
    arguments = ["epochs=1", "--runs", "2", "--modes", "baseline", "--jobs", "1", "--quiet"]
    process = start(tmp_path, *arguments, patch=SLOW.format(moment))
    first, second = (RunFolder.at(tmp_path, "digits", "baseline", seed) for seed in (0, 1))
    wait_until((first.path / "there").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines() == ["labelemb: stopped by SIGINT; the run can be resumed"]
    assert process.returncode == 130
    assert [path.name for path in first.checkpoints.glob("step-*")] == ["step-00000004"]
    assert not second.path.exists()


FAILS_BESIDE_A_SLOW_ONE = """
import time
from labelemb.classify.task import ClassifyTask
def fail_or_wait(task):
    there = task.folder.path.parent / "seed-01" / "there"
    if task.settings.seed == 0:
        while not there.exists():
            time.sleep(0.02)
        raise RuntimeError("no luck")
    there.touch()
    time.sleep(3)
ClassifyTask.finish = fail_or_wait
"""


def test_a_failed_run_leaves_its_siblings_no_other(tmp_path: Path) -> None:
    arguments = ["epochs=1", "--runs", "3", "--modes", "baseline", "--jobs", "2", "--quiet"]
    process = start(tmp_path, *arguments, patch=FAILS_BESIDE_A_SLOW_ONE)
    _, errors = process.communicate(timeout=120)
    folders = [RunFolder.at(tmp_path, "digits", "baseline", seed) for seed in (0, 1, 2)]
    assert not folders[2].path.exists()
    (line,) = errors.splitlines()
    assert line.startswith(f"labelemb: {folders[0].path}: RuntimeError: no luck (labelemb/training/engine.py:")
    assert process.returncode == 1


KILLED = """
import os, signal
from labelemb.classify.task import ClassifyTask
batches = ClassifyTask.batches
def killed(task, epoch, first):
    if task.settings.seed == 0 and epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return batches(task, epoch, first)
ClassifyTask.batches = killed
"""


def test_a_killed_worker_is_told_with_its_run_and_the_others_stop(tmp_path: Path) -> None:
    arguments = [LONG, "--runs", "2", "--modes", "baseline", "--jobs", "2", "--quiet"]
    process = start(tmp_path, *arguments, patch=KILLED)
    _, errors = process.communicate(timeout=120)
    killed, other = (RunFolder.at(tmp_path, "digits", "baseline", seed) for seed in (0, 1))
    assert errors.splitlines() == [
        f"labelemb: {killed.path}: its process ended by SIGKILL; the same command goes on with the runs that are left"
    ]
    assert process.returncode == 1
    assert not other.is_finished


def test_into_a_file_each_loss_and_each_run_that_ends_is_a_line(tmp_path: Path) -> None:
    execute(small_job(tmp_path, mode="baseline"))  # done before, so no line
    process = start(tmp_path, "--runs", "2", "--modes", "baseline,emb", "--jobs", "1")
    _, errors = process.communicate(timeout=120)
    error = {
        (mode, seed): RunFolder.at(tmp_path, "digits", mode, seed).metrics[-1]["test_error"]
        for mode, seed in (("emb", 0), ("baseline", 1), ("emb", 1))
    }
    baseline, emb, *lines = errors.splitlines()
    assert baseline == "baseline: H(y, p)"
    assert emb.startswith("emb: 0.5*H(y, p) + 0.5*H(e_y, p)")
    assert lines == [
        f"digits {mode} seed {seed}: test error {100 * value:.2f} % ({number} of 4 runs)"
        for number, ((mode, seed), value) in enumerate(error.items(), start=2)
    ]


def test_a_quiet_comparison_says_nothing_of_its_runs(tmp_path: Path) -> None:
    process = start(tmp_path, "--runs", "1", "--modes", "baseline", "--jobs", "1", "--quiet")
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


def test_a_worker_ends_when_its_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def join(self) -> None:
            """At once."""

    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    monkeypatch.setattr(workers, "parent_process", Gone)
    workers._end_with_parent()
    signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_a_stopped_worker_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Parent], None]
) -> None:
    take_step = Loop.take_step

    def interrupted(self: Loop, batch: tuple[Any, ...]) -> None:
        take_step(self, batch)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loop, "take_step", interrupted)
    jobs = [small_job(tmp_path, seed=seed) for seed in (0, 1)]
    parent = Parent(*jobs)
    work(parent)
    assert not parent.said
    assert jobs[0].folder.checkpoints.is_dir()
    assert not jobs[1].folder.exists  # it took no other run
    with pytest.raises(Stopped):
        execute(jobs[1])
