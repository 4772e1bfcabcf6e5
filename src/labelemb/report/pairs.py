"""Modes held against each other, paired by seed: against smoothing, and against the best of the table."""

from typing import Any

from labelemb.report import stats
from labelemb.report.summary import Results

SMOOTHING = "smoothing"
BEST, LEVEL, UNKNOWN = "best", "=", "?"


def smoothing_groups(results: Results) -> list[str]:
    """The groups whose mode is smoothing."""
    return [name for name, runs in results.groups.items() if runs[0].mode == SMOOTHING]


def best_smoothing(results: Results) -> str | None:
    """The one of them with the best mean; None where there is none."""
    return _best(results, smoothing_groups(results))


def against_smoothing(results: Results) -> dict[str, stats.Difference]:
    """Each group minus the best smoothing, paired by seed; empty where there is none."""
    reference = best_smoothing(results)
    if reference is None:
        return {}
    return {name: _difference(results, name, reference) for name in results.groups if name != reference}


def marks(results: Results) -> dict[str, str]:
    """What each group is beside the best mean of the table; empty for fewer than two groups.

    Returns:
        `best`; `=` where the interval of the paired difference to the best includes 0; `?` where fewer than two seeds
        are shared, so that there is no interval; an empty string for a group that is worse.
    """
    best = _best(results, list(results.groups))
    if best is None or len(results.groups) < 2:
        return {}
    return {name: BEST if name == best else _mark(_difference(results, name, best)) for name in results.groups}


def pairs_summary(results: Results) -> dict[str, Any]:
    """What summary.json has of both; differences as under `differences`: mode minus smoothing, rates as fractions."""
    found = marks(results)
    named = {mark: [name for name, each in found.items() if each == mark] for mark in (BEST, LEVEL, UNKNOWN)}
    differences = {name: each.as_json() for name, each in against_smoothing(results).items()}
    return {
        "against_smoothing": {"smoothing": best_smoothing(results), "differences": differences},
        "best": {"mode": next(iter(named[BEST]), None), "level": named[LEVEL], "unknown": named[UNKNOWN]},
    }


def _mark(difference: stats.Difference) -> str:
    if difference.low is None or difference.high is None:
        return UNKNOWN
    return LEVEL if difference.low <= 0 <= difference.high else ""


def _difference(results: Results, name: str, reference: str) -> stats.Difference:
    return stats.paired_difference(results.finals(name), results.finals(reference))


def _best(results: Results, names: list[str]) -> str | None:
    """The first of the best mean."""
    means = {name: mean for name in names if (mean := stats.mean(list(results.finals(name).values()))) is not None}
    choose = max if results.metric.higher_is_better else min
    return choose(means, key=means.__getitem__, default=None)
