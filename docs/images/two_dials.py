"""The picture of docs/when.md: the target of one digit, turned by each of the two dials.

    python docs/images/two_dials.py

The learned shares are those of `results/digits-tuned/decoupled`, the mean of its seeds.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from labelemb.losses.counted_table import CountedTable

HERE = Path(__file__).parent
LABEL, SHARES, TOP = 9, (0.1, 0.3), 0.08
OWN, OTHERS = "#4477aa", "#ee6677"


def learned_row() -> torch.Tensor:
    """What else the networks thought of, where they were right about LABEL: (10,)."""
    runs = sorted((HERE.parents[1] / "results/digits-tuned/decoupled").glob("seed-*"))
    tables = [CountedTable.load(run / "label_embedding.safetensors") for run in runs]
    return torch.stack([table.soft_labels(torch.tensor([LABEL]))[0] for table in tables]).mean(dim=0)


def main() -> None:
    """Write two_dials.png beside this file."""
    uniform = torch.full((10,), 1 / 9).scatter(0, torch.tensor([LABEL]), 0.0)
    rows = {"what else: nothing learned": uniform, "what else: learned": learned_row()}
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 4.4), sharex=True, sharey=True, layout="constrained")
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, share in zip(line, SHARES, strict=True):
            axis.bar(range(10), share * row, color=OTHERS)
            axis.bar(LABEL, TOP, color=OWN)
            axis.text(
                LABEL - 0.6, 0.93 * TOP, f"{LABEL} itself: {1 - share:.1f}", ha="right", va="top", color=OWN, size=9
            )
            axis.set_ylim(0, TOP)
            axis.set_xticks(range(10))
            axis.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(name, size=9)
    for axis, share in zip(axes[0], SHARES, strict=True):
        axis.set_title(f"how sure: epsilon = {share}", size=10)
    figure.supxlabel(f"share of each digit in the target of a {LABEL}; the bar of {LABEL} is cut off", size=9)
    figure.savefig(HERE / "two_dials.png", dpi=150)


if __name__ == "__main__":
    main()
