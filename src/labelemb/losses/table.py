"""The label table: for each label the distribution over labels that the network learns, dense or low rank."""

import copy
import json
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.files import write_atomically
from labelemb.losses.items import is_distribution
from labelemb.table_file import FORMAT, checked_label_names, checksum_of

MAX_DENSE_CLASSES = 20_000
_BLOCK_NUMEL = 2**24  # numbers in one block of rows when a large table is streamed: 64 MiB in float32


class LabelTable(nn.Module):
    """Rows e_y of unnormalised log-probabilities over the labels, one row a label.

    Dense: a (C, C) parameter `weight` that starts as the identity. Low rank: e_y = relu(B a_y + c) with `rows.weight`
    A (C, R), `decoder.weight` B (C, R) and `decoder.bias` c (C,), which need 2*C*R + C numbers in place of C*C. Until a
    label has been seen often its low-rank row is nearly uniform: expect nothing from labels seen a few times.

    Args:
        num_classes: C, at least 1.
        rank: R of a low-rank table, at least 1; None for a dense one (at most 20,000 labels).
        label_names: C names, kept when the table is saved and used by `nearest`. Labels of one name are told apart by
            their index alone.

    Raises:
        ValueError: a size is not positive, the names are not C strings, or a dense table is asked for too many labels.

    Source: Sun et al. 2017, arXiv 1710.10393, sections 2.2 (dense) and 2.3 (compressed).

    Example:
        >>> table = LabelTable(3, label_names=["cat", "dog", "ship"])
        >>> table.soft_labels().shape
        torch.Size([3, 3])
        >>> [name for name, value in table.nearest(["cat"], k=2)[0]]
        ['dog', 'ship']
    """

    def __init__(self, num_classes: int, *, rank: int | None = None, label_names: Sequence[str] | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, or None for a dense table, got {rank}")
        if rank is None:
            check_dense(num_classes)
        self.num_classes = num_classes
        self.rank = rank
        self.label_names = _checked_names(label_names, num_classes)
        if rank is None:
            self.weight = nn.Parameter(torch.eye(num_classes))
        else:
            self.rows = nn.Embedding(num_classes, rank)
            self.decoder = nn.Linear(rank, num_classes)

    def row_logits(self, labels: Tensor | None = None) -> Tensor:
        """The unnormalised rows e of `labels` (K,) int64, or of all labels in order; (K, C), differentiable."""
        if self.rank is None:
            return self.weight if labels is None else F.embedding(labels, self.weight)
        codes = self.rows.weight if labels is None else self.rows(labels)  # (K, R)
        return F.relu(self.decoder(codes))  # (K, C)

    @property
    def low_rank(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes A (C, R), decoder's weight B (C, R) and bias c (C,) of a low-rank table."""
        return self.rows.weight, self.decoder.weight, self.decoder.bias

    def rows_of(self, target: Tensor) -> Tensor:
        """What a loss reads: the row of each index, (N, C), or all rows, (C, C), for distributions as targets.

        Raises:
            ValueError: distributions, whose expectation needs every row, over more labels than a dense table may have.
        """
        if not is_distribution(target):
            return self.row_logits(target)
        if self.num_classes > MAX_DENSE_CLASSES:
            raise ValueError(
                f"targets of class probabilities need every row of the table at once, {self.num_classes:,} x "
                f"{self.num_classes:,}: above {MAX_DENSE_CLASSES:,} labels give class indices"
            )
        return self.row_logits()

    def copy(self, *, frozen: bool = False) -> "LabelTable":
        """A table of its own with the same values; a frozen one holds buffers under the same names."""
        own = copy.deepcopy(self)
        for module in own.modules():
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                delattr(module, name)
                if frozen:
                    module.register_buffer(name, value.detach())
                else:
                    module.register_parameter(name, nn.Parameter(value.detach()))
        return own

    @torch.no_grad()
    def soft_labels(self, labels: Tensor | None = None) -> Tensor:
        """The soft labels softmax(e): each row sums to 1.

        Args:
            labels: (K,) int64 in [0, C); None for all labels, which for a large table needs C*C numbers: ask for
                the rows you need.

        Returns:
            (K, C) in float32 or the table's wider type, without gradient.
        """
        rows = self.row_logits(labels)
        return rows.to(torch.promote_types(rows.dtype, torch.float32)).softmax(dim=1)  # (K, C)

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
        wanted = torch.tensor(self._indices(labels), dtype=torch.long, device=self._device)
        results: list[list[tuple[str | int, float]]] = []
        for block in _blocks(wanted, self.num_classes):
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
        """Write the table as a safetensors file with its label names and a checksum, atomically."""
        from safetensors.torch import save

        metadata = dict(FORMAT)
        if self.label_names is not None:
            metadata["label_names"] = json.dumps(self.label_names, ensure_ascii=False)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        metadata |= checksum_of(save(tensors, metadata=metadata))
        write_atomically(Path(path), save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path, label_names: Sequence[str] | None = None) -> "LabelTable":
        """Read a table that `save` wrote. No code of the file is executed.

        Args:
            path: of the file.
            label_names: the labels it is wanted for; a table that has names must have these.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, cut short, of another format or a later version, or has other names.
        """
        tensors, names = _read(Path(path))
        is_dense = "weight" in tensors
        num_classes, width = (*tensors["weight" if is_dense else "rows.weight"].shape, 0, 0)[:2]
        try:
            with torch.device("meta"):  # the file's tensors take the place of the initial values: draw none
                table = cls(num_classes, rank=None if is_dense else width, label_names=names)
            if _kinds(tensors) != _kinds(table.state_dict()):
                raise ValueError(f"expected {_kinds(table.state_dict())}, got {_kinds(tensors)}")
        except ValueError as error:
            raise ValueError(f"{path} is not a whole label table: {error}") from error
        if label_names is not None and table.label_names not in (None, list(label_names)):
            raise ValueError(f"label table {path} was learned for other labels than those of the data")
        table.load_state_dict(tensors, assign=True)
        return table

    @property
    def _device(self) -> torch.device:
        return (self.weight if self.rank is None else self.rows.weight).device

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


def make_table(num_classes: int, rank: int | None, table: LabelTable | None, freeze: bool) -> LabelTable:
    """The table of a criterion: a new one, or a copy of a given one, whose rank counts.

    Raises:
        ValueError: the given table has other labels or another rank, or there is none to freeze.
    """
    if table is None:
        if freeze:
            raise ValueError("freeze_table=True needs a learned table: pass table=LabelTable.load(...)")
        return LabelTable(num_classes, rank=rank)
    if table.num_classes != num_classes:
        raise ValueError(f"the table has {table.num_classes} labels, num_classes is {num_classes}")
    if rank is not None and rank != table.rank:
        raise ValueError(f"rank={rank} contradicts the table's rank {table.rank}; leave it out")
    return table.copy(frozen=freeze)


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


def _blocks(labels: Tensor, num_classes: int) -> Iterator[Tensor]:
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
    try:
        return None if isinstance(label, bool) else operator.index(label)  # type: ignore[arg-type]
    except TypeError:
        return None


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
    if "weight" not in tensors and "rows.weight" not in tensors:
        raise ValueError(f"{path} has neither a dense nor a low-rank table: {sorted(tensors)}")
    return tensors, names


def _kinds(tensors: dict[str, Tensor]) -> dict[str, str]:
    """What must agree between a file and a table: names, shapes, and that the numbers are floating point."""
    return {
        name: f"{'floating point' if value.is_floating_point() else value.dtype} {tuple(value.shape)}"
        for name, value in tensors.items()
    }
