"""The parts of the page for one recipe: what the template shows, and what its charts are drawn from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from labelemb.report.comparison import Table
from labelemb.report.heatmap import heatmap_labels
from labelemb.report.learned_labels import LabelTables, frequent_words
from labelemb.report.page.charts import curves, curves_in_words, mode_looks, reliability
from labelemb.report.page.confusions import Confusions, confusions
from labelemb.report.page.images import disagreed, has_answers, of_labels
from labelemb.report.page.labels import LARGEST_MATRIX, NUM_NEAREST, label_data
from labelemb.report.page.sentences import Sentence, sentences
from labelemb.report.page.words import compared, headline, outcome, standing
from labelemb.report.pairs import marks
from labelemb.report.provenance import all_commands, all_environments, all_runs, all_settings
from labelemb.report.summary import Results
from labelemb.settings.kinds import KINDS

RELIABILITY = (
    "Accuracy against the probability of the predicted label, 15 equal bins, test items of all runs together; bins of "
    "fewer than 10 items are left out. Below the dashed diagonal a model is too sure of itself."
)
WITHOUT_ANSWERS = (
    "These runs are from before answers to single images were kept: train again to see where modes disagree."
)


class Part(NamedTuple):
    """What the page has of one recipe."""

    shown: dict[str, Any]
    """For the template, under the names that it uses."""
    data: dict[str, Any]
    """For the charts."""


def part(
    results: Results, table: Table, tables: LabelTables | None, *, ident: str, labels: Sequence[str] | None
) -> Part:
    """Everything about one recipe.

    Raises:
        InputError: damaged files, or an unknown label.
    """
    lines = curves(results) | {"from": results.metric.curves_from}
    looks, bins = mode_looks(results), reliability(results)
    learned = None if tables is None else label_data(tables)
    shown = {
        "ident": ident,
        "recipe": results.recipe,
        "title": _title(results),
        "counts": _counts(results),
        "looks": looks,
        "standing": standing(results),
        "headline": headline(results),
        "outcome": outcome(results),
        "compared": compared(results),
        "table": table,
        "marks": marks(results) or dict.fromkeys(results.groups, ""),
        "curves": lines,
        "curves_words": curves_in_words(results),
        "curves_caption": _curves_caption(results),
        "learned": learned,
        "reliability": bins,
        "reliability_words": RELIABILITY,
        "commands": all_commands(results),
        "settings": all_settings(results),
        "environment": all_environments(results),
        "runs": all_runs(results),
    }
    data = {"recipe": results.recipe, "looks": looks, "curves": lines, "reliability": bins, "labels": learned}
    pictures = {} if tables is None or tables.num_labels > LARGEST_MATRIX else of_labels(results, tables.num_labels)
    return Part(shown | _of_labels(results, tables, learned, labels) | _of_items(results), data | {"images": pictures})


def _title(results: Results) -> str:
    names = results.names
    shown = ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
    return f"{results.recipe}: {shown}"


def _counts(results: Results) -> str:
    counts = [f"{name} {len(runs)}" for name, runs in results.groups.items()]
    epochs = sorted({str(run.config.get("epochs", "?")) for run in results.all_runs})
    return f"finished runs: {', '.join(counts) or 'none'}; epochs: {', '.join(epochs)}."


def _curves_caption(results: Results) -> str:
    metric = results.metric
    caption = (
        f"{metric.curve_title} after each epoch. Each run is a light line, the mean over a mode's runs a deep one."
    )
    if any(run.rows for run in results.unfinished):
        caption += " Unfinished runs are dotted and in no mean of finished ones."
    return caption + (" A logarithmic axis has no place for zeros." if metric.has_log_axis else "")


def _of_labels(
    results: Results, tables: LabelTables | None, learned: dict[str, Any] | None, labels: Sequence[str] | None
) -> dict[str, Any]:
    """The learned table in words and as tables."""
    if tables is None or learned is None:
        return {"confusions": None, "is_text": False}
    reporting = results.all_runs[0].config.get("report") or {}
    is_text = _is_text(results)
    rows = (
        frequent_words(tables, reporting.get("words"))
        if is_text
        else heatmap_labels(tables, labels or reporting.get("labels"))
    )
    similar = list(zip([tables.names[label] for label in rows], tables.nearest(rows), strict=True))
    found = confusions(results, tables)
    return {
        "is_text": is_text,
        "similar": [(name, [(other, f"{share:.3f}") for other, share in near]) for name, near in similar],
        "map_words": _map_words(tables, similar),
        "map_caption": _map_caption(tables),
        "nearest_caption": _nearest_caption(tables, learned),
        "plane_words": _plane_words(tables, learned),
        "confusions": found,
        "confusions_words": "" if found is None else _confusions_words(found, tables.name),
    }


def _is_text(results: Results) -> bool:
    kind = KINDS.get(str(results.all_runs[0].config.get("task")))
    return kind is not None and kind.makes_sequences


def _runs(tables: LabelTables) -> str:
    if len(tables.runs) == 1 and tables.num_runs == 1:
        return f"{tables.name}, seed {tables.runs[0].seed}"
    if len(tables.runs) < tables.num_runs:
        return f"{tables.name}, the first {len(tables.runs)} of {tables.num_runs} runs: the table is large"
    return f"{tables.name}, mean over {len(tables.runs)} runs"


def _map_words(tables: LabelTables, similar: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    pairs = [f"{label} to {near[0][0]} {near[0][1]:.3f}" for label, near in similar if near]
    return f"Heat map of {tables.num_labels} soft labels. Largest share outside the own label: {', '.join(pairs)}."


def _map_caption(tables: LabelTables) -> str:
    return (
        f"Each row is one label's learned soft label ({_runs(tables)}): how much of it falls on each other label. The "
        "diagonal, the label's own share, is left out of the colours, and hover tells it. Frames hold groups of labels "
        "that are alike both ways (average linkage of 1 - (s_yj + s_jy)/2)."
    )


def _nearest_caption(tables: LabelTables, learned: dict[str, Any]) -> str:
    caption = f"The {NUM_NEAREST} labels that a soft label holds most of, with their shares ({_runs(tables)})."
    rows = learned.get("rows")
    return (
        caption if rows is None else f"{caption} The first {len(rows):,} of {tables.num_labels:,} labels have a list."
    )


def _plane_words(tables: LabelTables, learned: dict[str, Any]) -> str:
    plane = learned["plane"]
    which = f"The {len(plane['labels'])} labels of the strongest pairs" if learned["matrix"] is None else "Labels"
    return (
        f"{which} as points ({_runs(tables)}): near each other means alike, as far as two axes can show it "
        f"(classical scaling; they hold {plane['share']:.0%} of the squared distances). Colour and sign tell groups "
        "apart."
    )


def _confusions_words(found: Confusions, table: str) -> str:
    agreement = ", ".join(f"{name} {value}" for name, value in found.agreement)
    among = "over all pairs of labels" if found.is_whole else "among the pairs that were confused"
    return (
        f"Confused: how often one was taken for the other on the test set, both ways, all runs of {found.mode}. Alike: "
        f"the mean of both shares in the soft labels of {table}. Does the table know what a model mixes up? Rank "
        f"correlation of the two {among} (Spearman; 1 is the same order, 0 none), by whose confusions: {agreement}."
    )


def _of_items(results: Results) -> dict[str, Any]:
    """Test images or sentences."""
    images, told = disagreed(results), sentences(results) if _is_text(results) else []
    return {
        "disagreed": images,
        "images_words": _images_words(results, len(images)),
        "sentences": told,
        "sentences_words": _sentences_words(told),
    }


def _images_words(results: Results, count: int) -> str:
    """Empty where the section has nothing to say."""
    if not has_answers(results):
        has_pictures = any(run.folder.examples.is_dir() for runs in results.groups.values() for run in runs)
        return WITHOUT_ANSWERS if has_pictures and not _is_text(results) else ""
    if len(results.groups) < 2:
        return ""
    what = "Test images that the modes answer differently, the surest mistakes first"
    return (
        f"{what if count else 'No kept test image is answered differently'}: one run of each mode, its answer and how "
        "sure it was. Kept are those that a run was surest of and wrong."
    )


def _sentences_words(told: Sequence[Sentence]) -> str:
    if not told:
        return ""
    words = "Of the kept sentences those on which the modes differ most; marked is what the first two have otherwise."
    return words if told[0].source else f"{words} These folders hold no sources and references."
