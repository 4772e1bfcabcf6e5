"""The options that several commands take, each with its name and its sentence."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from labelemb.settings.recipe import recipe_names

Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe's name, a YAML file; or your own data, a file of columns or a folder of class folders.",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe, e.g. optimizer.lr=0.01.")
]
Output = Annotated[Path, typer.Option("--output", help="Folder that run folders are written to.")]
Name = Annotated[str | None, typer.Option("--name", help="Name in place of the recipe's, in the output folder.")]
Data = Annotated[Path | None, typer.Option("--data", help="Local data: a folder, or a cached file.")]
ValidFraction = Annotated[
    float | None,
    typer.Option("--valid-fraction", help="Share of each label held out for validation, where there is no such part."),
]
LabelNames = Annotated[Path | None, typer.Option("--label-names", help="File of label names, one a line.")]
Table = Annotated[
    Path | None,
    typer.Option("--table", help="A learned label table, for modes that begin with one (*-start, *-frozen)."),
]
Model = Annotated[str | None, typer.Option("--model", help="Your own network: module:function, or timm:NAME.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[str | None, typer.Option("--precision", help="float32 or bfloat16.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the recipe's data set where it is not here.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Tune = Annotated[
    str | None,
    typer.Option("--tune", help="Tune every mode first, all alike: 'optimizer.lr=0.05,0.1; epsilon=0.1,0.3'."),
]
TuneRuns = Annotated[int, typer.Option("--tune-runs", help="Seeds of each point that is tried.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]


def run_options(
    name: str | None,
    data: Path | None,
    table: Path | None,
    model: str | None,
    device: str | None,
    precision: str | None,
    valid_fraction: float | None,
    label_names: Path | None,
) -> dict[str, Path | str | float | None]:
    """What these options set, by the dotted keys of a recipe; None for not given."""
    return {
        "recipe": name,
        "data.path": data,
        "data.validation": valid_fraction,
        "data.label_names": label_names,
        "table": table,
        "model.name": model,
        "device": device,
        "precision": precision,
    }


def options_of(settings: type) -> list[Parameter]:
    """An option for each field of a dataclass, whose annotation holds its type and its sentence."""
    parameters = []
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        kind, sentence = get_args(hints[field.name])
        flag = [f"--{field.name.replace('_', '-')}"] if kind is bool else []  # without a --no-... beside it
        default = typer.Option(... if field.default is MISSING else field.default, *flag, help=sentence)
        parameters.append(Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    return parameters


def with_parameters(parameters: Sequence[Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let typer see these parameters, by whose names it calls, in place of those that a function is written with."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def called(**values: Any) -> None:
            function(**values)

        called.__dict__["__signature__"] = Signature(parameters)
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate
