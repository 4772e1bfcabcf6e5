"""The run folder: what training writes and reporting reads. Nothing else passes between the two.

RECIPE/MODE/seed-07/
  config.yaml                  every resolved setting (labelemb.settings.config.RunSettings)
  environment.json             versions, device, threads, runs at a time (jobs), processes, command, commit,
                               start and end
  inputs.json                  label names, and what makes a network's inputs of other items (classification)
  metrics.jsonl                a row an evaluation
  checkpoints/                 labelemb.training.checkpoint
  label_embedding.safetensors  the learned table with label names (modes that learn one)
  evaluation.json              calibration bins and confusion counts on the test set
  calibration.json             the temperature of its probabilities (images, where training images are held out)
  examples/, predictions.txt   what the page shows

RECIPE/tuning/MODE/POINT/seed-00 is a run of `compare --tune`, which never sees the test set and has no evaluation.json.
RECIPE/tuning.json says what was chosen by these runs (labelemb.experiments.tuning_runs).
"""

import errno
import json
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from labelemb.errors import InputError, first_line
from labelemb.files import named, read_json, remove_temporary_files, write_atomically, write_json
from labelemb.yaml_text import yaml_value

TABLE_FILE = "label_embedding.safetensors"
TUNING_FILE = "tuning.json"
TIMING_CONDITIONS = (
    "device",
    "threads",
    "jobs",
    "processes",
)  # of environment.json: runs that differ in one take unlike seconds


class RunFolder:
    """One run on disk. Reading raises InputError with the file's name where a file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def at(cls, output: Path, recipe: str, mode: str, seed: int, tuning: str | None = None) -> "RunFolder":
        """The folder of one run: OUTPUT/RECIPE/MODE/seed-SS, of tuning OUTPUT/RECIPE/tuning/MODE/POINT/seed-SS."""
        parent = output / recipe / mode if tuning is None else output / recipe / "tuning" / mode / tuning
        return cls(parent / f"seed-{seed:02d}")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def table(self) -> Path:
        return self.path / TABLE_FILE

    @property
    def examples(self) -> Path:
        return self.path / "examples"

    @property
    def exists(self) -> bool:
        return (self.path / "config.yaml").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end: environment.json is written with an `end` as the last act."""
        return self.exists and self.environment.get("end") is not None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved settings, as plain values with the same keys as a recipe."""
        try:
            config = yaml_value((self.path / "config.yaml").read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path / 'config.yaml'} is damaged: {first_line(error)}") from error
        if not isinstance(config, dict):
            raise InputError(f"{self.path / 'config.yaml'} is damaged: a mapping of settings was expected")
        return config

    @property
    def environment(self) -> dict[str, Any]:
        path = self.path / "environment.json"
        environment = read_json(path)
        if not _has_plain_conditions(environment):
            raise InputError(f"{path} is damaged: expected single values, and lists of them under `earlier`, `resumed`")
        return environment

    @property
    def inputs(self) -> dict[str, Any]:
        return read_json(self.path / "inputs.json")

    @property
    def evaluation(self) -> dict[str, Any]:
        return read_json(self.path / "evaluation.json")

    @property
    def calibration(self) -> dict[str, Any]:
        return read_json(self.path / "calibration.json")

    @property
    def temperature(self) -> float | None:
        """What the logits are divided by for calibrated probabilities; None where none was fitted."""
        path = self.path / "calibration.json"
        if not path.is_file():
            return None
        temperature = self.calibration.get("temperature")
        if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 < temperature < math.inf:
            raise InputError(f"{path} is damaged: expected a temperature above 0, got {temperature!r}")
        return float(temperature)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from this run meanwhile; makes the folder, and clears it of files half written.

        Raises:
            InputError: another process holds it.
        """
        from filelock import FileLock, Timeout  # of the [train] extra: reading run folders needs none of it

        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.checkpoints / ".lock", timeout=0, mode=0o644)  # it ends with the process, too
        with ExitStack() as holding:
            try:
                holding.enter_context(lock)
            except Timeout:
                raise InputError(f"{self.path}: another process is at work on this run") from None
            except NotImplementedError:
                pass  # older versions of filelock, on a file system without locks
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS):
                    raise  # else a file system without locks
            else:  # without the lock these might be another process's, still at work
                for folder in (self.path, self.checkpoints, self.examples):
                    remove_temporary_files(folder)
            yield

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows so far, oldest first. A last line cut short by a crash is dropped; any other is damage."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break
                raise InputError(f"{path} is damaged at line {number}: {first_line(error)}") from error
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                raise InputError(f"{path} is damaged at line {number}: a row with its epoch was expected")
            if not all(value is None or isinstance(value, int | float) for value in row.values()):
                raise InputError(f"{path} is damaged at line {number}: expected numbers")
            rows.append(row)
        return rows

    def write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", text.encode())
        self.__dict__.pop("config", None)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_json(self.path / "environment.json", environment)

    def write_inputs(self, record: Mapping[str, Any]) -> None:
        write_json(self.path / "inputs.json", record)

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        write_json(self.path / "evaluation.json", _with_nulls(evaluation))  # of a network that has diverged

    def write_calibration(self, calibration: Mapping[str, Any]) -> None:
        write_json(self.path / "calibration.json", calibration)

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write all rows anew: a resumed run first drops those after its checkpoint."""
        write_atomically(self.path / "metrics.jsonl", "".join(_metrics_line(row) for row in rows).encode())

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is on the disk when this returns, before any checkpoint that counts on it."""
        path = self.path / "metrics.jsonl"
        with named(path), path.open("a", encoding="utf-8") as file:
            file.write(_metrics_line(row))
            file.flush()
            os.fsync(file.fileno())


def _has_plain_conditions(environment: Mapping[str, Any]) -> bool:
    """Whether what is compared between runs are values that can be, and lists of them for earlier parts of a run."""
    resumed, earlier = environment.get("resumed", []), environment.get("earlier", {})
    if not (isinstance(resumed, list) and isinstance(earlier, dict)):
        return False
    if not all(isinstance(each, list) for each in earlier.values()):
        return False
    values = [environment.get(key) for key in TIMING_CONDITIONS]
    return not any(isinstance(each, list | dict) for each in chain(values, *earlier.values()))


def missing_rows(rows: Sequence[Mapping[str, Any]], num_epochs: int) -> str:
    """What `rows` lack to be those of epochs 1 to `num_epochs`, in words; empty where they lack nothing."""
    epochs = [row["epoch"] for row in rows]
    expected = range(1, num_epochs + 1)
    if epochs == list(expected):
        return ""
    first = next((epoch for epoch in expected if epoch not in epochs), None)
    if first is None:
        return f"other rows than one for each of {num_epochs} epochs, in order"
    last = first
    while last < num_epochs and last + 1 not in epochs:
        last += 1
    return f"no row of epoch {first}" if first == last else f"no row of epochs {first} to {last}"


def find_runs(folder: Path) -> Iterator[RunFolder]:
    """All runs at or below `folder`, behind links too: modes in alphabetical order, seeds in order of their number."""
    paths = [path for path in _folders(folder) if (path / "config.yaml").is_file()]
    for path in sorted(paths, key=lambda path: (path.parent.as_posix(), _seed(path), path.name)):
        yield RunFolder(path)


def _folders(top: Path) -> Iterator[Path]:
    """`top` and every folder below it, each once: links may lead to one place twice, or in a circle."""
    seen: set[str] = set()
    folders, links = deque([top]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()  # links last: a folder's own path is its name
        place = os.path.realpath(folder)
        if place in seen or not folder.is_dir():
            continue
        seen.add(place)
        yield folder
        for path in _entries(folder):
            if path.is_symlink():
                links.append(path)
            elif path.is_dir():
                folders.append(path)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _seed(path: Path) -> int:
    match = re.fullmatch(r"seed-(\d+)", path.name)
    return int(match.group(1)) if match else -1


def _metrics_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_with_nulls(row), allow_nan=False) + "\n"


def _with_nulls(value: Any) -> Any:
    """The same with null for numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _with_nulls(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
