"""The table of modes: the same cells for the page, as Markdown and as text for the terminal."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from labelemb.report import stats
from labelemb.report.summary import Results, Run, seconds_per_epoch
from labelemb.report.tuning import tuning_notes
from labelemb.run_folder import TIMING_CONDITIONS

NOTHING = "–"  # noqa: RUF001 (a dash is what a table has in an empty cell)
NUM_SHORT_COLUMNS = 7  # the first ones, up to seconds an epoch: what fits a terminal


class Table(NamedTuple):
    """Cells as they are shown, and the sentences under them."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


class Column(NamedTuple):
    """One column: a cell for each name that has one."""

    heading: str
    cells: dict[str, str]


def summary_text(results: Results) -> str:
    """The short table, for the terminal, and which runs are not in it."""
    notes = [*tuning_notes(results), *_left_out(results), *_timing_notes(results)]
    return "\n".join([terminal_text(comparison(results)), *notes])


def comparison(results: Results) -> Table:
    """One row a mode; a positive reduction (for scores: gain) is an improvement over the baseline."""
    better = results.metric.better
    columns = ["mode", "runs", _title(results), better, f"{better} %", "95 % interval", "seconds an epoch"]
    rows = {name: _main_cells(results, name) for name in results.groups}
    for column in [*_measures(results), *_arrivals(results), *_paper(results)]:
        if any(column.cells.values()):
            columns.append(column.heading)
            for name, row in rows.items():
                row.append(column.cells.get(name) or NOTHING)
    return Table(columns, list(rows.values()), _notes(results))


def markdown(table: Table, title: str) -> str:
    """The contents of table.md, aligned so that it also reads as it stands."""
    columns, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    widths = _widths([columns, *rows])
    rule = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = ["| " + " | ".join(line) + " |" for line in (_aligned(columns, widths), rule)]
    lines += ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *lines, "", *(f"* {note}" for note in table.notes), ""])


def terminal_text(table: Table) -> str:
    """The first columns, aligned, without frames."""
    rows = [row[:NUM_SHORT_COLUMNS] for row in (table.columns, *table.rows)]
    widths = _widths(rows)
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _title(results: Results) -> str:
    return f"{results.metric.title} (sd)"


def _main_cells(results: Results, name: str) -> list[str]:
    runs, finals = results.groups[name], list(results.finals(name).values())
    spread = _spread(stats.mean(finals), stats.standard_deviation(finals), results.metric.scale)
    return [name, str(len(runs)), spread, *_gain(results, name), _number(seconds_per_epoch(runs))]


def _gain(results: Results, name: str) -> list[str]:
    """Improvement over the baseline, in points, relative, and its interval."""
    if results.baseline in (None, name):
        return [NOTHING] * 3
    difference = results.difference(name)
    if difference.mean is None:
        return [NOTHING] * 3
    sign = results.metric.scale * (1 if results.metric.higher_is_better else -1)
    finals = results.finals(results.baseline)
    baseline = stats.mean([finals[seed] for seed in results.finals(name).keys() & finals.keys()])
    points = sign * difference.mean
    relative = f"{100 * points / (results.metric.scale * baseline):z.1f}" if baseline else NOTHING
    if difference.low is None or difference.high is None:
        return [f"{points:z.2f}", relative, NOTHING]
    low, high = sorted((sign * difference.low, sign * difference.high))
    return [f"{points:z.2f}", relative, f"{low:z.2f} to {high:z.2f}"]


def _measures(results: Results) -> Iterator[Column]:
    """Means of what the runs measured beside their metric: NLL and calibration, or the other test scores."""
    for heading, column, scale, digits in results.measures:
        values = {name: [run.measured(column) for run in runs] for name, runs in results.groups.items()}
        yield Column(heading, {name: _mean_of(each, scale, digits) for name, each in values.items()})


def _arrivals(results: Results) -> list[Column]:
    arrivals = {name: epoch for name in results.groups if (epoch := results.arrival(name)) is not None}
    seconds = {name: seconds_per_epoch(results.groups[name]) for name in arrivals}
    totals = {name: epoch * each for name, epoch in arrivals.items() if (each := seconds[name]) is not None}
    return [
        Column("epochs to baseline", {name: str(epoch) for name, epoch in arrivals.items()}),
        Column("seconds to baseline", {name: _number(total) for name, total in totals.items()}),
    ]


def _paper(results: Results) -> list[Column]:
    """The paper's figures, which the recipe gives as the paper prints them: percent, or points."""
    digits, paper = results.metric.paper_digits, _paper_figures(results)
    figures = {name: paper[name] for name in results.groups if name in paper}
    seconds = {name: each.get("seconds_per_epoch") for name, each in figures.items()}
    return [
        Column(f"paper: {_title(results)}", {name: _quoted(each, digits) for name, each in figures.items()}),
        Column("paper: seconds an epoch", {name: _number(each) for name, each in seconds.items() if each is not None}),
    ]


def _paper_figures(results: Results) -> dict[str, dict[str, float | None]]:
    """mode -> mean, std, seconds_per_epoch."""
    return (results.all_runs[0].config.get("report") or {}).get("paper") or {}


def _notes(results: Results) -> list[str]:
    metric = results.metric
    notes = [f"{metric.title}: {metric.final}; mean over runs, in brackets the standard deviation (n - 1)."]
    if results.baseline is not None and len(results.groups) > 1:
        notes.append(
            f"{metric.better.capitalize()}: {metric.difference}, and relative; "
            "95 % interval (Student's t) of the mean, paired by seed."
        )
        notes += _pair_notes(results, results.baseline)
    if results.target is not None:
        notes.append(
            f"To baseline: first epoch at which the mean over runs is as good as the baseline's mean {metric.target} "
            f"({metric.scale * results.target:.2f}{metric.unit}), and that many times the seconds an epoch."
        )
    notes += tuning_notes(results)
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
            f"Left out, unfinished: {run.name}, seed {run.seed} (epoch {last} of {run.config.get('epochs', '?')})."
        )
    for run in results.damaged:
        notes.append(
            f"Left out, damaged: {run.name}, seed {run.seed} ({run.damage}); bring the file back, or remove the run's "
            "folder and train again."
        )
    return notes


def _timing_notes(results: Results) -> list[str]:
    """A warning where seconds an epoch cannot be compared: the runs were not done under like conditions."""
    unlike = []
    for key in TIMING_CONDITIONS:
        values = {value for runs in results.groups.values() for run in runs for value in _conditions(run, key)}
        if len(values) > 1:
            unlike.append(f"{key} {' and '.join(map(str, sorted(values)))}")
    if not unlike:
        return []
    return [f"Seconds an epoch come from runs under unlike conditions and do not compare: {'; '.join(unlike)}."]


def _conditions(run: Run, key: str) -> set[Any]:
    """The values of one condition over all parts of a run; none for a run from before it was recorded."""
    return {*run.environment.get("earlier", {}).get(key, []), run.environment.get(key)} - {None}


def _pair_notes(results: Results, baseline: str) -> list[str]:
    notes = []
    for name, runs in results.groups.items():
        pairs = results.difference(name).num_pairs
        if name != baseline and pairs < max(len(runs), len(results.groups[baseline])):
            seeds = "1 seed" if pairs == 1 else f"{pairs} seeds"
            notes.append(f"{name} and {baseline} share {seeds}: only these are compared.")
    epochs = {name: sorted({str(run.config.get("epochs")) for run in runs}) for name, runs in results.groups.items()}
    if len({tuple(each) for each in epochs.values()}) > 1:
        notes.append("Epochs differ: " + ", ".join(f"{name} {'/'.join(each)}" for name, each in epochs.items()) + ".")
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
