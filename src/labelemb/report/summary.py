"""Run folders read into one comparison, and what summary.json holds of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from labelemb.errors import InputError, input_errors
from labelemb.losses.catalogue import MODES
from labelemb.report import stats
from labelemb.report.damage import check_config, check_evaluation
from labelemb.report.metric import METRICS, Measure, Metric
from labelemb.run_folder import RunFolder, find_runs, missing_rows
from labelemb.settings.which_run import Between, differences


class Run:
    """One run folder, read once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.config = folder.config
        for key in ("recipe", "mode", "seed"):
            if key not in self.config:
                raise InputError(f"{folder.path / 'config.yaml'} is damaged: it has no `{key}`")
        self.recipe, self.mode = str(self.config["recipe"]), str(self.config["mode"])
        self.name = str(self.config.get("variant") or self.mode)  # a mode may be in a comparison under two names
        with input_errors(f"{folder.path / 'config.yaml'} is damaged: seed: "):
            self.seed = int(str(self.config["seed"]))
        check_config(folder.path / "config.yaml", self.config)
        self.rows = folder.metrics
        self.evaluation = folder.evaluation
        check_evaluation(folder.path / "evaluation.json", self.evaluation)
        self.environment = folder.environment
        metric = str(self.config.get("metric", "test_error"))
        if metric not in METRICS:
            raise InputError(f"{folder.path / 'config.yaml'}: metric is one of {', '.join(METRICS)}, not {metric}")
        self.metric = METRICS[metric]

    def curve(self, column: str) -> dict[int, float]:
        """epoch -> value of `column`; epochs without a finite value are left out."""
        return {int(row["epoch"]): float(row[column]) for row in self.rows if row.get(column) is not None}

    @property
    def has_ended(self) -> bool:
        return self.environment.get("end") is not None

    @property
    def damage(self) -> str:
        """What a run that came to its end has lost of its rows since, in words; empty for all others.

        Its last row would stand for it in the table: after a loss, that is the row of an earlier epoch.
        """
        epochs = self.config.get("epochs")
        missing = missing_rows(self.rows, epochs) if self.has_ended and isinstance(epochs, int) else ""
        return f"{self.folder.path / 'metrics.jsonl'}: {missing}" if missing else ""

    @cached_property
    def final(self) -> float | None:
        """The number this run stands for; None while it is unfinished, or where it is damaged."""
        return self.measured(self.metric.name) if self.has_ended and not self.damage else None

    @property
    def test_scores(self) -> dict[str, float]:
        scores = self.evaluation.get("test") or {}
        return {name: float(score) for name, score in scores.items() if isinstance(score, int | float)}

    def measured(self, column: str) -> float | None:
        """What the run has reached: the test score of its best checkpoint, or the value in its last row.

        A column PART.KEY is what evaluation.json has under KEY of PART.
        """
        part, _, key = column.partition(".")
        if key:
            return self._evaluated(part, key)
        if self.metric.is_test_score:
            return self.test_scores.get(column)
        value = self.rows[-1].get(column) if self.rows else None
        with input_errors(f"{self.folder.path / 'metrics.jsonl'} is damaged: {column}: "):
            return None if value is None else float(value)

    def _evaluated(self, part: str, key: str) -> float | None:
        values = self.evaluation.get(part)
        value = values.get(key) if isinstance(values, dict) else values
        if value is not None and not isinstance(value, int | float):
            path = self.folder.path / "evaluation.json"
            raise InputError(f"{path} is damaged: expected numbers under {part}, got {value!r} as {key}")
        return value


@dataclass(frozen=True)
class Results:
    """Runs of one recipe: finished ones by name (baseline first) in order of seed, those under way, damaged ones."""

    folders: list[Path]
    """What was read."""
    recipe: str
    metric: Metric
    groups: dict[str, list[Run]]
    """A run's name is that of its mode, or of its variant of a mode."""
    unfinished: list[Run]
    damaged: list[Run]

    @property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.groups.values() for run in runs] + self.unfinished + self.damaged

    @property
    def names(self) -> list[str]:
        """Of all runs, in the order of tables."""
        return list(dict.fromkeys(run.name for run in sorted(self.all_runs, key=_place)))

    @property
    def names_by_table(self) -> list[str]:
        """Of the groups, those whose mode has a label table first."""
        with_table = [name for name, runs in self.groups.items() if _has_table(runs[0].mode)]
        return list(dict.fromkeys([*with_table, *self.groups]))

    @property
    def baseline(self) -> str | None:
        """The group that all others are held against: that named baseline, else the one whose mode it is."""
        names = {run.name for run in self.all_runs if "baseline" in (run.name, run.mode)}
        if len(names) > 1:
            names &= {"baseline"}
        return next((name for name in names if name in self.groups), None)

    @property
    def measures(self) -> list[Measure]:
        """What the runs measured beside their metric."""
        scores = dict.fromkeys(score for run in self.all_runs for score in run.test_scores)
        others = [Measure(score, score) for score in scores if score != self.metric.name]
        return [*self.metric.measures, *others]

    def finals(self, name: str) -> dict[int, float]:
        """seed -> final value."""
        return {run.seed: run.final for run in self.groups.get(name, []) if run.final is not None}

    def difference(self, name: str) -> stats.Difference:
        """The group minus the baseline, paired by seed."""
        return stats.paired_difference(self.finals(name), self.finals(self.baseline or ""))

    @property
    def target(self) -> float | None:
        """What "as good as the baseline" means: its mean final value, for text its mean best development score."""
        if not self.metric.is_test_score:
            return stats.mean(list(self.finals(self.baseline or "").values()))
        best = max if self.metric.higher_is_better else min
        curves = [run.curve(self.metric.curve) for run in self.groups.get(self.baseline or "", [])]
        return stats.mean([best(curve.values()) for curve in curves if curve])

    def arrival(self, name: str) -> int | None:
        """The epoch at which the mean over the group's runs first is as good as the baseline."""
        if self.target is None:
            return None
        curves = [run.curve(self.metric.curve) for run in self.groups[name]]
        return stats.first_arrival(curves, self.target, higher_is_better=self.metric.higher_is_better)


def read_results(folders: Sequence[Path]) -> Results:
    """All runs at or below `folders`, merged by name and seed. A folder met twice counts once.

    Raises:
        InputError: no runs, a damaged file, two recipes, two runs of one name and seed, or two runs of one name that
            were trained with different settings.
    """
    runs: dict[tuple[str, int], Run] = {}
    first_of_name: dict[str, Run] = {}
    for run in _distinct_runs(folders):
        _check_recipe(next(iter(runs.values()), run), run)
        _check_settings(first_of_name.setdefault(run.name, run), run)
        other = runs.setdefault((run.name, run.seed), run)
        if other is not run:
            raise InputError(
                f"{other.folder.path} and {run.folder.path} are both {run.name} with seed {run.seed}: give one"
            )
    if not runs:
        raise InputError(f"no runs (folders with a config.yaml) in {', '.join(map(str, folders))}")
    ordered = sorted(runs.values(), key=_place)
    groups: dict[str, list[Run]] = {}
    for run in ordered:
        if run.final is not None:
            groups.setdefault(run.name, []).append(run)
    damaged = [run for run in ordered if run.damage]
    unfinished = [run for run in ordered if run.final is None and not run.damage]
    return Results(list(folders), ordered[0].recipe, ordered[0].metric, groups, unfinished, damaged)


def summary(results: Results) -> dict[str, Any]:
    """The contents of summary.json: rates as fractions, None where one run cannot tell."""
    modes = {}
    for name, runs in results.groups.items():
        final = list(results.finals(name).values())
        modes[name] = {
            "seeds": [run.seed for run in runs],
            "final": final,
            "mean": stats.mean(final),
            "std": stats.standard_deviation(final),
            "seconds_per_epoch": seconds_per_epoch(runs),
        }
    from_baseline = {}
    for name in results.groups:
        if results.baseline not in (None, name):
            from_baseline[name] = results.difference(name).as_json()
    return {"recipe": results.recipe, "metric": results.metric.name, "modes": modes, "differences": from_baseline}


def seconds_per_epoch(runs: Sequence[Run]) -> float | None:
    """Mean over runs of the median epoch: the first one may hold a compilation, any one another program's load."""
    return stats.mean([median(seconds.values()) for run in runs if (seconds := run.curve("seconds"))])


def _distinct_runs(folders: Sequence[Path]) -> Iterator[Run]:
    seen: set[Path] = set()
    for folder in folders:
        found = list(find_runs(folder))
        if not found:
            raise InputError(f"no runs (folders with a config.yaml) in {folder}")
        found = [run for run in found if run.config.get("tuning") is None]
        if not found:
            raise InputError(f"{folder} holds runs of tuning alone, which never saw the test set: give the final runs")
        for run in found:
            if run.path.resolve() not in seen:
                seen.add(run.path.resolve())
                yield Run(run)


def _check_recipe(first: Run, run: Run) -> None:
    for what, one, other in (("recipe", first.recipe, run.recipe), ("metric", first.metric.name, run.metric.name)):
        if one != other:
            raise InputError(f"{first.folder.path} has {what} {one}, {run.folder.path} has {other}: report them apart")


def _check_settings(first: Run, run: Run) -> None:
    unlike = next(differences(first.config, run.config, Between.SEEDS), None)
    if unlike is not None:
        key, one, other = unlike
        raise InputError(
            f"runs of mode {run.name} were trained with different settings: {key} is {one} in "
            f"{first.folder.path} and {other} in {run.folder.path}"
        )


def _place(run: Run) -> tuple[int, bool, str, int]:
    """In tables: by the mode's place in the catalogue, a mode before its variants, by name, by seed."""
    rank = list(MODES).index(run.mode) if run.mode in MODES else len(MODES)
    return rank, run.name != run.mode, run.name, run.seed


def _has_table(mode: str) -> bool:
    return mode in MODES and MODES[mode].has_table
