"""Which recipe fits a file or a folder, and which of its columns are what, where that can be told. No torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from labelemb.classify.columns import Columns, column_named, is_column_file, is_numeric, label_column, read_parts
from labelemb.classify.image_files import find_images
from labelemb.errors import InputError

_FEW = 0.2  # of the rows: a column of so many distinct values, or fewer, may be the label of another one


class Told(NamedTuple):
    """A recipe, and the settings that the data say of themselves, by their dotted keys."""

    recipe: str
    options: dict[str, Any]


def recipe_for(path: Path, given: Mapping[str, Any]) -> Told:
    """The recipe for the data at `path`, a run of which is called like the file or the folder.

    Args:
        path: an existing file or folder.
        given: settings that are known already, by their dotted keys: `data.label`, `data.text` and others.

    Raises:
        InputError: it cannot be told, in one line that says what to give; the files cannot be read.
    """
    name = re.sub(r"\..*", "", path.resolve().name) or "data"
    own = {"recipe": name, "data.path": path}
    if path.is_dir() and find_images(path):
        return Told("images", own)
    if path.is_file() and not is_column_file(path):
        raise InputError(
            f"{path}: expected a recipe, a folder of class folders of images, or a .csv, .tsv, .json, "
            ".jsonl or .parquet file; parallel text goes through labelemb preprocess"
        )
    columns = read_parts(path)["train"]
    images = [str(column) for column in columns.frame.columns if _holds_images(columns.frame[column])]
    if images:
        return Told("images", own)
    recipe, found = _of_columns(columns, path, given)
    return Told(recipe, own | found)


def _of_columns(columns: Columns, path: Path, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    label = _label(columns, path, given)
    if "data.text" in given:
        return "text-classes", {"data.label": label}
    if "data.columns" in given:
        return "tables", {"data.label": label}
    others = [str(name) for name in columns.frame.columns if str(name) != label]
    words = [name for name in others if not is_numeric(columns, name)]
    if others and not words:
        return "tables", {"data.label": label}
    if len(words) == 1 == len(others):
        return "text-classes", {"data.label": label, "data.text": words[0]}
    raise InputError(_cannot_tell(columns, path, label))


def _label(columns: Columns, path: Path, given: Mapping[str, Any]) -> str:
    """The column of labels: given, called so, the only one of words, or the one of two with few distinct values."""
    if given.get("data.label") is not None:
        return column_named(columns, str(given["data.label"]), "data.label")
    try:
        return label_column(columns, None)
    except InputError:
        names = [str(name) for name in columns.frame.columns]
        words = [name for name in names if not is_numeric(columns, name)]
        few = [name for name in names if columns.frame[name].nunique() <= _FEW * len(columns.frame)]
        if len(words) == 1 < len(names) and words == [name for name in words if name in few]:
            return words[0]
        if len(names) == 2 and len(words) >= 1 and len(few) == 1:
            return few[0]
        raise InputError(_cannot_tell(columns, path, "COLUMN")) from None


def _cannot_tell(columns: Columns, path: Path, label: str) -> str:
    kinds = {str(name): "numbers" if is_numeric(columns, str(name)) else "words" for name in columns.frame.columns}
    shown = ", ".join(f"{name} ({kind})" for name, kind in list(kinds.items())[:8]) + (
        ", ..." if len(kinds) > 8 else ""
    )
    return (
        f"{path}: cannot tell what is to be learned from {shown}: give labelemb compare text-classes --data {path} "
        f"data.text=COLUMN data.label={label}, or tables with data.columns=[COLUMN, COLUMN] data.label={label}"
    )


def _holds_images(column: Any) -> bool:
    """Whether the values of a Parquet column are encoded images, as the hub has them."""
    first = column.iloc[0]
    return isinstance(first, dict) and "bytes" in first
