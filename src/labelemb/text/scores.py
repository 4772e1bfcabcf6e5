"""BLEU of translations and ROUGE of summaries, 0 to 100, by sacreBLEU and rouge-score."""

from collections.abc import Sequence
from typing import NamedTuple

from labelemb.errors import InputError

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")


class Score(NamedTuple):
    """A corpus score, 0 to 100, and how it was computed."""

    value: float
    signature: str


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False, tokenize: str = "13a"
) -> Score:
    """Corpus BLEU of N outputs against one reference each (Papineni et al. 2002), with sacreBLEU's signature.

    Args:
        hypotheses: (N,) the outputs.
        references: (N,) the references, in the same order.
        lowercase: score case-insensitively.
        tokenize: sacreBLEU's tokenizer; `none` scores the tokens as they stand, `zh` is for Chinese.

    Raises:
        InputError: no lines, or an unknown tokenizer.
        ValueError: different numbers of lines.
    """
    from sacrebleu.metrics.bleu import BLEU

    _check(hypotheses, references)
    if tokenize not in BLEU.TOKENIZERS:
        raise InputError(f"BLEU tokenizer {tokenize!r}: expected one of {', '.join(sorted(BLEU.TOKENIZERS))}")
    metric = BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return Score(float(value), str(metric.get_signature()))


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F of ROUGE-1, -2 and -L (Lin 2004) on characters, white space left out, case ignored.

    Letters of Latin words and digits are characters as well, as is usual for LCSTS.

    Args:
        hypotheses: (N,) the outputs.
        references: (N,) the references, in the same order.

    Returns:
        `rouge1`, `rouge2`, `rougeL`, 0 to 100.

    Raises:
        InputError: no lines.
        ValueError: different numbers of lines.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _check(hypotheses, references)
    scorer = RougeScorer(list(ROUGE_NAMES), tokenizer=_Characters())
    totals = dict.fromkeys(ROUGE_NAMES, 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for name, score in scorer.score(reference, hypothesis).items():
            totals[name] += score.fmeasure
    return {name: 100 * total / len(references) for name, total in totals.items()}


ROUGE_SIGNATURE = "rouge-score|f:mean|tok:char|case:lc"


class _Characters:
    """The tokenizer that rouge-score asks for: its own drops everything but Latin letters and digits."""

    def tokenize(self, text: str) -> list[str]:
        return list("".join(text.lower().split()))


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} outputs for {len(references)} references: each line needs its own")
    if not references:
        raise InputError("nothing to score: there are no lines")
