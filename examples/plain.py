"""Label embedding in a plain PyTorch loop, where nn.CrossEntropyLoss stood: `python examples/plain.py`."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from labelemb import LabelEmbeddingLoss


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits from scikit-learn: pixels (N, 64) in [0, 1] and labels (N,)."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def batches(inputs: Tensor, target: Tensor, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in torch.split(torch.randperm(len(target)), size):
        yield inputs[batch], target[batch]


def train(model: nn.Sequential, criterion: LabelEmbeddingLoss, inputs: Tensor, target: Tensor, epochs: int) -> None:
    """The loop as it was, but for two lines: the criterion watches the head, and the optimiser has its parameters."""
    own: dict[str, Any] = {"params": criterion.parameters(), "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": model.parameters()}, own], lr=1e-3)
    with criterion.watch(model[-1]):
        for _ in range(epochs):
            for batch, labels in batches(inputs, target):
                optimizer.zero_grad()
                criterion(model(batch), labels).backward()
                optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    inputs, target = digits()
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    criterion = LabelEmbeddingLoss(num_features=256, num_classes=10)
    train(model, criterion, inputs[:1000], target[:1000], epochs)
    with torch.no_grad():
        logits = model(inputs[1000:])
    error = 100 * float((logits.argmax(dim=1) != target[1000:]).float().mean())
    print(f"test error {error:.2f} %, cross entropy {criterion.hard(logits, target[1000:]):.3f}")
    print("like a 3:", criterion.table.nearest([3], k=3)[0])


if __name__ == "__main__":
    main()
