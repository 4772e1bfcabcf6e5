"""The command line. Nothing heavy is imported before it is needed: help and errors answer at once."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelemb import __version__
from labelemb.extras import how_to_install
from labelemb.files import describe_lack_of_space, is_out_of_space
from labelemb.settings.config import InputError, Settings, describe, plain
from labelemb.settings.recipe import load_comparison, load_recipe, recipe_names, setting_names
from labelemb.training.stopping import expect_interrupts

if TYPE_CHECKING:
    from labelemb.run_folder import RunFolder

app = typer.Typer(
    name="labelemb",
    help="Train deep networks with learned soft labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.", autocompletion=recipe_names)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe, e.g. optimizer.lr=0.01.")
]
Output = Annotated[Path, typer.Option("--output", help="Folder that run folders are written to.")]
Name = Annotated[str | None, typer.Option("--name", help="Name in place of the recipe's, in the output folder.")]
Data = Annotated[Path | None, typer.Option("--data", help="Local data: a folder, or a cached file.")]
Table = Annotated[Path | None, typer.Option("--table", help="A learned label table, for emb-start and emb-frozen.")]
Model = Annotated[str | None, typer.Option("--model", help="Your own network: module:function, or timm:NAME.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str | None, typer.Option("--precision", help="float32 or bfloat16.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the recipe's data set where it is not here.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"labelemb {__version__}")
        raise typer.Exit


@app.command()
def recipes(recipe: Annotated[str | None, typer.Argument(help="A recipe: every setting of it.")] = None) -> None:
    """List the recipes, or every setting of one."""
    if recipe is not None:
        for key, value, sentence in describe(load_recipe(recipe)):
            print(f"{key} = {_shown(value)}\n    {sentence}")
        return
    for name in recipe_names():
        settings = load_recipe(name)
        print(f"{name:<13} {settings.description} [data: {settings.data.source}]")


@app.command()
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
    options = _options(name, data, table, model, device, precision) | {"mode": mode, "seed": seed}
    settings = load_recipe(recipe, overrides or (), options)
    if dry_run:
        _print_settings(settings)
        return
    from labelemb.commands.terminal import step_progress
    from labelemb.experiments.comparison import execute, plan

    job = plan(settings, output, resume=resume, download=download)
    with step_progress(f"{settings.recipe} {settings.name} seed {settings.seed}", quiet) as progress:
        execute(job, progress)
    if not quiet:
        print(_last_row(job.folder.metrics))
        print(job.folder.path)


@app.command()
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
    options = _options(name, data, table, model, device, precision)
    if modes is not None:
        options["compare.modes"] = [mode.strip() for mode in modes.split(",")]
    if runs is not None:
        options["compare.runs"] = runs
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: expected at least 1")
    every = load_comparison(recipe, overrides or (), options)
    if dry_run:
        for settings in every:
            _print_settings(settings)
        return
    _compare(every, jobs, output, download, quiet)


def _compare(every: list[Settings], num_workers: int | None, output: Path, download: bool, quiet: bool) -> None:
    from labelemb.commands.terminal import comparison_progress
    from labelemb.experiments.comparison import execute_all, num_cores, plan
    from labelemb.report.comparison import summary_text
    from labelemb.report.page import write_report
    from labelemb.report.summary import read_results

    if num_workers is None:
        from labelemb.training.device import choose_device

        num_workers = num_cores() if choose_device(every[0].device).type == "cpu" else 1
    jobs = [plan(settings, output, resume=True, download=download) for settings in every]
    with comparison_progress(every[0].recipe, quiet, _final) as progress:
        execute_all(jobs, num_workers, progress)
    results = read_results([output / every[0].recipe])
    page = write_report(results)
    print(summary_text(results))
    print(page)


@app.command()
def preprocess(
    save_data: Annotated[Path, typer.Option(help="Folder to write the corpus to.")],
    train_src: Annotated[Path | None, typer.Option(help="Training source, one sentence a line (.gz too).")] = None,
    train_tgt: Annotated[Path | None, typer.Option(help="Training target, line by line the source's.")] = None,
    valid_src: Annotated[Path | None, typer.Option(help="Development source.")] = None,
    valid_tgt: Annotated[Path | None, typer.Option(help="Development target.")] = None,
    test_src: Annotated[Path | None, typer.Option(help="Test source; the test pair may be left out.")] = None,
    test_tgt: Annotated[Path | None, typer.Option(help="Test target.")] = None,
    lcsts: Annotated[Path | None, typer.Option(help="Folder of the LCSTS distribution, for the six files.")] = None,
    lower: Annotated[bool, typer.Option("--lower", help="Lower-case the tokens.")] = False,
    share: Annotated[bool, typer.Option("--share", help="One vocabulary and embedding for both sides.")] = False,
    char: Annotated[bool, typer.Option("--char", help="Characters as tokens.")] = False,
    bpe: Annotated[int | None, typer.Option(help="Subwords as tokens: size of the vocabulary.")] = None,
    src_vocab_size: Annotated[int, typer.Option(help="Most source entries.")] = 50000,
    tgt_vocab_size: Annotated[int, typer.Option(help="Most target entries.")] = 50000,
    src_length: Annotated[int, typer.Option(help="Longest training source, in tokens.")] = 50,
    tgt_length: Annotated[int, typer.Option(help="Longest training target, in tokens.")] = 50,
    cut: Annotated[bool, typer.Option("--cut", help="Shorten longer sources instead of dropping pairs.")] = False,
    src_vocab: Annotated[Path | None, typer.Option(help="An existing source vocabulary (JSON).")] = None,
    tgt_vocab: Annotated[Path | None, typer.Option(help="An existing target vocabulary (JSON).")] = None,
    allow_dropping: Annotated[
        bool, typer.Option("--allow-dropping", help="Go on if length limits remove most pairs.")
    ] = False,
) -> None:
    """Encode parallel text, or LCSTS, as a corpus to train on."""
    options = locals()  # one to one the fields of PreprocessOptions
    from labelemb.text.corpus.preprocess import PreprocessOptions
    from labelemb.text.corpus.preprocess import preprocess as write_corpus

    print(write_corpus(PreprocessOptions(**options)))


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path, typer.Option("--output", help="File to write.")],
    src: Annotated[Path | None, typer.Option("--src", help="Text runs: source lines (.gz too).")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A data set or corpus; its test set is scored.")] = None,
    ref: Annotated[Path | None, typer.Option("--ref", help="References of --src, to score against.")] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="best (text: the default) or last.")] = None,
    beam: Annotated[int | None, typer.Option("--beam", help="Hypotheses kept, 1 for greedy.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Most output tokens.")] = None,
    attention: Annotated[Path | None, typer.Option("--attention", help="File of attention weights.")] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Write translations, summaries or class predictions; score them where references are given."""
    from labelemb.run_folder import RunFolder
    from labelemb.settings.recipe import parse_settings

    folder = RunFolder(run)
    if not folder.exists:
        raise InputError(f"{run}: expected a run folder, with a config.yaml")
    settings = parse_settings(folder.config, origin=str(run / "config.yaml"))
    name = settings.model.name
    if ":" in name and model != name:
        raise InputError(f"{run}: model.name: a run folder cannot name code to import; pass --model {name}")
    from labelemb.experiments.tasks import TASKS

    options = {"output": output, "src": src, "data": data, "ref": ref, "checkpoint": checkpoint, "beam": beam}
    options |= {"max_length": max_length, "attention": attention}
    print(TASKS[settings.task].predict(folder, settings, options, device or "auto"))


@app.command()
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


@app.command()
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
            f"no label table at {path}: expected the folder of a run in mode emb or emb-start{_one_of(run)}"
        )
    from labelemb.losses.table import LabelTable

    table = LabelTable.load(path)
    names = table.label_names or [str(index) for index in range(table.num_classes)]
    chosen: list[str | int] = list(labels or names) if table.label_names else [int(label) for label in labels or names]
    for label, pairs in zip(chosen, table.nearest(chosen if labels else None, k), strict=True):
        print(f"{label}\t" + "  ".join(f"{name} {value:.3f}" for name, value in pairs))


def main() -> None:
    """The command `labelemb`: exit code 0, 1 (a run failed), 2 (input), 130 and 143 (stopped, resumable)."""
    expect_interrupts()
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:  # while a mistake was told
        code = _fail("interrupted", 130)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: the interpreter's own end would show a traceback
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="labelemb", standalone_mode=False)
    except typer.Exit as exit_request:
        code = exit_request.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except ValueError as error:  # InputError, and what the library says of arguments that came from here
        return _fail(str(error), 2)
    except FileNotFoundError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        return _fail(f"this command needs {error.name}: {how_to_install(error.name)}", 2)
    except Exception as error:
        return _fail_of(error, arguments)
    return _fail("interrupted", 130) if code == 130 else int(code or 0)  # typer makes 130 of Ctrl-C


def _fail_of(error: Exception, arguments: list[str]) -> int:
    """The exit code of what is neither success nor input: a usage error, a request to stop, a run that failed."""
    from labelemb.experiments.comparison import RunFailed
    from labelemb.training.stopping import Stopped

    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # a usage error; where its class stands differs between versions of typer
        message = _usage(error, format_message(), arguments)
        return _fail(message, 2) if message else 2  # without a message, help was printed
    if isinstance(error, Stopped):
        return _fail(str(error), 128 + error.signal_number)
    if is_out_of_space(error):
        way_on = "go on with --resume" if arguments[:1] == ["train"] else "give the same command again"
        return _fail(f"{describe_lack_of_space(error)}, then {way_on}", 1)
    what = f"{error}" if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
    return _fail(what.splitlines()[0], 1)


def _usage(error: Exception, message: str, arguments: list[str]) -> str:
    """The message of a usage error, with the setting that was given as an option, or what --src takes."""
    option = getattr(error, "option_name", None)
    for index, text in enumerate(arguments):
        name, _, value = text.partition("=")
        keys = setting_names(name.strip("-").replace("-", "_"))
        if name == option and keys and arguments[0] in ("train", "compare"):
            value = value or next(iter(arguments[index + 1 :]), "VALUE")
            return f"no such option {name}; did you mean {' or '.join(f'{key}={value}' for key in keys)}?"
    if arguments[:1] == ["predict"] and "unexpected extra argument" in message:
        return f"{message}; the text to translate is given as --src FILE"
    return message


def _fail(message: str, code: int) -> int:
    print(f"labelemb: {message}", file=sys.stderr)
    return code


def _one_of(folder: Path) -> str:
    """The first table below a folder of several runs, as a hint."""
    from labelemb.run_folder import TABLE_FILE

    tables = sorted(folder.rglob(TABLE_FILE))
    return f", e.g. {tables[0].parent}" if tables else ""


def _options(
    name: str | None,
    data: Path | None,
    table: Path | None,
    model: str | None,
    device: str | None,
    precision: str | None,
) -> dict[str, Any]:
    return {
        "recipe": name,
        "data.path": data,
        "table": table,
        "model.name": model,
        "device": device,
        "precision": precision,
    }


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
