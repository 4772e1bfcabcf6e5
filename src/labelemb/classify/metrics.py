"""How right and how well calibrated a classifier is: error, negative log-likelihood, calibration, confusions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from labelemb.classify.data import Answers
from labelemb.training.processes import Processes

NUM_BINS = 15
LARGEST_FULL_CONFUSION = 200
MAX_CONFUSIONS = 2000


class ClassificationMetrics:
    """Measures of a test set, gathered batch by batch on the device and summed once at the end.

    Four numbers an item are kept, so no batch waits for the device, and the result does not depend on how the items
    were divided into batches. One object is one evaluation.

    Args:
        num_classes: C.
        device: where logits and targets lie.
        temperature: T: the probabilities are softmax(z / T). No prediction depends on it.
    """

    def __init__(self, num_classes: int, device: torch.device | str, temperature: float = 1.0) -> None:
        self.num_classes = num_classes
        self.device = torch.device(device)
        self.temperature = temperature
        self._nll: list[Tensor] = []
        self._confidence: list[Tensor] = []
        self._predicted: list[Tensor] = []
        self._target: list[Tensor] = []

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add N items, without waiting for the device.

        Args:
            logits: (N, C) floating point; half precision is raised to float32.
            target: (N,) integers in [0, C).

        Raises:
            ValueError: the shapes do not fit.
        """
        if logits.shape != (len(target), self.num_classes) or target.ndim != 1:
            raise ValueError(
                f"expected logits (N, {self.num_classes}) and target (N,), "
                f"got {tuple(logits.shape)} and {tuple(target.shape)}"
            )
        logits, target = logits.detach().to(self.device), target.detach().to(self.device).long()
        dtype = torch.promote_types(logits.dtype, torch.float32)
        predicted = logits.argmax(dim=1)  # (N,), of the logits as they came: a quotient may round to a tie
        log_probabilities = F.log_softmax(logits.to(dtype) / self.temperature, dim=1)  # (N, C)
        log_confidence = log_probabilities.amax(dim=1)  # (N,)
        self._nll.append(-log_probabilities.gather(1, target[:, None]).squeeze(1))
        self._confidence.append(log_confidence.exp())
        self._predicted.append(predicted)
        self._target.append(target)

    def compute(self) -> dict[str, float]:
        """The measures so far; waits for the device.

        Returns:
            `error`: share of wrong predictions. `nll`: mean of -log softmax(z / T)_y. `ece`: expected calibration
            error, the mean over items of |accuracy - confidence| of the item's bin, for 15 equal-width bins (low, high]
            of the top probability.

        Raises:
            ValueError: there are no items.
        """
        nll, confidence, predicted, target = self._gathered()
        correct = predicted == target
        _, confidence_sums, correct_counts = calibration_bins(confidence, correct)
        return {
            "error": (~correct).sum().item() / len(target),
            "nll": nll.double().mean().item(),
            "ece": (confidence_sums - correct_counts).abs().sum().item() / len(target),
        }

    def probability_measures(self) -> dict[str, object]:
        """What depends on the temperature: `nll`, `ece` as of `compute`, and `calibration`, the 15 bins.

        Returns:
            `calibration` has the lowest bin first, each with `count`, `correct` (a count too) and `confidence` (the
            mean, None in an empty bin).

        Raises:
            ValueError: there are no items.
        """
        _, confidence, predicted, target = self._gathered()
        counts, sums, correct_counts = (bins.tolist() for bins in calibration_bins(confidence, predicted == target))
        calibration = [
            {"count": count, "confidence": total / count if count else None, "correct": correct}
            for count, total, correct in zip(counts, sums, correct_counts, strict=True)
        ]
        measures = self.compute()
        return {"nll": _finite(measures["nll"]), "ece": _finite(measures["ece"]), "calibration": calibration}

    def evaluation(self) -> dict[str, object]:
        """What evaluation.json holds of these items.

        Returns:
            `num_items` and `num_classes`; what `probability_measures` gives; `confusion`: [true, predicted, count] of
            every pair that occurs, by label, or above 200 classes the 2,000 largest of wrong predictions, descending.

        Raises:
            ValueError: there are no items.
        """
        _, _, predicted, target = self._gathered()
        return {
            "num_items": len(target),
            "num_classes": self.num_classes,
            **self.probability_measures(),
            "confusion": confusions(target, predicted, self.num_classes),
        }

    def gather(self, shared_by: Processes) -> None:
        """Take the items of all processes, in the order of their ranks; all must call it."""
        if shared_by.size == 1:
            return
        kept = (self._nll, self._confidence, self._predicted, self._target)
        everyone = shared_by.gathered([[part.cpu() for part in parts] for parts in kept])
        for place, parts in enumerate(kept):
            parts[:] = [part for of_one in everyone for part in of_one[place]]

    def answers(self) -> Answers:
        """What was predicted for each item, in the order in which they came.

        Raises:
            ValueError: there are no items.
        """
        _, confidence, predicted, _ = self._gathered()
        return Answers(predicted, confidence)

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All items' values on the host, where sums come in one order."""
        if not sum(len(target) for target in self._target):
            raise ValueError("no item was evaluated: check that the test split is not empty")
        values = (self._nll, self._confidence, self._predicted, self._target)
        nll, confidence, predicted, target = (torch.cat(value).cpu() for value in values)
        return nll, confidence, predicted, target


def calibration_bins(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over 15 equal-width bins (low, high] of the top probability.

    Args:
        confidence: (N,) floating point in [0, 1]: the largest probability of each item.
        correct: (N,) bool.

    Returns:
        counts (15,) int64, sums of confidence (15,) float64, numbers of correct items (15,) int64.
    """
    # The edges have the values' own precision: float32's third is above one third and yet ends its bin.
    edges = (torch.arange(1, NUM_BINS, dtype=torch.float64, device=confidence.device) / NUM_BINS).to(confidence.dtype)
    bins = torch.bucketize(confidence, edges)  # (N,) in [0, 14]: the first edge that is no less
    counts = torch.bincount(bins, minlength=NUM_BINS)
    sums = torch.bincount(bins, weights=confidence.double(), minlength=NUM_BINS)
    return counts, sums, torch.bincount(bins[correct], minlength=NUM_BINS)


def _finite(value: float) -> float | None:
    """For JSON, which has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def confusions(target: Tensor, predicted: Tensor, num_classes: int) -> list[list[int]]:
    """How often each label was taken for which.

    Args:
        target: (N,) int64 in [0, C).
        predicted: (N,) int64 in [0, C).
        num_classes: C.

    Returns:
        [true, predicted, count]. Up to 200 classes: every pair that occurs, right ones too, by label. Above: the 2,000
        largest wrong ones, descending, ties by label.
    """
    codes, counts = torch.unique(target * num_classes + predicted, return_counts=True)  # ascending
    if num_classes > LARGEST_FULL_CONFUSION:
        wrong = codes // num_classes != codes % num_classes
        codes, counts = codes[wrong], counts[wrong]
        largest = torch.argsort(counts, descending=True, stable=True)[:MAX_CONFUSIONS]
        codes, counts = codes[largest], counts[largest]
    return torch.stack((codes // num_classes, codes % num_classes, counts), dim=1).tolist()
