"""Whole data sets, corpora and runs, as small as they can be: what the cases damage."""

import contextlib
import io
import json
import shutil
from pathlib import Path

from tests.small_text import write_corpus

from labelemb.__main__ import run
from labelemb.files import write_json

QUICK = ("epochs=1", "batch_size=32", "device=cpu", "--quiet", "--output", "out")
SMALL = {
    "digits": ("data.limit=40", "model.hidden=[4]"),
    "tables": ("model.hidden=[4]",),
    "text-classes": ("model.buckets=64", "model.width=4", "model.hidden=[4]"),
    "images": ("model.name=mlp", "model.hidden=[4]", "model.width=null", "data.size=8"),
    "translate": ("model.hidden=8", "model.layers=1", "emb.rank=4", "decode.beam=1", "decode.max_length=5"),
}
ROWS = 24


def make_originals(folder: Path) -> Path:
    """Data and runs in a folder.

    data/ has wine.csv, texts.csv, images/ and corpus/; runs/RECIPE/MODE/seed-00 a finished run of each, `digits` of two
    modes; unfinished/digits the same run stopped after its first epoch of two.
    """
    data = folder / "data"
    data.mkdir(parents=True)
    write_rows(data)
    write_images(data / "images")
    (data / "raw").mkdir()
    write_corpus(data / "raw")
    shutil.move(data / "raw" / "corpus", data / "corpus")
    sources = {"tables": "wine.csv", "text-classes": "texts.csv", "images": "images", "translate": "corpus"}
    for recipe, source in sources.items():
        _train(folder, recipe, "--data", str(data / source))
    _train(folder, "digits", "data.validation=0.2")
    _train(folder, "digits", "data.validation=0.2", "--mode", "baseline")
    _write_unfinished(folder)
    _warm_up(folder)
    return folder


def rows_of_numbers() -> list[dict[str, object]]:
    """Rows of two numbers and a label."""
    return [{"acid": row % 5 + 0.5, "sugar": row, "label": ("red", "white")[row % 2]} for row in range(ROWS)]


def rows_of_texts() -> list[dict[str, object]]:
    """Rows of a text and a label."""
    words = ("good", "bad", "dull", "fine")
    return [{"review": f"a {words[row % 4]} film {row}", "label": ("yes", "no")[row % 2]} for row in range(ROWS)]


def write_rows(folder: Path) -> None:
    """wine.csv and texts.csv."""
    for name, rows in {"wine.csv": rows_of_numbers(), "texts.csv": rows_of_texts()}.items():
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_images(folder: Path) -> None:
    """Two class folders of gray squares."""
    from PIL import Image

    for number in range(12):
        path = folder / ("bright", "dark")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * number + 100 * (number % 2)).save(path)


def _train(folder: Path, recipe: str, *more: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run(["train", recipe, *SMALL[recipe], *QUICK, "--output", str(folder / "runs"), *more])
    assert code == 0, f"{recipe}: {said.getvalue()}"


def _write_unfinished(folder: Path) -> None:
    target = folder / "unfinished" / "digits" / "emb" / "seed-00"
    shutil.copytree(folder / "runs" / "digits" / "emb" / "seed-00", target)
    for name in ("evaluation.json", "calibration.json", "label_embedding.safetensors"):
        (target / name).unlink()
    config = (target / "config.yaml").read_text(encoding="utf-8")
    assert "\nepochs: 1\n" in config
    (target / "config.yaml").write_text(config.replace("\nepochs: 1\n", "\nepochs: 2\n"), encoding="utf-8")
    environment = json.loads((target / "environment.json").read_text(encoding="utf-8"))
    environment.pop("end")
    write_json(target / "environment.json", environment)


def _warm_up(folder: Path) -> None:
    """Import what is imported late, and let matplotlib look for its fonts: no case is to wait for that."""
    import datasets  # noqa: F401

    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["report", str(folder / "runs" / "digits"), "--output", str(folder / "report")]) == 0
