"""Batches of logits and targets for tests of losses."""

import math

import torch
from torch import Tensor


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def batch(num_items: int = 7, num_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_items, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (num_items,), generator=generator)


def log_softmax(row: list[float]) -> list[float]:
    largest = max(row)
    log_sum = largest + math.log(math.fsum(math.exp(value - largest) for value in row))
    return [value - log_sum for value in row]
