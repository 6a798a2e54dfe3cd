"""A client of RESP for tests: replies read by a parser of its own, on plain sockets."""

from __future__ import annotations

import socket
from typing import Any, Self

__all__ = ["ErrorReply", "Push", "RespClient", "Verbatim", "command", "parse_all", "parse_one"]


class ErrorReply(Exception):
    """An error reply; equal to another with the same text."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErrorReply) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class Push(list[Any]):
    """A push of RESP3."""


class Verbatim(bytes):
    """A verbatim text of RESP3, without its kind."""


class _Incomplete(Exception):
    """More bytes are to come."""


def command(*words: bytes | str | int) -> bytes:
    """Return a command as clients send it."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def parse_all(data: bytes) -> list[Any]:
    """Return all replies, which are complete."""
    found = []
    position = 0
    while position < len(data):
        reply, position = _parse(data, position)
        found.append(reply)
    return found


def parse_one(data: bytes, position: int) -> tuple[Any, int] | None:
    """Return the reply at a position and where the next one begins; None if it isn't complete."""
    try:
        return _parse(data, position)
    except _Incomplete:
        return None


def _line(data: bytes, position: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", position)
    if end < 0:
        raise _Incomplete
    return data[position:end], end + 2


def _parse(data: bytes, position: int) -> tuple[Any, int]:
    line, position = _line(data, position)
    kind, rest = line[:1], line[1:]
    match kind:
        case b"+":
            return rest, position
        case b"-":
            return ErrorReply(rest.decode()), position
        case b":" | b"(":
            return int(rest), position
        case b",":
            return float(rest), position
        case b"#":
            return {b"t": True, b"f": False}[rest], position
        case b"_":
            assert rest == b""
            return None, position
        case b"$" | b"=":
            return _parse_bulk(kind, int(rest), data, position)
        case b"*" | b">" | b"~" | b"%":
            return _parse_many(kind, int(rest), data, position)
    raise AssertionError(line)


def _parse_bulk(kind: bytes, size: int, data: bytes, position: int) -> tuple[Any, int]:
    if size < 0:
        return None, position
    end = position + size
    if len(data) < end + 2:
        raise _Incomplete
    assert data[end : end + 2] == b"\r\n", data[position : end + 2]
    value = data[position:end]
    return (Verbatim(value[4:]) if kind == b"=" else value), end + 2


def _parse_many(kind: bytes, count: int, data: bytes, position: int) -> tuple[Any, int]:
    if count < 0:
        return None, position
    items = []
    for _ in range(2 * count if kind == b"%" else count):
        item, position = _parse(data, position)
        items.append(item)
    if kind == b"%":
        return dict(zip(items[::2], items[1::2], strict=True)), position
    if kind == b"~":
        return set(items), position
    return (Push(items) if kind == b">" else items), position


class RespClient:
    """One connection. Not for several threads."""

    def __init__(self, port: int, host: str = "127.0.0.1", timeout: float = 20.0) -> None:
        self._begin(socket.create_connection((host, port), timeout=timeout))

    @classmethod
    def on(cls, connected: socket.socket) -> Self:
        """Return a client on a socket that is connected already."""
        client = cls.__new__(cls)
        client._begin(connected)
        return client

    def _begin(self, connected: socket.socket) -> None:
        self.socket = connected
        self._data = b""
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def ask(self, *words: bytes | str | int) -> Any:
        """Send a command; return its reply."""
        self.send(command(*words))
        return self.read()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> Any:
        """Return the next reply. Raises EOFError at the end."""
        while (found := parse_one(self._data, self._position)) is None:
            more = self.socket.recv(1 << 16)
            if not more:
                raise EOFError(self._data[self._position :])
            self._data = self._data[self._position :] + more
            self._position = 0
        reply, self._position = found
        return reply

    def read_to_end(self) -> bytes:
        """Return whatever comes until the server closes."""
        pieces = [self._data[self._position :]]
        self._data = b""
        self._position = 0
        while more := self.socket.recv(1 << 16):
            pieces.append(more)
        return b"".join(pieces)
