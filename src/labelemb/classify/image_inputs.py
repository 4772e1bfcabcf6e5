"""From stored images to the network's inputs, on the device, a whole batch at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelemb.classify.answers import write_answers
from labelemb.classify.augment import channel_statistics, cutmix, mixup, normalize, random_crop, random_flip
from labelemb.classify.data import Answers, Items
from labelemb.classify.image_data import ImageData, ImageSplit
from labelemb.classify.image_files import find_images, images_below
from labelemb.classify.image_folders import pixels
from labelemb.classify.images import load_images
from labelemb.errors import InputError
from labelemb.files import named
from labelemb.settings.config import AugmentSettings, ClassifySettings

_EXAMPLES_PER_LABEL = 4


@dataclass(frozen=True)
class Standardizer:
    """Images as stored -> float32 inputs: less the mean (channels,), over the deviation (channels,)."""

    mean: Tensor
    std: Tensor
    channels_last: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        return normalize(images, self.mean, self.std, channels_last=self.channels_last)


@dataclass(frozen=True)
class ImageInputsSplit:
    """See labelemb.classify.data.ClassifySplit."""

    stored: ImageSplit
    standardize: Standardizer

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self.stored.labels

    def __len__(self) -> int:
        return len(self.stored)

    def inputs(self, part: slice) -> Tensor:
        """Images of a slice, never augmented."""
        return self.standardize(self.stored.images[part])


@dataclass(frozen=True)
class ImageInputs:
    """Images as a classification task takes them: see labelemb.classify.data.ClassifyData."""

    data: ImageData
    augment: AugmentSettings
    standardize: Standardizer

    varying_shapes = False

    @classmethod
    def of(cls, data: ImageData, augment: AugmentSettings) -> "ImageInputs":
        """Inputs between 0 and 1, or with mean 0 and deviation 1 over the training images if the settings say so."""
        channels = data.image_shape[0]
        mean, std = torch.zeros(channels), torch.full((channels,), data.scale)
        if augment.normalize:
            mean, std = channel_statistics(data.train.images)
        return cls(data, augment, Standardizer(mean, std))

    @property
    def label_names(self) -> list[str]:
        """C names."""
        return self.data.label_names

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return self.data.image_shape

    @property
    def record(self) -> dict[str, Any]:
        """What makes inputs of other images as of these: shape, mean and deviation of each channel."""
        moments = {"mean": self.standardize.mean.tolist(), "std": self.standardize.std.tolist()}
        return {"kind": "images", "label_names": self.label_names, "shape": list(self.shape), **moments}

    @property
    def notes(self) -> list[str]:
        """Sizes, the largest and the smallest label, labels that cannot be learned."""
        return self.data.notes

    @property
    def train(self) -> ImageInputsSplit:
        """The images trained on, as they are."""
        return ImageInputsSplit(self.data.train, self.standardize)

    @property
    def validation(self) -> ImageInputsSplit | None:
        """The images held out, if any are."""
        return None if self.data.validation is None else ImageInputsSplit(self.data.validation, self.standardize)

    @property
    def test(self) -> ImageInputsSplit:
        """The test images."""
        return ImageInputsSplit(self.data.test, self.standardize)

    def inputs(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented training images and their targets: (B,) labels, or (B, C) probabilities with mixup or CutMix."""
        images, labels = self.data.train.images[indices], self.data.train.labels[indices]
        if self.augment.crop:
            images = random_crop(images, self.augment.crop, generator)
        if self.augment.flip:
            images = random_flip(images, generator)
        inputs = self.standardize(images)
        if self.augment.mixup:
            return mixup(inputs, labels, self.data.num_classes, self.augment.mixup, generator)
        if self.augment.cutmix:
            return cutmix(inputs, labels, self.data.num_classes, self.augment.cutmix, generator)
        return inputs, labels

    def to(self, device: torch.device, *, channels_last: bool) -> "ImageInputs":
        """The same images on a device."""
        mean, std = self.standardize.mean.to(device), self.standardize.std.to(device)
        return replace(self, data=self.data.to(device), standardize=Standardizer(mean, std, channels_last))

    def examples(self, folder: Path, answers: Answers) -> None:
        """Write the first test images of every label as pictures, those mistaken most surely, and all answers."""
        labels = self.data.test.labels.cpu()
        for label in range(self.data.num_classes):
            for number, index in enumerate((labels == label).nonzero().squeeze(1)[:_EXAMPLES_PER_LABEL].tolist()):
                self._write_picture(index, folder / f"{label:04d}-{number}.png")
        for index in write_answers(folder, labels, answers):
            self._write_picture(index, folder / f"item-{index:06d}.png")

    def _write_picture(self, index: int, path: Path) -> None:
        from PIL import Image

        image = self.data.test.images[index].cpu().float() * (255 / self.data.scale)  # (bands, height, width)
        bands = image.clamp(0, 255).byte().permute(1, 2, 0)
        if bands.shape[2] > 4:  # more bands than a picture has: the first three
            bands = bands[..., :3]
        picture = Image.fromarray(bands.squeeze(2).numpy() if bands.shape[2] == 1 else bands.numpy())
        path.parent.mkdir(exist_ok=True)
        with named(path):
            picture.save(path)


def load_image_inputs(settings: ClassifySettings, *, download: bool = False) -> ImageInputs:
    """The images that a run's settings name, and the way to the network.

    Raises:
        InputError: as `load_images`.
    """
    return ImageInputs.of(load_images(settings.data, download=download, seed=settings.seed), settings.augment)


def read_images(record: Mapping[str, Any], path: Path) -> Items:
    """Other images than a run's own, cut and resized to its shape: class folders, a folder of images, or one image.

    Raises:
        InputError: there are no images, or one cannot be read; the run's are neither gray nor coloured.
    """
    channels, height, width = record["shape"]
    if channels not in (1, 3):
        raise InputError(f"{path}: the run was trained on images of {channels} channels; give a data set as --data")
    found = find_images(path).get("train", []) if path.is_dir() else []
    known = set(record["label_names"])
    files = [file for file, _ in found] or (images_below(path) if path.is_dir() else [path])
    if not files:
        raise InputError(f"{path}: there are no images")
    is_labeled = bool(found) and {name for _, name in found} <= known
    labels = [record["label_names"].index(name) if is_labeled else 0 for _, name in found] or [0] * len(files)
    arrays = [pixels(file, (width, height), "L" if channels == 1 else "RGB") for file in files]
    stored = ImageSplit(torch.from_numpy(np.stack(arrays)), torch.tensor(labels))
    split = ImageInputsSplit(stored, Standardizer(torch.tensor(record["mean"]), torch.tensor(record["std"])))
    names = [str(file.relative_to(path)) if path.is_dir() else str(file) for file in files]
    return Items(split, record["label_names"], tuple(record["shape"]), "images", is_labeled, names)
