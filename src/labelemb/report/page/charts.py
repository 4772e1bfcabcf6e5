"""What the charts of the page are drawn from: curves, reliability, and how each mode's lines look."""

from collections.abc import Sequence
from typing import Any

from labelemb.report import stats
from labelemb.report.curves import MIN_BIN_COUNT, summed_bins
from labelemb.report.style import COLORS, looks
from labelemb.report.summary import Results, Run

# Each colour of the printed figures, on white and on black: the same hues, 3 to 1 at least against the page.
ON_WHITE = ("#4D4D4D", "#A86E00", "#007F5C", "#B0508A", "#0072B2", "#C04F00", "#2E86C1")
ON_BLACK = ("#C8C8C8", "#E69F00", "#2FC39A", "#E09CC4", "#4DA3E0", "#F0803C", "#8CCBF2")
SIGNIFICANT = 6


def mode_looks(results: Results) -> dict[str, dict[str, str]]:
    """For each name its colour on white and on black, and its pattern as plotly writes it."""
    found = {}
    for name, look in looks(results.names).items():
        place = COLORS.index(look.color)
        pattern = "solid" if isinstance(look.pattern, str) else ",".join(f"{2 * part:g}px" for part in look.pattern[1])
        found[name] = {"light": ON_WHITE[place], "dark": ON_BLACK[place], "dash": pattern}
    return found


def curves(results: Results) -> dict[str, Any]:
    """Every run's curve, and the mean of each name's finished runs, scaled as on the page."""
    metric = results.metric
    groups = []
    for name in results.names:
        finished = results.groups.get(name, [])
        unfinished = [run for run in results.unfinished if run.name == name]
        runs = [_line(run, done=True) for run in finished] + [_line(run, done=False) for run in unfinished]
        middle = stats.mean_curve([run.curve(metric.curve) for run in finished or unfinished])
        if any(run["y"] for run in runs):
            groups.append({"name": name, "runs": runs, "mean": _points(middle, metric.scale), "done": bool(finished)})
    return {"title": metric.curve_title, "log": metric.has_log_axis, "unit": metric.unit, "groups": groups}


def reliability(results: Results) -> list[dict[str, Any]]:
    """Accuracy and confidence in percent of the bins with enough items, for each name that has any."""
    found = []
    for name, runs in results.groups.items():
        bins = [each for each in summed_bins(runs) if each[0] >= MIN_BIN_COUNT]
        if bins:
            found.append(
                {
                    "name": name,
                    "x": [_short(100 * confidence / count) for count, confidence, _ in bins],
                    "y": [_short(100 * correct / count) for count, _, correct in bins],
                    "n": [count for count, _, _ in bins],
                }
            )
    return found


def curves_in_words(results: Results) -> str:
    """The text alternative of the curves."""
    metric = results.metric
    means = {name: stats.mean(list(results.finals(name).values())) for name in results.groups}
    ends = [f"{name} {metric.scale * mean:.2f}{metric.unit}" for name, mean in means.items() if mean is not None]
    return f"{metric.curve_title} against epoch. Final means: {', '.join(ends) or 'none yet'}."


def _line(run: Run, *, done: bool) -> dict[str, Any]:
    return {"seed": run.seed, "done": done, **_points(run.curve(run.metric.curve), run.metric.scale)}


def _points(curve: stats.Curve, scale: float) -> dict[str, Any]:
    """Values, and their epochs where these are not simply 1, 2, 3."""
    epochs = list(curve)
    return {
        "x": None if epochs == list(range(1, len(epochs) + 1)) else epochs,
        "y": [_short(scale * value) for value in curve.values()],
    }


def _short(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT}g}")


def rounded(values: Sequence[float], digits: int) -> list[float]:
    """For the page's data: what nobody sees is left out."""
    return [round(float(value), digits) for value in values]
