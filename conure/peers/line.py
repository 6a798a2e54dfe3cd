"""A line: one connection for calls, on which both ends send frames whenever they have any.

:meth:`Line.send` never waits: it gives a frame to the link itself, and what that does not take is
sent by the connection's own thread, in :meth:`Line.run`. Input is read by the registrar's thread,
or by the connection's where there is none. The file neither opens nor closes a connection and does
not know what the frames say (calls.py).

``_lock`` guards what is unsent. It is held for moments, and no other lock is taken under it.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Protocol

from conure.consensus.records import FRAME_HEADER_BYTES, check_frame, take_frames
from conure.errors import WireError
from conure.metrics import Counter
from conure.net.link import Link
from conure.peers.guests import SMALL_FRAME, is_stalled
from conure.peers.sockets import READ_BYTES, reason

__all__ = ["MAX_UNSENT", "Line", "Registrar"]

MAX_UNSENT: Final = 192 << 20
"""Bytes that may wait until the other end reads: one of the largest frames, and half as much."""

_LOOK = 1.0  # seconds between two looks at whether a frame goes on


class Registrar(Protocol):
    """A thread that waits for many sockets; see accepting.Registrar."""

    def register(self, descriptor: int, action: Callable[[], None]) -> None: ...

    def unregister(self, descriptor: int) -> None: ...


class Line:
    """One connection, *link*, whose frames are given to *take*: the payloads of each read.

    *expect* is told the size of a frame that is too large for its room to be taken for granted
    (Guests.expect), *sent* and *received* count bytes. *look* is called about once a second by the
    connection's thread. What *take*, *expect* and *look* raise ends the connection. Once
    ``has_ended`` is set, by any thread, nothing is handed over any more.
    """

    def __init__(
        self,
        link: Link,
        take: Callable[[Sequence[bytes]], None],
        sent: Counter,
        received: Counter,
        expect: Callable[[int], None] = lambda _: None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.has_ended: Final = threading.Event()
        self.error: Exception | None = None
        """Why it has ended, if that was not the other end's will."""
        self._link = link
        self._take = take
        self._sent = sent
        self._received = received
        self._expect = expect
        self._look = look
        self._lock = threading.Lock()
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._is_over = False  # the thread has let go of the descriptors
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Of whoever reads.
        self._buffer = bytearray()
        self._space = memoryview(bytearray(READ_BYTES))
        self._needed = FRAME_HEADER_BYTES
        self._begun = 0.0  # when the frame that is not complete did

    def send(self, frame: bytes) -> bool:
        """Send a frame, or let it wait until the socket takes more; False: nothing of it is or will
        be sent. Any thread; never blocks and never raises."""
        with self._lock:
            if self._is_over or self.has_ended.is_set():
                return False
            size = 0
            if not self._unsent:
                try:
                    size = self._link.send(frame)
                except BlockingIOError:
                    pass
                except OSError as error:
                    self._end(error)
                    return False
                self._sent.inc(size)
            elif self._unsent_bytes + len(frame) > MAX_UNSENT:
                self._end(WireError("too many bytes wait until the other end reads"))
                return False
            if size < len(frame):
                self._unsent.append(memoryview(frame)[size:])
                self._unsent_bytes += len(frame) - size
                self._wake()
            return True

    def close(self) -> None:
        """Let go of everything; of a line that is never run."""
        with self._lock:
            self.has_ended.set()
            self._let_go()

    def run(self, registrar: Registrar | None) -> None:
        """Send what waits, and see that what comes is read, until the connection ends. Its own
        thread; once. Raises OSError if the system refuses to wait for the socket."""
        try:
            if registrar is not None:
                registrar.register(self._link.descriptor, self.take_input)
        except OSError:
            self.close()
            raise
        try:
            self._pump(reads=registrar is None)
        finally:
            self.has_ended.set()
            if registrar is not None:
                registrar.unregister(self._link.descriptor)
            with self._lock:
                self._let_go()

    def take_input(self) -> None:
        """Read what has come, and hand over the frames that are complete; nothing after an error.

        What the link keeps and no socket announces is taken as well.
        """
        link = self._link
        self._take_input()
        while link.pending and not self.has_ended.is_set():
            self._take_input()

    def end(self, error: Exception | None) -> None:
        """End the connection, for this reason if it is nobody's will. Any thread."""
        with self._lock:
            self._end(error)

    # -- private ---------------------------------------------------------------------------------

    def _take_input(self) -> None:
        """Read once."""
        if self.has_ended.is_set():  # a registrar may call once more
            return
        try:
            size = self._link.receive_into(self._space)
            if not size:
                self.end(None)
                return
            self._received.inc(size)
            if not self._buffer:
                self._begun = monotonic()
            self._buffer += self._space[:size]
            if len(self._buffer) >= self._needed:
                before = self._needed
                payloads, self._needed = take_frames(self._buffer, check_frame)
                if payloads:
                    self._begun = monotonic()
                    self._take(payloads)
                if self._needed != before and max(self._needed, before) > SMALL_FRAME:
                    self._expect(self._needed)
        except BlockingIOError:
            pass
        except Exception as error:  # noqa: BLE001 - told by whoever runs the line
            self.end(error)

    def _pump(self, *, reads: bool) -> None:
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        descriptor = self._link.descriptor
        poll.register(descriptor, 0)
        look_at = monotonic() + _LOOK
        while not self.has_ended.is_set():
            with self._lock:
                is_waiting = bool(self._unsent)
            wanted = (select.POLLOUT if is_waiting else 0) | (select.POLLIN if reads else 0)
            poll.modify(descriptor, wanted)
            for fd, events in poll.poll(1000 * _LOOK):
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                elif events & select.POLLOUT:
                    self._send_waiting()
                elif reads:
                    self.take_input()
                elif events:  # both ends have closed it
                    self.end(None)
            if monotonic() >= look_at:
                look_at = monotonic() + _LOOK
                self._check()

    def _check(self) -> None:
        received = len(self._buffer)
        try:
            if received and is_stalled(monotonic() - self._begun, received):
                raise WireError("a frame that has begun and does not go on")
            self._look()
        except WireError as error:
            self.end(error)

    def _send_waiting(self) -> None:
        with self._lock:
            try:
                while self._unsent:
                    piece = self._unsent[0]
                    size = self._link.send(piece)
                    self._sent.inc(size)
                    self._unsent_bytes -= size
                    if size < len(piece):
                        self._unsent[0] = piece[size:]
                        return
                    self._unsent.popleft()
            except BlockingIOError:
                pass
            except OSError as error:
                self._end(error)

    def _let_go(self) -> None:
        self._is_over = True
        self._unsent.clear()
        os.close(self._wake_fd)

    def _end(self, error: Exception | None) -> None:
        if isinstance(error, OSError):
            error = WireError(f"the connection is lost: {reason(error)}")
        self.error = self.error or error
        self.has_ended.set()
        self._wake()

    def _wake(self) -> None:
        if not self._is_over:
            os.eventfd_write(self._wake_fd, 1)
