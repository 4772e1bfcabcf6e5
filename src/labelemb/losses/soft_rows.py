"""What all tables of soft labels share: names, the nearest labels, and a file that says what it holds."""

import copy
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import SupportsIndex, TypeVar

import torch
from torch import Tensor, nn

from labelemb.files import write_atomically
from labelemb.table_file import FORMAT, checked_label_names, checksum_of

MAX_DENSE_CLASSES = 20_000
_BLOCK_NUMEL = 2**24  # numbers in one block of rows when a large table is streamed: 64 MiB in float32

Table = TypeVar("Table", bound="SoftRows")


class SoftRows(nn.Module, ABC):
    """For each label a distribution over labels.

    Args:
        num_classes: C, at least 1.
        label_names: C names, kept when the table is saved and used by `nearest`. Labels of one name are told apart by
            their index alone.

    Raises:
        ValueError: C is not positive, or the names are not C strings.
    """

    def __init__(self, num_classes: int, label_names: Sequence[str] | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.label_names = _checked_names(label_names, num_classes)

    @abstractmethod
    def soft_labels(self, labels: Tensor | None = None) -> Tensor:
        """The rows of `labels` (K,) int64, or of all labels in order: (K, C), each sums to 1, without gradient."""

    @torch.no_grad()
    def nearest(
        self, labels: Sequence[int | str] | Tensor | None = None, k: int = 5
    ) -> list[list[tuple[str | int, float]]]:
        """The k other labels with the largest soft label values, for each of `labels` (None: all).

        Rows are computed in blocks, so a million labels need no more memory than a few.

        Args:
            labels: indices in [0, C), or names where the table has them.
            k: at least 1; at most C - 1 pairs come back.

        Returns:
            For each label its (label, value) pairs, values descending, ties by index; names where the table has them.

        Raises:
            ValueError: a label that the table does not have, a name that several labels have, k below 1, or a row
                that holds NaN or infinity.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        wanted = torch.tensor(
            self._indices(labels), dtype=torch.long, device=next(iter(self.state_dict().values())).device
        )
        results: list[list[tuple[str | int, float]]] = []
        for block in row_blocks(wanted, self.num_classes):
            soft = self.soft_labels(block)  # (K, C)
            without = block[soft.isnan().any(dim=1)]
            if len(without):
                name = self._name(int(without[0]))
                raise ValueError(f"the row of label {name!r} has no soft labels: it holds NaN or infinity")
            soft.scatter_(1, block[:, None], -1.0)  # a label is not its own neighbour
            for row in soft:
                indices = _largest(row, min(k, self.num_classes - 1))
                values = row[indices].tolist()
                results.append([(self._name(i), v) for i, v in zip(indices.tolist(), values, strict=True)])
        return results

    def save(self, path: str | Path) -> None:
        """Write the rows as a safetensors file with its label names and a checksum, atomically."""
        from safetensors.torch import save

        metadata = dict(FORMAT)
        if self.label_names is not None:
            metadata["label_names"] = json.dumps(self.label_names, ensure_ascii=False)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        metadata |= checksum_of(save(tensors, metadata=metadata))
        write_atomically(Path(path), save(tensors, metadata=metadata))

    def _name(self, index: int) -> str | int:
        return index if self.label_names is None else self.label_names[index]

    def _indices(self, labels: Sequence[int | str] | Tensor | None) -> list[int]:
        if labels is None:
            return list(range(self.num_classes))
        names = list(enumerate(self.label_names or []))
        first, last = ({name: index for index, name in order} for order in (reversed(names), names))
        indices = []
        for label in labels.tolist() if isinstance(labels, Tensor) else labels:
            index = first.get(label) if isinstance(label, str) else _as_integer(label)
            if index is None or not 0 <= index < self.num_classes:
                expected = "one of its names" if isinstance(label, str) else f"0 to {self.num_classes - 1}"
                raise ValueError(f"the table has no label {label!r}, expected {expected}")
            if isinstance(label, str) and index != last[label]:
                raise ValueError(f"labels {index} and {last[label]} are both named {label!r}: ask by index")
            indices.append(index)
        return indices


def check_dense(num_classes: int) -> None:
    """Refuse a (C, C) table whose size would surprise: above 20,000 labels.

    Raises:
        ValueError: names the memory it would take and the low-rank table as the way out.
    """
    if num_classes > MAX_DENSE_CLASSES:
        gigabytes = num_classes**2 * 4 / 1e9
        raise ValueError(
            f"a dense table of {num_classes:,} x {num_classes:,} labels takes {gigabytes:.1f} GB, and four times that "
            f"with gradient and Adam state; above {MAX_DENSE_CLASSES:,} labels use a low-rank table, e.g. rank=256"
        )


def check_every_row(num_classes: int) -> None:
    """Refuse class probabilities as targets above 20,000 labels: their expectation needs every row at once.

    Raises:
        ValueError: there are more labels.
    """
    if num_classes > MAX_DENSE_CLASSES:
        raise ValueError(
            f"targets of class probabilities need every row of the table at once, {num_classes:,} x "
            f"{num_classes:,}: above {MAX_DENSE_CLASSES:,} labels give class indices"
        )


def own_copy(table: Table, *, frozen: bool = False) -> Table:
    """A table of its own with the same values; a frozen one holds buffers under the same names."""
    own = copy.deepcopy(table)
    for module in own.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            delattr(module, name)
            if frozen:
                module.register_buffer(name, value.detach())
            else:
                module.register_parameter(name, nn.Parameter(value.detach()))
    return own


def read_rows(path: str | Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors of a table file and its label names, after checking all that it says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut short, of another format or a later version.
    """
    return _read(Path(path))


def filled(table: SoftRows, tensors: dict[str, Tensor], path: str | Path, label_names: Sequence[str] | None) -> None:
    """Give an empty table the tensors of a file, if they are what it needs and of the labels that are wanted.

    Raises:
        ValueError: they are not.
    """
    if _kinds(tensors) != _kinds(table.state_dict()):
        raise ValueError(
            f"{path} is not a whole label table: expected {_kinds(table.state_dict())}, got {_kinds(tensors)}"
        )
    if label_names is not None and table.label_names not in (None, list(label_names)):
        raise ValueError(f"label table {path} was learned for other labels than those of the data")
    table.load_state_dict(tensors, assign=True)


def row_blocks(labels: Tensor, num_classes: int) -> Iterator[Tensor]:
    block_size = max(1, _BLOCK_NUMEL // num_classes)
    for start in range(0, len(labels), block_size):
        yield labels[start : start + block_size]


def _largest(row: Tensor, k: int) -> Tensor:
    """Indices (k,) of the largest values of `row` (C,), descending, ties by index (topk promises no order of ties)."""
    if k == 0:
        return row.new_empty(0, dtype=torch.long)
    threshold = row.topk(k).values[-1]
    above = (row > threshold).nonzero().squeeze(1)  # fewer than k
    tied = (row == threshold).nonzero().squeeze(1)[: k - len(above)]
    candidates = torch.cat([above, tied])
    return candidates[row[candidates].sort(descending=True, stable=True).indices]


def _as_integer(label: object) -> int | None:
    """`label` where it is an integer of any type; True is none, 1.0 neither."""
    return operator.index(label) if isinstance(label, SupportsIndex) and not isinstance(label, bool) else None


def _checked_names(label_names: Sequence[str] | None, num_classes: int) -> list[str] | None:
    if label_names is None:
        return None
    if len(label_names) != num_classes:
        raise ValueError(f"label_names must have one name a label: expected {num_classes}, got {len(label_names)}")
    for name in label_names:
        if not isinstance(name, str):
            raise ValueError(
                f"label_names must be strings, got {name!r} of type {type(name).__name__}: "
                "pass [str(name) for name in label_names]"
            )
    return list(label_names)


def _read(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no label table at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Clones: what safetensors gives is the mapped file itself, which changes when the file is overwritten.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    names = checked_label_names(path, metadata)
    return tensors, names


def _kinds(tensors: dict[str, Tensor]) -> dict[str, str]:
    """What must agree between a file and a table: names, shapes, and that the numbers are floating point."""
    return {
        name: f"{'floating point' if value.is_floating_point() else value.dtype} {tuple(value.shape)}"
        for name, value in tensors.items()
    }
