"""How long the steps of an epoch take, over interruptions."""

import time


class Stopwatch:
    """Seconds that add up over starts and stops; what lies between a stop and the next start does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def start(self) -> None:
        """Go on counting."""
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Add the time since the start."""
        self.seconds += time.perf_counter() - self._start
