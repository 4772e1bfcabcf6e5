"""Texts as numbers, the network on them, and a run from a file to its test error."""

from pathlib import Path

import pytest
import torch

from labelemb.classify.ngrams import MOST, buckets_of
from labelemb.classify.sentences import SentenceSplit, load_sentences
from labelemb.classify.text_networks import NgramNetwork
from labelemb.errors import InputError
from labelemb.experiments.job import Job, execute
from labelemb.run_folder import RunFolder
from labelemb.settings.config import SentenceSettings
from labelemb.settings.recipe import load_recipe


def write_texts(path: Path, num_rows: int = 60) -> Path:
    rows = [
        f'"{("red fox", "blue whale")[row % 2]}, number {row}",{("land", "sea")[row % 2]}' for row in range(num_rows)
    ]
    path.write_text("\n".join(["sentence,label", *rows]) + "\n", encoding="utf-8")
    return path


def text_settings(path: Path, *overrides: str, **options: object) -> SentenceSettings:
    few = ["epochs=2", "model.buckets=512", "model.width=8", "model.hidden=[8]", "device=cpu", *overrides]
    settings = load_recipe("text-classes", few, {"data.path": path, **options}, beside=["emb"])
    assert isinstance(settings, SentenceSettings)
    return settings


def test_a_text_is_its_words_its_pairs_of_words_and_their_parts() -> None:
    # abc: the word, the pair that begins the text, <a ab bc c> <ab abc bc> <abc abc>
    assert len(buckets_of("abc", 2**30)) == 2 + 4 + 3 + 2
    assert buckets_of("Red fox", 512) == buckets_of("red  FOX", 512)
    assert set(buckets_of("red fox", 2**30)) != set(buckets_of("fox red", 2**30))
    assert set(buckets_of("猫は", 2**30)) & set(buckets_of("猫が", 2**30))
    assert buckets_of(" ", 512) == []
    numbers = buckets_of("word " * 5000, 16)
    assert len(numbers) == MOST
    assert min(numbers) >= 1
    assert max(numbers) <= 16


def test_buckets_are_the_same_on_every_machine_and_day() -> None:
    assert buckets_of("a", 1000) == [908, 276, 131, 143, 966]


def test_texts_of_unlike_length_are_padded_to_the_longest_of_a_batch() -> None:
    split = SentenceSplit.of([[3, 4, 5], [], [6]], torch.tensor([0, 1, 0]), 0)
    assert split.inputs(slice(None)).tolist() == [[3, 4, 5], [0, 0, 0], [6, 0, 0]]
    assert split.padded(torch.tensor([2, 1])).tolist() == [[6], [0]]
    assert SentenceSplit.of([[], []], torch.tensor([0, 1]), 7).inputs(slice(None)).tolist() == [[7], [7]]


def test_padding_changes_nothing_and_the_order_neither() -> None:
    network = NgramNetwork(3, buckets=20, width=4, hidden=(5,)).double()
    logits = network(torch.tensor([[3, 9, 0, 0], [9, 3, 0, 0]]))[0]
    expected = network(torch.tensor([[3, 9]]))[0]
    torch.testing.assert_close(logits, expected.expand(2, -1), rtol=1e-10, atol=1e-10)
    assert network(torch.zeros(1, 4, dtype=torch.int64))[0].isfinite().all()


@pytest.mark.parametrize("mode", ["baseline", "emb", "decoupled"])
def test_a_run_learns(tmp_path: Path, mode: str) -> None:
    settings = text_settings(write_texts(tmp_path / "a.csv"), "epochs=15", "optimizer.lr=0.02", mode=mode)
    folder = RunFolder(tmp_path / "run")
    execute(Job(settings, folder))
    assert folder.metrics[-1]["test_error"] == 0
    assert folder.inputs == {
        "kind": "texts",
        "label_names": ["land", "sea"],
        "shape": [MOST],
        "text_column": "sentence",
        "label_column": "label",
    }


def test_the_text_column_is_told_or_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("title,body,label\na,b,1\n")
    with pytest.raises(InputError, match=r"2 columns of words: title, body: give data\.text=COLUMN"):
        load_sentences(text_settings(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("size,label\n3,1\n")
    with pytest.raises(InputError, match=r"no column of words: give data\.text=COLUMN"):
        load_sentences(text_settings(tmp_path / "a.csv"))
    with pytest.raises(InputError, match=r"data\.text=text: no such column"):
        load_sentences(text_settings(write_texts(tmp_path / "b.csv"), "data.text=text"))


def test_an_empty_text_and_an_unknown_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nword,1\n  ,2\n")
    with pytest.raises(InputError, match="column text: no value in row 2"):
        load_sentences(text_settings(tmp_path / "a.csv"))
    settings = text_settings(write_texts(tmp_path / "b.csv"), "model.name=lstm")
    with pytest.raises(InputError, match=r"model\.name=lstm: expected ngrams"):
        execute(Job(settings, RunFolder(tmp_path / "run")))
