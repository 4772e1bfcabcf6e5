"""The rows of a decoupled loss: which kind they are, new or from a learned table of any kind."""

import copy

from labelemb.losses.counted_table import CountedTable
from labelemb.losses.counting import CountingTable
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.neighbor_table import NeighborTable
from labelemb.losses.others_table import OthersTable
from labelemb.losses.soft_rows import MAX_DENSE_CLASSES, SoftRows, own_copy


def make_others_table(
    num_classes: int, *, momentum: float, rank: int | None, neighbors: int | None, table: SoftRows | None, freeze: bool
) -> OthersTable:
    """The table of a criterion: a new one, or a copy of given rows, whose kind counts.

    Args:
        num_classes: C.
        momentum: of rows that are counted.
        rank: R of trained rows, None for counted ones.
        neighbors: how many shares of a counted row are kept, None for all; given rows may be cut to so many.
        table: learned rows to start from.
        freeze: whether they stay as they are.

    Raises:
        ValueError: the given table has other labels, or rank or neighbors contradict it or each other; there is none to
            freeze; there are too many labels for dense rows.
    """
    if rank is not None and neighbors is not None:
        raise ValueError(f"rank={rank} and neighbors={neighbors} are two kinds of rows: give one of them")
    if table is None:
        if freeze:
            raise ValueError("freeze_table=True needs learned rows: pass table=CountedTable.load(...)")
        return _new(num_classes, momentum, rank, neighbors)
    if table.num_classes != num_classes:
        raise ValueError(f"the table has {table.num_classes} labels, num_classes is {num_classes}")
    if rank is not None and not (isinstance(table, LowRankTable) and table.rank == rank):
        raise ValueError(f"rank={rank} contradicts the table, whose rows stay of their kind; leave it out")
    if isinstance(table, LowRankTable) and neighbors is None:
        return own_copy(table, frozen=freeze)
    own = _counting_copy(table, neighbors)
    own.momentum, own.frozen, own.label_names = momentum, freeze, table.label_names
    return own


def _new(num_classes: int, momentum: float, rank: int | None, neighbors: int | None) -> OthersTable:
    if rank is not None:
        return LowRankTable(num_classes, rank)
    if neighbors is not None:
        return NeighborTable(num_classes, neighbors, momentum=momentum)
    return CountedTable(num_classes, momentum=momentum)


def _counting_copy(table: SoftRows, neighbors: int | None) -> CountingTable:
    if isinstance(table, NeighborTable):
        if neighbors is not None and min(neighbors, table.num_classes - 1) != table.num_neighbors:
            raise ValueError(f"neighbors={neighbors} contradicts the table's {table.num_neighbors}; leave it out")
        table.end_step()
        return copy.deepcopy(table)
    if neighbors is not None:
        return NeighborTable.from_rows(table, neighbors)
    if table.num_classes > MAX_DENSE_CLASSES:
        raise ValueError(
            f"a label table of {table.num_classes:,} labels is too large to be counted further in full; cut its rows "
            "to their largest shares, e.g. neighbors=32"
        )
    own = CountedTable.from_soft_labels(table.soft_labels())
    if isinstance(table, CountedTable):
        own.shares.copy_(table.soft_labels())
        own.counts.copy_(table.counts)
    return own
