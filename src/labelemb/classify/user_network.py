"""Networks of the user's own, named on the command line, with their features caught on the way."""

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb.classify.networks import Classifier
from labelemb.errors import InputError, named_line


class UserNetwork(Classifier):
    """Any network that returns logits, with the inputs of its last linear layer as features.

    The features are caught on their way into that layer, so nothing about the network has to change.

    Args:
        network: maps inputs to logits (N, C), the output of its last `nn.Linear` with C outputs.
        input_shape: shape of one input; the network is tried on two such inputs, all zero.
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
        self._hook = heads[-1].register_forward_pre_hook(self._catch)
        training = self.training
        self.eval()
        self._check(input_shape, num_classes)
        self.takes_channels_last = self._try_channels_last(input_shape)
        self.train(training)

    def features(self, inputs: Tensor) -> Tensor:
        """What the last linear layer receives, (N, D), for N inputs."""
        return self.forward(inputs)[1]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The network's logits (N, C) and the features (N, D) behind them."""
        logits = self.network(inputs)
        features, self._caught = self._caught, None  # kept no longer than needed: it holds the graph
        assert features is not None, "the last linear layer was not called"
        return logits, features

    def without_features(self) -> nn.Module:
        """The network as it was given, for inference: this object no longer sees its features."""
        self._hook.remove()
        return self.network

    def _catch(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._caught = arguments[0]

    @torch.no_grad()
    def _check(self, input_shape: Sequence[int], num_classes: int) -> None:
        try:
            logits, features = self(self._zeros(input_shape))
        except Exception as error:  # a stranger's code may raise anything
            raise ValueError(f"fails on two inputs of shape {tuple(input_shape)}: {named_line(error)}") from error
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if got != (2, num_classes) or features.ndim != 2:
            raise ValueError(
                f"expected a network that returns one tensor, logits (N, {num_classes}); got {got} for N = 2"
            )
        if not torch.equal(logits, F.linear(features, self.head.weight, self.head.bias)):
            raise ValueError(
                "expected the output of the last nn.Linear as it is: remove what follows, such as a softmax"
            )

    @torch.no_grad()
    def _try_channels_last(self, input_shape: Sequence[int]) -> bool:
        """Not every network can: a flattening by `view` fails, and tensors of five dimensions have no such layout."""
        if len(input_shape) != 3:
            return False
        try:
            network = copy.deepcopy(self).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            network(self._zeros(input_shape).contiguous(memory_format=torch.channels_last))
        except Exception:  # a stranger's code may raise anything
            return False
        return True

    def _zeros(self, input_shape: Sequence[int]) -> Tensor:
        parameter = self.head.weight
        return torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device)


def load_network(spec: str, input_shape: Sequence[int], num_classes: int) -> Classifier:
    """A network of the user's, for the command-line option `--model`. Imports and runs the code it names.

    Args:
        spec: `module:function`, found from the current directory or installed, called with the arguments it names among
            `input_shape` and `num_classes`; or `timm:NAME`, a network of timm without pretrained weights.
        input_shape: shape of one input: (channels, height, width) or (F,).
        num_classes: C.

    Raises:
        InputError: no such module, function or network, or one that is no classifier of C classes.
    """
    module, separator, name = spec.partition(":")
    if not (module and separator and name):
        raise InputError(f"--model {spec}: expected module:function or timm:NAME, such as my_networks:small")
    try:
        if module == "timm":
            network = _timm_network(name, input_shape, num_classes)
        else:
            network = _imported_network(module, name, input_shape, num_classes)
        return UserNetwork(network, input_shape, num_classes)
    except ValueError as error:
        raise InputError(f"--model {spec}: {error}") from error


def _imported_network(module: str, name: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script does not look here by itself
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a stranger's code may raise anything
        raise ValueError(f"cannot import module {module}: {named_line(error)}") from error
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
        raise ValueError(f"{name} failed: {named_line(error)}") from error
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
        raise ValueError(f"timm cannot build {name}: {named_line(error)}") from error
    return network
