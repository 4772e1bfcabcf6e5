"""The paper's text scripts are labelemb commands, and work as its README prints them."""

import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.small_text import write_texts

from labelemb.run_folder import RunFolder

PAPER = Path(__file__).parents[2] / "paper"
FILES = [
    word
    for split in ("train", "test", "valid")
    for end in ("src", "tgt")
    for word in (f"-{split}_{end}", f"{split}.{end}")
]
LABEL_EMBEDDING = ["-unk", "-score", "emb"]
SMALL = ["epochs=1", "batch_size=20", "model.hidden=8", "emb.rank=4", "emb.soft_after=0.5", "decode.beam=2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PAPER)  # as `python paper/train.py` does
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the scripts set it: put back afterwards
    handler = signal.getsignal(signal.SIGINT)  # and so do the command's signals
    yield
    signal.signal(signal.SIGINT, handler)


def run_script(monkeypatch: pytest.MonkeyPatch, script: str, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"paper/{script}", *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PAPER / script), run_name="__main__")
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("config", "corpus", "share", "best"),
    [
        ("lcsts.yaml", "data/lcsts/lcsts.low.share.train.pt", ["-share"], "best_rouge_checkpoint.pt"),
        ("iwslt.yaml", "data/iwslt15/iwslt.low.train.pt", [], "best_bleu_checkpoint.pt"),
    ],
)
def test_readme_of_the_paper_works_as_printed(
    monkeypatch: pytest.MonkeyPatch, config: str, corpus: str, share: list[str], best: str
) -> None:
    write_texts(Path())
    assert run_script(monkeypatch, "preprocess.py", *FILES, "-save_data", corpus, "-lower", *share) == 0
    options = ["-gpus", "0", "-config", config, *LABEL_EMBEDDING]
    assert run_script(monkeypatch, "train.py", *options, "-loss", "emb", "-log", "label_embedding", *SMALL) == 0
    folder = RunFolder.at(Path(corpus).parent, "label_embedding", "emb", 0)
    assert folder.config["decode"]["replace_unknown"] is True
    assert run_script(monkeypatch, "predict.py", *options, "-restore", f"data/lcsts/label_embedding/{best}") == 0
    expected = (folder.path / "predictions.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert Path(corpus).with_name("label_embedding").joinpath("candidate.txt").read_text().splitlines() == expected


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(monkeypatch, "train.py", "-config", "iwslt.yaml", "-log", "plain", "--dry-run") == 0
    settings = yaml.safe_load(capsys.readouterr().out.removesuffix("---\n"))
    assert (settings["mode"], settings["recipe"]) == ("baseline", "plain")
    assert settings["decode"]["replace_unknown"] is False
    assert settings["data"]["path"] == "data/iwslt15/iwslt.low.train.pt"


def test_a_stopped_run_goes_on_with_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(Path())
    run_script(monkeypatch, "preprocess.py", *FILES, "-save_data", "data/iwslt15/iwslt.low.train.pt", "-lower")
    options = ["-config", "iwslt.yaml", "-loss", "emb", *SMALL]
    assert [run_script(monkeypatch, "train.py", *options) for _ in range(2)] == [0, 2]
    assert run_script(monkeypatch, "train.py", *options, "-restore", "data/iwslt15/label_embedding/checkpoint.pt") == 0
