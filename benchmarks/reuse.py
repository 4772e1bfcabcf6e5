"""What a learned label table is worth to a new network: errors at epochs 1, 5 and last, with intervals.

labelemb train digits optimizer.table_lr=1e-3 --mode emb --seed 100 --output runs/teacher
TABLE=runs/teacher/digits/emb/seed-100/label_embedding.safetensors
MODES=baseline,emb,emb-start,emb-frozen
SETTINGS=optimizer.table_lr=1e-3  # that of the runs that were kept
labelemb compare digits $SETTINGS --modes $MODES --runs 20 --table $TABLE --name reuse
labelemb compare digits $SETTINGS --modes $MODES --runs 20 --table $TABLE --name reuse-128 "model.hidden=[128,128]"
python -m benchmarks.reuse runs/reuse runs/reuse-128
"""

import sys
from collections import defaultdict
from pathlib import Path

from labelemb.report.stats import mean, paired_difference
from labelemb.run_folder import find_runs

_EPOCHS = (1, 5, None)  # None: the last


def main(folders: list[Path]) -> None:
    """Print one table a folder: mode, and for each epoch the mean error % and its difference from the baseline."""
    for folder in folders:
        errors = _errors(folder)
        print(f"{folder.name}: test error %, difference from baseline with 95 % interval, paired by seed\n")
        print("| mode | " + " | ".join(f"epoch {epoch}" if epoch else "last epoch" for epoch in _EPOCHS) + " |")
        print("| --- " * (len(_EPOCHS) + 1) + "|")
        for mode, by_epoch in errors.items():
            cells = [_cell(by_epoch[epoch], errors["baseline"][epoch], mode) for epoch in _EPOCHS]
            print(f"| {mode} | " + " | ".join(cells) + " |")
        print()


def _errors(folder: Path) -> dict[str, dict[int | None, dict[int, float]]]:
    """Test errors in percent by mode, epoch and seed."""
    errors: dict[str, dict[int | None, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in find_runs(folder):
        rows = run.metrics
        for epoch in _EPOCHS:
            row = rows[-1] if epoch is None else rows[epoch - 1]
            errors[run.config["mode"]][epoch][run.config["seed"]] = 100 * row["test_error"]
    return errors


def _cell(values: dict[int, float], baseline: dict[int, float], mode: str) -> str:
    text = f"{mean(list(values.values())):.2f}"
    difference = paired_difference(values, baseline)
    if mode == "baseline" or difference.low is None:
        return text
    return f"{text} ({difference.low:+.2f} to {difference.high:+.2f})"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
