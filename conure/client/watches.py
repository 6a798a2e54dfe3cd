"""The changes of a range of keys, one after the other, whatever becomes of connections and servers.

``Watch`` says what is promised. It asks by calls.py and reads a stream of server-sent events; it
knows where it is by the ids that the server gives them, and by nothing else.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

from conure.client.calls import FIRST_PAUSE, LONGEST_PAUSE, Calls
from conure.client.connections import ConnectionFailed, Request, Stream, pieces
from conure.client.model import Closing, Event, to_event, to_object, understanding
from conure.client.texts import Json
from conure.errors import Compacted, Unavailable

__all__ = ["Watch"]


class Watch(Closing):
    """The changes of a range of keys, from one revision on; an iterator of :class:`Event`.

    When its connection is lost, or nothing is heard for 15 s, it goes on after the last event at
    the next server that can be reached, however long that takes: no event is lost, and none comes
    twice. It ends when it, or its client, is closed. A server forgets old events, and a new one
    has none; if none that was named has those that come next, Compacted is raised, which has
    the ``oldest`` revision there is: read the keys again, and watch from there.

    One thread iterates; any may ``close``.
    """

    def __init__(self, calls: Calls, target: str) -> None:
        self._calls = calls
        self._target = target
        self._server = calls.nearest  # the one that is watched, or is to be asked next
        self._position = ""  # the id of the last event, or of the last progress
        self._lock = threading.Lock()  # guards the next two
        self._stream: Stream | None = None
        self._is_reading = True
        self._closed = threading.Event()
        self._frames = self._connect()
        # Where it begins is told at once. After that it can go on from there, at any server.
        while not self._position:
            self._take_frame()
        self._is_reading = False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._lock:
            self._is_reading = True
        try:
            while not self._closed.is_set():
                event = self._take_frame()
                if event is not None:
                    return event
        except BaseException:
            self._closed.set()
            raise
        finally:
            with self._lock:
                self._is_reading = False
                if self._closed.is_set():
                    self._drop()
        raise StopIteration

    def close(self) -> None:
        """End the watch; calling it again does nothing. Any thread."""
        with self._lock:
            self._closed.set()
            if not self._is_reading:
                self._drop()
            elif self._stream is not None:
                self._stream.cut()  # whoever reads it drops it

    def _take_frame(self) -> Event | None:
        """Wait for what comes next, on this connection or another; None if it is no event."""
        try:
            kind, position, data = _frame(next(self._frames))
        except (ConnectionFailed, StopIteration):
            self._go_on()
            return None
        if kind == "end":  # whoever is asked next says more, if there is more to say
            self._go_on()
            return None
        self._position = position
        return None if kind == "progress" else to_event(kind, data)

    def _go_on(self) -> None:
        """Connect to the next server; try until it works, or the watch is closed."""
        with self._lock:
            self._drop()
        self._server = self._calls.following(self._server)
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            try:
                self._frames = self._connect()
            except Unavailable:
                self._closed.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                return

    def _connect(self) -> Iterator[bytes]:
        """Begin, or go on. Raises Unavailable, and Compacted if no server has what comes next."""
        headers = {"Accept": "text/event-stream"}
        if self._position:
            headers["Last-Event-ID"] = self._position
        request = Request(
            "GET", self._target, is_read=True, any_server=True, headers=headers, is_stream=True
        )
        oldest: Compacted | None = None
        for _ in self._calls.servers:
            try:
                answer = self._calls.call(request, self._server)
            except Compacted as error:
                oldest = min(oldest or error, error, key=lambda each: each.oldest)
                self._server = self._calls.following(self._server)
                continue
            self._server = answer.server
            with self._lock:
                self._stream = answer.stream
                if self._closed.is_set():
                    self._stream.cut()
            return pieces(answer.stream, b"\n\n")
        assert oldest is not None
        raise oldest

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _frame(frame: bytes) -> tuple[str, str, Json]:
    """Return kind, id and data of a server-sent event."""
    with understanding:
        fields = dict(line.partition(": ")[::2] for line in frame.decode().split("\n"))
        return fields["event"], fields.get("id", ""), to_object(fields["data"].encode())
