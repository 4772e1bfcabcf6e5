"""What runs are compared by: one entry for each metric, with all that tables, pictures and sentences say of it."""

from dataclasses import dataclass
from typing import NamedTuple


class Measure(NamedTuple):
    """A number that runs have beside their metric: a column of the table."""

    heading: str
    column: str
    """Of metrics.jsonl, a test score of evaluation.json, or PART.KEY for what a part of evaluation.json has."""
    scale: float = 1.0
    digits: int = 2
    leads: bool = False
    """Whether it stands right after the metric."""


@dataclass(frozen=True)
class Metric:
    """One metric. Rates are fractions in files and percent on the page."""

    name: str
    """In config.yaml and evaluation.json."""
    title: str
    """The heading of its column."""
    curve: str
    """The column of metrics.jsonl that the curves show."""
    curve_title: str
    """Beside the curves' axis."""
    curve_caption: str
    """What the curves show, before "against epoch"."""
    higher_is_better: bool = False
    is_test_score: bool = False
    """Whether a run stands for evaluation.json's test score of its best checkpoint, not for its last row."""
    scale: float = 1.0
    """From files to the page."""
    unit: str = ""
    """After a number in a sentence."""
    paper_digits: int = 2
    """As the paper prints it."""
    better: str = "reduction"
    """What an improvement is called."""
    difference: str = ""
    """What an improvement is."""
    points: str = "points"
    """What it is counted in."""
    final: str = ""
    """What a finished run stands for."""
    target: str = ""
    """What of the baseline the curves are held against, where it says when a mode was as good."""
    has_log_axis: bool = False
    curves_from: float = 0.0
    """The axis fits what comes after this part of the epochs."""
    measures: tuple[Measure, ...] = ()
    """Shown beside it. All other test scores are, too."""


def _error(name: str, title: str, measures: tuple[Measure, ...]) -> Metric:
    """A rate of errors on the test set, in every row of metrics.jsonl."""
    return Metric(
        name,
        f"{title} %",
        curve=name,
        curve_title=f"{title} %",
        curve_caption=f"{title.capitalize()}, on a logarithmic axis,",
        scale=100.0,
        unit=" %",
        difference="baseline minus mode",
        points="percentage points",
        final="last epoch",
        target="final error",
        has_log_axis=True,
        curves_from=0.1,
        measures=measures,
    )


def _score(name: str, title: str) -> Metric:
    """A score of texts: on the development set after each epoch, on the test set for the best checkpoint."""
    return Metric(
        name,
        title,
        curve=f"valid_{name}",
        curve_title=f"development {title}",
        curve_caption=f"Development {title}",
        higher_is_better=True,
        is_test_score=True,
        paper_digits=1,
        better="gain",
        difference="mode minus baseline",
        final="test score of the checkpoint with the best development score",
        target="best development score",
        curves_from=0.2,
    )


METRICS = {
    metric.name: metric
    for metric in (
        _error(
            "test_error",
            "test error",
            (
                Measure("NLL scaled", "scaled.nll", digits=4, leads=True),
                Measure("NLL", "test_nll", digits=4),
                Measure("ECE %", "test_ece", 100.0),
                Measure("ECE % scaled", "scaled.ece", 100.0),
            ),
        ),
        _score("bleu", "BLEU"),
        _score("rouge1", "ROUGE-1"),
        _score("rouge2", "ROUGE-2"),
        _score("rougeL", "ROUGE-L"),
    )
}
