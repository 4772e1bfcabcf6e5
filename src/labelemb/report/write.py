"""The report: summary.json, table.md, the pictures, and one HTML page that holds them and asks for nothing else."""

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from labelemb.errors import InputError
from labelemb.files import write_atomically, write_json
from labelemb.report.comparison import comparison, markdown
from labelemb.report.curves import draw_calibration, draw_curves
from labelemb.report.heatmap import draw_heatmap, heatmap_labels
from labelemb.report.learned_labels import LabelTables, frequent_words, learned_tables
from labelemb.report.pairs import pairs_summary
from labelemb.report.provenance import all_environments, all_runs, all_settings, run_title
from labelemb.report.style import render, save_figure
from labelemb.report.summary import Results, summary
from labelemb.settings.kinds import KINDS

MAX_IMAGES = 120
MAX_SENTENCES = 8


class Picture(NamedTuple):
    """A figure of the page.

    As an image, not as elements of the page: identifiers inside cannot clash, and nothing inside can act.
    """

    address: str
    alt: str
    caption: str


class Learned(NamedTuple):
    """The heat map, and for each label the most similar ones with their shares."""

    heatmap: Picture
    similar: list[tuple[str, list[tuple[str, str]]]]
    name: str
    runs: str


class Examples(NamedTuple):
    """What one run shows of the test set: images as name and address, or the first sentences (None for no text)."""

    run: str
    images: list[tuple[str, str]]
    sentences: list[dict[str, str]] | None


def write_report(results: Results, *, output: Path | None = None, labels: Sequence[str] | None = None) -> Path:
    """Write summary.json, table.md, curves and heatmap (.svg, .png) and report.html.

    Args:
        results: runs of one recipe.
        output: where to write; by default the first folder that the runs were read from.
        labels: the heat map's labels by name or number, at most 30; by default the recipe's, else all up to 30, else
            the 15 with the largest off-diagonal values.

    Returns:
        The path of report.html.

    Raises:
        InputError: no finished runs, damaged files, or an unknown label.
    """
    if not results.groups:
        counts = {"unfinished": len(results.unfinished), "damaged": len(results.damaged)}
        found = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        raise InputError(f"no finished run in {', '.join(map(str, results.folders))}: {found}")
    output = results.folders[0] if output is None else output
    learned = _learned(results, output, labels)  # first: an unknown label is refused before anything is written
    table = comparison(results)
    write_json(output / "summary.json", summary(results) | pairs_summary(results))
    write_atomically(output / "table.md", markdown(table, results.recipe).encode())
    page = _template().render(
        title=f"{results.recipe}: {', '.join(results.groups)}",
        lead=_lead(results),
        table=table,
        curves=_curves(results, output),
        learned=learned,
        calibration=_calibration(results),
        examples=_examples(results),
        settings=all_settings(results),
        environment=all_environments(results),
        runs=all_runs(results),
    )
    write_atomically(output / "report.html", page.encode())
    return output / "report.html"


def _template() -> Template:
    """The page: every value in it is escaped, and one that is missing is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(files("labelemb.report").joinpath("page.html").read_text(encoding="utf-8"))


def _lead(results: Results) -> str:
    counts = [f"{name} {len(runs)}" for name, runs in results.groups.items()]
    epochs = sorted({str(run.config.get("epochs", "?")) for run in results.all_runs})
    return f"Finished runs: {', '.join(counts)}. Epochs: {', '.join(epochs)}."


def _data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture(svg: bytes, alt: str, caption: str) -> Picture:
    return Picture(_data_address(svg, "svg+xml"), alt, caption)


def _curves(results: Results, output: Path) -> Picture:
    figure, caption = draw_curves(results)
    finals = {name: list(results.finals(name).values()) for name in results.groups}
    means = [f"{name} {results.metric.scale * fmean(final):.2f}" for name, final in finals.items()]
    alt = f"{results.metric.title} against epoch. Final means: {', '.join(means)}."
    return _picture(save_figure(figure, output / "curves"), alt, caption)


def _learned(results: Results, output: Path, labels: Sequence[str] | None) -> Learned | None:
    """The heat map, and the most similar labels: the words of a text recipe, else the labels of the heat map."""
    tables = learned_tables(results)
    if tables is None:
        return None
    reporting = results.all_runs[0].config.get("report") or {}
    shown = heatmap_labels(tables, labels or reporting.get("labels"))
    figure, caption = draw_heatmap(tables, shown)
    heatmap = _picture(save_figure(figure, output / "heatmap"), _heatmap_in_words(tables, shown), caption)
    kind = KINDS.get(str(results.all_runs[0].config.get("task")))
    of_words = kind is not None and kind.makes_sequences
    similar = frequent_words(tables, reporting.get("words")) if of_words else shown
    runs = f"mean over {len(tables.runs)} runs" if len(tables.runs) > 1 else f"seed {tables.runs[0].seed}"
    return Learned(heatmap, _most_similar(tables, similar), tables.name, runs)


def _heatmap_in_words(tables: LabelTables, labels: Sequence[int]) -> str:
    nearest = tables.nearest(labels, 1)
    pairs = [f"{tables.names[label]} to {near[0][0]}" for label, near in zip(labels, nearest, strict=True) if near]
    largest = ", ".join(pairs) or "none"
    return f"Heat map of {len(labels)} soft labels. The largest share outside its own label: {largest}."


def _most_similar(tables: LabelTables, labels: Sequence[int]) -> list[tuple[str, list[tuple[str, str]]]]:
    nearest = [[(name, f"{share:.3f}") for name, share in near] for near in tables.nearest(labels)]
    return list(zip([tables.names[label] for label in labels], nearest, strict=True))


def _calibration(results: Results) -> Picture | None:
    figure = draw_calibration(results)
    if figure is None:
        return None
    caption = (
        "Accuracy against the probability of the predicted label, 15 equal bins, test items of all runs together; "
        "bins of fewer than 10 items are left out. Below the dashed diagonal a model is too sure of itself."
    )
    return _picture(render(figure, "svg"), "Reliability diagram: accuracy against confidence.", caption)


def _examples(results: Results) -> Examples | None:
    """Test images, or source, reference and output of the first sentences, of one run."""
    runs = [run for name in results.names_by_table for run in results.groups[name]]
    run = next((run for run in runs if run.folder.examples.is_dir()), None)
    if run is None:
        return None
    names = run.evaluation.get("label_names") or []
    images = [_image(path, names) for path in sorted(run.folder.examples.glob("*.png"))[:MAX_IMAGES]]
    path = run.folder.examples / "examples.jsonl"
    return Examples(run_title(run), images, None if images or not path.is_file() else _sentences(path))


def _image(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """The name of the label of LABEL-NUMBER.png, and the picture's address."""
    label = path.stem.partition("-")[0]
    name = str(names[int(label)]) if label.isdecimal() and int(label) < len(names) else path.stem
    return name, _data_address(path.read_bytes(), "png")


def _sentences(path: Path) -> list[dict[str, str]]:
    try:
        examples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:MAX_SENTENCES]]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return [{part: str(example.get(part, "")) for part in ("source", "reference", "output")} for example in examples]
