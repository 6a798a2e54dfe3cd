"""Handshakes that came to nothing: counted, and told in the log, of each client once in a while.

Whoever is turned away comes again and again, and strangers may do so on purpose: what is logged of
them is bounded. The stranger is told nothing but TLS's alert.

The reactors' threads call :meth:`Handshakes.failed`; ``failures`` may be read from any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Final

__all__ = ["Handshakes"]

_MOST_TOLD: Final = 256  # failures that are remembered, so that each is told once
_TOLD_TIME: Final = 600.0  # seconds after which all of them are forgotten

log = logging.getLogger("conure.security")


class Handshakes:
    """The failed ones of all fronts; *shown* says what they show, and whom they believe."""

    def __init__(self, shown: Callable[[], str]) -> None:
        self.failures: dict[str, int] = {}
        """How many there were, by front."""
        self._shown = shown
        self._lock = Lock()
        self._told: set[tuple[str, str, str]] = set()
        self._told_since = monotonic()

    def failed(self, front: str, address: str, why: str) -> None:
        """Note a handshake with a client that came to nothing. Any thread."""
        with self._lock:
            self.failures[front] = self.failures.get(front, 0) + 1
            is_news = self._is_news((front, address, why))
        if is_news:
            log.warning("TLS with %s (%s) failed: %s [%s]", address, front, why, self._shown())

    def _is_news(self, failure: tuple[str, str, str]) -> bool:
        if monotonic() - self._told_since > _TOLD_TIME:
            self._told.clear()
            self._told_since = monotonic()
        if failure in self._told or len(self._told) >= _MOST_TOLD:
            return False
        self._told.add(failure)
        return True
