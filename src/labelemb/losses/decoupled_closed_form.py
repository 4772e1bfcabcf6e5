"""The decoupled terms for class indices with gradients in closed form, as closed_form.py has those of the paper."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DecoupledPass(NamedTuple):
    """What one pass over the logits gives."""

    terms: Tensor  # (4,) hard, certainty, shape and 0, or (4, N)
    total: Tensor  # 0-d, or (N,)
    others: Tensor  # (N, C) p~, 0 on the label
    hits: Tensor  # (N,) bool: the label's logit is the largest (ties are)


def decoupled_index_terms(
    logits: Tensor,
    rows: Tensor,
    target: Tensor,
    factors: Tensor,
    epsilon: float,
    shape_weight: float,
    summed: bool,
) -> DecoupledPass:
    """The terms and their weighted sum, times the items' factors, from one pass over the logits.

    Args:
        logits: z (N, C), float32 or wider, C at least 2.
        rows: r_y (N, C), 0 on the label; no gradient reaches them.
        target: (N,) int64 in [0, C).
        factors: (N,) what each item's values are multiplied by.
        epsilon, shape_weight: of the loss.
        summed: whether to sum over the items.
    """
    settings = epsilon, shape_weight, summed
    apply: Callable[..., tuple[Tensor, ...]] = _IndexTerms.apply
    terms, total, others, _, hits = apply(logits, rows, target, factors, *settings)
    return DecoupledPass(terms, total, others.detach().T, hits)


class _IndexTerms(torch.autograd.Function):
    """The closed form.

    With g the gradient that reaches a term of an item, p = softmax(z), p~ the same over the labels other than y, which
    is 0 on y as r_y is, and u = g_hard*(p_y - 1) + g_certainty*(p_y - (1 - epsilon)):

        dz = g_shape*(p~ - r_y) - u*p~,   dz_y = u

    Results of the function are saved as such, so that autograd can differentiate this once more: see closed_form.py.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Tensor,
        target: Tensor,
        factors: Tensor,
        epsilon: float,
        shape_weight: float,
        summed: bool,
    ) -> tuple[Tensor, ...]:
        index, scores, rows = target[None], logits.T, rows.T  # labels first: see closed_form.py
        gold = scores.gather(0, index)  # (1, N)
        others = scores.scatter(0, index, -torch.inf)  # (C, N): the label is left out, never taken off again
        top = others.amax(dim=0, keepdim=True)
        others = others.sub_(top).exp_()
        mass = others.sum(dim=0, keepdim=True)
        others = others.div_(mass)
        log_mass = mass.log_().add_(top)
        log_odds = gold - log_mass
        hard = -F.logsigmoid(log_odds)
        # (1-eps)*hard + eps*softplus(log_odds) with three operations less; a masked label stays at infinity
        certainty = torch.add(hard, log_odds.clamp_min(torch.finfo(log_odds.dtype).min), alpha=epsilon)
        # A class masked with -inf that the row has nothing on gives 0 times infinity, which counts for nothing.
        shape = log_mass - (rows * scores).nansum(dim=0, keepdim=True)
        total = torch.add(certainty, shape, alpha=shape_weight) if shape_weight else certainty
        values = torch.cat([hard, certainty, shape, torch.zeros_like(hard), total]).mul_(factors)  # (5, N)
        values = values.sum(dim=1) if summed else values
        label_probs = log_odds.sigmoid()
        hits = (gold >= top).squeeze(0)
        ctx.save_for_backward(index, factors, rows, others, label_probs)
        ctx.epsilon, ctx.shape_weight = epsilon, shape_weight
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(hits)
        return values[:4], values[4].clone(), others, label_probs, hits

    @staticmethod
    def backward(
        ctx: Any,
        grad_terms: Tensor | None,
        grad_total: Tensor | None,
        grad_others: Tensor | None,
        grad_label_probs: Tensor | None,
        _: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        index, factors, rows, others, label_probs = ctx.saved_tensors
        odds, shape = _term_gradients(ctx, factors, label_probs, grad_terms, grad_total)
        if grad_label_probs is not None:
            odds = odds + grad_label_probs * label_probs * (1 - label_probs)
        gradient = ((shape - odds) * others).addcmul(shape, rows, value=-1.0)  # (C, N)
        if grad_others is not None:
            gradient = gradient + others * (grad_others - (others * grad_others).sum(dim=0, keepdim=True))
        return gradient.scatter(0, index, odds).T, None, None, None, None, None, None


def _term_gradients(
    ctx: Any, factors: Tensor, label_probs: Tensor, grad_terms: Tensor | None, grad_total: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What reaches the log odds (1, N), and what reaches the shape term (1, N)."""
    certain = label_probs - (1 - ctx.epsilon)
    total = torch.zeros_like(label_probs) if grad_total is None else factors * grad_total
    odds, shape = total * certain, total if ctx.shape_weight == 1 else ctx.shape_weight * total
    if grad_terms is None:
        return odds, shape
    grad_hard, grad_certainty, grad_shape, _ = (factors * grad for grad in grad_terms)
    return odds + grad_certainty * certain + grad_hard * (label_probs - 1), shape + grad_shape
