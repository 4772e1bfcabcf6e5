"""`labelemb predict` on items that no run has seen: files and folders of each kind, with labels and without."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from labelemb import __main__ as cli

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELEMB_CACHE", str(tmp_path / "cache"))


def trained(data: str, *settings: str) -> str:
    assert cli.run(["train", data, "epochs=12", "optimizer.lr=0.05", "device=cpu", "--quiet", *settings]) == 0
    return f"runs/{Path(data).stem}/emb/seed-00"


def predict(capsys: Output, *arguments: str) -> tuple[list[dict[str, str]], str]:
    """The rows of standard output, and what was said beside them."""
    capsys.readouterr()
    assert cli.run(["predict", *arguments]) == 0
    said = capsys.readouterr()
    return list(csv.DictReader(said.out.splitlines())), said.err


def write_table() -> str:
    rows = [f"{(-1) ** row * (row % 7 + 1)},{'ab'[row % 2]}" for row in range(60)]
    Path("table.csv").write_text("\n".join(["x,label", *rows]) + "\n")
    return trained("table.csv", "model.hidden=[8]")


def test_rows_of_numbers_with_labels_and_without(capsys: Output) -> None:
    run = write_table()
    Path("new.csv").write_text("other,x\nword,5\n,-5\n")
    rows, said = predict(capsys, run, "new.csv")
    assert [row["predicted"] for row in rows] == ["a", "b"]
    assert all(float(row["a"]) + float(row["b"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert said == "2 rows; probabilities as trained: 5 held-out items tell no temperature\n"
    Path("new.csv").write_text("x,label\n5,a\n-5,a\n")
    rows, said = predict(capsys, run, "new.csv", "--raw", "--top-k", "1")
    assert list(rows[0]) == ["predicted", "probability"]
    assert said == "error 50.00 % of 2 rows\n"
    Path("table.csv").unlink()  # the data that it was trained on are not needed
    assert predict(capsys, run, "new.csv")[0]


def test_rows_that_do_not_fit_are_code_2(capsys: Output) -> None:
    run = write_table()
    for content, line in {
        "z\n1\n": "no such column",
        "x,label\n1,c\n": "label 'c' is neither",
        "x\n\n": "no rows",
    }.items():
        Path("new.csv").write_text(content)
        assert cli.run(["predict", run, "new.csv", "--output", "out.csv"]) == 2
        assert line in capsys.readouterr().err
    assert not Path("out.csv").exists()
    assert cli.run(["predict", run, "new.csv", "--beam", "3"]) == 2
    assert "is a run of class predictions" in capsys.readouterr().err


def test_the_test_rows_of_the_runs_own_data_are_the_default(capsys: Output) -> None:
    rows, said = predict(capsys, write_table())
    assert len(rows) == 12
    assert said.startswith("error 0.00 % of 12 test rows")


def test_texts_of_a_file_and_of_standard_input(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{('red fox', 'blue whale')[row % 2]} number {row},{('land', 'sea')[row % 2]}" for row in range(60)]
    Path("texts.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    run = trained("texts.csv", "model.buckets=512", "model.width=8", "model.hidden=[8]")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a blue whale\n\na red fox\n")))
    rows, said = predict(capsys, run, "-")
    assert [row["predicted"] for row in rows[::2]] == ["sea", "land"]
    assert said.startswith("3 texts")
    Path("new.txt").write_text("the red fox\n")
    assert predict(capsys, run, "new.txt")[0][0]["predicted"] == "land"
    Path("new.tsv").write_text("label\ttext\nsea\tthe red fox\n")
    assert predict(capsys, run, "--src", "new.tsv")[1].startswith("error 100.00 % of 1 texts")


def test_images_of_a_folder_whatever_their_size(capsys: Output) -> None:
    for name, value in {"black": 0, "white": 255}.items():
        Path("photos", name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (6, 6), value).save(Path("photos", name, f"{number}.png"))
    run = trained("photos", "model.name=mlp", "model.hidden=[4]", "model.width=null", "augment.crop=0")
    Path("new").mkdir()
    Image.new("RGB", (20, 9), (250, 250, 250)).save("new/b.jpg")
    Image.new("L", (6, 6), 3).save("new/a.png")
    rows, said = predict(capsys, run, "new")
    assert [(row["file"], row["predicted"]) for row in rows] == [("a.png", "black"), ("b.jpg", "white")]
    assert said.startswith("2 images")
    assert predict(capsys, run, "photos")[1].startswith("error 0.00 % of 40 images")
    assert predict(capsys, run, "new/a.png")[0][0]["file"] == "new/a.png"
    Path("none").mkdir()
    assert cli.run(["predict", run, "none"]) == 2
    assert "there are no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "images"},
        {"label_names": "ab"},
        {"shape": [2]},
        {"shape": None},
        {"columns": []},
        {"mean": ["x"]},
        {"std": [1.0, 2.0]},
        {"label_column": 3},
    ],
)
def test_a_damaged_record_of_inputs_is_one_line_and_code_2(capsys: Output, change: dict[str, object]) -> None:
    run = write_table()
    path = Path(run, "inputs.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capsys.readouterr()
    assert cli.run(["predict", run, "table.csv"]) == 2
    assert f"{path} is damaged: " in capsys.readouterr().err
