"""Threads for what takes long: a bounded number of them, each begun for its piece of work.

Ranges of any size, counts, deletions in parts and backups are no work for the reactor, which serves
everybody. Who comes when all workers are busy is refused, never queued. Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from conure.errors import ConureError, TooManyRequests
from conure.service.front import FrontEnd, WaiterT

__all__ = ["Workers"]


class Workers:
    """At most so many threads at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._busy = 0
        self._lock = threading.Lock()  # guards the number of those that are busy

    def work(self, front: FrontEnd[WaiterT], waiter: WaiterT, action: Callable[[], None]) -> None:
        """Have a waiter answered by a worker; refuse it when too many are at work."""
        with self._lock:
            is_free = self._busy < self._most
            self._busy += is_free
        if not is_free:
            front.failed(
                waiter,
                TooManyRequests(
                    f"{self._most} long reads are under way (max_scans); try again shortly"
                ),
            )
            return
        worker = threading.Thread(
            target=self._work, args=(front, waiter, action), name="long-read", daemon=True
        )
        try:
            worker.start()
        except RuntimeError as error:  # no more threads
            with self._lock:
                self._busy -= 1
            front.failed(waiter, TooManyRequests(str(error)))

    def _work(self, front: FrontEnd[WaiterT], waiter: WaiterT, action: Callable[[], None]) -> None:
        try:
            action()
        except ConureError as error:
            front.failed(waiter, error)
        except Exception:  # noqa: BLE001 - a bug, which the front logs
            front.broken(waiter, "given up")
        finally:
            with self._lock:
                self._busy -= 1
