"""The commands that use a trained run on other data: `predict`, `export`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labelemb.commands.options import Device, Model
from labelemb.errors import InputError

if TYPE_CHECKING:
    from labelemb.run_folder import RunFolder
    from labelemb.settings.config import Settings


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    source: Annotated[
        Path | None,
        typer.Argument(help="What to predict: a file or a folder, - for standard input; default: the test set."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File to write; default: standard output.")] = None,
    src: Annotated[Path | None, typer.Option("--src", help="The same as SOURCE.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A data set or corpus; its test set is scored.")] = None,
    ref: Annotated[Path | None, typer.Option("--ref", help="References of the source, to score against.")] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="best (text: the default) or last.")] = None,
    beam: Annotated[int | None, typer.Option("--beam", help="Hypotheses kept, 1 for greedy.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Most output tokens.")] = None,
    attention: Annotated[Path | None, typer.Option("--attention", help="File of attention weights.")] = None,
    calibrated: Annotated[
        bool | None,
        typer.Option("--calibrated/--raw", help="Probabilities over the run's temperature, or as they are."),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="So many labels with the largest probabilities.")] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Write translations, summaries or class predictions; score them where references are given."""
    folder, settings = _trained(run, model)
    if source is not None and src is not None:
        raise InputError(f"{source} and --src {src}: expected one of the two")
    from labelemb.experiments.tasks import TASKS

    source = source or src
    options = {"output": output, "source": source, "data": data, "ref": ref, "checkpoint": checkpoint, "beam": beam}
    options |= {"max_length": max_length, "attention": attention, "calibrated": calibrated, "top_k": top_k}
    said = TASKS[settings.task].predict(folder, settings, options, device or "auto")
    print(said, file=sys.stderr if output is None else sys.stdout)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, of class predictions.")],
    output: Annotated[Path | None, typer.Option("--output", help="File to write; default: RUN/model.onnx.")] = None,
    model: Model = None,
) -> None:
    """Write a trained classifier as an ONNX file, with its label names; the label table is not needed."""
    folder, settings = _trained(run, model)
    from labelemb.experiments.tasks import TASKS

    print(TASKS[settings.task].export(folder, settings, output or run / "model.onnx"))


def _trained(run: Path, model: str | None) -> "tuple[RunFolder, Settings]":
    """A run and its settings.

    Raises:
        InputError: it is no run, or its network is code of the user's that was not named here, too.
    """
    from labelemb.run_folder import RunFolder
    from labelemb.settings.recipe import parse_settings

    folder = RunFolder(run)
    if not folder.exists:
        raise InputError(f"{run}: expected a run folder, with a config.yaml")
    settings = parse_settings(folder.config, origin=str(run / "config.yaml"))
    name = settings.model.name
    if ":" in name and model != name:
        raise InputError(f"{run}: model.name: a run folder cannot name code to import; pass --model {name}")
    return folder, settings
