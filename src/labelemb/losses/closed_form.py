"""The terms for class indices with their gradients in closed form: one pass forward, one back, no graph of small steps.

Autograd through the same formulas takes some forty operations more, which for a small network is a fifth of a step.
"""

from typing import Any

import torch
from torch import Tensor

from labelemb.losses.terms import Weights, weighted_sum


def index_terms(
    logits: Tensor,
    aux_logits: Tensor,
    rows: Tensor,
    target: Tensor,
    factors: Tensor,
    weights: Weights,
    summed: bool,
) -> tuple[Tensor, Tensor]:
    """The five terms and their weighted sum, times the items' factors.

    Args:
        logits, aux_logits, rows: z, z' and e_y, each (N, C), float32 or wider.
        target: (N,) int64 in [0, C).
        factors: (N,) what each item's values are multiplied by.
        weights: of the terms.
        summed: whether to sum over the items.

    Returns:
        Terms (5,) and total 0-d where summed, else (5, N) and (N,).
    """
    terms, total, *_ = _IndexTerms.apply(logits, aux_logits, rows, target, factors, weights, summed)  # type: ignore[no-untyped-call]
    return terms, total


class _IndexTerms(torch.autograd.Function):
    """The closed form.

    With g the gradient that reaches a term of an item, p = softmax(z), p' = softmax(z'), s = softmax(e_y),
    q = softmax(z'/temperature), m the match and y the one-hot target:

        dz  = g_hard*(p - y) + g_soft*(p - s)
        dz' = (g_aux - g_cap*[p'_y > cap]*p'_y)*(p' - y)
        de  = g_match*m*(s - q)

    Nothing else receives a gradient: these are the stop-gradients of the method. Where a graph of the gradients is
    asked for, autograd differentiates this backward pass. p, p' and s are results of the function for its sake: saved
    results remember where they came from, and keep no more memory than saved numbers do.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        aux_logits: Tensor,
        rows: Tensor,
        target: Tensor,
        factors: Tensor,
        weights: Weights,
        summed: bool,
    ) -> tuple[Tensor, ...]:
        # Labels come first, (C, N): reducing over the outer axis is several times faster on a CPU for few labels.
        index = target[None]  # (1, N)
        log_probs, aux_log_probs = logits.T.log_softmax(dim=0), aux_logits.T.log_softmax(dim=0)  # (C, N)
        probs, aux_probs = log_probs.exp(), aux_log_probs.exp()
        log_soft = rows.T.log_softmax(dim=0)
        soft_labels = log_soft.exp()
        tempered = (aux_logits.T / weights.temperature).softmax(dim=0)
        matched = aux_logits.T.gather(0, index) == aux_logits.amax(dim=1)  # (1, N)
        hard = -log_probs.gather(0, index)
        soft = -(soft_labels * log_probs).sum(dim=0, keepdim=True)
        aux = -aux_log_probs.gather(0, index)
        gold = aux_probs.gather(0, index)
        cap = (gold - weights.cap).clamp_min_(0)
        match = -(tempered * log_soft).sum(dim=0, keepdim=True) * matched
        terms = [hard, soft, aux, cap, match]  # (1, N) each
        values = torch.cat([*terms, weighted_sum(weights.factors, terms)]).mul_(factors)  # (6, N)
        values = values.sum(dim=1) if summed else values  # no matrix product: autocast would narrow it
        ctx.save_for_backward(index, factors, probs, aux_probs, soft_labels, tempered, matched)
        ctx.weights = weights
        ctx.set_materialize_grads(False)
        # The loss is no view: it may be divided in place.
        return values[:5], values[5].clone(), probs, aux_probs, soft_labels

    @staticmethod
    def backward(
        ctx: Any, grad_values: Tensor | None, grad_total: Tensor | None, *grad_probs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        index, factors, probs, aux_probs, soft_labels, tempered, matched = ctx.saved_tensors
        weights: Weights = ctx.weights
        gradients: list[Tensor | None] = [None, None, None]  # of logits, aux_logits, rows, each (C, N)
        if grad_values is not None or grad_total is not None:
            hard, soft, aux, cap, match = _term_gradients(weights, factors, grad_values, grad_total)  # (N,) each
            if ctx.needs_input_grad[0]:
                gradient = ((hard + soft) * probs).addcmul_(soft, soft_labels.detach(), value=-1.0)
                gradients[0] = gradient.scatter_add_(0, index, -hard[None])
            if ctx.needs_input_grad[1]:
                gold = aux_probs.gather(0, index)  # (1, N)
                scale = aux - cap * ((gold > weights.cap) * gold)
                gradients[1] = (scale * aux_probs).scatter_add_(0, index, -scale)
            if ctx.needs_input_grad[2]:
                gradients[2] = (soft_labels - tempered).mul_(match * matched)
        if any(grad is not None for grad in grad_probs):
            pairs = zip((probs, aux_probs, soft_labels), grad_probs, strict=True)
            through = [None if grad is None else _through_softmax(softmax, grad) for softmax, grad in pairs]
            gradients = [_added(one, other) for one, other in zip(gradients, through, strict=True)]
        return *(None if gradient is None else gradient.T for gradient in gradients), None, None, None, None


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, None being one that is not there."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _through_softmax(probs: Tensor, grad: Tensor) -> Tensor:
    """The gradient in the logits (C, N) of what has the gradient `grad` in their softmax over C."""
    return probs * (grad - (probs * grad).sum(dim=0, keepdim=True))


def _term_gradients(
    weights: Weights, factors: Tensor, grad_values: Tensor | None, grad_total: Tensor | None
) -> list[Tensor]:
    """What reaches each of the five terms of each item (N,), from the term itself and from the total."""
    columns = [factors * grad_value for grad_value in grad_values] if grad_values is not None else []
    if grad_total is None:
        return columns
    column = factors * grad_total
    grad_terms = [column if factor == 1.0 else column * factor for factor in weights.factors]
    return [one + other for one, other in zip(grad_terms, columns, strict=True)] if columns else grad_terms
