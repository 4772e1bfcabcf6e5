"""Vocabularies: counting, cutting, joining, saving."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from labelemb.text.corpus.vocab import SPECIAL_SYMBOLS, UNK, Unit, Vocabulary

LINES = [
    "Ein Mann mit einem Hut, der etwas anstarrt.",
    "Zwei Männer  und 3 Hunde\tim Schnee!",
    "Tôi yêu đất nước tôi",
    "今天天气很好",
] * 3
UNITS: tuple[Unit, ...] = ("word", "char", "bpe")


def build(unit: Unit, *, lower: bool = False, size: int = 200) -> Vocabulary:
    return Vocabulary.build(iter(LINES), unit=unit, lower=lower, size=size)


def test_frequent_words_come_first_and_ties_keep_the_order_of_the_text() -> None:
    vocabulary = Vocabulary.build(["d b a", "c b a", "b"], unit="word", lower=False, size=100)
    assert vocabulary.tokens == (*SPECIAL_SYMBOLS, "b", "a", "d", "c")
    assert SPECIAL_SYMBOLS == ("<pad>", "<unk>", "<s>", "</s>")


@pytest.mark.parametrize("unit", UNITS)
def test_the_size_counts_the_special_symbols(unit: Unit) -> None:
    assert len(build(unit, size=50 if unit == "bpe" else 10)) == (50 if unit == "bpe" else 10)
    if unit != "bpe":
        tokens = {token for line in LINES for token in (line.split() if unit == "word" else " ".join(line.split()))}
        assert len(build(unit)) == len(tokens) + 4


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("lower", [False, True])
def test_decoding_restores_the_text(unit: Unit, lower: bool) -> None:
    vocabulary = build(unit, lower=lower)
    for line in LINES:
        expected = line.lower() if lower else line
        if unit != "bpe":  # subwords alone keep every space as it was
            expected = " ".join(expected.split())
        assert vocabulary.decode(vocabulary.encode(line)) == expected


@pytest.mark.parametrize("unit", UNITS)
def test_text_is_not_normalised(unit: Unit) -> None:
    composed, decomposed = (unicodedata.normalize(form, "đất nước") for form in ("NFC", "NFD"))
    vocabulary = Vocabulary.build([composed, decomposed] * 3, unit=unit, lower=True, size=100)
    for line in (composed, decomposed):
        assert vocabulary.decode(vocabulary.encode(line)) == line


def test_characters_of_chinese_are_tokens_and_a_run_of_space_is_one() -> None:
    vocabulary = Vocabulary.build(["今天 好"], unit="char", lower=True, size=100)
    assert vocabulary.split(" 今天 \u3000好 ") == ["今", "天", " ", "好"]
    assert vocabulary.encode("好今𠀀") == [vocabulary.ids["好"], vocabulary.ids["今"], UNK]


def test_subwords_leave_punctuation_alone() -> None:
    vocabulary = Vocabulary.build(["der Hut, der Hut."] * 9, unit="bpe", lower=False, size=200)
    assert vocabulary.split("Hut, der") == ["▁Hut", ",", "▁der"]


@pytest.mark.parametrize("unit", UNITS)
def test_raw_text_never_becomes_a_special_symbol(unit: Unit) -> None:
    vocabulary = Vocabulary.build(["a <s> b </s> <pad> <unk>"] * 3, unit=unit, lower=False, size=100)
    assert not {0, 2, 3} & set(vocabulary.encode("<s> a </s> <pad>"))
    assert vocabulary.tokens.count("<s>") == 1
    assert vocabulary.decode([2, *vocabulary.encode("a b"), 3, 0, 0]) == "a b"


@pytest.mark.parametrize("unit", UNITS)
def test_split_is_aligned_with_encode_and_keeps_unknown_tokens(unit: Unit) -> None:
    vocabulary = build(unit, lower=True)
    line = "ein ☂☃ Hut Ǽ"
    tokens, ids = vocabulary.split(line), vocabulary.encode(line)
    assert len(tokens) == len(ids)
    assert UNK in ids
    assert vocabulary.join(tokens) == line.lower()
    assert [vocabulary.tokens[index] for index in ids if index != UNK] == [
        token for token, index in zip(tokens, ids, strict=True) if index != UNK
    ]


@pytest.mark.parametrize("unit", UNITS)
def test_many_lines_encode_as_each_does(unit: Unit) -> None:
    vocabulary = build(unit)
    lines = [*LINES, "", "☂"]
    tokens, lengths = vocabulary.encode_lines(lines)
    assert tokens.tolist() == [index for line in lines for index in vocabulary.encode(line)]
    assert lengths.tolist() == [len(vocabulary.encode(line)) for line in lines]
    assert (tokens.dtype, lengths.dtype) == (np.dtype("int32"), np.dtype("int64"))


@pytest.mark.parametrize("unit", UNITS)
def test_a_saved_vocabulary_is_the_same(unit: Unit, tmp_path: Path) -> None:
    vocabulary = build(unit, lower=True)
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert loaded == vocabulary
    assert loaded.fingerprint == vocabulary.fingerprint != build(unit).fingerprint
    assert loaded.encode("Ein <s> Hut") == vocabulary.encode("Ein <s> Hut")
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]


def test_subwords_are_the_same_every_time() -> None:
    assert len({build("bpe").fingerprint for _ in range(5)}) == 1


HEAD = '{"format": "labelemb.vocabulary", "version": 1'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such vocabulary file"),
        ("not json", "expected a vocabulary in JSON"),
        (json.dumps({"a": 1}), "format 'labelemb.vocabulary'"),
        (json.dumps({"format": "labelemb.vocabulary", "version": 9, "unit": "word"}), "expected version 1"),
        (json.dumps({"format": "labelemb.vocabulary", "version": 1, "unit": "word", "lower": True}), "no 'tokens'"),
        (
            json.dumps({"format": "labelemb.vocabulary", "version": 1, "unit": "word", "lower": True, "tokens": ["a"]}),
            "begins with <pad>",
        ),
        (f'{HEAD}, "unit": "char", "lower": false, "tokens": ["<pad>", "<unk>", "<s>", "</s>", "ab"]}}', "single"),
        (f'{HEAD}, "unit": "word", "lower": false, "tokens": [3]}}', "expected a list of words"),
        (f'{HEAD}, "unit": "word", "lower": 3, "tokens": []}}', "lower: expected true or false"),
        ("[" * 100_000, "expected a vocabulary in JSON"),
    ],
)
def test_a_bad_vocabulary_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "v.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Vocabulary.load(path)


MARKED = ["a▁b", "▁", "▁a", "a▁", "▁▁a  ▁ b▁, ▁.", "a b▁c", "☂▁☂"]


@pytest.mark.parametrize("lines", [[*LINES, *MARKED, *MARKED], LINES])  # known to the vocabulary, and not
@pytest.mark.parametrize("lower", [False, True])
def test_subwords_keep_a_mark_of_the_text_that_looks_like_their_own_for_a_space(lines: list[str], lower: bool) -> None:
    vocabulary = Vocabulary.build(lines, unit="bpe", lower=lower, size=200)
    for line in [*MARKED, *LINES]:
        assert vocabulary.join(vocabulary.split(line)) == (line.lower() if lower else line)
        assert len(vocabulary.split(line)) == len(vocabulary.encode(line))
    if lines is not LINES:
        assert vocabulary.decode(vocabulary.encode("a▁b ▁")) == "a▁b ▁"


@pytest.mark.parametrize("unit", UNITS)
def test_no_decoded_line_has_a_line_feed_in_it(unit: Unit) -> None:
    vocabulary = Vocabulary.build(MARKED * 3, unit=unit, lower=False, size=100)
    assert "\n" not in vocabulary.decode(range(len(vocabulary)))
    copied = build("bpe").split("▁")  # an unknown word of a source of subwords
    assert "\n" not in vocabulary.join(copied)


def test_a_size_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no room beside its 4 special symbols"):
        build("word", size=4)
    with pytest.raises(ValueError, match="fewer than the text's characters"):
        build("bpe", size=10)
