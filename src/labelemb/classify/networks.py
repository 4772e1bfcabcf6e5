"""Networks for images and vectors: a body that yields features and one linear layer that yields logits.

Convolutions start He-normal (fan out, gain of the rectifier) with zero bias, batch norm as the identity, linear layers
as PyTorch's `nn.Linear` does. All draws come from PyTorch's default generator: seed it before building.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.errors import InputError


class Classifier(nn.Module, ABC):
    """A network whose last layer is `head`, linear on `features`.

    Attributes:
        num_features: D, the width of the features.
        head: the linear layer (D inputs, C outputs).
        takes_channels_last: whether images may lie in memory with the channels innermost.
    """

    num_features: int
    head: nn.Linear
    takes_channels_last: bool = True

    @abstractmethod
    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden representation, (N, D), of N inputs."""

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
        _initialize_convolutions(self)

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
        InputError: the images are too small for the last pooling.
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
        _initialize_convolutions(self)

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


def _image_shape(input_shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise InputError(
            f"this network takes images (channels, height, width) of at least {smallest} x {smallest} pixels, "
            f"got inputs of shape {tuple(input_shape)}: choose another network (model.name=mlp takes any shape)"
        )
    channels, height, width = input_shape
    return channels, height, width


def _initialize_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
