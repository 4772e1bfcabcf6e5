"""The table of modes: the same cells for the page, as Markdown and as text for the terminal."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from labelemb.report import stats
from labelemb.report.metric import Measure
from labelemb.report.notes import left_out, notes, paper_figures, timing_notes
from labelemb.report.pairs import against_smoothing, marks
from labelemb.report.summary import Results, seconds_per_epoch
from labelemb.report.tuning import tuning_notes

NOTHING = "–"  # noqa: RUF001 (a dash is what a table has in an empty cell)
TERMINAL_WIDTH = 110
SECONDS = "seconds an epoch"  # the last column that the terminal may show
_DISPENSABLE = (" %", SECONDS, "95 % vs smoothing", "NLL scaled")  # ends of headings: what goes first where it is wide


class Table(NamedTuple):
    """Cells as they are shown, and the sentences under them."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


class Column(NamedTuple):
    """One column: a cell for each name that has one."""

    heading: str
    cells: dict[str, str]
    stays: bool = False
    """Where no name has a cell, too."""


def summary_text(results: Results) -> str:
    """The short table, for the terminal, and which runs are not in it."""
    below = [*tuning_notes(results), *left_out(results), *timing_notes(results)]
    return "\n".join([terminal_text(comparison(results)), *below])


def comparison(results: Results) -> Table:
    """One row a mode; a positive reduction (for scores: gain) is an improvement over the baseline, or smoothing."""
    columns = [column for column in _all_columns(results) if column.stays or any(column.cells.values())]
    rows = [[name, *(column.cells.get(name) or NOTHING for column in columns)] for name in results.groups]
    return Table(["mode", *(column.heading for column in columns)], rows, notes(results))


def markdown(table: Table, title: str) -> str:
    """The contents of table.md, aligned so that it also reads as it stands."""
    columns, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    widths = _widths([columns, *rows])
    rule = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = ["| " + " | ".join(line) + " |" for line in (_aligned(columns, widths), rule)]
    lines += ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *lines, "", *(f"* {note}" for note in table.notes), ""])


def terminal_text(table: Table) -> str:
    """The columns up to seconds an epoch, as many as fit, aligned, without frames."""
    widths = _widths((table.columns, *table.rows))
    shown = list(range(table.columns.index(SECONDS) + 1))
    for ending in _DISPENSABLE:
        if sum(widths[i] + 2 for i in shown) - 2 > TERMINAL_WIDTH:
            shown = [i for i in shown if not table.columns[i].endswith(ending)]
    rows = [[row[i] for i in shown] for row in (table.columns, *table.rows)]
    lines = ["  ".join(_aligned(row, [widths[i] for i in shown])).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _title(results: Results) -> str:
    return f"{results.metric.title} (sd)"


def _all_columns(results: Results) -> Iterator[Column]:
    """In the order of the table, empty ones too."""
    yield Column("runs", {name: str(len(runs)) for name, runs in results.groups.items()}, stays=True)
    yield Column(_title(results), {name: _final(results, name) for name in results.groups}, stays=True)
    yield Column("best", marks(results))
    yield from (_measured(results, measure) for measure in results.measures if measure.leads)
    yield from _gains(results)
    yield from _gains_over_smoothing(results)
    seconds = {name: _number(seconds_per_epoch(runs)) for name, runs in results.groups.items()}
    yield Column(SECONDS, seconds, stays=True)
    yield from (_measured(results, measure) for measure in results.measures if not measure.leads)
    yield from _arrivals(results)
    yield from _paper(results)


def _final(results: Results, name: str) -> str:
    finals = list(results.finals(name).values())
    return _spread(stats.mean(finals), stats.standard_deviation(finals), results.metric.scale)


def _gains(results: Results) -> Iterator[Column]:
    """Improvement over the baseline, in points, relative, and its interval."""
    others = [name for name in results.groups if results.baseline not in (None, name)]
    differences = {name: results.difference(name) for name in others}
    better = results.metric.better
    yield Column(better, {name: _points(results, each.mean) for name, each in differences.items()}, stays=True)
    yield Column(f"{better} %", {name: _relative(results, name) for name in others}, stays=True)
    yield Column("95 % interval", {name: _interval(results, each) for name, each in differences.items()}, stays=True)


def _gains_over_smoothing(results: Results) -> Iterator[Column]:
    """Improvement over the best smoothing, in points, and its interval."""
    differences = against_smoothing(results)
    yield Column("vs smoothing", {name: _points(results, each.mean) for name, each in differences.items()})
    yield Column("95 % vs smoothing", {name: _interval(results, each) for name, each in differences.items()})


def _points(results: Results, mean: float | None) -> str:
    return "" if mean is None else f"{_sign(results) * mean:z.2f}"


def _relative(results: Results, name: str) -> str:
    """Improvement in percent of what the baseline has, over the seeds that both have."""
    mean, finals = results.difference(name).mean, results.finals(results.baseline or "")
    baseline = stats.mean([finals[seed] for seed in results.finals(name).keys() & finals.keys()])
    if mean is None or not baseline:
        return ""
    return f"{100 * _sign(results) * mean / (results.metric.scale * baseline):z.1f}"


def _interval(results: Results, difference: stats.Difference) -> str:
    if difference.low is None or difference.high is None:
        return ""
    low, high = sorted((_sign(results) * difference.low, _sign(results) * difference.high))
    return f"{low:z.2f} to {high:z.2f}"


def _sign(results: Results) -> float:
    """From a difference in files to points on the page, where positive is better."""
    return results.metric.scale * (1 if results.metric.higher_is_better else -1)


def _measured(results: Results, measure: Measure) -> Column:
    """Means of what the runs measured beside their metric: NLL and calibration, or another test score."""
    values = {name: [run.measured(measure.column) for run in runs] for name, runs in results.groups.items()}
    return Column(
        measure.heading, {name: _mean_of(each, measure.scale, measure.digits) for name, each in values.items()}
    )


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
    digits, paper = results.metric.paper_digits, paper_figures(results)
    figures = {name: paper[name] for name in results.groups if name in paper}
    seconds = {name: each.get("seconds_per_epoch") for name, each in figures.items()}
    return [
        Column(f"paper: {_title(results)}", {name: _quoted(each, digits) for name, each in figures.items()}),
        Column("paper: seconds an epoch", {name: _number(each) for name, each in seconds.items() if each is not None}),
    ]


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
