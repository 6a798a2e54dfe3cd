"""What waits for the service: a command of one connection, or a run of them that are alike.

A :class:`Pending` is the waiter that the service is given (``service/front.py``), once for each
read or write that it hands over. The answers come in order, so their replies are put together as
they come; when the last one has, the connection lets them leave in their turn. The reactor's thread
only: answers.py sees to that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from threading import get_ident
from time import perf_counter
from typing import Any, Protocol

from conure.commands import Committed
from conure.errors import ConureError, Unavailable
from conure.net.reactor import Reactor
from conure.resp.failures import INTERNAL, error_reply, error_text
from conure.resp.replies import NULL, OK
from conure.service.backend import Found
from conure.service.turns import Turns

__all__ = ["LONG", "Client", "Gets", "Pending", "Puts", "begin"]

log = logging.getLogger("conure.resp")

LONG = 16 << 10
"""Bytes of a value that isn't copied into its reply."""


class Client(Protocol):
    """What a command that waits asks of its connection."""

    reactor: Reactor
    descriptor: int
    address: str

    @property
    def is_closed(self) -> bool: ...

    @property
    def principal(self) -> str:
        """Whom the client's certificate names; empty if there is none."""

    def complete(self, pending: Pending) -> None:
        """Note that a command has all its answers, and let the replies leave whose turn it is."""


class Pending:
    """A waiter of the service: *missing* of its *count* answers are still to come. It has *started*
    in this round, unless the time of an earlier one is told."""

    __slots__ = (
        "client",
        "count",
        "is_alone",
        "is_muted",
        "missing",
        "parked",
        "pieces",
        "started",
        "tail",
        "words",
    )

    def __init__(self, client: Client, count: int = 1, started: float | None = None) -> None:
        self.client = client
        self.count = self.missing = count
        self.pieces: list[bytes] = []
        self.tail: list[bytes] = []  # replies of commands after it that waited for nothing
        self.is_muted = False
        self.is_alone = False  # what the client sends after it waits for its reply
        self.parked = 0  # bytes of long values among the pieces, as the reactor counts them
        self.started = client.reactor.now if started is None else started
        self.words: list[bytes] = []  # of the command, for the slow log

    # -- what the service asks (service/front.py) ------------------------------------------------

    @property
    def connection(self) -> int:
        """A number that the waiters of one connection share."""
        return self.client.descriptor

    @property
    def is_answered(self) -> bool:
        """Whether all answers have come."""
        return not self.missing

    @property
    def room(self) -> int:
        """How many bytes of long answers may still be given before clients have read some."""
        reactor = self.client.reactor
        return reactor.bounds.max_leaving_bytes - reactor.leaving

    def go_on(self, steps: Iterator[object], *, alone: bool = False) -> None:
        """Have the reactor carry on *steps*, in turns; see ``Waiter.go_on``. Any thread."""
        assert not alone, "no command of RESP has a body to be read"
        reactor = self.client.reactor
        turn = _Turn(self, steps)
        if get_ident() == reactor.ident:
            reactor.take_turns(turn)
        else:
            reactor.post(reactor.take_turns, turn)

    def apart(self, ahead: int) -> Pending:  # noqa: ARG002
        """Return itself: all its answers are one connection's; see ``Waiter.apart``."""
        return self

    def wait(self) -> None:
        """Count it with those whose answers may take their time; see ``Waiter.wait``."""
        raise Unavailable("no command of this protocol waits for a change")

    def on_leave(self, action: Callable[[], None]) -> None:
        """See ``Waiter.on_leave``: nothing waits, so there is nothing to call."""

    # -- what comes of it: each takes the next answers, in order ---------------------------------

    def take_found(self, records: Sequence[Found]) -> None:
        """Take what reads have found."""
        raise AssertionError(f"reads nothing, and was given {records}")

    def take_written(self, count: int, first: int, ended: Committed) -> None:
        """Take that so many commands were committed, from the revision *first* on."""
        raise AssertionError(f"writes nothing, and was given {count} of {ended} from {first} on")

    def fail(self, error: str) -> None:
        """Take an error in the place of one answer; *error* begins with its code."""
        self.pieces.append(error_reply(error))
        self.done()

    def finish(self, reply: bytes) -> None:
        """Take the whole reply, of one that waits for one answer."""
        if self.missing:
            self.pieces.append(reply)
            self.done()

    def park(self, value: bytes) -> None:
        """Take a value into the reply without copying it, and count it with what clients have yet
        to read."""
        if not self.client.is_closed:
            self.pieces.append(value)
            self.hold(len(value))

    def hold(self, size: int) -> None:
        """Count bytes that are kept for the reply with what clients have yet to read."""
        if not self.client.is_closed:
            self.parked += size
            self.client.reactor.leaving += size

    def unpark(self) -> None:
        """Count the values of the reply no more: its connection does, or has ended."""
        self.client.reactor.leaving -= self.parked
        self.parked = 0

    def done(self, count: int = 1) -> None:
        """Note that so many answers have come."""
        self.missing -= count
        if not self.missing:
            self.client.complete(self)


class Gets(Pending):
    """Reads of single keys, each with a reply of its own."""

    __slots__ = ("_null",)

    def __init__(
        self, client: Client, count: int, protocol: int, started: float | None = None
    ) -> None:
        super().__init__(client, count, started)
        self._null = NULL[protocol]

    def take_found(self, records: Sequence[Found]) -> None:
        pieces = self.pieces
        for record in records:
            if record is None:
                pieces.append(self._null)
            elif isinstance(record, ConureError):
                pieces.append(error_reply(record))
            else:
                value = record.value
                size = len(value)
                if size < LONG:
                    pieces.append(b"$%d\r\n%b\r\n" % (size, value))
                else:
                    pieces.append(b"$%d\r\n" % size)
                    self.park(value)
                    pieces.append(b"\r\n")
        self.done(len(records))


class Puts(Pending):
    """Plain writes, each answered OK."""

    __slots__ = ()

    def take_written(self, count: int, first: int, ended: Committed) -> None:  # noqa: ARG002
        self.pieces.append(OK * count)
        self.done(count)


class _Turn:
    """What a command has the reactor carry on in turns (conure/net/reactor.py)."""

    __slots__ = ("_steps", "pending")

    def __init__(self, pending: Pending, steps: Iterator[object]) -> None:
        self.pending = pending
        self._steps = steps

    def go_on(self, until: float) -> bool | None:
        """Return whether it may go on in this round; None if it is over."""
        try:
            for is_done_for_now in self._steps:
                if is_done_for_now:
                    return False
                if perf_counter() >= until:
                    return True
        except Exception:
            log.exception("a command failed")
            while self.pending.missing:
                self.pending.fail(INTERNAL)
        return None

    def end(self) -> None:
        """Let go of what the steps hold."""
        self._steps = iter(())


def begin(pending: Pending, steps: Turns) -> None:
    """Have the reactor carry on what a command takes; an error ends it. Any thread."""
    pending.go_on(_or_fail(pending, steps))


def _or_fail(pending: Pending, steps: Turns) -> Iterator[Any]:
    try:
        yield from steps
    except ConureError as error:
        pending.fail(error_text(error))
