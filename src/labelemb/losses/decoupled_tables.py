"""The rows of a decoupled loss: which kind they are, new or from a learned table of any kind."""

from labelemb.losses.counted_table import CountedTable
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.others_table import OthersTable
from labelemb.losses.soft_rows import MAX_DENSE_CLASSES, SoftRows, own_copy


def make_others_table(
    num_classes: int, momentum: float, rank: int | None, table: SoftRows | None, freeze: bool
) -> OthersTable:
    """The table of a criterion: a new one, or a copy of given rows, whose kind counts.

    Args:
        num_classes: C.
        momentum: of rows that are counted.
        rank: R of trained rows, None for counted ones.
        table: learned rows to start from.
        freeze: whether they stay as they are.

    Raises:
        ValueError: the given table has other labels or another rank, or there is none to freeze; there are too many
            labels for dense rows.
    """
    if table is None:
        if freeze:
            raise ValueError("freeze_table=True needs learned rows: pass table=CountedTable.load(...)")
        return CountedTable(num_classes, momentum=momentum) if rank is None else LowRankTable(num_classes, rank)
    if table.num_classes != num_classes:
        raise ValueError(f"the table has {table.num_classes} labels, num_classes is {num_classes}")
    if rank is not None and rank != getattr(table, "rank", None):
        raise ValueError(f"rank={rank} contradicts the table's {getattr(table, 'rank', None)}; leave it out")
    if isinstance(table, LowRankTable):
        return own_copy(table, frozen=freeze)
    return _counted(table, momentum, freeze)


def _counted(table: SoftRows, momentum: float, freeze: bool) -> CountedTable:
    if table.num_classes > MAX_DENSE_CLASSES:
        raise ValueError(
            f"a label table of {table.num_classes:,} labels has too many rows to be counted further (at most "
            f"{MAX_DENSE_CLASSES:,})"
        )
    own = CountedTable(table.num_classes, momentum=momentum, label_names=table.label_names, frozen=freeze)
    given = table if isinstance(table, CountedTable) else CountedTable.from_soft_labels(table.soft_labels())
    own.shares.copy_(given.soft_labels())
    own.counts.copy_(given.counts)
    return own
