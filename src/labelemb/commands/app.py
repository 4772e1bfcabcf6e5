"""The command line: which commands there are, and what exit code an error becomes.

Nothing heavy is imported before it is needed: help and errors answer at once.
"""

import os
import signal
import sys
from traceback import print_exception
from typing import Annotated

import typer

from labelemb import __version__
from labelemb.commands.options import Traceback, taking_traceback
from labelemb.commands.results import neighbors, report
from labelemb.commands.text import predict, preprocess
from labelemb.commands.training import compare, recipes, train
from labelemb.errors import InputError, RunFailed, described
from labelemb.extras import how_to_install
from labelemb.files import describe_lack_of_space, is_out_of_space
from labelemb.settings.recipe import setting_names
from labelemb.training.stopping import Stopped, expect_interrupts

app = typer.Typer(
    name="labelemb",
    help="Train deep networks with learned soft labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    traceback: Traceback = False,
) -> None:
    if version:
        print(f"labelemb {__version__}")
        raise typer.Exit


for _function in (recipes, train, compare, preprocess, predict, report, neighbors):
    app.command()(taking_traceback(_function))


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
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="labelemb", standalone_mode=False)
    except typer.Exit as exit_request:
        code = exit_request.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        if "--traceback" in arguments or os.environ.get("LABELEMB_TRACEBACK") == "1":
            print_exception(error)
        return _fail_of(error, [argument for argument in arguments if argument != "--traceback"])
    return _fail("interrupted", 130) if code == 130 else int(code or 0)  # typer makes 130 of Ctrl-C


def _fail_of(error: Exception, arguments: list[str]) -> int:
    """Say what went wrong; the exit code. Only what was raised as InputError is the user's: the rest is ours."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # a usage error; where its class stands differs between versions of typer
        message = _usage(error, format_message(), arguments)
        return _fail(message, 2) if message else 2  # without a message, help was printed
    if isinstance(error, InputError):
        return _fail(str(error), 2)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != "labelemb":
        return _fail(f"this command needs {error.name}: {how_to_install(error.name)}", 2)
    if isinstance(error, Stopped):
        return _fail(str(error), 128 + error.signal_number)
    if is_out_of_space(error):
        way_on = "go on with --resume" if arguments[:1] == ["train"] else "give the same command again"
        return _fail(f"{describe_lack_of_space(error)}, then {way_on}", 1)
    if isinstance(error, RunFailed):
        return _fail(str(error).splitlines()[0], 1)
    return _fail(described(error), 1)


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
