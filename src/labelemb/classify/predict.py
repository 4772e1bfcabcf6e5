"""Class predictions of a trained run: a CSV of labels and their probabilities, one row an item."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelemb.classify.calibration import LARGEST_TEMPERATURE, LEAST_TEMPERATURE
from labelemb.classify.data import Items
from labelemb.classify.networks import Classifier
from labelemb.classify.task import make_network
from labelemb.errors import InputError
from labelemb.files import text_output
from labelemb.run_folder import RunFolder
from labelemb.settings.config import LabelingSettings
from labelemb.training.checkpoint import load_newest, must_fit
from labelemb.training.device import autocast

_BATCH = 1000
_NETWORK = "network."  # what its tensors are called in a checkpoint, before their own names


class Shown(NamedTuple):
    """What is written of each item."""

    calibrated: bool | None = None
    """Whether the probabilities are those of the logits over the run's temperature; None for where it has one."""
    top_k: int | None = None
    """The labels of the largest probabilities, so many; None for the predicted one and the probabilities of all."""


def predict_classes(
    folder: RunFolder,
    settings: LabelingSettings,
    items: Items,
    output: Path | None,
    device: torch.device,
    shown: Shown | None = None,
) -> str:
    """Write a CSV file, a row for each item; the predicted label is the same with a temperature or without.

    Args:
        folder: the run's; its last checkpoint is used.
        settings: the run's.
        items: what is predicted.
        output: the file; None for standard output.
        device: what computes.
        shown: what is written of each item, None for the defaults.

    Returns:
        How many items, their error where they are labelled, and the temperature where one was used: a line to print.

    Raises:
        InputError: there is no checkpoint, or no temperature where it is asked for, or the items have other labels or
            sizes than the run was trained with.
    """
    shown = shown or Shown()
    temperature = temperature_of(folder, calibrated=shown.calibrated)
    names = items.label_names
    if shown.top_k is not None and not 1 <= shown.top_k <= len(names):
        raise InputError(f"--top-k {shown.top_k}: expected 1 to {len(names)}, the number of labels")
    network = load_classifier(folder, settings, items.shape, len(names)).to(device).eval()
    num_errors = 0
    with text_output(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(["file"] if items.names else []), *_header(names, shown.top_k)])
        for part, logits in _logits(network, settings, items, device):
            predicted = logits.argmax(dim=1)
            num_errors += int((predicted != items.split.labels[part].cpu()).sum())
            probabilities = (logits / (temperature or 1.0)).softmax(dim=1)  # (B, C)
            rows = _rows(names, predicted, logits, probabilities, shown.top_k)
            for number, row in enumerate(rows, part.start):
                writer.writerow([*([items.names[number]] if items.names else []), *row])
    count = f"{len(items.split)} {items.noun}"
    scaled = "" if temperature is None else f"; probabilities at temperature {temperature:.4g}"
    if temperature is None and shown.calibrated is None and folder.temperature is not None:
        count_held_out = folder.calibration.get("num_items", "the")
        scaled = f"; probabilities as trained: {count_held_out} held-out items tell no temperature"
    return f"{_error(items, num_errors)}{count}{scaled}"


def load_classifier(
    folder: RunFolder, settings: LabelingSettings, shape: tuple[int, ...], num_classes: int
) -> Classifier:
    """The network of a run's last checkpoint.

    Raises:
        InputError: there is none, or it has other labels or sizes.
    """
    state = load_newest(folder.checkpoints)
    if state is None:
        raise InputError(f"{folder.checkpoints}: no checkpoint yet")
    network = make_network(settings.model, shape, num_classes)
    with must_fit(folder.checkpoints):
        tensors = {name: tensor for name, tensor in state["module"].items() if name.startswith(_NETWORK)}
    try:
        network.load_state_dict({name.removeprefix(_NETWORK): tensor for name, tensor in tensors.items()})
    except RuntimeError:
        raise InputError(f"{folder.path} was trained with other labels or sizes than the data has") from None
    return network


@torch.no_grad()
def _logits(
    network: Classifier, settings: LabelingSettings, items: Items, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the items, each with its logits (B, C) float32 on the host."""
    for start in range(0, len(items.split), _BATCH):
        part = slice(start, start + _BATCH)
        with autocast(device, settings.precision):
            logits, _ = network(items.split.inputs(part).to(device))
        yield part, logits.float().cpu()


def _header(names: list[str], top_k: int | None) -> list[str]:
    if top_k is None:
        return ["predicted", *names]
    ranks = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
    return [f"{column}{rank}" for rank in ranks for column in ("predicted", "probability")]


def _rows(
    names: list[str], predicted: Tensor, logits: Tensor, probabilities: Tensor, top_k: int | None
) -> Iterator[list[Any]]:
    """What is written of each of B items, from predicted (B,), logits and probabilities (B, C)."""
    if top_k is None:
        for index, row in zip(predicted.tolist(), probabilities.tolist(), strict=True):
            yield [names[index], *(f"{value:.6f}" for value in row)]
        return
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :top_k]  # (B, k)
    for indices, values in zip(best.tolist(), probabilities.gather(1, best).tolist(), strict=True):
        yield [cell for index, value in zip(indices, values, strict=True) for cell in (names[index], f"{value:.6f}")]


def _error(items: Items, num_errors: int) -> str:
    if not items.is_labeled or not len(items.split):
        return ""
    return f"error {100 * num_errors / len(items.split):.2f} % of "


def temperature_of(folder: RunFolder, *, calibrated: bool | None) -> float | None:
    """The run's, where it is asked for; of None, where it has one that is not at the edge of what was searched.

    There the held-out items, few as a rule, were all right or said nothing: their best temperature would be 0, which
    makes every probability 1, or infinite.

    Raises:
        InputError: it is asked for, and there is none.
    """
    temperature = folder.temperature if calibrated is not False else None
    if calibrated and temperature is None:
        raise InputError(
            f"{folder.path} has no calibration.json: a temperature is fitted at the end of a run that holds out "
            "training examples (data.validation)"
        )
    if calibrated or temperature is None:
        return temperature
    return temperature if 1.01 * LEAST_TEMPERATURE < temperature < 0.99 * LARGEST_TEMPERATURE else None
