"""What it takes to trace a number: the settings, the machine and the command of every run."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from labelemb.report.summary import Results, Run
from labelemb.settings.which_run import flatten, is_only_shown

OF_ONE_RUN = ("command", "commit", "start", "end")  # what environment.json says of the run, not of the machine


class RunTable(NamedTuple):
    """A row a run."""

    columns: list[str]
    rows: list[list[str]]


def all_settings(results: Results) -> dict[str, str]:
    """Dotted key -> its values over the runs, each once; without those that training never reads."""
    return _distinct({k: v for k, v in run.config.items() if not is_only_shown(k)} for run in results.all_runs)


def all_environments(results: Results) -> dict[str, str]:
    """The same of versions and machines."""
    return _distinct({k: v for k, v in run.environment.items() if k not in OF_ONE_RUN} for run in results.all_runs)


def all_commands(results: Results) -> list[str]:
    """What the runs were started by, each once."""
    commands = (run.environment.get("command") for run in results.all_runs)
    return list(dict.fromkeys(str(command) for command in commands if command))


def all_runs(results: Results) -> RunTable:
    """What each run reached, and how it was started."""
    rows = [
        [run_title(run), _final(run), *(str(run.environment.get(key) or "") for key in OF_ONE_RUN)]
        for run in results.all_runs
    ]
    return RunTable(["run", results.metric.name, *OF_ONE_RUN], rows)


def run_title(run: Run) -> str:
    """A run's name and seed."""
    return f"{run.name}, seed {run.seed}"


def _final(run: Run) -> str:
    if run.final is None:
        return "damaged" if run.damage else "unfinished"
    return f"{run.final:.6g}"


def _distinct(mappings: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for mapping in mappings:
        for key, value in flatten(mapping).items():
            values.setdefault(key, {}).setdefault("none" if value is None else str(value))
    return {key: ", ".join(distinct) for key, distinct in values.items()}
