"""Rows of a learned table, of whatever kind, read from its file without torch, only those asked for.

A low-rank table is decoded in blocks of columns, so that neither a large vocabulary nor a large rank needs its whole
table in memory. Axes: K labels asked for, C classes, R rank, k shares that a sparse row keeps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from labelemb.errors import InputError, first_line
from labelemb.table_file import checked_label_names

Floats = NDArray[np.float32]
LOW_RANK = ("rows.weight", "codes")
_BLOCK_NUMEL = 2**23
_COST_OF_A_VALUE = 100  # reading, softmax and choosing, in products


def read_labels(path: Path) -> list[str]:
    """The names of the labels, or their numbers.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = checked_label_names(path, file.metadata() or {})
            num_labels = file.get_slice(_kind(path, file)).get_shape()[0]
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if names is None:
        return [str(label) for label in range(num_labels)]
    if len(names) != num_labels:
        raise InputError(f"{path} is damaged: {num_labels} labels but {len(names)} names")
    return names


def row_logits(path: Path, labels: Sequence[int]) -> Floats:
    """Rows (K, C) of `labels` (K,) whose softmax are the soft labels.

    Raises:
        InputError: the file lacks a tensor, or has it in another shape.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return _READERS[_kind(path, file)](file, labels)
    except InputError:
        raise
    except (SafetensorError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}") from error


def row_cost(path: Path) -> int:
    """What one value of a row costs, in products: about the rank of a low-rank table, little for all others."""
    with safe_open(path, framework="numpy") as file:
        kind = _kind(path, file)
        rank = file.get_slice(kind).get_shape()[1] if kind in LOW_RANK else 0
    return _COST_OF_A_VALUE + int(rank)


def _kind(path: Path, file: Any) -> str:
    """The tensor that tells the kinds of tables apart."""
    kind = next((name for name in _READERS if name in file.keys()), None)  # noqa: SIM118 (not a dict)
    if kind is None:
        raise InputError(f"{path} is damaged: it has no table of a kind that there is, but {sorted(file.keys())}")
    return kind


def _rows(file: Any, name: str, labels: Sequence[int]) -> NDArray[Any]:
    table = file.get_slice(name)
    return np.concatenate([table[label : label + 1] for label in labels])


def _dense(file: Any, labels: Sequence[int]) -> Floats:
    return _rows(file, "weight", labels)


def _counted(file: Any, labels: Sequence[int]) -> Floats:
    return _logarithms(_rows(file, "shares", labels))


def _low_rank(file: Any, labels: Sequence[int]) -> Floats:
    return np.maximum(_decoded(file, labels, "rows.weight", "decoder.weight", "decoder.bias"), 0.0)


def _low_rank_over_others(file: Any, labels: Sequence[int]) -> Floats:
    logits = _decoded(file, labels, "codes", "decoder_weight", "decoder_bias")
    logits[np.arange(len(labels)), labels] = np.finfo(np.float32).min
    return logits


def _sparse(file: Any, labels: Sequence[int]) -> Floats:
    neighbors, shares = (_rows(file, name, labels) for name in ("neighbors", "neighbor_shares"))  # (K, k)
    num_labels, num_neighbors = file.get_slice("neighbors").get_shape()
    num_others = num_labels - 1 - num_neighbors
    rest = np.maximum(1 - shares.sum(axis=1, keepdims=True), 0) / max(num_others, 1)
    rows = np.repeat(rest if num_others else 0 * rest, num_labels, axis=1)  # (K, C)
    np.put_along_axis(rows, neighbors.astype(np.int64), shares, axis=1)
    rows[np.arange(len(labels)), labels] = 0
    return _logarithms(rows)


def _logarithms(shares: NDArray[Any]) -> Floats:
    logarithms: Floats = np.log(np.maximum(shares, np.finfo(np.float32).tiny))
    return logarithms


def _decoded(file: Any, labels: Sequence[int], codes: str, decoder: str, bias: str) -> Floats:
    """Codes (K, R) times the decoder (C, R), and the bias (C,): (K, C)."""
    rows, weight, offsets = _rows(file, codes, labels), file.get_slice(decoder), file.get_slice(bias)
    num_labels, rank = weight.get_shape()
    logits = np.empty((len(labels), num_labels), np.float32)
    size = max(1, _BLOCK_NUMEL // rank)
    for start in range(0, num_labels, size):
        columns = slice(start, min(start + size, num_labels))
        logits[:, columns] = rows @ weight[columns].T + offsets[columns]
    return logits


_READERS: dict[str, Callable[[Any, Sequence[int]], Floats]] = {
    "weight": _dense,
    "rows.weight": _low_rank,
    "shares": _counted,
    "codes": _low_rank_over_others,
    "neighbors": _sparse,
}
