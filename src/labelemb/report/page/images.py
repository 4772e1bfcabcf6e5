"""Test images: two of each label to look at beside the label map, and those that the modes disagree on."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labelemb.errors import InputError
from labelemb.files import read_json
from labelemb.report.summary import Results, Run

NUM_DISAGREED = 24
MOST_PER_LABEL = 2
MOST_OF_LABELS = 200  # pictures of labels in one page
LARGEST_AS_IT_IS = 6_000  # bytes; a larger picture is made small
SIDE = 72  # pixels, of a small one


class Answer(NamedTuple):
    """One mode's."""

    name: str
    label: str
    certainty: str
    is_right: bool


class Disagreed(NamedTuple):
    """One test image."""

    address: str
    label: str
    answers: list[Answer]


def of_labels(results: Results, num_labels: int) -> dict[int, list[str]]:
    """label -> addresses of test images, of the first run that has any."""
    per_label = min(MOST_PER_LABEL, MOST_OF_LABELS // num_labels)
    for run in _runs(results):
        found: dict[int, list[str]] = {}
        for path in sorted(run.folder.examples.glob("[0-9]*-[0-9]*.png")):
            label = path.stem.partition("-")[0]
            if label.isdecimal() and len(found.setdefault(int(label), [])) < per_label:
                found[int(label)].append(address(path))
        if found:
            return found
    return {}


def has_answers(results: Results) -> bool:
    """Whether any run says what it answered to single images."""
    return any((run.folder.examples / "answers.json").is_file() for run in _runs(results))


def disagreed(results: Results) -> list[Disagreed]:
    """The images whose picture is there and that two modes answer differently, the surest mistakes first."""
    answers = _answers(results)
    if len(answers) < 2:
        return []
    names = _label_names(results)
    pictures = {int(path.stem[5:]): path for run in _runs(results) for path in _pictures(run)}
    count = min(len(each["label"]) for each in answers.values())
    split = [
        index
        for index in sorted(pictures)
        if index < count and len({each["predicted"][index] for each in answers.values()}) > 1
    ]
    chosen = sorted(split, key=lambda index: -_surest_mistake(answers, index))[:NUM_DISAGREED]
    return [_item(answers, index, pictures[index], names) for index in chosen]


def _item(answers: Mapping[str, dict[str, Any]], index: int, path: Path, names: Sequence[str]) -> Disagreed:
    label = next(iter(answers.values()))["label"][index]
    told = []
    for name, each in answers.items():
        predicted, certainty = each["predicted"][index], each["certainty"][index]
        told.append(Answer(name, _named(names, predicted), f"{certainty:.0%}", predicted == label))
    return Disagreed(address(path), _named(names, label), told)


def _surest_mistake(answers: Mapping[str, dict[str, Any]], index: int) -> float:
    wrong = [each["certainty"][index] for each in answers.values() if each["predicted"][index] != each["label"][index]]
    return float(max(wrong, default=0.0))


def _answers(results: Results) -> dict[str, dict[str, Any]]:
    """By name, of one run each; only those whose test images have the labels of the first one's."""
    found: dict[str, dict[str, Any]] = {}
    for name, runs in results.groups.items():
        path = next((path for run in runs if (path := run.folder.examples / "answers.json").is_file()), None)
        if path is not None:
            found[name] = _checked(path)
    first = next(iter(found.values()), None)
    return {name: each for name, each in found.items() if first is not None and each["label"] == first["label"]}


def _checked(path: Path) -> dict[str, Any]:
    content = read_json(path)
    parts = [content.get(key) for key in ("label", "predicted", "certainty")]
    kinds = (int, int, int | float)
    for part, kind in zip(parts, kinds, strict=True):
        if not isinstance(part, list) or not all(isinstance(value, kind) for value in part):
            raise InputError(f"{path} is damaged: expected lists of numbers: label, predicted, certainty")
    if len({len(part) for part in parts if part is not None}) != 1:
        raise InputError(f"{path} is damaged: its lists differ in length")
    return content


def _pictures(run: Run) -> list[Path]:
    return [path for path in run.folder.examples.glob("item-*.png") if path.stem[5:].isdecimal()]


def _runs(results: Results) -> list[Run]:
    """All finished runs, those of modes with a table first."""
    return [run for name in results.names_by_table for run in results.groups[name]]


def _label_names(results: Results) -> list[str]:
    return next((list(map(str, names)) for run in _runs(results) if (names := run.evaluation.get("label_names"))), [])


def _named(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def address(path: Path) -> str:
    """The picture as a data address, made small where it is large.

    Raises:
        InputError: it is large and no picture.
    """
    content, kind = path.read_bytes(), "png"
    if len(content) > LARGEST_AS_IT_IS:
        content, kind = _small(path, content), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _small(path: Path, content: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
