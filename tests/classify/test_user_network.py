"""Networks of the user's: features caught on their way into the last layer, and what is no classifier refused."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.small_runs import write_image_cache
from torch import Tensor, nn

from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.networks import Classifier
from labelemb.classify.task import ClassifyTask
from labelemb.classify.user_network import UserNetwork, load_network
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifierSettings, ClassifySettings
from labelemb.settings.recipe import load_recipe

CIFAR = (3, 32, 32)


class Plain(nn.Module):
    """A network that knows nothing of this package; its head is registered before its body."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(6, num_classes)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(inputs))
        return logits


def user_network() -> tuple[UserNetwork, Plain]:
    torch.manual_seed(0)
    plain = Plain(3)
    return UserNetwork(plain, (4,), 3), plain


def test_user_network_yields_the_inputs_of_its_last_layer() -> None:
    network, plain = user_network()
    network.eval()
    inputs = torch.randn(5, 4)
    logits, features = network(inputs)
    assert torch.equal(features, plain.body(inputs))
    assert torch.equal(logits, plain(inputs))
    assert (network.num_features, network.head) == (6, plain.fc)


def test_user_network_passes_gradients_through_logits_and_features() -> None:
    network, plain = user_network()
    logits, features = network(torch.randn(5, 4))
    (logits.sum() + features.sum()).backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


def test_user_network_holds_each_tensor_once_and_stays_in_training_mode() -> None:
    network, plain = user_network()
    assert list(network.state_dict()) == [f"network.{key}" for key in plain.state_dict()]
    assert network.training
    assert plain.body.training


def test_copy_of_a_user_network_catches_its_own_features() -> None:
    network, _ = user_network()
    twin = copy.deepcopy(network).eval()
    with torch.no_grad():
        twin.head.weight.zero_()
        logits, features = twin(torch.randn(5, 4))
    assert twin.head is not network.head
    assert torch.equal(logits, twin.head.bias.expand(5, 3))
    assert features.shape == (5, 6)


def test_user_network_compiles_into_one_graph() -> None:
    network, _ = user_network()
    network.eval()
    inputs = torch.randn(5, 4)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), network(inputs))


class Attached(nn.Module):
    """`Plain` followed by something."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.plain, self.after = Plain(3), after

    def forward(self, inputs: Tensor) -> object:
        return self.after(self.plain(inputs))


@pytest.mark.parametrize(
    ("network", "num_classes", "message"),
    [
        (Plain(3), 7, "last nn.Linear has 7 outputs, found: 3, 6"),
        (nn.Flatten(), 7, "found: no nn.Linear at all"),
        (nn.Linear(5, 3), 3, r"fails on two inputs of shape \(4,\): RuntimeError: mat1"),
        (Attached(lambda logits: logits.softmax(1)), 3, "remove what follows, such as a softmax"),
        (Attached(lambda logits: (logits, logits)), 3, r"logits \(N, 3\); got tuple for N = 2"),
        (Attached(lambda logits: logits[:1]), 3, r"got \(1, 3\) for N = 2"),
    ],
)
def test_network_that_is_no_classifier_is_refused(network: nn.Module, num_classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        UserNetwork(network, (4,), num_classes)
    assert "\n" not in str(caught.value)


SOURCE = """
from torch import nn
def small(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, num_classes))
def shaped(input_shape, num_classes): return nn.Linear(input_shape[0], num_classes)
def loose(pretrained=False, **options): return nn.Linear(12, options["num_classes"])
def nameless(n): return nn.Linear(12, n)
def wrong(num_classes): return [num_classes]
def broken(num_classes): return undefined
number = 3
"""


@pytest.fixture
def my_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_networks.py").write_text(SOURCE)
    (tmp_path / "my_broken.py").write_text("import not_there_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return "my_networks"


@pytest.mark.parametrize(
    ("name", "input_shape", "num_features"), [("small", (3, 2, 2), 5), ("shaped", (8,), 8), ("loose", (12,), 12)]
)
def test_network_is_loaded_from_the_current_directory(
    my_networks: str, name: str, input_shape: tuple[int, ...], num_features: int
) -> None:
    network = load_network(f"{my_networks}:{name}", input_shape, 4)
    logits, features = network(torch.zeros(2, *input_shape))
    assert isinstance(network, Classifier)
    assert (logits.shape, features.shape) == ((2, 4), (2, num_features))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_networks", "expected module:function or timm:NAME"),
        (":small", "expected module:function or timm:NAME"),
        ("my_nets:small", "cannot import module my_nets: ModuleNotFoundError"),
        ("my_broken:small", "cannot import module my_broken: .*not_there_at_all"),
        ("my_networks:large", "module my_networks has no function large"),
        ("my_networks:number", "module my_networks has no function number"),
        (
            "my_networks:nameless",
            r"expected nameless\(num_classes\) or nameless\(input_shape, num_classes\), got nameless\(n\)",
        ),
        ("my_networks:wrong", "expected wrong to return an nn.Module, got list"),
        ("my_networks:broken", "broken failed: NameError"),
        ("my_networks:small", r"fails on two inputs of shape \(11,\)"),
    ],
)
def test_network_that_cannot_be_loaded_is_refused_in_one_line(my_networks: str, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^--model {spec}: {message}") as caught:
        load_network(spec, (11,), 4)
    assert "\n" not in str(caught.value)


def test_timm_network_is_built_for_the_classes_and_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = ModuleType("timm")

    def create_model(name: str, num_classes: int, in_chans: int) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        return nn.Sequential(
            nn.Conv2d(in_chans, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes)
        )

    monkeypatch.setattr(timm, "create_model", create_model, raising=False)
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert load_network("timm:tiny", (5, 8, 8), 3).num_features == 2
    with pytest.raises(ValueError, match=r"^--model timm:huge: timm cannot build huge: RuntimeError: Unknown model"):
        load_network("timm:huge", (5, 8, 8), 3)


def test_missing_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        load_network("timm:resnet18", CIFAR, 3)


class Flattening(nn.Module):
    """The tutorials' way from maps to a vector, which needs the channels outermost in memory."""

    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.flatten = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 3), flatten

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.flatten(self.conv(inputs)))
        return logits


class Volumes(nn.Module):
    """Pictures as one slice of a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv3d(1, 2, 3, padding=1), nn.Linear(2 * 3 * 8 * 8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(inputs[:, None]).flatten(1))
        return logits


class Positioned(nn.Module):
    """A weight of four dimensions, taken as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.fc = nn.Parameter(torch.zeros(1, 3, 8, 8)), nn.Linear(3 * 8 * 8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs.flatten(1) + self.position.view(1, -1))
        return logits


def strictly_flat(maps: Tensor) -> Tensor:
    assert maps.is_contiguous()
    return maps.flatten(1)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Flattening(lambda maps: maps.flatten(1)), True),
        (Flattening(lambda maps: maps.view(-1, 4 * 6 * 6)), False),
        (Flattening(strictly_flat), False),
        (Volumes(), False),
        (Positioned(), False),
    ],
)
def test_channels_go_innermost_only_where_the_network_can_take_them(
    network: nn.Module, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert UserNetwork(network, (3, 8, 8), 3).takes_channels_last is expected
    module = ModuleType("networks_of_mine")
    module.__dict__["mine"] = lambda num_classes: network
    monkeypatch.setitem(sys.modules, "networks_of_mine", module)
    path = write_image_cache(tmp_path / "images.safetensors", shape=(3, 8, 8), num_train=2)
    settings = load_recipe("cifar10", ["precision=bfloat16", "data.source=pictures"], {"data.path": path})
    settings = settings.model_copy(update={"model": ClassifierSettings(name="networks_of_mine:mine")})
    assert isinstance(settings, ClassifySettings)
    task = ClassifyTask(settings, load_image_inputs(settings), torch.device("cpu"), RunFolder(tmp_path / "run"))
    inputs, target = next(task.batches(0, 0))
    assert inputs.is_contiguous(memory_format=torch.channels_last) is expected
    task.module(inputs, target).terms.total.backward()
