"""Applications for tests of the HTTP server, and ways to ask it."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable

import pytest

from conure.http.request import Request
from tests.lab.httpdriver import (
    Stepped,
)

HOST = b"Host: a\r\n"


GET = b"GET /kv?key=a HTTP/1.1\r\n" + HOST + b"\r\n"


PUT = b"PUT /kv?key=a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"


def get(fields: bytes = b"", target: bytes = b"/kv?key=a", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + HOST + fields + b"\r\n"


def chunked(body: bytes, fields: bytes = b"") -> bytes:
    head = b"PUT /kv HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"
    return head + fields + b"\r\n" + body


def fail_if_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


class Custom:
    """An application of one function."""

    def __init__(self, handle: Callable[[Request], None]) -> None:
        self.handle = handle

    def flush(self) -> bool:
        return False


class Late:
    """Answers every request in flush, the last one first."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def handle(self, request: Request) -> None:
        self.requests.append(request)

    def flush(self) -> bool:
        requests, self.requests = self.requests, []
        for request in reversed(requests):
            request.respond(200, b"x" * int(request.query))
        return False


def reset(client: socket.socket) -> None:
    """Close with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def rounds(stepped: Stepped, count: int) -> None:
    for _ in range(count):
        stepped._wake()
        stepped.reactor.round()
