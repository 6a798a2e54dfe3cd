"""A front of its own: a line protocol, over the service and nothing of HTTP.

``GET k``, ``PUT k v`` and ``SCAN prefix`` are answered ``VALUE …``, ``OK index``, ``NONE``,
``ITEMS k=v …``, ``NOTLEADER http://…`` or ``ERROR …``. One thread says lines and ends the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from sys import maxsize

from conure.commands import Committed, prefix_end
from conure.errors import ConureError, KeyNotFound, NotLeader
from conure.service.backend import Found
from conure.service.freshness import LINEARIZABLE, Contact
from conure.service.gate import Caller
from conure.service.requests import Requests
from conure.service.scans import Page, Scan, items_of

__all__ = ["Line", "LineFront", "Refer"]


class Line:
    """A line that waits for its answer."""

    room = maxsize

    def __init__(self, connection: int = 0) -> None:
        self.connection = connection
        self.answer = ""

    @property
    def is_answered(self) -> bool:
        return bool(self.answer)

    def go_on(self, steps: Iterator[object], *, alone: bool = False) -> None:
        for _ in steps:
            pass

    def wait(self) -> None:
        """It may wait."""

    def apart(self, ahead: int) -> Line:
        return self

    def on_leave(self, action: Callable[[], None]) -> None:
        """It never leaves."""


class Refer:
    """Says where the leader is, unless this node is to ask it."""

    def __init__(self, *, passes_on: bool = False) -> None:
        self.passes_on = passes_on

    def refer(self, line: Line, error: NotLeader) -> bool:
        line.answer = f"NOTLEADER {error.leader_http}"
        return bool(error.leader_http)


class LineFront:
    """Takes lines and answers them."""

    def __init__(self, requests: Requests, *, passes_on: bool = False) -> None:
        self._referral = Refer(passes_on=passes_on)
        self._desk = requests.for_front(self, self._referral)

    def say(self, text: str, connection: int = 0) -> Line:
        """Take the text of a line into the round."""
        line = Line(connection)
        self.take(line, text)
        return line

    def take(self, line: Line, text: str) -> None:
        """Take a line into the round."""
        verb, *rest = text.encode().split(b" ", 2)
        try:
            match verb, rest:
                case b"PUT", [key, value]:
                    self._desk.write(line, (key, value))
                case b"GET", [key]:
                    self._desk.get(line, key)
                case b"SCAN", [prefix]:
                    scan = Scan(prefix, prefix_end(prefix), 10)
                    self._desk.look(
                        line, scan.start, scan.end, LINEARIZABLE, lambda _: self._scan(line, scan)
                    )
                case _:
                    line.answer = f"ERROR there is no {text!r}"
        except ConureError as error:
            self.failed(line, error)

    def _scan(self, line: Line, scan: Scan) -> None:
        with closing(self._desk.backend.pin()) as state:
            items = filter(None, Page(items_of(state, scan), scan.limit))
            shown = b" ".join(b"%b=%b" % (item.key, item.value or b"") for item in items)
        line.answer = f"ITEMS {shown.decode()}"

    # -- what the service tells ------------------------------------------------------------------

    def caller_of(self, line: Line) -> Caller:
        return Caller("a line", str(line.connection))

    def written(
        self,
        lines: Sequence[Line],
        answers: Mapping[int, object],
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        for position in range(start, stop):
            assert position not in answers, "every line has the same answer"
            if isinstance(ended, ConureError):
                self.failed(lines[position], ended)
            else:
                lines[position].answer = f"OK {ended.first + position}"

    def found(
        self, lines: Sequence[Line], records: Sequence[Found], index: int, contact: Contact | None
    ) -> None:
        for line, record in zip(lines, records, strict=True):
            if isinstance(record, ConureError) or record is None:
                self.failed(line, record or KeyNotFound())
            else:
                line.answer = f"VALUE {record.value.decode()}"

    def failed(self, line: Line, error: ConureError, contact: Contact | None = None) -> None:
        if not (isinstance(error, NotLeader) and self._referral.refer(line, error)):
            line.answer = "NONE" if isinstance(error, KeyNotFound) else f"ERROR {error}"

    def broken(self, line: Line, how: str = "") -> None:
        line.answer = f"ERROR a bug: {how}"
