"""The terms for class indices with their gradients in closed form: one pass forward, one back, no graph of small steps.

Autograd through the same formulas takes some forty operations more, which for a small network is a fifth of a step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labelemb.terms import Weights


def is_traced() -> bool:
    """Whether a compiler or torch.func looks on: they take plain operations, and differentiate them well."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def index_terms(
    logits: Tensor,
    aux_logits: Tensor,
    rows: Tensor,
    target: Tensor,
    item_weight: Tensor,
    weights: Weights,
    summed: bool,
) -> tuple[Tensor, Tensor]:
    """The five terms and their weighted sum, times the items' factors.

    Args:
        logits, aux_logits, rows: z, z' and e_y, each (N, C), float32 or wider.
        target: (N,) int64 in [0, C).
        item_weight: (N,) factor of each item.
        weights: of the terms.
        summed: whether to sum over the items.

    Returns:
        Terms (5,) and total 0-d where summed, else (5, N) and (N,).
    """
    terms, total = _IndexTerms.apply(logits, aux_logits, rows, target, item_weight, weights, summed)  # type: ignore[no-untyped-call]
    return terms, total


class _IndexTerms(torch.autograd.Function):
    """The closed form.

    With g the gradient that reaches a term of an item, p = softmax(z), p' = softmax(z'), s = softmax(e_y),
    q = softmax(z'/temperature), m the match and y the one-hot target:

        dz  = g_hard*(p - y) + g_soft*(p - s)
        dz' = (g_aux - g_cap*[p'_y > cap]*p'_y)*(p' - y)
        de  = g_match*m*(s - q)

    Nothing else receives a gradient: these are the stop-gradients of the method. Second derivatives are refused.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        aux_logits: Tensor,
        rows: Tensor,
        target: Tensor,
        item_weight: Tensor,
        weights: Weights,
        summed: bool,
    ) -> tuple[Tensor, Tensor]:
        index = target[:, None]  # (N, 1)
        log_probs, aux_log_probs = logits.log_softmax(dim=1), aux_logits.log_softmax(dim=1)  # (N, C)
        probs, aux_probs = log_probs.exp(), aux_log_probs.exp()
        log_soft = rows.log_softmax(dim=1)
        soft_labels = log_soft.exp()
        mean = (aux_logits / weights.temperature).softmax(dim=1)
        gold = aux_probs.gather(1, index)  # (N, 1)
        matched = aux_logits.gather(1, index) == aux_logits.amax(dim=1, keepdim=True)  # (N, 1)
        hard = -log_probs.gather(1, index)
        soft = -(soft_labels * log_probs).sum(dim=1, keepdim=True)
        aux = -aux_log_probs.gather(1, index)
        cap = (gold - weights.cap).clamp_min_(0)
        match = -(mean * log_soft).sum(dim=1, keepdim=True) * matched
        total = (weights.hard * hard + aux + match).add_(soft, alpha=weights.soft).add_(cap, alpha=weights.cap_weight)
        values = torch.cat([hard, soft, aux, cap, match, total], dim=1)  # (N, 6)
        values.mul_(item_weight[:, None])
        values = values.sum(dim=0) if summed else values.T  # (6,) or (6, N); no product: autocast would narrow it
        ctx.save_for_backward(index, item_weight, probs, aux_probs, soft_labels, mean, gold, matched)
        ctx.weights = weights
        ctx.set_materialize_grads(False)
        return values[:5], values[5]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_values: Tensor | None, of_total: Tensor | None) -> tuple[Tensor | None, ...]:
        index, item_weight, probs, aux_probs, soft_labels, mean, gold, matched = ctx.saved_tensors
        weights: Weights = ctx.weights
        hard, soft, aux, cap, match = _term_gradients(weights, item_weight, of_values, of_total)  # (N, 1) each
        d_logits = d_aux_logits = d_rows = None
        if ctx.needs_input_grad[0]:
            d_logits = ((hard + soft) * probs).addcmul_(soft, soft_labels, value=-1.0)  # (N, C)
            d_logits.scatter_add_(1, index, -hard)
        if ctx.needs_input_grad[1]:
            scale = aux - cap * ((gold > weights.cap) * gold)  # (N, 1)
            d_aux_logits = (scale * aux_probs).scatter_add_(1, index, -scale)
        if ctx.needs_input_grad[2]:
            d_rows = (soft_labels - mean).mul_(match * matched)
        return d_logits, d_aux_logits, d_rows, None, None, None, None


def _term_gradients(
    weights: Weights, item_weight: Tensor, of_values: Tensor | None, of_total: Tensor | None
) -> list[Tensor]:
    """What reaches each of the five terms of each item (N, 1), from the term itself and from the total."""
    columns: list[Tensor] | None = None
    if of_total is not None:
        column = (item_weight * of_total)[:, None]  # (N, 1)
        factors = (weights.hard, weights.soft, 1.0, weights.cap_weight, 1.0)
        columns = [column if factor == 1.0 else column * factor for factor in factors]
    if of_values is None:
        assert columns is not None  # autograd calls backward only with a gradient of some output
        return columns
    scaled = [(item_weight * of_value)[:, None] for of_value in of_values]
    return scaled if columns is None else [a + b for a, b in zip(columns, scaled, strict=True)]
