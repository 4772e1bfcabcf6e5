"""Means, spreads and paired intervals over runs. A leaf: plain floats in and out, scipy only for the t quantile."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

Curve = Mapping[int, float]  # epoch -> value


class Difference(NamedTuple):
    """A mode minus the baseline over the seeds both have; None where too few seeds are shared to say."""

    mean: float | None
    low: float | None
    high: float | None
    num_pairs: int

    def as_json(self) -> dict[str, float | None]:
        """What summary.json has of it."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def mean(values: Sequence[float]) -> float | None:
    """The mean of `values`; None for no values."""
    return fmean(values) if values else None


def standard_deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, with n - 1; None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """`values` minus `baseline`, paired by seed, with Student's 95 % interval.

    Args:
        values: seed -> final value of a mode.
        baseline: seed -> final value of the baseline. Seeds that only one of the two has are left out.

    Returns:
        The mean difference (None without a common seed) and the interval (None for fewer than two pairs).
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    num_pairs, center, spread = len(differences), mean(differences), standard_deviation(differences)
    if center is None or spread is None:
        return Difference(center, None, None, num_pairs)
    from scipy.special import stdtrit  # the quantile; scipy.stats would take seconds to import

    margin = float(stdtrit(num_pairs - 1, 0.975)) * spread / math.sqrt(num_pairs)
    return Difference(center, center - margin, center + margin, num_pairs)


def mean_curve(curves: Sequence[Curve]) -> dict[int, float]:
    """The mean over runs at each epoch that every run has, epochs ascending."""
    if not curves:
        return {}
    epochs = set(curves[0]).intersection(*curves[1:])
    return {epoch: fmean([curve[epoch] for curve in curves]) for epoch in sorted(epochs)}


def first_arrival(curves: Sequence[Curve], target: float, *, higher_is_better: bool = False) -> int | None:
    """The first epoch at which the mean over runs is at or below `target` (at or above where higher is better).

    Args:
        curves: one for each run, epoch -> value.
        target: the baseline's mean final value.

    Returns:
        The epoch, or None if the mean never gets there.
    """
    for epoch, value in mean_curve(curves).items():
        if value >= target if higher_is_better else value <= target:
            return epoch
    return None
