"""The kinds of task: how each is made from settings, and how a trained run of it predicts.

A recipe names its task, which has its settings class in labelemb.settings.recipe. torch comes with the call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
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

    from labelemb.classify.data import ClassifyData, Items
    from labelemb.training.task import Task


@dataclass(frozen=True)
class TaskKind:
    """One kind of task."""

    make: Callable[[Settings, RunFolder, "torch.device", bool], "Task"]
    """(settings, folder, device, download) -> what the engine trains; nothing is written."""
    predict: Callable[[RunFolder, Settings, Mapping[str, Any], str], str]
    """(folder, settings, options, device name) -> what to print. Options of `labelemb predict`, None if not given."""
    export: Callable[[RunFolder, Settings, Path], str]
    """(folder, settings, file) -> what to print."""
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
    of_text = any(options[name] is not None for name in ("ref", "beam", "max_length", "attention"))
    if of_text or options["checkpoint"] == "best":
        raise InputError(
            f"{folder.path} is a run of class predictions: it takes a file or folder, --data, --output, --device, "
            "--raw, --top-k, and its last checkpoint"
        )
    if settings.tuning is not None:
        raise InputError(f"{folder.path} is a run of tuning, which is kept from the test set: give a final run")
    from labelemb.classify.predict import Shown, predict_classes
    from labelemb.training.device import choose_device

    items = _items(folder, settings, options["source"], options["data"])
    shown = Shown(options["calibrated"], options["top_k"])
    assert isinstance(settings, LabelingSettings)
    return predict_classes(folder, settings, items, options["output"], choose_device(device), shown)


def _export(folder: RunFolder, settings: Settings, output: Path) -> str:
    from labelemb.classify.export import export_classifier

    assert isinstance(settings, LabelingSettings)
    return export_classifier(folder, settings, output)


def _items(folder: RunFolder, settings: Settings, source: Path | None, data: Path | None) -> "Items":
    """What is to be predicted: `source`, else the test items of `data`, else those of the run's own data."""
    from labelemb.classify.data import Items
    from labelemb.classify.record import read_record

    if source is None:
        moved = settings.data if data is None else settings.data.model_copy(update={"path": data})
        loaded = _load(settings.model_copy(update={"data": moved}), False)
        return Items(loaded.test, loaded.label_names, loaded.shape, f"test {loaded.record['kind']}")
    assert isinstance(settings, LabelingSettings)
    record = read_record(folder, settings)
    if data is not None or not record:
        why = f"--data {data}" if data is not None else "the run has no inputs.json"
        raise InputError(f"{source}: {why}; of a data set the test items are predicted: give it as --data alone")
    if isinstance(settings, TableSettings):
        from labelemb.classify.tables import read_rows

        return read_rows(record, source)
    if isinstance(settings, SentenceSettings):
        from labelemb.classify.sentences import read_texts

        return read_texts(settings, record, source)
    from labelemb.classify.image_inputs import read_images

    return read_images(record, source)


def _export_nothing(folder: RunFolder, settings: Settings, output: Path) -> str:
    raise InputError(f"{folder.path} is a run on parallel text: export is for runs of class predictions")


def _make_text(settings: Settings, folder: RunFolder, device: "torch.device", download: bool) -> "Task":
    from labelemb.text.task import TextTask

    assert isinstance(settings, TextSettings)
    return TextTask(settings, device, folder)


def _predict_text(folder: RunFolder, settings: Settings, options: Mapping[str, Any], device: str) -> str:
    if options["calibrated"] is not None or options["top_k"] is not None:
        raise InputError(f"{folder.path} is a run on text: --calibrated and --raw, --top-k are for class probabilities")
    from labelemb.text.predict import PredictOptions, predict_text
    from labelemb.training.device import choose_device

    assert isinstance(settings, TextSettings)
    renamed = {"src" if name == "source" else name: value for name, value in options.items()}
    given = PredictOptions(**{name: value for name, value in renamed.items() if value is not None})
    return predict_text(folder, settings, given, choose_device(device))


TASKS = {
    "classify": TaskKind(_make_classify, _predict_classes, _export, _notes),
    "tables": TaskKind(_make_classify, _predict_classes, _export, _notes),
    "text-classes": TaskKind(_make_classify, _predict_classes, _export, _notes),
    "text": TaskKind(_make_text, _predict_text, _export_nothing),
}
