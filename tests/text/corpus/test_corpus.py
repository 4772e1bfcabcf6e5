"""The encoded corpus and its batches."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from labelemb.files import read_lines
from labelemb.settings.preprocess import PreprocessOptions
from labelemb.text.corpus.corpus import (
    Corpus,
    Side,
    Split,
    SplitWriter,
    batch_indices,
    make_batch,
    ordered_indices,
)
from labelemb.text.corpus.preprocess import preprocess


def side(lengths: list[int], first: int = 4) -> Side:
    """Lines of the given lengths whose tokens are all different."""
    tokens = np.arange(first, first + sum(lengths), dtype=np.int32)
    return Side(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@pytest.fixture
def split() -> Split:
    generator = np.random.default_rng(0)
    return Split(side(generator.integers(1, 51, 1003).tolist()), side(generator.integers(1, 51, 1003).tolist()))


def test_a_batch_holds_the_pairs_as_a_loop_writes_them(split: Split) -> None:
    indices = np.array([5, 0, 1002, 17])
    batch = make_batch(split, indices)
    for row, index in enumerate(indices):
        source, target = (
            lines.tokens[lines.offsets[index] : lines.offsets[index + 1]].tolist()
            for lines in (split.source, split.target)
        )
        for tensor, tokens in (
            (batch.source, source),
            (batch.target_in, [2, *target]),
            (batch.target_out, [*target, 3]),
        ):
            assert tensor[row].tolist() == tokens + [0] * (tensor.shape[1] - len(tokens))
        assert (int(batch.source_lengths[row]), int(batch.target_lengths[row])) == (len(source), len(target) + 1)
    assert batch.source.shape[1] == batch.source_lengths.max()
    assert batch.target_in.shape == batch.target_out.shape == (4, int(batch.target_lengths.max()))
    assert {str(tensor.dtype) for tensor in batch} == {"torch.int64"}


@pytest.mark.parametrize("tokens", [None, 300])
def test_every_pair_is_in_one_batch_of_every_epoch(split: Split, tokens: int | None) -> None:
    counts = []
    for epoch in (1, 2):
        cut = batch_indices(split, seed=0, epoch=epoch, pairs=64, tokens=tokens)
        assert sorted(np.concatenate(cut).tolist()) == list(range(1003))
        counts.append(len(cut))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("tokens", [None, 300])
def test_seed_and_epoch_decide_the_batches(split: Split, tokens: int | None) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [cut.tolist() for cut in batch_indices(split, seed=seed, epoch=epoch, pairs=64, tokens=tokens)]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_batches_have_the_asked_number_of_pairs_of_similar_length(split: Split) -> None:
    cut = batch_indices(split, seed=0, epoch=1, pairs=64)
    assert sorted(map(len, cut)) == [1003 % 64] + [64] * (1003 // 64)
    spread = [np.ptp(split.target.lengths[indices]) for indices in cut]
    assert np.mean(spread) < 6  # 49 without the sort


def test_a_token_budget_holds_and_is_used(split: Split) -> None:
    cut = batch_indices(split, seed=0, epoch=1, pairs=64, tokens=300)
    padded = [
        len(indices) * int(max(split.source.lengths[indices].max(), split.target.lengths[indices].max() + 1))
        for indices in cut
    ]
    assert max(padded) <= 300
    assert np.mean(padded) > 250


def test_a_budget_is_used_to_the_last_token() -> None:
    cut = batch_indices(Split(side([4] * 8), side([3] * 8)), seed=0, epoch=1, pairs=64, tokens=16)
    assert [len(indices) for indices in cut] == [4, 4]


def test_a_pair_over_the_budget_is_a_batch_of_its_own() -> None:
    cut = batch_indices(Split(side([9, 1, 9]), side([1, 1, 1])), seed=0, epoch=1, pairs=64, tokens=8)
    assert sorted(indices.tolist() for indices in cut) == [[0], [1], [2]]


def test_evaluation_reads_every_pair_once_by_length(split: Split) -> None:
    order = np.concatenate(ordered_indices(split, pairs=10))
    assert sorted(order.tolist()) == list(range(1003))
    assert (np.diff(split.source.lengths[order]) >= 0).all()


def test_arrays_written_in_blocks_are_read_back(tmp_path: Path) -> None:
    lengths = np.arange(1, 1200)
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    writer = SplitWriter(tmp_path, "train")
    cut = int(lengths[:700].sum())
    for index in (0, 1):
        writer.append(index, tokens[:cut], lengths[:700], [])
        writer.append(index, tokens[cut:], lengths[700:], [])
    writer.close()
    assert np.load(tmp_path / "train.source.tokens.npy").tolist() == tokens.tolist()
    assert np.diff(np.load(tmp_path / "train.target.offsets.npy")).tolist() == lengths.tolist()


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "\ufeffa\u2028b\x0bc\r\n\u3000\n\nlast"
    (tmp_path / "a.txt").write_bytes(text.encode())
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write(text.encode())
    for name in ("a.txt", "a.txt.gz"):
        assert list(read_lines(tmp_path / name)) == ["a\u2028b\x0bc", "\u3000", "", "last"]


def test_bad_text_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nb\xe4d\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: byte 2 \(0xe4\) is not UTF-8"):
        list(read_lines(path))
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        list(read_lines(tmp_path / "none.txt"))
    damaged = tmp_path / "a.gz"
    damaged.write_bytes(gzip.compress(b"line\n" * 1000)[:30])
    with pytest.raises(ValueError, match=r"a\.gz: cannot be read"):
        list(read_lines(damaged))


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.en").write_text("a b\nc\n")
        (tmp_path / f"{name}.vi").write_text("x\ny z\n")
    train, valid = ([tmp_path / f"{name}.{end}" for end in ("en", "vi")] for name in ("train", "valid"))
    preprocess(PreprocessOptions(tmp_path / "corpus", train[0], train[1], valid[0], valid[1]))
    return tmp_path / "corpus"


def test_a_loaded_corpus_is_mapped_not_read(corpus_folder: Path) -> None:
    corpus = Corpus.load(corpus_folder)
    assert isinstance(corpus.train.source.tokens, np.memmap)
    assert corpus.test is None
    assert (len(corpus.train), corpus.train.source_lines) == (2, [])
    assert corpus.valid.target_lines == ["x", "y z"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.json", "{}", "expected a corpus with metadata.json"),
        ("metadata.json", '{"format": "labelemb.corpus", "version": 0}', "corpus version 0, expected 1"),
        ("metadata.json", '{"format": "labelemb.corpus", "version": 1}', "metadata.json is damaged: expected vocab"),
        ("train.source.tokens.npy", "", "damaged corpus"),
        ("train.source.tokens.npy", "\x93NUMPY\x01\x00\x10\x00{'descr': (((((((", "damaged corpus"),
        ("valid.target.txt", "x\n", "valid.target.txt: 1 lines, encoded are 2"),
        ("target.vocabulary.json", None, "target.vocabulary.json is not the one it was encoded with"),
        ("train.source.tokens.npy", None, "expected the int32 tokens"),
    ],
)
def test_a_damaged_corpus_is_refused(corpus_folder: Path, name: str, content: str | None, message: str) -> None:
    other = (corpus_folder / name.replace("target", "source").replace("train.source", "valid.target")).read_bytes()
    if content is None and name.startswith("train"):
        np.save(corpus_folder / name, np.zeros(2, np.int32))
    elif content is None:
        (corpus_folder / name).write_bytes(other)
    else:
        (corpus_folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Corpus.load(corpus_folder)


@pytest.mark.parametrize("ids", [[4, 5, 99], [4, 5, -1]])
def test_ids_that_the_vocabulary_does_not_have_are_refused(corpus_folder: Path, ids: list[int]) -> None:
    np.save(corpus_folder / "train.source.tokens.npy", np.array(ids, np.int32))
    with pytest.raises(ValueError, match=r"damaged corpus, ids -?\d+ to \d+ of 7 tokens"):
        Corpus.load(corpus_folder)


@pytest.mark.parametrize("offsets", [[0, 3, 3], [1, 2, 3], [0, 5, 3], [[0, 2, 3]], []])
def test_offsets_that_are_no_places_of_lines_are_refused(corpus_folder: Path, offsets: list[object]) -> None:
    np.save(corpus_folder / "train.source.offsets.npy", np.array(offsets, np.int64))
    with pytest.raises(ValueError, match="expected the int32 tokens that the offsets beside it count"):
        Corpus.load(corpus_folder)
