"""The runs of equal tuning: planned from a grid, judged by their folders, and tuning.json, which says what was chosen.

    {"modes": {"smoothing": {"judged_by": "valid_error", "epoch": "last", "grid": {"smoothing.epsilon": [0.1, 0.3]},
      "points": [{"settings": {...}, "values": [0.02, 0.03], "mean": 0.025, "std": 0.007}, ...],
      "chosen": {"smoothing.epsilon": 0.1}, "at_edge": ["smoothing.epsilon"], "runs": 2, "seconds": 31.5}}}

No run of tuning evaluates the test set; where the recipe holds out no training images, a tenth of them is held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelemb.errors import InputError, RunFailed
from labelemb.experiments.job import Job, plan
from labelemb.experiments.tuning import (
    Grid,
    Judged,
    Point,
    Rule,
    at_edge,
    check_grid,
    choice,
    folder_name,
    overrides_of,
    points,
    rule,
)
from labelemb.files import read_json, write_json
from labelemb.run_folder import TUNING_FILE, RunFolder, missing_rows
from labelemb.settings.config import MOST_RUNS, LabelingSettings, describe
from labelemb.settings.recipe import Comparison
from labelemb.settings.variants import Variant

HELD_OUT = 0.1


@dataclass(frozen=True)
class Trials:
    """The points of one mode or variant, each with its jobs in order of their seeds."""

    name: str
    points: list[Point]
    jobs: list[list[Job]]
    """Empty where there is nothing to choose: one point alone."""
    rule: Rule


def plan_tuning(
    comparison: Comparison, grid: Grid, num_runs: int, output: Path, *, download: bool = False
) -> list[Trials]:
    """The runs of tuning of every mode or variant.

    Raises:
        InputError: a key or a value of the grid cannot be; a folder holds a run of other settings.
    """
    if not 1 <= num_runs <= MOST_RUNS:
        raise InputError(f"--tune-runs {num_runs}: expected at least 1, at most {MOST_RUNS:,}")
    check_grid(grid, comparison.variants, (key for key, _, _ in describe(comparison.first)))
    return [
        _trials(comparison, variant, points(grid, variant), num_runs, output, download)
        for variant in comparison.variants
    ]


def _trials(
    comparison: Comparison, variant: Variant, tried: list[Point], num_runs: int, output: Path, download: bool
) -> Trials:
    def job(point: Point, seed: int) -> Job:
        more = [*overrides_of(point), *_held_out(comparison), f"tuning='{folder_name(point)}'"]
        return plan(comparison.settings(variant, seed, more), output, resume=True, download=download)

    jobs = [[job(point, seed) for seed in range(num_runs)] for point in tried] if len(tried) > 1 else []
    return Trials(variant.name, tried, jobs, rule(comparison.first))


def _held_out(comparison: Comparison) -> list[str]:
    first = comparison.first
    if isinstance(first, LabelingSettings) and not first.data.validation:
        return [f"data.validation={HELD_OUT}"]
    return []


def record(trials: Trials) -> dict[str, Any]:
    """What tuning.json says of one mode, read from the folders of its runs, which are finished.

    Raises:
        InputError: a run has lost rows.
        RunFailed: no point is without a run whose loss became infinite.
    """
    values = [[value_of(job.folder, trials.rule) for job in jobs] for jobs in trials.jobs]
    judged = [Judged(point, each) for point, each in zip(trials.points, values, strict=False)]
    chosen = choice(judged, higher_is_better=trials.rule.higher_is_better) if judged else trials.points[0]
    if chosen is None:
        raise RunFailed(
            f"{trials.name}: at every point of --tune a run's loss became infinite: give lower optimizer.lr"
        )
    return {
        "judged_by": trials.rule.column,
        "epoch": "best" if trials.rule.of_best_epoch else "last",
        "grid": {key: _distinct([point[key] for point in trials.points]) for key in trials.points[0]},
        "points": [
            {"settings": each.point, "values": each.values, "mean": each.mean, "std": each.std} for each in judged
        ],
        "chosen": chosen,
        "at_edge": at_edge(chosen, judged),
        "runs": sum(map(len, trials.jobs)),
        "seconds": sum(_seconds(job.folder) for jobs in trials.jobs for job in jobs),
    }


def value_of(folder: RunFolder, rule: Rule) -> float | None:
    """What a finished run of tuning is judged by; None where its loss became infinite.

    Raises:
        InputError: rows are lost.
    """
    rows = folder.metrics
    if folder.environment.get("diverged") is not None:
        return None
    missing = missing_rows(rows, folder.config["epochs"])
    if missing:
        raise InputError(f"{folder.path / 'metrics.jsonl'}: {missing}: remove the run's folder and tune again")
    values = [row.get(rule.column) for row in (rows if rule.of_best_epoch else rows[-1:])]
    present = [float(value) for value in values if value is not None]
    if not present:
        return None
    return max(present) if rule.higher_is_better else min(present)


def write_records(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    """Write tuning.json into a recipe's folder; what it says of other modes stays."""
    before = read_json(folder / TUNING_FILE).get("modes", {})
    write_json(folder / TUNING_FILE, {"modes": before | records})


def _seconds(folder: RunFolder) -> float:
    """Of training, without evaluation."""
    return sum(float(row.get("seconds") or 0) for row in folder.metrics)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]
