"""What can go wrong, in two classes: the user's input, and a run. Anything else is a mistake in this package."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).parent


class InputError(ValueError):
    """What the user gave cannot be used. One clear line; the command line prints it and exits with 2."""


class RunFailed(Exception):  # noqa: N818
    """A run that could not be done, for no fault of its input."""


@contextmanager
def input_errors(origin: str = "") -> Iterator[None]:
    """Make the library's ValueError an InputError, with what was read or set in front.

    For calls whose arguments come from the user as they are, and that do nothing but check and keep them: around
    anything that computes it would hide mistakes of our own.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise InputError(f"{origin}{error}") from error


def first_line(error: BaseException) -> str:
    """Of its message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def named_line(error: BaseException) -> str:
    """The class of an error, and the first line of its message where it has one."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def described(error: BaseException) -> str:
    """One line on an error that nobody expected: class, first line of its message, where in labelemb it arose."""
    return f"{named_line(error)} {_place(error)}".rstrip()


def _place(error: BaseException) -> str:
    """`(labelemb/losses/table.py:45)`: the innermost line of this package that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    if not inside:
        return ""
    return f"({Path(inside[-1].filename).relative_to(_PACKAGE.parent).as_posix()}:{inside[-1].lineno})"
