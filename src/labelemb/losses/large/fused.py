"""The loss for large label sets: heads, label table and loss in one pass, so that no (N, C) tensor is ever made.

Loss and gradients are computed together, a chunk of items at a time (labelemb.losses.large.fused_pass): memory is that
of the parameters, their gradients and a budget for buffers. Matrix products a step, in units of 2*N*C*D flops:
5 + 3*U/N for a rank of D, where plain cross entropy needs 3. Axes: N items, C classes, D features, R rank, U distinct
labels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from labelemb.losses.arguments import check_num_items, check_plain_linear, check_target
from labelemb.losses.items import Items, is_distribution, targets_and_factors
from labelemb.losses.large.fused_pass import FixedSoftLabel, FusedPass, Inputs, PassSettings
from labelemb.losses.large.label_plan import LabelPlan, plan_labels
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.terms import LossTerms, Terms, Weights, weighted_sum

_CPU_BUFFER_BYTES, _GPU_BUFFER_BYTES = 2**27, 2**30  # a GPU wants larger products
_PARAMETERS_PER_BUFFER = 5  # buffers may take a fifth of large parameters: each chunk reads and writes all gradients


class FusedLabelEmbeddingLoss(nn.Module):
    """A criterion and the classifier it is computed with, as one module: wrap this in DDP or compile.

    `forward` is `criterion.fused(features, target, head)`. The classifier's parameters are among this module's.

    Args:
        criterion: LabelEmbeddingLoss or another mode that has a fused form, with reduction "mean" or "sum".
        head: the classifier, (D features, C classes), with or without bias: a plain nn.Linear without hooks.

    Raises:
        ValueError: the criterion has no fused form, or the head is more than a linear map.

    Example:
        >>> from labelemb import LabelEmbeddingLoss
        >>> fused = FusedLabelEmbeddingLoss(LabelEmbeddingLoss(8, 1000, rank=4), nn.Linear(8, 1000))
        >>> fused(torch.zeros(5, 8), torch.tensor([0, 1, 2, 3, 999])).shape
        torch.Size([])
    """

    def __init__(self, criterion: SoftLabelLoss, head: nn.Linear) -> None:
        super().__init__()
        check_plain_linear(head)
        if type(criterion).fused_terms is SoftLabelLoss.fused_terms:
            raise ValueError(f"{type(criterion).__name__} needs every probability and has no fused form")
        self.criterion = criterion
        self.head = head

    def forward(
        self,
        features: Tensor,
        target: Tensor,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
        plan: LabelPlan | None = None,
    ) -> Tensor:
        """The loss, 0-d; see `fused_terms` for the arguments."""
        return self.terms(features, target, num_items=num_items, chunk_size=chunk_size, plan=plan).total

    def terms(
        self,
        features: Tensor,
        target: Tensor,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
        plan: LabelPlan | None = None,
    ) -> Terms:
        """The unweighted terms without gradient, and the loss `total` with it; soft is 0 while its weight is."""
        return self.criterion.fused_terms(
            features, target, self.head, num_items=num_items, chunk_size=chunk_size, plan=plan
        )


def fused_terms(
    inputs: Inputs,
    items: Items,
    weights: Weights,
    fixed: FixedSoftLabel | None = None,
    plan: LabelPlan | None = None,
    chunk_size: int | None = None,
) -> LossTerms:
    """The terms of a loss over features and a head, with all gradients computed in the forward pass.

    Products run in the type of the features (under autocast, in autocast's), all else and every sum over items in
    float32 or wider. Only gradients that are asked for are computed, none without grad mode. They have no graph:
    `create_graph=True` raises. `backward` scales them in place: a second one over a retained graph raises, unless the
    loss stood alone on the CPU.

    Args:
        inputs: features (N, D), the classifier, and the auxiliary head and label table where there are any.
        items: (N,) integer labels in [0, C) or `ignore_index`, which has no part in any term and costs nothing;
            reduction "mean" or "sum", as a value for each item would want a gradient for each.
        weights: of the terms. A soft weight of 0 skips that work.
        fixed: the soft label of modes that have no table.
        plan: `plan_labels(target, ignore_index)`, made beforehand; without it a GPU is waited for once.
        chunk_size: items in a chunk; None: as many as 128 MiB of buffers (1 GiB on a GPU), or a fifth of the
            parameters if that is more, have room for.

    Returns:
        `total` with gradients, in float32 or wider; the five terms without.

    Raises:
        ValueError: shapes or types that do not fit, reduction "none", labels out of range (on the CPU).

    Source: arXiv 1710.10393, section 2.3; gradients in labelemb.losses.large.fused_pass.
    """
    if torch.compiler.is_compiling():  # it would only be cut to pieces: it decides shapes from values
        terms: LossTerms = torch.compiler.disable(_eager_terms)(  # type: ignore[no-untyped-call]
            inputs, items, weights, fixed, plan, chunk_size
        )
        return terms
    return _eager_terms(inputs, items, weights, fixed, plan, chunk_size)


def _eager_terms(
    inputs: Inputs,
    items: Items,
    weights: Weights,
    fixed: FixedSoftLabel | None,
    plan: LabelPlan | None,
    chunk_size: int | None,
) -> LossTerms:
    _check(inputs, items, chunk_size)
    features = inputs.features
    dtype = _product_dtype(features)
    _, factors = targets_and_factors(items, torch.promote_types(dtype, torch.float32))  # (N,)
    plan = plan_labels(items.target, items.ignore_index) if plan is None else plan
    needed = tuple(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs)
    size = _chunk_size(inputs, dtype, factors.dtype) if chunk_size is None else chunk_size
    settings = PassSettings(weights, fixed, needed, dtype, size)
    total, terms = _Fused.apply(plan.to(features.device), factors, settings, *inputs)  # type: ignore[no-untyped-call]
    hard, soft, aux, cap, match = terms.unbind()
    return LossTerms(hard, soft, aux, cap, match, total)


class _Fused(torch.autograd.Function):
    """Gradients are made by the forward pass; what is left to the backward pass is the factor of the loss."""

    @staticmethod
    def forward(
        ctx: Any, plan: LabelPlan, factors: Tensor, settings: PassSettings, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(factors.device.type, enabled=False):  # the pass has its own types
            terms, gradients = FusedPass(Inputs(*inputs), plan, factors, settings).run()  # type: ignore[arg-type]
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(terms)
        return weighted_sum(settings.weights.factors, terms.unbind()), terms

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the gradients are numbers by now, and would pass for constants
            raise RuntimeError(
                "the fused loss has no second derivatives: use criterion(head(features), target, features) with "
                "create_graph=True"
            )
        gradients: tuple[Tensor | None, ...] = ctx.saved_tensors
        if grad_total.device.type != "cpu" or grad_total != 1:  # elsewhere reading it would wait for the device
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad_total)  # in place: a copy would double the memory of the largest tensors
        return None, None, None, *gradients


def _product_dtype(features: Tensor) -> torch.dtype:
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return features.dtype


def _chunk_size(inputs: Inputs, product_dtype: torch.dtype, row_dtype: torch.dtype) -> int:
    """How many items the budget of the buffers has room for if all their labels differ."""
    largest = _CPU_BUFFER_BYTES if inputs.features.device.type == "cpu" else _GPU_BUFFER_BYTES
    parameter_bytes = sum(tensor.nbytes for tensor in inputs[1:] if tensor is not None)
    item_bytes = product_dtype.itemsize
    if inputs.table is not None or inputs.codes is not None:
        item_bytes += product_dtype.itemsize + row_dtype.itemsize
    return max(1, max(largest, parameter_bytes // _PARAMETERS_PER_BUFFER) // (item_bytes * len(inputs.head_weight)))


def _check(inputs: Inputs, items: Items, chunk_size: int | None) -> None:
    features, weight = inputs.features, inputs.head_weight
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features must be (N, D) for a head of (C, D), got {tuple(features.shape)} and {tuple(weight.shape)}; "
            "flatten (batch, time), drop padding first"
        )
    num_classes = len(weight)
    for name, tensor in zip(Inputs._fields[1:], inputs[1:], strict=True):
        if tensor is not None and len(tensor) != num_classes:
            raise ValueError(f"{name} must have one row a label, {num_classes} as the head has, got {len(tensor)}")
    if is_distribution(items.target):
        raise ValueError(f"the fused loss takes class indices, got {items.target.dtype}; give probabilities to forward")
    if items.reduction == "none":
        raise ValueError("the fused loss has gradients of a sum: reduction must be 'mean' or 'sum', got 'none'")
    check_num_items(items)
    check_target(items, len(features), num_classes)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, or None, got {chunk_size}")
