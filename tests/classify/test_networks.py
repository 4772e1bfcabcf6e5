"""Networks: the paper's sizes, one contract for all."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from labelemb.classify.networks import MLP, NETWORKS, ResNet

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "input_shape", "num_classes", "options", "total", "num_features"),
    [
        ("resnet18", CIFAR, 100, {}, 44_755_172, 1024),
        ("resnet18", CIFAR, 100, {"width": 64}, 11_220_132, 512),
        ("resnet8", CIFAR, 10, {}, 4_911_754, 2048),
        ("mnist-cnn", MNIST, 10, {}, 832 + 51_264 + 3_212_288 + 10_250, 1024),
        ("mlp", MNIST, 10, {}, 785 * 500 + 501 * 500 + 501 * 10, 500),
    ],
)
def test_parameters_are_as_many_as_the_paper_says(
    name: str, input_shape: tuple[int, ...], num_classes: int, options: dict[str, Any], total: int, num_features: int
) -> None:
    network = NETWORKS[name](input_shape, num_classes, **options)
    assert num_parameters(network) == total
    assert num_parameters(network) - num_parameters(network.head) == total - (num_features + 1) * num_classes
    assert network.num_features == num_features


@pytest.mark.parametrize(("name", "body"), [("resnet18", 44_652_672), ("resnet8", 4_891_264)])
def test_parameters_without_the_classifier_are_as_many_as_the_paper_says(name: str, body: int) -> None:
    network = NETWORKS[name](CIFAR, 10)
    assert num_parameters(network) - num_parameters(network.head) == body


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "input_shape", "options"),
    [
        ("mlp", (64,), {"hidden": [32, 16]}),
        ("mlp", MNIST, {"hidden": []}),
        ("mnist-cnn", (3, 13, 9), {}),
        ("resnet8", CIFAR, {"width": 4}),
        ("resnet8", (1, 13, 29), {"width": 4}),
        ("resnet18", (1, 5, 7), {"width": 4}),
    ],
)
def test_logits_are_the_head_of_the_features(
    name: str, input_shape: tuple[int, ...], options: dict[str, Any], training: bool
) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](input_shape, 7, **options).train(training)
    inputs = torch.randn(3, *input_shape)
    logits, features = network(inputs)
    assert logits.shape == (3, 7)
    assert features.shape == (3, network.num_features) == (3, network.head.in_features)
    assert torch.equal(features, network.features(inputs))
    assert torch.equal(logits, network.head(features))


def test_channels_last_changes_no_feature_order() -> None:
    torch.manual_seed(0)
    network = NETWORKS["resnet8"](CIFAR, 10, width=4).eval()
    inputs = torch.randn(2, *CIFAR)
    expected, _ = network(inputs)
    logits, _ = network(inputs.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected)


def test_residual_stages_halve_the_side_and_project_where_the_shape_changes() -> None:
    network = NETWORKS["resnet18"](CIFAR, 10, width=4)
    assert isinstance(network, ResNet)
    maps = torch.randn(1, 4, 32, 32)
    shapes = []
    for block in network.blocks:
        maps = block(maps)
        shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(4, 32, 32)] * 2 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2 + [(32, 4, 4)] * 2
    projected = [not isinstance(block.shortcut, nn.Identity) for block in network.blocks]
    assert projected == [False, False, True, False, True, False, True, False]


def test_convolutions_start_with_the_deviation_of_he() -> None:
    torch.manual_seed(0)
    for name, input_shape in (("resnet8", CIFAR), ("mnist-cnn", MNIST)):
        for module in NETWORKS[name](input_shape, 10).modules():
            if isinstance(module, nn.Conv2d):
                expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
                spread = (2 * module.weight.numel()) ** -0.5  # relative standard error of a deviation
                assert abs(module.weight.std().item() / expected - 1) < 5 * spread
                assert module.bias is None or not module.bias.any()


def test_same_seed_builds_the_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(NETWORKS["resnet8"](CIFAR, 10, width=4).state_dict())
    assert all(torch.equal(first, second) for first, second in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize(
    ("name", "input_shape", "smallest"),
    [("mnist-cnn", (1, 3, 9), 4), ("resnet8", (3, 12, 32), 13), ("resnet18", (64,), 1)],
)
def test_images_that_do_not_fit_are_refused_with_both_sizes(
    name: str, input_shape: tuple[int, ...], smallest: int
) -> None:
    message = re.escape(f"at least {smallest} x {smallest} pixels, got inputs of shape {input_shape}")
    with pytest.raises(ValueError, match=message):
        NETWORKS[name](input_shape, 10)


def test_mlp_flattens_images_of_any_layout_alike() -> None:
    torch.manual_seed(0)
    network = MLP(12, [8], 3)
    images = torch.randn(2, 3, 2, 2)
    vectors = images.reshape(2, 12)
    assert torch.equal(network(images)[0], network(vectors)[0])
    assert torch.equal(network(images.contiguous(memory_format=torch.channels_last))[0], network(vectors)[0])
