"""Threads that somebody waits for at the end.

Any thread may call anything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["Threads"]

log = logging.getLogger("conure.transport")


class Threads:
    """The threads of one transport that run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the set; no other lock is taken under it
        self._running: set[threading.Thread] = set()

    def spawn(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """Start a thread that :meth:`join` waits for."""

        def run() -> None:
            try:
                target(*arguments)
            finally:
                with self._lock:
                    self._running.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:  # until it runs, or join() could meet one that has not begun
            thread.start()
            self._running.add(thread)

    def join(self, seconds: float) -> None:
        """Wait until all have ended but the one that calls, no longer than so many seconds."""
        with self._lock:
            threads = self._running - {threading.current_thread()}
        deadline = monotonic() + seconds
        for thread in threads:
            thread.join(max(deadline - monotonic(), 0.0))
            if thread.is_alive():
                log.warning("the thread %s has not ended in time", thread.name)
