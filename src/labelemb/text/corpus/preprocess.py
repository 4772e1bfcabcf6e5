"""Parallel text, or LCSTS, to an encoded corpus: `labelemb preprocess`."""

import os
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from labelemb.errors import InputError
from labelemb.files import named, write_json
from labelemb.settings.preprocess import PreprocessOptions
from labelemb.text.corpus import lcsts
from labelemb.text.corpus.corpus import FORMAT, SIDES, VERSION, read_metadata
from labelemb.text.corpus.encode import Limits, SplitReport, encode_split
from labelemb.text.corpus.pairs import Stream, has_empty_side, headlines, parallel_lines
from labelemb.text.corpus.vocab import Vocabulary

SPLITS = ("train", "valid", "test")
MOST_SUBWORDS = 1_000_000


@dataclass(frozen=True)
class PreprocessReport:
    """Counts, lengths, unknown rates; `str()` is the text that the command prints."""

    splits: dict[str, SplitReport]
    vocabulary_sizes: dict[str, int]

    def __str__(self) -> str:
        sizes = ", ".join(f"{side} {size:,}" for side, size in self.vocabulary_sizes.items())
        lines = chain.from_iterable(split.lines(name) for name, split in self.splits.items())
        return "\n".join([*lines, f"vocabulary: {sizes}"])


def preprocess(options: PreprocessOptions) -> PreprocessReport:
    """Write the corpus folder, all of it or nothing.

    Training pairs with an empty side are left out and counted; an empty side in the development or test text is an
    error, because a score counts every line. Vocabularies are counted over all training pairs without an empty side,
    before the length limits, which hold for training alone.

    Raises:
        InputError: contradictory options, files that are missing, damaged or of different numbers of lines, limits
            that remove more than half of the training pairs, a folder that holds something else.
    """
    _check_options(options)
    streams = _streams(options)
    _check_folder(options)
    folder = options.save_data.resolve()
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with named(folder):
            report = _write_corpus(options, streams, unfinished)
        _replace_folder(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _check_options(options: PreprocessOptions) -> None:
    if options.char and options.bpe is not None:
        raise InputError("--char and --bpe exclude each other: tokens are characters or subwords")
    for name in ("src_length", "tgt_length"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    if options.bpe is not None and options.bpe > MOST_SUBWORDS:  # the trainer takes memory for all of them at once
        raise InputError(f"--bpe {options.bpe}: expected at most {MOST_SUBWORDS:,}")
    if options.share and options.tgt_vocab is not None:
        raise InputError("--tgt-vocab contradicts --share: the one vocabulary is --src-vocab")
    if options.share and options.tgt_vocab_size not in (options.src_vocab_size, PreprocessOptions.tgt_vocab_size):
        raise InputError(
            f"--tgt-vocab-size {options.tgt_vocab_size} contradicts --share: the one vocabulary has "
            f"--src-vocab-size {options.src_vocab_size}"
        )


def _streams(options: PreprocessOptions) -> dict[str, Stream]:
    """What reads each split, after a look whether all files are there."""
    given = {name: (getattr(options, f"{name}_src"), getattr(options, f"{name}_tgt")) for name in SPLITS}
    if options.lcsts is not None:
        if any(path for paths in given.values() for path in paths):
            raise InputError("--lcsts contradicts --train-src and the other files: give one or the other")
        found = {name: lcsts.split_path(options.lcsts, name) for name in SPLITS}
        return {name: partial(headlines, path, name) for name, path in found.items()}
    streams: dict[str, Stream] = {}
    for name, paths in given.items():
        for path, end in zip(paths, ("src", "tgt"), strict=True):
            if path is None and (name != "test" or any(paths)):
                raise InputError(f"--{name}-{end} is missing: expected a text file, one sentence a line")
            if path is not None and not path.is_file():
                raise InputError(f"--{name}-{end} {path}: no such file")
        if paths[0] is not None:
            streams[name] = partial(parallel_lines, *paths)
    return streams


def _check_folder(options: PreprocessOptions) -> None:
    folder = options.save_data
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    metadata = read_metadata(folder)
    if metadata is None or not isinstance(metadata.get("settings"), dict):
        raise InputError(f"--save-data {folder}: holds something that is no corpus; give another folder")
    for name, value in options.settings().items():
        old = metadata["settings"].get(name)
        if old != value:
            raise InputError(
                f"--save-data {folder}: holds a corpus with {name} {old!r}, asked is {value!r}; "
                "give another folder or remove it"
            )


def _write_corpus(options: PreprocessOptions, streams: dict[str, Stream], folder: Path) -> PreprocessReport:
    vocabularies = _vocabularies(options, streams["train"])
    # The small splits first: what is wrong in them shows before the long part.
    limits = Limits(options.src_length, options.tgt_length, options.cut, options.allow_dropping)
    reports = {name: encode_split(name, streams[name], vocabularies, limits, folder) for name in reversed(streams)}
    report = PreprocessReport(
        {name: reports[name] for name in streams},
        {side: len(vocabulary) for side, vocabulary in zip(SIDES, vocabularies, strict=True)},
    )
    for side, vocabulary in zip(SIDES, vocabularies, strict=True):
        vocabulary.save(folder / f"{side}.vocabulary.json")
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "unit": vocabularies[0].unit,
        "lower": vocabularies[0].lower,
        "share": options.share,
        "limits": {name: getattr(options, name) for name in ("src_length", "tgt_length", "cut")},
        "vocabularies": {
            side: {"size": len(vocabulary), "sha256": vocabulary.fingerprint}
            for side, vocabulary in zip(SIDES, vocabularies, strict=True)
        },
        "splits": {name: asdict(split) for name, split in report.splits.items()},
        "settings": options.settings(),
    }
    write_json(folder / "metadata.json", metadata)
    return report


def _vocabularies(options: PreprocessOptions, train: Stream) -> tuple[Vocabulary, Vocabulary]:
    def counted(sides: slice, size: int) -> Vocabulary:
        complete = (pair for pair in train() if not has_empty_side(pair))
        lines = (line for pair in complete for line in pair[:2][sides])
        return Vocabulary.build(
            lines, unit=options.unit, lower=options.lower, size=size if options.bpe is None else options.bpe
        )

    def given(path: Path) -> Vocabulary:
        vocabulary = Vocabulary.load(path)
        asked = {"unit": options.unit if options.char or options.bpe else vocabulary.unit, "lower": options.lower}
        if vocabulary.unit != asked["unit"] or (options.lower and not vocabulary.lower):
            raise InputError(
                f"{path}: a vocabulary of unit {vocabulary.unit}, lower {vocabulary.lower}; asked is unit "
                f"{asked['unit']}, lower {asked['lower']}; leave the option out: the vocabulary decides"
            )
        return vocabulary

    if options.share:
        shared = given(options.src_vocab) if options.src_vocab else counted(slice(0, 2), options.src_vocab_size)
        return shared, shared
    source = given(options.src_vocab) if options.src_vocab else counted(slice(0, 1), options.src_vocab_size)
    target = given(options.tgt_vocab) if options.tgt_vocab else counted(slice(1, 2), options.tgt_vocab_size)
    return source, target


def _replace_folder(new: Path, folder: Path) -> None:
    old = new.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
