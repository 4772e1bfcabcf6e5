"""Checkpoints: what is saved comes back bit by bit, and no accident takes the last whole one away."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small_runs import bits

from labelemb.training.checkpoint import load_checkpoint, load_newest, save_checkpoint
from labelemb.training.optimizers import load_moments


def some_state(value: float = 1.0) -> dict[str, Any]:
    shared = torch.full((3, 2), value)
    return {
        "position": {"epoch": 2, "batch": 7, "seconds": 0.1 + 0.2},
        "module": {
            "network.weight": shared,
            "view": shared[1:],
            "empty": torch.zeros(0),
            "scalar": torch.tensor(value),
        },
        "optimizers": [{"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "none": None}]}],
        "random": {"cpu": torch.get_rng_state()},
        "half": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    }


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_bit_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 12, some_state())
    assert path.name == "step-00000012"
    assert bits(load_checkpoint(path)) == bits(some_state())
    assert bits(load_newest(tmp_path)) == bits(some_state())


def test_files_are_safetensors_and_json(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 12, some_state())
    assert steps(path) == ["state.json", "state.safetensors"]
    json.loads((path / "state.json").read_text(encoding="utf-8"))


def test_the_two_newest_are_kept_in_order_of_their_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, some_state(step))
    assert steps(tmp_path) == ["step-00000010", "step-00000100"]
    newest = load_newest(tmp_path)
    assert newest is not None
    assert newest["module"]["scalar"] == 100


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, some_state(1))
    save_checkpoint(tmp_path, 3, some_state(2))
    assert load_checkpoint(tmp_path / "step-00000003")["module"]["scalar"] == 2


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "nowhere") is None


def damage(path: Path, how: str) -> None:
    tensors, document = path / "state.safetensors", path / "state.json"
    content = tensors.read_bytes()
    match how:
        case "flipped bit":
            tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            tensors.write_bytes(content[: len(content) // 2])
        case "empty":
            tensors.write_bytes(b"")
        case "no tensors":
            tensors.unlink()
        case "no document":
            document.unlink()
        case "half a document":
            document.write_bytes(document.read_bytes()[:40])
        case "not text":
            document.write_bytes(b"\xff\xfe\x00")
        case "another document":
            document.write_text("[]")
        case "a wrong state":
            document.write_text(json.dumps(json.loads(document.read_text()) | {"state": []}))


DAMAGES = [
    "flipped bit",
    "cut",
    "empty",
    "no tensors",
    "no document",
    "half a document",
    "not text",
    "another document",
    "a wrong state",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, how: str) -> None:
    save_checkpoint(tmp_path, 1, some_state(1))
    damage(save_checkpoint(tmp_path, 2, some_state(2)), how)
    state = load_newest(tmp_path)
    assert state is not None
    assert state["module"]["scalar"] == 1


def test_only_damaged_checkpoints_are_an_error_that_names_one(tmp_path: Path) -> None:
    for step in (1, 2):
        damage(save_checkpoint(tmp_path, step, some_state()), "flipped bit")
    with pytest.raises(ValueError, match=r"checkpoint .*step-0000000\d is damaged") as error:
        load_newest(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("same_step", [False, True])
def test_a_full_disk_leaves_the_checkpoint_before_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_step: bool
) -> None:
    save_checkpoint(tmp_path, 1, some_state(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 1 if same_step else 2, some_state(2))
    assert steps(tmp_path) == ["step-00000001"]
    assert bits(load_newest(tmp_path)) == bits(some_state(1))


@pytest.mark.parametrize("last", ["state.safetensors", "state.json", "rename"])
def test_a_kill_while_writing_leaves_the_checkpoint_before_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """SIGKILL runs no handler: nothing is tidied up, neither by `except` nor by `finally`."""
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 1, some_state(1))
    snapshot = tmp_path / "as the kill left it"
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if not snapshot.exists() and re.search(last if last != "rename" else r"step-", Path(target).name):
            shutil.copytree(folder, snapshot)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    save_checkpoint(folder, 2, some_state(2))
    monkeypatch.undo()
    assert bits(load_newest(snapshot)) == bits(some_state(1))
    save_checkpoint(snapshot, 3, some_state(3))
    assert steps(snapshot) == ["step-00000001", "step-00000003"]
    assert not list(snapshot.rglob(".*"))


@pytest.mark.parametrize(
    "change",
    [{"exp_avg": torch.zeros(2)}, {"step": torch.zeros(3)}, {"exp_avg_sq": "x"}, {"exp_avg": None, "more": None}],
)
def test_an_optimizer_takes_up_only_what_has_its_parameters_shapes(change: dict[str, Any]) -> None:
    """A fused step reads and writes beyond the end of what is too short."""
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in (3, 4)]
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()["state"]
    load_moments(optimizer, state)
    with pytest.raises(ValueError, match="its optimizer"):
        load_moments(optimizer, {**state, 0: state[0] | change})
