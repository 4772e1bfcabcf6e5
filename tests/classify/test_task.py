"""The image task: batches from (seed, epoch) alone, inputs as documented, and what a run leaves behind."""

import json
from pathlib import Path
from shutil import which
from typing import Any, Self

import pytest
import torch
from PIL import Image
from tests.small_runs import bits, small_run, small_settings, write_image_cache
from torch import Tensor

from labelemb import LabelTable
from labelemb.classify.data import Answers, ClassifySplit
from labelemb.classify.image_data import ImageData, ImageSplit
from labelemb.classify.image_inputs import ImageInputs, load_image_inputs
from labelemb.classify.images import load_images
from labelemb.classify.task import ClassifyTask
from labelemb.errors import InputError
from labelemb.losses.catalogue import MODES
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.settings.data import ImageDataSettings
from labelemb.settings.recipe import load_recipe
from labelemb.training.engine import train

CPU = torch.device("cpu")


def image_task(settings: ClassifySettings, data: ImageData, folder: Path) -> ClassifyTask:
    return ClassifyTask(settings, ImageInputs.of(data, settings.augment), CPU, RunFolder(folder))


def inputs_of(split: ClassifySplit) -> Tensor:
    """All inputs of a split, as an evaluation sees them."""
    return split.inputs(slice(None))


def make_task(folder: Path, *overrides: str, **options: Any) -> ClassifyTask:
    settings = small_settings(*overrides, **options)
    return ClassifyTask(settings, load_image_inputs(settings), CPU, RunFolder(folder))


def picture_settings(*overrides: str, **options: Any) -> ClassifySettings:
    settings = load_recipe("cifar10", ["model.name=mlp", "model.hidden=[6]", "batch_size=4", *overrides], options)
    assert isinstance(settings, ClassifySettings)
    return settings


def pictures(tmp_path: Path) -> ImageData:
    path = write_image_cache(tmp_path / "images.safetensors", num_train=10)
    return load_images(ImageDataSettings(source="pictures", path=path))


def digits(*overrides: str) -> ImageData:
    return load_images(small_settings(*overrides).data)


def picture_task(tmp_path: Path, *overrides: str, **options: Any) -> ClassifyTask:
    return image_task(picture_settings(*overrides, **options), pictures(tmp_path), tmp_path / "run")


def saved_table(tmp_path: Path) -> Path:
    table = LabelTable(10, label_names=[str(digit) for digit in range(10)])
    table.save(tmp_path / "table.safetensors")
    return tmp_path / "table.safetensors"


def modes(tmp_path: Path) -> list[tuple[str, Path | None]]:
    table = saved_table(tmp_path)
    return [(mode.name, table if mode.takes_table else None) for mode in MODES.values()]


def test_every_mode_starts_from_the_same_network_with_the_same_batches(tmp_path: Path) -> None:
    starts = []
    for mode, table in modes(tmp_path):
        task = make_task(tmp_path, "augment.flip=true", "augment.crop=1", mode=mode, table=table, seed=3)
        batches = [list(batch[:2]) for epoch in (0, 1) for batch in task.batches(epoch, 0)]
        starts.append(bits([task.module.network.state_dict(), batches]))
    assert all(start == starts[0] for start in starts)


def test_a_mode_that_takes_the_index_is_told_which_image_each_is(tmp_path: Path) -> None:
    task = make_task(tmp_path, "data.limit=50", mode="pskd")
    for epoch in (0, 1):
        batches = list(task.batches(epoch, 0))
        index = torch.cat([batch[2] for batch in batches])
        assert sorted(index.tolist()) == list(range(50))
        assert torch.equal(torch.cat([batch[1] for batch in batches]), task.data.train.labels[index])
        assert torch.equal(torch.cat([batch[0] for batch in batches]), inputs_of(task.data.train)[index])
    assert all(len(batch) == 2 for batch in make_task(tmp_path, mode="baseline").batches(0, 0))


def test_another_seed_has_another_network_and_other_batches(tmp_path: Path) -> None:
    one, other = make_task(tmp_path), make_task(tmp_path, seed=1)
    assert bits(one.module.network.state_dict()) != bits(other.module.network.state_dict())
    assert bits(list(next(one.batches(0, 0)))) != bits(list(next(other.batches(0, 0))))


def test_batches_do_not_depend_on_where_an_epoch_is_entered(tmp_path: Path) -> None:
    task = picture_task(tmp_path, "augment.mixup=0.4")
    whole = [bits(list(batch)) for batch in task.batches(2, 0)]
    torch.manual_seed(5)
    for first in range(3):
        assert [bits(list(batch)) for batch in task.batches(2, first)] == whole[first:]
    assert whole != [bits(list(batch)) for batch in task.batches(3, 0)]


def test_an_epoch_holds_every_image_once_and_keeps_the_short_last_batch(tmp_path: Path) -> None:
    task = make_task(tmp_path, "data.limit=50")
    batches = list(task.batches(0, 0))
    assert task.num_batches == len(batches) == 4
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    inputs = torch.cat([inputs for inputs, _ in batches])
    expected = digits("data.limit=50").train.images.float() / 16
    order = [next(i for i in range(50) if torch.equal(inputs[i], image)) for image in expected]
    assert len(torch.unique(inputs, dim=0)) == len(torch.unique(expected, dim=0)) == 50
    assert torch.equal(torch.cat([labels for _, labels in batches])[order], task.data.train.labels)


def test_digits_are_divided_by_sixteen_and_bytes_by_255(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    torch.testing.assert_close(inputs_of(task.data.test), digits().test.images.float() / 16)
    task = picture_task(tmp_path, "augment.normalize=false")
    torch.testing.assert_close(inputs_of(task.data.test), pictures(tmp_path).test.images.float() / 255)


def test_normalised_inputs_have_mean_0_and_deviation_1_over_the_training_images(tmp_path: Path) -> None:
    task, stored = picture_task(tmp_path), pictures(tmp_path)
    inputs = inputs_of(task.data.train).double()
    torch.testing.assert_close(inputs.mean(dim=(0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.var(dim=(0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-5)
    pixels = stored.train.images.double()
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.var(dim=(0, 2, 3), correction=0).sqrt()
    expected = (stored.test.images.double() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(inputs_of(task.data.test).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blend", ["mixup", "cutmix"])
def test_blended_batches_have_distributions_as_targets(tmp_path: Path, blend: str) -> None:
    task = picture_task(tmp_path, f"augment.{blend}=1")
    for inputs, target in task.batches(0, 0):
        assert target.shape == (len(inputs), 3)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(len(inputs)))
        assert task.module(inputs, target).terms.total.isfinite()


def test_evaluation_images_are_never_augmented(tmp_path: Path) -> None:
    rows = [picture_task(tmp_path, seed=0).evaluate_epoch(1) for _ in range(2)]
    still = picture_task(tmp_path, "augment.crop=0", "augment.flip=false", seed=0)
    assert rows[0] == rows[1] == still.evaluate_epoch(1)


def test_the_evaluation_does_not_depend_on_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(tmp_path)
    task.module.eval()
    whole = task.evaluate_epoch(1)
    monkeypatch.setattr("labelemb.classify.task._EVALUATION_BATCH", 7)
    assert task.evaluate_epoch(1) == pytest.approx(whole, rel=1e-6)


def test_a_row_has_the_error_of_validation_and_test(tmp_path: Path) -> None:
    row = small_run(tmp_path, "data.validation=40", "epochs=1").metrics[0]
    columns = {f"{name}_{key}" for name in ("valid", "test") for key in ("error", "nll", "ece")}
    assert columns <= set(row)
    assert (row["valid_error"] * 40) == pytest.approx(round(row["valid_error"] * 40))
    assert (row["test_error"] * 719) == pytest.approx(round(row["test_error"] * 719))


def test_a_run_leaves_evaluation_table_and_examples(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    evaluation = folder.evaluation
    names = [str(digit) for digit in range(10)]
    assert (evaluation["num_items"], evaluation["label_names"]) == (719, names)
    assert sum(count for *_, count in evaluation["confusion"]) == 719
    right = sum(count for true, predicted, count in evaluation["confusion"] if true == predicted)
    assert 1 - right / 719 == pytest.approx(folder.metrics[-1]["test_error"])
    assert LabelTable.load(folder.table).label_names == names
    answers = json.loads((folder.examples / "answers.json").read_text())
    mistaken = [
        i for i, pair in enumerate(zip(answers["label"], answers["predicted"], strict=True)) if len({*pair}) > 1
    ]
    surest = sorted(mistaken, key=lambda index: -answers["certainty"][index])[:40]
    pictures = {path.name for path in folder.examples.glob("*.png")}
    assert pictures >= {f"{label:04d}-{number}.png" for label in range(10) for number in range(4)}
    assert len(pictures) == 40 + len(surest)
    assert len(mistaken) == round(folder.metrics[-1]["test_error"] * len(answers["label"]))
    with Image.open(folder.examples / "0003-0.png") as picture:
        assert (picture.size, picture.mode) == ((8, 8), "L")
        assert max(picture.tobytes()) > 200  # 16 is white


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "online-smoothing", "tfkd"])
def test_modes_without_a_learned_table_write_none(tmp_path: Path, mode: str) -> None:
    assert not small_run(tmp_path, "epochs=1", mode=mode).table.exists()


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("mode", ["baseline", "smoothing", "online-smoothing", "tfkd", "emb"])
def test_one_training_image_and_one_class_are_enough(tmp_path: Path, mode: str, num_classes: int) -> None:
    path = write_image_cache(tmp_path / "a.safetensors", num_train=1, num_test=1, num_classes=num_classes)
    data = load_images(ImageDataSettings(source="one", path=path))
    task = image_task(picture_settings(mode=mode), data, tmp_path / "run")
    ((inputs, target),) = task.batches(0, 0)
    output = task.module(inputs, target)
    assert output.terms.total.isfinite()
    assert set(task.evaluate_epoch(1)) == {"test_error", "test_nll", "test_ece"}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_of_any_number_of_channels_come_to_an_end(tmp_path: Path, channels: int) -> None:
    path = write_image_cache(tmp_path / "a.safetensors", shape=(channels, 4, 4))
    data = load_images(ImageDataSettings(source="bands", path=path))
    task = image_task(picture_settings(seed=0), data, tmp_path / "run")
    task.evaluate_epoch(1)
    task.finish()
    assert task.folder.evaluation["num_items"] == 6


def test_float_images_are_taken_in_their_own_units(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 12 * 16).reshape(12, 1, 4, 4)
    labels = torch.arange(12) % 2
    split = ImageSplit(images, labels)
    data = ImageData(split, None, split, ["a", "b"], scale=1.0)
    task = image_task(picture_settings("augment.normalize=false"), data, tmp_path)
    torch.testing.assert_close(inputs_of(task.data.test), images)


def refused(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        make_task(tmp_path, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_network_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "model.name=resnet9: expected one of mlp, mnist-cnn" in refused(tmp_path, "model.name=resnet9")
    assert "mlp has no setting width" in refused(tmp_path, "model.width=8")
    assert "(1, 8, 8)" in refused(tmp_path, "model.name=resnet8", "model.hidden=null")
    assert "--model nowhere:nothing" in refused(tmp_path, "model.name=nowhere:nothing")


def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    names = ["a", "b"]
    LabelTable(2, label_names=["b", "a"]).save(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no table")
    for path, expected in {
        "other.safetensors": "was learned for other labels",
        "broken.safetensors": "not a whole safetensors file",
        "missing.safetensors": "no label table at",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=expected):
            LabelTable.load(tmp_path / path, names)
    LabelTable(2).save(tmp_path / "nameless.safetensors")
    assert LabelTable.load(tmp_path / "nameless.safetensors", names).num_classes == 2


def test_a_given_table_has_its_own_rank_whatever_the_recipe_says(tmp_path: Path) -> None:
    task = make_task(tmp_path, "emb.rank=4", mode="emb-start", table=saved_table(tmp_path))
    assert isinstance(task.module.criterion, LabelEmbeddingLoss)
    assert task.module.criterion.table.rank is None


def test_what_the_criterion_refuses_is_an_error_of_the_input(tmp_path: Path) -> None:
    LabelTable(3).save(tmp_path / "three.safetensors")
    with pytest.raises(InputError, match=r"^mode emb-start: the table has 3 labels"):
        make_task(tmp_path, mode="emb-start", table=tmp_path / "three.safetensors")


class VectorSplit:
    """Ten labelled vectors, those of a label all the same."""

    def __init__(self) -> None:
        self.labels = torch.arange(10) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, part: slice) -> Tensor:
        return self.labels[part, None] * torch.tensor([1.0, -1.0, 0.5])


class Vectors:
    """Other data than images, as little as a task asks for."""

    def __init__(self) -> None:
        self.label_names = ["left", "right"]
        self.shape: tuple[int, ...] = (3,)
        self.varying_shapes = False
        self.record: dict[str, Any] = {"label_names": self.label_names}
        self.notes: list[str] = []
        self.train = self.test = VectorSplit()
        self.validation = None

    def inputs(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.train.inputs(slice(None))[indices], self.train.labels[indices]

    def to(self, device: torch.device, *, channels_last: bool) -> Self:
        return self

    def examples(self, folder: Path, answers: Answers) -> None:
        folder.mkdir()
        (folder / "examples.txt").write_text("two of each")


def test_the_task_trains_and_evaluates_on_data_that_are_no_images(tmp_path: Path) -> None:
    settings = small_settings("epochs=20", "batch_size=4", "optimizer.lr=0.05")
    task = ClassifyTask(settings, Vectors(), CPU, RunFolder(tmp_path))
    train(task, settings, task.folder, lambda *_: None, lambda line: None)
    assert task.folder.metrics[-1]["test_error"] == 0
    assert task.folder.evaluation["label_names"] == ["left", "right"]
    assert (task.folder.examples / "examples.txt").is_file()


def test_a_batch_counts_its_errors_by_the_largest_logit(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    inputs, target = next(task.batches(0, 0))
    output = task.module(inputs, target)
    logits: Tensor = task.module.network(inputs)[0]
    expected = sum(row.argmax().item() != label for row, label in zip(logits, target.tolist(), strict=True))
    assert output.num_errors.item() == expected
    as_distribution = torch.nn.functional.one_hot(target, 10).float()
    assert task.module(inputs, as_distribution).num_errors.item() == expected


def test_the_total_alone_is_differentiated(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    terms = task.module(*next(task.batches(0, 0))).terms
    assert [term.requires_grad for term in terms] == [False] * 5 + [True]


def one_step(task: ClassifyTask, **compilation: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs and all gradients of the first batch."""
    task.module.train()
    if compilation:
        torch.compiler.reset()
        task.module.compile(fullgraph=True, dynamic=False, **compilation)
    output = task.module(*next(task.batches(0, 0)))
    output.terms.total.backward()
    gradients = [torch.zeros(()) if p.grad is None else p.grad for p in task.module.parameters()]
    return [*(term.detach() for term in output.terms), output.num_errors], gradients


@pytest.mark.parametrize("blend", ["augment.mixup=0", "augment.mixup=1"])
@pytest.mark.parametrize("mode", MODES)
def test_compiled_into_one_graph_the_module_gives_the_same(tmp_path: Path, mode: str, blend: str) -> None:
    if MODES[mode].takes_index:
        blend = "augment.mixup=0"  # it refuses the other
    LabelTable(10).save(tmp_path / "table.safetensors")
    table = tmp_path / "table.safetensors" if MODES[mode].takes_table else None
    options = ("model.name=resnet8", "model.width=4", "model.hidden=null", blend)

    def task() -> ClassifyTask:
        path = write_image_cache(tmp_path / "images.safetensors", shape=(3, 16, 16), num_train=4, num_classes=10)
        data = load_images(ImageDataSettings(source="pictures", path=path))
        settings = picture_settings(*options, mode=mode, table=table)
        return image_task(settings, data, tmp_path)

    torch.testing.assert_close(one_step(task(), backend="aot_eager"), one_step(task()), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, when it loads the compiler
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs g++ for code that runs on the CPU")
def test_compiled_to_machine_code_the_module_gives_the_same(tmp_path: Path) -> None:
    compiled = one_step(make_task(tmp_path), backend="inductor")
    torch.testing.assert_close(compiled, one_step(make_task(tmp_path)), rtol=1e-5, atol=1e-6)
