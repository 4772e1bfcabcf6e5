"""What the decoupled loss asks of its rows, however they are kept: counted, counted and cut short, or of low rank."""

from abc import abstractmethod

import torch
from torch import Tensor

from labelemb.losses.hits import Hits, HitSums
from labelemb.losses.soft_rows import MAX_DENSE_CLASSES, SoftRows
from labelemb.losses.table import LabelTable


class OthersTable(SoftRows):
    """For each label y a distribution r_y over the other labels, 0 on y itself.

    Rows are learned in one of two ways: from hits, which a loss hands to `add` and the table applies in `end_step`; or
    as parameters by the match term of `log_rows_of`.
    """

    @property
    def gathers(self) -> bool:
        """Whether `add` does anything."""
        return False

    @abstractmethod
    def rows_of(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows r of indices (N,), (N, C), or for distributions all of them, (C, C); without gradient."""

    def log_rows_of(self, target: Tensor) -> Tensor | None:
        """log r of the same rows, differentiable, -inf on the label itself; None where no parameters are trained."""
        return None

    def add(self, hits: Hits | HitSums) -> None:
        """Gather hits of the step that is under way."""

    def end_step(self) -> None:
        """Apply what was gathered, over all processes, as one step."""

    def as_label_table(self, true_share: float = 0.5) -> LabelTable:
        """A LabelTable whose soft labels have `true_share`, in (0, 1), on the label and the rest shared as here.

        Raises:
            ValueError: the share is out of range, or there are too many labels for the dense table that this needs.
        """
        if not 0 < true_share < 1:
            raise ValueError(f"true_share must lie between 0 and 1, got {true_share}")
        if self.num_classes > MAX_DENSE_CLASSES:
            raise ValueError(
                f"rows over the other labels become a label table that is dense; {self.num_classes:,} labels are too "
                f"many for that (at most {MAX_DENSE_CLASSES:,}): go on from them with DecoupledLabelEmbeddingLoss"
            )
        table = LabelTable(self.num_classes, label_names=self.label_names)
        others = self.soft_labels()
        soft = (1 - true_share) * others + true_share * torch.eye(self.num_classes, device=others.device)
        with torch.no_grad():
            table.weight.copy_(soft.clamp_min(torch.finfo(torch.float32).tiny).log())
        return table
