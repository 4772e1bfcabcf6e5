"""A small transformer of random weights as the network of text-classes: skipped where transformers is missing."""

from pathlib import Path

import pytest
import torch
from tests.classify.test_sentences import text_settings, write_texts

from labelemb.classify.text_networks import encoder, make_text_network
from labelemb.errors import InputError
from labelemb.experiments.job import Job, execute
from labelemb.run_folder import RunFolder
from labelemb.settings.config import SentenceModelSettings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "fox", "blue", "whale", "number", ","]


@pytest.fixture
def model(tmp_path: Path) -> str:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    folder = tmp_path / "bert"
    transformers.BertTokenizerFast(vocab={word: place for place, word in enumerate(WORDS)}).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    return f"transformers:{folder}"


def test_padding_changes_nothing(model: str) -> None:
    settings = SentenceModelSettings(name=model)
    encode, padding = encoder(settings)
    (numbers,) = encode(["red fox"])
    assert numbers == [2, 5, 6, 3]
    network = make_text_network(settings, 3).eval()
    alone = network(torch.tensor([numbers]))[0]
    padded = network(torch.tensor([[*numbers, padding, padding]]))[0]
    torch.testing.assert_close(alone, padded, rtol=1e-5, atol=1e-6)


def test_a_run_trains_all_of_it(tmp_path: Path, model: str) -> None:
    settings = text_settings(write_texts(tmp_path / "a.csv"), f"model.name='{model}'", "epochs=8", "optimizer.lr=0.01")
    folder = RunFolder(tmp_path / "run")
    execute(Job(settings, folder))
    assert folder.metrics[-1]["test_error"] == 0


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = SentenceModelSettings(name="transformers:")
    with pytest.raises(InputError, match="expected ngrams, or --model transformers:NAME"):
        make_text_network(settings, 3)
    pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    with pytest.raises(InputError, match="no such model on this disk"):
        make_text_network(SentenceModelSettings(name=f"transformers:{tmp_path / 'none'}"), 3)
