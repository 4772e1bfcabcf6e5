"""The commands that show recipes and train by them: `recipes`, `train`, `compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelemb.commands.options import (
    Data,
    Device,
    Download,
    DryRun,
    Model,
    Name,
    Output,
    Overrides,
    Precision,
    Quiet,
    Recipe,
    Table,
    run_options,
)
from labelemb.errors import InputError
from labelemb.losses.catalogue import described
from labelemb.settings.config import Settings, describe, plain
from labelemb.settings.recipe import load_comparison, load_recipe, recipe_names

if TYPE_CHECKING:
    from labelemb.run_folder import RunFolder


def recipes(recipe: Annotated[str | None, typer.Argument(help="A recipe: every setting of it.")] = None) -> None:
    """List the recipes, or every setting of one."""
    if recipe is not None:
        for key, value, sentence in describe(load_recipe(recipe)):
            print(f"{key} = {_shown(value)}\n    {sentence}")
        return
    for name in recipe_names():
        settings = load_recipe(name)
        print(f"{name:<13} {settings.description} [data: {settings.data.source}]")


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    mode: Annotated[str | None, typer.Option("--mode", help="The soft labels to train with.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of network, batch order and augmentation.")] = None,
    output: Output = Path("runs"),
    name: Name = None,
    data: Data = None,
    table: Table = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    download: Download = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train one network with one seed."""
    options = run_options(name, data, table, model, device, precision)
    settings = load_recipe(recipe, overrides or (), options | {"mode": mode, "seed": seed})
    if dry_run:
        _print_settings(settings)
        return
    from labelemb.commands.terminal import step_progress
    from labelemb.experiments.job import execute, plan

    job = plan(settings, output, resume=resume, download=download)
    title = f"{settings.recipe} {settings.name} seed {settings.seed}"
    with step_progress(title, quiet, _formulas([settings])) as progress:
        execute(job, progress)
    if not quiet:
        print(_last_row(job.folder.metrics))
        print(job.folder.path)


def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    modes: Annotated[str | None, typer.Option("--modes", help="Modes with commas; default: the recipe's.")] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="Seeds of each mode; default: the recipe's.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Runs at a time; default: one a core, one a GPU.")] = None,
    output: Output = Path("runs"),
    name: Name = None,
    data: Data = None,
    table: Table = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
    download: Download = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train several modes with several seeds each, then show table, curves and learned labels."""
    options = run_options(name, data, table, model, device, precision)
    chosen = None if modes is None else [mode.strip() for mode in modes.split(",")]
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: expected at least 1")
    planned = load_comparison(recipe, overrides or (), options | {"compare.modes": chosen, "compare.runs": runs})
    if dry_run:
        for settings in planned:
            _print_settings(settings)
        return
    _compare(planned, jobs, output, download, quiet)


def _compare(planned: list[Settings], num_workers: int | None, output: Path, download: bool, quiet: bool) -> None:
    from labelemb.commands.terminal import comparison_progress
    from labelemb.experiments.job import plan
    from labelemb.experiments.workers import execute_all, num_cores
    from labelemb.report.comparison import summary_text
    from labelemb.report.page import write_report
    from labelemb.report.summary import read_results

    if num_workers is None:
        from labelemb.training.device import choose_device

        num_workers = num_cores() if choose_device(planned[0].device).type == "cpu" else 1
    jobs = [plan(settings, output, resume=True, download=download) for settings in planned]
    with comparison_progress(planned[0].recipe, quiet, _final, _formulas(planned)) as progress:
        execute_all(jobs, num_workers, progress)
    results = read_results([output / planned[0].recipe])
    page = write_report(results)
    print(summary_text(results))
    print(page)


def _formulas(planned: Sequence[Settings]) -> list[str]:
    """Which loss is in force under each name, with its numbers."""
    formulas = {settings.name: described(settings.mode, settings.loss) for settings in planned}
    return [f"{name}: {formula.partition(': ')[2]}" for name, formula in formulas.items()]


def _print_settings(settings: Settings) -> None:
    import yaml

    print(yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True), end="---\n")


def _shown(value: Any) -> str:
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)


def _final(folder: "RunFolder") -> str:
    """What a finished run is compared by, e.g. `test error 1.25 %`."""
    from labelemb.report.summary import Run

    run = Run(folder)
    name, percent, _ = run.metric.title.partition(" %")
    return name if run.final is None else f"{name} {run.metric.scale * run.final:.2f}{percent}"


def _last_row(rows: list[dict[str, Any]]) -> str:
    shown = {key: value for key, value in rows[-1].items() if not key.startswith("train_")}
    return "  ".join(f"{key} {value:.4g}" for key, value in shown.items() if value is not None)
