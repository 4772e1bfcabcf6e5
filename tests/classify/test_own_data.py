"""Which recipe a file or a folder gets, and what is said where that cannot be told."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelemb.classify.own_data import recipe_for
from labelemb.errors import InputError


def written(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def told(path: Path, **given: str) -> tuple[str, dict[str, Any]]:
    recipe, options = recipe_for(path, {f"data.{name}": value for name, value in given.items()})
    assert (options.pop("recipe"), options.pop("data.path")) == (path.stem, path)
    return recipe, {key.removeprefix("data."): value for key, value in options.items()}


def test_numbers_and_a_label_are_a_table(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "x,y,class", "1,2,a", "3,4,b")
    assert told(path) == ("tables", {"label": "class"})
    path = written(tmp_path / "iris.csv", "x,z,species", *["1,2,a"] * 6, *["3,4,b"] * 6)
    assert told(path) == ("tables", {"label": "species"})
    assert told(written(tmp_path / "n.csv", "x,label", "1,0", "3,1")) == ("tables", {"label": "label"})


def test_a_text_and_a_label_are_text_classes(tmp_path: Path) -> None:
    rows = [f"this is sentence {number},{'good' if number % 2 else 'bad'}" for number in range(12)]
    assert told(written(tmp_path / "a.csv", "sentence,label", *rows)) == (
        "text-classes",
        {"label": "label", "text": "sentence"},
    )
    assert told(written(tmp_path / "b.csv", "review,mood", *rows)) == (
        "text-classes",
        {"label": "mood", "text": "review"},
    )
    several = written(tmp_path / "c.csv", "id,title,body,label", "1,a,b,c")
    assert told(several, text="body") == ("text-classes", {"label": "label"})


def test_class_folders_are_images(tmp_path: Path) -> None:
    for name in ("photos/cat", "photos/dog", "split/train/cat", "split/test/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    assert told(tmp_path / "photos") == ("images", {})
    assert told(tmp_path / "split") == ("images", {})


def test_a_column_of_encoded_images_is_images(tmp_path: Path) -> None:
    import datasets

    rows = {"picture": [Image.new("L", (4, 4))] * 2, "label": [0, 1]}
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    assert told(tmp_path / "a.parquet") == ("images", {})


@pytest.mark.parametrize(
    ("header", "row"), [("id,text,label", "1,word,2"), ("one,two", "word,other"), ("title,body,label", "a,b,c")]
)
def test_what_cannot_be_told_says_in_one_line_what_to_give(tmp_path: Path, header: str, row: str) -> None:
    path = written(tmp_path / "a.csv", header, row, row)
    with pytest.raises(
        InputError, match=r"cannot tell .* labelemb compare text-classes --data .* data\.text=COLUMN"
    ) as caught:
        recipe_for(path, {})
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"data\.label=nowhere: no such column"):
        recipe_for(path, {"data.label": "nowhere"})


def test_other_files_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("")
    for path in (tmp_path / "a.xlsx", tmp_path):
        with pytest.raises(InputError, match=r"\.csv, \.tsv, \.json, \.jsonl or \.parquet"):
            recipe_for(path, {})
