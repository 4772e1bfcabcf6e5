"""examples/language_model.py: what it says runs, and its losses are what they are called."""

import os
from pathlib import Path

import pytest
import torch
from examples.language_model import LOSSES, LanguageModel, Plan, main, read_text

SIZE = ("--words", "50", "--steps", "20", "--batch-size", "4", "--length", "8", "--hidden", "16", "--neighbors", "3")
LINES = [
    f"the {color} {animal} {verb} ." for color in ("red", "blue") for animal in ("dog", "cat") for verb in ("a", "b")
]


def small_text(folder: Path) -> Path:
    path = folder / "lines.txt"
    path.write_text("\n".join(LINES * 40) + "\n", encoding="utf-8")
    return path


def test_all_losses_train_the_same_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = main(["--text", str(small_text(tmp_path)), *SIZE])
    untrained = torch.tensor(13.0).log()  # of as many words, <unk> and <end> among them
    assert [*outcomes] == [*LOSSES]
    assert all(outcome.valid < untrained for outcome in outcomes.values())
    assert outcomes["decoupled, fused"].valid != outcomes["cross entropy"].valid
    if "linear_cross_entropy" in outcomes:
        assert outcomes["linear_cross_entropy"].valid == pytest.approx(outcomes["cross entropy"].valid, abs=1e-3)
    assert outcomes["decoupled, fused"].similar
    printed = capsys.readouterr().out
    assert not [name for name in LOSSES if f"\n{name}" not in printed]


def test_the_decoupled_loss_of_the_example_is_the_one_over_all_logits(tmp_path: Path) -> None:
    text = read_text(small_text(tmp_path), 50, None)
    torch.manual_seed(0)
    model = LanguageModel(len(text.vocabulary), 16)
    plan = Plan(1, 4, 8, 16, 3)
    loss_of, criterion = LOSSES["decoupled, fused"](model, plan)
    assert criterion is not None
    features, target = model(text.train[None, :8])[0], text.train[1:9]
    fused = loss_of(features, target)
    torch.testing.assert_close(fused, criterion(model.head(features), target))


def test_lines_become_numbers_of_the_most_frequent_words(tmp_path: Path) -> None:
    text = read_text(small_text(tmp_path), 4, None)
    assert text.vocabulary == ["<unk>", "the", ".", "<end>"]
    assert text.train[:5].tolist() == [1, 0, 0, 0, 2]
    assert len(text.train) + len(text.valid) == 6 * len(LINES) * 40


@pytest.mark.skipif("LABELEMB_DATA" not in os.environ, reason="LABELEMB_DATA names no folder with iwslt15-en-vi")
def test_the_example_s_own_text_has_a_vocabulary_of_that_size() -> None:
    text = read_text(Path(os.environ["LABELEMB_DATA"]) / "iwslt15-en-vi" / "train.en.gz", 40_000, None)
    assert len(text.vocabulary) == 40_000
    assert (text.train == 0).float().mean() < 0.01
