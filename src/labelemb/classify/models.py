"""Networks for images and vectors: a body that yields features and one linear layer that yields logits.

Convolutions start He-normal (fan out, gain of the rectifier) with zero bias, batch norm as the identity, linear layers
as PyTorch's `nn.Linear` does. All draws come from PyTorch's default generator: seed it before building.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network whose last layer is `head`, linear on `features`.

    Attributes:
        num_features: D, the width of the features.
        head: the linear layer (D inputs, C outputs).
    """

    num_features: int
    head: nn.Linear

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden representation, (N, D), of N inputs."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (N, C) and the features (N, D) of N inputs."""
        features = self.features(inputs)  # (N, D)
        return self.head(features), features


class MLP(Classifier):
    """Fully connected layers with ReLU: 784-500-500 in the paper.

    Args:
        num_inputs: number of values of one input; images (N, channels, H, W) are flattened.
        hidden: widths of the hidden layers; the last one is D. None at all is a linear classifier.
        num_classes: C.
    """

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_classes: int) -> None:
        super().__init__()
        widths = [num_inputs, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(width, next_width) for width, next_width in itertools.pairwise(widths))
        self.num_features = widths[-1]
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden layer, (N, D), of `inputs` (N, num_inputs) or (N, channels, H, W)."""
        features = inputs.flatten(1)  # (N, num_inputs)
        for layer in self.hidden:
            features = F.relu(layer(features))
        return features


class MnistCNN(Classifier):
    """The paper's network for MNIST: two 5x5 convolutions (32, 64), each with ReLU and 2x2 pooling, then 1,024 units.

    Args:
        input_shape: (channels, height, width) of an image, at least 4 pixels a side.
        num_classes: C.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = _image_shape(input_shape, smallest=4)
        self.num_features = 1024
        self.conv1 = nn.Conv2d(channels, 32, kernel_size=5, padding="same")
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding="same")
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)
        _initialise_convolutions(self)

    def features(self, inputs: Tensor) -> Tensor:
        """The hidden layer, (N, 1024), of images (N, channels, H, W)."""
        maps = F.max_pool2d(F.relu(self.conv1(inputs)), 2)  # (N, 32, H/2, W/2)
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)  # (N, 64, H/4, W/4)
        return F.relu(self.hidden(maps.flatten(1)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, which is a 1x1 projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, maps: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(residual)) + self.shortcut(maps))


class ResNet(Classifier):
    """A residual network for small images; each stage but the first halves the side.

    Args:
        input_shape: (channels, height, width) of an image.
        num_classes: C.
        stem: channels of the first 3x3 convolution.
        stages: channels of each stage.
        blocks: residual blocks a stage.
        pool: side of the average pooling at the end; None averages over the whole map.

    Raises:
        ValueError: the images are too small for the last pooling.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        stem: int,
        stages: Sequence[int],
        blocks: int,
        pool: int | None = None,
    ) -> None:
        super().__init__()
        scale = 2 ** (len(stages) - 1)
        smallest = 1 if pool is None else (pool - 1) * scale + 1
        channels, height, width = _image_shape(input_shape, smallest)
        self.pool = pool
        self.conv = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.blocks = nn.Sequential()
        in_channels = stem
        for stage, out_channels in enumerate(stages):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(ResidualBlock(in_channels, out_channels, stride))
                in_channels = out_channels
        # A padded convolution of stride 2 leaves half the side, rounded up.
        cells = 1 if pool is None else (math.ceil(height / scale) // pool) * (math.ceil(width / scale) // pool)
        self.num_features = in_channels * cells
        self.head = nn.Linear(self.num_features, num_classes)
        _initialise_convolutions(self)

    def features(self, inputs: Tensor) -> Tensor:
        """The pooled maps of the last stage, (N, D), of images (N, channels, H, W)."""
        maps = self.blocks(F.relu(self.norm(self.conv(inputs))))  # (N, stages[-1], H/scale, W/scale)
        return maps.mean(dim=(2, 3)) if self.pool is None else F.avg_pool2d(maps, self.pool).flatten(1)


def mlp(input_shape: Sequence[int], num_classes: int, *, hidden: Sequence[int] = (500, 500)) -> MLP:
    """`MLP` for inputs of this shape, all their values taken as one vector."""
    return MLP(math.prod(input_shape), hidden, num_classes)


def resnet8(input_shape: Sequence[int], num_classes: int, *, width: int = 128) -> ResNet:
    """The paper's ResNet-8 at the default width: one block a stage, average pool 4, 2,048 features of 32x32 images."""
    return ResNet(input_shape, num_classes, stem=width, stages=(width, 2 * width, 4 * width), blocks=1, pool=4)


def resnet18(input_shape: Sequence[int], num_classes: int, *, width: int = 128) -> ResNet:
    """ResNet-18 for small images: the paper's doubled width by default, the ordinary network with `width=64`."""
    stages = (width, 2 * width, 4 * width, 8 * width)
    return ResNet(input_shape, num_classes, stem=width, stages=stages, blocks=2)


NETWORKS: dict[str, Callable[..., Classifier]] = {
    "mlp": mlp,
    "mnist-cnn": MnistCNN,
    "resnet8": resnet8,
    "resnet18": resnet18,
}


class UserNetwork(Classifier):
    """Any network that returns logits, with the inputs of its last linear layer as features.

    The features are caught on their way into that layer, so nothing about the network has to change.

    Args:
        network: maps inputs to logits (N, C), the output of its last `nn.Linear` with C outputs.
        input_shape: shape of one input; the network sees two such inputs, all zero, once.
        num_classes: C.

    Raises:
        ValueError: the network has no such layer, or its output is not that layer's output.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        heads = [layer for layer in layers if layer.out_features == num_classes]
        if not heads:
            widths = ", ".join(str(layer.out_features) for layer in layers) or "no nn.Linear at all"
            raise ValueError(f"expected a network whose last nn.Linear has {num_classes} outputs, found: {widths}")
        self.network = network
        # Not registered a second time: the state dict would hold its tensors twice.
        self.__dict__["head"] = heads[-1]
        self.num_features = heads[-1].in_features
        self._caught: Tensor | None = None
        heads[-1].register_forward_pre_hook(self._catch)
        self._check(input_shape, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """What the last linear layer receives, (N, D), for N inputs."""
        return self.forward(inputs)[1]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The network's logits (N, C) and the features (N, D) behind them."""
        logits = self.network(inputs)
        features, self._caught = self._caught, None  # kept no longer than needed: it holds the graph
        assert features is not None, "the last linear layer was not called"
        return logits, features

    def _catch(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._caught = arguments[0]

    @torch.no_grad()
    def _check(self, input_shape: Sequence[int], num_classes: int) -> None:
        training = self.training
        parameter = self.head.weight
        inputs = torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device)
        try:
            logits, features = self.eval()(inputs)
        except Exception as error:  # a stranger's code may raise anything
            raise ValueError(f"fails on two inputs of shape {tuple(input_shape)}: {_one_line(error)}") from error
        self.train(training)
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if got != (2, num_classes) or features.ndim != 2:
            raise ValueError(
                f"expected a network that returns one tensor, logits (N, {num_classes}); got {got} for N = 2"
            )
        if not torch.equal(logits, F.linear(features, self.head.weight, self.head.bias)):
            raise ValueError(
                "expected the output of the last nn.Linear as it is: remove what follows, such as a softmax"
            )


def load_network(spec: str, input_shape: Sequence[int], num_classes: int) -> Classifier:
    """A network of the user's, for the command-line option `--model`. Imports and runs the code it names.

    Args:
        spec: `module:function`, found from the current directory or installed, called with the arguments it names among
            `input_shape` and `num_classes`; or `timm:NAME`, a network of timm without pretrained weights.
        input_shape: shape of one input: (channels, height, width) or (F,).
        num_classes: C.

    Raises:
        ValueError: no such module, function or network, or one that is no classifier of C classes.
    """
    module, separator, name = spec.partition(":")
    if not (module and separator and name):
        raise ValueError(f"--model {spec}: expected module:function or timm:NAME, such as my_networks:small")
    try:
        if module == "timm":
            network = _timm_network(name, input_shape, num_classes)
        else:
            network = _imported_network(module, name, input_shape, num_classes)
        return UserNetwork(network, input_shape, num_classes)
    except ValueError as error:
        raise ValueError(f"--model {spec}: {error}") from error


def _imported_network(module: str, name: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script does not look here by itself
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a stranger's code may raise anything
        raise ValueError(f"cannot import module {module}: {_one_line(error)}") from error
    if not callable(function):
        raise ValueError(f"module {module} has no function {name}")
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if "input_shape" in parameters:
        arguments["input_shape"] = tuple(input_shape)
    if "num_classes" not in parameters and not takes_any:
        raise ValueError(
            f"expected {name}(num_classes) or {name}(input_shape, num_classes), got {name}{inspect.signature(function)}"
        )
    try:
        network = function(**arguments)
    except Exception as error:
        raise ValueError(f"{name} failed: {_one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"expected {name} to return an nn.Module, got {type(network).__name__}")
    return network


def _timm_network(name: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ValueError("timm is not installed here: pip install timm") from error
    try:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=input_shape[0])
    except Exception as error:
        raise ValueError(f"timm cannot build {name}: {_one_line(error)}") from error
    return network


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _image_shape(input_shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"this network takes images (channels, height, width) of at least {smallest} x {smallest} pixels, "
            f"got inputs of shape {tuple(input_shape)}: choose another network (model.name=mlp takes any shape)"
        )
    channels, height, width = input_shape
    return channels, height, width


def _initialise_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
