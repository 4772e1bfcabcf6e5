"""From a recipe to run folders: one run, or modes x seeds, in this process or several."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from labelemb.experiments.tasks import TASKS
from labelemb.files import describe_lack_of_space, is_out_of_space
from labelemb.run_folder import TIMING_CONDITIONS, RunFolder
from labelemb.settings.config import InputError, Settings, plain
from labelemb.settings.recipe import parse_settings
from labelemb.settings.which_run import differences
from labelemb.training.stopping import Stopped, StopSignals


class RunFailed(Exception):  # noqa: N818
    """A run that could not be done, for no fault of its input."""


@dataclass(frozen=True)
class Job:
    """One run to do: its settings and its folder."""

    settings: Settings
    folder: RunFolder
    download: bool = False


class Standing(NamedTuple):
    """How far a comparison is."""

    finished: list[Job]
    running: int
    total: int
    progress: float  # share of all epochs done, in [0, 1]


def plan(settings: Settings, output: Path, *, resume: bool, download: bool = False) -> Job:
    """A job for one run, after checking what its folder already holds.

    Raises:
        InputError: the folder holds a run of other settings, a finished run, or an unfinished one and `resume` is off.
    """
    folder = RunFolder.at(output, settings.recipe, settings.name, settings.seed)
    if folder.exists:
        check_same_run(folder, settings)
        if not resume:
            state = "a finished" if folder.is_finished else "an unfinished"
            raise InputError(f"{folder.path} holds {state} run: pass --resume to go on with it, or another --output")
    elif any(folder.checkpoints.glob("step-*")):
        raise InputError(f"{folder.path} holds checkpoints but no config.yaml: remove it, or choose another --output")
    return Job(settings, folder, download)


def check_same_run(folder: RunFolder, settings: Settings) -> None:
    """Raise InputError, with the first key that differs, unless `folder` is a run of these settings."""
    there = parse_settings(folder.config, str(folder.path / "config.yaml"))  # settings that came later have defaults
    difference = next(differences(plain(there), plain(settings)), None)
    if difference is not None:
        key, found, asked = difference
        raise InputError(f"{folder.path} was run with {key}={found}, not {key}={asked}: choose another --output")


def execute(
    job: Job, report: Callable[[int, int, str], None] = lambda done, planned, message: None, at_a_time: int = 1
) -> None:
    """Do one run, from its last checkpoint where it has one. A finished run is left as it is, but for what to show.

    Args:
        job: the run.
        report: as for `labelemb.training.engine.train`.
        at_a_time: how many runs share the machine, this one counted; recorded, as it decides how long an epoch takes.
    """
    if job.folder.is_finished:
        _show_as_asked(job)
        return
    from labelemb.training.device import choose_device, describe_environment, now
    from labelemb.training.engine import train
    from labelemb.training.optimizers import planned_soft_after

    device = choose_device(job.settings.device)
    task = TASKS[job.settings.task].make(job.settings, job.folder, device, job.download)
    planned_soft_after(job.settings, task.num_batches)  # refused before there is a folder of these settings
    with job.folder.held():
        found = RunFolder(job.folder.path)  # read anew: another process may have been here while the data were read
        if found.exists:
            check_same_run(found, job.settings)
        if found.is_finished:
            return
        environment = describe_environment(device) | {"jobs": at_a_time}
        before = job.folder.environment  # of an unfinished run, which is resumed
        if before:
            environment |= _resumed(before, environment)
        job.folder.write_config(plain(job.settings))
        job.folder.write_environment(environment)
        train(task, job.settings, job.folder, report, _say)
        job.folder.write_environment(environment | {"end": now()})


def _resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run keeps of its earlier environment: its start, and conditions that were not those of now."""
    kept: dict[str, Any] = {
        "start": before.get("start", now["start"]),
        "resumed": [*before.get("resumed", []), now["start"]],
    }
    found = {key: {*before.get("earlier", {}).get(key, []), before.get(key)} for key in TIMING_CONDITIONS}
    earlier = {key: sorted(others) for key, values in found.items() if (others := values - {now[key], None})}
    return kept | ({"earlier": earlier} if earlier else {})


def _show_as_asked(job: Job) -> None:
    """Let a finished run say what is to be shown of it, as asked now: that is no part of what was done."""
    asked = plain(job.settings)["report"]
    if job.folder.config.get("report") != asked:
        job.folder.write_config(job.folder.config | {"report": asked})


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def execute_all(jobs: list[Job], num_workers: int, report: Callable[[Standing], None]) -> None:
    """Do many runs, `num_workers` at a time, each worker a process; `report` is called about three times a second.

    Raises:
        Stopped: a signal came; the runs in work have written checkpoints.
        InputError, RunFailed: what the first run that failed said; the others in work have written checkpoints.
    """
    waiting = deque(_unfinished(jobs))
    num_workers = min(num_workers, len(waiting))
    report(standing(jobs))
    with StopSignals() as stop:
        workers: list[_Worker] = []
        try:
            with _interrupts_held_back():
                for _ in range(num_workers):
                    workers.append(_Worker(num_workers))
            for worker in workers:
                worker.take_from(waiting)
            while stop.signal_number is None and (busy := [worker for worker in workers if worker.job is not None]):
                heard = wait([worker.connection for worker in busy], timeout=0.3)
                for worker in busy:
                    if worker.connection in heard and stop.signal_number is None:  # else it may be stopped, too
                        worker.hear()
                        worker.take_from(waiting)
                report(standing(jobs))
        finally:  # no worker gets another run: not after a signal, nor after another one's failure
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.wait()
    if stop.signal_number is not None:
        raise Stopped(stop.signal_number)


def _unfinished(jobs: list[Job]) -> Iterator[Job]:
    for job in jobs:
        if job.folder.is_finished:
            _show_as_asked(job)
        else:
            yield job


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start workers deaf to Ctrl-C from their first moment: a blocked signal is inherited, and not lost here."""
    ensure_running()  # multiprocessing's own helper: where it starts first with a worker, it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process that does the runs it is handed, seen from the parent. There is no lock that a dead one could hold."""

    def __init__(self, num_workers: int) -> None:
        context = get_context("spawn")  # a fork would copy the threads' locks of torch
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, num_workers))
        self.process.start()
        theirs.close()  # now the worker alone has it: when it dies, whatever the cause, the connection ends

    def take_from(self, waiting: deque[Job]) -> None:
        """Hand over the next run; where there is none, the worker ends."""
        self.job = waiting.popleft() if waiting else None
        if self.job is None:
            self.connection.close()
            return
        with suppress(BrokenPipeError):  # it is dead, which `hear` tells
            self.connection.send(self.job)

    def hear(self) -> None:
        """Hear that the run came to its end; raise what went wrong in it, or that the worker died."""
        try:
            failure = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            assert self.job is not None
            raise RunFailed(
                f"{self.job.folder.path}: its process ended {_how(self.process.exitcode)}; the same command goes on "
                "with the runs that are left"
            ) from None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        if self.job is not None:
            self.process.terminate()

    def wait(self) -> None:
        self.process.join()
        self.process.close()
        self.connection.close()


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"by {signal.Signals(-exit_code).name}"
    return f"with exit code {exit_code}"


def _work(jobs: Connection, num_workers: int) -> None:
    """One worker process: does the runs that come, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent passes it on as SIGTERM
    Thread(target=_end_with_parent, daemon=True).start()
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // num_workers))
    while (job := _next(jobs)) is not None:
        try:
            execute(job, at_a_time=num_workers)
        except Stopped:
            return
        except Exception as error:
            jobs.send(_failure(job, error))
            return
        jobs.send(None)


def _next(jobs: Connection) -> Job | None:
    try:
        job: Job = jobs.recv()
    except EOFError:
        return None
    return job


def _failure(job: Job, error: Exception) -> InputError | RunFailed:
    if isinstance(error, ValueError | FileNotFoundError):  # input, as in the command line
        return InputError(str(error))
    if is_out_of_space(error):
        return RunFailed(f"{job.folder.path}: {describe_lack_of_space(error)}, then give the same command again")
    return RunFailed(f"{job.folder.path}: {type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """Stop when the parent was killed: else the next comparison would meet this worker in the same folders."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def standing(jobs: list[Job]) -> Standing:
    """How far these runs are, read from their folders: workers need tell nothing."""
    finished = [job.folder.is_finished for job in jobs]
    shares = [
        1.0 if done else len(job.folder.metrics) / job.settings.epochs for job, done in zip(jobs, finished, strict=True)
    ]
    running, progress = sum(0 < share < 1 for share in shares), sum(shares) / len(jobs)
    return Standing([job for job, done in zip(jobs, finished, strict=True) if done], running, len(jobs), progress)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
