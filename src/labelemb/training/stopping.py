"""Being asked to stop: the request is remembered, and answered when all state is whole."""

import os
import signal
from types import FrameType
from typing import Any, Self


class Stopped(Exception):  # noqa: N818 (no error: what was asked for)
    """The run was asked to stop, and can be resumed. `signal_number` says by what."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; the run can be resumed")
        self.signal_number = signal_number


class StopSignals:
    """Turns SIGINT and SIGTERM into a request that the loop answers between two steps, when all state is whole."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def answer_at_once(self) -> None:
        """From here on all state is whole: raise Stopped wherever a signal comes, and now if one has come."""
        self._at_once = True
        if self.signal_number is not None:
            raise Stopped(self.signal_number)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        if self._at_once:
            raise Stopped(number)


def expect_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as Python does, but end the process at once while it imports something.

    What is imported may swallow the exception (NumPy's and torch's C code do) and the command would go on, or turn it
    into an error of its own. Nothing is half written then.
    """
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            show_cursor = b"\r\x1b[K\x1b[?25h" if os.isatty(2) else b""  # which a progress bar may have hidden
            os.write(2, show_cursor + b"labelemb: interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt
