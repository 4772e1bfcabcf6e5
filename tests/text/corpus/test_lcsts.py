"""The LCSTS distribution, on fixtures in its two forms."""

import json
from pathlib import Path

import pytest

from labelemb.settings.preprocess import PreprocessOptions
from labelemb.text.corpus.corpus import Corpus
from labelemb.text.corpus.lcsts import Headline, read_headlines, split_path
from labelemb.text.corpus.preprocess import preprocess

PAIRS = [("新华社受权于18日全文播发修改后的《立法法》", "修改后的立法法全文公布"), ("今天天气很好 & 晴 <b>", "天气好")]


def block(number: int, text: str, summary: str, score: int | None = None) -> str:
    label = "" if score is None else f"    <human_label>{score}</human_label>\n"
    return (
        f"<doc id={number}>\n{label}    <summary>\n        {summary}\n    </summary>\n"
        f"    <short_text>\n        {text}\n    </short_text>\n</doc>\n"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "lcsts"
    folder.mkdir()
    (folder / "PART_I.txt").write_text("".join(block(i, *pair) for i, pair in enumerate(PAIRS)), encoding="utf-8")
    for name in ("PART_II.txt", "PART_III.txt"):
        blocks = [block(score, f"{score}{PAIRS[0][0]}", PAIRS[0][1], score) for score in (1, 2, 3, 4, 5)]
        (folder / name).write_text("\n".join(blocks), encoding="utf-8")
    return folder


def test_blocks_are_read_with_their_scores(folder: Path) -> None:
    assert list(read_headlines(folder / "PART_I.txt")) == [
        Headline(PAIRS[0][0], PAIRS[0][1], None, 1),
        Headline(PAIRS[1][0], PAIRS[1][1], None, 9),
    ]
    assert [headline.score for headline in read_headlines(folder / "PART_II.txt")] == [1, 2, 3, 4, 5]


def test_a_text_of_two_lines_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "PART_I.txt"
    path.write_text(block(0, "一\n二", "三"), encoding="utf-8")
    assert next(read_headlines(path)).text == "一 二"


def test_pairs_under_a_score_of_3_are_left_out_of_development_and_test(folder: Path, tmp_path: Path) -> None:
    options = PreprocessOptions(tmp_path / "corpus", lcsts=folder, lower=True, share=True, char=True)
    report = preprocess(options)
    corpus = Corpus.load(tmp_path / "corpus")
    assert corpus.test is not None
    assert (
        [line[0] for line in corpus.valid.source_lines] == [line[0] for line in corpus.test.source_lines] == list("345")
    )
    assert (report.splits["test"].read, report.splits["test"].low_score, report.splits["test"].kept) == (5, 2, 3)
    assert "valid: 3 of 5 pairs; left out 2 scored under 3" in str(report)
    start, end = corpus.train.target.offsets[:2]
    assert corpus.target_vocabulary.decode(corpus.train.target.tokens[start:end].tolist()) == PAIRS[0][1]


def test_json_lines_give_the_same_pairs(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "test_public.jsonl"):
        lines = [json.dumps({"text": text, "summary": summary}, ensure_ascii=False) for text, summary in PAIRS]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    for split in ("train", "valid", "test"):
        read = read_headlines(split_path(tmp_path, split))
        assert [(headline.text, headline.summary) for headline in read] == PAIRS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("PART_I.txt", "hello\n", "line 1: expected <doc id=...>, found 'hello'"),
        ("PART_I.txt", block(0, "一", "二") + "<doc id=1>\n", "line 9: the file ends before"),
        ("PART_I.txt", "<doc id=0>\n<doc id=1>\n", "line 2: a <doc> begins before that of line 1 has ended"),
        ("PART_I.txt", "<doc id=0>\n<summary>x</summary>\n</doc>\n", "line 1: this <doc> has no <short_text>"),
        ("PART_I.txt", block(0, "一", "二").replace("summary", "s"), "has no <summary>"),
        ("PART_II.txt", block(0, "一", "二", 3).replace("3", "x"), "<human_label> is 'x'"),
        ("train.jsonl", '{"text": "a", "summary": "b"}\n{"text": "a"}\n', "line 2: expected a JSON object"),
        ("train.jsonl", '{"text": 1, "summary": "b"}\n', "line 1: text and summary must be strings"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        list(read_headlines(tmp_path / name))


def test_a_folder_without_lcsts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected PART_II\.txt or valid\.jsonl of LCSTS for valid"):
        split_path(tmp_path, "valid")
