"""Shows that pruning is at work while it takes long and nothing else is printed."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Heartbeat:
    """Prints a line when work takes long, and again as long as it does. On a terminal, it is always the same line.

    Args:
        show: whether to print.
    """

    first, every = 1.5, 4.0  # seconds until the first line, and between two

    def __init__(self, show: bool):
        self.show = show

    @contextmanager
    def during(self, text: Callable[[], str]) -> Iterator[None]:
        """Shows what `text` says at the time, and for how long the block has been running."""
        if not self.show:
            yield
            return
        done, same_line = threading.Event(), sys.stdout.isatty()
        thread = threading.Thread(target=self._beat, args=(text, done, same_line), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _beat(self, text: Callable[[], str], done: threading.Event, same_line: bool) -> None:
        started, wait, width = time.monotonic(), self.first, 0
        while not done.wait(wait):
            line = f"pruning: {text()}, {time.monotonic() - started:.0f} s"
            width = max(width, len(line))
            print(f"\r{line.ljust(width)}" if same_line else line, end="" if same_line else "\n", flush=True)
            wait = self.every
        if width and same_line:
            print(f"\r{' ' * width}\r", end="", flush=True)
