"""What is worth a line in the log: whoever is refused comes again and again.

What is remembered is bounded in number; when that is reached, nothing more is news until all of it
is forgotten. Any thread may call anything.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Final

__all__ = ["News"]

_MOST: Final = 256  # that are remembered


class News:
    """What was told in the last *seconds*, so that each is told once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()  # guards the next two; no other lock is taken under it
        self._told: set[str] = set()
        self._since = monotonic()

    def is_new(self, what: str) -> bool:
        """Tell whether to say this, and take it for said."""
        with self._lock:
            if monotonic() - self._since > self._seconds:
                self._told.clear()
                self._since = monotonic()
            if what in self._told or len(self._told) >= _MOST:
                return False
            self._told.add(what)
            return True
