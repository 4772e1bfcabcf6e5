"""Writing files so that a reader, or a run that was killed, never finds half of one; reading what may be damaged."""

import errno
import gzip
import json
import math
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from labelemb.errors import InputError

STDIN = Path("-")
_TEMPORARY = re.compile(r"\..+\.\w+\.[a-z0-9_]{8}")  # what mkstemp makes of `.NAME.`, where NAME ends as files do


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: the old file or the new one is there at any moment, never a part.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file stays whole.
    """
    with _replacement(path) as file:
        file.write(content)


@contextmanager
def whole_text_file(path: Path) -> Iterator[TextIO]:
    """A text file in UTF-8 to write to bit by bit; it appears under its name when all of it is written.

    Raises:
        OSError: as `write_atomically`.
    """
    with _replacement(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="\n")
        yield text
        text.detach()  # flushes, and leaves the file open for what is done with every replacement


@contextmanager
def _replacement(path: Path) -> Iterator[BinaryIO]:
    """A file of a temporary name beside `path`; when all is written it is flushed to the disk and renamed over it."""
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, without their line ends; `.gz` is read as it is, `-` is standard input.

    Only a line feed ends a line: other separators of Unicode would shift the pairs.

    Raises:
        InputError: no such file, bytes that are not UTF-8 (with the line's number), a damaged `.gz`.
    """
    try:
        with _bytes_of(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    place = f"{path}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8"
                    raise InputError(f"{place}; convert the file, for example with iconv") from None
                yield (text.removeprefix("\ufeff") if number == 1 else text).rstrip("\r\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


@contextmanager
def _bytes_of(path: Path) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer  # which stays open
        return
    with cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
        yield file


@contextmanager
def text_output(path: Path | None) -> Iterator[TextIO]:
    """`whole_text_file`, or standard output for None."""
    if path is None:
        yield sys.stdout
        return
    with whole_text_file(path) as file:
        yield file


def remove_temporary_files(folder: Path) -> None:
    """Remove what `write_atomically` left directly in `folder` when it was killed; no other process may write there."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file.

    Raises:
        InputError: names the file, which is something else.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: an object was expected")
    return value


def _finite(number: str) -> float:
    """What `write_json` writes: NaN, Infinity and 1e999 are none of it, and could not be written again."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is no finite number")
    return float(number)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are errors: other readers refuse them."""
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of the disk name `path`: a write or a flush that fails knows no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None or is_out_of_space(error):  # else of a temporary file
            error.filename = str(path)
        raise


def is_out_of_space(error: Exception) -> bool:
    """Whether the disk, or what this user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def describe_lack_of_space(error: Exception) -> str:
    """What the error of a full disk means; how to go on afterwards is the caller's to add."""
    return f"no space left for {getattr(error, 'filename', None) or 'its files'}: free some"
