"""What every text network does with its input: one or two embeddings, and where a batch is padding."""

import torch
from torch import Tensor, nn


def make_embeddings(
    source_size: int, target_size: int, hidden: int, *, shared: bool
) -> tuple[nn.Embedding, nn.Embedding]:
    """The embeddings of source and target, one and the same where they are shared.

    Raises:
        ValueError: they are to be shared by two sizes of vocabulary.
    """
    if shared and source_size != target_size:
        raise ValueError(f"shared embeddings need one vocabulary, got {source_size} and {target_size} words")
    source = nn.Embedding(source_size, hidden)
    return source, source if shared else nn.Embedding(target_size, hidden)


def padding_of(source: Tensor, lengths: Tensor) -> Tensor:
    """Where a batch (B, S) with lengths (B,) is padding: (B, S) bool, without waiting for the device."""
    lengths = lengths.to(source.device, non_blocking=True)
    return torch.arange(source.shape[1], device=source.device) >= lengths[:, None]


def unpadded(lengths: Tensor, width: int, device: torch.device) -> Tensor:
    """Indices (N,) of the unpadded places of a flattened (B, width) batch; no waiting when `lengths` are on the CPU."""
    places = torch.arange(width, device=lengths.device) < lengths[:, None]  # (B, width)
    return places.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
