"""Cases of data in columns: files to train on, folders of them, other rows to predict."""

import contextlib
import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tests.fuzz import damage
from tests.fuzz.case import Case, Desk, as_arguments
from tests.fuzz.originals import QUICK, SMALL, rows_of_numbers, rows_of_texts

Rows = list[dict[str, Any]]
SUFFIXES = ("csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "json.gz", "parquet.gz")


def table_file(desk: Desk) -> Case:
    """Columns of numbers or texts, told from the file alone."""
    rows, small = desk.draw.choice([(rows_of_numbers(), "tables"), (rows_of_texts(), "text-classes")])
    name = _column_file(desk, rows, "in/data")
    odd = [f"data.{desk.draw.choice(['label', 'text', 'columns', 'limit'])}={damage.text(desk.draw)}"]
    given = odd if desk.draw.random() < 0.15 else []
    if desk.draw.random() < 0.2:
        return Case(as_arguments(["compare", name, *given, "--dry-run"]))
    return Case(as_arguments(["train", name, *SMALL[small], *QUICK, *given]))


def table_folder(desk: Desk) -> Case:
    """A folder with parts, whole and broken ones."""
    recipe = desk.draw.choice(["tables", "text-classes"])
    rows = rows_of_numbers() if recipe == "tables" else rows_of_texts()
    names = ["train", "validation", "test", "dev", "train-2", "TEST", "other"]
    for name in desk.draw.sample(names, desk.draw.randrange(1, 4)):
        _column_file(desk, rows, f"in/folder/{name}")
    with_something_odd(desk, desk.sandbox / "in" / "folder")
    return Case(["train", recipe, *SMALL[recipe], *QUICK, "--data", "in/folder"])


def rows_to_predict(desk: Desk) -> Case:
    """Other rows or texts than a run's own."""
    recipe, rows = desk.draw.choice([("tables", rows_of_numbers()), ("text-classes", rows_of_texts())])
    desk.copy(f"runs/{recipe}", "run")
    run = f"run/{run_in(desk, 'run')}"
    given = desk.draw.choice([[], [], [], ["--top-k", written_count(desk.draw)], ["--raw"], ["--calibrated"]])
    if desk.draw.random() < 0.2:
        content = damage.damaged_bytes(desk.draw, _as_file(desk.draw, rows, "csv"))
        return Case(as_arguments(["predict", run, "-", *given]), stdin=content)
    name = _column_file(desk, rows, "in/data")
    return Case(as_arguments(["predict", run, name, "--output", "out/predicted.csv", *given]))


def written_count(draw: Random) -> str:
    """A number of things, as an option has it."""
    return draw.choice(["0", "1", "2", "3", "-1", "99999999999999999999", "1e3", "nan", "", "x"])


def run_in(desk: Desk, name: str) -> str:
    return str(next((desk.sandbox / name).rglob("config.yaml")).parent.relative_to(desk.sandbox / name))


def _column_file(desk: Desk, rows: Rows, stem: str) -> str:
    """Write rows, damaged or not, in one of the formats, damaged or not; the file's name."""
    for _ in range(desk.draw.choice([0, 1, 1, 1, 2, 3])):
        rows = damaged_rows(desk.draw, rows)
    suffix = desk.draw.choice(SUFFIXES)
    content = damage.impostor(desk.draw) if desk.draw.random() < 0.1 else _as_file(desk.draw, rows, suffix)
    if desk.draw.random() < 0.25:
        content = damage.damaged_bytes(desk.draw, content)
    if desk.draw.random() < 0.05:
        suffix = desk.draw.choice([*SUFFIXES, "png", "npz", "txt"])
    return desk.write(f"{stem}.{suffix}", content)


def damaged_rows(draw: Random, rows: Rows) -> Rows:
    """Odd values, columns and numbers of rows."""
    if not rows or not rows[0]:
        return [{damage.text(draw): damage.value(draw)}]
    names = list(rows[0])
    name, place = draw.choice(names), draw.randrange(len(rows))
    odd, odd_name = damage.value(draw, draw.choice([0, 0, 2])), damage.text(draw)
    changes: list[Callable[[], Rows]] = [
        lambda: [row | ({name: odd} if index == place else {}) for index, row in enumerate(rows)],
        lambda: [row | {name: odd} for row in rows],
        lambda: [row | {name: damage.value(draw, 0)} for row in rows],
        lambda: [row | {odd_name: damage.value(draw, 0)} for row in rows],
        lambda: [{odd_name if key == name else key: each for key, each in row.items()} for row in rows],
        lambda: [{key: each for key, each in row.items() if key != name} for row in rows],
        lambda: [
            {key: each for key, each in row.items() if key != name or index != place} for index, row in enumerate(rows)
        ],
        lambda: rows[: draw.choice([0, 1, 2, 3])],
        lambda: [row | {"label": index} for index, row in enumerate(rows)],
        lambda: [row | {name: f"{row.get(name)}{odd_name}"} for row in rows],
    ]
    return draw.choice(changes)()


def _as_file(draw: Random, rows: Rows, suffix: str) -> bytes:
    kind, _, zipped = suffix.partition(".")
    if kind == "parquet":
        content = parquet(rows)
    elif kind in ("csv", "tsv"):
        content = damage.encoded(draw, _csv(draw, rows, "\t" if kind == "tsv" else draw.choice(",,,;")))
    else:
        plain = [damage.encodable(row) for row in rows]
        text = json.dumps(plain) if kind == "json" else "\n".join(map(json.dumps, plain))
        content = damage.encoded(draw, damage.damaged_text(draw, text) if draw.random() < 0.3 else text)
    return gzip.compress(content, mtime=0) if zipped else content


def _csv(draw: Random, rows: Rows, separator: str) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if names and draw.random() < 0.1:
        names.append(draw.choice(names))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator=draw.choice(["\n", "\n", "\r\n", "\r"]))
    with contextlib.suppress(csv.Error):
        writer.writerows([names, *([row.get(name) for name in names] for row in rows)])
    text = file.getvalue()
    return damage.damaged_text(draw, text) if draw.random() < 0.3 else text


def parquet(rows: Rows, metadata: dict[str, str] | None = None) -> bytes:
    """Rows as Parquet where it can hold them, else as text."""
    import pyarrow as pa
    import pyarrow.parquet

    file = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
        pa.parquet.write_table(table, file)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        columns = {name: [_plain(row.get(name)) for row in rows] for name in rows[0]}
        pa.parquet.write_table(pa.table({_plain(name): each for name, each in columns.items()}), file)
    return file.getvalue()


def _plain(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


def with_something_odd(desk: Desk, folder: Path) -> None:
    """A link in a circle, to nowhere or to a file elsewhere, a folder called like a file, a file without content."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"odd{desk.draw.choice(['.png', '.csv', '', '.jpg', '.parquet'])}"
    target = desk.draw.choice(["folder", "file", "..", "nowhere", "/dev/null", "odd", "../../../bystander"])
    if target == "folder":
        name.mkdir()
    elif target == "file":
        name.write_bytes(damage.impostor(desk.draw))
    else:
        os.symlink(target, name)


def odd_array(draw: Random, array: Any) -> Any:
    """The array with another type, shape, or other values."""
    with np.errstate(all="ignore"):
        changes: list[Callable[[], Any]] = [
            lambda: array.astype(draw.choice(["f4", "f8", "f2", "i8", "i4", "i1", "u8", "bool"])),
            lambda: array.astype("f4") * np.float32(draw.choice([float("nan"), float("inf"), 1e38, -1.0, 0.0])),
            lambda: np.atleast_1d(array)[: draw.choice([0, 1])],
            lambda: array[..., None],
            lambda: array.reshape(-1),
            lambda: np.concatenate([array, array]),
            lambda: array - array.dtype.type(1),
            lambda: np.full_like(array, draw.choice([100, 127])),
            lambda: np.zeros((), array.dtype),
        ]
        return np.ascontiguousarray(draw.choice(changes)())
