"""The table of modes: the same cells as Markdown, as HTML and as plain text for the terminal."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from labelemb.report import stats
from labelemb.report.summary import Results, Run, read_results, seconds_per_epoch
from labelemb.run_folder import TIMING_CONDITIONS

NOTHING = "–"  # noqa: RUF001 (a dash is what a table has in an empty cell)
NUM_SHORT_COLUMNS = 7  # the first ones, up to seconds an epoch: what fits a terminal


class Table(NamedTuple):
    """Cells as they are shown, and the sentences under them."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def summary_text(folders: Sequence[Path]) -> str:
    """The short table of the runs at or below `folders`, for the terminal, and which runs are not in it.

    Raises:
        InputError: as `read_results`.
    """
    results = read_results(folders)
    return "\n".join([plain(comparison(results)), *_left_out(results), *_timing_notes(results)])


def comparison(results: Results) -> Table:
    """One row a mode; a positive reduction (for scores: gain) is an improvement over the baseline."""
    metric = results.metric
    better = "gain" if metric.higher_is_better else "reduction"
    columns = ["mode", "runs", f"{metric.title} (sd)", better, f"{better} %", "95 % interval", "seconds an epoch"]
    rows = {mode: _main_cells(results, mode) for mode in results.modes}
    for heading, cells in [*_measures(results), *_arrivals(results), *_paper(results)]:
        if any(cells.values()):
            columns.append(heading)
            for mode, row in rows.items():
                row.append(cells.get(mode) or NOTHING)
    return Table(columns, list(rows.values()), _notes(results))


def markdown(table: Table, title: str) -> str:
    """The contents of table.md, aligned so that it also reads as it stands."""
    columns, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    widths = _widths([columns, *rows])
    rule = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = ["| " + " | ".join(line) + " |" for line in (_aligned(columns, widths), rule)]
    lines += ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *lines, "", *(f"* {note}" for note in table.notes), ""])


def html(table: Table) -> str:
    """The table as HTML, its notes as a list."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="wide"><table class="numbers"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
        f'<ul class="notes">{notes}</ul>'
    )


def plain(table: Table) -> str:
    """The first columns, aligned, without frames."""
    rows = [row[:NUM_SHORT_COLUMNS] for row in (table.columns, *table.rows)]
    widths = _widths(rows)
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _main_cells(results: Results, mode: str) -> list[str]:
    runs, scale = results.modes[mode], results.metric.scale
    finals = list(results.finals(mode).values())
    mean, deviation = stats.mean(finals), stats.standard_deviation(finals)
    return [
        mode,
        str(len(runs)),
        _spread(mean, deviation, scale),
        *_gain(results, mode),
        _number(seconds_per_epoch(runs)),
    ]


def _gain(results: Results, mode: str) -> list[str]:
    """Improvement over the baseline, in points, relative, and its interval."""
    if mode == "baseline" or "baseline" not in results.modes:
        return [NOTHING] * 3
    difference = results.difference(mode)
    if difference.mean is None:
        return [NOTHING] * 3
    sign = results.metric.scale * (1 if results.metric.higher_is_better else -1)
    shared = results.finals(mode).keys() & results.finals("baseline").keys()
    baseline = stats.mean([results.finals("baseline")[seed] for seed in shared])
    points = sign * difference.mean
    relative = f"{100 * points / (results.metric.scale * baseline):z.1f}" if baseline else NOTHING
    if difference.low is None or difference.high is None:
        return [f"{points:z.2f}", relative, NOTHING]
    low, high = sorted((sign * difference.low, sign * difference.high))
    return [f"{points:z.2f}", relative, f"{low:z.2f} to {high:z.2f}"]


def _measures(results: Results) -> list[tuple[str, dict[str, str]]]:
    """Means of what the runs measured beside their metric: NLL and calibration, or the other test scores."""
    if not results.metric.higher_is_better:
        return [
            (
                "NLL",
                {mode: _mean_of([run.last("test_nll") for run in runs], 1, 4) for mode, runs in results.modes.items()},
            ),
            (
                "ECE %",
                {
                    mode: _mean_of([run.last("test_ece") for run in runs], 100, 2)
                    for mode, runs in results.modes.items()
                },
            ),
        ]
    names = {name: None for run in results.all_runs for name in run.test_scores if name != results.metric.name}
    return [
        (
            name,
            {mode: _mean_of([run.test_scores.get(name) for run in runs], 1, 2) for mode, runs in results.modes.items()},
        )
        for name in names
    ]


def _arrivals(results: Results) -> list[tuple[str, dict[str, str]]]:
    arrivals = {mode: epoch for mode in results.modes if (epoch := results.arrival(mode)) is not None}
    seconds = {mode: seconds_per_epoch(results.modes[mode]) for mode in arrivals}
    return [
        ("epochs to baseline", {mode: str(epoch) for mode, epoch in arrivals.items()}),
        (
            "seconds to baseline",
            {mode: _number(epoch * each) for mode, epoch in arrivals.items() if (each := seconds[mode]) is not None},
        ),
    ]


def _paper(results: Results) -> list[tuple[str, dict[str, str]]]:
    """The paper's figures, which the recipe gives as the paper prints them: percent, or points."""
    digits = 1 if results.metric.higher_is_better else 2
    figures = {mode: _paper_figures(results)[mode] for mode in results.modes if mode in _paper_figures(results)}
    seconds = {mode: each.get("seconds_per_epoch") for mode, each in figures.items()}
    return [
        (f"paper: {results.metric.title} (sd)", {mode: _quoted(each, digits) for mode, each in figures.items()}),
        ("paper: seconds an epoch", {mode: _number(each) for mode, each in seconds.items() if each is not None}),
    ]


def _paper_figures(results: Results) -> dict[str, dict[str, float | None]]:
    """mode -> mean, std, seconds_per_epoch."""
    return (results.all_runs[0].config.get("report") or {}).get("paper") or {}


def _notes(results: Results) -> list[str]:
    metric = results.metric
    final = "test score of the checkpoint with the best development score" if metric.higher_is_better else "last epoch"
    notes = [f"{metric.title}: {final}; mean over runs, in brackets the standard deviation (n - 1)."]
    if "baseline" in results.modes and len(results.modes) > 1:
        sign = (
            "mode minus baseline, in points" if metric.higher_is_better else "baseline minus mode, in percentage points"
        )
        better = "Gain" if metric.higher_is_better else "Reduction"
        notes.append(f"{better}: {sign}, and relative; 95 % interval (Student's t) of the mean, paired by seed.")
        notes += _pair_notes(results)
    if results.target is not None:
        target = f"{metric.scale * results.target:.2f}"
        what = "best development score" if metric.higher_is_better else "final error"
        unit = "" if metric.higher_is_better else " %"
        notes.append(
            f"To baseline: first epoch at which the mean over runs is as good as the baseline's mean {what} "
            f"({target}{unit}), and that many times the seconds an epoch."
        )
    notes += _timing_notes(results)
    notes += sorted(
        {f"Signature: {run.evaluation['signature']}" for run in results.all_runs if run.evaluation.get("signature")}
    )
    if _paper_figures(results):
        notes.append("Paper: the figures of arXiv 1710.10393, on other machines.")
    return notes + _left_out(results)


def _left_out(results: Results) -> list[str]:
    notes = []
    for run in results.unfinished:
        last = int(run.rows[-1]["epoch"]) if run.rows else 0
        notes.append(
            f"Left out, unfinished: {run.mode}, seed {run.seed} (epoch {last} of {run.config.get('epochs', '?')})."
        )
    for run in results.damaged:
        notes.append(
            f"Left out, damaged: {run.mode}, seed {run.seed} ({run.damage}); bring the file back, or remove the run's "
            "folder and train again."
        )
    return notes


def _timing_notes(results: Results) -> list[str]:
    """A warning where seconds an epoch cannot be compared: the runs were not done under like conditions."""
    unlike = []
    for key in TIMING_CONDITIONS:
        values = {value for runs in results.modes.values() for run in runs for value in _conditions(run, key)}
        if len(values) > 1:
            unlike.append(f"{key} {' and '.join(map(str, sorted(values)))}")
    if not unlike:
        return []
    return [f"Seconds an epoch come from runs under unlike conditions and do not compare: {'; '.join(unlike)}."]


def _conditions(run: Run, key: str) -> set[Any]:
    """The values of one condition over all parts of a run; none for a run from before it was recorded."""
    return {*run.environment.get("earlier", {}).get(key, []), run.environment.get(key)} - {None}


def _pair_notes(results: Results) -> list[str]:
    notes = []
    for mode in results.modes:
        pairs = results.difference(mode).num_pairs
        if mode != "baseline" and pairs < max(len(results.modes[mode]), len(results.modes["baseline"])):
            notes.append(
                f"{mode} and baseline share {pairs} {'seed' if pairs == 1 else 'seeds'}: only these are compared."
            )
    epochs = {mode: sorted({str(run.config.get("epochs")) for run in runs}) for mode, runs in results.modes.items()}
    if len({tuple(each) for each in epochs.values()}) > 1:
        notes.append("Epochs differ: " + ", ".join(f"{mode} {'/'.join(each)}" for mode, each in epochs.items()) + ".")
    return notes


def _mean_of(values: Sequence[float | None], scale: float, digits: int) -> str:
    present = [value for value in values if value is not None]
    mean = stats.mean(present) if len(present) == len(values) else None
    return "" if mean is None else f"{scale * mean:.{digits}f}"


def _spread(mean: float | None, deviation: float | None, scale: float) -> str:
    if mean is None:
        return NOTHING
    return f"{scale * mean:.2f}" + ("" if deviation is None else f" ({scale * deviation:.2f})")


def _quoted(figures: dict[str, float | None], digits: int) -> str:
    mean, deviation = figures.get("mean"), figures.get("std")
    if mean is None:
        return NOTHING
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ({deviation:.{digits}f})")


def _number(seconds: float | None) -> str:
    """Seconds with three figures or so."""
    if seconds is None:
        return NOTHING
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}" if seconds < 10 else f"{seconds:,.1f}"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first cell to the left, numbers to the right."""
    return [
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
