"""What a command shows while it works."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from labelemb.experiments.standing import Standing
    from labelemb.run_folder import RunFolder

_REFRESH_SECONDS = 0.2


def _bar(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
    )
    console = Console(stderr=True)
    disable = quiet or not console.is_terminal  # into a file it would write an empty line
    return Progress(*columns, console=console, disable=disable, transient=True, refresh_per_second=4)


@contextmanager
def step_progress(title: str, quiet: bool, opening: Sequence[str] = ()) -> Iterator[Callable[[int, int, str], None]]:
    """A bar over the steps of one run, with time left and what the last epoch gave; lines above it once it begins."""
    lines = [] if quiet else [*opening]
    with _bar(quiet) as bar:
        task = bar.add_task(title, total=None, message="")
        last = 0.0

        def show(done: int, planned: int, message: str) -> None:
            nonlocal last
            _say(lines)
            now = time.monotonic()
            if message:
                bar.update(task, completed=done, total=planned, message=message)
            elif now - last > _REFRESH_SECONDS:  # a bar drawn every step would cost more than the step
                bar.update(task, completed=done, total=planned)
                last = now

        yield show


@contextmanager
def comparison_progress(
    title: str, quiet: bool, result: Callable[["RunFolder"], str], opening: Sequence[str] = ()
) -> Iterator[Callable[["Standing"], None]]:
    """A bar over all runs of a comparison; where there is no terminal to draw it on, a line for each run that ends.

    Args:
        title: stands before the bar.
        quiet: show neither.
        result: what a line says of a finished run. What the first call finds finished was done before: no lines.
        opening: lines that are written when the first run is under way.
    """
    lines = [] if quiet else [*opening]
    with _bar(quiet) as bar:
        task = bar.add_task(title, total=1.0, message="")
        told: set[Path] | None = None

        def show(standing: "Standing") -> None:
            nonlocal told
            done = {job.folder.path: job for job in standing.finished}
            if standing.running or (told is not None and set(done) - told):
                _say(lines)
            bar.update(task, completed=standing.share, message=f"{len(done)} of {standing.total} runs")
            told = set(done) if told is None or bar.console.is_terminal or quiet else told
            for path in [path for path in done if path not in told]:
                told.add(path)
                settings = done[path].settings
                point = f" {settings.tuning}" if settings.tuning else ""
                run = f"{settings.recipe} {settings.name}{point} seed {settings.seed}"
                print(f"{run}: {result(done[path].folder)} ({len(told)} of {standing.total} runs)", file=sys.stderr)

        yield show


def _say(lines: list[str]) -> None:
    """Write the lines, once."""
    while lines:
        print(lines.pop(0), file=sys.stderr)
