"""Curves: error (for text the development score) against epoch, and accuracy against confidence."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from labelemb.report import stats
from labelemb.report.style import color, style
from labelemb.report.summary import Results, Run

SHOWN_FROM = 0.1  # errors on a log axis fill the picture when it starts after this part of the epochs,
SHOWN_FROM_LINEAR = 0.2  # and scores on a linear one after this
MIN_BIN_COUNT = 10  # the accuracy of fewer items is noise


def draw_curves(results: Results) -> tuple[Figure, str]:
    """Every run a light line, each mode's mean a deep one, unfinished runs dotted; and the sentence under it."""
    metric = results.metric
    with style():
        figure = Figure(figsize=(5.6, 3.7))
        axes = figure.add_subplot()
        shown: list[list[tuple[float, float]]] = []
        for mode in _modes(results):
            finished = [_scaled(run, metric.scale) for run in results.modes.get(mode, [])]
            unfinished = [_scaled(run, metric.scale) for run in results.unfinished if run.mode == mode]
            light = min(0.45, 0.2 + 1.0 / max(1, len(finished)))
            for curve in finished[: len(finished) if len(finished) > 1 else 0]:
                axes.plot(*_points(curve), color=color(mode), alpha=light, linewidth=0.7)
            for curve in unfinished:
                axes.plot(*_points(curve), color=color(mode), alpha=0.8, linewidth=1.0, linestyle=":")
            middle = stats.mean_curve(finished or unfinished)
            label = f"{mode} ({_count(finished, unfinished)})"
            pattern = "-" if finished else ":"
            marker = "o" if len(middle) == 1 else ""
            axes.plot(*_points(middle), color=color(mode), linewidth=1.9, linestyle=pattern, label=label, marker=marker)
            shown += [list(curve.items()) for curve in [*finished, *unfinished] if curve]
        _set_axes(axes, results, shown)
        if axes.has_data():  # all runs may be damaged, and damaged ones are drawn nowhere
            axes.legend(handlelength=1.6)
    return figure, _caption(axes, results, shown)


def draw_calibration(results: Results) -> Figure | None:
    """Accuracy against confidence in 15 bins, summed over the runs; None where no run has bins."""
    modes = {mode: bins for mode, runs in results.modes.items() if (bins := _summed_bins(runs))}
    if not modes:
        return None
    with style():
        figure = Figure(figsize=(3.4, 3.3))
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color="#B0B0B0", linewidth=0.8, linestyle="--")
        for mode, bins in modes.items():
            enough = [(confidence, correct, count) for count, confidence, correct in bins if count >= MIN_BIN_COUNT]
            x = [100 * confidence / count for confidence, _, count in enough]
            y = [100 * correct / count for _, correct, count in enough]
            axes.plot(x, y, color=color(mode), linewidth=1.4, marker="o", markersize=3.2, label=mode)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence %")
        axes.set_ylabel("accuracy %")
        axes.legend(handlelength=1.6)
    return figure


def _modes(results: Results) -> list[str]:
    return list(dict.fromkeys([*results.modes, *(run.mode for run in results.unfinished)]))


def _scaled(run: Run, scale: float) -> dict[int, float]:
    return {epoch: scale * value for epoch, value in run.curve(run.metric.curve).items()}


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(curve.keys()), list(curve.values())


def _count(finished: Sequence[Any], unfinished: Sequence[Any]) -> str:
    runs = "1 run" if len(finished) == 1 else f"{len(finished)} runs"
    return runs + (f", {len(unfinished)} unfinished" if unfinished else "")


def _set_axes(axes: Axes, results: Results, shown: Sequence[list[tuple[float, float]]]) -> None:
    metric = results.metric
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_ylabel(f"development {metric.title}" if metric.higher_is_better else metric.title)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    if not shown:
        return
    epochs = max(epoch for curve in shown for epoch, _ in curve)
    axes.set_xlim(1 - max(0.5, 0.02 * epochs), epochs + max(0.5, 0.02 * epochs))
    start = (SHOWN_FROM_LINEAR if metric.higher_is_better else SHOWN_FROM) * epochs
    late = [value for curve in shown for epoch, value in curve if epoch >= min(curve[-1][0], start)]
    low, high = min(late), max(late)
    if metric.higher_is_better:
        room = 0.04 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)
    else:
        _set_log_axis(axes, low, high, smallest=min((value for value in late if value > 0), default=0.01))


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


def _caption(axes: Axes, results: Results, shown: Sequence[list[tuple[float, float]]]) -> str:
    metric = results.metric
    caption = f"Development {metric.title}" if metric.higher_is_better else "Test error, on a logarithmic axis,"
    caption += " against epoch. Each run is a light line, the mean over a mode's runs a deep one."
    if any(run.rows for run in results.unfinished):
        caption += " Unfinished runs are dotted and in no mean of finished ones."
    bottom, top = axes.get_ylim()
    if any(value < bottom if metric.higher_is_better else value > top for curve in shown for _, value in curve):
        caption += " The first epochs lie outside the picture."
    return caption


def _summed_bins(runs: Sequence[Run]) -> list[tuple[int, float, int]]:
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
