"""Answers that last: watches, ranges of any size, backups.

======== ============== ========================================================================
method   path           answer
======== ============== ========================================================================
GET      /watch         the changes of a ``key``, a ``prefix`` or everything, as server-sent
                        events; ``from`` a revision, or after the ``Last-Event-ID``; with ``prev``
                        each has the value before
GET      /backup        a file to restore everything from, as of one revision
======== ============== ========================================================================

A worker (workers.py) makes a long answer from a pinned state, so it shows one revision however long
it takes, and goes out as fast as its client reads: the worker waits until little is unsent, and
cuts the answer when nothing moves for :data:`PATIENCE`. An answer that was cut is incomplete to its
client, never a shorter truth. Watches have no worker: the pump of watchers.py serves all of them.

The routes are the reactor's; any thread may call the rest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import chain

from conure.commands import Item, prefix_end
from conure.errors import BadRequest, ConureError
from conure.http import documents, jsonsteps
from conure.http.answers import OCTETS, Answers, Route
from conure.http.fields import index_field
from conure.http.parameters import (
    conditions_of,
    flag,
    number,
    refuse_conditions_of_read,
    refuse_others,
)
from conure.http.request import Request
from conure.service.backend import Backup
from conure.service.limits import Limits
from conure.service.requests import Desk, Opening
from conure.service.scans import Scan, items_of
from conure.state.history import Position, parse_event_id

__all__ = ["Streams"]

PATIENCE = 30.0
"""Seconds for a client to take something of a long answer."""

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

_LOW_WATER = 256 << 10  # unsent bytes below which a worker goes on
_HIGH_WATER = 8 << 20  # unsent bytes beyond which a watch or a long answer is cut, or more
_GROUP = 64 << 10  # bytes of lines that are sent together, about

log = logging.getLogger("conure.http")


class Streams:
    """Makes the long answers."""

    def __init__(self, desk: Desk[Request], answers: Answers, limits: Limits) -> None:
        self._desk = desk
        self._answers = answers
        # The longest event has to fit beside what the pump sends at a time: a value may take six
        # bytes a byte in JSON.
        self._most_of_a_value = 6 * limits.value_bytes
        self._max_unsent = max(_HIGH_WATER, (2 << 20) + self._most_of_a_value)

    def routes(self) -> dict[str, dict[str, Route]]:
        """Return what answers each method of each path."""
        return {
            "/watch": {"GET": self._watch, "HEAD": self._watch},
            "/backup": {"GET": self._backup, "HEAD": self._backup},
        }

    def send_range(self, request: Request, scan: Scan, fields: bytes) -> None:
        """Answer with the records of a range, a line of JSON each."""
        self._desk.work(request, partial(self._send_range, request, scan, fields))

    # -- private ---------------------------------------------------------------------------------

    def _send_range(self, request: Request, scan: Scan, fields: bytes) -> None:
        backend = self._desk.backend
        with closing(backend.pin()) as state:
            fields += index_field(state.index)
            items = items_of(state, scan)
            self._send(request, LINES, fields, _lines(items, scan.limit, backend.time()))

    def _backup(self, request: Request) -> None:
        refuse_others(request.parameters(), set())
        refuse_conditions_of_read(conditions_of(request.headers), of_range=True)
        self._desk.back_up(request, partial(self._send_backup, request))

    def _send_backup(self, request: Request, index: int, backup: Backup) -> None:
        name = f"conuredb-{index}.backup"
        fields = b'Content-Disposition: attachment; filename="%b"\r\n' % name.encode()
        self._send(request, OCTETS, index_field(index) + fields, backup.chunks())

    def _send(
        self, request: Request, content_type: str, fields: bytes, pieces: Iterable[bytes]
    ) -> None:
        """Stream pieces as fast as the client takes them. Raises ConureError where nothing can be
        read, so that the answer tells it; what fails later only cuts the stream."""
        rest = iter(pieces)
        first = next(rest, b"")
        stream = request.stream(200, content_type, fields, max_unsent=self._max_unsent)
        self._answers.count(request, 200)
        try:
            for piece in chain((first,), rest):
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
        opening = self._desk.watch(request, start, end, shows_previous=shows_previous)
        position = _position(request, query, opening)
        opening.check(position)
        fields = b"Cache-Control: no-cache\r\n"
        max_unsent = self._max_unsent + (self._most_of_a_value if shows_previous else 0)
        stream = request.stream(200, EVENTS, fields, max_unsent=max_unsent)
        try:
            watch = opening.begin(position, stream)
        except ConureError:
            stream.abort()
            raise
        self._answers.count(request, 200)
        stream.on_close(watch.cancel)


def _position(request: Request, query: Mapping[bytes, bytes], opening: Opening) -> Position:
    """Return where a watch is to begin: after what its client has seen, or now."""
    seen = request.headers.get("last-event-id")
    if seen:
        return parse_event_id(seen)
    if b"from" in query:
        return Position(number(query, b"from", 1))
    return opening.now()


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
