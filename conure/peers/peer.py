"""The way to one node: what waits for it, the connection, and the thread that dials and sends.

:meth:`Peer.send` never blocks and never raises for a dead peer. What can't be sent is lost, counted
and told to the host (duty 3 of transport.py). A connection that broke is dialled again as soon as
there is something to send, or :meth:`Peer.connect` asks for it: after a pause that grows, or at
once if the other node has dialled this one (duty 4). Nobody else writes to the connection, and
nothing is read from it but its end: whoever accepts only answers the handshake.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
from collections import deque
from collections.abc import Iterator
from time import monotonic

from conure.errors import ConureError
from conure.metrics import Counter
from conure.net.link import Link
from conure.peers.dialling import Dialler
from conure.peers.sockets import last_words, reason

__all__ = ["BACKOFF", "MAX_BACKOFF", "MAX_QUEUED_BYTES", "MAX_QUEUED_MESSAGES", "Peer"]

MAX_QUEUED_MESSAGES = 4096
MAX_QUEUED_BYTES = 64 << 20
"""What may wait for one peer; a single larger message may wait alone."""

BACKOFF = 0.05
MAX_BACKOFF = 1.0
"""Seconds between two attempts to dial, at first and at most, half of it more or less."""

_SEND_BYTES = 256 << 10  # what waits is sent in pieces of about this size
_NOTHING_LOST, _LOST, _TOLD = range(3)  # since the queue was empty, and whether the host knows

log = logging.getLogger("conure.transport")


class Peer:
    """The way to one node: a queue, a connection, and a thread that sends what waits.

    While nothing waits, :meth:`send` gives a message to the link itself: to hand it over to
    the thread would cost more than that. ``_lock`` guards the attributes of the first group; only
    :meth:`run`, the thread, touches the second one.
    """

    def __init__(
        self, node_id: str, address: str, dialler: Dialler, sent: Counter, dropped: Counter
    ) -> None:
        self._dialler = dialler
        self._id = node_id
        self._sent = sent
        self._dropped = dropped
        self._lock = threading.Lock()

        self.address = address
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._unsent = memoryview(b"")  # of what was taken from the queue, or sent in part
        self._link: Link | None = None
        self._why_broken = ""
        self._dial_at = 0.0
        self._is_wanted = False  # dial even if nothing waits
        self._loss = _NOTHING_LOST
        self._is_closed = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._connected_at = 0.0
        self._backoff = BACKOFF
        self._trouble = ""  # what was logged

    @property
    def is_connected(self) -> bool:
        """Tell whether there is a connection. Any thread."""
        return self._link is not None

    @property
    def proof(self) -> str | None:
        """Return how the node at the other end of the connection has proved itself (Link.proof);
        None: there is no connection. Any thread."""
        link = self._link
        return None if link is None else link.proof

    def send(self, frame: bytes) -> None:
        """Send a frame, or queue it, or drop it if too many wait. Any thread; never blocks."""
        with self._lock:
            if self._is_closed:
                return
            if self._link is not None and not (self._unsent or self._queue or self._why_broken):
                try:
                    size = self._link.send(frame)
                except BlockingIOError:
                    size = 0
                except OSError as error:
                    self._why_broken = reason(error)
                    self._enqueue(frame)
                    self._wake()
                    return
                self._sent.inc(size)
                if size < len(frame):
                    self._unsent = memoryview(frame)[size:]
                    self._wake()
            elif self._queue and (
                len(self._queue) >= MAX_QUEUED_MESSAGES
                or self._queued_bytes + len(frame) > MAX_QUEUED_BYTES
            ):
                self._dropped.inc()
                if self._loss == _NOTHING_LOST:
                    self._loss = _LOST
                    self._wake()
            else:
                self._enqueue(frame)
                if len(self._queue) == 1:  # else it is awake, or knows when to wake
                    self._wake()

    def move(self, address: str) -> None:
        """Dial another address from now on. Any thread."""
        with self._lock:
            if address != self.address and not self._is_closed:
                self.address = address
                self._why_broken = f"it is at {address} now"
                self._wake()

    def connect(self) -> None:
        """Dial, if there is no connection, as soon as the pause is over. Any thread."""
        with self._lock:
            if self._link is None and not self._is_closed and not self._is_wanted:
                self._is_wanted = True
                self._wake()

    def hurry(self) -> None:
        """Dial without a further pause: the node is there. Any thread."""
        with self._lock:
            if self._link is None and not self._is_closed:
                self._dial_at = 0.0
                self._wake()

    def close(self) -> None:
        """End the thread and the connection. Any thread; doesn't wait for that."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._wake()

    def run(self) -> None:
        """Dial and send until closed; the peer's own thread."""
        while not self._is_closed:
            if self._link is None:
                self._await_and_dial()
            else:
                self._pump(self._link)
        with self._lock:
            link, self._link = self._link, None
            self._queue.clear()
            os.close(self._wake_fd)  # nobody wakes what is closed
        if link is not None:
            self._dialler.hang_up(link)

    def _enqueue(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    # -- private: the thread ---------------------------------------------------------------------

    def _await_and_dial(self) -> None:
        with self._lock:
            if self._why_broken:  # it has moved: what was tried before says nothing
                self._why_broken = ""
                self._dial_at = 0.0
            address, has_reason = self.address, self._is_wanted or bool(self._queue)
            delay = self._dial_at - monotonic()
            if delay <= 0:
                self._is_wanted = False
        if not has_reason or delay > 0:
            self._sleep(delay if has_reason else None)
            return
        try:
            link, _ = self._dialler.dial("messages", address, self._id)
        except ConureError as error:
            self._give_up(error)
            return
        log.info("connected to %s at %s", self._id, address)
        self._trouble = ""
        self._connected_at = monotonic()
        self._poll.register(link.descriptor, select.POLLIN)
        with self._lock:
            self._link = link

    def _give_up(self, error: ConureError) -> None:
        """Drop what has waited for a connection; the next one is tried a little later."""
        with self._lock:
            is_lossy = bool(self._queue)
            self._dropped.inc(len(self._queue))
            self._queue.clear()
            self._queued_bytes = 0
            self._loss = _NOTHING_LOST
        self._postpone()
        if self._is_closed:
            return
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("no connection to %s: %s", self._id, error)
        if is_lossy:
            self._dialler.tell_unreachable(self._id)

    def _postpone(self) -> None:
        with self._lock:
            self._dial_at = monotonic() + self._backoff * random.uniform(0.5, 1.5)
        self._backoff = min(2 * self._backoff, MAX_BACKOFF)

    def _pump(self, link: Link) -> None:
        """Send a piece of what waits; sleep if there is nothing, or the link takes no more."""
        with self._lock:
            if self._queue and not self._unsent:
                self._unsent = memoryview(b"".join(self._take_some()))
            unsent, why = self._unsent, self._why_broken
            was_lossy = self._loss == _LOST
            if was_lossy:
                self._loss = _TOLD
            elif not unsent:
                self._loss = _NOTHING_LOST
        if was_lossy:
            self._dialler.tell_unreachable(self._id)
        size = 0
        if unsent and not why:
            try:
                size = link.send(unsent)
            except BlockingIOError:
                pass
            except OSError as error:
                why = reason(error)
            self._sent.inc(size)
            with self._lock:
                self._unsent = unsent[size:]
        if not why and (not size or size < len(unsent)):
            self._poll.modify(link.descriptor, select.POLLIN | (select.POLLOUT if unsent else 0))
            if self._sleep(None):
                why = last_words(link)
        if why:
            self._disconnect(link, why)

    def _take_some(self) -> Iterator[bytes]:
        size = 0
        while self._queue and size < _SEND_BYTES:
            frame = self._queue.popleft()
            size += len(frame)
            yield frame
        self._queued_bytes -= size

    def _sleep(self, seconds: float | None) -> bool:
        """Sleep until woken; returns whether the connection has something to tell."""
        told = 0
        for fd, events in self._poll.poll(None if seconds is None else 1000 * seconds):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            else:
                told |= events & ~select.POLLOUT
        return bool(told)

    def _disconnect(self, link: Link, why: str) -> None:
        with self._lock:
            self._link = None
            self._unsent = memoryview(b"")
            self._why_broken = ""
        self._poll.unregister(link.descriptor)
        why = self._dialler.hang_up(link) or why
        if self._is_closed:
            return
        log.info("lost the connection to %s: %s", self._id, why)
        if monotonic() - self._connected_at > MAX_BACKOFF:
            self._backoff = BACKOFF  # and now without a pause
        else:
            self._postpone()
        self._dialler.tell_unreachable(self._id)
