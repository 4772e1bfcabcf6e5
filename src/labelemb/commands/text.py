"""The commands of text data, and of predictions, which every trained run makes: `preprocess`, `predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from labelemb.commands.options import Device, Model, options_of, with_parameters
from labelemb.errors import InputError
from labelemb.settings.preprocess import PreprocessOptions


@with_parameters(options_of(PreprocessOptions))
def preprocess(**options: Any) -> None:
    """Encode parallel text, or LCSTS, as a corpus to train on."""
    from labelemb.text.corpus.preprocess import preprocess as write_corpus

    print(write_corpus(PreprocessOptions(**options)))


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
    calibrated: Annotated[
        bool | None,
        typer.Option("--calibrated/--raw", help="Image runs: logits over the run's temperature, or as they are."),
    ] = None,
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
    options |= {"max_length": max_length, "attention": attention, "calibrated": calibrated}
    print(TASKS[settings.task].predict(folder, settings, options, device or "auto"))
