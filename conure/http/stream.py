"""An answer without a length, while it is being made.

:class:`Stream` keeps what was sent to it until the connection takes it: chunks for HTTP/1.1, all up
to the close for HTTP/1.0. It moves into the connection's output only when that is empty, and the
reactor feeds so many streams in a round. A broadcast is framed, kept and counted once for all of
its streams. A stream never touches the link: it hands bytes to the connection that asks.

H7  A stream is complete or visibly cut: a reader that is too slow is dropped and misses nothing in
    the middle. Whoever feeds it is told when it is over, whatever ended it.

Any thread may call what stands in :class:`Stream` before "for the connection"; what follows is the
connection's, in the reactor thread. The reactor's ``lock`` guards what was given to streams.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from threading import get_ident
from typing import NamedTuple, Protocol

from conure.http.grammar import frame_chunk
from conure.net.reactor import Connection, Reactor

__all__ = ["Carrier", "Opening", "Stream", "broadcast", "call_each"]

log = logging.getLogger("conure.http")

_STREAM_PIECE = 64 << 10  # bytes that move from a stream into the output at a time
_SMALL_PIECE = 4 << 10  # the same, while too much waits to be read


class Opening(NamedTuple):
    """How the answer begins."""

    status: int
    content_type: str
    fields: bytes  # further header lines


class Carrier(Connection, Protocol):
    """The connection that a stream's bytes leave by."""

    reactor: Reactor
    stream: Stream | None  # whose turn it is


class Stream:
    """The body of an answer while it is being made; see :meth:`Request.stream`.

    It is over when it has finished, when it was cut or dropped, or when the client has left; what
    is sent to it then goes nowhere. That a client has left is found out while nothing is sent,
    too. A client that only shut its sending side may still read: it gets the whole stream.

    Any thread may call anything, except where a method says otherwise.
    """

    __slots__ = (
        "_at_end",
        "_carrier",
        "_given",
        "_max_unsent",
        "_offset",
        "_parts",
        "_queued",
        "_sent",
        "_taken",
        "_wanted",
        "chunked",
        "cut",
        "finished",
        "opening",
        "over",
    )

    def __init__(
        self,
        carrier: Carrier,
        opening: Opening,
        max_unsent: int,
        *,
        chunked: bool,
    ) -> None:
        self.opening = opening
        self.chunked = chunked
        self.over = False
        self.finished = False  # nothing more is sent; what was sent is still on its way
        self.cut = False  # the same, and the client is to see that something is missing
        self._carrier = carrier
        self._max_unsent = max_unsent
        self._parts: deque[_Part] = deque()
        self._offset = 0  # bytes of the first part that were taken; the reactor's
        self._queued = False  # among those that the reactor feeds next
        self._given = 0  # bytes that were sent to the stream; the lock guards it
        self._taken = 0  # of these, bytes that were moved to the connection; the reactor's
        self._sent = 0  # of these, bytes that the socket took; the reactor's
        self._wanted: int | None = None  # somebody waits for fewer unsent bytes than this
        self._at_end: list[Callable[[], None]] = []

    @property
    def unsent(self) -> int:
        """Bytes, framing included, that the client's socket hasn't taken; 0 if it is over."""
        return self._given - self._sent

    def send(self, data: bytes) -> bool:
        """Send *data* after what was sent before; never blocks.

        Return False if it goes nowhere: the stream is over, or has finished, or is dropped for
        having too much unsent.
        """
        part = _Part(frame_chunk(data) if self.chunked else data)
        reactor = self._carrier.reactor
        with reactor.lock:
            taken = not data or self.give(part)
        reactor.wake_up()
        return taken and not self.over

    def wait(self, below: int, timeout: float) -> bool:
        """Wait until fewer than *below* bytes are unsent; for whoever makes a long body.

        Return False if that takes longer than *timeout* seconds, or if the stream is over. One
        thread at a time, and not the reactor's.
        """
        reactor = self._carrier.reactor
        assert get_ident() != reactor.ident
        with reactor.progress:
            # First this, then the look: the reactor does it the other way round.
            self._wanted = below
            reactor.progress.wait_for(lambda: self.over or self.unsent < below, timeout)
            self._wanted = None
            return not self.over and self.unsent < below

    def finish(self) -> None:
        """End the answer after what was sent; the connection goes on."""
        self.finished = True
        self._queue()

    def abort(self) -> None:
        """End the answer at once, so that the client sees that it isn't complete (H7)."""
        self.cut = True
        self._queue()

    def on_close(self, action: Callable[[], None]) -> None:
        """Have *action* called once when the stream is over; now, if it is already.

        Mostly in the reactor's thread: it neither waits nor takes long.
        """
        self._at_end.append(action)
        if self.over:
            call_each(self._at_end)

    # -- for the connection ----------------------------------------------------------------------

    def give(self, part: _Part) -> bool:
        """Take one more part, or drop the stream. Any thread, with the lock."""
        if self.over or self.finished or self.cut:
            return False
        reactor = self._carrier.reactor
        size = len(part.data)
        unsent = self._given - self._sent
        if unsent + size > self._max_unsent or (unsent and reactor.is_full()):
            reactor.streams_dropped += 1
            self.cut = True
        else:
            self._given += size
            if not part.holders:
                reactor.queued += size
            part.holders += 1
            self._parts.append(part)
        if not self._queued:
            self._queued = True
            reactor.ready.append(self)
        return not self.cut

    def take(self) -> list[bytes]:
        """Return what goes into the output next. Reactor thread only."""
        reactor = self._carrier.reactor
        parts = self._parts
        pieces: list[bytes] = []
        gone: list[_Part] = []
        size = 0
        most = _SMALL_PIECE if reactor.is_full() else _STREAM_PIECE
        while parts and size < most:
            part = parts[0]
            piece = part.data
            # What others keep as well is copied: so only a piece of it.
            if part.holders > 1 or self._offset:
                piece = piece[self._offset : self._offset + most - size]
            pieces.append(piece)
            size += len(piece)
            self._offset += len(piece)
            if self._offset == len(part.data):
                gone.append(parts.popleft())
                self._offset = 0
        self._taken += size
        with reactor.lock:
            _let_go_of(reactor, gone)
        return pieces

    def unqueue(self) -> Carrier | None:
        """Return whose stream this is, if it has the turn there: see Source in the reactor."""
        self._queued = False  # before its parts are taken: who adds one later sees it
        carrier = self._carrier
        return carrier if carrier.stream is self else None

    @property
    def is_empty(self) -> bool:
        """Whether all that was sent to it has been taken. Reactor thread only."""
        return not self._parts

    @property
    def is_amid_part(self) -> bool:
        """Whether a part, and so a chunk, has been taken but for its end. Reactor thread only."""
        return bool(self._offset)

    def note_progress(self, pending: int) -> None:
        """Note that *pending* bytes are all that the socket hasn't taken. Reactor thread only."""
        if self._taken:  # else they are of earlier answers
            self._sent = self._taken - pending
        if self._wanted is not None and self._given - self._sent < self._wanted:
            self._carrier.reactor.tell_waiting = True

    def end(self) -> None:
        """Be over. Reactor thread only."""
        reactor = self._carrier.reactor
        with reactor.lock:
            self.over = True
            self._sent = self._given
            reactor.streams -= 1
            _let_go_of(reactor, self._parts)
        self._parts.clear()
        if self._wanted is not None:
            reactor.tell_waiting = True
        call_each(self._at_end)

    def _queue(self) -> None:
        reactor = self._carrier.reactor
        with reactor.lock:
            if not self._queued and not self.over:
                self._queued = True
                reactor.ready.append(self)
        reactor.wake_up()


def broadcast(reactor: Reactor, streams: Collection[Stream], data: bytes) -> None:
    """Send *data* to each of *streams*: framed once, kept once, and with one wake-up.

    All of them are the reactor's. Any thread; never blocks. Whose stream is over or dropped is told
    by its ``on_close``.
    """
    if data:
        chunk, plain = _Part(frame_chunk(data)), _Part(data)
        with reactor.lock:
            for stream in streams:
                stream.give(chunk if stream.chunked else plain)
        reactor.wake_up()


def call_each(actions: list[Callable[[], None]]) -> None:
    """Call what is in *actions*, each once, whoever else does the same meanwhile."""
    while True:
        try:
            action = actions.pop(0)
        except IndexError:
            return
        try:
            action()
        except Exception:
            log.exception("telling that a stream or its client has gone failed")


# -- private --------------------------------------------------------------------------------------


class _Part:
    """Bytes that streams are to send, framed; kept once, and counted once, for all of them."""

    __slots__ = ("data", "holders")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.holders = 0  # streams that have yet to take all of it; the lock guards it


def _let_go_of(reactor: Reactor, parts: Iterable[_Part]) -> None:
    """Note that a stream keeps some parts no longer. With the lock."""
    for part in parts:
        part.holders -= 1
        if not part.holders:
            reactor.queued -= len(part.data)
