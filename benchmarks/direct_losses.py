"""Losses over large label sets as their definitions stand: every intermediate is (N, C), gradients by autograd."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.losses.low_rank_table import LowRankTable


def direct_loss(criterion: LabelEmbeddingLoss, head: nn.Linear, features: Tensor, target: Tensor) -> Tensor:
    """Label embedding."""
    assert criterion.aux_head is not None
    gold = target[:, None]
    log_probs = head(features).log_softmax(1)  # (N, C), as all below
    aux_logits = criterion.aux_head(features.detach())
    aux_log_probs = aux_logits.log_softmax(1)
    rows = criterion.table.row_logits(target)

    hard = -log_probs.gather(1, gold).squeeze(1)  # (N,)
    soft = -(rows.detach().softmax(1) * log_probs).sum(1)
    aux = -aux_log_probs.gather(1, gold).squeeze(1)
    cap = F.relu(aux_log_probs.exp().gather(1, gold).squeeze(1) - criterion.cap)
    matched = aux_logits.gather(1, gold).squeeze(1) == aux_logits.max(1).values
    tempered = (aux_logits.detach() / criterion.temperature).softmax(1)
    match = -(matched * (tempered * rows.log_softmax(1)).sum(1))
    total = criterion.hard_weight * hard + criterion.soft_weight * soft + aux + criterion.cap_weight * cap + match
    loss: Tensor = total.mean()
    return loss


def direct_decoupled_loss(
    criterion: DecoupledLabelEmbeddingLoss, head: nn.Linear, features: Tensor, target: Tensor
) -> Tensor:
    """The decoupled loss with rows of low rank."""
    assert isinstance(criterion.table, LowRankTable)
    gold, table = target[:, None], criterion.table
    logits = head(features)  # (N, C), as all below
    others = logits.scatter(1, gold, -torch.inf)
    log_others = others.log_softmax(1).scatter(1, gold, 0)
    row_logits = F.linear(table.codes[target], table.decoder_weight, table.decoder_bias)
    log_rows = row_logits.scatter(1, gold, -torch.inf).log_softmax(1).scatter(1, gold, 0)
    rows = log_rows.detach().exp().scatter(1, gold, 0)

    odds = logits.gather(1, gold).squeeze(1) - others.logsumexp(1)  # (N,)
    certainty = -(1 - criterion.epsilon) * F.logsigmoid(odds) - criterion.epsilon * F.logsigmoid(-odds)
    shape = -(rows * log_others).sum(1)
    hits = logits.gather(1, gold).squeeze(1) == logits.max(1).values
    match = -(hits * (log_others.detach().exp().scatter(1, gold, 0) * log_rows).sum(1))
    loss: Tensor = (certainty + criterion.shape_weight * shape + match).mean()
    return loss
