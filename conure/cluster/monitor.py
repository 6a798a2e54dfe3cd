"""The monitor: the node's lock, taken for one step, and the answers that are given after it.

Every thread that brings input to the node enters the :class:`Monitor`. What its step finishes is
put on ``finished``; the replies are called when the lock is let go, in the order in which they were
put there, by the same thread. No reply is ever called under the lock: it may enter again. What a
step asks of others in ways that take threads is put there, too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from conure.cluster.applying import Applying
from conure.cluster.pending import Answers
from conure.cluster.standing import Standing

__all__ = ["CallLater", "Monitor"]

CallLater = Callable[[Callable[[], None], float], None]
"""How to have something done after some seconds, in the thread that brings the messages, and not
before answers have been sent: their receivers' next requests can be taken along then. Any thread
asks for it."""

log = logging.getLogger("conure.node")


class Monitor:
    """The node's lock, taken for one step; what the step has finished is answered after it.

    If *applying* has more to apply at the end of a step, *go_on* is handed to *call_later*: once,
    until it comes and says so by :meth:`went_on`.
    """

    __slots__ = (
        "_applying",
        "_call_later",
        "_go_on",
        "_standing",
        "_will_go_on",
        "finished",
        "lock",
    )

    def __init__(
        self,
        lock: threading.Lock,
        applying: Applying,
        standing: Standing,
        go_on: Callable[[], None],
        call_later: CallLater,
    ) -> None:
        self.lock = lock
        """The node's lock itself, for who looks at something and finishes nothing."""
        self.finished: Answers = []
        """What is answered at the end of the step; for the holder of the lock."""
        self._applying = applying
        self._standing = standing
        self._go_on = go_on
        self._call_later = call_later
        self._will_go_on = False  # that has been asked for

    def went_on(self) -> None:
        """Take note, with the lock, that *go_on* has come."""
        self._will_go_on = False

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        finished, self.finished = self.finished, []
        must_go_on = (
            bool(self._applying.backlog) and self._standing.is_working and not self._will_go_on
        )
        self._will_go_on |= must_go_on
        self.lock.release()
        if must_go_on:
            self._call_later(self._go_on, 0.0)
        for reply in finished:
            try:
                reply()
            except Exception:  # one of them is no reason for the others to wait for ever
                log.exception("an answer failed")
