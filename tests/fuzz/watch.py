"""One command under watch: what it said, what it touched, how long it took; and which of that is a fault."""

import faulthandler
import io
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NamedTuple

LIMIT_SECONDS = 5.0
LONGEST_LINE = 2000  # of what is said of a mistake: a screen, not a file
CANARY = "canary"  # the name of the file, and the module, that nothing may make or import

_INTERNAL = re.compile(
    r"^labelemb: (?!FloatingPointError)\w{1,60}(: .*)? \(labelemb/\S+\.py:\d+\)$"
)  # not: training diverged
_OF_PYTHON = re.compile(r"Traceback \(most recent call last\)|Warning: |Exception ignored in")
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class"}
_CONNECTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}


class TooSlow(BaseException):
    """The command took longer than it may; no `except Exception` stops this."""


class Outcome(NamedTuple):
    """What became of one command."""

    code: int | None
    """None where it did not return."""
    said: str
    """On standard error, by Python or by a library."""
    out: str
    escaped: str = ""
    """The traceback of what it did not catch."""
    warned: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    """What it wrote, removed or changed where it may not, ran or asked the network for."""
    seconds: float = 0.0


def faults(outcome: Outcome) -> list[str]:
    """What a command may not do, whatever it was given; empty where all is well."""
    found = [f"touched: {each}" for each in outcome.touched] + [f"warned: {each}" for each in outcome.warned]
    if outcome.escaped:
        return [f"escaped: {outcome.escaped}", *found]
    if _OF_PYTHON.search(outcome.said) or _OF_PYTHON.search(outcome.out):
        found.append("a traceback or a warning was printed")
    if outcome.code not in (0, 1, 2):
        found.append(f"exit code {outcome.code}")
    if outcome.code in (1, 2):
        found += _faults_of_a_line(outcome.said)
    return found


def _faults_of_a_line(said: str) -> list[str]:
    """Of what is said of a mistake: one line, ours, not of an error that nobody expected, not endless."""
    last = said.splitlines()[-1] if said.strip() else ""
    found = []
    if not last.startswith("labelemb: "):
        found.append(f"no line that says why: {last[:200]!r}")
    if _INTERNAL.match(last):
        found.append("an internal error")
    if len(last) > LONGEST_LINE:
        found.append(f"a line of {len(last):,} characters")
    others = [line for line in said.splitlines()[:-1] if not line.startswith(("data: ", "warning: ", "labelemb: "))]
    return [*found, *(f"beside the line: {line[:200]!r}" for line in others[:1])]


def watched(
    run: Callable[[list[str]], int],
    arguments: Sequence[str],
    sandbox: Path,
    may_write: Sequence[str],
    stdin: bytes = b"",
    limit_seconds: float = LIMIT_SECONDS,
) -> Outcome:
    """Run a command in a folder of its own.

    Args:
        run: the command line, as `labelemb.__main__.run`.
        arguments: what it is given.
        sandbox: the current folder meanwhile; it holds all that the command reads.
        may_write: names in the sandbox at or below which it may write.
        stdin: what it reads from standard input.
        limit_seconds: how long it may take.
    """
    before, start = _listing(sandbox, may_write), time.monotonic()
    code, escaped = None, ""
    with _streams(stdin) as printed, _warnings() as warned, _in_folder(sandbox), _heard(sandbox, may_write) as heard:
        try:
            with _time_limit(limit_seconds):
                code = run(list(arguments))
        except TooSlow:
            escaped = f"still at work after {limit_seconds:g} seconds\n{traceback.format_exc()}"
        except BaseException:
            escaped = traceback.format_exc()
    (out, said), seconds = printed, time.monotonic() - start
    after = _listing(sandbox, may_write)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    lines = tuple(f"{each.category.__name__}: {each.message}" for each in warned)
    touched = tuple(dict.fromkeys([*heard, *(f"changed {name}" for name in changed)]))
    return Outcome(code, said, out, escaped, lines, touched, seconds)


def _listing(sandbox: Path, may_write: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Every name in the sandbox that may not be written, with its kind, size and time."""
    listing = {}
    for folder, folders, files in os.walk(sandbox):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, sandbox)
            if not _is_below(relative, may_write):
                found = os.lstat(path)
                size = 0 if name in folders else found.st_size
                listing[relative] = (found.st_mode, size, 0 if name in folders else found.st_mtime_ns)
    return listing


def _is_below(relative: str, names: Sequence[str]) -> bool:
    return any(relative == name or relative.startswith(f"{name}/") for name in names)


@contextmanager
def _streams(stdin: bytes) -> Iterator[list[str]]:
    """Standard streams that are files, for libraries written in C too; yields a list that will hold both contents."""
    printed: list[str] = []
    before = sys.stdin, sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        kept = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(error.fileno(), 2)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        sys.stdout = _text(1, "strict")
        sys.stderr = _text(2, "backslashreplace")  # as Python has them
        try:
            yield printed
        finally:
            sys.stderr.flush()
            printed += [_content(out), _content(error)]
            for number, handle in enumerate(kept, 1):
                os.dup2(handle, number)
                os.close(handle)
            sys.stdin, sys.stdout, sys.stderr = before


def _text(handle: int, errors: str) -> io.TextIOWrapper:
    return open(handle, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False)


def _content(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(2**20).decode("utf-8", "replace")


@contextmanager
def _warnings() -> Iterator[list[warnings.WarningMessage]]:
    """All that would be shown, each time and not once a process."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        yield found


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Be in a folder, and import from it, as a command does."""
    before = Path.cwd()
    os.chdir(folder)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        sys.modules.pop(CANARY, None)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow after so many seconds of work, or five times as many of waiting, and again each second after.

    What no signal reaches, such as a loop in C, ends the process.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    clocks = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}  # a busy machine slows the second
    before = {number: signal.signal(number, stop) for number in clocks}
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    signal.setitimer(signal.ITIMER_REAL, 5 * seconds, 1.0)
    faulthandler.dump_traceback_later(20 * seconds, exit=True, file=2)
    try:
        yield
    finally:
        for number, clock in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])
        faulthandler.cancel_dump_traceback_later()


class _Ear:
    """Hears what Python is about to do. There is one a process: a hook cannot be taken back."""

    def __init__(self) -> None:
        self.tell: Callable[[str], None] | None = None
        self.may_write: Callable[[str], bool] = lambda path: True

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        if self.tell is None:
            return
        if event in _RUNS or event in _CONNECTS:
            self.tell(f"{event} {details!r}"[:200])
        elif event == "open" and _is_for_writing(details):
            self._check("wrote", details[0])
        elif (event in _WRITES and details[-1] in (-1, None)) or event in ("os.truncate", "os.chmod"):
            for path in details[: 2 if event in ("os.rename", "os.link") else 1]:
                self._check(event, path)

    def _check(self, what: str, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike) and self.tell and not self.may_write(os.fsdecode(path)):
            self.tell(f"{what} {os.fsdecode(path)}")


def _is_for_writing(details: tuple[Any, ...]) -> bool:
    _, mode, flags = details
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


@cache
def _ear() -> _Ear:
    ear = _Ear()
    sys.addaudithook(ear)
    return ear


@contextmanager
def _heard(sandbox: Path, may_write: Sequence[str]) -> Iterator[list[str]]:
    """What is written outside of where it may be, run, or asked of the network; the current folder is the sandbox."""
    places = [*(str(sandbox / name) for name in may_write), tempfile.gettempdir(), os.environ.get("LABELEMB_CACHE", "")]
    allowed = [os.path.realpath(place) for place in places if place]
    found: list[str] = []

    def may(path: str) -> bool:
        place = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
        return place == os.devnull or any(place == each or place.startswith(f"{each}/") for each in allowed)

    ear = _ear()
    ear.may_write, ear.tell = may, found.append
    try:
        yield found
    finally:
        ear.tell = None
