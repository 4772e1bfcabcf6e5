"""The commands that read finished runs: `report`, `neighbors`."""

from pathlib import Path
from typing import Annotated

import typer

from labelemb.errors import InputError, input_errors


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with runs of one recipe.")],
    output: Annotated[Path | None, typer.Option("--output", help="Where to write; default: the first folder.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Labels on the heat map, with commas.")] = None,
) -> None:
    """Write table, curves, heat map and page again, from run folders alone."""
    from labelemb.report.comparison import summary_text
    from labelemb.report.page import write_report
    from labelemb.report.summary import read_results

    chosen = None if labels is None else [label.strip() for label in labels.split(",")]
    results = read_results(folders)
    page = write_report(results, output=output, labels=chosen)
    print(summary_text(results))
    print(page)


def neighbors(
    run: Annotated[Path, typer.Argument(help="A run folder with a learned table, or a table file.")],
    labels: Annotated[list[str] | None, typer.Argument(metavar="[LABEL]...", help="Default: all labels.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 5,
) -> None:
    """Print the labels that the network finds most similar."""
    from labelemb.run_folder import TABLE_FILE

    path = run / TABLE_FILE if run.is_dir() else run
    if not path.is_file():
        raise InputError(
            f"no label table at {path}: expected the folder of a run in a mode that learns one, such as emb"
            f"{_one_of(run)}"
        )
    from labelemb.losses.modes import load_table

    with input_errors():  # what `nearest` checks is what was asked for, and the file's rows
        table = load_table(path)
        names = table.label_names or [str(index) for index in range(table.num_classes)]
        chosen: list[str | int] = (
            [*(labels or names)] if table.label_names else [int(label) for label in labels or names]
        )
        nearest = table.nearest(chosen if labels else None, k)
    for label, pairs in zip(chosen, nearest, strict=True):
        print(f"{label}\t" + "  ".join(f"{name} {value:.3f}" for name, value in pairs))


def _one_of(folder: Path) -> str:
    """The first table below a folder of several runs, as a hint."""
    from labelemb.run_folder import TABLE_FILE

    tables = sorted(folder.rglob(TABLE_FILE))
    return f", e.g. {tables[0].parent}" if tables else ""
