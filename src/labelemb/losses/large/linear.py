"""A linear map whose gradients are summed chunk by chunk."""

import torch
from torch import Tensor

from labelemb.losses.large.gradient_sum import GradientSum


class Linear:
    """features @ weight.T + bias; axes: K items or labels of a chunk, C classes, D features (a decoder's: its rank).

    Args:
        weight: (C, D).
        bias: (C,) or None.
        weight_sum, bias_sum: of their gradients, None for one that is not asked for.
        dtype: of the matrix products; a tensor of another type is copied once, here.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        weight_sum: GradientSum | None,
        bias_sum: GradientSum | None,
        dtype: torch.dtype,
    ) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.weight_sum, self.bias_sum = weight_sum, bias_sum

    @property
    def is_trained(self) -> bool:
        """Whether `add_gradient` does anything."""
        return self.weight_sum is not None or self.bias_sum is not None

    def into(self, features: Tensor, buffer: Tensor) -> Tensor:
        """The map of features (K, D), in the first rows of a buffer: (K, C)."""
        out = buffer[: len(features)]  # (K, C)
        if self.bias is None:
            return torch.mm(features, self.weight.T, out=out)
        return torch.addmm(self.bias, features, self.weight.T, out=out)

    def add_gradient(self, gradient: Tensor, features: Tensor) -> None:
        """Add what the gradient (K, C) of the map of features (K, D) gives weight and bias."""
        if self.weight_sum is not None:
            self.weight_sum.add_product(gradient.T, features)
        if self.bias_sum is not None:
            self.bias_sum.add_sum(gradient)
