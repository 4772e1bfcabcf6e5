"""Image data sets as tensors: read once through Hugging Face `datasets` or Pillow, cached, then kept on the device."""

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelemb.classify.columns import LABEL_NAMES, PARTS
from labelemb.classify.division import SAME_FOR_ALL, index_of, numbered, read_names, sentences
from labelemb.classify.held_out import drawn_of_each_label
from labelemb.classify.image_data import (
    ImageData,
    ImageSplit,
    StoredImages,
    cache_folder,
    check_images,
    read_cache,
    write_cache,
)
from labelemb.classify.image_files import find_images
from labelemb.classify.image_folders import read_class_folders, stacked
from labelemb.errors import InputError, first_line
from labelemb.settings.data import ImageDataSettings


def load_images(settings: ImageDataSettings, *, download: bool = False, seed: int = 0) -> ImageData:
    """The data set that the settings name.

    Args:
        settings: source, local path, columns, held-out images.
        download: fetch a hub data set that is not here; its checksums are verified by `datasets`.
        seed: of the run, which draws the images held out where a share of them is.

    Raises:
        InputError: it is not here, cannot be read, or is not labelled images of one size.
    """
    path = settings.path
    if settings.source == "digits":
        if path is not None:
            raise InputError(f"--data {path}: digits ship inside scikit-learn; train another recipe on other data")
        stored = _digits()
    elif path is None:
        stored = _from_hub(settings, download)
    elif path.is_file() and path.suffix != ".parquet":
        stored = read_cache(path)
    elif path.is_dir() and (found := find_images(path)):
        files = [file for part in found.values() for file, _ in part]
        stored = _kept(path, settings, files, lambda: read_class_folders(found, settings.size, str(path)))
    else:
        stored = _from_parquet(path, settings)
    return _divided(_named(stored, settings), settings, seed)


def _named(stored: StoredImages, settings: ImageDataSettings) -> StoredImages:
    """With the label names of --label-names, in its order."""
    names = read_names(settings.label_names)
    if names is None:
        return stored
    index = index_of(stored.label_names, names, str(settings.path or settings.source))
    places = torch.tensor([index[name] for name in stored.label_names])
    parts = {name: replace(part, labels=places[part.labels]) for name, part in stored.parts.items()}
    return stored._replace(parts=parts, label_names=names)


def _divided(stored: StoredImages, settings: ImageDataSettings, seed: int) -> ImageData:
    """Hold out what the data do not have: a test set for all seeds, validation images; keep `limit` at most."""
    parts = dict(stored.parts)
    if "test" not in parts:
        if settings.test is None:
            raise InputError(f"{settings.path or settings.source}: there is no test part: data.test=0.2 holds one out")
        drawn = drawn_of_each_label(parts["train"].labels, settings.test, SAME_FOR_ALL)
        parts["test"], parts["train"] = _selected(parts["train"], drawn), _selected(parts["train"], ~drawn)
    train, validation = _validated(parts, settings, seed)
    sizes = 0 if validation is None else len(validation), len(parts["test"])
    held_out = None if "test" in stored.parts else settings.test
    notes = sentences(stored.label_names, train.labels, *sizes, held_out)
    return ImageData(train, validation, parts["test"], stored.label_names, stored.scale, notes)


def _validated(
    parts: dict[str, ImageSplit], settings: ImageDataSettings, seed: int
) -> tuple[ImageSplit, ImageSplit | None]:
    """Training and validation images: those there are, else the first ones held out, or a share at random."""
    held_out, limit, train = settings.validation, settings.limit, parts["train"]
    if "validation" in parts:
        return _selected(train, slice(limit)), parts["validation"]
    if 0 < held_out < 1:  # of what a run without it would train on
        train = _selected(train, slice(limit))
        drawn = drawn_of_each_label(train.labels, held_out, seed)
        return _selected(train, ~drawn), _selected(train, drawn)
    count = int(held_out)
    if count >= len(train):
        raise InputError(f"data.validation={held_out}: the training set has only {len(train)} images")
    first = _selected(train, slice(count)) if count else None
    return _selected(train, slice(count, None if limit is None else count + limit)), first


def _selected(split: ImageSplit, which: Tensor | slice) -> ImageSplit:
    return ImageSplit(split.images[which], split.labels[which])


@lru_cache(maxsize=1)
def _digits() -> StoredImages:
    """1,797 8x8 digits with values 0 to 16; they ship inside scikit-learn. 1,078 train, 719 test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=0.4, stratify=labels, random_state=0)
    train_pixels, test_pixels, train_labels, test_labels = (np.asarray(part) for part in parts)

    def split(values: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> ImageSplit:
        images = torch.from_numpy(values.astype(np.uint8)).reshape(-1, 1, 8, 8)
        return ImageSplit(images, torch.from_numpy(targets.astype(np.int64)))

    names = [str(digit) for digit in range(10)]
    parts = {"train": split(train_pixels, train_labels), "test": split(test_pixels, test_labels)}
    return StoredImages(parts, names, scale=16.0)


def _from_hub(settings: ImageDataSettings, download: bool) -> StoredImages:
    if "/" not in settings.source:
        raise InputError(
            "--data is missing: expected a folder of class folders of images; a hub data set is data.source=OWNER/NAME"
        )
    cache = cache_folder() / f"{settings.source.replace('/', '--')}-{_columns(settings)}.safetensors"
    if cache.is_file():
        return read_cache(cache)
    if not download:
        raise InputError(
            f"no data for {settings.source}: get it from https://huggingface.co/datasets/{settings.source} and pass "
            f"--data FOLDER with its train-*.parquet and test-*.parquet, or pass --download to fetch it"
        )
    return _cached(cache, lambda: _decoded({"path": settings.source}, settings))


def _from_parquet(path: Path, settings: ImageDataSettings) -> StoredImages:
    """Of a folder with a part or several, or of one file."""
    if path.is_file():
        files = {"train": [path]}
    else:
        files = {split: sorted(path.rglob(f"{split}-*.parquet")) for split in PARTS}
        files = {split: found for split, found in files.items() if found}
    needed = ("train",) if settings.test is not None else ("train", "test")
    missing = [f"{split}-*.parquet" for split in needed if split not in files]
    if missing:
        state = "has no " + " and no ".join(missing) if path.is_dir() else "does not exist"
        where = f" as https://huggingface.co/datasets/{settings.source} has them" if "/" in settings.source else ""
        raise InputError(
            f"--data {path} {state}: expected a folder of train-*.parquet and test-*.parquet{where}, a folder of class "
            "folders of images, or the path of a cached .safetensors file"
        )
    data_files = {PARTS[split]: [escape(str(each)) for each in paths] for split, paths in files.items()}
    source = {"path": "parquet", "data_files": data_files}
    return _kept(
        path, settings, [file for found in files.values() for file in found], lambda: _decoded(source, settings)
    )


def _kept(
    path: Path, settings: ImageDataSettings, files: Sequence[Path], decode: Callable[[], StoredImages]
) -> StoredImages:
    """What `decode` gives, or gave before, of files that have not changed since."""
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    fingerprint = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    cache = cache_folder() / f"{path.name}-{_columns(settings)}-{fingerprint}.safetensors"
    if cache.is_file():
        try:
            return read_cache(cache)
        except InputError:
            cache.unlink()  # the source is at hand: decode it again
    return _cached(cache, decode)


def _cached(cache: Path, decode: Callable[[], StoredImages]) -> StoredImages:
    """Decode a data set once and keep it as one file of uint8 tensors."""
    data = decode()
    try:
        write_cache(data, cache)
    except OSError as error:  # the run can do without it
        warnings.warn(f"the decoded images could not be kept in the cache {cache}: {error}", stacklevel=2)
    return data


def _decoded(source: dict[str, Any], settings: ImageDataSettings) -> StoredImages:
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else reading a file of this machine tells a server of it
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it cannot read is told below
    origin = str(settings.path or settings.source)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            TemporaryDirectory() as copy,
        ):  # of the whole data set, which `datasets` would keep for good
            loaded = datasets.load_dataset(**source, cache_dir=copy)
            splits = {PARTS[name]: each for name, each in loaded.items() if name in PARTS}
            names, labels = _labels(splits, settings, origin)
            images = {name: _decode_split(each, settings) for name, each in splits.items()}
            del loaded, splits
    except InputError:
        raise
    except Exception as error:  # pyarrow, Pillow and datasets each have their own for a damaged file
        cause = error.__cause__ or error
        raise InputError(f"{origin} cannot be read: {first_line(cause)}") from None
    data = StoredImages({name: ImageSplit(images[name], labels[name]) for name in images}, names, scale=255.0)
    check_images(data, origin)
    return data


def _labels(splits: dict[str, Any], settings: ImageDataSettings, origin: str) -> tuple[list[str], dict[str, Tensor]]:
    """The label names, and the labels (N,) int64 of every split."""
    column = _label_column(splits["train"], settings)
    values = {name: each[column] for name, each in splits.items()}
    feature = splits["train"].features[column]
    if type(feature).__name__ == "ClassLabel":
        return list(feature.names), {
            name: torch.from_numpy(np.asarray(each, np.int64)) for name, each in values.items()
        }
    index, names = numbered([str(label) for each in values.values() for label in each], origin, None)
    return names, {name: torch.tensor([index[str(label)] for label in each]) for name, each in values.items()}


def _decode_split(dataset: Any, settings: ImageDataSettings) -> Tensor:
    column = _image_column(dataset, settings)
    return stacked(list(dataset[column]), settings.size, f"column {column}")


def _image_column(dataset: Any, settings: ImageDataSettings) -> str:
    return _column(dataset, "Image", settings.image, "data.image")


def _label_column(dataset: Any, settings: ImageDataSettings) -> str:
    """The column that is wanted, or the only one of labels, or one that is called so."""
    if settings.label is not None and settings.label in dataset.features:
        return settings.label
    names = [name for name in dataset.features if name.lower() in LABEL_NAMES]
    of_labels = [name for name, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"]
    if settings.label is None and not of_labels and len(names) == 1:
        return str(names[0])
    return _column(dataset, "ClassLabel", settings.label, "data.label")


def _column(dataset: Any, kind: str, wanted: str | None, setting: str) -> str:
    names = [name for name, feature in dataset.features.items() if type(feature).__name__ == kind]
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return str(names[0])
    raise InputError(f"{setting}={wanted}: expected one of the columns of type {kind}: {', '.join(names) or 'none'}")


def _columns(settings: ImageDataSettings) -> str:
    names = ["auto" if name is None else _as_file_name(name) for name in (settings.image, settings.label)]
    return "-".join(names if settings.size is None else [*names, str(settings.size)])


def _as_file_name(name: str) -> str:
    """A column's name as a part of a file's: as it is where it has letters, digits and dashes alone."""
    return (
        name if re.fullmatch(r"[\w-]{1,50}", name) else hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:16]
    )
