"""The line protocol of lineproto.py on sockets: a front end of the reactor, beside HTTP's or alone.

One line is one request, and its answer is one line, in order.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from conure.net.link import Link
from conure.net.reactor import IN, Reactor
from conure.service.requests import Requests
from tests.lab.lineproto import Line, LineFront

__all__ = ["LineServer"]


class _SocketLine(Line):
    """A line whose answer goes to its connection, from whichever thread it comes."""

    def __init__(self, connection: LineConnection) -> None:
        self._owner = connection
        super().__init__(id(connection))

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "answer" and value:
            self._owner.reactor.post(self._owner.answer)


class LineConnection:
    """Reads lines, and sends their answers in their order."""

    interest: int = IN

    def __init__(self, reactor: Reactor, front: LineFront, link: Link) -> None:
        self.reactor = reactor
        self.link = link
        self._front = front
        self._input = b""
        self._output = b""
        self._lines: deque[Line] = deque()

    @property
    def pending(self) -> int:
        return len(self._output)

    def receive(self) -> None:
        data = self.link.receive(4096)
        if not data:
            self.close()
        *lines, self._input = (self._input + data).split(b"\n")
        for text in lines:
            line = _SocketLine(self)
            self._lines.append(line)
            self.reactor.requests += 1
            self._front.take(line, text.decode())

    def react(self, event: int) -> None:
        self.receive()

    def answer(self) -> None:
        """Let the answers leave whose turn it is."""
        while self._lines and self._lines[0].is_answered:
            self._output += self._lines.popleft().answer.encode() + b"\n"
        self.reactor.dirty.append(self)

    def send(self) -> None:
        self._output = self._output[self.link.send(self._output) :]

    def close(self) -> None:
        if self.reactor.connections.pop(self.link.descriptor, None):
            self.link.close()

    def close_if_idle(self) -> None:
        if not (self._lines or self._output):
            self.close()

    def blocked_since(self) -> float | None:
        """It has no source that would be fed."""

    def resume(self) -> None: ...
    def feed(self) -> None: ...
    def check_deadlines(self) -> None: ...
    def drop(self) -> None: ...


class LineServer:
    """The front end: makes connections, which take a desk of the one service."""

    def __init__(self, reactor: Reactor, requests: Requests) -> None:
        self._reactor = reactor
        self._front = LineFront(requests)
        reactor.serve(self)

    def accept(self, link: Link, peer: Any) -> LineConnection:
        return LineConnection(self._reactor, self._front, link)

    def release(self, connection: LineConnection) -> None: ...
    def tick(self) -> None: ...
