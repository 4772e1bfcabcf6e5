"""`labelemb compare FILE` and `train FILE`: from data alone to a report, or to one line, and nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.test_readme import in_this_process

from labelemb import __main__ as cli
from labelemb.experiments import workers
from labelemb.run_folder import RunFolder

Output = pytest.CaptureFixture[str]
QUICK = ["epochs=1", "model.hidden=[4]", "device=cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "execute_all", in_this_process)


def write(name: str, header: str, rows: list[str]) -> str:
    Path(name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return name


def write_wine(name: str = "wine.csv") -> str:
    return write(name, "x,y,label", [f"{row % 5},{row},{'ab'[row % 2]}" for row in range(60)])


def test_a_file_alone_is_compared(capsys: Output) -> None:
    assert cli.run(["compare", write_wine(), *QUICK, "--runs", "1", "--valid-fraction", "0.25"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "runs/wine/report.html"
    config = RunFolder(Path("runs/wine/emb/seed-00")).config
    assert config["task"] == "tables"
    assert config["data"]["validation"] == 0.25
    assert config["data"]["label"] == "label"


def test_what_the_data_are_is_said_before_training(capsys: Output) -> None:
    few = write("few.csv", "x,label", [f"{row},{'b' if row < 4 else 'a'}" for row in range(60)])
    Path("names").write_text("b\na\n")
    assert cli.run(["train", few, *QUICK, "--label-names", "names"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("data: 43 to train")
    assert lines[1] == "data: no test part, so 20 % of each label is held out, the same for all runs"
    assert lines[2].startswith("warning: labels with fewer than 5 training examples")
    assert RunFolder(Path("runs/few/emb/seed-00")).evaluation["label_names"] == ["b", "a"]


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("header", "rows", "line"),
    [
        ("x,label", ["1,a", ",b"], "no value in row 2"),
        ("x,label", ["1,a", "nan,b"], "no value in row 2"),
        ("x,label", ["1,a", "1e999,b"], "row 2: expected a number"),
        ("x,species", ["1,2", "3,4"], "cannot tell what is to be learned"),
        ("x,label", ["1,a", "2,a"], "expected two labels or more"),
        ("x,label", ["1,a"], "expected two labels or more, got one"),
        ("x,label", [], "has no rows"),
        ("x,label", [f"1,{row}" for row in range(50_000)], "50,000 labels among 50,000 examples"),
        ("x,x,label", ["1,2,a"], "two columns are called x"),
    ],
)
def test_data_that_cannot_be_learned_from_are_code_2_and_nothing_is_written(
    capsys: Output, command: str, header: str, rows: list[str], line: str
) -> None:
    assert cli.run([command, write("a.csv", header, rows), *QUICK]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert line in said[0]
    assert not Path("runs").exists()


def test_a_recipe_and_data_at_once_and_neither_are_code_2(capsys: Output) -> None:
    assert cli.run(["train", write_wine(), "--data", "other.csv"]) == 2
    assert "wine.csv are the data" in capsys.readouterr().err
    assert cli.run(["train", "nowhere.csv"]) == 2
    assert "no file or folder nowhere.csv, and no such recipe" in capsys.readouterr().err
    assert cli.run(["train", "tables"]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_telling_the_recipe_needs_no_torch() -> None:
    script = f"""
import sys
from labelemb import __main__ as cli
assert cli.run(["compare", {write_wine()!r}, "--dry-run"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
