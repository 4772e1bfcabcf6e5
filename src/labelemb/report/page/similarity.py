"""Which labels are alike, for pictures: distances, an order with groups, a plane, and whether two rankings agree.

Axes: C labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LABELS_PER_GROUP = 5
FEWEST_GROUPED = 6  # of fewer labels every group would be one label


class Arrangement(NamedTuple):
    """An order in which similar labels stand side by side, and which of them form a group."""

    order: list[int]
    """Positions, similar ones beside each other."""
    groups: list[int]
    """Of each position, counted along the order from 0."""


class Plane(NamedTuple):
    """Labels as points, similar ones near each other."""

    points: Array
    """(C, 2)."""
    share: float
    """How much of the squared distances two axes hold."""


def similarities(soft: Array) -> Array:
    """(s_yj + s_jy)/2 of soft labels (C, C): (C, C), zero on the diagonal."""
    values: Array = (soft + soft.T) / 2
    np.fill_diagonal(values, 0.0)
    return values


def distances(soft: Array) -> Array:
    """1 - (s_yj + s_jy)/2 (C, C), zero on the diagonal."""
    values: Array = 1 - similarities(soft)
    np.fill_diagonal(values, 0.0)
    return values


def arranged(distance: Array) -> Arrangement:
    """Average linkage, its leaves turned so that neighbours are close, cut into about one group for five labels."""
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform

    count = len(distance)
    if count < FEWEST_GROUPED:
        return Arrangement(list(range(count)), [0] * count)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    order = leaves_list(tree).tolist()
    found = fcluster(tree, max(2, round(count / LABELS_PER_GROUP)), "maxclust").tolist()
    number = {group: place for place, group in enumerate(dict.fromkeys(found[label] for label in order))}
    return Arrangement(order, [number[group] for group in found])


def plane(distance: Array) -> Plane:
    """Classical scaling of distances (C, C): the two axes of the largest eigenvalues of the centred squares."""
    count = len(distance)
    if count < 2:
        return Plane(np.zeros((count, 2)), 1.0)
    centred = distance**2
    centred = centred - centred.mean(axis=0) - centred.mean(axis=1)[:, None] + centred.mean()
    values, vectors = np.linalg.eigh(-centred / 2)  # ascending
    largest = np.maximum(values[::-1][:2], 0.0)
    points = vectors[:, ::-1][:, :2] * np.sqrt(largest)
    points = points * np.where(points.sum(axis=0) + points[np.abs(points).argmax(axis=0), range(2)] < 0, -1.0, 1.0)
    total = float(np.maximum(values, 0.0).sum())
    return Plane(points, float(largest.sum()) / total if total else 1.0)


def rank_correlation(values: Sequence[float] | Array, others: Sequence[float] | Array) -> float | None:
    """Spearman's, ties at their mean rank; None where one of both is constant, or for fewer than three pairs."""
    first, second = (_ranks(np.asarray(each, dtype=np.float64)) for each in (values, others))
    if len(first) < 3 or not first.std() or not second.std():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts - 1) / 2)[place]
    return ranks
