"""Every recipe of the package: it loads, its network is built, and it takes two steps with a few images."""

from pathlib import Path

import pytest
import torch
from tests.small_runs import write_image_cache

from labelemb.classify.image_inputs import load_image_inputs
from labelemb.classify.task import ClassifyTask
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.settings.recipe import load_recipe, recipe_names
from labelemb.training.engine import Loop

# What a recipe's images are; the ResNets are as deep as ever, but narrow, and CIFAR-100 has ten labels here.
SHAPES = {"mnist-mlp": (1, 28, 28), "mnist-cnn": (1, 28, 28)}
NARROW = {
    "mnist-mlp": ["data.validation=2"],
    "mnist-cnn": ["data.validation=2"],
    "cifar10": ["model.width=8"],
    "cifar100": ["model.width=8"],
    "cifar100-sgd": ["model.width=8"],
    "images": ["model.width=8", "data.validation=2"],
}
IMAGES = [name for name in recipe_names() if isinstance(load_recipe(name), ClassifySettings)]


def settings_of(name: str, tmp_path: Path, mode: str) -> ClassifySettings:
    few = ["batch_size=2", "data.limit=4", "epochs=1", "device=cpu", *NARROW.get(name, [])]
    path = None
    if name != "digits":
        shape = SHAPES.get(name, (3, 32, 32))
        path = write_image_cache(tmp_path / "images.safetensors", num_train=6, num_test=2, shape=shape, num_classes=10)
    settings = load_recipe(name, few, {"data.path": path, "mode": mode})
    assert isinstance(settings, ClassifySettings)
    return settings


@pytest.mark.parametrize("mode", ["baseline", "emb"])
@pytest.mark.parametrize("name", IMAGES)
def test_every_image_recipe_takes_two_steps(tmp_path: Path, name: str, mode: str) -> None:
    settings = settings_of(name, tmp_path, mode)
    task = ClassifyTask(settings, load_image_inputs(settings), torch.device("cpu"), RunFolder(tmp_path / "run"))
    loop = Loop(task, settings, task.folder, lambda *_: None)
    before = [parameter.detach().clone() for parameter in task.module.parameters()]
    assert task.num_batches == 2
    for batch in task.batches(0, 0):
        loop.take_step(batch)
    row = loop.training_row()
    assert 0 < row["train_loss"] < 100
    # The auxiliary head's and the table's rows, the network's every layer: all have moved, and none to NaN.
    for (parameter_name, parameter), start in zip(task.module.named_parameters(), before, strict=True):
        assert parameter.isfinite().all(), parameter_name
        assert not torch.equal(parameter, start) or "table" in parameter_name, parameter_name


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_what_it_is_in_one_line(name: str) -> None:
    description = load_recipe(name).description
    assert description
    assert "\n" not in description


def test_the_recipes_of_the_paper_are_as_published() -> None:
    expected = {
        "cifar100": ("resnet18", 100, 128, 40, 0.2, "step"),
        "cifar10": ("resnet8", 100, 128, 40, 0.2, "constant"),
        "mnist-cnn": ("mnist-cnn", 15, 100, 40, 0.2, "constant"),
        "mnist-mlp": ("mlp", 15, 100, 40, 0.2, "constant"),
    }
    for name, (network, epochs, batch_size, every, factor, schedule) in expected.items():
        settings = load_recipe(name)
        assert isinstance(settings, ClassifySettings)
        assert (settings.model.name, settings.epochs, settings.batch_size) == (network, epochs, batch_size)
        assert (settings.schedule.name, settings.schedule.every, settings.schedule.factor) == (schedule, every, factor)
        assert (settings.optimizer.name, settings.optimizer.lr, settings.optimizer.weight_decay) == ("adam", 1e-3, 0)
        assert settings.data.validation == (5000 if name.startswith("mnist") else 0)
        augment = settings.augment
        paper = (4, True, True) if name.startswith("cifar") else (0, False, False)
        assert (augment.crop, augment.flip, augment.normalize) == paper
        assert (augment.mixup, augment.cutmix) == (0, 0)
        of_paper = {"hard_weight": 0.5, "soft_weight": 0.5, "temperature": 2, "cap": 0.9, "cap_weight": 100}
        assert settings.loss == of_paper | {"rank": None, "soft_after": 0}
    mlp = load_recipe("mnist-mlp")
    assert isinstance(mlp, ClassifySettings)
    assert mlp.model.hidden == (500, 500)


def test_digits_are_as_documented() -> None:
    settings = load_recipe("digits")
    assert isinstance(settings, ClassifySettings)
    assert (settings.model.hidden, settings.epochs, settings.batch_size) == ((256, 256), 30, 64)
    assert (settings.compare.modes, settings.compare.runs) == (("baseline", "smoothing", "emb"), 20)


def test_cifar100_sgd_is_what_users_train() -> None:
    settings = load_recipe("cifar100-sgd")
    assert isinstance(settings, ClassifySettings)
    assert (settings.optimizer.name, settings.schedule.name, settings.model.width) == ("sgd", "cosine", 64)
    assert settings.optimizer.weight_decay == 5e-4


def test_soft_labels_of_sequences_wait() -> None:
    for name, expected in {"iwslt15": 20_000, "lcsts": 20_000, "multi30k": 0.4}.items():
        if name in recipe_names():
            loss = load_recipe(name).loss
            assert (loss["hard_weight"], loss["soft_weight"], loss["soft_after"]) == (1, 1, expected)


def test_recipes_of_ours_teach_the_table_faster_and_the_paper_s_do_not() -> None:
    faster = {name for name in recipe_names() if load_recipe(name).optimizer.table_lr == 1e-2}
    assert faster == {"digits", "cifar100-sgd"}
    assert all(load_recipe(name).optimizer.table_lr is None for name in set(recipe_names()) - faster)
