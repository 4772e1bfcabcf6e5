"""The decoupled loss for large label sets: head, rows and loss in one pass, so that no (N, C) tensor is ever made.

Matrix products a step, in units of 2*N*C*D flops: 3 with rows that are counted, which is what cross entropy needs, and
3 + 3*U/N with rows of a rank of D. Axes: N items, C classes, D features, R rank, U distinct labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from labelemb.losses.counted_table import CountedTable
from labelemb.losses.items import Items, targets_and_factors
from labelemb.losses.large.class_shard import EVERY_CLASS, Classes
from labelemb.losses.large.decoupled_pass import DecoupledInputs, DecoupledPass, DecoupledSettings
from labelemb.losses.large.fused_call import (
    check_inputs,
    check_items,
    default_chunk_size,
    needed_gradients,
    product_dtype,
    with_gradients,
)
from labelemb.losses.large.label_plan import LabelPlan, plan_labels
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.others_table import OthersTable
from labelemb.losses.terms import DecoupledTerms


def fused_decoupled_terms(
    features: Tensor,
    head: tuple[Tensor, Tensor | None],
    table: OthersTable,
    items: Items,
    *,
    epsilon: float,
    shape_weight: float,
    counts: bool,
    plan: LabelPlan | None = None,
    chunk_size: int | None = None,
    classes: Classes = EVERY_CLASS,
) -> DecoupledTerms:
    """The decoupled loss over features and a head, with all gradients computed in the forward pass.

    Products run in the type of the features (under autocast, in autocast's), all else and every sum over items in
    float32 or wider. labelemb.losses.large.fused_call says what its gradients can and cannot do.

    Args:
        features: (N, D).
        head: the classifier's weight (C, D) and bias (C,) or None, C at least 2.
        table: the rows; those of low rank get gradients, others the hits.
        items: (N,) integer labels in [0, C) or `ignore_index`; reduction "mean" or "sum".
        epsilon, shape_weight: of the loss.
        counts: whether hits are handed to the table.
        plan: `plan_labels(target, ignore_index)`, made beforehand; without it a GPU is waited for once.
        chunk_size: items in a chunk; None for as many as the buffers' budget has room for.
        classes: those that head and table have.

    Returns:
        `total` with gradients, in float32 or wider; the four terms without.

    Raises:
        ValueError: shapes or types that do not fit, reduction "none", labels out of range (on the CPU).
    """
    call = _eager_terms
    if torch.compiler.is_compiling():  # it would only be cut to pieces: it decides shapes from values
        disable: Callable[..., Callable[..., DecoupledTerms]] = torch.compiler.disable
        call = disable(_eager_terms)
    parameters = (table.codes, table.decoder_weight, table.decoder_bias) if isinstance(table, LowRankTable) else ()
    inputs = DecoupledInputs(features, *head, *parameters)
    return call(inputs, table, items, epsilon, shape_weight, counts, plan, chunk_size, classes)


def _eager_terms(
    inputs: DecoupledInputs,
    table: OthersTable,
    items: Items,
    epsilon: float,
    shape_weight: float,
    counts: bool,
    plan: LabelPlan | None,
    chunk_size: int | None,
    classes: Classes,
) -> DecoupledTerms:
    if classes.total(len(inputs.head_weight)) != table.num_classes:
        raise ValueError(f"head must have {table.num_classes} outputs, one a label, got {len(inputs.head_weight)}")
    check_inputs(inputs, chunk_size, classes)
    check_items(items, len(inputs.features), table.num_classes)
    classes.check(inputs.features, items.target)
    dtype = product_dtype(inputs.features)
    _, factors = targets_and_factors(items, torch.promote_types(dtype, torch.float32))  # (N,)
    plan = plan_labels(items.target, items.ignore_index) if plan is None else plan
    plan = plan.to(inputs.features.device)
    if chunk_size is None:
        chunk_size = default_chunk_size(inputs, _item_bytes(table, dtype, factors.dtype), classes)
    settings = DecoupledSettings(epsilon, shape_weight, counts, needed_gradients(inputs), dtype, chunk_size, classes)
    weights = (0.0, 1.0, shape_weight, 1.0)  # of hard, certainty, shape and match
    total, terms = with_gradients(lambda: DecoupledPass(inputs, table, plan, factors, settings).run(), weights, inputs)
    hard, certainty, shape, match = terms.unbind()
    return DecoupledTerms(hard, certainty, shape, match, total)


def _item_bytes(table: OthersTable, product_dtype: torch.dtype, sum_dtype: torch.dtype) -> int:
    """What an item's logits take, and what is kept of its label, if no other item has it."""
    if isinstance(table, CountedTable):
        return product_dtype.itemsize + sum_dtype.itemsize
    return (
        2 * product_dtype.itemsize + sum_dtype.itemsize if isinstance(table, LowRankTable) else product_dtype.itemsize
    )
