"""Outputs of a trained text run: lines in, lines out, in a stream."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from labelemb.errors import InputError
from labelemb.files import read_lines, text_output, whole_text_file
from labelemb.run_folder import RunFolder
from labelemb.settings.config import LONGEST, TextSettings
from labelemb.text.corpus.corpus import Corpus
from labelemb.text.run_files import load_trained_network, load_vocabularies, score_lines
from labelemb.text.translate import Translation, Translator
from labelemb.training.device import autocast

BLOCK_LINES = 1024  # read, translated sorted by length, and written together


@dataclass(frozen=True)
class PredictOptions:
    """What to translate, with what, and where the outputs go. One of `src` and `data` is given."""

    output: Path | None = None
    """File of outputs, a line for each source line; None for standard output."""
    src: Path | None = None
    """Raw source lines; `.gz` is read as it is, `-` is standard input."""
    data: Path | None = None
    """In place of `src` a corpus folder: its test text, or the development text where it has none, is scored."""
    ref: Path | None = None
    """References of `src`, to score against."""
    checkpoint: str = "best"
    """`best` by development score, or `last`."""
    beam: int | None = None
    """Hypotheses kept, 1 for greedy; None takes the recipe's."""
    max_length: int | None = None
    """Most output tokens; None takes the recipe's."""
    attention: Path | None = None
    """File of attention weights, a JSON object for each line."""


def predict_text(folder: RunFolder, settings: TextSettings, options: PredictOptions, device: torch.device) -> str:
    """Write the outputs; the scores where there are references, else how many lines were written.

    Raises:
        InputError: options out of range, checkpoint or vocabulary that are missing or do not fit, a file that is
            missing, not UTF-8, or of another number of lines than the source.
    """
    _check(options)
    source, references = _texts(folder, options)
    translator = _load_translator(folder, settings, options, device)
    outputs: list[str] = []  # kept for scores alone
    count = 0
    with ExitStack() as files:
        output = files.enter_context(text_output(options.output))
        weights = files.enter_context(whole_text_file(options.attention)) if options.attention else None
        with autocast(device, settings.precision):
            for block in _blocks(source):
                for translation in translator.translate(block):
                    output.write(translation.text + "\n")
                    if references is not None:
                        outputs.append(translation.text)
                    if weights is not None:
                        weights.write(json.dumps(_attention_record(translation), ensure_ascii=False) + "\n")
                count += len(block)
    if references is None:
        return f"{count} lines"
    scores, signature = score_lines(settings, outputs, references)
    return "  ".join([*(f"{name} {value:.2f}" for name, value in scores.items()), signature])


def _check(options: PredictOptions) -> None:
    for name, value in {"--beam": options.beam, "--max-length": options.max_length}.items():
        if value is not None and not 1 <= value <= LONGEST:
            greedy = ", 1 is greedy" if name == "--beam" else ""
            raise InputError(f"{name} {value}: expected 1 or more, at most {LONGEST:,}{greedy}")
    if (options.src is None) == (options.data is None):
        raise InputError("expected one of --src FILE (raw text, - for standard input) and --data FOLDER (a corpus)")
    if options.data is not None and options.ref is not None:
        raise InputError(f"--ref {options.ref}: a corpus has its own references; --ref goes with --src")
    if options.checkpoint not in ("best", "last"):
        raise InputError(f"--checkpoint {options.checkpoint}: expected best or last")


def _texts(folder: RunFolder, options: PredictOptions) -> tuple[Iterable[str], list[str] | None]:
    """The source lines, and their references where there are any."""
    if options.data is not None:
        corpus = Corpus.load(options.data)
        fingerprints = [vocabulary.fingerprint for vocabulary in load_vocabularies(folder)[:2]]
        if fingerprints != [corpus.source_vocabulary.fingerprint, corpus.target_vocabulary.fingerprint]:
            raise InputError(
                f"--data {options.data} was encoded with another vocabulary than {folder.path} was trained with; "
                "give its raw text as --src FILE"
            )
        split = corpus.valid if corpus.test is None else corpus.test
        return split.source_lines, list(split.target_lines)
    assert options.src is not None
    if options.ref is None:
        return read_lines(options.src), None
    references = list(read_lines(options.ref))
    lines = list(read_lines(options.src))
    if len(lines) != len(references):
        raise InputError(f"{options.src} has {len(lines):,} lines, --ref {options.ref} has {len(references):,}")
    return lines, references


def _load_translator(
    folder: RunFolder, settings: TextSettings, options: PredictOptions, device: torch.device
) -> Translator:
    source, target, shared = load_vocabularies(folder)
    network = load_trained_network(folder, settings, options.checkpoint, (len(source), len(target)), shared=shared)
    asked = {"beam": options.beam, "max_length": options.max_length}
    decode = settings.decode.model_copy(update={key: value for key, value in asked.items() if value is not None})
    return Translator(network.to(device), source, target, decode)


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(lines)
    while block := list(islice(rest, BLOCK_LINES)):
        yield block


def _attention_record(translation: Translation) -> dict[str, Any]:
    """Tokens of both sides, and for each output token its weights over the source tokens."""
    weights = [[round(value, 4) for value in row] for row in translation.attention.tolist()]
    return {"source": translation.source_tokens, "output": translation.tokens, "attention": weights}
