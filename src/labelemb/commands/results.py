"""The commands that read finished runs: `report`, `neighbors`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labelemb.errors import InputError, input_errors

if TYPE_CHECKING:
    from labelemb.report.summary import Results


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with runs, of one recipe or of several.")],
    output: Annotated[Path | None, typer.Option("--output", help="Where to write; default: the first folder.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Labels on the heat map, with commas.")] = None,
    figures: Annotated[
        bool, typer.Option("--figures", help="Write calibration, too, and every figure as PDF.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON; write nothing.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Show the page while runs go on; write nothing.")] = False,
    port: Annotated[int, typer.Option("--port", help="To serve on; 0 takes a free one.", min=0, max=65535)] = 8765,
    bind: Annotated[str, typer.Option("--bind", help="Address to serve on.")] = "127.0.0.1",
) -> None:
    """Write table, curves, heat map and page again, from run folders alone."""
    from labelemb.report.recipes import has_runs, read_recipes
    from labelemb.report.write import write_empty_page

    found = has_runs(folders)
    if serve:
        _serve(folders, bind, port)
    elif not found and not as_json:
        message = f"no runs (folders with a config.yaml) in {', '.join(map(str, folders))}"
        print(message)
        print(write_empty_page(output or folders[0], f"There is nothing to show: {message}."))
    else:
        recipes = read_recipes(folders)
        if as_json:
            _print_json(recipes)
        else:
            _write(recipes, output or folders[0], labels, figures)


def _write(recipes: "list[Results]", output: Path, labels: str | None, figures: bool) -> None:
    from labelemb.report.comparison import summary_text
    from labelemb.report.write import write_report, write_side_by_side

    chosen = None if labels is None else [label.strip() for label in labels.split(",")]
    if len(recipes) == 1:
        page = write_report(recipes[0], output=output, labels=chosen, every_figure=figures)
    else:
        page = write_side_by_side(recipes, output, chosen)
    for results in recipes:
        if len(recipes) > 1:
            print(f"{results.recipe}:")
        print(summary_text(results))
    print(page)


def _print_json(recipes: "list[Results]") -> None:
    import json

    from labelemb.report.write import full_summary

    found = [full_summary(results) for results in recipes]
    print(json.dumps(found[0] if len(found) == 1 else {"recipes": found}, indent=1, allow_nan=False))


def _serve(folders: list[Path], bind: str, port: int) -> None:
    from labelemb.report.serve import LivePage, make_server

    server, address = make_server(LivePage(folders), bind, port)
    print(address, flush=True)
    with server:
        server.serve_forever()


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
