"""Images of class folders, and of unlike sizes, as tensors."""

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelemb.classify.division import MOST_LABELS, in_order
from labelemb.classify.image_data import ImageSplit, StoredImages, check_images
from labelemb.classify.image_files import Found
from labelemb.errors import InputError, first_line

_SEED = 0  # of the order: the first images of a data set are then of all labels


def read_class_folders(found: Found, size: int | None, origin: str) -> StoredImages:
    """The images that `find_images` found, each part in an order that is drawn once and for all.

    Raises:
        InputError: one cannot be read, they differ in size and `size` is None, there is one class folder, or too many.
    """
    names = in_order({name for part in found.values() for _, name in part})
    if not 2 <= len(names) <= MOST_LABELS:
        raise InputError(f"{origin}: expected 2 to {MOST_LABELS:,} class folders, got {len(names):,}: {names[0]}")
    index = {name: place for place, name in enumerate(names)}
    shuffled = {part: random.Random(_SEED).sample(files, len(files)) for part, files in found.items()}
    tensors = stacked_parts({part: [path for path, _ in files] for part, files in shuffled.items()}, size, origin)
    labels = {part: torch.tensor([index[name] for _, name in files]) for part, files in shuffled.items()}
    data = StoredImages({part: ImageSplit(tensors[part], labels[part]) for part in found}, names, scale=255.0)
    check_images(data, origin)
    return data


def stacked_parts(files: dict[str, list[Path]], size: int | None, origin: str) -> dict[str, Tensor]:
    """The images of all parts (N, channels, H, W) uint8, alike in channels and size."""
    everything = stacked([path for part in files.values() for path in part], size, origin)
    parts = torch.split(everything, [len(part) for part in files.values()])
    return {name: part.clone() for name, part in zip(files, parts, strict=True)}  # a cache holds no part of another


def stacked(images: Sequence[Any], size: int | None, origin: str) -> Tensor:
    """Images, or files of images, as (N, channels, H, W) uint8: one channel where all are gray, else three.

    Args:
        images: of Pillow, or paths.
        size: where they differ in size or are larger, they are cut to a square in the middle and resized to this side.
        origin: what they are, for errors.

    Raises:
        InputError: one cannot be read, or they differ in size and `size` is None.
    """
    sizes = {_sized(image) for image in images}
    if len(sizes) > 1 and size is None:
        raise InputError(
            f"{origin}: expected images of one size, got {sorted(sizes)[:3]}: data.size=32 cuts and resizes them"
        )
    keep = len(sizes) == 1 and (size is None or max(max(each) for each in sizes) <= size)
    arrays = [pixels(image, None if keep or size is None else (size, size)) for image in images]
    channels = max(array.shape[0] for array in arrays)
    alike = [np.broadcast_to(array, (channels, *array.shape[1:])) for array in arrays]
    return torch.from_numpy(np.ascontiguousarray(np.stack(alike)))


def pixels(image: Any, size: tuple[int, int] | None, mode: str | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(channels, H, W) uint8: gray or RGB, upright; cut to the shape and resized to the (width, height) of `size`.

    `mode` is L for gray, RGB for colours; None takes what the image has.
    """
    from PIL import Image, ImageOps

    with _opened(image) as opened:
        upright = ImageOps.exif_transpose(opened)
        plain = upright.convert(mode or ("L" if upright.mode in ("1", "L") else "RGB"))
    if size not in (None, plain.size):
        plain = ImageOps.fit(plain, size, Image.Resampling.BILINEAR)
    array = np.asarray(plain)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _sized(image: Any) -> tuple[int, int]:
    """Width and height; of a file only the head is read."""
    with _opened(image) as opened:
        width, height = opened.size
    return width, height


@contextmanager
def _opened(image: Any) -> Iterator[Any]:
    """An image, of a file while it is open."""
    if not isinstance(image, Path):
        yield image
        return
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(image) as opened:  # of damage: it is told below
            yield opened
    except Exception as error:  # Pillow has many for a damaged file
        raise InputError(f"{image} cannot be read as an image: {first_line(error)}") from None
