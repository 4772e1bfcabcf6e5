"""Files of columns: what is read of them, and the one line for each way in which they cannot be."""

import gzip
import json
from pathlib import Path

import pytest

from labelemb.classify.columns import is_numeric, label_column, numbers, read_columns, read_parts, words
from labelemb.errors import InputError

ROWS = [{"size": "1.5", "label": "NA"}, {"size": "-2", "label": "007"}, {"size": "3e2", "label": "né"}]


def written(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """The rows, as the name of the file says."""
    suffix = path.name.split(".", 1)[1]
    typed = [{**row, "size": float(row["size"])} for row in rows]
    if suffix == "parquet":
        import pandas as pd

        pd.DataFrame(typed).to_parquet(path)
        return path
    separator = "\t" if suffix == "tsv" else ";" if path.stem == "semicolons" else ","
    lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    text = {"json": json.dumps(typed), "jsonl": "\n".join(map(json.dumps, typed))}.get(suffix, "\n".join(lines))
    path.write_bytes(gzip.compress(text.encode()) if suffix == "csv.gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "semicolons.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.csv.gz"])
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    columns = read_columns(written(tmp_path / name))
    assert numbers(columns, "size").tolist() == [1.5, -2, 300]
    assert words(columns, label_column(columns, None)) == ["NA", "007", "né"]
    assert is_numeric(columns, "size")
    assert not is_numeric(columns, "label")


def test_a_folder_has_its_parts_and_a_file_is_all_training(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "dev.csv", "test.csv", "notes.txt"):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("")
        else:
            written(tmp_path / name)
    parts = read_parts(tmp_path)
    assert {name: len(columns.frame) for name, columns in parts.items()} == {"train": 6, "validation": 3, "test": 3}
    assert list(read_parts(tmp_path / "dev.csv")) == ["train"]


def test_names_of_a_hub_label_are_read(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict({"label": [1, 0]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    columns = read_columns(tmp_path / "a.parquet")
    assert columns.class_names == {"label": ["cat", "dog"]}
    assert words(columns, "label") == ["1", "0"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty"),
        (b"size,label\n", "has no rows"),
        (b"size,label\n1,caf\xe9\n", r"is not UTF-8 \(byte 16\)"),
        (b"size,size\n1,2\n", "two columns are called size"),
        (b"1,2\n3,4\n", "expected names of columns in the first line, got numbers: 1, 2"),
        (b"size,label\n1,a,b\n2,a,b\n", "more fields than the header has names"),
        (b"size,label\n1,a\n2,a,b\n", "cannot be read: Error tokenizing data"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=line) as caught:
        read_columns(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("value", "line"), [("", "no value in row 2"), ("nan", "no value"), ("inf", "row 2: expected")]
)
def test_a_number_that_is_none_is_named_by_its_row(tmp_path: Path, value: str, line: str) -> None:
    (tmp_path / "a.csv").write_text(f"size,label\n1,a\n{value},b\n")
    with pytest.raises(InputError, match=f"column size.*{line}"):
        numbers(read_columns(tmp_path / "a.csv"), "size")


def test_a_row_cut_short_is_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("size,label\n1,a\n2\n3\n")
    with pytest.raises(InputError, match="column label: 2 values are missing, the first in row 2"):
        words(read_columns(tmp_path / "a.csv"), "label")


def test_a_label_that_cannot_be_told_or_is_not_there_is_asked_for(tmp_path: Path) -> None:
    columns = read_columns(written(tmp_path / "a.csv"))
    with pytest.raises(InputError, match=r"data.label=lable: no such column in .*; did you mean label\?"):
        label_column(columns, "lable")
    (tmp_path / "b.csv").write_text("class,target,y\n1,2,3\n")
    with pytest.raises(InputError, match=r"both class and target: give data\.label=COLUMN"):
        label_column(read_columns(tmp_path / "b.csv"), None)


def test_what_is_no_data_says_what_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    for path in (tmp_path / "nowhere.csv", tmp_path / "a.txt", tmp_path):
        with pytest.raises(InputError, match=r"expected a .csv, .tsv, .json, .jsonl or .parquet file"):
            read_parts(path)


def test_a_gz_file_of_damaged_content_is_named(tmp_path: Path) -> None:
    content = gzip.compress(b"size,label\n1,a\n", mtime=0)
    (tmp_path / "a.csv.gz").write_bytes(content[:10] + b"\xff" * 20 + content[30:])
    with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read: Error -3"):
        read_columns(tmp_path / "a.csv.gz")


def test_half_a_character_of_json_is_refused_and_a_whole_one_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'[{"label": "\ud83d\ude00"}]')
    assert words(read_columns(path), "label") == ["\U0001f600"]
    path.write_text(r'[{"label": "\uD83d"}]')
    with pytest.raises(InputError, match=r"a\.json cannot be read: .*surrogates not allowed"):
        read_columns(path)


def test_parquet_words_that_are_no_utf_8_are_refused_when_read(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "a.parquet"
    pd.DataFrame({"label": ["wxyz" * 9, "b"]}).to_parquet(path, compression=None, use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"wxyz" * 9, b"\xff" * 36))
    with pytest.raises(InputError, match=r"a\.parquet cannot be read: .*UTF8"):
        read_columns(path)
