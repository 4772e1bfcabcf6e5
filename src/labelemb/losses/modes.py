"""From a mode's name to its criterion."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from labelemb.losses.catalogue import MODES
from labelemb.losses.counted_table import CountedTable
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.neighbor_table import NeighborTable
from labelemb.losses.others_table import OthersTable
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.soft_rows import read_rows
from labelemb.losses.table import LabelTable


def make_criterion(
    mode: str,
    num_features: int,
    num_classes: int,
    *,
    num_examples: int | None = None,
    num_epochs: int | None = None,
    table: LabelTable | OthersTable | None = None,
    **options: Any,
) -> SoftLabelLoss:
    """The criterion of a mode.

    Args:
        mode: a key of `labelemb.losses.catalogue.MODES`.
        num_features: D, for modes that take features.
        num_classes: C.
        num_examples, num_epochs: of the training, for modes that take an index.
        table: the learned table that some modes need; the others take none.
        options: the mode's own settings, and those of SoftLabelLoss.

    Raises:
        ValueError: there is no such mode, a table is missing or not wanted, a size is missing, a setting is out of
            range.
        TypeError: a setting that the mode does not have.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    chosen = MODES[mode]
    if chosen.takes_table != (table is not None):
        needs = "needs a" if chosen.takes_table else "takes no"
        raise ValueError(f"mode {mode} {needs} learned label table (--table FILE)")
    if chosen.takes_index:
        if num_examples is None or num_epochs is None:
            raise ValueError(f"mode {mode} keeps something of each training example: give num_examples and num_epochs")
        options |= {"num_examples": num_examples, "num_epochs": num_epochs}
    module, _, name = chosen.constructor.partition(":")
    sizes = (num_features, num_classes) if chosen.takes_features else (num_classes,)
    if table is not None:
        options["table"] = table
    criterion: SoftLabelLoss = getattr(import_module(module), name)(*sizes, **options)
    return criterion


def load_table(path: str | Path, label_names: Sequence[str] | None = None) -> LabelTable | OthersTable:
    """A table of any kind, as `save` wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of no kind that there is, or of other labels.
    """
    tensors, _ = read_rows(path)
    kinds: dict[str, type[CountedTable | LowRankTable | NeighborTable]]
    kinds = {"shares": CountedTable, "codes": LowRankTable, "neighbors": NeighborTable}
    kind = next((kind for name, kind in kinds.items() if name in tensors), LabelTable)
    return kind.load(path, label_names)
