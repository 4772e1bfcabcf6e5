"""Cases of run folders: files that training wrote, and that something else has been at since."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.numpy import load, save
from tests.fuzz import damage
from tests.fuzz.case import Case, Desk, as_arguments
from tests.fuzz.data_cases import odd_array, written_count
from tests.fuzz.originals import QUICK, SMALL

from labelemb.table_file import checksum_of

RUNS = ("digits/emb", "tables/emb", "text-classes/emb", "images/emb", "translate/emb")


def run_to_report(desk: Desk) -> Case:
    """A report of two runs, one of them damaged."""
    recipe = desk.draw.choice(["tables", "tables", "tables", "digits", "translate"])
    desk.copy(f"runs/{recipe}", "runs")
    folders = sorted(path.parent for path in (desk.sandbox / "runs").rglob("config.yaml"))
    _damage_run(desk, desk.draw.choice(folders), desk.draw.choice([1, 1, 2]))
    if desk.draw.random() < 0.1:
        _write_tuning(desk)
    labels = ["--labels", damage.text(desk.draw)] if desk.draw.random() < 0.1 else []
    return Case(as_arguments(["report", "runs", "--output", "out", *labels]))


def run_to_predict(desk: Desk) -> Case:
    """Predictions of a damaged run, of its own test set or of other items."""
    name = desk.draw.choice(RUNS)
    run = desk.copy(f"runs/{name}/seed-00", "run")
    _damage_run(desk, run, desk.draw.choice([1, 1, 2]))
    source = {"tables/emb": "wine.csv", "text-classes/emb": "texts.csv", "images/emb": "images"}.get(name)
    given = ["--output", "out/predicted"]
    if name == "translate/emb":
        given += desk.draw.choice(
            [
                ["--src", desk.write("in/source", b"red sea\ndog runs\n")],
                ["--data", str(desk.copy("data/corpus", "in/corpus").relative_to(desk.sandbox))],
            ]
        )
        given += desk.draw.choice([[], [], ["--beam", written_count(desk.draw)], ["--attention", "out/weights"]])
        given += desk.draw.choice([[], ["--checkpoint", desk.draw.choice(["last", "best", "x"])]])
    elif source and desk.draw.random() < 0.7:
        desk.copy(f"data/{source}", f"in/{source}")
        given.append(f"in/{source}")
    return Case(["predict", "run", *given])


def run_to_resume(desk: Desk) -> Case:
    """Going on with a run that was stopped and damaged."""
    run = desk.copy("unfinished/digits", "runs/digits") / "emb" / "seed-00"
    _damage_run(desk, run, desk.draw.choice([1, 1, 2]))
    given = [
        "train",
        "digits",
        *SMALL["digits"],
        *QUICK,
        "epochs=2",
        "data.validation=0.2",
        "--output",
        "runs",
        "--resume",
    ]
    return Case(given, ("runs/digits/emb/seed-00",))


def label_table(desk: Desk) -> Case:
    """A table file that is none, in `neighbors` or to begin with."""
    original = desk.draw.choice(["digits/emb", "tables/emb", "translate/emb"])
    path = desk.copy(f"runs/{original}/seed-00/label_embedding.safetensors", "in/table.safetensors")
    _damage_table(desk.draw, path)
    if desk.draw.random() < 0.6:
        labels = [damage.text(desk.draw)] if desk.draw.random() < 0.3 else []
        count = ["-k", written_count(desk.draw)] if desk.draw.random() < 0.3 else []
        return Case(as_arguments(["neighbors", "in/table.safetensors", *count, *(["--", *labels] if labels else [])]))
    mode = desk.draw.choice(["emb-start", "emb-frozen", "decoupled-start", "decoupled-frozen"])
    return Case(["train", "digits", *SMALL["digits"], *QUICK, "--mode", mode, "--table", "in/table.safetensors"])


def _write_tuning(desk: Desk) -> None:
    mode = {"chosen": {"optimizer.lr": 0.001}, "points": [{"point": {}, "value": 1.0}], "epoch": "last", "runs": 2}
    mode |= {"seconds": 3.0, "judged_by": "valid_error", "at_edge": []}
    record = damage.damaged_value(desk.draw, {"modes": {"emb": mode}})
    desk.write("runs/tuning.json", json.dumps(damage.encodable(record)).encode())


def _damage_run(desk: Desk, run: Path, count: int) -> None:
    """Do something to some of the run's files."""
    for _ in range(count):
        files = sorted(
            path for path in run.rglob("*") if path.is_file() and not path.is_symlink() and ".lock" not in path.name
        )
        files = [path for path in files if path.suffix != ".png"]
        if not files:
            return
        path = desk.draw.choice(files)
        if desk.draw.random() < 0.12:
            _replace(desk, path)
        else:
            _damage_file(desk.draw, path)


def _replace(desk: Desk, path: Path) -> None:
    """Something else in the file's place."""
    content = path.read_bytes()
    path.unlink()
    action = desk.draw.randrange(5)
    if action == 0:
        path.mkdir()
    elif action == 1:
        os.symlink(os.path.relpath(desk.sandbox / "bystander", path.parent), path)
    elif action == 2:
        os.symlink(path.name, path)
    elif action == 3:
        path.write_bytes(damage.impostor(desk.draw))
    else:
        with contextlib.suppress(OSError):
            path.parent.rename(path.parent.with_name(f"{path.parent.name}-x"))
            return
        path.write_bytes(content)


def _damage_file(draw: Random, path: Path) -> None:
    content = path.read_bytes()
    if draw.random() < 0.2:
        path.write_bytes(draw.choice([damage.damaged_bytes(draw, content), damage.impostor(draw)]))
        return
    if path.name == "label_embedding.safetensors":
        _damage_table(draw, path)
    elif path.suffix == ".safetensors":
        _damage_tensors(draw, path)
    elif path.suffix in (".json", ".yaml", ".jsonl"):
        with contextlib.suppress(ValueError, yaml.YAMLError, RecursionError):  # of what was damaged before
            path.write_bytes(_damaged_document(draw, path))
    else:
        path.write_bytes(damage.encoded(draw, damage.damaged_text(draw, content.decode("utf-8", "replace"))))


def _damaged_document(draw: Random, path: Path) -> bytes:
    """A file of values, with some of them changed; the checksum of a checkpoint's made anew."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        rows = [damage.damaged_value(draw, row) if draw.random() < 0.5 else row for row in rows]
        return "".join(f"{json.dumps(damage.encodable(row))}\n" for row in rows).encode()
    values = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    if path.name == "state.json" and isinstance(values, dict) and isinstance(values.get("state"), dict):
        values["state"] = damage.encodable(damage.damaged_value(draw, values["state"]))
        values["sha256"]["state"] = hashlib.sha256(json.dumps(values["state"], sort_keys=True).encode()).hexdigest()
    else:
        for _ in range(draw.choice([1, 1, 2, 3])):
            values = damage.damaged_value(draw, values)
    if path.suffix == ".yaml":
        return yaml.dump(values, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    return json.dumps(damage.encodable(values)).encode()


def _damage_tensors(draw: Random, path: Path) -> None:
    """A checkpoint's tensors, with the checksum beside them made anew."""
    with contextlib.suppress(SafetensorError, ValueError, KeyError):
        tensors = load(path.read_bytes())
        name = draw.choice(list(tensors))
        tensors[name] = odd_array(draw, tensors[name])
        if draw.random() < 0.3:
            tensors.pop(draw.choice(list(tensors)))
        content = save(tensors)
        path.write_bytes(content)
        beside = path.with_name("state.json")
        if beside.is_file():
            document = json.loads(beside.read_text(encoding="utf-8"))
            document["sha256"]["tensors"] = hashlib.sha256(content).hexdigest()
            beside.write_text(json.dumps(document), encoding="utf-8")


def _damage_table(draw: Random, path: Path) -> None:
    """A label table of other tensors, names or format, most often with a checksum that fits."""
    content = path.read_bytes()
    try:
        tensors, metadata = (
            load(content),
            json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"],
        )
    except (SafetensorError, ValueError, KeyError):
        path.write_bytes(damage.impostor(draw))
        return
    metadata.pop("sha256", None)
    name = draw.choice(list(tensors))
    others = ["weight", "rows.weight", "columns.weight", "shares", "codes", "neighbors", "values", "counts"]
    changes: list[Callable[[], Any]] = [
        lambda: tensors.update({name: odd_array(draw, tensors[name])}),
        lambda: tensors.update({draw.choice(others): odd_array(draw, tensors[name])}),
        lambda: tensors.update({draw.choice(others): tensors.pop(name)}),
        lambda: metadata.update({"label_names": _odd_names(draw)}),
        lambda: metadata.update(
            {draw.choice(["format", "version"]): damage.text(draw).encode("utf-8", "replace").decode()}
        ),
    ]
    for _ in range(draw.choice([1, 1, 2])):
        with contextlib.suppress(KeyError):
            draw.choice(changes)()
    signed = save(tensors, metadata)
    if draw.random() < 0.8:
        signed = save(tensors, metadata | checksum_of(signed))
    path.write_bytes(damage.damaged_bytes(draw, signed) if draw.random() < 0.1 else signed)


def _odd_names(draw: Random) -> str:
    names = [str(index) for index in range(10)]
    odd = draw.choice([damage.damaged_value(draw, names), damage.value(draw), names[:3], names * 2])
    return draw.choice([json.dumps(damage.encodable(odd)), damage.deep(draw), "["])
