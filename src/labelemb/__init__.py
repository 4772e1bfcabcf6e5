"""labelemb: train deep networks with learned soft labels (label embedding, arXiv 1710.10393)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelemb.losses.counted_table import CountedTable
    from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
    from labelemb.losses.label_embedding import LabelEmbeddingLoss
    from labelemb.losses.large.fused import FusedLabelEmbeddingLoss
    from labelemb.losses.low_rank_table import LowRankTable
    from labelemb.losses.neighbor_table import NeighborTable
    from labelemb.losses.table import LabelTable
    from labelemb.losses.terms import LossTerms

    __version__: str

__all__ = [
    "CountedTable",
    "DecoupledLabelEmbeddingLoss",
    "FusedLabelEmbeddingLoss",
    "LabelEmbeddingLoss",
    "LabelTable",
    "LossTerms",
    "LowRankTable",
    "NeighborTable",
]

_HOMES = {
    "CountedTable": "labelemb.losses.counted_table",
    "DecoupledLabelEmbeddingLoss": "labelemb.losses.decoupled",
    "FusedLabelEmbeddingLoss": "labelemb.losses.large.fused",
    "LabelEmbeddingLoss": "labelemb.losses.label_embedding",
    "LabelTable": "labelemb.losses.table",
    "LowRankTable": "labelemb.losses.low_rank_table",
    "NeighborTable": "labelemb.losses.neighbor_table",
    "LossTerms": "labelemb.losses.terms",
}


def __getattr__(name: str) -> Any:
    # Names are looked up on first use, so that the command line answers `--help` without waiting for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":  # its import takes most of what this package's own takes
        return import_module("importlib.metadata").version("labelemb")
    raise AttributeError(f"module 'labelemb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # what completion offers
