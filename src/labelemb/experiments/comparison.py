"""Modes x seeds: the settings of every run of a comparison, and how far its runs are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from labelemb.experiments.job import Job
from labelemb.settings.config import TABLE_MODES, InputError, Settings
from labelemb.settings.recipe import load_recipe


class Standing(NamedTuple):
    """How far a comparison is."""

    finished: list[Job]
    running: int
    total: int
    progress: float  # share of all epochs done, in [0, 1]


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


def standing(jobs: list[Job]) -> Standing:
    """How far these runs are, read from their folders: workers need tell nothing."""
    finished = [job.folder.is_finished for job in jobs]
    shares = [
        1.0 if done else len(job.folder.metrics) / job.settings.epochs for job, done in zip(jobs, finished, strict=True)
    ]
    running, progress = sum(0 < share < 1 for share in shares), sum(shares) / len(jobs)
    return Standing([job for job, done in zip(jobs, finished, strict=True) if done], running, len(jobs), progress)
