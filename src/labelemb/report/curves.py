"""Curves: error (for text the development score) against epoch, and accuracy against confidence."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from labelemb.report import stats
from labelemb.report.metric import Metric
from labelemb.report.stats import Curve
from labelemb.report.style import Look, looks, style
from labelemb.report.summary import Results, Run

MAX_INSIDE_LEGEND = 9  # a longer one hides curves
MIN_BIN_COUNT = 10  # the accuracy of fewer items is noise


def draw_curves(results: Results) -> tuple[Figure, str]:
    """Every run a light line, each mode's mean a deep one, unfinished runs dotted; and the sentence under it."""
    with style():
        figure = Figure(figsize=(5.6, 3.7))
        axes = figure.add_subplot()
        shown: list[Curve] = []
        look = looks(results.names)
        for name in dict.fromkeys([*results.groups, *(run.name for run in results.unfinished)]):
            finished = [_scaled(run) for run in results.groups.get(name, [])]
            unfinished = [_scaled(run) for run in results.unfinished if run.name == name]
            _draw_group(axes, name, look[name], finished, unfinished)
            shown += [curve for curve in [*finished, *unfinished] if curve]
        _set_axes(axes, results.metric, shown)
        if axes.has_data():  # all runs may be damaged, and damaged ones are drawn nowhere
            _set_legend(figure, axes, look.values())
    return figure, _caption(axes, results, shown)


def _draw_group(axes: Axes, name: str, look: Look, finished: Sequence[Curve], unfinished: Sequence[Curve]) -> None:
    light = min(0.45, 0.2 + 1.0 / max(1, len(finished)))
    if len(finished) > 1:  # a single run is its own mean
        for curve in finished:
            axes.plot(*_points(curve), color=look.color, alpha=light, linewidth=0.7)
    for curve in unfinished:
        axes.plot(*_points(curve), color=look.color, alpha=0.8, linewidth=1.0, linestyle=":")
    middle = stats.mean_curve(finished or unfinished)
    axes.plot(
        *_points(middle),
        color=look.color,
        linewidth=1.9,
        linestyle=look.pattern if finished else ":",
        label=f"{name} ({_count(finished, unfinished)})",
        marker="o" if len(middle) == 1 else "",
    )


def draw_calibration(results: Results) -> Figure | None:
    """Accuracy against confidence in 15 bins, summed over the runs; None where no run has bins."""
    groups = {name: bins for name, runs in results.groups.items() if (bins := summed_bins(runs))}
    if not groups:
        return None
    with style():
        figure = Figure(figsize=(3.4, 3.3))
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color="#B0B0B0", linewidth=0.8, linestyle="--")
        look = looks(results.names)
        for name, bins in groups.items():
            enough = [(confidence, correct, count) for count, confidence, correct in bins if count >= MIN_BIN_COUNT]
            x = [100 * confidence / count for confidence, _, count in enough]
            y = [100 * correct / count for _, correct, count in enough]
            color, pattern = look[name]
            axes.plot(x, y, color=color, linestyle=pattern, linewidth=1.4, marker="o", markersize=3.2, label=name)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence %")
        axes.set_ylabel("accuracy %")
        axes.legend(handlelength=_legend_length(look.values()))
    return figure


def _set_legend(figure: Figure, axes: Axes, looks: Collection[Look]) -> None:
    """Among the curves, or beside them where it would hide them."""
    if len(looks) <= MAX_INSIDE_LEGEND:
        axes.legend(handlelength=_legend_length(looks))
    else:
        figure.set_figwidth(figure.get_figwidth() + 2.2)
        axes.legend(handlelength=_legend_length(looks), loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5)


def _legend_length(looks: Iterable[Look]) -> float:
    """Of a line in the legend: a pattern takes more room to be told from another."""
    return 1.6 if all(look.pattern == "-" for look in looks) else 4.5


def _scaled(run: Run) -> Curve:
    """A run's curve as on the page."""
    return {epoch: run.metric.scale * value for epoch, value in run.curve(run.metric.curve).items()}


def _points(curve: Curve) -> tuple[list[int], list[float]]:
    return list(curve.keys()), list(curve.values())


def _count(finished: Sequence[Any], unfinished: Sequence[Any]) -> str:
    runs = "1 run" if len(finished) == 1 else f"{len(finished)} runs"
    return runs + (f", {len(unfinished)} unfinished" if unfinished else "")


def _set_axes(axes: Axes, metric: Metric, shown: Sequence[Curve]) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_ylabel(metric.curve_title)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    if not shown:
        return
    epochs = max(max(curve) for curve in shown)
    axes.set_xlim(1 - max(0.5, 0.02 * epochs), epochs + max(0.5, 0.02 * epochs))
    start = metric.curves_from * epochs
    late = [value for curve in shown for epoch, value in curve.items() if epoch >= min(max(curve), start)]
    low, high = min(late), max(late)
    if metric.has_log_axis:
        _set_log_axis(axes, low, high, smallest=min((value for value in late if value > 0), default=0.01))
    else:
        room = 0.04 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)


def _set_log_axis(axes: Axes, low: float, high: float, smallest: float) -> None:
    """A logarithmic axis in percent with some six ticks that read as plain numbers; zeros lie on its lower edge."""
    low = max(low, smallest / 2)
    high = max(high, low)
    bottom, top = low / 1.08, high * 1.08
    axes.set_ylim(bottom, top)  # before the scale, which else looks for its limits among values that may all be zero
    axes.set_yscale("log", nonpositive="clip")
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)):
        decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps if bottom <= step * 10.0**decade <= top]
        if len(ticks) >= 5:
            break
    if len(ticks) < 4:
        ticks = list(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(bottom, top))
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= tick <= top]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _caption(axes: Axes, results: Results, shown: Sequence[Curve]) -> str:
    metric = results.metric
    caption = f"{metric.curve_caption} against epoch. Each run is a light line, the mean over a mode's runs a deep one."
    if any(run.rows for run in results.unfinished):
        caption += " Unfinished runs are dotted and in no mean of finished ones."
    bottom, top = axes.get_ylim()
    if any(value < bottom if metric.higher_is_better else value > top for curve in shown for value in curve.values()):
        caption += " The first epochs lie outside the picture."
    return caption


def summed_bins(runs: Sequence[Run]) -> list[tuple[int, float, int]]:
    """Over the runs, for each bin: items, sum of confidences, correct items."""
    totals: list[tuple[int, float, int]] = []
    for run in runs:
        for position, (count, confidence, correct) in enumerate(_bins(run)):
            if position == len(totals):
                totals.append((0, 0.0, 0))
            items, sum_confidence, right = totals[position]
            totals[position] = (items + count, sum_confidence + count * (confidence or 0.0), right + correct)
    return totals


def _bins(run: Run) -> list[tuple[int, float | None, int]]:
    """evaluation.json's bins: items, mean confidence (None in an empty bin), number of correct items."""
    bins = run.evaluation.get("calibration") or []
    return [(b["count"], b["confidence"], b["correct"]) if isinstance(b, dict) else tuple(b) for b in bins]
