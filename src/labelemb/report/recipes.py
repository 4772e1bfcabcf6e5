"""Run folders of one recipe or of several, read apart."""

from collections.abc import Sequence
from pathlib import Path

from labelemb.errors import InputError
from labelemb.report.summary import Results, read_results
from labelemb.run_folder import RunFolder, find_runs


def read_recipes(folders: Sequence[Path]) -> list[Results]:
    """The runs at or below `folders`, one entry for each recipe and metric, in the order in which they are met.

    Raises:
        InputError: as `read_results`, but for several recipes.
    """
    apart: dict[tuple[str, str], list[Path]] = {}
    for folder in folders:
        runs = [run for run in find_runs(folder) if run.config.get("tuning") is None]
        for kind in dict.fromkeys(map(_kind, runs)):
            apart.setdefault(kind, [])
        for run in runs:
            apart[_kind(run)].append(run.path)
    if len(apart) < 2:
        return [read_results(folders)]
    return [read_results(list(dict.fromkeys(paths))) for paths in apart.values()]


def has_runs(folders: Sequence[Path]) -> bool:
    """Whether there is any run at or below them.

    Raises:
        InputError: one of them is no folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no runs (folders with a config.yaml) in {folder}: no such folder")
    return any(True for folder in folders for _ in find_runs(folder))


def _kind(run: RunFolder) -> tuple[str, str]:
    return str(run.config.get("recipe")), str(run.config.get("metric", "test_error"))
