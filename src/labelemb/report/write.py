"""The report: summary.json, table.md, the pictures, and one HTML page that asks for nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labelemb.files import write_atomically, write_json
from labelemb.report.comparison import comparison, markdown
from labelemb.report.curves import draw_calibration, draw_curves
from labelemb.report.heatmap import draw_heatmap, heatmap_labels
from labelemb.report.learned_labels import LabelTables, learned_tables
from labelemb.report.page.document import document
from labelemb.report.page.sections import Part, part
from labelemb.report.pairs import pairs_summary
from labelemb.report.style import FIGURES, save_figure
from labelemb.report.summary import Results, summary

Labels = Sequence[str] | None


def write_report(
    results: Results, *, output: Path | None = None, labels: Labels = None, every_figure: bool = False
) -> Path:
    """Write summary.json, table.md, curves and heatmap (.svg, .png) and report.html.

    Args:
        results: runs of one recipe.
        output: where to write; by default the first folder that the runs were read from.
        labels: the heat map's labels by name or number, at most 30; by default the recipe's, else all up to 30, else
            the 15 with the largest off-diagonal values.
        every_figure: write calibration, too, and every figure as .pdf.

    Returns:
        The path of report.html.

    Raises:
        InputError: damaged files, or an unknown label.
    """
    output = results.folders[0] if output is None else output
    tables = learned_tables(results)
    made = _part(results, tables, labels, 0)  # first: an unknown label is refused before anything is written
    write_json(output / "summary.json", full_summary(results))
    write_atomically(output / "table.md", markdown(made.shown["table"], results.recipe).encode())
    _write_figures(results, tables, output, labels, every_figure)
    write_atomically(output / "report.html", _document([made]))
    return output / "report.html"


def write_side_by_side(recipes: Sequence[Results], output: Path, labels: Labels = None) -> Path:
    """Write report.html and summary.json of several recipes; the path of the first."""
    parts = [_part(results, learned_tables(results), labels, place) for place, results in enumerate(recipes)]
    write_json(output / "summary.json", {"recipes": [full_summary(results) for results in recipes]})
    write_atomically(output / "report.html", _document(parts))
    return output / "report.html"


def write_empty_page(output: Path, message: str) -> Path:
    """Write a report.html that says why there is nothing to see."""
    write_atomically(output / "report.html", document("labelemb", [], [], messages=[message]))
    return output / "report.html"


def page(recipes: Sequence[Results], *, version: str = "") -> bytes:
    """The page alone, nothing written; see `document` on `version`."""
    return _document(
        [_part(results, learned_tables(results), None, place) for place, results in enumerate(recipes)], version
    )


def full_summary(results: Results) -> dict[str, Any]:
    """The contents of summary.json."""
    return summary(results) | pairs_summary(results)


def _part(results: Results, tables: LabelTables | None, labels: Labels, place: int) -> Part:
    return part(results, comparison(results), tables, ident=f"recipe-{place}", labels=labels)


def _document(parts: Sequence[Part], version: str = "") -> bytes:
    title = parts[0].shown["title"] if len(parts) == 1 else ", ".join(each.shown["recipe"] for each in parts)
    return document(title, [each.shown for each in parts], [each.data for each in parts], version=version)


def _write_figures(
    results: Results, tables: LabelTables | None, output: Path, labels: Labels, every_figure: bool
) -> None:
    """The pictures in the paper's style."""
    kinds = (*FIGURES, "pdf") if every_figure else FIGURES
    save_figure(draw_curves(results)[0], output / "curves", kinds)
    if tables is not None:
        asked = labels or (results.all_runs[0].config.get("report") or {}).get("labels")
        save_figure(draw_heatmap(tables, heatmap_labels(tables, asked))[0], output / "heatmap", kinds)
    calibration = draw_calibration(results) if every_figure else None
    if calibration is not None:
        save_figure(calibration, output / "calibration", kinds)
