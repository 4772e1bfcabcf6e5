"""What each of several processes has of its own in the midst of an epoch, and how a run goes on with more or fewer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labelemb.training.epoch_sums import EpochSums
from labelemb.training.processes import Processes
from labelemb.training.task import TrainedModule


def own_state(module: TrainedModule[nn.Module], sums: EpochSums) -> dict[str, Any]:
    """What this process has otherwise than the first: sums over its own items, statistics, random state."""
    buffers = {name: buffer.cpu() for name, buffer in module.named_buffers()}
    return {"buffers": buffers, **sums.state(), "random": torch.get_rng_state()}


def restore_own_state(
    module: TrainedModule[nn.Module], sums: EpochSums, states: Sequence[Mapping[str, Any]], together: Processes
) -> None:
    """Give this process its own again; where they were more or fewer, the first one takes what all had summed.

    Args:
        module: which has the state of the first.
        sums: of the epoch.
        states: of all processes of the checkpoint, in the order of their ranks; of one alone without buffers.
        together: the processes of now.
    """
    sums.restore(states, together)
    buffers = dict(module.named_buffers())
    if len(states) == together.size:
        own = states[together.rank]
        for name, saved in own.get("buffers", {}).items():
            buffers[name].copy_(saved)
        if together.size > 1:
            torch.set_rng_state(own["random"])
        return
    for name in module.criterion.summed_buffers:
        buffer = buffers[f"criterion.{name}"]
        buffer.copy_(_summed(f"criterion.{name}", buffer, states) if together.is_first else torch.zeros_like(buffer))


def _summed(name: str, loaded: Tensor, states: Sequence[Mapping[str, Any]]) -> Tensor:
    parts = [state["buffers"][name] for state in states if "buffers" in state]
    return torch.stack(parts).sum(0) if parts else loaded
