"""One split of a corpus: pairs of lines to tokens, without the empty and the too long, and what became of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labelemb.errors import InputError
from labelemb.text.corpus import lcsts
from labelemb.text.corpus.corpus import SIDES, Ids, Integers, SplitWriter
from labelemb.text.corpus.pairs import Pair, Stream, has_empty_side
from labelemb.text.corpus.vocab import UNK, Vocabulary

BLOCK_PAIRS = 8192  # pairs in memory as Python objects at a time


class Limits(NamedTuple):
    """How long training pairs may be; see labelemb.settings.preprocess.PreprocessOptions."""

    src_length: int
    tgt_length: int
    cut: bool
    allow_dropping: bool


@dataclass
class SplitReport:
    """What became of one split's pairs. `dropped` are those over a length limit, each counted once."""

    read: int = 0
    kept: int = 0
    empty: int = 0
    low_score: int = 0
    long_source: int = 0
    long_target: int = 0
    dropped: int = 0
    cut: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    unknown: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    longest: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))

    def lines(self, name: str) -> Iterator[str]:
        """The report in words."""
        left_out = [
            (self.empty, "with an empty side"),
            (self.low_score, f"scored under {lcsts.SMALLEST_SCORE}"),
            (self.dropped, f"too long ({self.long_source:,} by the source, {self.long_target:,} by the target)"),
        ]
        words = "".join(f", {count:,} {reason}" for count, reason in left_out if count)
        yield f"{name}: {self.kept:,} of {self.read:,} pairs" + (f"; left out{words[1:]}" if words else "")
        if self.cut:
            yield f"  {self.cut:,} sources cut"
        for side, tokens in self.tokens.items():
            mean, rate = tokens / max(1, self.kept), 100 * self.unknown[side] / max(1, tokens)
            longest = self.longest[side]
            yield f"  {side}: {tokens:,} tokens, {mean:.1f} a line, longest {longest:,}; unknown {rate:.2f} %"


def encode_split(
    name: str, stream: Stream, vocabularies: tuple[Vocabulary, Vocabulary], limits: Limits, folder: Path
) -> SplitReport:
    """Write the usable pairs of one split; the limits hold for `train` alone.

    Raises:
        InputError: the limits remove more than half of the pairs, none is left, or one of the development or test text
            has an empty side.
    """
    report = SplitReport()
    writer = SplitWriter(folder, name)
    try:
        pairs = _usable_pairs(stream(), name, report)
        while block := list(islice(pairs, BLOCK_PAIRS)):
            _encode_block(block, vocabularies, limits if name == "train" else None, writer, report)
    finally:
        writer.close()
    limited = report.kept + report.dropped
    if report.dropped > limited / 2 and not limits.allow_dropping:
        raise InputError(
            f"the length limits remove {report.dropped:,} of {limited:,} training pairs ({report.long_source:,} by "
            f"--src-length {limits.src_length}, {report.long_target:,} by --tgt-length {limits.tgt_length}, in "
            f"{vocabularies[0].unit} tokens): raise them, shorten sources with --cut, or say --allow-dropping"
        )
    if not report.kept:
        raise InputError(f"{name}: no pair is left of {report.read:,} read")
    return report


def _usable_pairs(pairs: Iterator[Pair], name: str, report: SplitReport) -> Iterator[Pair]:
    for pair in pairs:
        report.read += 1
        if not pair.wanted:
            report.low_score += 1
        elif not has_empty_side(pair):
            yield pair
        elif name == "train":
            report.empty += 1
        else:
            side = "target" if pair.source.strip() else "source"
            raise InputError(
                f"{name}, line {pair.line}: the {side} is empty; a score counts every line, so remove this pair from "
                "both sides"
            )


def _encode_block(
    block: list[Pair],
    vocabularies: tuple[Vocabulary, Vocabulary],
    limits: Limits | None,
    writer: SplitWriter,
    report: SplitReport,
) -> None:
    texts = [[pair.source for pair in block], [pair.target for pair in block]]
    encoded = [vocabulary.encode_lines(lines) for vocabulary, lines in zip(vocabularies, texts, strict=True)]
    if limits is not None:
        encoded = _limited(limits, encoded, report)
    report.kept += len(encoded[0][1])
    for index, (side, (tokens, lengths)) in enumerate(zip(SIDES, encoded, strict=True)):
        report.tokens[side] += len(tokens)
        report.unknown[side] += int((tokens == UNK).sum())
        report.longest[side] = max(report.longest[side], int(lengths.max(initial=0)))
        writer.append(index, tokens, lengths, texts[index])


def _limited(limits: Limits, encoded: list[tuple[Ids, Integers]], report: SplitReport) -> list[tuple[Ids, Integers]]:
    """The block without the pairs that are too long; with `cut` the sources' first tokens instead."""
    (source, source_lengths), (target, target_lengths) = encoded
    long_source, long_target = source_lengths > limits.src_length, target_lengths > limits.tgt_length
    dropped = long_target if limits.cut else long_source | long_target
    kept_lengths = np.minimum(source_lengths, limits.src_length)
    report.long_source += 0 if limits.cut else int(long_source.sum())
    report.long_target += int(long_target.sum())
    report.dropped += int(dropped.sum())
    report.cut += int((long_source & ~dropped).sum())
    return [
        _first_tokens(source, source_lengths, np.where(dropped, 0, kept_lengths), ~dropped),
        _first_tokens(target, target_lengths, np.where(dropped, 0, target_lengths), ~dropped),
    ]


def _first_tokens(
    tokens: Ids, lengths: Integers, wanted: Integers, kept: np.ndarray[Any, np.dtype[np.bool_]]
) -> tuple[Ids, Integers]:
    """Of each line its first `wanted` (N,) tokens, and the lengths of the lines that are kept."""
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(tokens)) - np.repeat(starts, lengths)  # of each token in its line
    return tokens[position < np.repeat(wanted, lengths)], wanted[kept]
