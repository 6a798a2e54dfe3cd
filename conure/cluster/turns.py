"""A turn: the node's lock, taken for one step, and the answers that are given behind it.

Every thread that brings input to the node takes a :class:`Turn`. What the step finishes is put on
``finished``; the replies are called when the lock is let go, in the order in which they were put
there, by the thread that took the turn. No reply is ever called under the lock: it may take a turn
of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from conure.cluster.pending import Answers

__all__ = ["CallLater", "Turn"]

CallLater = Callable[[Callable[[], None], float], None]
"""How to have something done after some seconds, in the thread that brings the messages, and not
before answers have been sent: their receivers' next requests can be taken along then. Any thread
asks for it."""

log = logging.getLogger("conure.node")


class Turn:
    """The node's lock, taken for one step; what the step has finished is answered behind it.

    *must_go_on* is asked under the lock, at the end of each turn, whether more is to be applied and
    nobody is going to; if so, *go_on* is handed to *call_later*.
    """

    __slots__ = ("_call_later", "_go_on", "_must_go_on", "finished", "lock")

    def __init__(
        self, must_go_on: Callable[[], bool], go_on: Callable[[], None], call_later: CallLater
    ) -> None:
        self.lock = threading.Lock()
        """The node's lock itself, for who looks at something and finishes nothing."""
        self.finished: Answers = []
        """What is answered at the end of the turn; for the holder of the lock."""
        self._must_go_on = must_go_on
        self._go_on = go_on
        self._call_later = call_later

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        finished, self.finished = self.finished, []
        must_go_on = self._must_go_on()
        self.lock.release()
        if must_go_on:
            self._call_later(self._go_on, 0.0)
        for reply in finished:
            try:
                reply()
            except Exception:  # one of them is no reason for the others to wait for ever
                log.exception("an answer failed")
