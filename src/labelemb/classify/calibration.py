"""One temperature for a trained classifier: its probabilities become softmax(z / T) (Guo et al. 2017, section 4.2)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.05, 20.0
_HALVINGS = 52  # of log(20 / 0.05): the last interval is as wide as a float64's last digit


class Calibration(NamedTuple):
    """What calibration.json holds: T, how many held-out items it was fitted on, and their mean NLL at 1 and at T."""

    temperature: float
    num_items: int
    nll_before: float
    nll_after: float


def fit_temperature(logits: Tensor, target: Tensor) -> Calibration | None:
    """The temperature in [0.05, 20] of the least mean -log softmax(z / T)_y, in float64 on the host.

    In 1/T the mean is convex, with the slope mean(E_p[z] - z_y): the sign of the slope is enough to halve the
    interval of log T. Items that are all right drive T to its least value, items that say nothing to its largest.

    Args:
        logits: (N, C) floating point; -inf masks a class.
        target: (N,) integers in [0, C).

    Returns:
        The fit, never worse than T = 1; None where there are no items, or where their NLL is not finite at T = 1.
    """
    logits, target = logits.detach().cpu().double(), target.detach().cpu().long()
    before = _mean_nll(logits, target, 1.0) if len(target) else math.nan
    if not math.isfinite(before):
        return None
    low, high = LEAST_TEMPERATURE, LARGEST_TEMPERATURE
    for _ in range(_HALVINGS):
        temperature = math.sqrt(low * high)
        if _slope(logits, target, temperature) > 0:  # 1/T is too large
            low = temperature
        else:
            high = temperature
    after = _mean_nll(logits, target, temperature)
    if not after < before:  # a flat mean, where the last digit decides
        temperature, after = 1.0, before
    return Calibration(temperature, len(target), before, after)


def _mean_nll(logits: Tensor, target: Tensor, temperature: float) -> float:
    return F.cross_entropy(logits / temperature, target).item()


def _slope(logits: Tensor, target: Tensor, temperature: float) -> float:
    """Of the mean NLL in 1/T."""
    differences = logits - logits.gather(1, target[:, None])  # (N, C): to the true class, so that nothing cancels
    probabilities = (logits / temperature).softmax(dim=1)
    return torch.where(probabilities > 0, probabilities * differences, 0.0).sum(dim=1).mean().item()
