"""labelemb: train deep networks with learned soft labels (label embedding, arXiv 1710.10393)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelemb.fused import FusedLabelEmbeddingLoss
    from labelemb.loss import LabelEmbeddingLoss
    from labelemb.table import LabelTable
    from labelemb.terms import LossTerms

    __version__: str

__all__ = ["FusedLabelEmbeddingLoss", "LabelEmbeddingLoss", "LabelTable", "LossTerms"]

_HOMES = {
    "FusedLabelEmbeddingLoss": "labelemb.fused",
    "LabelEmbeddingLoss": "labelemb.loss",
    "LabelTable": "labelemb.table",
    "LossTerms": "labelemb.terms",
}


def __getattr__(name: str) -> Any:
    # Names are looked up on first use, so that the command line answers `--help` without waiting for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":  # its import takes most of what this package's own takes
        return import_module("importlib.metadata").version("labelemb")
    raise AttributeError(f"module 'labelemb' has no attribute {name!r}")
