"""Which commands there are. Nothing heavy is imported before it is needed: help and errors answer at once."""

from typing import Annotated

import typer

from labelemb import __version__
from labelemb.commands.predictions import export, predict
from labelemb.commands.results import neighbors, report
from labelemb.commands.text import preprocess
from labelemb.commands.training import compare, recipes, train

TRACEBACK = "--traceback with any command, or LABELEMB_TRACEBACK=1, shows where an error arose."

app = typer.Typer(
    name="labelemb",
    help="Train deep networks with learned soft labels.",
    no_args_is_help=True,
    epilog=TRACEBACK,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _before_all(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"labelemb {__version__}")
        raise typer.Exit


for _function in (recipes, train, compare, preprocess, predict, export, report, neighbors):
    app.command(epilog=TRACEBACK)(_function)


def command_line() -> typer.core.TyperGroup:
    """All commands, to be called with arguments."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group
