"""Cases of images: class folders, caches, Parquet files of encoded images, other images to predict."""

import contextlib
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tests.fuzz import damage
from tests.fuzz.case import Case, Desk, as_arguments
from tests.fuzz.data_cases import Rows, damaged_rows, odd_array, parquet, run_in, with_something_odd
from tests.fuzz.originals import QUICK, SMALL

PICTURES = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


def image_folder(desk: Desk) -> Case:
    """Class folders with damaged images, other files and links among them."""
    desk.copy("data/images", "in/images")
    for _ in range(desk.draw.choice([1, 1, 2])):
        _damage_images(desk)
    sizes = [["data.size=8"], ["data.size=8"], [f"data.size={desk.draw.choice(['null', '1', '300'])}"]]
    given = [*SMALL["images"], *desk.draw.choice(sizes)]
    command = desk.draw.choice([["train", "in/images"], ["train", "images", "--data", "in/images"]])
    return Case([*command, *given, *QUICK])


def images_to_predict(desk: Desk) -> Case:
    """Other images than a run's own: a folder, or one image."""
    desk.copy("runs/images", "run")
    desk.copy("data/images", "in/images")
    _damage_images(desk)
    path = "in/images"
    if desk.draw.random() < 0.4:
        path = desk.write(f"in/{desk.draw.choice(['one.png', 'one', 'one.csv'])}", _picture(desk.draw))
    return Case(["predict", f"run/{run_in(desk, 'run')}", path, "--output", "out/predicted.csv"])


def image_cache(desk: Desk) -> Case:
    """A file of image tensors of other types, sizes and values than images have."""
    content = damage.impostor(desk.draw) if desk.draw.random() < 0.2 else _cache(desk.draw)
    if desk.draw.random() < 0.3:
        content = damage.damaged_bytes(desk.draw, content)
    name = desk.write(
        f"in/{desk.draw.choice(['cache.safetensors', 'cache.safetensors', 'cache.npz', 'cache'])}", content
    )
    recipe = desk.draw.choice(["mnist-mlp", "images"])
    size = ["data.size=8"] if recipe == "images" else []
    network = ["model.name=mlp", "model.hidden=[4]", "model.width=null", "data.validation=0.1"]
    return Case(["train", recipe, *network, *size, *QUICK, "--data", name])


def image_parquet(desk: Desk) -> Case:
    """A Parquet file of encoded images, as the hub has them, some of them broken."""
    rows: Rows = []
    for index in range(12):
        image = _picture(desk.draw) if desk.draw.random() < 0.3 else _whole_picture(index)
        rows.append({"image": {"bytes": image, "path": f"{index}.png"}, "label": index % 2})
    rows = damaged_rows(desk.draw, rows) if desk.draw.random() < 0.5 else rows
    kinds = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    kinds = kinds if desk.draw.random() < 0.8 else damage.damaged_mapping(desk.draw, kinds)
    content = parquet(rows, {"huggingface": json.dumps({"info": {"features": damage.encodable(kinds)}})})
    content = damage.damaged_bytes(desk.draw, content) if desk.draw.random() < 0.2 else content
    given = [f"data.label={damage.text(desk.draw)}"] if desk.draw.random() < 0.1 else []
    return Case(as_arguments(["train", desk.write("in/data.parquet", content), *SMALL["images"], *QUICK, *given]))


def _damage_images(desk: Desk) -> None:
    folder = desk.sandbox / "in" / "images"
    images = sorted(folder.rglob("*.png"))
    if not images:
        return
    chosen = desk.draw.choice(images)
    action = desk.draw.randrange(5)
    if action == 0:
        chosen.write_bytes(damage.damaged_bytes(desk.draw, chosen.read_bytes()))
    elif action == 1:
        chosen.write_bytes(_picture(desk.draw))
    elif action == 2:
        for image in images:
            if image.parent == chosen.parent or desk.draw.random() < 0.8:
                image.unlink()
    elif action == 3:
        _renamed(desk, chosen)
    else:
        with_something_odd(desk, chosen.parent)


def _renamed(desk: Desk, path: Path) -> None:
    """A class folder or an image with an odd name, where a file can have it."""
    old = desk.draw.choice([path, path.parent])
    with contextlib.suppress(OSError, ValueError):
        old.rename(old.with_name(damage.text(desk.draw) + desk.draw.choice(["", old.suffix])))


def _whole_picture(shade: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8), 20 * shade).save(file, "PNG")
    return file.getvalue()


def _picture(draw: Random) -> bytes:
    """An image of any size, mode and format, whole or not."""
    from PIL import Image

    mode, kind = draw.choice(["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I", "F", "I;16"]), draw.choice(PICTURES)
    size = draw.choice([(8, 8), (1, 1), (300, 1), (8, 9), (1, 3000), (64, 64)])
    file = io.BytesIO()
    try:
        Image.new(mode, size).save(file, kind)
    except (OSError, ValueError, KeyError):
        Image.new("RGB", size).save(file, "PNG")
    content = file.getvalue()
    if draw.random() < 0.2:
        return (
            content[:16] + (1 << draw.choice([14, 20, 30])).to_bytes(4, "big") * 2 + content[24:]
        )  # a PNG's width and height
    return damage.impostor(draw) if draw.random() < 0.1 else draw.choice([content, damage.damaged_bytes(draw, content)])


def _cache(draw: Random) -> bytes:
    from safetensors.numpy import save

    tensors: dict[str, Any] = {
        "train_images": np.zeros((12, 1, 8, 8), np.uint8),
        "train_labels": np.arange(12) % 2,
        "test_images": np.zeros((4, 1, 8, 8), np.uint8),
        "test_labels": np.arange(4) % 2,
    }
    name = draw.choice(list(tensors))
    tensors[name] = odd_array(draw, tensors[name])
    metadata = {"format": "labelemb.images", "version": "1", "label_names": '["a", "b"]', "scale": "255.0"}
    if draw.random() < 0.4:
        odd = damage.damaged_mapping(draw, metadata) | {
            "scale": draw.choice([damage.number(draw), damage.deep(draw), "1"])
        }
        metadata = {key: str(each).encode("utf-8", "replace").decode() for key, each in odd.items() if key != "\ud800"}
    content: bytes = save(tensors, metadata)
    return content
