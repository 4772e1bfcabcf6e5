"""What the files of a corpus must say to be one: they have no checksum, and something may have been at them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelemb.errors import InputError


def check_metadata(folder: Path, metadata: Mapping[str, Any], sides: Sequence[str]) -> None:
    """Raise InputError where metadata.json does not say what the corpus is made of."""
    vocabularies, splits = (_mapping(metadata.get(key)) for key in ("vocabularies", "splits"))
    has_sums = all("sha256" in _mapping(vocabularies.get(side)) for side in sides)
    has_splits = {"train", "valid"} <= splits.keys() <= {"train", "valid", "test"}
    if not (has_sums and has_splits and {"unit", "lower", "share"} <= metadata.keys()):
        raise InputError(f"{folder / 'metadata.json'} is damaged: expected vocabularies and splits; preprocess again")


def check_ids(folder: Path, tokens: NDArray[np.int32], size: int) -> None:
    """Raise InputError for ids that a vocabulary of this size does not have."""
    low, high = tokens.min(), tokens.max()
    if not 0 <= low <= high < size:
        raise InputError(f"{folder}: damaged corpus, ids {low} to {high} of {size} tokens; preprocess again")


def are_lines(tokens: Any, offsets: Any) -> bool:
    """Whether these are arrays of a corpus: int32 tokens, and offsets from 0 to their end, no line without a token."""
    arrays = isinstance(tokens, np.ndarray) and isinstance(offsets, np.ndarray)  # of an .npz comes something else
    if not (arrays and tokens.dtype == np.int32 and offsets.dtype == np.int64 and tokens.ndim == offsets.ndim == 1):
        return False
    return len(offsets) > 1 and offsets[0] == 0 and offsets[-1] == len(tokens) and bool((np.diff(offsets) > 0).all())


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
