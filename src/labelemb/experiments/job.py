"""One run: what is to do, whether its folder may take it, and doing it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labelemb.errors import InputError
from labelemb.experiments.tasks import TASKS
from labelemb.run_folder import TIMING_CONDITIONS, RunFolder
from labelemb.settings.config import Settings, plain
from labelemb.settings.recipe import parse_settings
from labelemb.settings.which_run import differences


@dataclass(frozen=True)
class Job:
    """One run to do: its settings and its folder."""

    settings: Settings
    folder: RunFolder
    download: bool = False


def plan(settings: Settings, output: Path, *, resume: bool, download: bool = False) -> Job:
    """A job for one run, after checking what its folder already holds.

    Raises:
        InputError: the folder holds a run of other settings, a finished run, or an unfinished one and `resume` is off.
    """
    folder = RunFolder.at(output, settings.recipe, settings.name, settings.seed, settings.tuning)
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
    found = parse_settings(folder.config, str(folder.path / "config.yaml"))  # settings that came later have defaults
    difference = next(differences(plain(found), plain(settings)), None)
    if difference is not None:
        key, before, now = difference
        raise InputError(f"{folder.path} was run with {key}={before}, not {key}={now}: choose another --output")


def execute(
    job: Job, progress: Callable[[int, int, str], None] = lambda done, planned, message: None, at_a_time: int = 1
) -> None:
    """Do one run, from its last checkpoint where it has one. A finished run is left as it is, but for what to show.

    Args:
        job: the run.
        progress: as for `labelemb.training.engine.train`.
        at_a_time: how many runs share the machine, this one counted; recorded, as it decides how long an epoch takes.
    """
    if job.folder.is_finished:
        show_as_asked(job)
        return
    from labelemb.training.device import choose_device, describe_environment, now
    from labelemb.training.engine import train
    from labelemb.training.optimizers import planned_soft_after
    from labelemb.training.processes import processes

    device = choose_device(job.settings.device)
    here = processes()
    make = partial(TASKS[job.settings.task].make, job.settings, job.folder, device, job.download)
    task = here.first_before_others(make)  # the first keeps decoded images, which the others then read
    planned_soft_after(job.settings, task.num_batches)  # refused before there is a folder of these settings
    if not here.is_first:
        train(task, job.settings, job.folder, progress, lambda line: None)
        return
    with job.folder.held():
        found = RunFolder(job.folder.path)  # read anew: another process may have been here while the data were read
        if found.exists:
            check_same_run(found, job.settings)
        if found.is_finished:
            return
        environment = describe_environment(device) | {"jobs": at_a_time, "processes": here.size}
        before = job.folder.environment  # of an unfinished run, which is resumed
        if before:
            environment |= _resumed(before, environment)
        job.folder.write_config(plain(job.settings))
        job.folder.write_environment(environment)
        try:
            train(task, job.settings, job.folder, progress, _say)
        except FloatingPointError as error:
            if job.settings.tuning is None:
                raise
            environment["diverged"] = str(error)  # no reason to stop: that is what the tuning is to find out
        job.folder.write_environment(environment | {"end": now()})


def _resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run keeps of its earlier environment: its start, and conditions that were not those of now."""
    kept: dict[str, Any] = {
        "start": before.get("start", now["start"]),
        "resumed": [*before.get("resumed", []), now["start"]],
    }
    found = {key: {*before.get("earlier", {}).get(key, []), before.get(key)} for key in TIMING_CONDITIONS}
    earlier = {key: sorted(others, key=str) for key, values in found.items() if (others := values - {now[key], None})}
    return kept | ({"earlier": earlier} if earlier else {})


def show_as_asked(job: Job) -> None:
    """Give a finished run the `report` settings asked for now: they change what is shown, not what was done."""
    asked = plain(job.settings)["report"]
    if job.folder.config.get("report") != asked:
        job.folder.write_config(job.folder.config | {"report": asked})


def _say(line: str) -> None:
    print(line, file=sys.stderr)
