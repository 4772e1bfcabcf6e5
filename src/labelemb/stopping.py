"""Being asked to stop: the request is remembered, and answered when all state is whole."""

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
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
