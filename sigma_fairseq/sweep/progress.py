"""A line that says how far things are: rewritten in place on a terminal, now and then in a log."""

import shutil
import time
from typing import TextIO


class Progress:
    """Shows what is going on.

    Args:
        stream: where to.
        every: seconds between two status lines where lines cannot be rewritten.
    """

    def __init__(self, stream: TextIO, every: float = 15.0) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._pause = 0.5 if self._rewrites else every
        self._start = self._last = time.monotonic()

    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start

    def status(self, text: str) -> None:
        """Shows a status that the next one replaces; drops it if the last is still fresh."""
        if not text or time.monotonic() - self._last < self._pause:
            return
        self._last = time.monotonic()
        text = self._stamped(text)
        if self._rewrites:
            columns = shutil.get_terminal_size().columns
            self._stream.write(f"\r\x1b[K{text[: columns - 1]}")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Shows a line that stays."""
        self._stream.write(("\r\x1b[K" if self._rewrites else "") + self._stamped(text) + "\n")
        self._stream.flush()

    def end_line(self) -> None:
        """Takes the status away, for whoever prints next."""
        if self._rewrites:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _stamped(self, text: str) -> str:
        return f"{self.seconds():4.0f} s  {text}"
