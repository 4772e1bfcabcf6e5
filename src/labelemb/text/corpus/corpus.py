"""The encoded corpus: token ids on disk, mapped into memory, cut into batches by length.

A folder holds `metadata.json`, `source.vocabulary.json`, `target.vocabulary.json`, and for each split and side
`SPLIT.SIDE.tokens.npy` (all ids one after another, int32) and `SPLIT.SIDE.offsets.npy` (where each line begins, and
the end, int64); for `valid` and `test` also the raw lines, `SPLIT.SIDE.txt`, to score against.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelemb.errors import InputError
from labelemb.files import read_lines
from labelemb.text.corpus.damage import are_lines, check_ids, check_metadata
from labelemb.text.corpus.vocab import BOS, EOS, PAD, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "labelemb.corpus"
VERSION = 1
SIDES = ("source", "target")
POOL_BATCHES = 100  # batches sorted by length together: little padding, and still other neighbours in every epoch

Ids = NDArray[np.int32]
Integers = NDArray[np.int64]


class Batch(NamedTuple):
    """B pairs, padded with 0. The source carries no `</s>`; S and T are the longest of the batch, T with `</s>`."""

    source: "Tensor"  # (B, S) int64
    source_lengths: "Tensor"  # (B,) int64
    target_in: "Tensor"  # (B, T) int64, begins with <s>
    target_out: "Tensor"  # (B, T) int64, ends in </s>
    target_lengths: "Tensor"  # (B,) int64, </s> counted


@dataclass(frozen=True)
class Side:
    """The encoded lines of one language: `tokens` (sum of lengths,) int32, `offsets` (N + 1,) int64."""

    tokens: Ids
    offsets: Integers

    @classmethod
    def encode(cls, vocabulary: Vocabulary, lines: Sequence[str]) -> "Side":
        """Raw lines in memory, as they are encoded on disk."""
        tokens, lengths = vocabulary.encode_lines(lines)
        return cls(tokens, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    @cached_property
    def lengths(self) -> Integers:
        """Tokens of each line, (N,) int64."""
        return np.diff(self.offsets)

    def padded(self, indices: Integers, *, room: int = 0) -> tuple[Integers, Integers]:
        """Lines as a matrix, padded with 0: (B, L + room) int64, L the longest; and their lengths (B,) int64."""
        lengths = self.lengths[indices]
        positions = np.arange(lengths.max())
        real = positions < lengths[:, None]  # (B, L)
        rows = np.zeros((len(indices), len(positions) + room), np.int64)
        rows[:, : len(positions)][real] = self.tokens[(self.offsets[indices][:, None] + positions)[real]]
        return rows, lengths


@dataclass(frozen=True)
class Split:
    """N pairs: both encoded sides, and for `valid` and `test` their raw lines (empty for `train`)."""

    source: Side
    target: Side
    source_lines: Sequence[str] = ()
    target_lines: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.source.lengths)


@dataclass(frozen=True)
class Corpus:
    """What `labelemb preprocess` wrote; `test` is None where none was given. With `share` one vocabulary is both."""

    folder: Path
    metadata: dict[str, Any]
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    train: Split
    valid: Split
    test: Split | None

    @classmethod
    def load(cls, folder: Path | str) -> "Corpus":
        """Map a corpus into memory; only vocabularies, offsets and the raw development and test lines are kept there.

        Raises:
            InputError: the folder holds no corpus, one of another version, or a damaged one.
        """
        folder = Path(folder)
        metadata = read_metadata(folder)
        if metadata is None:
            raise InputError(f"{folder}: expected a corpus with metadata.json; make it with `labelemb preprocess`")
        if metadata.get("version") != VERSION:
            version = metadata.get("version")
            raise InputError(f"{folder}: corpus version {version}, expected {VERSION}; preprocess again")
        check_metadata(folder, metadata, SIDES)
        vocabularies = [Vocabulary.load(folder / f"{side}.vocabulary.json") for side in SIDES]
        for side, vocabulary in zip(SIDES, vocabularies, strict=True):
            if vocabulary.fingerprint != metadata["vocabularies"][side]["sha256"]:
                raise InputError(f"{folder}: {side}.vocabulary.json is not the one it was encoded with")
        source, target = (vocabularies[0], vocabularies[0]) if metadata["share"] else vocabularies
        splits = {name: _load_split(folder, name) for name in metadata["splits"]}
        for split in splits.values():
            check_ids(folder, split.source.tokens, len(source))
            check_ids(folder, split.target.tokens, len(target))
        return cls(folder, metadata, source, target, splits["train"], splits["valid"], splits.get("test"))


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """The metadata of a corpus folder of any version; None where the folder holds something else."""
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) and metadata.get("format") == FORMAT else None


def _load_split(folder: Path, name: str) -> Split:
    sides = []
    for side in SIDES:
        tokens_path, offsets_path = (folder / f"{name}.{side}.{part}.npy" for part in ("tokens", "offsets"))
        try:
            tokens = np.load(tokens_path, mmap_mode="r", allow_pickle=False)
            offsets = np.load(offsets_path, allow_pickle=False)
        except Exception as error:  # NumPy's reader of headers has many
            raise InputError(f"{folder}: damaged corpus, preprocess again: {error}") from None
        if not (are_lines(tokens, offsets)):
            raise InputError(
                f"{tokens_path}: expected the int32 tokens that the offsets beside it count; preprocess again"
            )
        sides.append(Side(tokens, offsets))
    if len(sides[0].offsets) != len(sides[1].offsets):
        raise InputError(f"{folder}: the two sides of {name} differ in length; preprocess again")
    texts = [folder / f"{name}.{side}.txt" for side in SIDES]
    lines = [list(read_lines(path)) if name != "train" else [] for path in texts]
    for path, read in zip(texts, lines, strict=True):
        if name != "train" and len(read) != len(sides[0].offsets) - 1:
            raise InputError(f"{path}: {len(read)} lines, encoded are {len(sides[0].offsets) - 1}; preprocess again")
    return Split(sides[0], sides[1], lines[0], lines[1])


def batch_indices(split: Split, *, seed: int, epoch: int, pairs: int, tokens: int | None = None) -> list[Integers]:
    """The pairs of each batch of an epoch, (B,) int64 each; a function of (seed, epoch) alone.

    Every epoch has the same number of batches, and every pair is in one of them.

    Args:
        split: the pairs.
        seed: of the run.
        epoch: from 1 or 0, as the caller counts.
        pairs: pairs in a batch, of similar length: the sort is within random pools of 100 batches.
        tokens: instead of `pairs`, the most padded tokens that a batch may have on either side, `</s>` counted. The
            sort is over the whole corpus, ties at random. A longer pair is a batch of its own.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(split))
    source, target = split.source.lengths[order], split.target.lengths[order]
    if tokens is None:
        pool = np.arange(len(order)) // (pairs * POOL_BATCHES)
        order = order[np.lexsort((source, target, pool))]
        cuts = np.arange(pairs, len(order), pairs)
    else:
        size = np.maximum(source, target + 1)
        by_size = np.lexsort((source, target, size))
        order = order[by_size]
        cuts = _budget_cuts(size[by_size], tokens)
    batches = np.split(order, cuts)
    return [batches[index] for index in generator.permutation(len(batches))]


def _budget_cuts(sizes: Integers, budget: int) -> Integers:
    """Where batches begin (but the first) so that rows times the longest row stay in the budget; sizes ascend."""
    cuts, start = [], 0
    while start < len(sizes):
        window = sizes[start : start + max(1, budget // int(sizes[start]))]
        padded = window * np.arange(1, len(window) + 1)
        start += max(1, int(np.searchsorted(padded, budget, side="right")))
        cuts.append(start)
    return np.array(cuts[:-1], np.int64)


def make_batch(split: Split, indices: Integers) -> Batch:
    """The pairs with these indices (B,) as tensors on the CPU."""
    import torch

    source, source_lengths = split.source.padded(indices)
    target_out, target_lengths = split.target.padded(indices, room=1)
    target_out[np.arange(len(indices)), target_lengths] = EOS
    target_in = np.full_like(target_out, BOS)
    target_in[:, 1:] = target_out[:, :-1]
    target_in[target_in == EOS] = PAD  # shorter rows end before the last column
    return Batch(*map(torch.from_numpy, (source, source_lengths, target_in, target_out, target_lengths + 1)))


def ordered_indices(split: Split, *, pairs: int = 64) -> list[Integers]:
    """For evaluation: all pairs by source length, ties in order, cut into batches of `pairs`; (B,) int64 each."""
    order = np.argsort(split.source.lengths, kind="stable")
    return np.split(order, np.arange(pairs, len(order), pairs))


class SplitWriter:
    """Writes one split, block after block; `close` completes the files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._tokens = [_ArrayWriter(folder / f"{name}.{side}.tokens.npy", "<i4") for side in SIDES]
        self._offsets = [_ArrayWriter(folder / f"{name}.{side}.offsets.npy", "<i8") for side in SIDES]
        self._texts = [
            (folder / f"{name}.{side}.txt").open("w", encoding="utf-8", newline="\n") if name != "train" else None
            for side in SIDES
        ]
        for offsets in self._offsets:
            offsets.append(np.zeros(1, np.int64))

    def append(self, side: int, tokens: Ids, lengths: Integers, lines: Sequence[str]) -> None:
        """Add lines to side 0 (source) or 1 (target): tokens (sum of lengths,), lengths (N,), raw lines (N,)."""
        self._offsets[side].append(self._tokens[side].count + np.cumsum(lengths))
        self._tokens[side].append(tokens)
        text = self._texts[side]
        if text is not None:
            text.writelines(f"{line}\n" for line in lines)

    def close(self) -> None:
        """End all files."""
        for writer in (*self._tokens, *self._offsets, *self._texts):
            if writer is not None:
                writer.close()


class _ArrayWriter:
    """Appends to a one-dimensional .npy file whose length is known only at the end."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype)
        self.count = 0
        self._data_start = self._write_header()

    def _write_header(self) -> int:
        self._file.seek(0)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self.count += len(values)

    def close(self) -> None:
        # NumPy pads the header so that the length can be filled in afterwards.
        assert self._write_header() == self._data_start
        self._file.close()
