"""Soft targets of a few labels each, such as a teacher's best ones, for the fused loss: never spread out to (N, C).

Axes: N items, C classes, D features, K labels of a target; B items of a block.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from labelemb.losses.arguments import check_target, is_traced
from labelemb.losses.items import Items, SparseTarget, is_distribution, targets_and_factors
from labelemb.losses.large.blocks import block_rows, blocks, keep
from labelemb.losses.large.fused_call import (
    Gradients,
    check_inputs,
    check_summed,
    default_chunk_size,
    needed_gradients,
    product_dtype,
    with_gradients,
)
from labelemb.losses.large.fused_pass import FixedSoftLabel, Inputs, PassSettings
from labelemb.losses.large.gradient_sum import GradientSum
from labelemb.losses.large.linear import Linear
from labelemb.losses.large.soft_labels import SparseSoftLabels
from labelemb.losses.terms import LossTerms, Weights, widened


def fused_sparse_terms(
    inputs: Inputs,
    target: SparseTarget,
    items: Items,
    weights: Weights,
    fixed: FixedSoftLabel,
    chunk_size: int | None = None,
) -> LossTerms:
    """The terms of a mode of fixed soft labels, with all gradients computed in the forward pass.

    They are those of `forward` with the same target spread out to (N, C): the expectation under it.

    Args:
        inputs: features (N, D) and the classifier.
        target: indices (N, K) of labels and their values (N, K), which add up where a label is named twice. A row of
            zeros is an ignored item.
        items: the criterion's options; its target is that of the call, and not read.
        weights: of the terms hard and soft.
        fixed: the soft label of each label.
        chunk_size: items in a chunk; None for as many as the buffers' budget has room for.

    Returns:
        `total` with gradients, in float32 or wider; the terms without.

    Raises:
        ValueError: shapes or types that do not fit, reduction "none", indices out of range (on the CPU).
    """
    call = _eager_terms
    if torch.compiler.is_compiling():  # it decides shapes from sizes alone, but its gradients are no graph
        disable: Callable[..., Callable[..., LossTerms]] = torch.compiler.disable
        call = disable(_eager_terms)
    return call(inputs, target, items, weights, fixed, chunk_size)


def _eager_terms(
    inputs: Inputs,
    target: SparseTarget,
    items: Items,
    weights: Weights,
    fixed: FixedSoftLabel,
    chunk_size: int | None,
) -> LossTerms:
    check_inputs(inputs, chunk_size)
    check_sparse_target(target, items, len(inputs.features), len(inputs.head_weight))
    dtype = product_dtype(inputs.features)
    indices, values = target
    values, weighted = values.to(torch.promote_types(dtype, torch.float32)), items.class_weight
    if weighted is not None:  # what is left of it says that the divisor is the sum of the weights
        values, weighted = values * weighted.to(values.dtype)[indices], weighted.new_ones(1)
    values, factors = targets_and_factors(items._replace(target=values, class_weight=weighted), values.dtype)
    size = default_chunk_size(inputs, dtype.itemsize) if chunk_size is None else chunk_size
    settings = PassSettings(weights, fixed, needed_gradients(inputs), dtype, size)
    total, terms = with_gradients(
        lambda: SparseTargetPass(inputs, indices.long(), values, factors, settings).run(), weights.factors, inputs
    )
    hard, soft, aux, cap, match = terms.unbind()
    return LossTerms(hard, soft, aux, cap, match, total)


class SparseTargetPass:
    """One pass: `run` it once.

    With t the target of mass m, p = softmax(z), w the item's factor, a and b the hard and soft weight, o the share of
    every label in a fixed soft label and e what the label has above it:

        dz = w*((a + b)*m*p - (a + b*e)*t - b*o*m)

    Args:
        inputs: features and head.
        indices, values: (N, K) of the targets, class weights multiplied in.
        item_weight: (N,) w, in float32 or wider: the type of all row-wise steps and sums.
        settings: of the pass, with a fixed soft label.
    """

    def __init__(
        self, inputs: Inputs, indices: Tensor, values: Tensor, item_weight: Tensor, settings: PassSettings
    ) -> None:
        assert settings.fixed is not None
        self.inputs, self.settings, self.fixed = inputs, settings, settings.fixed
        self.indices, self.values, self.item_weight = indices, values, item_weight
        self.terms = item_weight.new_zeros(5, len(item_weight))  # hard, soft, and three that there are not
        self.sums = {
            name: GradientSum(tensor, item_weight.dtype)
            for name, tensor, needed in zip(Inputs._fields, inputs, settings.needed, strict=True)
            if tensor is not None and needed
        }
        head_sums = self.sums.get("head_weight"), self.sums.get("head_bias")
        self.head = Linear(inputs.head_weight, inputs.head_bias, *head_sums, settings.product_dtype)

    def run(self) -> tuple[Tensor, Gradients]:
        """The terms (5,), each summed with the items' factors, and a gradient for each of the inputs."""
        features, num_classes = self.inputs.features, len(self.inputs.head_weight)
        size = min(self.settings.chunk_size, len(features))
        buffer = torch.empty(size, num_classes, dtype=self.settings.product_dtype, device=features.device)
        for chunk in blocks(len(features), self.settings.chunk_size):
            given = features[chunk].to(self.settings.product_dtype)  # (K, D)
            logits = self.head.into(given, buffer)  # (K, C)
            for block in blocks(len(logits), block_rows(num_classes, features.device.type)):
                self._block(logits[block], slice(chunk.start + block.start, chunk.start + block.stop))
            gradient = logits  # what the blocks have left in their place
            self.head.add_gradient(gradient, given)
            if "features" in self.sums:
                items = torch.arange(chunk.start, chunk.stop, device=features.device)
                self.sums["features"].add_rows(items, gradient @ self.head.weight)
        gradients = [self.sums[name].finish() if name in self.sums else None for name in Inputs._fields]
        return self.terms @ self.item_weight, gradients

    def _block(self, logits: Tensor, items: slice) -> None:
        """Values of a block's items; their logits (B, C) become their gradients."""
        scores, (hard, soft, *_) = widened(logits), self.settings.weights
        indices, values, weight = self.indices[items], self.values[items], self.item_weight[items, None]
        target_mass = values.sum(dim=1, keepdim=True)  # (B, 1), as all columns below
        rest = self.fixed.other_prob * target_mass if self.fixed.other_prob else None
        excess = self.fixed.true_excess
        expected = SparseSoftLabels(indices, values, None).expected_scores(scores)
        soft_expected = SparseSoftLabels(indices, excess * values, rest).expected_scores(scores)
        top = scores.amax(dim=1, keepdim=True)
        exponentials = scores.sub_(top).exp_()
        mass = exponentials.sum(dim=1, keepdim=True)
        log_mass = target_mass * (top + mass.log())
        self.terms[0, items] = (log_mass - expected).squeeze(1)
        self.terms[1, items] = (log_mass - soft_expected - target_mass * self.fixed.entropy).squeeze(1)
        if "features" in self.sums or self.head.is_trained:
            gradient = exponentials.mul_(weight * (hard + soft) * target_mass / mass)
            rest = soft * rest if rest is not None and soft else None
            SparseSoftLabels(indices, (hard + soft * excess) * values, rest).subtract_from(gradient, weight)
            keep(gradient, logits)


def check_sparse_target(target: SparseTarget, items: Items, num_items: int, num_classes: int) -> None:
    """Raise ValueError unless the target is indices and values, (N, K) each, reduced to a sum or a mean."""
    indices, values = target
    check_summed(items)
    if indices.ndim != 2 or indices.dtype == torch.bool or is_distribution(indices) or indices.is_complex():
        raise ValueError(f"indices of a sparse target must be (N, K) integers, got {_shown(indices)}")
    if not is_distribution(values) or tuple(values.shape) != (num_items, indices.shape[1]):
        expected = (num_items, indices.shape[1])
        raise ValueError(f"values of a sparse target must be floating point {expected}, got {_shown(values)}")
    if len(indices) != num_items:
        raise ValueError(f"indices of a sparse target must be ({num_items}, K), got {_shown(indices)}")
    check_target(items._replace(target=values), num_items, indices.shape[1])
    if is_traced() or indices.device.type != "cpu" or not indices.numel():
        return  # values cannot be read, or reading them would wait for the device
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= num_classes:
        bad = low if low < 0 else high
        raise ValueError(
            f"indices of a sparse target must lie in 0 to {num_classes - 1}, got {bad}; give a label that is not "
            "meant the value 0"
        )


def _shown(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
