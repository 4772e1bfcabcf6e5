"""A run's module, the same for every task: network first, then criterion; and the label table that it leaves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from labelemb.errors import input_errors
from labelemb.losses.modes import load_table, make_criterion
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.soft_rows import SoftRows
from labelemb.settings.config import RunSettings
from labelemb.training.seeds import derived_seed


class HasFeatures(Protocol):
    """A network that says how wide its features are."""

    num_features: int


Network = TypeVar("Network", bound=HasFeatures)
Module = TypeVar("Module")


def make_module(
    settings: RunSettings,
    label_names: Sequence[str],
    make_network: Callable[[], Network],
    join: Callable[[Network, SoftLabelLoss], Module],
    *,
    num_examples: int | None = None,
    class_weight: Tensor | None = None,
) -> Module:
    """Network first, then criterion, each from its own seed: all modes of a seed start from the same network.

    Args:
        settings: of the run.
        label_names: C names, which a given label table must have been learned for.
        make_network: builds the network from torch's random state.
        join: puts network and criterion into the task's module.
        num_examples: that are trained on, for modes that keep something of each.
        class_weight: (C,), None for all alike.

    Raises:
        InputError: the settings of the loss or the label table do not fit.
    """
    torch.manual_seed(derived_seed(settings.seed, "network"))
    network = make_network()
    torch.manual_seed(derived_seed(settings.seed, "criterion"))
    sizes = {"num_examples": num_examples, "num_epochs": settings.epochs}
    options = settings.criterion_options | {"class_weight": class_weight}
    criterion = _make_criterion(settings, network.num_features, label_names, sizes | options)
    torch.manual_seed(derived_seed(settings.seed, "training"))
    return join(network, criterion)


def _make_criterion(
    settings: RunSettings, num_features: int, label_names: Sequence[str], options: Mapping[str, Any]
) -> SoftLabelLoss:
    with input_errors(f"mode {settings.mode}: "):
        table = None if settings.table is None else load_table(settings.table, label_names)
        return make_criterion(settings.mode, num_features, len(label_names), table=table, **options)


def save_table(criterion: SoftLabelLoss, label_names: Sequence[str], path: Path) -> None:
    """Write the label table with its names, where the criterion has one."""
    table = getattr(criterion, "table", None)
    if isinstance(table, SoftRows):
        table.label_names = list(label_names)
        table.save(path)
