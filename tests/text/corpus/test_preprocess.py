"""Parallel text to a corpus: what is kept, what is left out, what is refused."""

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from labelemb.settings.preprocess import PreprocessOptions
from labelemb.text.corpus import encode
from labelemb.text.corpus.corpus import Corpus
from labelemb.text.corpus.preprocess import preprocess
from labelemb.text.corpus.vocab import Vocabulary

TRAIN = [("The cat", "Con mèo"), ("A dog barks", "Một con chó sủa"), ("The end", "Hết")]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def with_files(corpus: Path, paths: list[Path]) -> PreprocessOptions:
    """Options with the files in the order of the fields: train, valid, test, source before target."""
    names = [f"{split}_{end}" for split in ("train", "valid", "test") for end in ("src", "tgt")]
    files: dict[str, Any] = dict(zip(names, paths, strict=True))
    return PreprocessOptions(corpus, **files)


def options(folder: Path, train: list[tuple[str, str]] = TRAIN, **changes: Any) -> PreprocessOptions:
    """Options over freshly written files; the development and the test text are two pairs."""
    paths: list[Path] = []
    for name, pairs in (("train", train), ("valid", TRAIN[:2]), ("test", [("The bird", "Con chim"), ("Dog", "Chó")])):
        paths += [write(folder / f"{name}.{side}", [pair[side] for pair in pairs]) for side in (0, 1)]
    return dataclasses.replace(with_files(folder / "corpus", paths), **changes)


def decoded(corpus: Corpus) -> list[tuple[str, str]]:
    """The training pairs as text."""
    split = corpus.train
    texts = []
    for side, vocabulary in ((split.source, corpus.source_vocabulary), (split.target, corpus.target_vocabulary)):
        bounds = zip(side.offsets[:-1], side.offsets[1:], strict=True)
        texts.append([vocabulary.decode(side.tokens[start:end].tolist()) for start, end in bounds])
    return list(zip(*texts, strict=True))


def test_the_corpus_holds_the_pairs_and_the_report_counts_them(tmp_path: Path) -> None:
    asked = options(tmp_path, lower=True)
    report = preprocess(asked)
    corpus = Corpus.load(asked.save_data)
    assert decoded(corpus) == [(source.lower(), target.lower()) for source, target in TRAIN]
    assert corpus.test is not None
    assert corpus.test.source_lines == ["The bird", "Dog"]  # raw: the score decides about case
    assert corpus.metadata["splits"]["test"] == dataclasses.asdict(report.splits["test"])
    assert report.splits["test"].unknown == {"source": 1, "target": 1}
    assert report.vocabulary_sizes == {"source": 10, "target": 10}
    assert "test: 2 of 2 pairs\n  source: 3 tokens, 1.5 a line, longest 2; unknown 33.33 %" in str(report)
    limits = {"src_length": 50, "tgt_length": 50, "cut": False}
    assert {key: corpus.metadata[key] for key in ("unit", "lower", "share", "limits")} == {
        "unit": "word",
        "lower": True,
        "share": False,
        "limits": limits,
    }


@pytest.mark.parametrize("blocks", [1, 2, 8192])
def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    monkeypatch.setattr(encode, "BLOCK_PAIRS", blocks)
    asked = options(tmp_path)
    preprocess(asked)
    assert decoded(Corpus.load(asked.save_data)) == TRAIN


def test_compressed_text_is_read_as_it_is(tmp_path: Path) -> None:
    asked = options(tmp_path)
    compressed = tmp_path / "train.0.gz"
    compressed.write_bytes(gzip.compress((tmp_path / "train.0").read_bytes()))
    preprocess(dataclasses.replace(asked, train_src=compressed))
    assert decoded(Corpus.load(asked.save_data)) == TRAIN


def test_long_training_pairs_are_left_out_and_other_texts_kept(tmp_path: Path) -> None:
    asked = options(tmp_path, src_length=2, tgt_length=2)
    report = preprocess(asked)
    assert decoded(Corpus.load(asked.save_data)) == [TRAIN[0], TRAIN[2]]
    train = report.splits["train"]
    assert (train.read, train.kept, train.dropped, train.long_source, train.long_target) == (3, 2, 1, 1, 1)
    assert report.splits["valid"].kept == 2
    assert "train: 2 of 3 pairs; left out 1 too long (1 by the source, 1 by the target)" in str(report)


def test_a_cut_source_keeps_its_first_tokens(tmp_path: Path) -> None:
    asked = options(tmp_path, src_length=1, cut=True, tgt_length=3)
    report = preprocess(asked)
    assert decoded(Corpus.load(asked.save_data)) == [("The", "Con mèo"), ("The", "Hết")]
    assert (report.splits["train"].cut, report.splits["train"].dropped) == (2, 1)


def test_limits_that_remove_most_pairs_are_refused_unless_told(tmp_path: Path) -> None:
    asked = options(tmp_path, src_length=1)
    with pytest.raises(ValueError, match=r"limits remove 3 of 3 training pairs \(3 by --src-length 1, 0 by --tgt"):
        preprocess(asked)
    asked = options(tmp_path, tgt_length=1)
    with pytest.raises(ValueError, match="--allow-dropping"):
        preprocess(asked)
    preprocess(dataclasses.replace(asked, allow_dropping=True))
    assert decoded(Corpus.load(asked.save_data)) == [TRAIN[2]]


def test_an_empty_training_side_is_counted_and_shifts_nothing(tmp_path: Path) -> None:
    asked = options(tmp_path, [TRAIN[0], ("", "x"), ("y", " \u3000"), *TRAIN[1:]])
    report = preprocess(asked)
    corpus = Corpus.load(asked.save_data)
    assert decoded(corpus) == TRAIN
    assert report.splits["train"].empty == 2
    assert "train: 3 of 5 pairs; left out 2 with an empty side" in str(report)
    assert "y" not in corpus.source_vocabulary.ids


def test_an_empty_test_side_is_an_error(tmp_path: Path) -> None:
    asked = options(tmp_path)
    write(tmp_path / "test.1", ["Con chim", ""])
    with pytest.raises(ValueError, match="test, line 2: the target is empty"):
        preprocess(asked)


def test_different_line_counts_are_an_error(tmp_path: Path) -> None:
    asked = options(tmp_path)
    write(tmp_path / "train.1", ["a"])
    with pytest.raises(ValueError, match=r"train\.0 has 3 lines, .*train\.1 has 1"):
        preprocess(asked)
    write(tmp_path / "train.1", ["a"] * 1005)
    with pytest.raises(ValueError, match=r"train\.0 has 3 lines, .*train\.1 has 1,005"):
        preprocess(asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_src": None}, "--train-src is missing"),
        ({"test_tgt": None}, "--test-tgt is missing"),
        ({"valid_src": Path("none.txt")}, r"--valid-src none\.txt: no such file"),
        ({"lcsts": Path("x")}, "--lcsts contradicts --train-src"),
        ({"char": True, "bpe": 100}, "exclude each other"),
        ({"bpe": 0}, "a vocabulary of 0 has no room"),
        ({"bpe": 9_999_999_999}, "--bpe 9999999999: expected at most 1,000,000"),
        ({"src_length": 0}, "--src-length 0: expected 1 or more"),
        ({"share": True, "tgt_vocab": Path("x")}, "--tgt-vocab contradicts --share"),
        ({"share": True, "tgt_vocab_size": 7}, "--tgt-vocab-size 7 contradicts --share"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(options(tmp_path, **changes))
    assert not (tmp_path / "corpus").exists()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = options(tmp_path)
    before = sorted(os.listdir(tmp_path))

    def interrupt(*_: object) -> None:
        assert (tmp_path / ".corpus.partial").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(encode, "_limited", interrupt)
    with pytest.raises(KeyboardInterrupt):
        preprocess(asked)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_killed_run_is_swept_away_by_the_next(tmp_path: Path) -> None:
    asked = options(tmp_path)
    (tmp_path / ".corpus.partial").mkdir()
    write(tmp_path / ".corpus.partial" / "half.npy", ["half"])
    preprocess(asked)
    assert decoded(Corpus.load(asked.save_data)) == TRAIN
    assert not (tmp_path / ".corpus.partial").exists()
    assert not (asked.save_data / "half.npy").exists()


def test_the_same_settings_replace_a_corpus_and_others_do_not(tmp_path: Path) -> None:
    asked = options(tmp_path)
    preprocess(asked)
    preprocess(options(tmp_path, TRAIN[:2]))
    assert decoded(Corpus.load(asked.save_data)) == TRAIN[:2]
    with pytest.raises(ValueError, match="holds a corpus with lower False, asked is True"):
        preprocess(dataclasses.replace(asked, lower=True))
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    asked = options(tmp_path)
    asked.save_data.mkdir()
    write(asked.save_data / "letter.txt", ["mine"])
    with pytest.raises(ValueError, match="holds something that is no corpus"):
        preprocess(asked)
    assert os.listdir(asked.save_data) == ["letter.txt"]


def test_a_shared_vocabulary_counts_both_sides(tmp_path: Path) -> None:
    asked = options(tmp_path, [("a b", "b c")], share=True)
    preprocess(asked)
    corpus = Corpus.load(asked.save_data)
    assert corpus.source_vocabulary is corpus.target_vocabulary
    assert corpus.source_vocabulary.tokens[4:] == ("b", "a", "c")


def test_joint_subwords_of_the_asked_size_restore_the_text(tmp_path: Path) -> None:
    asked = options(tmp_path, [("the hat, the hat!", "der Hut, der Hut!")] * 4, share=True, bpe=25)
    preprocess(asked)
    corpus = Corpus.load(asked.save_data)
    assert (corpus.metadata["unit"], len(corpus.source_vocabulary)) == ("bpe", 25)
    assert decoded(corpus)[0] == ("the hat, the hat!", "der Hut, der Hut!")


def test_an_existing_vocabulary_is_used(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    Vocabulary.build(["dog the"], unit="word", lower=True, size=10).save(path)
    asked = options(tmp_path, src_vocab=path)
    preprocess(asked)
    corpus = Corpus.load(asked.save_data)
    assert corpus.source_vocabulary == Vocabulary.load(path)
    assert decoded(corpus)[0] == ("the <unk>", "Con mèo")
    with pytest.raises(ValueError, match="asked is unit char"):
        preprocess(dataclasses.replace(asked, save_data=tmp_path / "other", char=True))


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    asked = options(tmp_path)
    preprocess(asked)
    metadata = json.loads((asked.save_data / "metadata.json").read_text())
    assert (metadata["format"], metadata["version"]) == ("labelemb.corpus", 1)
    assert metadata["settings"]["src_vocab_size"] == 50000


@pytest.mark.skipif("LABELEMB_DATA" not in os.environ, reason="LABELEMB_DATA names no folder with iwslt15-en-vi")
def test_iwslt15_has_the_vocabularies_of_the_paper(tmp_path: Path) -> None:
    folder = Path(os.environ["LABELEMB_DATA"]) / "iwslt15-en-vi"
    paths = [folder / f"{name}.{end}.gz" for name in ("train", "tst2012", "tst2013") for end in ("en", "vi")]
    report = preprocess(dataclasses.replace(with_files(tmp_path / "corpus", paths), lower=True))
    assert report.vocabulary_sizes == {"source": 47861, "target": 22443}
    assert {name: split.kept for name, split in report.splits.items()} == {"train": 122206, "valid": 1553, "test": 1268}
