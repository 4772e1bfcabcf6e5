import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from labelemb.report.comparison import summary_text
from labelemb.report.page import write_report
from labelemb.report.summary import read_results
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, with a check that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


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
    page = read(write_report(read_results([tmp_path])))
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"} == set()
    addresses = [value for _, attrs in page.elements for name, value in attrs.items() if name in {"src", "href"}]
    assert len(addresses) == 3  # curves, heat map, calibration
    assert all((address or "").startswith("data:image/") for address in addresses)
    policy = next(attrs["content"] for tag, attrs in page.elements if tag == "meta" and "http-equiv" in attrs)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_has_an_alternative_text_and_is_whole(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    page = read(write_report(read_results([tmp_path])))
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert all(attrs["alt"] for attrs in images)
    curves = (images[0]["src"] or "").removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(curves) == (tmp_path / "curves.svg").read_bytes()


def test_names_are_text_and_never_elements(make_run: MakeRun, tmp_path: Path) -> None:
    nasty = "<script>alert('&amp;')</script>"
    run = make_run("emb", 0, label_names=[nasty, '"><img src=x>', "c"], settings={"note": nasty})
    run.write_environment({"command": nasty, "end": "now", "versions": {nasty: nasty}})
    page = read(write_report(read_results([tmp_path])))
    assert not any(tag == "script" for tag, _ in page.elements)
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 3
    assert page.text.count(nasty) >= 6


def test_modes_are_text_and_never_elements(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("<b>&", 0)
    path = write_report(read_results([tmp_path]))
    assert "&lt;b&gt;&amp;</th>" in path.read_text(encoding="utf-8")
    assert not any(tag == "b" for tag, _ in read(path).elements)
    assert read(path).text.count("<b>&") >= 4  # title, heading, lead, table


def test_words_of_test_sentences_are_text_and_never_elements(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0, recipe="iwslt15", metric="bleu")
    run.examples.mkdir()
    (run.examples / "examples.jsonl").write_text(json.dumps({"source": "<script>{{ title }}</script>"}) + "\n")
    page = read(write_report(read_results([tmp_path])))
    assert "<script>{{ title }}</script>" in page.text
    assert not any(tag == "script" for tag, _ in page.elements)


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
    text = read(write_report(read_results([tmp_path]))).text
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
    text = read(write_report(read_results([tmp_path]))).text
    similar = text[text.index("Most similar labels") :]
    assert re.search(r"từ7từ\d+ 0\.\d{3}", similar)
    assert "tok:none" in text
    assert "<unk> chó" in text


def test_example_images_are_in_the_page_under_their_labels_names(make_run: MakeRun, tmp_path: Path) -> None:
    from PIL import Image

    run = make_run("emb", 0, label_names=["cat", "<dog>"])
    run.examples.mkdir()
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 200).save(buffer, "PNG")
    (run.examples / "0001-0.png").write_bytes(buffer.getvalue())
    images = [attrs for tag, attrs in read(write_report(read_results([tmp_path]))).elements if tag == "img"]
    assert images[-1]["alt"] == "<dog>"
    assert images[-1]["src"] == "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_unfinished_runs_alone_make_no_page(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        make_run("emb", seed, done=5)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="runs: 2 unfinished"):
        write_report(read_results([tmp_path / "runs"]))
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_runs_alone_make_no_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0)
    run.write_metrics(run.metrics[1:])
    with pytest.raises(ValueError, match="runs: 1 damaged"):
        write_report(read_results([tmp_path / "runs"]))
    assert not list(tmp_path.rglob("report.html"))


def test_an_unknown_label_is_refused_before_anything_is_written(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    with pytest.raises(ValueError, match="no label 'eleven'"):
        write_report(read_results([tmp_path]), labels=["eleven"])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_reporting_imports_no_torch() -> None:
    code = "import sys, labelemb.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
