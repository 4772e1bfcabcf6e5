"""The commands that show recipes and train by them: `recipes`, `train`, `compare`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelemb.commands.options import (
    Data,
    Device,
    Download,
    DryRun,
    LabelNames,
    Model,
    Name,
    Output,
    Overrides,
    Precision,
    Quiet,
    Recipe,
    Table,
    Tune,
    TuneRuns,
    ValidFraction,
    run_options,
)
from labelemb.errors import InputError
from labelemb.losses.catalogue import described
from labelemb.settings.config import Settings, describe, plain
from labelemb.settings.recipe import Comparison, load_recipe, pairs_of, read_comparison, recipe_names
from labelemb.training.launch import launched_together

if TYPE_CHECKING:
    from labelemb.experiments.job import Job
    from labelemb.experiments.tuning import Rule
    from labelemb.experiments.tuning_runs import Trials
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
    valid_fraction: ValidFraction = None,
    label_names: LabelNames = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    download: Download = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train one network with one seed."""
    options = run_options(name, data, table, model, device, precision, valid_fraction, label_names)
    recipe, options = _told(recipe, overrides or (), options)
    settings = load_recipe(recipe, overrides or (), options | {"mode": mode, "seed": seed})
    if dry_run:
        _print_settings(settings)
        return
    from labelemb.commands.terminal import step_progress
    from labelemb.experiments.job import execute, plan
    from labelemb.training.launch import num_restarts
    from labelemb.training.processes import joined

    with joined() as together:
        if not together.is_first:
            quiet = True
        job = together.first_decides(
            partial(plan, settings, output, resume=resume or num_restarts() > 0, download=download)
        )
        title = f"{settings.recipe} {settings.name} seed {settings.seed}"
        opening = [] if quiet else [*_notes([job]), *_formulas([settings])]
        with step_progress(title, quiet, opening) as progress:
            execute(job, progress)
    if not quiet:
        print(_last_row(job.folder.metrics))
        print(job.folder.path)


def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    modes: Annotated[
        str | None,
        typer.Option("--modes", help="Modes with commas; NAME=MODE:SETTING=VALUE is one with other settings."),
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="Seeds of each mode; default: the recipe's.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Runs at a time; default: one a core, one a GPU.")] = None,
    tune: Tune = None,
    tune_runs: TuneRuns = 2,
    output: Output = Path("runs"),
    name: Name = None,
    data: Data = None,
    table: Table = None,
    model: Model = None,
    device: Device = None,
    precision: Precision = None,
    valid_fraction: ValidFraction = None,
    label_names: LabelNames = None,
    download: Download = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train several modes with several seeds each, then show table, curves and learned labels."""
    options = run_options(name, data, table, model, device, precision, valid_fraction, label_names)
    recipe, options = _told(recipe, overrides or (), options)
    chosen = None if modes is None else [mode.strip() for mode in modes.split(",")]
    if launched_together():
        raise InputError("compare starts its runs by itself, --jobs at a time; torchrun is for one run: labelemb train")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: expected at least 1")
    asked = read_comparison(recipe, overrides or (), options | {"compare.modes": chosen, "compare.runs": runs})
    trials = _planned_trials(asked, tune, tune_runs, output, download)
    if dry_run:
        _print_plan(asked, trials)
        return
    from labelemb.experiments.job import plan
    from labelemb.experiments.tuning import overrides_of
    from labelemb.experiments.tuning_runs import write_records

    folder = output / asked.first.recipe
    num_workers = _num_workers(asked.first) if jobs is None else jobs
    records = _tune(trials, folder.name, num_workers, quiet)
    overrides_of_names = {name: overrides_of(each["chosen"]) for name, each in records.items()}
    final_runs = asked.settings_of_runs(overrides_of_names)
    planned = [plan(each, output, resume=True, download=download) for each in final_runs]
    if records:  # not before: where the final runs that are there were refused, it would tell of others
        write_records(folder, records)
    _compare(planned, folder, num_workers, quiet, [] if records else _notes(planned))


def _told(recipe: str, overrides: Sequence[str], options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The recipe and the options where data were given in its place; a recipe's name comes first, `./NAME` is data."""
    path = Path(recipe)
    if recipe in recipe_names() or path.suffix in (".yaml", ".yml") or not path.exists():
        return recipe, options
    if options["data.path"] is not None:
        raise InputError(f"--data {options['data.path']}: {recipe} are the data; give a recipe, or no --data")
    from labelemb.classify.own_data import recipe_for

    given = dict(pairs_of(overrides))
    told = recipe_for(path, given)
    found = {key: value for key, value in told.options.items() if key not in given}
    return told.recipe, found | {key: value for key, value in options.items() if value is not None}


def _planned_trials(asked: Comparison, tune: str | None, num_runs: int, output: Path, download: bool) -> "list[Trials]":
    from labelemb.experiments.tuning import parse_grid
    from labelemb.experiments.tuning_runs import plan_tuning

    return [] if tune is None else plan_tuning(asked, parse_grid(tune), num_runs, output, download=download)


def _print_plan(asked: Comparison, trials: "list[Trials]") -> None:
    """What a dry run shows: every setting, or of what is to be tuned the points."""
    from labelemb.experiments.tuning import folder_name

    for each in trials:
        print(f"{each.name}: {sum(map(len, each.jobs))} runs of tuning")
        for point in each.points if each.jobs else []:
            print(f"    {folder_name(point)}")
    for settings in [] if trials else asked.settings_of_runs():
        _print_settings(settings)


def _num_workers(settings: Settings) -> int:
    from labelemb.experiments.workers import num_cores
    from labelemb.training.device import choose_device

    return num_cores() if choose_device(settings.device).type == "cpu" else 1


def _tune(trials: "list[Trials]", title: str, num_workers: int, quiet: bool) -> dict[str, dict[str, Any]]:
    """Do the runs of tuning; what tuning.json says of each mode."""
    from labelemb.commands.terminal import comparison_progress
    from labelemb.experiments.tuning_runs import record
    from labelemb.experiments.workers import execute_all

    jobs = [job for each in trials for of_point in each.jobs for job in of_point]
    if jobs:
        judged = partial(_trial, trials[0].rule)
        with comparison_progress(f"{title} tuning", quiet, judged, _notes(jobs)) as progress:
            execute_all(jobs, num_workers, progress)
    return {each.name: record(each) for each in trials}


def _compare(jobs: "list[Job]", folder: Path, num_workers: int, quiet: bool, notes: Sequence[str]) -> None:
    from labelemb.commands.terminal import comparison_progress
    from labelemb.experiments.workers import execute_all
    from labelemb.report.comparison import summary_text
    from labelemb.report.summary import read_results
    from labelemb.report.write import write_report

    opening = [*notes, *_formulas([job.settings for job in jobs])]
    with comparison_progress(folder.name, quiet, _final, opening) as progress:
        execute_all(jobs, num_workers, progress)
    results = read_results([folder])
    page = write_report(results)
    print(summary_text(results))
    print(page)


def _notes(jobs: "Sequence[Job]") -> list[str]:
    """What is to be known of the data, read once before anything is written; nothing where all runs are done."""
    from labelemb.experiments.tasks import TASKS

    job = next((job for job in jobs if not job.folder.is_finished), None)
    return [] if job is None else TASKS[job.settings.task].notes(job.settings, job.download)


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


def _trial(rule: "Rule", folder: "RunFolder") -> str:
    """What a run of tuning is judged by, e.g. `valid_error 0.0125`."""
    from labelemb.experiments.tuning_runs import value_of

    value = value_of(folder, rule)
    return f"{rule.column} diverged" if value is None else f"{rule.column} {value:.4g}"


def _last_row(rows: list[dict[str, Any]]) -> str:
    shown = {key: value for key, value in rows[-1].items() if not key.startswith("train_")}
    return "  ".join(f"{key} {value:.4g}" for key, value in shown.items() if value is not None)
