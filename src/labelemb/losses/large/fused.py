"""The loss for large label sets: heads, label table and loss in one pass, so that no (N, C) tensor is ever made.

Loss and gradients are computed together, a chunk of items at a time (labelemb.losses.large.fused_pass): memory is that
of the parameters, their gradients and a budget for buffers. Matrix products a step, in units of 2*N*C*D flops:
5 + 3*U/N for a rank of D, where plain cross entropy needs 3. Axes: N items, C classes, D features, R rank, U distinct
labels.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from labelemb.losses.forgotten import ForgottenParameters
from labelemb.losses.large.fused_pass import FixedSoftLabel, FusedPass, Inputs, PassSettings
from labelemb.losses.large.label_plan import LabelPlan, plan_labels
from labelemb.losses.ranks import RankAgreement
from labelemb.losses.table import LabelTable
from labelemb.losses.terms import (
    LossTerms,
    Reduction,
    Weights,
    check_divisor,
    check_labels,
    check_num_items,
    is_distribution,
    prepare,
)

__all__ = [
    "FusedLabelEmbeddingLoss",
    "LabelPlan",
    "fused_fixed_soft_label_loss",
    "fused_label_embedding_loss",
    "fused_label_embedding_terms",
    "plan_labels",
]

_CPU_BUFFER_BYTES, _BUFFER_BYTES = 2**27, 2**30  # a GPU wants larger products
_PARAMETERS_PER_BUFFER = 5  # buffers may take a fifth of large parameters: each chunk reads and writes all gradients


class _Reduced(Protocol):
    class_weight: Tensor | None
    ignore_index: int
    reduction: Reduction


class _LabelEmbedding(_Reduced, Protocol):
    """What is read of a LabelEmbeddingLoss."""

    hard_weight: float
    soft_weight: float
    temperature: float
    cap: float
    cap_weight: float
    aux_head: nn.Linear | None
    table: LabelTable
    forgotten: ForgottenParameters
    ranks: RankAgreement


class _FixedSoftLabel(_Reduced, Protocol):
    """What is read of a FixedSoftLabelLoss."""

    hard_weight: float
    soft_weight: float
    true_prob: float
    other_prob: float
    entropy: float


class FusedLabelEmbeddingLoss(nn.Module):
    """A criterion and the classifier it is computed with, as one module: wrap this in DDP or compile.

    `forward` is `criterion.fused(features, target, head)`. The classifier's parameters are among this module's.

    Args:
        criterion: LabelEmbeddingLoss or another mode that has `fused`, with reduction "mean" or "sum".
        head: the classifier, (D features, C classes), with or without bias.
    """

    def __init__(self, criterion: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        check_plain_linear(head)
        if not hasattr(criterion, "table") and not hasattr(criterion, "true_prob"):
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
        """The loss, 0-d; see `fused_label_embedding_loss` for the arguments."""
        return self.terms(features, target, num_items=num_items, chunk_size=chunk_size, plan=plan).total

    def terms(
        self,
        features: Tensor,
        target: Tensor,
        *,
        num_items: Tensor | int | None = None,
        chunk_size: int | None = None,
        plan: LabelPlan | None = None,
    ) -> LossTerms:
        """The unweighted terms without gradient, and the loss `total` with it; soft is 0 while its weight is."""
        criterion: Any = self.criterion
        terms = fused_label_embedding_terms if hasattr(criterion, "table") else fused_fixed_soft_label_loss
        return terms(criterion, features, target, self.head, num_items, chunk_size, plan)


def fused_label_embedding_loss(
    features: Tensor,
    target: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    aux_weight: Tensor | None,
    aux_bias: Tensor | None,
    table: Tensor | tuple[Tensor, Tensor, Tensor],
    weights: Weights,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    num_items: Tensor | int | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
    plan: LabelPlan | None = None,
) -> Tensor:
    """The label embedding loss of features, with all gradients computed in the forward pass.

    Products run in the type of the features (under autocast, in autocast's), all else and every sum over items in
    float32 or wider. Only gradients that are asked for are computed, none without grad mode. They have
    no graph: `create_graph=True` raises. `backward` scales them in place: a second one over a retained graph raises,
    unless the loss stood alone on the CPU.

    Args:
        features: (N, D).
        target: (N,) integer labels in [0, C) or `ignore_index`.
        head_weight, head_bias: (C, D) and (C,) or None, the classifier.
        aux_weight, aux_bias: the auxiliary head likewise; aux_weight None leaves out aux, cap and match.
        table: (C, C) dense, or low rank: codes (C, R), decoder's weight (C, R) and bias (C,).
        weights: of the terms. A soft weight of 0 skips that work.
        class_weight: (C,) or None.
        ignore_index: items with this target have no part in any term and cost nothing.
        num_items: what replaces the divisor of the mean, an int or 0-d tensor.
        reduction: "mean" or "sum"; a value for each item would want a gradient for each.
        chunk_size: items in a chunk; None: as many as 128 MiB of buffers (1 GiB on a GPU), or a fifth of the
            parameters if that is more, have room for.
        plan: `plan_labels(target, ignore_index)`, made beforehand; without it a GPU is waited for once.

    Returns:
        The loss, 0-d, in float32 or wider.

    Raises:
        ValueError: shapes or types that do not fit, reduction "none", labels out of range (on the CPU).

    Source: arXiv 1710.10393, section 2.3; gradients in labelemb.losses.large.fused_pass.
    """
    dense, low_rank = (table, (None, None, None)) if isinstance(table, Tensor) else (None, table)
    inputs = Inputs(features, head_weight, head_bias, aux_weight, aux_bias, dense, *low_rank)
    items = _Items(target, class_weight, ignore_index, num_items, reduction, plan)
    return _terms(inputs, items, weights, None, chunk_size).total


def fused_label_embedding_terms(
    criterion: _LabelEmbedding,
    features: Tensor,
    target: Tensor,
    head: nn.Linear,
    num_items: Tensor | int | None = None,
    chunk_size: int | None = None,
    plan: LabelPlan | None = None,
) -> LossTerms:
    """The terms of a LabelEmbeddingLoss over `head(features)`; see `fused_label_embedding_loss` for the arguments.

    Returns:
        `total` with gradients; the five terms without, and soft 0 while its weight is, as that skips its work.
    """
    assert isinstance(criterion, nn.Module)
    check_plain_linear(head)
    criterion.forgotten.check(criterion, head.weight)
    criterion.ranks.check(criterion, head.weight)
    aux, table = criterion.aux_head, criterion.table
    inputs = Inputs(
        features,
        head.weight,
        head.bias,
        None if aux is None else aux.weight,
        None if aux is None else aux.bias,
        *((table.weight, None, None, None) if table.rank is None else (None, *_low_rank(table))),
    )
    weights = Weights(
        criterion.hard_weight, criterion.soft_weight, criterion.cap_weight, criterion.cap, criterion.temperature
    )
    items = _items(criterion, target, num_items, plan)
    return _terms(inputs, items, weights, None, chunk_size)


def fused_fixed_soft_label_loss(
    criterion: _FixedSoftLabel,
    features: Tensor,
    target: Tensor,
    head: nn.Linear,
    num_items: Tensor | int | None = None,
    chunk_size: int | None = None,
    plan: LabelPlan | None = None,
) -> LossTerms:
    """The terms of a FixedSoftLabelLoss over `head(features)`: such a soft label needs only the sum of the logits.

    Arguments and result as for `fused_label_embedding_terms`; aux, cap and match are 0.
    """
    check_plain_linear(head)
    fixed = FixedSoftLabel(criterion.true_prob, criterion.other_prob, criterion.entropy)
    weights = Weights(criterion.hard_weight, criterion.soft_weight, 0.0, 1.0, 1.0)
    items = _items(criterion, target, num_items, plan)
    return _terms(Inputs(features, head.weight, head.bias), items, weights, fixed, chunk_size)


class _Items(NamedTuple):
    """The targets and how their values are reduced."""

    target: Tensor
    class_weight: Tensor | None
    ignore_index: int
    num_items: Tensor | int | None
    reduction: Reduction
    plan: LabelPlan | None


def _items(criterion: _Reduced, target: Tensor, num_items: Tensor | int | None, plan: LabelPlan | None) -> _Items:
    return _Items(target, criterion.class_weight, criterion.ignore_index, num_items, criterion.reduction, plan)


def _low_rank(table: LabelTable) -> tuple[Tensor, Tensor, Tensor]:
    return table.rows.weight, table.decoder.weight, table.decoder.bias


def _terms(
    inputs: Inputs, items: _Items, weights: Weights, fixed: FixedSoftLabel | None, chunk_size: int | None
) -> LossTerms:
    if torch.compiler.is_compiling():  # it would only be cut to pieces: it decides shapes from values
        terms: LossTerms = torch.compiler.disable(_eager_terms)(  # type: ignore[no-untyped-call]
            inputs, items, weights, fixed, chunk_size
        )
        return terms
    return _eager_terms(inputs, items, weights, fixed, chunk_size)


def _eager_terms(
    inputs: Inputs, items: _Items, weights: Weights, fixed: FixedSoftLabel | None, chunk_size: int | None
) -> LossTerms:
    _check(inputs, items, chunk_size)
    features = inputs.features
    dtype = _product_dtype(features)
    _, item_weight = prepare(*items[:5], torch.promote_types(dtype, torch.float32))  # (N,)
    plan = plan_labels(items.target, items.ignore_index) if items.plan is None else items.plan
    needed = tuple(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs)
    size = _chunk_size(inputs, dtype, item_weight.dtype) if chunk_size is None else chunk_size
    settings = PassSettings(weights, fixed, needed, dtype, size)
    total, terms = _Fused.apply(plan.to(features.device), item_weight, settings, *inputs)  # type: ignore[no-untyped-call]
    hard, soft, aux, cap, match = terms.unbind()
    return LossTerms(hard, soft, aux, cap, match, total)


class _Fused(torch.autograd.Function):
    """Gradients are made by the forward pass; what is left to the backward pass is the factor of the loss."""

    @staticmethod
    def forward(
        ctx: Any, plan: LabelPlan, item_weight: Tensor, settings: PassSettings, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(item_weight.device.type, enabled=False):  # the pass has its own types
            terms, gradients = FusedPass(Inputs(*inputs), plan, item_weight, settings).run()  # type: ignore[arg-type]
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(terms)
        return settings.weights.total(terms.unbind()), terms

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the gradients are numbers by now, and would pass for constants
            raise RuntimeError(
                "the fused loss has no second derivatives: use criterion(head(features), target, features) with "
                "create_graph=True"
            )
        gradients: tuple[Tensor | None, ...] = ctx.saved_tensors
        if of_total.device.type != "cpu" or of_total != 1:  # elsewhere reading it would wait for the device
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(of_total)  # in place: a copy would double the memory of the largest tensors
        return None, None, None, *gradients


def check_plain_linear(head: nn.Module) -> None:
    """Raise ValueError for a head that is more than its weight and bias: they are all that a fused loss reads.

    An adapter's own `forward`, hooks (old weight norm and pruning among them) and replaced methods would be dropped
    without a word. Parametrisations act on the weight itself, and are read.
    """
    if not isinstance(head, nn.Linear):
        more = f"got {type(head).__name__}" if isinstance(head, nn.Module) else f"got {type(head)}"
    elif type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        more = f"{type(head).__name__} has a forward of its own"
    elif any((head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)):
        more = "it has hooks"
    else:
        return
    raise ValueError(
        f"a fused loss reads weight and bias of a plain nn.Linear and does not call it, but {more}; "
        "use criterion(head(features), target, features)"
    )


def _product_dtype(features: Tensor) -> torch.dtype:
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return features.dtype


def _chunk_size(inputs: Inputs, product_dtype: torch.dtype, row_dtype: torch.dtype) -> int:
    """How many items the budget of the buffers has room for if all their labels differ."""
    largest = _CPU_BUFFER_BYTES if inputs.features.device.type == "cpu" else _BUFFER_BYTES
    parameter_bytes = sum(tensor.nbytes for tensor in inputs[1:] if tensor is not None)
    item_bytes = product_dtype.itemsize
    if inputs.table is not None or inputs.codes is not None:
        item_bytes += product_dtype.itemsize + row_dtype.itemsize
    return max(1, max(largest, parameter_bytes // _PARAMETERS_PER_BUFFER) // (item_bytes * len(inputs.head_weight)))


def _check(inputs: Inputs, items: _Items, chunk_size: int | None) -> None:
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
    check_labels(items.target, len(features), num_classes, items.ignore_index)
    if items.reduction == "none":
        raise ValueError("the fused loss has gradients of a sum: reduction must be 'mean' or 'sum', got 'none'")
    check_num_items(items.num_items, items.reduction)
    check_divisor(items.target, items.ignore_index, items.num_items)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, or None, got {chunk_size}")
