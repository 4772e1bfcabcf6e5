"""Class predictions of a trained run for the test images of a data set."""

import csv
import io
from pathlib import Path

import torch

from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.task import ClassifyTask
from labelemb.errors import InputError
from labelemb.files import write_atomically
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.training.checkpoint import load_newest


def predict_images(
    folder: RunFolder,
    settings: ClassifySettings,
    output: Path,
    data_path: Path | None,
    device: torch.device,
    *,
    calibrated: bool | None = None,
) -> str:
    """Write a CSV file: for each test image the predicted class, then the probability of every class.

    Args:
        folder: the run's; its last checkpoint is used.
        settings: the run's.
        output: the file.
        data_path: the data set, None for where the run had it.
        device: what computes.
        calibrated: whether the probabilities are those of the logits over the run's temperature; None for where it
            has one. The predicted class is the same either way.

    Returns:
        The test error, and the temperature where one was used, as a line to print.

    Raises:
        InputError: there is no checkpoint, or no temperature where `calibrated` asks for it, it is a run of tuning, or
            the data set has other labels or sizes than the run was trained with.
    """
    if settings.tuning is not None:
        raise InputError(f"{folder.path} is a run of tuning, which is kept from the test set: give a final run")
    temperature = _temperature(folder, calibrated)
    state = load_newest(folder.checkpoints)
    if state is None:
        raise InputError(f"{folder.checkpoints}: no checkpoint yet")
    if data_path is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"path": data_path})})
    data = load_image_inputs(settings)
    task = ClassifyTask(settings, data, device, folder)
    try:
        task.module.load_state_dict(state["module"])
    except RuntimeError:
        raise InputError(f"{folder.path} was trained with other labels or image sizes than the data has") from None
    task.module.eval()
    table, num_errors = io.StringIO(), 0
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["predicted", *data.label_names])
    for logits, labels in task.predict(task.data.test):
        predicted = logits.argmax(dim=1)
        num_errors += int((predicted != labels).sum())
        probabilities = (logits.float() / (temperature or 1.0)).softmax(dim=1)  # (B, C)
        for index, row in zip(predicted.tolist(), probabilities.tolist(), strict=True):
            writer.writerow([data.label_names[index], *(f"{value:.6f}" for value in row)])
    write_atomically(output, table.getvalue().encode())
    scaled = "" if temperature is None else f"; probabilities at temperature {temperature:.4g}"
    return f"test error {100 * num_errors / len(data.test):.2f} % of {len(data.test)} images{scaled}"


def _temperature(folder: RunFolder, calibrated: bool | None) -> float | None:
    """The run's, unless raw probabilities are asked for."""
    temperature = folder.temperature if calibrated is not False else None
    if calibrated and temperature is None:
        raise InputError(
            f"{folder.path} has no calibration.json: a temperature is fitted at the end of a run that holds out "
            "training images (data.validation)"
        )
    return temperature
