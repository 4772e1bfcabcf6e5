"""From a recipe to run folders: one run, or modes x seeds, in this process or several."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue, SimpleQueue
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from labelemb.config import TABLE_MODES, ClassifySettings, InputError, Settings, differences, plain
from labelemb.recipe import load_recipe, parse_settings
from labelemb.run import RunFolder
from labelemb.stopping import Stopped, StopSignals


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

    finished: int
    running: int
    total: int
    progress: float  # share of all epochs done, in [0, 1]


def plan(settings: Settings, output: Path, *, resume: bool, download: bool = False) -> Job:
    """A job for one run, after checking what its folder already holds.

    Raises:
        InputError: the folder holds a run of other settings, a finished run, or an unfinished one and `resume` is off.
    """
    folder = RunFolder.at(output, settings.recipe, settings.mode, settings.seed)
    if folder.exists:
        check_same_run(folder, settings)
        if not resume:
            state = "a finished" if folder.is_finished else "an unfinished"
            raise InputError(f"{folder.path} holds {state} run: pass --resume to go on with it, or another --output")
    elif any(folder.checkpoints.glob("step-*")):
        raise InputError(f"{folder.path} holds checkpoints but no config.yaml: remove it, or choose another --output")
    return Job(settings, folder, download)


def plan_all(recipe: str, overrides: Sequence[str], options: Mapping[str, Any]) -> list[Settings]:
    """The settings of every run of a comparison: each mode with each seed, seeds outermost.

    Args:
        recipe, overrides, options: as for `load_recipe`; a label table goes to the modes that use one.

    Raises:
        InputError: as `load_recipe`.
    """
    table = options.get("loss.table")
    shared = {key: value for key, value in options.items() if key != "loss.table"}
    first = load_recipe(recipe, overrides, shared | {"mode": "baseline"})
    modes = first.compare.modes
    if table is not None and not set(modes) & set(TABLE_MODES):
        raise InputError(f"--table {table}: none of the modes {', '.join(modes)} uses one; {', '.join(TABLE_MODES)} do")
    return [
        load_recipe(
            recipe,
            overrides,
            shared | {"mode": mode, "seed": seed, "loss.table": table if mode in TABLE_MODES else None},
        )
        for seed in range(first.compare.runs)
        for mode in modes
    ]


def check_same_run(folder: RunFolder, settings: Settings) -> None:
    """Raise InputError, with the first key that differs, unless `folder` is a run of these settings."""
    there = parse_settings(folder.config, str(folder.path / "config.yaml"))  # settings that came later have defaults
    difference = next(differences(plain(there), plain(settings)), None)
    if difference is not None:
        key, found, asked = difference
        raise InputError(f"{folder.path} was run with {key}={found}, not {key}={asked}: choose another --output")


def execute(job: Job, report: Callable[[int, int, str], None] = lambda done, planned, message: None) -> None:
    """Do one run, from its last checkpoint where it has one. A finished run is left as it is, but for what to show."""
    if job.folder.is_finished:
        _show_as_asked(job)
        return
    from labelemb.device import choose_device, describe_environment, now
    from labelemb.engine import planned_soft_after, train

    device = choose_device(job.settings.device)
    task = _make_task(job, device)
    planned_soft_after(job.settings, task.num_batches)  # refused before there is a folder of these settings
    with job.folder.held():
        found = RunFolder(job.folder.path)  # read anew: another process may have been here while the data were read
        if found.exists:
            check_same_run(found, job.settings)
        if found.is_finished:
            return
        environment = describe_environment(device)
        before = job.folder.environment  # of an unfinished run, which is resumed
        if before:
            environment |= {
                "start": before.get("start", environment["start"]),
                "resumed": [*before.get("resumed", []), environment["start"]],
            }
        job.folder.write_config(plain(job.settings))
        job.folder.write_environment(environment)
        train(task, job.settings, job.folder, report)
        job.folder.write_environment(environment | {"end": now()})


def _show_as_asked(job: Job) -> None:
    """Let a finished run say what is to be shown of it, as asked now: that is no part of what was done."""
    asked = plain(job.settings)["report"]
    if job.folder.config.get("report") != asked:
        job.folder.write_config(job.folder.config | {"report": asked})


def _make_task(job: Job, device: Any) -> Any:
    if isinstance(job.settings, ClassifySettings):
        from labelemb.classify.data import load_images
        from labelemb.classify.task import ClassifyTask

        return ClassifyTask(job.settings, load_images(job.settings.data, download=job.download), device, job.folder)
    from labelemb.text.task import TextTask

    return TextTask(job.settings, device, job.folder)


def execute_all(jobs: list[Job], num_workers: int, report: Callable[[Standing], None]) -> None:
    """Do many runs, `num_workers` at a time, each worker a process; `report` is called about three times a second.

    Raises:
        Stopped: a signal came; the runs in work have written checkpoints.
        InputError, RunFailed: what the first run that failed said; the others in work have written checkpoints.
    """
    context = get_context("spawn")  # a fork would copy the threads' locks of torch
    todo, failures = context.Queue(), context.SimpleQueue()
    unfinished = []
    for job in jobs:
        if job.folder.is_finished:
            _show_as_asked(job)
        else:
            unfinished.append(job)
    num_workers = min(num_workers, len(unfinished))
    for item in [*unfinished, *[None] * num_workers]:
        todo.put(item)
    threads = max(1, num_cores() // max(1, num_workers))
    workers = [context.Process(target=_work, args=(todo, failures, threads)) for _ in range(num_workers)]
    with StopSignals() as stop:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers) and failures.empty() and stop.signal_number is None:
            report(standing(jobs))
            time.sleep(0.3)
        if not failures.empty() or stop.signal_number is not None:
            for worker in workers:
                worker.terminate()
        for worker in workers:
            worker.join()
        todo.cancel_join_thread()
    if stop.signal_number is not None:
        raise Stopped(stop.signal_number)
    if not failures.empty():
        raise failures.get()
    if any(worker.exitcode for worker in workers):
        raise RunFailed(f"a worker process ended with exit code {max(abs(worker.exitcode or 0) for worker in workers)}")
    report(standing(jobs))


def _work(todo: "Queue[Job | None]", failures: "SimpleQueue[Exception]", threads: int) -> None:
    """One worker process: takes runs until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent passes it on as SIGTERM
    Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    while (job := todo.get()) is not None:
        try:
            execute(job)
        except Stopped:
            return
        except (ValueError, FileNotFoundError) as error:  # input, as in the command line
            failures.put(InputError(str(error)))
            return
        except Exception as error:
            failures.put(RunFailed(f"{job.folder.path}: {type(error).__name__}: {error}"))
            return


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
    running = sum(0 < share < 1 for share in shares)
    return Standing(sum(finished), running, len(jobs), sum(shares) / len(jobs))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
