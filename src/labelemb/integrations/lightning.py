"""Soft labels under Lightning: a criterion in a LightningModule, and the callback that looks after it."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.watch import WatchHandle


class SoftLabels(Callback):
    """Looks after a criterion that is a submodule of the LightningModule, whose optimiser and checkpoints have it then.

    While it fits, the criterion watches the head, so that `self.criterion(logits, target)` is the loss of every mode,
    and its steps, epochs and progress are the trainer's. For validation log `self.criterion.hard(logits, target)`, the
    cross entropy, by which modes are compared. Give the criterion's parameters a group without weight decay.

    Args:
        head: the submodule that makes the logits, by its name in the LightningModule.
        criterion: the criterion's name there.

    Raises:
        ValueError: when fitting begins: there is no criterion of that name, or the head does not fit it.

    Example:
        trainer = Trainer(callbacks=[SoftLabels("network.fc")])
    """

    def __init__(self, head: str = "head", criterion: str = "criterion") -> None:
        self.head = head
        self.criterion = criterion
        self._handle: WatchHandle | None = None
        self._num_steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the head."""
        self._handle = self._of(pl_module).watch(pl_module.get_submodule(self.head))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where a checkpoint ended."""
        self._num_steps = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Say how far training is."""
        total = trainer.estimated_stepping_batches
        self._of(pl_module).progress = trainer.global_step / total if 0 < total < float("inf") else 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step where the optimiser took one: there may be several batches to it."""
        if trainer.global_step != self._num_steps:
            self._num_steps = trainer.global_step
            self._of(pl_module).end_step()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch."""
        self._of(pl_module).end_epoch()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch no more."""
        if self._handle is not None:
            self._handle.remove()

    def _of(self, pl_module: LightningModule) -> SoftLabelLoss:
        modules: Mapping[str, Any] = dict(pl_module.named_modules())
        found = modules.get(self.criterion)
        if not isinstance(found, SoftLabelLoss):
            raise ValueError(f"the LightningModule has no criterion named {self.criterion}")
        return found
