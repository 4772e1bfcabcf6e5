"""What a run answered to the test images, for the page: there modes are seen to disagree."""

import json
from pathlib import Path

from torch import Tensor

from labelemb.classify.data import Answers
from labelemb.files import write_atomically

MAX_ITEMS = 10_000
NUM_MISTAKES = 40
_DIGITS = 3


def write_answers(folder: Path, labels: Tensor, answers: Answers) -> list[int]:
    """Write `answers.json`: the label, what was predicted and how surely, for the first 10,000 test images in order.

    Args:
        folder: where to; it is made.
        labels: (N,) int64, the true ones.
        answers: of the N items.

    Returns:
        Of these images the 40 mistaken ones with the highest certainty, whose pictures are worth keeping.
    """
    labels, predicted, certainty = (each[:MAX_ITEMS].cpu() for each in (labels, *answers))
    record = {
        "label": labels.tolist(),
        "predicted": predicted.tolist(),
        "certainty": [round(value, _DIGITS) for value in certainty.nan_to_num().tolist()],
    }
    write_atomically(folder / "answers.json", json.dumps(record, separators=(",", ":"), allow_nan=False).encode())
    mistaken = (labels != predicted).nonzero().squeeze(1)
    surest = certainty[mistaken].nan_to_num().argsort(descending=True, stable=True)
    chosen: list[int] = mistaken[surest[:NUM_MISTAKES]].tolist()
    return chosen
