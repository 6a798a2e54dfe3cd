"""How far something has come, on standard error: for commands that take a while.

On a terminal it is one line that changes and is gone at the end, elsewhere a line now and then.
Nothing is ever written to standard output. For the main thread.
"""

from __future__ import annotations

import sys
import time

__all__ = ["LOG_INTERVAL", "TERMINAL_INTERVAL", "ProgressLine"]

TERMINAL_INTERVAL = 0.5
"""Seconds between two states of the line that shows progress on a terminal."""

LOG_INTERVAL = 10.0
"""The same where each state is a line of its own."""


class ProgressLine:
    """Called with what is being done, how far that is, and the whole. *quiet*: it says nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._on_terminal = sys.stderr.isatty()
        self._interval = TERMINAL_INTERVAL if self._on_terminal else LOG_INTERVAL
        self._next = time.monotonic() + self._interval
        self._is_shown = False

    def __call__(self, doing: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next or self._quiet:
            return
        self._next = now + self._interval
        percent = 100 * min(done, total) // max(total, 1)
        if self._on_terminal:
            print(f"\r{doing}: {percent} %\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_shown = True
        else:
            print(f"{doing}: {percent} %", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away, if there is one."""
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_shown = False
