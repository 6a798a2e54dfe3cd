"""The front of RESP: what came of commands, told by the service, goes to those who wait for it.

The service tells it in slices of a round (``service/front.py``), by any thread; what isn't told in
the reactor's own is handed over to that. A :class:`Pending` is a waiter as often as it has asked,
one after the other, so it is given all answers of a slice that are its own in one go.

A pending takes its answers in the order of its commands, and the parts of a batch may end in any
other: the first ones in a log whose leader is cut off, the next ones at the leader after that
(``cluster/forwarding.py``). So a part that ends early is kept until those before it have ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any

from conure.commands import Committed
from conure.errors import ConureError, NotLeader
from conure.net.reactor import Reactor
from conure.resp.failures import INTERNAL, error_text
from conure.resp.waiters import Pending
from conure.service.backend import Found
from conure.service.freshness import Contact
from conure.service.gate import ANONYMOUS, Caller

__all__ = ["Answers", "Forwarding"]

log = logging.getLogger("conure.resp")

_AT_A_LOOK = 16  # answers that are looked at together; twice as many from then on
_LOADING = "LOADING this node is no member of a cluster yet"


class Forwarding:
    """The referral of RESP: no client is sent anywhere else (``service/referral.py``)."""

    passes_on = True

    def refer(self, waiter: Pending, error: NotLeader) -> bool:  # noqa: ARG002
        """Leave it to the error."""
        return False


class Answers:
    """Brings answers to those who wait. *is_member* tells whether this node belongs to a cluster;
    any thread may ask that."""

    def __init__(self, reactor: Reactor, is_member: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._is_member = is_member
        self._unfinished: dict[int, _Batch] = {}  # by the identity of their waiters

    # -- what the service tells (front.FrontEnd); any thread -------------------------------------

    def caller_of(self, pending: Pending) -> Caller:
        """Return who asks: by the certificate that the client has shown, if it has."""
        client = pending.client
        return Caller(client.principal or ANONYMOUS, client.address)

    def written(
        self,
        waiters: Sequence[Pending],
        answers: Mapping[int, Any],  # noqa: ARG002 - each pending knows what it has asked for
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        """Answer writes; see ``FrontEnd.written``."""
        if get_ident() != self._reactor.ident:
            self._reactor.post(self._take_written, waiters, start, stop, ended)
        else:
            self._take_written(waiters, start, stop, ended)

    def found(
        self,
        waiters: Sequence[Pending],
        records: Sequence[Found],
        index: int,  # noqa: ARG002 - no reply tells of it, nor of the contact
        contact: Contact | None,  # noqa: ARG002
    ) -> None:
        """Answer reads of single keys; see ``FrontEnd.found``."""
        if get_ident() != self._reactor.ident:
            self._reactor.post(self._take_found, waiters, records)
        else:
            self._take_found(waiters, records)

    def failed(
        self,
        waiter: Pending,
        error: ConureError,
        contact: Contact | None = None,  # noqa: ARG002
    ) -> None:
        """Answer with an error; see ``FrontEnd.failed``."""
        self._fail(waiter, self.text_of(error))

    def broken(self, waiter: Pending, how: str = "") -> None:
        """Answer what a bug has kept from its answer; see ``FrontEnd.broken``."""
        if how:
            log.exception("a command was %s", how)
        self._fail(waiter, INTERNAL)

    def text_of(self, error: ConureError) -> str:
        """Return the text of the reply for an error."""
        if isinstance(error, NotLeader) and not (error.leader or self._is_member()):
            return _LOADING
        return error_text(error)

    # -- the reactor thread ----------------------------------------------------------------------

    def _take_written(
        self, waiters: Sequence[Pending], start: int, stop: int, ended: Committed | ConureError
    ) -> None:
        """Answer a part of a batch, once those before it are answered, and what was kept for it."""
        if stop - start == len(waiters):
            self._answer_written(waiters, start, stop, ended)
            return
        batch = self._unfinished.setdefault(id(waiters), _Batch(waiters))
        batch.kept[start] = stop, ended
        while (part := batch.kept.pop(batch.answered, None)) is not None:
            start, batch.answered = batch.answered, part[0]
            self._answer_written(waiters, start, *part)
        if batch.answered == len(waiters):
            del self._unfinished[id(waiters)]

    def _answer_written(
        self, waiters: Sequence[Pending], start: int, stop: int, ended: Committed | ConureError
    ) -> None:
        text = self.text_of(ended) if isinstance(ended, ConureError) else ""
        position = start
        while position < stop:
            pending = waiters[position]
            count = _own(waiters, position, stop)
            if isinstance(ended, ConureError):
                for _ in range(count):
                    pending.fail(text)
            else:
                _guard(pending, pending.take_written, count, ended.first + position, ended)
            position += count

    def _take_found(self, waiters: Sequence[Pending], records: Sequence[Found]) -> None:
        position, stop = 0, len(waiters)
        while position < stop:
            pending = waiters[position]
            count = _own(waiters, position, stop)
            _guard(pending, pending.take_found, records[position : position + count])
            position += count

    def _fail(self, waiter: Pending, text: str) -> None:
        if get_ident() != self._reactor.ident:
            self._reactor.post(_fail_one, waiter, text)
        else:
            _fail_one(waiter, text)


class _Batch:
    """Writes of a round that have ended in part: how many are answered, and by where they begin,
    the parts behind these."""

    __slots__ = ("answered", "kept", "waiters")

    def __init__(self, waiters: Sequence[Pending]) -> None:
        self.waiters = waiters  # whose identity is not another's as long as they are here
        self.answered = 0
        self.kept: dict[int, tuple[int, Committed | ConureError]] = {}


def _own(waiters: Sequence[Pending], position: int, stop: int) -> int:
    """Return how many answers from a position on are those of the pending there, in time that grows
    with that number alone: others may be between its own."""
    pending = waiters[position]
    end = position
    size = _AT_A_LOOK
    while end < stop:
        last = min(end + size, stop)
        if waiters[last - 1] is not pending or waiters[end:last].count(pending) < last - end:
            break
        end = last
        size = end - position
    while end < stop and waiters[end] is pending:
        end += 1
    return end - position


def _fail_one(waiter: Pending, text: str) -> None:
    if waiter.missing:  # or it had its answer before a bug came up
        waiter.fail(text)


def _guard(pending: Pending, action: Callable[..., None], *arguments: object) -> None:
    """Let a bug in the reply of one command end with that."""
    try:
        action(*arguments)
    except Exception:
        log.exception("a command was not answered")
        while pending.missing > 0:
            pending.fail(INTERNAL)
