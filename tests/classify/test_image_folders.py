"""Images in class folders: the parts, the labels, the sizes, and what is refused."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from labelemb.classify.image_data import ImageData
from labelemb.classify.image_folders import pixels
from labelemb.classify.images import _columns, load_images
from labelemb.errors import InputError
from labelemb.experiments.job import Job, execute
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.settings.data import ImageDataSettings
from labelemb.settings.recipe import load_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELEMB_CACHE", str(tmp_path / "cache"))


def draw(folder: Path, count: int, color: Any, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new(mode, size, color).save(folder / f"{number}.png")


def loaded(folder: Path, seed: int = 0, **options: Any) -> ImageData:
    values = {"source": "own", "path": folder, "test": 0.2, "validation": 0.1, "size": 8, **options}
    return load_images(ImageDataSettings.model_validate(values), seed=seed)


def test_a_folder_is_a_label_and_what_is_missing_is_held_out(tmp_path: Path) -> None:
    draw(tmp_path / "own" / "red", 20, (255, 0, 0))
    draw(tmp_path / "own" / "blue", 10, (0, 0, 255))
    (tmp_path / "own" / "notes.txt").write_text("no image")
    data, again = loaded(tmp_path / "own"), loaded(tmp_path / "own", seed=1)
    assert data.label_names == ["blue", "red"]
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    for split in (data.train, data.test):  # the label is the colour
        assert torch.equal(split.images[:, 0, 0, 0] == 255, split.labels == 1)
    assert torch.equal(again.test.labels, data.test.labels)
    assert (
        data.notes[0]
        == "data: 22 to train, 2 to validate, 6 to test; 2 labels, training examples from blue 7 to red 15"
    )
    assert set(loaded(tmp_path / "own", limit=6).train.labels.tolist()) == {0, 1}


def test_parts_are_used_where_they_hold_class_folders(tmp_path: Path) -> None:
    for part, count in {"train": 6, "valid": 2, "test": 3}.items():
        for color in (0, 255):
            draw(tmp_path / "own" / part / f"gray {color}", count, color, mode="L")
    data = loaded(tmp_path / "own")
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 6)
    assert data.image_shape == (1, 8, 8)
    draw(tmp_path / "tools" / "train", 5, 0)
    draw(tmp_path / "tools" / "plane", 5, 0)
    assert loaded(tmp_path / "tools").label_names == ["plane", "train"]


def test_images_of_unlike_or_larger_size_are_resized_and_small_ones_kept(tmp_path: Path) -> None:
    draw(tmp_path / "own" / "wide", 5, (255, 0, 0), size=(16, 9))
    draw(tmp_path / "own" / "gray", 5, 100, size=(7, 12), mode="L")
    assert loaded(tmp_path / "own").image_shape == (3, 8, 8)
    assert loaded(tmp_path / "own", size=16).image_shape == (3, 16, 16)  # not what was kept for 8
    with pytest.raises(InputError, match=r"expected images of one size, got .*: data\.size=32"):
        loaded(tmp_path / "own", size=None)
    draw(tmp_path / "small" / "a", 5, 0, size=(4, 6))
    draw(tmp_path / "small" / "b", 5, 0, size=(4, 6))
    assert loaded(tmp_path / "small").image_shape == (3, 6, 4)


def test_label_names_of_a_file_are_in_its_order(tmp_path: Path) -> None:
    for number in ("0", "1"):
        draw(tmp_path / "own" / number, 5, 50 * int(number), mode="L")
    (tmp_path / "names").write_text("zero\none\n")
    assert loaded(tmp_path / "own", label_names=tmp_path / "names").label_names == ["zero", "one"]
    (tmp_path / "names").write_text("1\n0\n")
    data = loaded(tmp_path / "own", label_names=tmp_path / "names")
    assert torch.equal(data.train.images[:, 0, 0, 0] == 50, data.train.labels == 0)


def test_what_cannot_be_learned_from_is_named_in_one_line(tmp_path: Path) -> None:
    draw(tmp_path / "one" / "alone", 5, 0)
    with pytest.raises(InputError, match="expected 2 to 10,000 class folders, got 1: alone"):
        loaded(tmp_path / "one")
    draw(tmp_path / "own" / "a", 3, 0)
    draw(tmp_path / "own" / "b", 3, 0)
    (tmp_path / "own" / "b" / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png cannot be read as an image"):
        loaded(tmp_path / "own")
    broken = tmp_path / "own" / "b" / "broken.png"
    Image.effect_noise((32, 32), 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(InputError, match=r"broken\.png cannot be read as an image: .*truncated"):
        loaded(tmp_path / "own")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder of class folders of images"):
        loaded(tmp_path / "empty")


def test_any_columns_of_a_parquet_file_are_images_and_labels(tmp_path: Path) -> None:
    import datasets

    images = [Image.new("RGB", (4, 4 + number % 2), (number, 0, 0)) for number in range(20)]
    rows = {"photo": images, "thumb": images, "kind": ["cat", "dog"] * 10}
    features = {"photo": datasets.Image(), "thumb": datasets.Image(), "kind": datasets.Value("string")}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(str(tmp_path / "own.parquet"))
    data = loaded(tmp_path / "own.parquet", image="photo", label="kind")
    assert data.label_names == ["cat", "dog"]
    assert (data.image_shape, len(data.test)) == ((3, 8, 8), 4)


def test_a_run_on_a_folder_learns(tmp_path: Path) -> None:
    draw(tmp_path / "own" / "black", 20, (0, 0, 0), size=(16, 16))
    draw(tmp_path / "own" / "white", 20, (255, 255, 255), size=(16, 16))
    few = [
        "epochs=3",
        "optimizer.lr=0.05",
        "model.name=mlp",
        "model.width=null",
        "model.hidden=[4]",
        "data.size=16",
        "device=cpu",
        "class_weight=balanced",
    ]
    settings = load_recipe("images", few, {"data.path": tmp_path / "own"})
    assert isinstance(settings, ClassifySettings)
    folder = RunFolder(tmp_path / "run")
    execute(Job(settings, folder))
    assert folder.metrics[-1]["test_error"] == 0
    assert folder.inputs["shape"] == [3, 16, 16]
    assert folder.temperature is not None


def test_a_damaged_image_is_told_in_one_line_and_not_warned_of(tmp_path: Path) -> None:
    """Pillow warns of a TIFF that is cut short before it gives up, and warnings are errors here."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "TIFF")
    path = tmp_path / "a" / "0.tiff"
    path.parent.mkdir()
    path.write_bytes(file.getvalue().replace(b"\x00\x01\x04\x00\x01\x00", b"\x00\x01\x04\x00\xff\xff"))
    with pytest.raises(InputError, match="cannot be read as an image"):
        pixels(path, (8, 8))


def test_the_cache_of_a_strange_column_lies_in_the_cache() -> None:
    names = _columns(ImageDataSettings(source="x", image="../../a", label="my label", size=8)).split("-")
    assert [len(name) for name in names] == [16, 16, 1]
    assert _columns(ImageDataSettings(source="x", image="img")) == "img-auto"
