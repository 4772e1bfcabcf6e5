"""Transforms of a whole batch of images at once, on the device where the images lie.

Images (N, channels, H, W) stay as they are stored, uint8 or float32, until `normalize` makes inputs of them, which are
float32. Every random transform draws from the generator it is given and from nothing else. With a CPU generator the
draws are made on the host and moved, so that a seed means the same augmentation on every device; with a generator of
the images' device nothing is moved.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `padding` pixels in both directions, what comes in from outside being black.

    The padding is zero pixels, before normalisation, as in the paper's code (not the mean colour).

    Args:
        images: (N, channels, H, W), any dtype.
        padding: largest shift; all (2 * padding + 1)**2 offsets are equally likely.
        generator: source of the offsets.

    Returns:
        New images of the same shape and dtype.
    """
    num_images, _, height, width = images.shape
    offsets = _draw_integers(2 * padding + 1, (2, num_images), generator, images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, channels, offsets, offsets, H, W), a view
    items = torch.arange(num_images, device=images.device)
    return windows[items, :, offsets[0], offsets[1]]  # (N, channels, H, W)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, channels, H, W), any dtype, mirrored left to right with probability one half; a new tensor."""
    flipped = _draw_integers(2, (len(images), 1, 1, 1), generator, images.device).bool()
    return torch.where(flipped, images.flip(-1), images)


def normalize(images: Tensor, mean: Tensor, std: Tensor, *, channels_last: bool = False) -> Tensor:
    """Images as float32: (images - mean) / std.

    Args:
        images: (N, channels, H, W), uint8 or floating point.
        mean: (channels,) mean of the pixels, in their own units.
        std: (channels,) deviation of the pixels; mean 0 and deviation 255 give uint8 pixels in [0, 1].
        channels_last: lay the result out with the channels innermost, which convolutions on GPUs prefer.

    Returns:
        (N, channels, H, W) float32.
    """
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)  # a quarter of the bytes the floats would move
    return (images - mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))  # one pass reads the bytes, one is in place


def channel_statistics(images: Tensor, *, chunk_size: int = 1000) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel's pixels, in their own units, over all images.

    Sums are in float64, and exact for uint8. A channel without variation gets deviation 1: `normalize` makes it 0.

    Args:
        images: (N, channels, H, W), uint8 or float32, N at least 1.
        chunk_size: images converted to float64 at a time.

    Returns:
        mean, std: (channels,) float32 each, on the images' device.

    Raises:
        ValueError: there are no images.
    """
    if len(images) == 0:
        raise ValueError("statistics of the pixels need at least one image, got none: check the training split")
    total = torch.zeros(images.shape[1], dtype=torch.float64, device=images.device)
    total_square = torch.zeros_like(total)
    for chunk in torch.split(images, chunk_size):
        pixels = chunk.double()
        total += pixels.sum(dim=(0, 2, 3))
        total_square += pixels.square_().sum(dim=(0, 2, 3))
    num_pixels = images.numel() // images.shape[1]
    mean = total / num_pixels
    std = (total_square / num_pixels - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def mixup(
    images: Tensor, targets: Tensor, num_classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each item blended with another of the batch, and the targets with them (Zhang et al. 2018, arXiv 1710.09412).

    One weight w ~ Beta(alpha, alpha) for the batch: w * item + (1 - w) * partner. `alpha=0` is w = 1, nothing blended.
    The weight is a number of the host: a CPU generator keeps the device from being waited for.

    Args:
        images: (N, ...) floating point, after normalisation.
        targets: (N,) integers in [0, C).
        num_classes: C.
        alpha: at least 0.
        generator: source of the weight and the partners.

    Returns:
        images: like the input. targets: (N, C) float32, rows that sum to 1.
    """
    if not images.is_floating_point():
        raise ValueError(f"mixup blends floating-point inputs, got {images.dtype}: call normalize first")
    weight = _draw_weight(alpha, generator)
    partners = _draw_permutation(len(images), generator, images.device)
    return torch.lerp(images[partners], images, weight), _blended_targets(targets, partners, num_classes, weight)


def cutmix(
    images: Tensor, targets: Tensor, num_classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A rectangle of each image replaced by the partner's, targets by area (Yun et al. 2019, arXiv 1905.04899).

    One rectangle for the batch: its sides are sqrt(1 - w) of the image's, w ~ Beta(alpha, alpha), its centre is
    uniform, and what reaches over the edge is cut off. The target's weight is the share of pixels kept. `alpha=0`
    replaces nothing. The rectangle is drawn on the host: a CPU generator keeps the device from being waited for.

    Args:
        images: (N, channels, H, W), any dtype.
        targets: (N,) integers in [0, C).
        num_classes: C.
        alpha: at least 0.
        generator: source of the rectangle and the partners.

    Returns:
        images: new, like the input. targets: (N, C) float32, rows that sum to 1.
    """
    height, width = images.shape[2:]
    ratio = math.sqrt(1 - _draw_weight(alpha, generator))
    partners = _draw_permutation(len(images), generator, images.device)
    rows = _draw_interval(height, int(height * ratio), generator)
    columns = _draw_interval(width, int(width * ratio), generator)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partners, :, rows, columns]
    kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, _blended_targets(targets, partners, num_classes, kept)


def _draw_integers(high: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    draws = torch.randint(high, shape, generator=generator, device=generator.device)
    return _move(draws, device)


def _draw_permutation(size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return _move(torch.randperm(size, generator=generator, device=generator.device), device)


def _move(draws: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and draws.device.type == "cpu":
        draws = draws.pin_memory()  # from ordinary memory the copy would wait for the device
    return draws.to(device, non_blocking=True)


def _draw_weight(alpha: float, generator: torch.Generator) -> float:
    """A draw of Beta(alpha, alpha), by NumPy because PyTorch's takes no generator."""
    if alpha < 0:
        raise ValueError(f"alpha of mixup and CutMix is at least 0, got {alpha}: 0 turns it off, 1 is uniform")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return float(np.random.default_rng(seed).beta(alpha, alpha)) if alpha > 0 else 1.0


def _draw_interval(size: int, length: int, generator: torch.Generator) -> slice:
    center = int(torch.randint(size, (), generator=generator, device=generator.device))
    return slice(max(center - length // 2, 0), min(center - length // 2 + length, size))


def _blended_targets(targets: Tensor, partners: Tensor, num_classes: int, weight: float) -> Tensor:
    own = torch.zeros(len(targets), num_classes, device=targets.device)
    own.scatter_(1, targets[:, None].long(), 1.0)  # (N, C); F.one_hot would wait for the device to check the range
    return torch.lerp(own[partners], own, weight)
