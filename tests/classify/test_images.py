"""Image data: decoded once, cached, divided, and refused with one line where it is not what it should be."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small_runs import some_images, write_image_cache
from torch import Tensor

from labelemb.classify import images as data_module
from labelemb.classify.image_data import ImageData
from labelemb.classify.images import load_images
from labelemb.errors import InputError
from labelemb.settings.data import ImageDataSettings

HUB = "someone/pictures"


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine's cache and that of `datasets`, in the test's own folder."""
    import datasets

    monkeypatch.setenv("LABELEMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "cache"


def load(path: Path | None, **options: Any) -> ImageData:
    return load_images(ImageDataSettings(source=HUB, path=path, **options))


def error_of(path: Path | None, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def png(image: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    return content.getvalue()


def write_parquet(
    path: Path, images: list[bytes], labels: list[int | None], names: list[str], **columns: list[int]
) -> None:
    """One file as the hub has them: a column of encoded images, one of labels with names."""
    import datasets

    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    values: dict[str, Any] = {"img": [{"bytes": image, "path": None} for image in images], "label": labels}
    for name, column in columns.items():
        features[name] = datasets.ClassLabel(num_classes=2)
        values[name] = column
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(values, features=datasets.Features(features)).to_parquet(str(path))


def write_folder(folder: Path, shape: tuple[int, ...] = (5, 4, 3), num_train: int = 4) -> dict[str, Tensor]:
    """A folder of one training and one test file; the images (N, H, W[, channels]) in them."""
    written = {}
    for split, number in {"train": num_train, "test": 3}.items():
        images, labels = some_images(number, shape, 2)
        write_parquet(
            folder / f"{split}-00000-of-00001.parquet",
            [png(image.numpy()) for image in images],
            labels.tolist(),
            ["cat", "dog"],
        )
        written[split] = images
    return written


def same(one: ImageData, other: ImageData) -> bool:
    tensors = [(data.train.images, data.train.labels, data.test.images, data.test.labels) for data in (one, other)]
    return (one.label_names, one.scale) == (other.label_names, other.scale) and all(
        torch.equal(left, right) for left, right in zip(*tensors, strict=True)
    )


def test_digits_are_divided_as_documented() -> None:
    digits = load_images(ImageDataSettings(source="digits"))
    assert (len(digits.train), len(digits.test), digits.validation) == (1078, 719, None)
    assert (digits.image_shape, digits.scale) == ((1, 8, 8), 16.0)
    assert digits.label_names == [str(digit) for digit in range(10)]
    assert digits.train.images.max() == 16
    shares = torch.bincount(digits.test.labels) / torch.bincount(digits.train.labels)
    assert (shares - 719 / 1078).abs().max() < 0.03  # stratified


def test_digits_take_no_other_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data .*digits"):
        load_images(ImageDataSettings(source="digits", path=write_image_cache(tmp_path / "a.safetensors")))


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4)])
@pytest.mark.parametrize("name", ["pictures", "kühler Ordner - 图片", "a[1]b", "50% #1", "what? *"])
def test_a_folder_of_parquet_files_is_decoded_exactly(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    written = write_folder(tmp_path / name, shape)
    loaded = load(tmp_path / name)
    for split, images in {"train": loaded.train.images, "test": loaded.test.images}.items():
        expected = written[split][..., None] if len(shape) == 2 else written[split]
        assert torch.equal(images, expected.permute(0, 3, 1, 2))
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
    assert loaded.train.labels.tolist() == [0, 1, 0, 1]
    assert (loaded.label_names, loaded.scale) == (["cat", "dog"], 255.0)


def test_the_second_time_the_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pictures")
    first = load(tmp_path / "pictures")

    def never(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(data_module, "_decoded", never)
    assert same(load(tmp_path / "pictures"), first)


def test_another_file_in_the_folder_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures")
    assert len(load(tmp_path / "pictures").train) == 4
    write_folder(tmp_path / "pictures", num_train=6)
    assert len(load(tmp_path / "pictures").train) == 6


@pytest.mark.parametrize("content", [b"", b"12345678", None])
def test_a_damaged_cache_is_decoded_again(tmp_path: Path, own_caches: Path, content: bytes | None) -> None:
    write_folder(tmp_path / "pictures")
    first = load(tmp_path / "pictures")
    (cache,) = own_caches.iterdir()
    cache.write_bytes(cache.read_bytes()[:-10] if content is None else content)
    assert same(load(tmp_path / "pictures"), first)
    assert same(load(cache), first)


def test_the_cache_is_itself_a_source(tmp_path: Path, own_caches: Path) -> None:
    write_folder(tmp_path / "pictures")
    first = load(tmp_path / "pictures")
    (cache,) = own_caches.iterdir()
    assert same(load(cache), first)


def test_the_first_images_are_held_out_and_the_limit_counts_the_rest(tmp_path: Path) -> None:
    path = write_image_cache(tmp_path / "a.safetensors", num_train=12)
    whole = load(path)
    divided = load(path, validation=3, limit=5)
    assert divided.validation is not None
    assert torch.equal(divided.validation.images, whole.train.images[:3])
    assert torch.equal(divided.train.images, whole.train.images[3:8])
    assert torch.equal(divided.train.labels, whole.train.labels[3:8])
    assert len(load(path, limit=100).train) == 12
    assert len(load(path, validation=11).train) == 1
    assert "training set has only 12 images" in error_of(path, validation=12)


def test_columns_are_chosen_by_name_or_by_being_the_only_one(tmp_path: Path) -> None:
    images, _ = some_images(4, (5, 4, 3), 2)
    content = [png(image.numpy()) for image in images]
    for split in ("train", "test"):
        write_parquet(tmp_path / "two" / f"{split}-0.parquet", content, [0, 1, 0, 1], ["a", "b"], coarse=[1, 1, 0, 0])
    assert load(tmp_path / "two", label="coarse").train.labels.tolist() == [1, 1, 0, 0]
    assert load(tmp_path / "two", label="label").train.labels.tolist() == [0, 1, 0, 1]
    assert "expected one of the columns of type ClassLabel: label, coarse" in error_of(tmp_path / "two")
    assert "data.image=image: expected one of the columns of type Image: img" in error_of(
        tmp_path / "two", label="label", image="image"
    )


def test_a_missing_folder_is_named_with_address_and_form(tmp_path: Path) -> None:
    for message in (error_of(tmp_path / "nowhere"), error_of(None)):
        assert f"https://huggingface.co/datasets/{HUB}" in message
        assert "--data" in message
        assert "train-*.parquet" in message
    assert "does not exist" in error_of(tmp_path / "nowhere")
    write_folder(tmp_path / "half")
    next((tmp_path / "half").glob("test-*")).unlink()
    assert "has no test-*.parquet" in error_of(tmp_path / "half")


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: asked.append(path))
    assert "--download" in error_of(None)
    assert not asked


@pytest.mark.parametrize("how", ["cut", "empty", "not parquet"])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, how: str) -> None:
    write_folder(tmp_path / "pictures")
    path = next((tmp_path / "pictures").glob("train-*"))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "not parquet": b"no parquet" * 100}[how])
    assert "pictures cannot be read: " in error_of(tmp_path / "pictures")


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures")
    good = png(np.zeros((5, 4, 3), np.uint8))
    write_parquet(next((tmp_path / "pictures").glob("train-*")), [good, good[:40]], [0, 1], ["cat", "dog"])
    assert "pictures cannot be read: " in error_of(tmp_path / "pictures")


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures")
    images = [png(np.zeros((5, width, 3), np.uint8)) for width in (4, 6)]
    write_parquet(next((tmp_path / "pictures").glob("train-*")), images, [0, 1], ["cat", "dog"])
    assert "expected images of one size, got [(4, 5), (6, 5)]" in error_of(tmp_path / "pictures")


@pytest.mark.parametrize("label", [-1, None])
def test_an_image_without_a_label_is_refused(tmp_path: Path, label: int | None) -> None:
    write_folder(tmp_path / "pictures")
    image = png(np.zeros((5, 4, 3), np.uint8))
    write_parquet(next((tmp_path / "pictures").glob("train-*")), [image, image], [0, label], ["cat", "dog"])
    assert error_of(tmp_path / "pictures")


FLOATS = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def with_value(value: float) -> Tensor:
    images = FLOATS.clone()
    images[7, 1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"train_images": with_value(float("nan"))}, "train: the images hold NaN"),
        ({"train_images": with_value(float("inf"))}, "train: the images hold NaN or infinite"),
        ({"train_images": FLOATS.double()}, "train: expected uint8 or float32 images, got torch.float64"),
        ({"train_labels": torch.arange(12)}, "train: expected labels 0 to 2, got 0 to 11"),
        ({"test_labels": -torch.ones(6, dtype=torch.int64)}, "test: expected labels 0 to 2, got -1 to -1"),
        ({"train_labels": torch.zeros(11, dtype=torch.int64)}, r"train: expected images (N, channels, H, W) and"),
        ({"train_labels": torch.zeros(12)}, "train: expected labels of whole numbers, got torch.float32"),
        (
            {"train_labels": torch.zeros(12, dtype=torch.uint64)},
            "train: expected labels of whole numbers, got torch.uint64",
        ),
        ({"train_images": torch.zeros(12, 32, 32, dtype=torch.uint8)}, "train: expected images (N, channels, H, W)"),
        ({"test_images": torch.zeros(6, 3, 32, 31, dtype=torch.uint8)}, "test: expected images (N, channels, H, W)"),
        (
            {"test_images": torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "test_labels": torch.zeros(0).long()},
            "test: there are no images",
        ),
        ({"more": torch.zeros(1)}, "expected format labelemb.images with tensors"),
    ],
)
def test_a_cache_that_holds_no_labelled_images_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], expected: str
) -> None:
    path = write_image_cache(tmp_path / "a.safetensors", tensors=tensors)
    message = error_of(path)
    assert expected in message
    assert str(path) in message


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "labelemb.table"},
        {"format": None},
        {"version": "2"},
        {"label_names": None},
        {"label_names": "[1"},
        {"label_names": json.dumps("abc")},
        {"label_names": json.dumps([1, 2, 3])},
        {"scale": None},
        {"scale": "wide"},
        {"scale": "0"},
        {"scale": "1e-308"},
        {"scale": "1e308"},
        {"label_names": "[" * 100_000},
        {"scale": "nan"},
    ],
)
def test_a_cache_with_other_metadata_is_refused(tmp_path: Path, metadata: dict[str, str | None]) -> None:
    path = write_image_cache(tmp_path / "a.safetensors", metadata=metadata)
    assert str(path) in error_of(path)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 100])
def test_a_file_that_is_no_cache_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert f"{path} is not a whole safetensors file" in error_of(path)


def test_small_integer_labels_become_indices(tmp_path: Path) -> None:
    labels = (torch.arange(12) % 3).to(torch.uint8)
    path = write_image_cache(tmp_path / "a.safetensors", tensors={"train_labels": labels})
    assert load(path).train.labels.dtype == torch.int64


def test_a_cache_that_cannot_be_written_costs_time_and_no_run(tmp_path: Path, own_caches: Path) -> None:
    own_caches.write_text("a file where the folder should be")
    write_folder(tmp_path / "pictures")
    with pytest.warns(UserWarning, match="cache"):
        assert len(load(tmp_path / "pictures").train) == 4
