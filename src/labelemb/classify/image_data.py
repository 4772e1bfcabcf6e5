"""Images as tensors, and the file in which a data set that was decoded once is kept."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from labelemb.errors import InputError, first_line
from labelemb.files import write_atomically

_FORMAT, _VERSION = "labelemb.images", "1"
_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
PARTS = ("train", "validation", "test")


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


class StoredImages(NamedTuple):
    """A data set as it is at its source: `train`, maybe `validation` and `test`."""

    parts: dict[str, ImageSplit]
    label_names: list[str]
    scale: float


def write_cache(data: StoredImages, path: Path) -> None:
    """Write the tensors PART_images and PART_labels of every part, with the label names and the scale."""
    tensors = {f"{name}_images": split.images for name, split in data.parts.items()}
    tensors |= {f"{name}_labels": split.labels for name, split in data.parts.items()}
    metadata = {"format": _FORMAT, "version": _VERSION, "label_names": json.dumps(data.label_names)}
    write_atomically(path, save(tensors, metadata=metadata | {"scale": str(data.scale)}))


def read_cache(path: Path) -> StoredImages:
    """A data set from a file of such tensors, memory-mapped.

    Raises:
        InputError: the file is damaged, or its tensors are not labelled images.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {first_line(error)}") from None
    names = [name for name in PARTS if f"{name}_images" in tensors]
    expected = sorted(f"{name}_{kind}" for name in {"train", *names} for kind in ("images", "labels"))
    found = metadata.get("format"), metadata.get("version")
    if found != (_FORMAT, _VERSION) or sorted(tensors) != expected:
        wanted = f"format {_FORMAT} with tensors {', '.join(expected)}, version {_VERSION}"
        raise InputError(f"{path}: expected {wanted}; got {sorted(tensors)} and {found}")
    parts = {name: ImageSplit(tensors[f"{name}_images"], tensors[f"{name}_labels"]) for name in names}
    data = StoredImages(parts, *_names_and_scale(path, metadata))
    check_images(data, str(path))
    return data._replace(parts={name: ImageSplit(part.images, part.labels.long()) for name, part in parts.items()})


def _names_and_scale(path: Path, metadata: Mapping[str, str]) -> tuple[list[str], float]:
    try:
        names, scale = json.loads(metadata["label_names"]), float(metadata["scale"])
    except (KeyError, ValueError, RecursionError):
        names, scale = None, 0.0
    is_float32 = 1e-30 < scale < 1e30
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and is_float32):
        expected = "label_names, a JSON list of strings, and scale, the pixel value that stands for 1"
        raise InputError(f"{path}: expected metadata {expected}, got {dict(metadata)}")
    return names, scale


def check_images(data: StoredImages, origin: str) -> None:
    """Raise InputError where the parts are not images of one size with labels that there are names for."""
    for name, split in data.parts.items():
        images, labels = split.images, split.labels
        if (
            images.ndim != 4
            or labels.shape != images.shape[:1]
            or images.shape[1:] != data.parts["train"].images.shape[1:]
        ):
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise InputError(f"{origin}: {name}: expected images (N, channels, H, W) and labels (N,), got {shapes}")
        if not len(labels):
            raise InputError(f"{origin}: {name}: there are no images")
        if images.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"{origin}: {name}: expected uint8 or float32 images, got {images.dtype}")
        if images.is_floating_point() and not images.isfinite().all():
            raise InputError(f"{origin}: {name}: the images hold NaN or infinite values")
        if labels.dtype not in _WHOLE_NUMBERS:
            raise InputError(f"{origin}: {name}: expected labels of whole numbers, got {labels.dtype}")
        if labels.min() < 0 or labels.max() >= len(data.label_names):
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise InputError(f"{origin}: {name}: expected labels 0 to {len(data.label_names) - 1}, got {found}")


def cache_folder() -> Path:
    """LABELEMB_CACHE, else the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "labelemb"
    return Path(os.environ.get("LABELEMB_CACHE", default))
