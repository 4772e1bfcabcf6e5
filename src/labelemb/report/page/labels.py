"""What the page shows of a learned table: all values of a small one, of a large one each label's nearest.

Axes: C labels, K of them whose rows are in the page, k nearest ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from labelemb.report.learned_labels import NUM_KEPT, Array, LabelTables
from labelemb.report.page.charts import rounded
from labelemb.report.page.similarity import Plane, arranged, distances, plane

LARGEST_MATRIX = 200
NUM_NEAREST = NUM_KEPT
NUM_ON_PLANE = 150  # of a larger table: the labels with the strongest pairs
SHARE_DIGITS = 5


def label_data(tables: LabelTables) -> dict[str, Any]:
    """The data of heat map, search and plane."""
    data: dict[str, Any] = {"names": tables.names, "mode": tables.name, "runs": len(tables.runs), "matrix": None}
    if tables.num_labels <= LARGEST_MATRIX:
        return data | _whole(tables.rows(range(tables.num_labels)), tables.names)
    return data | _by_neighbors(tables) | _strongest(tables)


def _whole(rows: Array, names: Sequence[str]) -> dict[str, Any]:
    distance = distances(rows)
    found = arranged(distance)
    by_name = sorted(range(len(names)), key=lambda label: (_sortable(names[label]), label))
    return {
        "matrix": [rounded(row, SHARE_DIGITS) for row in rows],
        "orders": {"similarity": found.order, "name": by_name, "number": list(range(len(names)))},
        "groups": found.groups,
        "plane": _points(plane(distance), list(range(len(names))), found.groups),
    }


def _by_neighbors(tables: LabelTables) -> dict[str, Any]:
    """Flat lists of the k nearest of each label that has a row: positions, and shares in parts of 100,000."""
    labels = tables.affordable()
    indices, shares = tables.first_nearest
    return {
        "rows": None if len(labels) == tables.num_labels else labels,
        "num_nearest": indices.shape[1],
        "indices": indices.ravel().tolist(),
        "shares": np.rint(shares.ravel() * 10**SHARE_DIGITS).astype(int).tolist(),
    }


def _strongest(tables: LabelTables) -> dict[str, Any]:
    labels = tables.strongest(NUM_ON_PLANE)
    distance = distances(tables.rows(labels)[:, labels])
    return {"plane": _points(plane(distance), labels, arranged(distance).groups)}


def _points(found: Plane, labels: Sequence[int], groups: Sequence[int]) -> dict[str, Any]:
    return {
        "labels": list(labels),
        "x": rounded(found.points[:, 0].tolist(), SHARE_DIGITS),
        "y": rounded(found.points[:, 1].tolist(), SHARE_DIGITS),
        "groups": list(groups),
        "share": round(found.share, 3),
    }


def _sortable(name: str) -> tuple[bool, float, str]:
    """Numbers by value before words by their letters."""
    return (False, float(name), "") if name.isdecimal() else (True, 0.0, name.casefold())
