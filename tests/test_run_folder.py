"""The run folder: what is written is read back; what is damaged is named."""

import errno
import fcntl
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labelemb.run_folder import RunFolder, find_runs, missing_rows


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.at(tmp_path, "digits", "emb", 7)


def test_a_run_lies_at_recipe_mode_seed(run: RunFolder, tmp_path: Path) -> None:
    assert run.path == tmp_path / "digits" / "emb" / "seed-07"
    assert run.table == run.path / "label_embedding.safetensors"
    assert (run.checkpoints, run.examples) == (run.path / "checkpoints", run.path / "examples")
    assert RunFolder.at(tmp_path, "digits", "emb", 123).path.name == "seed-123"


def test_a_folder_that_is_not_there_is_empty_and_unfinished(run: RunFolder) -> None:
    assert not run.exists
    assert not run.is_finished
    assert (run.metrics, run.environment, run.evaluation) == ([], {}, {})
    with pytest.raises(FileNotFoundError):
        _ = run.config


def test_config_environment_and_evaluation_come_back_as_written(run: RunFolder) -> None:
    config = {
        "recipe": "digits",
        "seed": 7,
        "model": {"hidden": [256, 256]},
        "names": ["đẹp"],
        "rate": 1e-3,
        "clip": None,
    }
    run.write_config(config)
    run.write_environment({"torch": "2.9"})
    run.write_evaluation({"num_test": 719})
    again = RunFolder(run.path)
    assert again.exists
    assert list(again.config.items()) == list(config.items())
    assert (again.environment, again.evaluation) == ({"torch": "2.9"}, {"num_test": 719})


def test_a_config_written_anew_is_read_anew(run: RunFolder) -> None:
    run.write_config({"seed": 1})
    assert run.config == {"seed": 1}
    run.write_config({"seed": 2})
    assert run.config == {"seed": 2}


def test_a_run_is_finished_when_its_end_is_written(run: RunFolder) -> None:
    run.write_config({})
    run.write_environment({"start": "2026-01-01T00:00:00", "end": None})
    assert not run.is_finished
    run.write_environment({"start": "2026-01-01T00:00:00", "end": "2026-01-01T00:01:00"})
    assert run.is_finished


def test_a_run_is_held_by_one_at_a_time(run: RunFolder) -> None:
    with run.held():
        with pytest.raises(ValueError, match="another process is at work on this run"), run.held():
            pass
        assert [path.name for path in run.path.iterdir()] == ["checkpoints"]
    with run.held():
        pass


def test_a_killed_process_holds_nothing(run: RunFolder) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from labelemb.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(run.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (run.checkpoints / ".lock").is_file()  # it was there
    with run.held():
        pass


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.EIO])
def test_where_the_file_system_has_no_locks_a_run_goes_on_without(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    left = run.path / ".metrics.jsonl.a1_b2c3d"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"perhaps another process's")
    monkeypatch.setattr(fcntl, "flock", fail)
    if number == errno.EIO:  # a fault of the disk is told
        with pytest.raises(OSError, match="Input/output"), run.held():
            pass
    else:
        with run.held(), run.held():
            assert left.exists()


def test_what_a_killed_process_left_half_written_goes_when_the_run_is_held_again(run: RunFolder) -> None:
    left = [
        run.path / ".metrics.jsonl.a1_b2c3d",
        run.checkpoints / ".best-00000005.safetensors.abcdefgh",
        run.examples / ".examples.jsonl.01234567",
    ]
    foreign = [
        run.path / ".config.yaml.swp",
        run.path / ".metrics.jsonl.ABCDEFGH",
        run.path / ".bashrc",
        run.path / "notes.txt.abcdefgh",
        run.path / "own" / ".config.yaml.abcdefgh",
        run.path.parent / ".config.yaml.abcdefgh",
        run.path / ".folder.json.abcdefgh" / "file",
    ]
    for path in [*left, *foreign]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with run.held():
        assert [path for path in left if path.exists()] == []
        left[0].write_bytes(b"at work")
        with pytest.raises(ValueError, match="another process"), run.held():
            pass
        assert left[0].exists()
    assert [path for path in foreign if not path.exists()] == []


def test_metrics_are_appended_and_rewritten(run: RunFolder) -> None:
    run.write_metrics([])
    rows = [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25}]
    for row in rows:
        run.append_metrics(row)
    assert run.metrics == rows
    run.write_metrics(rows[:1])
    assert run.metrics == rows[:1]


def test_an_appended_row_is_on_the_disk_before_the_next_checkpoint_can_count_on_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_metrics([])
    path, flushed = run.path / "metrics.jsonl", list[bytes]()
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(path.read_bytes()))
    run.append_metrics({"epoch": 1})
    assert flushed == [b'{"epoch": 1}\n']


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([1, 2, 3], ""),
        ([1], "no row of epochs 2 to 3"),
        ([], "no row of epochs 1 to 3"),
        ([1, 3], "no row of epoch 2"),
        ([2, 3], "no row of epoch 1"),
        ([1, 2, 2, 3], "other rows than one for each of 3 epochs, in order"),
        ([1, 3, 2], "other rows than one for each of 3 epochs, in order"),
        ([1, 2, 3, 4], "other rows than one for each of 3 epochs, in order"),
    ],
)
def test_missing_rows_say_which(epochs: list[int], expected: str) -> None:
    assert missing_rows([{"epoch": epoch} for epoch in epochs], 3) == expected


def test_numbers_that_json_lacks_become_null(run: RunFolder) -> None:
    run.write_metrics([{"epoch": 1, "train_loss": math.nan, "test_nll": math.inf}])
    run.append_metrics({"epoch": 2, "train_loss": -math.inf})
    assert run.metrics == [{"epoch": 1, "train_loss": None, "test_nll": None}, {"epoch": 2, "train_loss": None}]


def test_an_evaluation_has_null_for_numbers_that_json_lacks(run: RunFolder) -> None:
    run.write_config({})
    run.write_evaluation({"test": {"nll": float("nan")}, "bins": [[1, float("inf"), 0]]})
    assert run.evaluation == {"test": {"nll": None}, "bins": [[1, None, 0]]}


def test_a_last_metrics_line_cut_by_a_crash_is_dropped(run: RunFolder) -> None:
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert run.metrics == [{"epoch": 1}]


def test_a_row_appended_after_a_cut_line_is_not_lost(run: RunFolder) -> None:
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    run.write_metrics(run.metrics)  # what a resumed run does first
    run.append_metrics({"epoch": 2})
    assert run.metrics == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize(
    "content",
    [b'{"epoch": 1}\n{"ep\n{"epoch": 3}\n', b'\xff\xfe\n{"epoch": 1}\n', b"[1]\n{}\n", b"{}\n", b'{"epoch": "1"}\n'],
)
def test_damaged_metrics_are_named(run: RunFolder, content: bytes) -> None:
    run.write_metrics([])
    (run.path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged") as error:
        _ = run.metrics
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"a: [1\nb: 2", b"- 1\n- 2", b"", b"\xff\xfe\xfd", b"a: !!python/object/apply:os.getcwd []"]
)
def test_a_damaged_config_is_named_and_runs_no_code(run: RunFolder, content: bytes) -> None:
    run.write_config({})
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml is damaged") as error:
        _ = RunFolder(run.path).config
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["environment", "evaluation"])
@pytest.mark.parametrize("content", [b'{"end": ', b"[]", b"", b"\xff"])
def test_damaged_json_is_named(run: RunFolder, name: str, content: bytes) -> None:
    run.write_config({})
    (run.path / f"{name}.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}\.json is damaged") as error:
        getattr(run, name)
    assert "\n" not in str(error.value)


def test_runs_are_found_by_mode_then_by_number_of_seed(tmp_path: Path) -> None:
    for mode, seed in [("emb", 100), ("emb", 9), ("emb", 99), ("baseline", 2)]:
        RunFolder.at(tmp_path, "digits", mode, seed).write_config({})
    found = [run.path.relative_to(tmp_path / "digits").as_posix() for run in find_runs(tmp_path)]
    assert found == ["baseline/seed-02", "emb/seed-09", "emb/seed-99", "emb/seed-100"]
    assert [run.path.name for run in find_runs(tmp_path / "digits" / "emb" / "seed-09")] == ["seed-09"]
    assert not list(find_runs(tmp_path / "nothing"))


def test_runs_behind_links_are_found_once_and_circles_end(tmp_path: Path) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    for folder in (RunFolder.at(runs, "digits", "baseline", 0), RunFolder.at(elsewhere, "digits", "emb", 0)):
        folder.write_config({})
    RunFolder(elsewhere / "seed").write_config({})
    (runs / "digits" / "emb").symlink_to(elsewhere / "digits" / "emb")
    (runs / "digits" / "baseline" / "seed-01").symlink_to(elsewhere / "seed")
    (runs / "digits" / "again").symlink_to(runs / "digits" / "baseline")
    (runs / "digits" / "z-second-name").symlink_to(runs / "digits" / "emb")
    (runs / "digits" / "circle").symlink_to(runs)
    (runs / "digits" / "nowhere").symlink_to(runs / "nothing")
    (runs / "digits" / "itself").symlink_to(runs / "digits" / "itself")
    found = [run.path.relative_to(runs / "digits").as_posix() for run in find_runs(runs)]
    assert found == ["baseline/seed-00", "baseline/seed-01", "emb/seed-00"]
    assert [run.path.name for run in find_runs(runs / "digits" / "emb")] == ["seed-00"]
