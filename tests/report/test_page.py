import base64
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labelemb.report.comparison import summary_text
from labelemb.report.learned_labels import learned_tables
from labelemb.report.recipes import read_recipes
from labelemb.report.summary import read_results
from labelemb.report.write import page, write_report, write_side_by_side
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """The elements of a page, with a check that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open += [tag] * (tag not in VOID)
        self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.text += data

    @property
    def data(self) -> Any:
        """What the charts of the first recipe are drawn from."""
        return json.loads(self.scripts[0])["parts"][0]

    @property
    def words(self) -> str:
        """The text with single blanks."""
        return " ".join(self.text.split())


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def shown(folder: Path) -> Page:
    return Page(page(read_recipes([folder])).decode())


def test_report_writes_every_file_into_the_folder_it_was_given(make_run: MakeRun, tmp_path: Path) -> None:
    for mode in ("baseline", "emb"):
        for seed in range(2):
            make_run(mode, seed)
    folder = tmp_path / "runs" / "digits"
    page = write_report(read_results([folder]))
    assert page == folder / "report.html"
    expected = {"summary.json", "table.md", "curves.svg", "curves.png", "heatmap.svg", "heatmap.png", "report.html"}
    assert {path.name for path in folder.iterdir() if path.is_file()} == expected
    assert list(json.loads((folder / "summary.json").read_text())["modes"]) == ["baseline", "emb"]
    assert (folder / "curves.svg").read_bytes().startswith(b"<?xml")
    assert (folder / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_report_goes_where_it_is_told_and_merges_folders(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run(mode, 0).path for mode in ("baseline", "emb")]
    assert write_report(read_results(folders), output=tmp_path / "elsewhere") == tmp_path / "elsewhere" / "report.html"
    assert not (folders[0] / "report.html").exists()


def test_page_asks_for_nothing_outside_itself(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    made = shown(tmp_path)
    assert {tag for tag, _ in made.elements} & {"link", "iframe", "object", "base", "form"} == set()
    assert not [attrs for tag, attrs in made.elements if tag == "script" and "src" in attrs]
    leading_away = {attrs["href"] for tag, attrs in made.elements if tag == "a"}
    assert leading_away == {
        "#content",
        "https://arxiv.org/abs/1710.10393",
    }  # followed by who clicks, and else by nobody
    policy = next(attrs["content"] for tag, attrs in made.elements if tag == "meta" and "http-equiv" in attrs)
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in made.scripts[1:]]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{sums[0]}' 'sha256-{sums[1]}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def test_every_chart_has_an_alternative_text(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    made = shown(tmp_path)
    charts = {attrs["data-chart"]: attrs for _, attrs in made.elements if "data-chart" in attrs}
    assert set(charts) == {"curves", "heatmap", "plane", "reliability"}
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts.values())


def test_the_data_are_those_of_the_runs(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 3)
    data = shown(tmp_path).data
    (line,) = data["curves"]["groups"][0]["runs"]
    assert (line["seed"], line["done"], line["x"]) == (3, True, None)
    assert line["y"] == pytest.approx([100 * row["test_error"] for row in run.metrics], rel=1e-5)
    tables = learned_tables(read_results([tmp_path]))
    assert tables is not None
    np.testing.assert_allclose(data["labels"]["matrix"], tables.rows(range(10)), atol=1e-5)


def test_names_are_text_and_never_elements(make_run: MakeRun, tmp_path: Path) -> None:
    nasty = "<script>alert('&amp;')</script>"
    run = make_run("emb", 0, label_names=[nasty, '"><img src=x>', "c"], settings={"note": nasty})
    run.write_environment({"command": nasty, "end": "now", "versions": {nasty: nasty}})
    made = shown(tmp_path)
    assert len(made.scripts) == 3  # data, library, ours
    assert made.data["labels"]["names"][:2] == [nasty, '"><img src=x>']
    assert not any(tag == "img" for tag, _ in made.elements)
    assert made.text.count(nasty) >= 6


def test_modes_are_text_and_never_elements(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("<b>&", 0)
    path = write_report(read_results([tmp_path]))
    assert "&lt;b&gt;&amp;</bdi></th>" in path.read_text(encoding="utf-8")
    assert not any(tag == "b" for tag, _ in read(path).elements)
    assert read(path).text.count("<b>&") >= 4  # title, heading, lead, table


def test_words_of_test_sentences_are_text_and_never_elements(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0, recipe="iwslt15", metric="bleu")
    run.examples.mkdir()
    (run.examples / "examples.jsonl").write_text(json.dumps({"source": "<script>{{ title }}</script>"}) + "\n")
    made = shown(tmp_path)
    assert "<script>{{ title }}</script>" in made.text
    assert len(made.scripts) == 3


def test_runs_are_read_once(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(mode, 0) for mode in ("baseline", "emb")]
    results = read_results([tmp_path])
    for run in runs:
        for name in ("config.yaml", "metrics.jsonl", "environment.json", "evaluation.json"):
            (run.path / name).unlink()
    assert "emb, seed 0" in read(write_report(results)).text
    assert summary_text(results).splitlines()[3].startswith("emb")


def test_a_number_can_be_traced_to_settings_versions_and_commands(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0)
    run = make_run("emb", 7)
    text = shown(tmp_path).text
    final = run.metrics[-1]["test_error"]
    for fact in (
        "optimizer.lr",
        "0.001",
        "versions.torch",
        "2.13.0",
        "labelemb compare digits",
        "emb, seed 7",
        f"{final:.6g}",
    ):
        assert fact in text


def test_text_shows_its_words_and_the_signature(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["<pad>", *(f"từ{i}" for i in range(200))]
    words = {"report": {"words": ["từ7", "từ150"]}}
    run = make_run("emb", 0, recipe="iwslt15", metric="bleu", label_names=names, rank=4, settings=words)
    run.examples.mkdir()
    example = {"source": "the dog", "reference": "con chó", "output": "<unk> chó"}
    (run.examples / "examples.jsonl").write_text(json.dumps(example) + "\n", encoding="utf-8")
    text = shown(tmp_path).text
    similar = text[text.index("Most similar labels") :]
    assert re.search(r"từ7\s*từ\d+ 0\.\d{3}", similar)
    assert "tok:none" in text
    assert "<unk> chó" in text


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), shade).save(buffer, "PNG")
    return buffer.getvalue()


def keep_answers(run: RunFolder, predicted: Sequence[int], pictures: Mapping[str, bytes]) -> None:
    """Answers to four images of labels 0, 1, 0, 1, and pictures of some."""
    run.examples.mkdir()
    record = {"label": [0, 1, 0, 1], "predicted": [*predicted], "certainty": [0.5, 0.6, 0.7, 0.8]}
    (run.examples / "answers.json").write_text(json.dumps(record))
    for name, content in pictures.items():
        (run.examples / name).write_bytes(content)


def test_images_that_modes_answer_differently_are_shown_with_the_answers(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["cat", "<dog>"]
    keep_answers(make_run("baseline", 0, label_names=names), [0, 0, 1, 1], {"item-000002.png": picture(9)})
    keep_answers(make_run("emb", 0, label_names=names), [0, 0, 0, 1], {"item-000001.png": picture(200)})
    made = shown(tmp_path)
    (image,) = [attrs for tag, attrs in made.elements if tag == "img"]  # on item 1 both are wrong alike
    assert image["alt"] == "cat"
    assert image["src"] == "data:image/png;base64," + base64.b64encode(picture(9)).decode()
    assert "label cat baseline: <dog>, 70% ✗emb: cat, 70% ✓" in made.words


def test_pictures_of_labels_are_data_for_the_label_map(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0, label_names=["cat", "<dog>"])
    run.examples.mkdir()
    for name in ("0000-0.png", "0001-0.png", "0001-1.png", "0001-2.png"):
        (run.examples / name).write_bytes(picture(200))
    made = shown(tmp_path)
    assert {label: len(found) for label, found in made.data["images"].items()} == {"0": 1, "1": 2}
    assert "from before answers to single images were kept" in made.words


def test_damaged_answers_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0)
    keep_answers(run, [0, 1], {})
    make_run("baseline", 0)
    with pytest.raises(ValueError, match=r"answers.json is damaged: its lists differ in length"):
        write_report(read_results([tmp_path]))


def test_unfinished_runs_alone_make_a_page_that_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        make_run("emb", seed, done=5)
    made = shown(tmp_path / "runs")
    assert "No run has finished yet" in made.words
    assert "emb, seed 1, has not ended: under way or stopped at epoch 5 of 30." in made.words
    assert [run["done"] for run in made.data["curves"]["groups"][0]["runs"]] == [False, False]


def test_damaged_runs_alone_make_a_page_that_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0)
    run.write_metrics(run.metrics[1:])
    made = shown(tmp_path / "runs")
    assert "emb, seed 0, is damaged:" in made.words
    assert "no row of epoch 1" in made.words


def test_a_run_that_diverged_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0)
    run = make_run("emb", 0)
    run.write_metrics([row | {"test_error": math.nan} for row in run.metrics])
    made = shown(tmp_path)
    assert "emb, seed 0, ended at epoch 30 of 30 without a result: its numbers are not finite." in made.words


def test_several_recipes_stand_in_one_page(make_run: MakeRun, tmp_path: Path) -> None:
    for recipe in ("digits", "mnist-mlp"):
        make_run("emb", 0, recipe=recipe)
    recipes = read_recipes([tmp_path / "runs"])
    made = read(write_side_by_side(recipes, tmp_path / "both"))
    assert [attrs["id"] for tag, attrs in made.elements if tag == "article"] == ["recipe-0", "recipe-1"]
    summaries = json.loads((tmp_path / "both" / "summary.json").read_text())["recipes"]
    assert [each["recipe"] for each in summaries] == ["digits", "mnist-mlp"]


def test_every_figure_comes_as_pdf_too(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    write_report(read_results([tmp_path]), every_figure=True)
    figures = {f"{name}.{kind}" for name in ("curves", "heatmap", "calibration") for kind in ("svg", "png", "pdf")}
    assert {path.name for path in tmp_path.glob("*.[spd][vnd][gf]")} == figures
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_an_unknown_label_is_refused_before_anything_is_written(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    with pytest.raises(ValueError, match="no label 'eleven'"):
        write_report(read_results([tmp_path]), labels=["eleven"])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_reporting_imports_no_torch() -> None:
    code = "import sys, labelemb.report.write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
