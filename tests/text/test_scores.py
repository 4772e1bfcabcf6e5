"""BLEU and ROUGE against cases worked by hand."""

import math

import pytest

from labelemb.text.scores import bleu, rouge


def test_bleu_of_a_worked_case() -> None:
    # the cat sat on the mat today | the cat sat on a mat today: matches of 1 to 4 words 6/7, 4/6, 2/5, 1/4
    score = bleu(["the cat sat on the mat today"], ["the cat sat on a mat today"], tokenize="none")
    assert score.value == pytest.approx(100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25, abs=1e-10)


def test_a_short_output_pays_the_brevity_penalty() -> None:
    score = bleu(["a b c d"], ["a b c d e"], tokenize="none")
    assert score.value == pytest.approx(100 * math.exp(1 - 5 / 4), abs=1e-10)


def test_bleu_counts_over_the_corpus_not_over_sentences() -> None:
    score = bleu(["a b c d", "x y z w"], ["a b c d", "x y z v"], tokenize="none")
    assert score.value == pytest.approx(100 * (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** 0.25, abs=1e-10)


def test_bleu_of_chinese_characters() -> None:
    # 今天天气很好 | 今天天气好: 1 to 4 characters 5/6, 3/5, 2/4, 1/3
    score = bleu(["今天天气很好"], ["今天天气好"], tokenize="zh")
    assert score.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, abs=1e-10)


def test_case_counts_unless_told() -> None:
    assert bleu(["A b c d"], ["a B c d"], tokenize="none", lowercase=True).value == pytest.approx(100)
    assert bleu(["A b c d"], ["a B c d"], tokenize="none").value < 50


def test_the_signature_names_case_and_tokenizer() -> None:
    signature = bleu(["a"], ["a"], tokenize="none", lowercase=True).signature
    assert signature.startswith("nrefs:1|case:lc|eff:no|tok:none|smooth:exp|version:")
    assert "case:mixed|eff:no|tok:13a" in bleu(["a"], ["a"]).signature


def test_entities_stand_as_they_are_without_a_tokenizer() -> None:
    line = "it &apos;s a &quot; word &quot; ."
    assert bleu([line], [line], tokenize="none").value == pytest.approx(100)
    assert bleu([line], [line.replace("&quot;", '"')], tokenize="none").value < 60


def test_rouge_of_a_worked_chinese_case() -> None:
    # output 今天天气好 (5), reference 今天天气很好 (6): 5 characters match, 今天 天天 天气 of 4 and 5 pairs, longest 5
    scores = rouge(["今天天气好"], ["今天天气很好"])
    expected = {"rouge1": 2 * 5 / (5 + 6), "rouge2": 2 * 3 / (4 + 5), "rougeL": 2 * 5 / (5 + 6)}
    assert scores == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-10)


def test_the_longest_common_subsequence_keeps_the_order() -> None:
    scores = rouge(["好天气"], ["天气好"])
    assert scores["rouge1"] == pytest.approx(100)
    assert scores["rougeL"] == pytest.approx(100 * 2 / 3)


def test_latin_letters_and_digits_are_characters_and_case_and_space_do_not_count() -> None:
    assert rouge(["GDP增长 18%"], ["gdp 增长18%"])["rouge2"] == pytest.approx(100)
    assert rouge(["18"], ["19"])["rouge1"] == pytest.approx(50)


def test_rouge_is_the_mean_over_lines_and_an_empty_output_counts_as_0() -> None:
    assert rouge(["天", ""], ["天", "气"])["rouge1"] == pytest.approx(50)


def test_lines_without_a_reference_are_refused() -> None:
    with pytest.raises(ValueError, match="2 outputs for 1 references"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="there are no lines"):
        rouge([], [])
    with pytest.raises(ValueError, match="BLEU tokenizer 'x': expected one of 13a"):
        bleu(["a"], ["a"], tokenize="x")
