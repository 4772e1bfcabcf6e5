"""Runs and data sets small enough to train in a test."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from labelemb.experiments.job import Job, execute
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.settings.recipe import load_recipe
from labelemb.training.checkpoint import load_newest

SMALL = ("data.limit=64", "batch_size=16", "epochs=3", "model.hidden=[12]", "device=cpu")


def small_settings(*overrides: str, mode: str = "emb", seed: int = 0, table: Path | None = None) -> ClassifySettings:
    """Digits, 64 training images, 4 steps an epoch."""
    settings = load_recipe("digits", [*SMALL, *overrides], {"mode": mode, "seed": seed, "table": table}, beside=["emb"])
    assert isinstance(settings, ClassifySettings)
    return settings


def small_job(output: Path, *overrides: str, mode: str = "emb", seed: int = 0, table: Path | None = None) -> Job:
    settings = small_settings(*overrides, mode=mode, seed=seed, table=table)
    return Job(settings, RunFolder.at(output, settings.recipe, mode, seed))


def small_run(output: Path, *overrides: str, mode: str = "emb", seed: int = 0, table: Path | None = None) -> RunFolder:
    """A small run, done."""
    job = small_job(output, *overrides, mode=mode, seed=seed, table=table)
    execute(job)
    return job.folder


def what_was_learned(folder: RunFolder) -> dict[str, Any]:
    """All that a run left behind but the clock: rows, evaluation, table, weights, optimiser state."""
    state = load_newest(folder.checkpoints)
    assert state is not None
    state["position"].pop("seconds")
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in folder.metrics]
    table = load_file(folder.table) if folder.table.is_file() else None
    return {"rows": rows, "evaluation": folder.evaluation, "table": bits(table), "state": bits(state)}


def bits(value: Any) -> Any:
    """Nested values with bytes for tensors: `==` compares every bit."""
    if isinstance(value, Tensor):
        return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bits(item) for item in value]
    return value


def some_images(num_images: int, shape: Sequence[int], num_classes: int) -> tuple[Tensor, Tensor]:
    """Random uint8 images, every label in turn."""
    generator = torch.Generator().manual_seed(num_images)
    images = torch.randint(256, (num_images, *shape), generator=generator, dtype=torch.uint8)
    return images, torch.arange(num_images) % num_classes


def write_image_cache(
    path: Path,
    *,
    num_train: int = 12,
    num_test: int = 6,
    shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 3,
    tensors: dict[str, Tensor] | None = None,
    metadata: dict[str, str | None] | None = None,
) -> Path:
    """A file for `--data`; `tensors` and `metadata` replace what would stand there, None takes it out."""
    train_images, train_labels = some_images(num_train, shape, num_classes)
    test_images, test_labels = some_images(num_test, shape, num_classes)
    all_tensors = {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    } | (tensors or {})
    names = [f"label {index}" for index in range(num_classes)]
    all_metadata = {
        "format": "labelemb.images",
        "version": "1",
        "label_names": json.dumps(names),
        "scale": "255.0",
    } | (metadata or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(all_tensors, path, {key: value for key, value in all_metadata.items() if value is not None})
    return path
