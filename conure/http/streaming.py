"""Answers that last: watches, ranges of any size, backups; and the threads that make them.

======== ============== ========================================================================
method   path           answer
======== ============== ========================================================================
GET      /watch         the changes of a ``key``, a ``prefix`` or everything, as server-sent
                        events; ``from`` a revision, or behind the ``Last-Event-ID``; with ``prev``
                        each has the value before
GET      /backup        a file to restore everything from, as of one revision
======== ============== ========================================================================

What takes long is not the reactor's: a *worker* does it, one of a bounded number of threads, each
begun for its piece of work. A long answer is made from a pinned state, so it shows one revision
however long it takes, and goes out as fast as its client reads: a worker waits until little is
unsent, and cuts the answer when nothing moves for :data:`PATIENCE`. An answer that was cut is
incomplete to its client, never a shorter truth. Watches have no worker: the pump of watchers.py
serves all of them.

The routes are the reactor's; any thread may call the rest.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from time import monotonic

from conure.commands import Item, prefix_end
from conure.errors import BadRequest, ConureError, TooManyRequests
from conure.http import documents, jsonsteps
from conure.http.keys import Desk, Route, index_field, items_of
from conure.http.parameters import (
    Scan,
    conditions_of,
    flag,
    number,
    refuse_conditions_of_read,
    refuse_others,
)
from conure.http.request import Request
from conure.http.stream import Stream
from conure.service.watchers import Watchers
from conure.state.history import Position, parse_event_id

__all__ = ["Streams"]

PATIENCE = 30.0
"""Seconds for a client to take something of a long answer."""

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
OCTETS = "application/octet-stream"

_LOW_WATER = 256 << 10  # unsent bytes below which a worker goes on
_HIGH_WATER = 8 << 20  # unsent bytes beyond which a watch or a long answer is cut, or more
_GROUP = 64 << 10  # bytes of lines that are sent together, about

log = logging.getLogger("conure.http")


class Streams:
    """Makes the long answers, at most *max_workers* of them at a time; watches apart."""

    watchers: Watchers[Stream]
    """Set by whoever composes the server, before the first request."""

    def __init__(self, desk: Desk, limits: documents.Limits, *, max_workers: int) -> None:
        self._desk = desk
        # The longest event has to fit beside what the pump sends at a time: a value may take six
        # bytes a byte in JSON.
        self._most_of_a_value = 6 * limits.value_bytes
        self._max_unsent = max(_HIGH_WATER, (2 << 20) + self._most_of_a_value)
        self._max_workers = max_workers
        self._workers = 0
        self._lock = threading.Lock()  # guards the number of workers

    def routes(self) -> dict[str, dict[str, Route]]:
        """Return what answers each method of each path."""
        return {
            "/watch": {"GET": self._watch, "HEAD": self._watch},
            "/backup": {"GET": self._backup, "HEAD": self._backup},
        }

    def work(self, request: Request, action: Callable[[], None]) -> None:
        """Have a request answered by a worker; refuse it when too many are at work."""
        with self._lock:
            is_free = self._workers < self._max_workers
            self._workers += is_free
        if not is_free:
            self._desk.fail(
                request,
                TooManyRequests(
                    f"{self._max_workers} long reads are under way (max_scans); try again shortly"
                ),
            )
            return
        worker = threading.Thread(
            target=self._work, args=(request, action), name="long-read", daemon=True
        )
        try:
            worker.start()
        except RuntimeError as error:  # no more threads
            with self._lock:
                self._workers -= 1
            self._desk.fail(request, TooManyRequests(str(error)))

    def send_range(self, request: Request, scan: Scan, fields: bytes) -> None:
        """Answer with the records of a range, a line of JSON each."""
        self.work(request, partial(self._send_range, request, scan, fields))

    def wait_for(
        self, request: Request, key: bytes, after: int, seconds: float, action: Callable[[], None]
    ) -> None:
        """Do something when a key has changed after a revision, or the time is over, or the client
        of a held request has left.

        The pump does it, so it must not take long. Raises Unavailable when stopping.
        """
        deadline = monotonic() + seconds
        wait = self.watchers.wait_for(key, key + b"\0", after, deadline, lambda _: action())
        request.on_leave(wait.give_up)

    # -- private ---------------------------------------------------------------------------------

    def _work(self, request: Request, action: Callable[[], None]) -> None:
        try:
            action()
        except ConureError as error:
            self._desk.fail(request, error)
        except Exception:
            log.exception("%s was given up", request)
            request.fail(500, "an internal error, see the server's log")
        finally:
            with self._lock:
                self._workers -= 1

    def _send_range(self, request: Request, scan: Scan, fields: bytes) -> None:
        backend = self._desk.backend
        with closing(backend.pin()) as state:
            fields += index_field(state.index)
            items = items_of(state, scan)
            self._send(request, LINES, fields, _lines(items, scan.limit, backend.time()))

    def _backup(self, request: Request) -> None:
        refuse_others(request.parameters(), set())
        refuse_conditions_of_read(conditions_of(request.headers), of_range=True)
        self.work(request, partial(self._send_backup, request))

    def _send_backup(self, request: Request) -> None:
        index, backup = self._desk.backend.backup()
        name = f"conuredb-{index}.backup"
        fields = b'Content-Disposition: attachment; filename="%b"\r\n' % name.encode()
        with closing(backup):
            self._send(request, OCTETS, index_field(index) + fields, backup.chunks())

    def _send(
        self, request: Request, content_type: str, fields: bytes, pieces: Iterable[bytes]
    ) -> None:
        """Stream pieces as fast as the client takes them."""
        stream = request.stream(200, content_type, fields, max_unsent=self._max_unsent)
        self._desk.count(request, 200)
        try:
            for piece in pieces:
                if not stream.send(piece) or not stream.wait(_LOW_WATER, PATIENCE):
                    if not stream.over:
                        log.warning("%s was cut: its client takes nothing", request)
                    stream.abort()
                    return
        except ConureError as error:
            log.error("%s was cut: %s", request, error)
            stream.abort()
        except BaseException:
            stream.abort()
            raise
        else:
            stream.finish()

    def _watch(self, request: Request) -> None:
        query = request.parameters()
        refuse_others(query, {b"key", b"prefix", b"from", b"prev"})
        refuse_conditions_of_read(conditions_of(request.headers), of_range=True)
        start, end = _range(query)
        shows_previous = flag(query, b"prev")
        self._desk.backend.check_watchable()
        if shows_previous:  # before the present revision is asked for: no later event is without
            self.watchers.keep_previous()
        position = self._position(request, query)
        self.watchers.check(position)
        fields = b"Cache-Control: no-cache\r\n"
        max_unsent = self._max_unsent + (self._most_of_a_value if shows_previous else 0)
        stream = request.stream(200, EVENTS, fields, max_unsent=max_unsent)
        try:
            watch = self.watchers.watch(start, end, position, stream, shows_previous=shows_previous)
        except ConureError:
            stream.abort()
            raise
        self._desk.count(request, 200)
        stream.on_close(watch.cancel)

    def _position(self, request: Request, query: Mapping[bytes, bytes]) -> Position:
        """Return where a watch is to begin: behind what its client has seen, or now."""
        seen = request.headers.get("last-event-id")
        if seen:
            return parse_event_id(seen)
        if b"from" in query:
            return Position(number(query, b"from", 1))
        index, _ = self._desk.backend.get_all([])
        return Position(index + 1)


def _range(query: Mapping[bytes, bytes]) -> tuple[bytes, bytes | None]:
    key = query.get(b"key")
    if key is None:
        prefix = query.get(b"prefix", b"")
        return prefix, prefix_end(prefix)
    if b"prefix" in query or not key:
        raise BadRequest("a watch is of one key, or of all keys with a prefix")
    return key, key + b"\0"


def _lines(items: Iterator[Item], limit: int | None, now: int) -> Iterator[bytes]:
    """Yield records as JSON, a line each: many lines at a time, or a long one in pieces."""
    lines: list[str] = []
    size = 0
    for count, item in enumerate(items):
        if count == limit:
            break
        shown = documents.show_item(item, now)
        if len(item.value or b"") > _GROUP:
            lines.append("")
            yield "\n".join(lines).encode()
            yield from jsonsteps.write(shown)
            lines, size = [""], 0
            continue
        line = json.dumps(shown)
        lines.append(line)
        size += len(line)
        if size >= _GROUP:
            yield ("\n".join(lines) + "\n").encode()
            lines.clear()
            size = 0
    if lines:
        yield ("\n".join(lines) + "\n").encode()
