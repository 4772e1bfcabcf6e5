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


def described(error: BaseException) -> str:
    """One line on an error that nobody expected: class, first line of its message, where in labelemb it arose."""
    message = next(iter(str(error).splitlines()), "")
    name = type(error).__name__
    return " ".join(part for part in (f"{name}: {message}" if message else name, _place(error)) if part)


def _place(error: BaseException) -> str:
    """`(labelemb/losses/table.py:45)`: the innermost line of this package that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    if not inside:
        return ""
    return f"({Path(inside[-1].filename).relative_to(_PACKAGE.parent).as_posix()}:{inside[-1].lineno})"
