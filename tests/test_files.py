"""Atomic writing."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from labelemb.files import describe_lack_of_space, is_out_of_space, whole_text_file, write_atomically, write_json


def test_a_file_is_written_into_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_and_others_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["tempfile.mkstemp", "os.fsync", "os.replace"])
def test_a_full_disk_names_the_file_that_was_to_be(
    number: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/temporary")

    monkeypatch.setattr(place, full)
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        write_atomically(tmp_path / "file", b"")
    assert is_out_of_space(error.value)
    assert describe_lack_of_space(error.value) == f"no space left for {tmp_path / 'file'}: free some"


def test_an_error_of_the_disk_keeps_the_name_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken'") as error:
        write_atomically(tmp_path / "taken" / "file", b"")
    assert error.value.filename == str(tmp_path / "taken")


def test_a_reader_never_finds_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    found = []
    replace = os.replace

    def look_then_replace(source: str, target: Path) -> None:
        found.append((path.read_bytes(), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_then_replace)
    write_atomically(path, b"new")
    assert found == [(b"old", b"new")]


def test_json_is_readable_and_keeps_letters(tmp_path: Path) -> None:
    value = {"names": ["chó", "đẹp"], "mean": 0.25, "difference": None}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "đẹp" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_numbers_that_other_readers_refuse(number: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"mean": number})
    assert not list(tmp_path.iterdir())


def test_a_text_file_whose_writing_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    with whole_text_file(path) as file:
        file.write("first\n")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), whole_text_file(path) as file:
        file.writelines(["half of", "\ud800"])
    assert path.read_bytes() == b"first\n"
    assert list(tmp_path.iterdir()) == [path]
