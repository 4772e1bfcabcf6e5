"""The report: summary.json, table.md, the pictures, and one HTML page that holds them and asks for nothing else."""

import base64
import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from labelemb.errors import InputError
from labelemb.files import write_atomically, write_json
from labelemb.report.comparison import comparison, html, markdown
from labelemb.report.curves import draw_calibration, draw_curves
from labelemb.report.heatmap import draw_heatmap, heatmap_labels
from labelemb.report.learned_labels import LabelTables, frequent_words, learned_tables
from labelemb.report.style import render, save_figure
from labelemb.report.summary import OF_REPORTING, Results, Run, flatten, read_results, summary

MAX_IMAGES = 120
MAX_SENTENCES = 8
OF_ONE_RUN = ("command", "commit", "start", "end")  # what environment.json says of the run, not of the machine


def write_report(folders: Sequence[Path], *, output: Path | None = None, labels: Sequence[str] | None = None) -> Path:
    """Write summary.json, table.md, curves and heatmap (.svg, .png) and report.html from run folders alone.

    Args:
        folders: where runs lie, at any depth; runs of one recipe are merged by mode and seed.
        output: where to write; by default the first folder.
        labels: the heat map's labels by name or number, at most 30; by default the recipe's, else all up to 30, else
            the 15 with the largest off-diagonal values.

    Returns:
        The path of report.html.

    Raises:
        InputError: no finished runs, damaged runs, runs that cannot be compared, or an unknown label.
    """
    results = read_results(folders)
    if not results.modes:
        raise InputError(f"no finished run in {', '.join(map(str, folders))}: {len(results.unfinished)} unfinished")
    output = folders[0] if output is None else output
    learned = list(_learned(results, output, labels))  # first: an unknown label is refused before anything is written
    table = comparison(results)
    write_json(output / "summary.json", summary(results))
    write_atomically(output / "table.md", markdown(table, results.recipe).encode())
    curves = _section("Curves", _curves(results, output))
    parts = [_section("Results", html(table)), curves, *learned]
    parts += [*_calibration(results), *_examples(results), *_provenance(results)]
    page = Template(files("labelemb.report").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{results.recipe}: {', '.join(results.modes)}"),
        lead=escape(_lead(results)),
        sections="\n".join(parts),
    )
    write_atomically(output / "report.html", page.encode())
    return output / "report.html"


def _lead(results: Results) -> str:
    counts = [f"{mode} {len(runs)}" for mode, runs in results.modes.items()]
    epochs = sorted({str(run.config.get("epochs", "?")) for run in results.all_runs})
    return f"Finished runs: {', '.join(counts)}. Epochs: {', '.join(epochs)}."


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture(svg: bytes, alt: str, caption: str) -> str:
    # As an image, not as elements of the page: identifiers inside cannot clash, and nothing inside can act.
    address = _data_address(svg, "svg+xml")
    return f'<figure><img src="{address}" alt="{escape(alt)}">\n<figcaption>{escape(caption)}</figcaption></figure>'


def _curves(results: Results, output: Path) -> str:
    figure, caption = draw_curves(results)
    svg = save_figure(figure, output / "curves")
    means = [f"{mode} {results.metric.scale * entry['mean']:.2f}" for mode, entry in summary(results)["modes"].items()]
    return _picture(svg, f"{results.metric.title} against epoch. Final means: {', '.join(means)}.", caption)


def _learned(results: Results, output: Path, labels: Sequence[str] | None) -> Iterator[str]:
    """The heat map, and the most similar labels: the words of a text recipe, else the labels of the heat map."""
    tables = learned_tables(results)
    if tables is None:
        return
    reporting = results.all_runs[0].config.get("report") or {}
    shown = heatmap_labels(tables, labels or reporting.get("labels"))
    figure, caption = draw_heatmap(tables, shown)
    nearest = tables.nearest(shown, 1)
    pairs = [f"{tables.names[label]} to {near[0][0]}" for label, near in zip(shown, nearest, strict=True) if near]
    alt = (
        f"Heat map of {len(shown)} soft labels. The largest share outside its own label: {', '.join(pairs) or 'none'}."
    )
    yield _section("Learned soft labels", _picture(save_figure(figure, output / "heatmap"), alt, caption))
    is_text = results.all_runs[0].config.get("task") == "text"
    similar = frequent_words(tables, reporting.get("words")) if is_text else shown
    yield _section("Most similar labels", _similar_table(tables, similar))


def _similar_table(tables: LabelTables, labels: Sequence[int]) -> str:
    rows = []
    for label, nearest in zip(labels, tables.nearest(labels), strict=True):
        cells = "".join(f"<td>{escape(name)} <span>{value:.3f}</span></td>" for name, value in nearest)
        rows.append(f'<tr><th scope="row">{escape(tables.names[label])}</th>{cells}</tr>')
    runs = f"mean over {len(tables.runs)} runs" if len(tables.runs) > 1 else f"seed {tables.runs[0].seed}"
    return (
        f'<div class="wide"><table class="similar"><tbody>\n{"".join(rows)}\n</tbody></table></div>\n'
        f'<p class="notes">The labels that each soft label holds most of ({escape(tables.mode)}, {runs}).</p>'
    )


def _calibration(results: Results) -> Iterator[str]:
    figure = draw_calibration(results)
    if figure is not None:
        caption = (
            "Accuracy against the probability of the predicted label, 15 equal bins, test items of all runs together; "
            "bins of fewer than 10 items are left out. Below the dashed diagonal a model is too sure of itself."
        )
        yield _section(
            "Calibration", _picture(render(figure, "svg"), "Reliability diagram: accuracy against confidence.", caption)
        )


def _examples(results: Results) -> Iterator[str]:
    """Test images, or source, reference and output of the first sentences, of one run."""
    runs = [run for mode in ("emb", *results.modes) for run in results.modes.get(mode, [])]
    run = next((run for run in runs if run.folder.examples.is_dir()), None)
    if run is None:
        return
    images = sorted(run.folder.examples.glob("*.png"))[:MAX_IMAGES]
    if images:
        names = run.evaluation.get("label_names") or []
        items = "".join(_image_item(path, names) for path in images)
        yield _section("Test images", f'<ul class="examples">{items}</ul>')
    elif (path := run.folder.examples / "examples.jsonl").is_file():
        yield _section("Test sentences", _sentences(path) + f'<p class="notes">{escape(_title(run))}</p>')


def _image_item(path: Path, names: Sequence[str]) -> str:
    """One picture of LABEL-NUMBER.png under its label's name."""
    label = path.stem.partition("-")[0]
    name = escape(str(names[int(label)]) if label.isdecimal() and int(label) < len(names) else path.stem)
    return f'<li><img src="{_data_address(path.read_bytes(), "png")}" alt="{name}">{name}</li>'


def _sentences(path: Path) -> str:
    try:
        examples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:MAX_SENTENCES]]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    parts = ("source", "reference", "output")
    return "".join(
        "<table><tbody>"
        + "".join(
            f'<tr><th scope="row">{part}</th><td>{escape(str(example.get(part, "")))}</td></tr>' for part in parts
        )
        + "</tbody></table><br>"
        for example in examples
    )


def _provenance(results: Results) -> Iterator[str]:
    """Settings, machine and runs: what it takes to trace a number."""
    runs = results.all_runs
    settings = _distinct([{k: v for k, v in run.config.items() if k not in OF_REPORTING} for run in runs])
    yield _section("Settings", _details("Every setting; several values where modes differ", _pairs(settings)))
    environment = [{k: v for k, v in run.environment.items() if k not in OF_ONE_RUN} for run in runs]
    rows = "".join(
        f'<tr><th scope="row">{escape(_title(run))}</th><td>{escape(_final(run))}</td>'
        + "".join(f"<td>{escape(str(run.environment.get(key) or ''))}</td>" for key in OF_ONE_RUN)
        + "</tr>\n"
        for run in runs
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("run", results.metric.name, *OF_ONE_RUN))
    table = f'<div class="wide"><table class="runs"><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'
    yield _section("Environment", _pairs(_distinct(environment)) + _details(f"All {len(runs)} runs", table))


def _title(run: Run) -> str:
    return f"{run.mode}, seed {run.seed}"


def _final(run: Run) -> str:
    if run.final is None:
        return "damaged" if run.damage else "unfinished"
    return f"{run.final:.6g}"


def _distinct(mappings: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Dotted key -> its values over the mappings, each once."""
    values: dict[str, dict[str, None]] = {}
    for mapping in mappings:
        for key, value in flatten(mapping).items():
            values.setdefault(key, {}).setdefault("none" if value is None else str(value))
    return {key: ", ".join(distinct) for key, distinct in values.items()}


def _pairs(values: dict[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>\n' for key, value in values.items()
    )
    return f'<div class="wide"><table class="settings"><tbody>\n{rows}</tbody></table></div>'


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{body}\n</details>"
