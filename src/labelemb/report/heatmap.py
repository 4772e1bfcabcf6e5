"""The heat map of softmax(E): what the soft label of each label says about the others."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from labelemb.errors import InputError
from labelemb.report.learned_labels import Array, LabelTables, chosen_labels
from labelemb.report.style import style

MAX_LABELS = 30
NUM_STRONGEST = 15
MAX_NUMBERED = 12  # above it the numbers in the cells are too small to print
MAX_NAME = 24
SMALL_SHARE = 0.25  # where no cell is larger, on a scale to 1 there would be nothing to see


def heatmap_labels(tables: LabelTables, labels: Sequence[str] | None) -> list[int]:
    """The labels to show: those asked for, or all up to 30, or the 15 with the largest off-diagonal values.

    Raises:
        InputError: a label that the table does not have, or more than 30 of them.
    """
    if labels:
        chosen = chosen_labels(tables, labels)
        if len(chosen) > MAX_LABELS:
            raise InputError(f"the heat map shows at most {MAX_LABELS} labels, {len(chosen)} were asked for")
        return chosen
    return list(range(tables.num_labels)) if tables.num_labels <= MAX_LABELS else tables.strongest(NUM_STRONGEST)


def draw_heatmap(tables: LabelTables, labels: Sequence[int]) -> tuple[Figure, str]:
    """The picture, and the sentence under it that says what its numbers are."""
    cells = np.stack([rows[:, labels] for rows in tables.run_rows(labels)])  # (runs, K, K)
    names = [_short(tables.names[label]) for label in labels]
    return _figure(cells.mean(axis=0), names), _caption(tables, labels, cells)


def _figure(values: Array, names: Sequence[str]) -> Figure:
    count = len(names)
    cell = 0.42 if count <= MAX_NUMBERED else 0.27  # inches
    margin = 0.6 + 0.065 * max(map(len, names))
    with style():
        figure = Figure(figsize=(max(2.4, cell * count) + margin + 0.7, max(2.2, cell * count) + margin))
        axes = figure.add_subplot()
        edges = np.arange(count + 1) - 0.5
        black = _black(values)
        mesh = axes.pcolormesh(
            edges, edges, values, cmap="Greys", vmin=0, vmax=black, edgecolors="#E4E4E4", linewidth=0.3
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(count), names)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(True)
        axes.set_xlabel("share of the soft label")
        axes.set_ylabel("label")
        bar = figure.colorbar(mesh, ax=axes, ticks=np.linspace(0, black, 6), fraction=0.05, pad=0.03)
        bar.ax.tick_params(length=2)
        if count <= MAX_NUMBERED:
            for (row, column), value in np.ndenumerate(values):
                shade = "white" if value > black / 2 else "#303030" if value >= 0.005 else "#A0A0A0"
                axes.text(
                    column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=7, color=shade
                )
    return figure


def _caption(tables: LabelTables, labels: Sequence[int], cells: Array) -> str:
    num_runs = len(tables.runs)
    caption = "Each row is one label's soft label, softmax(E): how much of it falls on each other label. "
    if num_runs > 1:
        spread = cells.std(axis=0, ddof=1).max()
        caption += (
            f"Mean over {num_runs} runs of {tables.name}, rows aligned by label; "
            f"between runs a value varies by a standard deviation of at most {spread:.2f}."
        )
    else:
        caption += f"One run of {tables.name}, seed {tables.runs[0].seed}."
    if len(labels) < tables.num_labels:
        caption += (
            f" {len(labels)} of {tables.num_labels:,} labels are shown, "
            "so rows need not sum to 1; values outside the picture are left out."
        )
    black = _black(cells.mean(axis=0))
    return caption if black == 1 else f"{caption} The shares are small: black is {black:g}, not 1."


def _black(values: Array) -> float:
    """The value drawn black: 1, or for small shares the next of 0.25, 0.1, 0.05, 0.025 and so on."""
    largest = float(values.max())
    if largest > SMALL_SHARE:
        return 1.0
    steps = [step * 10.0**power for power in range(-9, 0) for step in (1, 2.5, 5)]
    return min(step for step in steps if step >= largest)


def _short(name: str) -> str:
    """Both ends of a long name: long names tend to differ at the end."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 10]}…{name[-9:]}"
