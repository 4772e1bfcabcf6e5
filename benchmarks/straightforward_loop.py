"""What step_cost compares the image path with: the loop of most tutorials.

A dataset that returns one transformed image, a DataLoader with two workers, float32, Adam with its defaults, the loss
and the errors read from the device every step. The networks and the losses are labelemb's own: the loop is compared.
"""

import itertools
import time
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from labelemb.classify.image_data import ImageSplit
from labelemb.classify.networks import Classifier

CROP = 4


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images as Pillow holds them, transformed one at a time.

    Args:
        split: images (N, channels, H, W) uint8 and labels (N,).
        augment: random crop after padding by 4 pixels, random flip, and normalisation.
    """

    def __init__(self, split: ImageSplit, *, augment: bool) -> None:
        self.images = split.images.permute(0, 2, 3, 1).squeeze(3).numpy()  # (N, H, W) or (N, H, W, channels)
        self.labels = split.labels.tolist()
        self.augment = augment
        self.mean = torch.full((split.images.shape[1], 1, 1), 0.5)
        self.std = torch.full((split.images.shape[1], 1, 1), 0.25)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index])
        if self.augment:
            left, top = torch.randint(2 * CROP + 1, (2,)).tolist()
            image = ImageOps.expand(image, CROP).crop((left, top, left + image.width, top + image.height))
            if torch.rand(()) < 0.5:
                image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
        inputs = pixels.permute(2, 0, 1).contiguous().float().div(255)  # (channels, H, W)
        return ((inputs - self.mean) / self.std if self.augment else inputs), self.labels[index]


class StraightforwardLoop:
    """Trains `network` with `criterion`, called as criterion(logits, target, features)."""

    def __init__(
        self, network: Classifier, criterion: nn.Module, dataset: ImageDataset, batch_size: int, device: torch.device
    ) -> None:
        self.network, self.criterion, self.device = network.to(device), criterion.to(device), device
        self.optimizer = torch.optim.Adam([*network.parameters(), *criterion.parameters()], 1e-3)
        self.loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=2, persistent_workers=True)
        self.total_loss, self.num_errors = 0.0, 0

    def step(self, inputs: Tensor, target: Tensor) -> None:
        inputs, target = inputs.to(self.device), target.to(self.device)
        logits, features = self.network(inputs)
        loss: Any = self.criterion(logits, target, features)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.total_loss += loss.item() * len(target)
        self.num_errors += int((logits.argmax(dim=1) != target).sum().item())

    def seconds_per_step(self, num_warm: int) -> float:
        """Of one pass over the data, after `num_warm` steps: the workers' first batches are late."""
        batches = iter(self.loader)
        for inputs, target in itertools.islice(batches, num_warm):
            self.step(inputs, target)
        start = time.perf_counter()
        for inputs, target in batches:
            self.step(inputs, target)
        return (time.perf_counter() - start) / (len(self.loader) - num_warm)
