"""What is said when a command fails, and its exit code."""

import os
import sys
from traceback import print_exception

import typer

from labelemb.errors import InputError, RunFailed, described
from labelemb.extras import how_to_install
from labelemb.files import describe_lack_of_space, is_out_of_space
from labelemb.settings.recipe import setting_names
from labelemb.training.launch import speaks_for_all
from labelemb.training.stopping import Stopped

_LONGEST = 1500  # characters of what is said of a mistake


def exit_code_of(error: Exception | KeyboardInterrupt, arguments: list[str], *, traceback: bool = False) -> int:
    """Say in one line what went wrong; the exit code. Only what was raised as InputError is the user's, the rest ours.

    With `traceback`, or LABELEMB_TRACEBACK=1 in the environment, all of it is shown first.
    """
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return say_interrupted()
    if traceback or os.environ.get("LABELEMB_TRACEBACK") == "1":
        print_exception(error)
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # a usage error; where its class stands differs between versions of typer
        message = _usage(error, format_message(), arguments)
        return _say(message, 2) if message else 2  # without a message, help was printed
    if isinstance(error, BrokenPipeError):  # whoever read standard output has enough of it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return 1
    if isinstance(error, InputError | Stopped) and not speaks_for_all():
        return 2 if isinstance(error, InputError) else 128 + error.signal_number
    if isinstance(error, InputError):
        return _say(str(error), 2)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != "labelemb":
        return _say(f"this command needs {error.name}: {how_to_install(error.name)}", 2)
    if isinstance(error, Stopped):
        return _say(str(error), 128 + error.signal_number)
    if is_out_of_space(error):
        way_on = "go on with --resume" if arguments[:1] == ["train"] else "give the same command again"
        return _say(f"{describe_lack_of_space(error)}, then {way_on}", 1)
    if isinstance(error, OSError) and error.filename and error.strerror:  # the machine's state, no mistake of ours
        return _say(f"{error.filename2 or error.filename}: {error.strerror}", 1)
    return _say(str(error).splitlines()[0] if isinstance(error, RunFailed) else described(error), 1)


def say_interrupted() -> int:
    """Say so; the exit code."""
    return _say("interrupted", 130)


def _usage(error: Exception, message: str, arguments: list[str]) -> str:
    """The message of a usage error, with the setting that was given as an option."""
    option = getattr(error, "option_name", None)
    for index, text in enumerate(arguments):
        name, _, value = text.partition("=")
        keys = setting_names(name.strip("-").replace("-", "_"))
        if name == option and keys and arguments[0] in ("train", "compare"):
            value = value or next(iter(arguments[index + 1 :]), "VALUE")
            return f"no such option {name}; did you mean {' or '.join(f'{key}={value}' for key in keys)}?"
    return message


def _say(message: str, code: int) -> int:
    line = " ".join(message.splitlines())  # a column's name may have a line break
    if len(line) > _LONGEST:  # what was given is in it, and of any length
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    print(f"labelemb: {line}", file=sys.stderr)
    return code
