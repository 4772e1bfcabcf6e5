"""Label embedding under skorch, in scikit-learn's manner: `python examples/with_skorch.py` (pip install skorch)."""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from labelemb import LabelEmbeddingLoss


class SoftLabelClassifier(NeuralNetClassifier):
    """A NeuralNetClassifier whose criterion watches the module's last layer, `module.head`."""

    def initialize_criterion(self) -> Any:
        """The criterion watches; skorch gives its parameters to the optimiser by itself."""
        super().initialize_criterion()
        self.criterion_.watch(self.module_.head)
        return self

    def get_loss(self, y_pred: Tensor, y_true: Tensor, X: Any = None, training: bool = False) -> Tensor:  # noqa: N803
        """The criterion's loss in training, cross entropy in validation; skorch's own would take logarithms first."""
        loss: Tensor = self.criterion_(y_pred, y_true) if training else self.criterion_.hard(y_pred, y_true)
        return loss


class Network(nn.Module):
    """A hidden layer of `hidden` and a head; gives logits (N, 10)."""

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs))
        return logits


def make(epochs: int) -> SoftLabelClassifier:
    return SoftLabelClassifier(
        Network,
        criterion=LabelEmbeddingLoss,
        criterion__num_features=256,
        criterion__num_classes=10,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        batch_size=64,
        max_epochs=epochs,
        verbose=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    classifier = make(epochs).fit(images[:1000], labels[:1000])
    error = 100 * (1 - classifier.score(images[1000:], labels[1000:]))
    print(f"test error {error:.2f} %, cross entropy in validation {classifier.history[-1]['valid_loss']:.3f}")
    print("like a 3:", classifier.criterion_.table.nearest([3], k=3)[0])


if __name__ == "__main__":
    main()
