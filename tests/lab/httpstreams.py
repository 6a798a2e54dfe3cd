"""What the tests of streams share."""

from __future__ import annotations

import socket
import struct

from conure.http.stream import Stream
from tests.lab.httpdriver import (
    Stepped,
    Streamer,
)

HOST = b"Host: a\r\n"


GET = b"GET /kv?key=a HTTP/1.1\r\n" + HOST + b"\r\n"


PUT = b"PUT /kv?key=a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"


STREAM = b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n"


OLD_STREAM = b"GET /stream HTTP/1.0\r\n\r\n"


def get(path: bytes, fields: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + fields + b"\r\n"


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def head_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[0] + b"\r\n"


def begun(max_unsent: int = 1 << 20, request: bytes = STREAM) -> tuple[Stepped, Streamer, Stream]:
    """Return a client whose request has been answered by a stream, and that stream."""
    application = Streamer(max_unsent)
    stepped = Stepped(application)
    stepped.send(request)
    (stream,) = application.streams
    return stepped, application, stream


def receive_until(client: socket.socket, end: bytes, data: bytes = b"") -> bytes:
    received = bytearray(data)
    while not received.endswith(end):
        piece = client.recv(1 << 20)
        assert piece, received[-1000:]
        received += piece
    return bytes(received)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
