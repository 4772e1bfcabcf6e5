"""Reads run folders into one comparison, and writes it down as summary.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from labelemb.errors import InputError, input_errors
from labelemb.report import stats
from labelemb.run_folder import RunFolder, find_runs, missing_rows

MODE_ORDER = ("baseline", "smoothing", "online-smoothing", "tfkd", "emb", "emb-start", "emb-frozen")

# Settings in which runs of one mode may differ: which run it is and where it ran, and what only reporting reads.
OF_THE_RUN = {"seed", "mode", "device", "data.path", "loss.table"}
OF_REPORTING = {"compare", "report", "description"}


class Metric(NamedTuple):
    """What runs are compared by: its heading, the column of metrics.jsonl that the curves show, its direction."""

    name: str
    title: str
    curve: str
    higher_is_better: bool
    scale: float  # from files to the page: rates are fractions there and percent here


METRICS = {
    metric.name: metric
    for metric in (
        Metric("test_error", "test error %", "test_error", False, 100.0),
        Metric("bleu", "BLEU", "valid_bleu", True, 1.0),
        Metric("rouge1", "ROUGE-1", "valid_rouge1", True, 1.0),
        Metric("rouge2", "ROUGE-2", "valid_rouge2", True, 1.0),
        Metric("rougeL", "ROUGE-L", "valid_rougeL", True, 1.0),
    )
}


class Run:
    """One run folder, read once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.config = folder.config
        for key in ("recipe", "mode", "seed"):
            if key not in self.config:
                raise InputError(f"{folder.path / 'config.yaml'} is damaged: it has no `{key}`")
        self.recipe, self.mode = str(self.config["recipe"]), str(self.config["mode"])
        with input_errors(f"{folder.path / 'config.yaml'} is damaged: seed: "):
            self.seed = int(self.config["seed"])
        self.rows = folder.metrics
        self.evaluation = folder.evaluation
        self.environment = folder.environment
        name = str(self.config.get("metric", "test_error"))
        if name not in METRICS:
            raise InputError(f"{folder.path / 'config.yaml'}: metric is one of {', '.join(METRICS)}, not {name}")
        self.metric = METRICS[name]

    def curve(self, column: str) -> dict[int, float]:
        """epoch -> value of `column`; epochs without a finite value are left out."""
        with input_errors(f"{self.folder.path / 'metrics.jsonl'} is damaged: {column}: "):
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
        """The number this run stands for; None while it is unfinished, or where it is damaged.

        Images: the test error of the last epoch. Text: the test score of the best checkpoint by development score.
        """
        if not self.has_ended or self.damage:
            return None
        if self.metric.name == "test_error":
            return self.last("test_error")
        return self.test_scores.get(self.metric.name)

    @property
    def test_scores(self) -> dict[str, float]:
        scores = self.evaluation.get("test") or {}
        return {name: float(score) for name, score in scores.items() if isinstance(score, int | float)}

    def last(self, column: str) -> float | None:
        """The value of `column` in the last row."""
        value = self.rows[-1].get(column) if self.rows else None
        with input_errors(f"{self.folder.path / 'metrics.jsonl'} is damaged: {column}: "):
            return None if value is None else float(value)


@dataclass(frozen=True)
class Results:
    """Runs of one recipe: finished ones by mode (baseline first) in order of seed, those under way, damaged ones."""

    recipe: str
    metric: Metric
    modes: dict[str, list[Run]]
    unfinished: list[Run]
    damaged: list[Run]

    @property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.modes.values() for run in runs] + self.unfinished + self.damaged

    def finals(self, mode: str) -> dict[int, float]:
        """seed -> final value."""
        return {run.seed: run.final for run in self.modes.get(mode, []) if run.final is not None}

    def difference(self, mode: str) -> stats.Difference:
        """The mode minus the baseline, paired by seed."""
        return stats.paired_difference(self.finals(mode), self.finals("baseline"))

    @property
    def target(self) -> float | None:
        """What "as good as the baseline" means: its mean final value, for text its mean best development score."""
        if self.metric.higher_is_better:
            curves = [run.curve(self.metric.curve) for run in self.modes.get("baseline", [])]
            return stats.mean([max(curve.values()) for curve in curves if curve])
        return stats.mean(list(self.finals("baseline").values()))

    def arrival(self, mode: str) -> int | None:
        """The epoch at which the mean over the mode's runs first is as good as the baseline."""
        if self.target is None:
            return None
        curves = [run.curve(self.metric.curve) for run in self.modes[mode]]
        return stats.first_arrival(curves, self.target, higher_is_better=self.metric.higher_is_better)


def read_results(folders: Sequence[Path]) -> Results:
    """All runs at or below `folders`, merged by mode and seed. A folder met twice counts once.

    Raises:
        InputError: no runs, a damaged file, two recipes, two runs of one mode and seed, or two runs of one mode that
            were trained with different settings.
    """
    runs: dict[tuple[str, int], Run] = {}
    first_of_mode: dict[str, Run] = {}
    for run in _distinct_runs(folders):
        _check_recipe(next(iter(runs.values()), run), run)
        _check_settings(first_of_mode.setdefault(run.mode, run), run)
        other = runs.setdefault((run.mode, run.seed), run)
        if other is not run:
            raise InputError(
                f"{other.folder.path} and {run.folder.path} are both {run.mode} with seed {run.seed}: give one"
            )
    if not runs:
        raise InputError(f"no runs (folders with a config.yaml) in {', '.join(map(str, folders))}")
    ordered = [runs[key] for key in sorted(runs, key=lambda key: (_mode_rank(key[0]), key))]
    modes: dict[str, list[Run]] = {}
    for run in ordered:
        if run.final is not None:
            modes.setdefault(run.mode, []).append(run)
    damaged = [run for run in ordered if run.damage]
    unfinished = [run for run in ordered if run.final is None and not run.damage]
    return Results(ordered[0].recipe, ordered[0].metric, modes, unfinished, damaged)


def summary(results: Results) -> dict[str, Any]:
    """The contents of summary.json: rates as fractions, None where one run cannot tell."""
    modes = {}
    for mode, runs in results.modes.items():
        final = list(results.finals(mode).values())
        modes[mode] = {
            "seeds": [run.seed for run in runs],
            "final": final,
            "mean": stats.mean(final),
            "std": stats.standard_deviation(final),
            "seconds_per_epoch": seconds_per_epoch(runs),
        }
    differences = {}
    for mode in results.modes:
        if mode != "baseline" and "baseline" in results.modes:
            difference = results.difference(mode)
            differences[mode] = {"mean": difference.mean, "low": difference.low, "high": difference.high}
    return {"recipe": results.recipe, "metric": results.metric.name, "modes": modes, "differences": differences}


def seconds_per_epoch(runs: Sequence[Run]) -> float | None:
    """Mean over runs of the median epoch: the first one may hold a compilation, any one another program's load."""
    return stats.mean([median(seconds.values()) for run in runs if (seconds := run.curve("seconds"))])


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _distinct_runs(folders: Sequence[Path]) -> Iterator[Run]:
    seen: set[Path] = set()
    for folder in folders:
        found = list(find_runs(folder))
        if not found:
            raise InputError(f"no runs (folders with a config.yaml) in {folder}")
        for run in found:
            if run.path.resolve() not in seen:
                seen.add(run.path.resolve())
                yield Run(run)


def _check_recipe(first: Run, run: Run) -> None:
    for what, one, other in (("recipe", first.recipe, run.recipe), ("metric", first.metric.name, run.metric.name)):
        if one != other:
            raise InputError(f"{first.folder.path} has {what} {one}, {run.folder.path} has {other}: report them apart")


def _check_settings(first: Run, run: Run) -> None:
    one, other = flatten(first.config), flatten(run.config)
    for key in [*one, *other]:
        if key.split(".")[0] not in OF_REPORTING and key not in OF_THE_RUN and one.get(key) != other.get(key):
            raise InputError(
                f"runs of mode {run.mode} were trained with different settings: {key} is {one.get(key)} in "
                f"{first.folder.path} and {other.get(key)} in {run.folder.path}"
            )


def _mode_rank(mode: str) -> int:
    return MODE_ORDER.index(mode) if mode in MODE_ORDER else len(MODE_ORDER)
