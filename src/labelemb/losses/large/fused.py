"""The loss for large label sets: heads, label table and loss in one pass, so that no (N, C) tensor is ever made.

Loss and gradients are computed together, a chunk of items at a time (labelemb.losses.large.fused_pass): memory is that
of the parameters, their gradients and a budget for buffers. Matrix products a step, in units of 2*N*C*D flops:
5 + 3*U/N for a rank of D, where plain cross entropy needs 3. Axes: N items, C classes, D features, R rank, U distinct
labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from labelemb.losses.arguments import check_plain_linear
from labelemb.losses.items import Items, SparseTarget, targets_and_factors
from labelemb.losses.large.class_shard import EVERY_CLASS, Classes
from labelemb.losses.large.fused_call import (
    check_inputs,
    check_items,
    default_chunk_size,
    needed_gradients,
    product_dtype,
    with_gradients,
)
from labelemb.losses.large.fused_pass import FixedSoftLabel, FusedPass, Inputs, PassSettings
from labelemb.losses.large.label_plan import LabelPlan, plan_labels
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.terms import LossTerms, Terms, Weights


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
        target: Tensor | SparseTarget,
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
        target: Tensor | SparseTarget,
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
    classes: Classes = EVERY_CLASS,
) -> LossTerms:
    """The terms of a loss over features and a head, with all gradients computed in the forward pass.

    Products run in the type of the features (under autocast, in autocast's), all else and every sum over items in
    float32 or wider. Only gradients that are asked for are computed; labelemb.losses.large.fused_call says what they
    can and cannot do.

    Args:
        inputs: features (N, D), the classifier, and the auxiliary head and label table where there are any.
        items: (N,) integer labels in [0, C) or `ignore_index`, which has no part in any term and costs nothing;
            reduction "mean" or "sum", as a value for each item would want a gradient for each.
        weights: of the terms. A soft weight of 0 skips that work.
        fixed: the soft label of modes that have no table.
        plan: `plan_labels(target, ignore_index)`, made beforehand; without it a GPU is waited for once.
        chunk_size: items in a chunk; None: as many as 128 MiB of buffers (1 GiB on a GPU), or a fifth of the
            parameters if that is more, have room for.
        classes: those that head and table have.

    Returns:
        `total` with gradients, in float32 or wider; the five terms without.

    Raises:
        ValueError: shapes or types that do not fit, reduction "none", labels out of range (on the CPU).

    Source: arXiv 1710.10393, section 2.3; gradients in labelemb.losses.large.fused_pass.
    """
    if torch.compiler.is_compiling():  # it would only be cut to pieces: it decides shapes from values
        disable: Callable[..., Callable[..., LossTerms]] = torch.compiler.disable
        return disable(_eager_terms)(inputs, items, weights, fixed, plan, chunk_size, classes)
    return _eager_terms(inputs, items, weights, fixed, plan, chunk_size, classes)


def _eager_terms(
    inputs: Inputs,
    items: Items,
    weights: Weights,
    fixed: FixedSoftLabel | None,
    plan: LabelPlan | None,
    chunk_size: int | None,
    classes: Classes,
) -> LossTerms:
    check_inputs(inputs, chunk_size, classes)
    check_items(items, len(inputs.features), classes.total(len(inputs.head_weight)))
    classes.check(inputs.features, items.target)
    dtype = product_dtype(inputs.features)
    _, factors = targets_and_factors(items, torch.promote_types(dtype, torch.float32))  # (N,)
    plan = plan_labels(items.target, items.ignore_index) if plan is None else plan
    plan = plan.to(inputs.features.device)
    if chunk_size is None:
        chunk_size = default_chunk_size(inputs, _item_bytes(inputs, dtype, factors.dtype), classes)
    settings = PassSettings(weights, fixed, needed_gradients(inputs), dtype, chunk_size, classes)
    total, terms = with_gradients(lambda: FusedPass(inputs, plan, factors, settings).run(), weights.factors, inputs)
    hard, soft, aux, cap, match = terms.unbind()
    return LossTerms(hard, soft, aux, cap, match, total)


def _item_bytes(inputs: Inputs, product_dtype: torch.dtype, row_dtype: torch.dtype) -> int:
    """What an item's logits take, and the rows of its label, if no other item has it."""
    with_rows = inputs.table is not None or inputs.codes is not None
    return 2 * product_dtype.itemsize + row_dtype.itemsize if with_rows else product_dtype.itemsize
