"""Run folders made from formulas, as training would have written them."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from labelemb.run_folder import RunFolder

FINAL_ERROR = {"baseline": 0.0223, "smoothing": 0.0153, "emb": 0.0119, "emb-start": 0.0121, "emb-frozen": 0.0117}
FINAL_BLEU = {"baseline": 24.6, "emb": 25.9}
DIGITS = [str(digit) for digit in range(10)]

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run("emb", 3, epochs=30, ...) writes tmp_path/runs/RECIPE/emb/seed-03."""

    def make(mode: str, seed: int, **options: Any) -> RunFolder:
        return write_run(tmp_path / "runs", mode, seed, **options)

    return make


def write_run(
    output: Path,
    mode: str,
    seed: int,
    *,
    recipe: str = "digits",
    epochs: int = 30,
    metric: str = "test_error",
    done: int | None = None,
    label_names: Sequence[str] = DIGITS,
    rank: int | None = None,
    settings: dict[str, Any] | None = None,
) -> RunFolder:
    """A run of `epochs` epochs of which `done` are over (None: all, and the run has come to its end)."""
    folder = RunFolder.at(output, recipe, mode, seed)
    draw = np.random.default_rng([seed, sum(map(ord, mode))])
    is_text = metric != "test_error"
    folder.write_config(
        {"recipe": recipe, "task": "text" if is_text else "classify", "mode": mode, "seed": seed, "metric": metric}
        | {"epochs": epochs, "batch_size": 64, "optimizer": {"name": "adam", "lr": 0.001}, "data": {"source": recipe}}
        | (settings or {})
    )
    row = _text_row if is_text else _image_row
    folder.write_metrics([row(draw, mode, epoch, metric) for epoch in range(1, (done or epochs) + 1)])
    folder.write_environment(
        {"versions": {"labelemb": "0.1.0", "torch": "2.13.0"}, "device": "cpu", "command": f"labelemb compare {recipe}"}
        | {"commit": "1234567", "start": "2026-11-21T08:00:00Z", "end": None if done else "2026-11-21T08:01:00Z"}
    )
    if done is None:
        if is_text:
            score = FINAL_BLEU[mode] + 0.3 * float(draw.standard_normal())
            folder.write_evaluation({"test": {metric: score}, "signature": "nrefs:1|case:lc|tok:none|version:2.6.0"})
        else:
            folder.write_evaluation({"calibration": calibration_bins(mode), "label_names": list(label_names)})
        if mode.startswith("emb"):
            write_table(folder.table, label_names, rank=rank, seed=seed)
    return folder


def write_table(path: Path, label_names: Sequence[str], *, rank: int | None = None, seed: int = 0) -> None:
    """A table in which labels 2i and 2i + 1 are partners; low rank: random codes."""
    count, draw = len(label_names), np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]]
    if rank is None:
        weight = 0.3 * draw.standard_normal((count, count)) + (3.2 + math.log(count / 10)) * np.eye(count)
        for label in range(count - count % 2):
            weight[label, label ^ 1] += 2.6 * math.sin(1 + label // 2) ** 2 + 0.45 * math.log(count / 10)
        tensors = {"weight": weight.astype(np.float32)}
    else:
        tensors = {
            "rows.weight": draw.standard_normal((count, rank)).astype(np.float32),
            "decoder.weight": draw.standard_normal((count, rank)).astype(np.float32),
            "decoder.bias": draw.standard_normal(count).astype(np.float32),
        }
    metadata = {"format": "labelemb.table", "version": "1", "label_names": json.dumps(list(label_names))}
    save_file(tensors, path, metadata=metadata)


def calibration_bins(mode: str) -> list[dict[str, float | int | None]]:
    """15 bins; the baseline is too sure of itself, the first bins are empty."""
    bins: list[dict[str, float | int | None]] = []
    for index in range(15):
        count = 0 if index < 3 else round(4 * math.exp(0.36 * index))
        confidence = (index + 0.5) / 15
        accuracy = confidence - (0.12 if mode == "baseline" else 0.02) * math.sin(math.pi * confidence)
        bins.append({"count": count, "confidence": confidence if count else None, "correct": round(accuracy * count)})
    return bins


def _image_row(draw: np.random.Generator, mode: str, epoch: int, metric: str) -> dict[str, float | int]:
    final = FINAL_ERROR.get(mode, 0.015)
    error = final * (1 + 0.08 * float(draw.standard_normal())) + 0.17 * math.exp(-0.33 * (epoch - 1))
    nll, ece = 3.1 * error, 0.9 * error
    return {"epoch": epoch, "step": 17 * epoch, "train_loss": error, "train_error": error / 3} | {
        "test_error": error,
        "test_nll": nll,
        "test_ece": ece,
        "seconds": 0.021 if mode == "baseline" else 0.023,
    }


def _text_row(draw: np.random.Generator, mode: str, epoch: int, metric: str) -> dict[str, float | int]:
    score = FINAL_BLEU[mode] * (1 - math.exp(-0.28 * epoch)) + 0.25 * float(draw.standard_normal())
    return {"epoch": epoch, "step": 900 * epoch, "train_loss": 3 / epoch, "valid_perplexity": 20 / epoch} | {
        f"valid_{metric}": score,
        "seconds": 61.0 if mode == "baseline" else 64.5,
    }
