"""What makes the updates: an optimiser each for network and criterion, and what changes over the steps of a run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labelemb.errors import InputError
from labelemb.losses.catalogue import MODES
from labelemb.settings.config import RunSettings, ScheduleSettings


def make_optimizers(module: nn.Module, settings: RunSettings) -> list[torch.optim.Optimizer]:
    """One optimiser for the network, as the recipe says, and Adam without weight decay for the criterion.

    A single one for both, say SGD with weight decay, would teach the auxiliary head far too fast and shrink the label
    table.
    """
    chosen = settings.optimizer
    parameters = list(module.get_submodule("network").parameters())
    optimizers: list[torch.optim.Optimizer]
    if chosen.name == "sgd":
        nesterov = chosen.momentum > 0
        optimizers = [
            torch.optim.SGD(
                parameters, chosen.lr, chosen.momentum, weight_decay=chosen.weight_decay, nesterov=nesterov, fused=True
            )
        ]
    else:
        adam = torch.optim.Adam if chosen.name == "adam" else torch.optim.AdamW
        optimizers = [adam(parameters, chosen.lr, weight_decay=chosen.weight_decay, fused=True)]
    groups = _groups_of_criterion(module.get_submodule("criterion"), chosen.table_lr)
    return [*optimizers, torch.optim.Adam(groups, chosen.criterion_lr, fused=True)] if groups else optimizers


def _groups_of_criterion(criterion: nn.Module, table_lr: float | None) -> list[dict[str, Any]]:
    """The criterion's parameters; the label table's in a group of their own where they have a learning rate."""
    named = dict(criterion.named_parameters())
    table = [parameter for name, parameter in named.items() if name.startswith("table.") and table_lr is not None]
    others = [parameter for parameter in named.values() if not any(parameter is one for one in table)]
    groups: list[dict[str, Any]] = [{"params": others}] if others else []
    return [*groups, {"params": table, "lr": table_lr}] if table else groups


def load_moments(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Take up what an optimizer of the same settings had in store of each parameter; its groups' settings stay.

    Raises:
        ValueError: there are others than of a parameter's shape, which a fused step would read beyond their ends.
    """
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
    names = {frozenset(moments) for moments in optimizer.state.values()}
    if len(names) > 1:
        raise ValueError(f"its optimizer has in store {' or '.join(map(str, map(sorted, names)))}")
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value is None:  # SGD without momentum
                continue
            expected = () if name == "step" else tuple(parameter.shape)
            if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != expected:
                found = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"its optimizer's {name}: expected {expected}, got {found}")


def lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the state the parameters' own memory layout: fused optimisers walk through both element by element."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def learning_rate_factor(schedule: ScheduleSettings, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the learning rates are multiplied by at `step`, a function of the step alone."""
    progress = step / steps_per_epoch  # in epochs
    factor = 1.0
    if schedule.name == "step":
        factor = schedule.factor ** (int(progress) // schedule.every)
    elif schedule.name == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / (steps_per_epoch * epochs)))
    if progress < schedule.warmup:
        factor *= (step + 1) / (schedule.warmup * steps_per_epoch)
    return factor


def planned_soft_after(settings: RunSettings, steps_per_epoch: int) -> int:
    """After how many updates the soft labels join in; 0 for modes that use them from the start or not at all.

    Raises:
        InputError: the run would end before.
    """
    if MODES[settings.mode].setting("soft_after") is None:
        return 0
    planned = settings.epochs * steps_per_epoch
    after = settings.loss["soft_after"]
    updates = round(after * planned) if after < 1 else int(after)
    if updates >= planned:
        raise InputError(
            f"{MODES[settings.mode].section}.soft_after={after:g}: the soft labels would join in after {updates} "
            "updates, but the run has only "
            f"{planned} ({settings.epochs} epochs of {steps_per_epoch}); a value below 1 is a fraction of them"
        )
    return updates
