"""Files of columns, read by pandas: CSV, TSV, JSON, JSON lines, Parquet; a file, or a folder with its parts. No torch.

Values of CSV stay as they are written, so that a label `NA` or `007` is one. Whatever cannot be learned from is refused
in one line that names the file, the column and the row, counted from 1 without the header.
"""

import csv
import gzip
import io
import json
import re
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from labelemb.errors import InputError, first_line
from labelemb.files import STDIN

PARTS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
PARTS |= {"test": "test"}
LABEL_NAMES = ("label", "labels", "class", "target", "category", "y")
_SUFFIX = re.compile(r"\.(csv|tsv|json|jsonl|ndjson|parquet)(\.gz)?$", re.IGNORECASE)
_HALF_CHARACTER = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  # of JSON, which writes some characters as two
_PART = re.compile(rf"({'|'.join(PARTS)})([-_.].*)?", re.IGNORECASE)


class Columns(NamedTuple):
    """The rows of one part of a data set."""

    frame: Any
    """A pandas frame with a row for each example."""
    origin: str
    """The file, for what is said of it."""
    class_names: Mapping[str, list[str]] = {}
    """By column, the names of labels 0, 1, ... that a hub data set holds."""


def is_column_file(path: Path) -> bool:
    """Whether a file is of a kind that can be read here, by its name."""
    return _SUFFIX.search(path.name) is not None


def read_parts(path: Path) -> dict[str, Columns]:
    """`train` and, where they are there, `validation` and `test`; a single file is all `train`.

    Raises:
        InputError: there is no such file or folder, no file of columns in it, or one that cannot be read.
    """
    if path.is_file():
        return {"train": read_columns(path)}
    if not path.is_dir():
        raise InputError(f"--data {path} does not exist: expected {_expected()}")
    files = sorted(each for each in path.iterdir() if each.is_file() and is_column_file(each))
    named = [(match[1].lower(), each) for each in files if (match := _PART.fullmatch(_SUFFIX.sub("", each.name)))]
    parts: dict[str, list[Columns]] = {}
    for name, each in named or [("train", each) for each in files if len(files) == 1]:
        parts.setdefault(PARTS[name], []).append(read_columns(each))
    if "train" not in parts:
        found = ", ".join(each.name for each in files[:5]) or "no such file"
        raise InputError(f"--data {path}: expected {_expected()}; found {found}")
    return {name: _joined(parts[name]) for name in ("train", "validation", "test") if name in parts}


def _expected() -> str:
    return "a .csv, .tsv, .json, .jsonl or .parquet file, or a folder with train.* and maybe validation.* and test.*"


def read_columns(path: Path) -> Columns:
    """One file; `-` is CSV from standard input.

    Raises:
        InputError: it cannot be read, is not UTF-8, has no rows, no header, or two columns of one name.
    """
    if path == STDIN:
        content, suffix, origin = sys.stdin.buffer.read(), "csv", "standard input"
    else:
        content, suffix, origin = _content(path), _suffix(path), str(path)
    try:
        if suffix == "parquet":
            columns = _read_parquet(content, origin)
        elif suffix in ("csv", "tsv"):
            columns = Columns(_read_csv(content.decode("utf-8-sig"), suffix, origin), origin)
        else:
            columns = Columns(_read_json(content.decode("utf-8-sig"), suffix, origin), origin)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{origin} is not UTF-8 (byte {error.start:,}): save it as UTF-8") from None
    except Exception as error:  # pandas and pyarrow each have their own for a damaged file
        raise InputError(f"{origin} cannot be read: {first_line(error)}") from None
    if not len(columns.frame):
        raise InputError(f"{origin} has no rows")
    return columns


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None


def _suffix(path: Path) -> str:
    match = _SUFFIX.search(path.name)
    if match is None:
        raise InputError(f"{path}: expected {_expected()}")
    return {"ndjson": "jsonl"}.get(match[1].lower(), match[1].lower())


def _read_csv(text: str, suffix: str, origin: str) -> Any:
    import pandas as pd

    if not text.strip():
        raise InputError(f"{origin} is empty")
    first = text.split("\n", 1)[0]
    separator = "\t" if suffix == "tsv" else max(",;\t", key=first.count)
    _check_header(next(csv.reader(io.StringIO(text), delimiter=separator)), origin)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{origin}: the rows have more fields than the header has names")
    return frame


def _read_json(text: str, suffix: str, origin: str) -> Any:
    import pandas as pd

    rows = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines() if line.strip()]
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise InputError(f"{origin}: expected a list of objects, each with the columns' values by their names")
    if _HALF_CHARACTER.search(text):
        json.dumps(rows, ensure_ascii=False).encode()  # raises where its other half is not there
    return pd.DataFrame(rows)


def _check_header(names: Sequence[str], origin: str) -> None:
    _check_names(names, origin)
    if all(_is_number(name) for name in names):
        raise InputError(f"{origin}: expected names of columns in the first line, got numbers: {', '.join(names[:5])}")


def _check_names(names: Sequence[str], origin: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{origin}: two columns are called {', '.join(twice)}: rename one")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(content: bytes, origin: str) -> Columns:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(content))
    table.validate(full=True)  # words are read when they are asked for, and may be no UTF-8
    _check_names(table.column_names, origin)
    return Columns(table.to_pandas(), origin, _hub_names(table.schema.metadata or {}))


def _hub_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """What `datasets` writes into Parquet files of its columns of type ClassLabel."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    labels = {name: each for name, each in features.items() if isinstance(each, dict) and each.get("names")}
    return {name: [str(label) for label in each["names"]] for name, each in labels.items()}


def _joined(parts: Sequence[Columns]) -> Columns:
    import pandas as pd

    if len(parts) == 1:
        return parts[0]
    origin = f"{parts[0].origin} and {len(parts) - 1} more"
    return Columns(pd.concat([part.frame for part in parts], ignore_index=True), origin, parts[0].class_names)


def column_named(columns: Columns, name: str, setting: str) -> str:
    """The name, if there is such a column.

    Raises:
        InputError: there is none; the nearest is named.
    """
    names = [str(each) for each in columns.frame.columns]
    if name in names:
        return name
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {_some(names)}"
    raise InputError(f"{setting}={name}: no such column in {columns.origin}; {hint}")


def label_column(columns: Columns, wanted: str | None) -> str:
    """The column of labels: the one that is wanted, else one that is called so.

    Raises:
        InputError: there is no such column, or none that it can be told of.
    """
    if wanted is not None:
        return column_named(columns, wanted, "data.label")
    named = [str(name) for name in columns.frame.columns if str(name).lower() in LABEL_NAMES]
    named = [name for name in named if name.lower() != "y"] or named  # which is a coordinate where there is another
    if len(named) == 1:
        return named[0]
    state = f"both {' and '.join(named)}" if named else "none called label, class, target or the like"
    raise InputError(f"{columns.origin}: which column is the label? There is {state}: give data.label=COLUMN")


def is_numeric(columns: Columns, name: str) -> bool:
    """Whether all values of a column that are there are numbers."""
    import pandas as pd

    values = columns.frame[name]
    if values.dtype.kind in "biuf":
        return True
    present = values[~_is_missing(values)].astype(str)
    return len(present) > 0 and bool(pd.to_numeric(present, errors="coerce").notna().all())


def numbers(columns: Columns, name: str) -> Any:
    """A column as an array (N,) float64.

    Raises:
        InputError: a value is missing, NaN, infinite or a word.
    """
    import numpy as np
    import pandas as pd

    values = columns.frame[name]
    _refuse_missing(columns, name, _is_missing(values))
    parsed = pd.to_numeric(values if values.dtype.kind in "biuf" else values.astype(str), errors="coerce")
    array = parsed.to_numpy(dtype="float64")
    if not np.isfinite(array).all():
        row = int(np.isfinite(array).argmin())
        raise InputError(f"{columns.origin}: column {name}, row {row + 1}: expected a number, got {values.iloc[row]!r}")
    return array


def words(columns: Columns, name: str) -> list[str]:
    """A column as text, whole numbers without a point.

    Raises:
        InputError: a value is missing or empty.
    """
    values = columns.frame[name]
    _refuse_missing(columns, name, _is_missing(values, numeric=False))
    return [str(int(each)) if isinstance(each, float) and each.is_integer() else str(each) for each in values.tolist()]


def _is_missing(values: Any, *, numeric: bool = True) -> Any:
    """Which values are not there: null, nothing or blanks, in a column of numbers also what stands for it there."""
    if values.dtype.kind in "biuf":
        return values.isna()
    texts = values.astype(str).str.strip().str.lower()
    return values.isna() | texts.isin(("", "na", "nan", "null", "none", "n/a") if numeric else ("",))


def _refuse_missing(columns: Columns, name: str, missing: Any) -> None:
    count = int(missing.sum())
    if count:
        row = int(missing.to_numpy().argmax()) + 1
        many = f"{count} values are missing, the first in row {row}" if count > 1 else f"no value in row {row}"
        raise InputError(f"{columns.origin}: column {name}: {many}; fill it in, or leave such rows out")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
