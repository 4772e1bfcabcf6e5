"""Checkpoints: everything a run needs to go on as if it had never stopped, in files that never execute code.

A checkpoint is a folder `step-00001200` of state.safetensors (all tensors, with flat names) and state.json (all else,
and the checksums of both). It is written under a temporary name, flushed, and renamed; the newest two are kept.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from labelemb.errors import InputError, named_line
from labelemb.files import write_atomically, write_json

_NUM_KEPT = 2
_TENSOR = "tensor:"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], num_kept: int = _NUM_KEPT) -> Path:
    """Write `state` as folder/step-SSSSSSSS and remove all but the newest `num_kept`.

    Args:
        folder: the run's checkpoints.
        step: optimiser updates so far.
        state: nested dicts with string or integer keys, lists, tensors, numbers, strings and None.
        num_kept: how many stay.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints stay whole.
    """
    target = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    for rest in folder.glob(".partial-*"):  # of a run that was killed while it wrote
        shutil.rmtree(rest, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    document = _without_tensors(state, "", tensors)
    content = save(tensors)
    try:
        write_atomically(partial / "state.safetensors", content)
        sums = {"tensors": hashlib.sha256(content).hexdigest(), "state": _checksum(document)}
        write_json(partial / "state.json", {"sha256": sums, "state": document})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in _checkpoints(folder)[num_kept:]:
        shutil.rmtree(old)
    return target


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint; tensors come on the CPU.

    Raises:
        InputError: a file is missing, damaged or not what its checksum says.
    """
    try:
        document = json.loads((path / "state.json").read_text(encoding="utf-8"))
        content = (path / "state.safetensors").read_bytes()
        sums = {"tensors": hashlib.sha256(content).hexdigest(), "state": _checksum(document["state"])}
        if document["sha256"] != sums:
            raise ValueError("the checksum does not fit")
        state = _with_tensors(document["state"], load(content))
        if not isinstance(state, dict):
            raise ValueError("its state is not a mapping")
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"checkpoint {path} is damaged: {error}") from error
    return state


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, or None where there is none. A damaged one gives way to the one before.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    return next(whole_checkpoints(folder), None)


def whole_checkpoints(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole checkpoints of a run, newest first, each read when it is asked for.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    damage: InputError | None = None
    any_whole = False
    for path in _checkpoints(folder):
        try:
            state = load_checkpoint(path)
        except InputError as error:
            damage = error
            continue
        any_whole = True
        yield state
    if damage is not None and not any_whole:
        raise damage


@contextmanager
def must_fit(folder: Path) -> Iterator[None]:
    """For what takes a whole checkpoint apart: one of another shape is the file's mistake, not ours.

    Raises:
        InputError: names the run's checkpoints.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}: the checkpoint does not fit this run: {named_line(error)}; remove its folder, or the run's"
        ) from error


def _checksum(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor moved to `tensors` and its name in its place; integer keys are marked as such."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().contiguous().cpu().clone()  # safetensors refuses tensors that share memory
        return _TENSOR + name
    if isinstance(value, Mapping):
        return {_key(key): _without_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, dict):
        return {_unkey(key): _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value


def _key(key: str | int) -> str:
    return f"int:{key}" if isinstance(key, int) else key


def _unkey(key: str) -> str | int:
    return int(key.removeprefix("int:")) if key.startswith("int:") else key
