"""How long the pruning in a `fit` takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class Clock:
    """Adds up the time that the callback takes, and the extra time of the first step after each shrink."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.started, self.retrace = seconds, 0.0, False
        self.usual: list[float] = []

    def begin_step(self) -> None:
        """Notes when the step begins."""
        self.started = time.perf_counter()

    def end_step(self) -> None:
        """Notes the time of a usual step; after a shrink, adds the time beyond the usual step to `retracing`."""
        spent = time.perf_counter() - self.started
        if self.retrace:
            self.seconds["retracing"] += max(0.0, spent - (float(np.median(self.usual)) if self.usual else 0.0))
            self.retrace = False
        else:
            self.usual = [*self.usual[-20:], spent]

    def expect_retrace(self) -> None:
        """Says that the next step retraces."""
        self.retrace = True

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Adds up the time spent in the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started
