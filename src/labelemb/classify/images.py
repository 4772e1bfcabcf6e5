"""Image data sets as tensors: read once through Hugging Face `datasets`, cached, then kept on the device."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from labelemb.classify.held_out import drawn_of_each_label
from labelemb.errors import InputError, first_line
from labelemb.files import write_atomically
from labelemb.settings.data import ImageDataSettings

_FORMAT, _VERSION = "labelemb.images", "1"


@dataclass(frozen=True)
class ImageSplit:
    """Images (N, channels, H, W) uint8, or float32 in their own units, and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageSplit":
        return ImageSplit(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """A data set: its splits, the names of its labels, and the pixel value that stands for 1."""

    train: ImageSplit
    validation: ImageSplit | None
    test: ImageSplit
    label_names: list[str]
    scale: float
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device) -> "ImageData":
        """The same data on a device."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))


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
        data = _digits()
    elif path is not None and path.is_file():
        data = _read_cache(path)
    elif path is not None:
        data = _from_folder(path, settings)
    else:
        data = _from_hub(settings, download)
    return _divided(data, settings, seed)


def _divided(data: ImageData, settings: ImageDataSettings, seed: int) -> ImageData:
    """Keep no more than `limit` training images, and hold out for validation the first, or a share at random."""
    held_out, limit = settings.validation, settings.limit
    if 0 < held_out < 1:  # of what a run without it would train on
        train = _selected(data.train, slice(limit))
        drawn = drawn_of_each_label(train.labels, held_out, seed)
        return replace(data, train=_selected(train, ~drawn), validation=_selected(train, drawn))
    count = int(held_out)
    if count >= len(data.train.labels):
        raise InputError(f"data.validation={held_out}: the training set has only {len(data.train.labels)} images")
    train = _selected(data.train, slice(count, None if limit is None else count + limit))
    return replace(data, train=train, validation=_selected(data.train, slice(count)) if count else None)


def _selected(split: ImageSplit, which: Tensor | slice) -> ImageSplit:
    return ImageSplit(split.images[which], split.labels[which])


@lru_cache(maxsize=1)
def _digits() -> ImageData:
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
    return ImageData(split(train_pixels, train_labels), None, split(test_pixels, test_labels), names, scale=16.0)


def _from_hub(settings: ImageDataSettings, download: bool) -> ImageData:
    cache = _cache_folder() / f"{settings.source.replace('/', '--')}-{_columns(settings)}.safetensors"
    if cache.is_file():
        return _read_cache(cache)
    if not download:
        raise InputError(
            f"no data for {settings.source}: get it from https://huggingface.co/datasets/{settings.source} and pass "
            f"--data FOLDER with its train-*.parquet and test-*.parquet, or pass --download to fetch it"
        )
    return _decoded({"path": settings.source}, settings, cache)


def _from_folder(folder: Path, settings: ImageDataSettings) -> ImageData:
    files = {split: sorted(folder.rglob(f"{split}-*.parquet")) for split in ("train", "test")}
    missing = [f"{split}-*.parquet" for split, found in files.items() if not found]
    if missing:
        state = "has no " + " and no ".join(missing) if folder.is_dir() else "does not exist"
        raise InputError(
            f"--data {folder} {state}: expected a folder of train-*.parquet and test-*.parquet as "
            f"https://huggingface.co/datasets/{settings.source} has them, or the path of a cached .safetensors file"
        )
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for paths in files.values() for path in paths]
    fingerprint = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    cache = _cache_folder() / f"{folder.name}-{_columns(settings)}-{fingerprint}.safetensors"
    if cache.is_file():
        try:
            return _read_cache(cache)
        except InputError:
            cache.unlink()  # the source is at hand: decode it again
    data_files = {split: [escape(str(path)) for path in paths] for split, paths in files.items()}
    return _decoded({"path": "parquet", "data_files": data_files}, settings, cache)


def _decoded(source: dict[str, Any], settings: ImageDataSettings, cache: Path) -> ImageData:
    """Decode a data set once and keep it as one file of uint8 tensors."""
    import datasets

    datasets.disable_progress_bars()
    try:
        with TemporaryDirectory() as copy:  # of the whole data set, which `datasets` would keep for good
            loaded = datasets.load_dataset(**source, cache_dir=copy)
            parts = {name: _decode_split(loaded[name], settings) for name in ("train", "test")}
            names = list(loaded["train"].features[_label_column(loaded["train"], settings)].names)
            del loaded
    except InputError:
        raise
    except Exception as error:  # pyarrow, Pillow and datasets each have their own for a damaged file
        cause = error.__cause__ or error
        raise InputError(f"{settings.path or settings.source} cannot be read: {first_line(cause)}") from None
    data = ImageData(parts["train"], None, parts["test"], names, scale=255.0)
    _check(data, str(settings.path or settings.source))
    try:
        _write_cache(data, cache)
    except OSError as error:  # the run can do without it
        warnings.warn(f"the decoded images could not be kept in the cache {cache}: {error}", stacklevel=2)
    return data


def _decode_split(dataset: Any, settings: ImageDataSettings) -> ImageSplit:
    column = _image_column(dataset, settings)
    images = [np.asarray(image) for image in dataset[column]]
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise InputError(f"column {column}: expected images of one size, got {sorted(shapes)[:3]}")
    stacked = np.stack(images)  # (N, H, W) or (N, H, W, channels)
    if stacked.ndim == 3:
        stacked = stacked[..., None]
    labels = np.asarray(dataset[_label_column(dataset, settings)], dtype=np.int64)
    return ImageSplit(torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))), torch.from_numpy(labels))


def _image_column(dataset: Any, settings: ImageDataSettings) -> str:
    return _column(dataset, "Image", settings.image, "data.image")


def _label_column(dataset: Any, settings: ImageDataSettings) -> str:
    return _column(dataset, "ClassLabel", settings.label, "data.label")


def _column(dataset: Any, kind: str, wanted: str | None, setting: str) -> str:
    names = [name for name, feature in dataset.features.items() if type(feature).__name__ == kind]
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return str(names[0])
    raise InputError(f"{setting}={wanted}: expected one of the columns of type {kind}: {', '.join(names) or 'none'}")


def _write_cache(data: ImageData, path: Path) -> None:
    tensors = {
        "train_images": data.train.images,
        "train_labels": data.train.labels,
        "test_images": data.test.images,
        "test_labels": data.test.labels,
    }
    metadata = {"format": _FORMAT, "version": _VERSION, "label_names": json.dumps(data.label_names)}
    write_atomically(path, save(tensors, metadata=metadata | {"scale": str(data.scale)}))


def _read_cache(path: Path) -> ImageData:
    """A data set from a file of tensors train_images, train_labels, test_images, test_labels, memory-mapped.

    Raises:
        InputError: the file is damaged, or its tensors are not labelled images.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {first_line(error)}") from None
    expected = ["test_images", "test_labels", "train_images", "train_labels"]
    found = metadata.get("format"), metadata.get("version")
    if found != (_FORMAT, _VERSION) or sorted(tensors) != expected:
        wanted = f"format {_FORMAT} with tensors {', '.join(expected)}, version {_VERSION}"
        raise InputError(f"{path}: expected {wanted}; got {sorted(tensors)} and {found}")
    train = ImageSplit(tensors["train_images"], tensors["train_labels"])
    test = ImageSplit(tensors["test_images"], tensors["test_labels"])
    data = ImageData(train, None, test, *_names_and_scale(path, metadata))
    _check(data, str(path))
    return replace(data, train=_indexed(train), test=_indexed(test))


def _names_and_scale(path: Path, metadata: Mapping[str, str]) -> tuple[list[str], float]:
    try:
        names, scale = json.loads(metadata["label_names"]), float(metadata["scale"])
    except (KeyError, ValueError):
        names, scale = None, 0.0
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and 0 < scale < math.inf):
        expected = "label_names, a JSON list of strings, and scale, the pixel value that stands for 1"
        raise InputError(f"{path}: expected metadata {expected}, got {dict(metadata)}")
    return names, scale


def _indexed(split: ImageSplit) -> ImageSplit:
    return ImageSplit(split.images, split.labels.long())


def _check(data: ImageData, origin: str) -> None:
    for name, split in {"train": data.train, "test": data.test}.items():
        images, labels = split.images, split.labels
        if images.ndim != 4 or labels.shape != images.shape[:1] or images.shape[1:] != data.train.images.shape[1:]:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise InputError(f"{origin}: {name}: expected images (N, channels, H, W) and labels (N,), got {shapes}")
        if not len(labels):
            raise InputError(f"{origin}: {name}: there are no images")
        if images.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"{origin}: {name}: expected uint8 or float32 images, got {images.dtype}")
        if images.is_floating_point() and not images.isfinite().all():
            raise InputError(f"{origin}: {name}: the images hold NaN or infinite values")
        if labels.is_floating_point():
            raise InputError(f"{origin}: {name}: expected labels of whole numbers, got {labels.dtype}")
        if labels.min() < 0 or labels.max() >= data.num_classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise InputError(f"{origin}: {name}: expected labels 0 to {data.num_classes - 1}, got {found}")


def _columns(settings: ImageDataSettings) -> str:
    return "-".join(name or "auto" for name in (settings.image, settings.label))


def _cache_folder() -> Path:
    """LABELEMB_CACHE, else the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "labelemb"
    return Path(os.environ.get("LABELEMB_CACHE", default))
