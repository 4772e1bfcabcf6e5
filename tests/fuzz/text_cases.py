"""Cases of parallel text: files to preprocess, vocabularies, encoded corpora, sources to translate."""

import io
import json
from random import Random

import numpy as np
from tests.fuzz import damage
from tests.fuzz.case import Case, Desk, as_arguments
from tests.fuzz.data_cases import odd_array, written_count
from tests.fuzz.originals import QUICK, SMALL

FILES = ("train_src", "train_tgt", "valid_src", "valid_tgt", "test_src", "test_tgt")
LINES = ["red sea dog", "runs sings", "rain good joke", "dog", "sea rain"] * 2


def text_files(desk: Desk) -> Case:
    """Text that is to become a corpus."""
    paths = {name: desk.write(f"in/{name}", "".join(f"{line}\n" for line in LINES).encode()) for name in FILES}
    for _ in range(desk.draw.choice([0, 1, 1, 2])):
        name = desk.draw.choice(FILES)
        suffix = desk.draw.choice(["", "", ".gz"])
        paths[name] = desk.write(f"in/{name}{suffix}", _damaged_lines(desk.draw))
    given = [part for name, path in paths.items() for part in (f"--{name.replace('_', '-')}", path)]
    return Case(as_arguments(["preprocess", "--save-data", "out/corpus", *given, *_preprocess_options(desk)]))


def corpus(desk: Desk) -> Case:
    """Training on a corpus with a damaged file."""
    folder = desk.copy("data/corpus", "in/corpus")
    for _ in range(desk.draw.choice([1, 1, 2])):
        path = desk.draw.choice(sorted(folder.iterdir()))
        if path.is_file():
            path.write_bytes(_damaged_part(desk.draw, path.name, path.read_bytes()))
    return Case(["train", "translate", *SMALL["translate"], *QUICK, "--data", "in/corpus"])


def source_to_translate(desk: Desk) -> Case:
    """Lines that no training text had, references that do not fit, options out of range."""
    desk.copy("runs/translate/emb/seed-00", "run")
    source = _damaged_lines(desk.draw)
    given = desk.draw.choice([[], [], ["--max-length", written_count(desk.draw)], ["--beam", written_count(desk.draw)]])
    if desk.draw.random() < 0.3:
        given += ["--ref", desk.write("in/reference", _damaged_lines(desk.draw))]
    if desk.draw.random() < 0.3:
        return Case(as_arguments(["predict", "run", "-", *given]), stdin=source)
    path = desk.write(f"in/source{desk.draw.choice(['', '.gz', '.csv'])}", source)
    return Case(as_arguments(["predict", "run", path, "--output", "out/lines", *given]))


def _damaged_lines(draw: Random) -> bytes:
    lines = list(LINES)
    for _ in range(draw.choice([1, 2, 5])):
        lines.insert(draw.randrange(len(lines)), damage.text(draw))
    content = damage.encoded(draw, "\n".join(lines[: draw.choice([0, 1, 3, 99])]))
    return draw.choice([content, content, damage.damaged_bytes(draw, content), damage.impostor(draw)])


def _preprocess_options(desk: Desk) -> list[str]:
    draw = desk.draw
    given = draw.choice([[], [], ["--char"], ["--bpe", draw.choice(["30", "5", "4", "-1", "9999999999"])], ["--share"]])
    name = draw.choice(["src-vocab-size", "tgt-vocab-size", "src-length", "tgt-length", "bpe"])
    given = [*given, *draw.choice([[], [], [f"--{name}", written_count(draw)], ["--lower"], ["--cut"]])]
    if draw.random() < 0.2:
        original = (desk.originals / "data" / "corpus" / "source.vocabulary.json").read_bytes()
        given += ["--src-vocab", desk.write("in/vocabulary.json", _damaged_json(draw, original))]
    if draw.random() < 0.1:
        desk.write(
            f"out/corpus/{draw.choice(['metadata.json', 'other'])}",
            _damaged_json(draw, b'{"format": "labelemb.corpus"}'),
        )
    if draw.random() < 0.1:
        desk.write(f"in/lcsts/PART_{draw.choice(['I', 'II', 'III'])}.txt", _damaged_lines(draw))
        given += ["--lcsts", "in/lcsts"]
    return given


def _damaged_part(draw: Random, name: str, content: bytes) -> bytes:
    if draw.random() < 0.25:
        return draw.choice([damage.damaged_bytes(draw, content), damage.impostor(draw)])
    try:
        if name.endswith(".json"):
            return _damaged_json(draw, content)
        if name.endswith(".npy"):
            return _damaged_array(draw, content)
    except (ValueError, EOFError, RecursionError, OSError):  # it was damaged before
        return damage.impostor(draw)
    return damage.encoded(draw, damage.damaged_text(draw, content.decode("utf-8", "replace")))


def _damaged_array(draw: Random, content: bytes) -> bytes:
    file = io.BytesIO()
    array = np.atleast_1d(np.load(io.BytesIO(content)))
    np.save(file, draw.choice([odd_array(draw, array), array[::-1], array + 1000, array - 1]))
    return file.getvalue()


def _damaged_json(draw: Random, content: bytes) -> bytes:
    damaged = damage.damaged_value(draw, json.loads(content))
    return draw.choice([json.dumps(damage.encodable(damaged)).encode(), damage.damaged_bytes(draw, content)])
