"""The kinds of task: how each is made from settings, and how a trained run of it predicts.

A recipe names its task, which has its settings class in labelemb.settings.recipe. torch comes with the call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labelemb.errors import InputError
from labelemb.run_folder import RunFolder
from labelemb.settings.config import (
    ClassifySettings,
    LabelingSettings,
    SentenceSettings,
    Settings,
    TableSettings,
    TextSettings,
)

if TYPE_CHECKING:
    import torch

    from labelemb.classify.data import ClassifyData
    from labelemb.training.task import Task


@dataclass(frozen=True)
class TaskKind:
    """One kind of task."""

    make: Callable[[Settings, RunFolder, "torch.device", bool], "Task"]
    """(settings, folder, device, download) -> what the engine trains; nothing is written."""
    predict: Callable[[RunFolder, Settings, Mapping[str, Any], str], str]
    """(folder, settings, options, device name) -> what to print. Options of `labelemb predict`, None if not given."""
    notes: Callable[[Settings, bool], list[str]] = lambda settings, download: []
    """(settings, download) -> what is to be said of the data before anything is done with them, a line each."""


def _load(settings: Settings, download: bool) -> "ClassifyData":
    """The data of a classification run."""
    if isinstance(settings, TableSettings):
        from labelemb.classify.tables import load_tables

        return load_tables(settings)
    if isinstance(settings, SentenceSettings):
        from labelemb.classify.sentences import load_sentences

        return load_sentences(settings)
    from labelemb.classify.image_inputs import load_image_inputs

    assert isinstance(settings, ClassifySettings)
    return load_image_inputs(settings, download=download)


def _make_classify(settings: Settings, folder: RunFolder, device: "torch.device", download: bool) -> "Task":
    from labelemb.classify.task import ClassifyTask

    assert isinstance(settings, LabelingSettings)
    return ClassifyTask(settings, _load(settings, download), device, folder)


def _notes(settings: Settings, download: bool) -> list[str]:
    """Of the user's own data: reading them once, before the runs do, finds all that is wrong with them."""
    return [] if settings.data.path is None else _load(settings, download).notes


def _predict_classes(folder: RunFolder, settings: Settings, options: Mapping[str, Any], device: str) -> str:
    of_text = any(options[name] is not None for name in ("src", "ref", "beam", "max_length", "attention"))
    if of_text or options["checkpoint"] == "best":
        raise InputError(
            f"{folder.path} is a run on images: it takes --data, --output, --device, --raw, and its last checkpoint"
        )
    from labelemb.classify.predict import predict_images
    from labelemb.training.device import choose_device

    assert isinstance(settings, ClassifySettings)
    output, data, calibrated = options["output"], options["data"], options["calibrated"]
    return predict_images(folder, settings, output, data, choose_device(device), calibrated=calibrated)


def _make_text(settings: Settings, folder: RunFolder, device: "torch.device", download: bool) -> "Task":
    from labelemb.text.task import TextTask

    assert isinstance(settings, TextSettings)
    return TextTask(settings, device, folder)


def _predict_text(folder: RunFolder, settings: Settings, options: Mapping[str, Any], device: str) -> str:
    if options["calibrated"] is not None:
        raise InputError(f"{folder.path} is a run on text: --calibrated and --raw are for class probabilities")
    from labelemb.text.predict import PredictOptions, predict_text
    from labelemb.training.device import choose_device

    assert isinstance(settings, TextSettings)
    given = PredictOptions(**{name: value for name, value in options.items() if value is not None})
    return predict_text(folder, settings, given, choose_device(device))


TASKS = {
    "classify": TaskKind(_make_classify, _predict_classes, _notes),
    "tables": TaskKind(_make_classify, _predict_classes, _notes),
    "text-classes": TaskKind(_make_classify, _predict_classes, _notes),
    "text": TaskKind(_make_text, _predict_text),
}
