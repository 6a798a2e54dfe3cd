"""Connections that aren't simply served: those from other machines in protected mode, and those of
clients whose commands are counted.

Which kind a connection is says the front when it is accepted, so that nothing of this is asked
about a command of any other. A command is counted when all of it has come, before it is done:
each of a run, each that a transaction queues, and what waits or subscribes once. One that is
refused has its reply in its turn, and the connection goes on. Reactor thread only, once they are
adopted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from conure.net.link import Link
from conure.net.rates import Visitor
from conure.net.reactor import Reactor
from conure.resp.connection import Front, RespConnection
from conure.resp.failures import error_reply
from conure.resp.grammar import Run

__all__ = ["BarredConnection", "CountedConnection"]

_READ_SIZE: Final = 64 << 10
_REFUSED: Final = b"refused"  # the name, by identity, of a run of commands that are too many


class BarredConnection(RespConnection):
    """A connection that the door bars: whatever comes is answered by an error, and that is all."""

    __slots__ = ()

    def receive(self) -> None:
        if not self.is_last:
            data = self.receive_bytes(_READ_SIZE)
            self.reactor.bytes_in += len(data)
            if data:
                self.put(error_reply(f"DENIED {self.front.door.why}"))
            else:
                self.ended = True
            self.end()
            self.take_no_more()
        else:
            super().receive()


class CountedConnection(RespConnection):
    """A connection of a client that may ask so often and no oftener: *visitor* says whether it may
    now."""

    __slots__ = ("visitor",)

    def __init__(
        self,
        reactor: Reactor,
        front: Front,
        link: Link,
        address: str,
        place: str,
        number: int,
        visitor: Visitor,
    ) -> None:
        super().__init__(reactor, front, link, address, place, number)
        self.visitor = visitor

    def _taker(self) -> Callable[[], list[bytes] | Run | None]:
        return self._take_counted

    def _take_counted(self) -> list[bytes] | Run | None:
        """Return what has come and may be done; what may not comes behind it, as a run of its own.
        Nothing else is in the backlog when something is taken."""
        found = self.reader.take()
        if found is None:
            return None
        if type(found) is list:
            return found if self._may_ask(found) else Run(_REFUSED, [], 1)
        run = cast("Run", found)
        size = sum(sum(map(len, column)) for column in run.columns) + len(run.name) * run.size
        allowed = self.visitor.take(run.size, size)
        if allowed == run.size:
            return run
        refused = Run(_REFUSED, [], run.size - allowed)
        if not allowed:
            return refused
        self.backlog.append(refused)
        return run.head(allowed)

    def _take_lone(self, words: list[bytes]) -> None:
        if self._may_ask(words):
            super()._take_lone(words)
        else:
            self._refuse_all(1)

    def _hand_over(self, found: list[bytes] | Run) -> bool:
        if type(found) is list or cast("Run", found).name is not _REFUSED:
            return super()._hand_over(found)
        self._refuse_all(cast("Run", found).size)
        return True

    def _may_ask(self, words: list[bytes]) -> bool:
        return self.visitor.take(1, sum(map(len, words))) > 0

    def _refuse_all(self, count: int) -> None:
        """Answer commands that are too many."""
        why, _ = self.visitor.refusal()
        self.reactor.requests += count
        for _ in range(count):
            self.front.abort(self)
            self.fail(f"ERR {why}")
            self.note_skipped()
