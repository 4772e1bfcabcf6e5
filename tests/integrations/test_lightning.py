"""labelemb.integrations.lightning: a LightningModule learns as a plain loop does, and goes on from its checkpoint."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

if importlib.util.find_spec("lightning") is None:
    pytest.skip("needs labelemb[lightning]", allow_module_level=True)

from lightning.pytorch import LightningModule, Trainer

from labelemb.integrations.lightning import SoftLabels
from labelemb.losses.catalogue import MODES
from labelemb.losses.modes import make_criterion
from labelemb.losses.soft_label import SoftLabelLoss

pytestmark = pytest.mark.filterwarnings("default")  # of lightning, whatever they are
IN, D, C = 6, 4, 5
LEARNING = ["baseline", "emb", "decoupled", "online-smoothing", "uskd", "maxsup"]


class Classifier(LightningModule):
    """The README's module."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(IN, D), nn.Tanh())
        self.head = nn.Linear(D, C)
        self.criterion = make_criterion(mode, D, C)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs))
        return logits

    def training_step(self, batch: Any, index: int) -> Tensor:
        inputs, target = batch
        loss: Tensor = self.criterion(self(inputs), target)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        inputs, target = batch
        self.log("val_loss", self.criterion.hard(self(inputs), target))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        network = [*self.body.parameters(), *self.head.parameters()]
        own = list(self.criterion.parameters())
        groups: list[dict[str, Any]] = [{"params": network}] + [{"params": own, "weight_decay": 0.0}] * bool(own)
        return torch.optim.SGD(groups, lr=0.5, momentum=0.9, weight_decay=0.1)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(16, IN, dtype=torch.float64, generator=generator), torch.randint(C, (16,), generator=generator)
    )


def trainer(folder: Path, epochs: int, accumulation: int = 1, criterion: str = "criterion") -> Trainer:
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "default_root_dir": folder, "accumulate_grad_batches": accumulation}
    return Trainer(max_epochs=epochs, callbacks=[SoftLabels(criterion=criterion)], num_sanity_val_steps=0, **options)


def plain_loop(module: Classifier, epochs: int, accumulation: int) -> None:
    optimizer = module.configure_optimizers()
    step, num_steps = 0, epochs * 4 // accumulation
    for _ in range(epochs):
        for number, (inputs, target) in enumerate(DataLoader(data(), batch_size=4)):
            module.criterion.progress = step / num_steps
            features = module.body(inputs)
            loss = module.criterion(module.head(features), target, features) / accumulation
            loss.backward()
            if (number + 1) % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
                module.criterion.end_step()
                step += 1
        module.criterion.end_epoch()


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("mode", LEARNING)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_trainer_equals_the_plain_loop(mode: str, accumulation: int, tmp_path: Path) -> None:
    module, plain = Classifier(mode), Classifier(mode)
    before = {name: value.clone() for name, value in module.criterion.state_dict().items()}
    trainer(tmp_path, 4, accumulation).fit(module, DataLoader(data(), batch_size=4))
    plain_loop(plain, 4, accumulation)
    assert_equal_states(module, plain)
    if MODES[mode].has_table:
        assert any(not torch.equal(value, before[name]) for name, value in module.criterion.state_dict().items())
    assert not module.head._forward_hooks


@pytest.mark.parametrize("mode", ["emb", "decoupled"])
def test_a_resumed_run_equals_one_that_was_never_stopped(mode: str, tmp_path: Path) -> None:
    whole, half, resumed = Classifier(mode), Classifier(mode), Classifier(mode)
    trainer(tmp_path, 2).fit(whole, DataLoader(data(), batch_size=4))
    first = trainer(tmp_path, 1)
    first.fit(half, DataLoader(data(), batch_size=4))
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, 2).fit(resumed, DataLoader(data(), batch_size=4), ckpt_path=tmp_path / "half.ckpt")
    assert_equal_states(resumed, whole)


@pytest.mark.parametrize("mode", ["emb", "decoupled"])
def test_the_validation_loss_is_cross_entropy(mode: str, tmp_path: Path) -> None:
    module = Classifier(mode)
    runner = trainer(tmp_path, 1)
    runner.fit(module, DataLoader(data(), batch_size=4), DataLoader(data(), batch_size=16))
    inputs, target = data().tensors
    assert_exact(runner.callback_metrics["val_loss"], F.cross_entropy(module(inputs), target).detach())


def test_a_module_without_that_criterion_is_refused(tmp_path: Path) -> None:
    module = Classifier("emb")
    runner = trainer(tmp_path, 1, criterion="loss")
    with pytest.raises(ValueError, match="no criterion named loss"):
        runner.fit(module, DataLoader(data(), batch_size=4))


def test_the_module_holds_a_criterion() -> None:
    assert isinstance(Classifier("emb").criterion, SoftLabelLoss)
