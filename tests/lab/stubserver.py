"""A server that plays the parts a client can meet: leader, follower, flapping, closing, hanging."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = [
    "Act",
    "MakeStub",
    "StubServer",
    "close",
    "close_and_stop_listening",
    "close_later",
    "drip",
    "garbage",
    "hang",
    "raw",
    "refuse",
    "reset_later",
    "sse",
    "stream",
    "truncate",
]

Act = Callable[["_Handler"], None]


class StubServer:
    """Keeps keys in memory. What ``acts`` holds is played first, one act a request.

    ``leader`` redirects what only a leader does; ``requests`` are the method, target and body of
    everything that arrived, ``headers`` their header fields; ``connections`` counts connections,
    ``resumed`` those of TLS that began with a session, ``revision`` writes. With *tls* it is a
    server of https, which never says that its stream ends: whoever closes first cuts it off.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.values: dict[bytes, bytes] = {}
        self.acts: list[Act] = []
        self.requests: list[tuple[str, str, bytes]] = []
        self.headers: list[Message] = []
        self.leader: str | None = None
        self.connections = 0
        self.resumed = 0
        self.revision = 0
        self.open: set[socket.socket] = set()
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self._is_tls = tls is not None
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"{'https' if self._is_tls else 'http'}://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Close the port and every connection, as the end of a process does."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self.open.copy():
            with contextlib.suppress(OSError):  # its handler was quicker
                connection.shutdown(socket.SHUT_RDWR)


MakeStub = Callable[..., StubServer]
"""Makes one, of TLS with a context."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: StubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()
            self.server.stub.resumed += bool(self.connection.session_reused)
        self.server.stub.connections += 1
        self.server.stub.open.add(self.connection)

    def finish(self) -> None:
        super().finish()
        self.server.stub.open.discard(self.connection)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class' word
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        stub = self.server.stub
        # Large bodies are left alone: what a server refuses it need not have read.
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length) if length <= 1 << 20 else b""
        stub.headers.append(self.headers)
        stub.requests.append((self.command, self.path, self.body))
        (stub.acts.pop(0) if stub.acts else serve)(self)
        self.wfile.flush()
        return False  # everything is done here

    def handle_one_request(self) -> None:
        self.close_connection = True
        self.raw_requestline = self.rfile.readline()
        if self.raw_requestline:
            self.parse_request()

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def serve(handler: _Handler) -> None:
    """Do what a ConureDB server does."""
    stub = handler.server.stub
    parts = urlsplit(handler.path)
    query = parse_qs(parts.query, keep_blank_values=True, encoding="latin-1")
    if parts.path in ("/status", "/raft/config", "/raft/stats"):
        handler.answer(200, json.dumps({"path": parts.path, "leader": stub.leader}).encode())
        return
    if stub.leader is not None and "stale" not in query:
        location = stub.leader + handler.path
        handler.answer(307, b'{"leader": ""}\n', Location=location)
        return
    if parts.path in ("/join", "/remove", "/leader", "/quorum"):
        handler.answer(200, b"OK\n")
        return
    if parts.path != "/kv":
        handler.answer(404, b"there is nothing at this path\n")
        return
    key = query["key"][0].encode("latin-1")
    stub.revision += handler.command != "GET"
    if handler.command == "PUT":
        stub.values[key] = handler.body
    elif handler.command == "DELETE":
        stub.values.pop(key, None)
    elif key in stub.values:
        handler.answer(200, stub.values[key])
        return
    else:
        handler.answer(404, b"key not found\n")
        return
    handler.answer(200, b"OK\n", X_Conure_Index=str(stub.revision))


def refuse(status: int, line: str, **headers: str) -> Act:
    """Answer with an error, without having done anything."""
    return lambda handler: handler.answer(status, line.encode() + b"\n", **headers)


def close(handler: _Handler) -> None:
    """Take the request and close the connection without a word."""
    handler.close_connection = True


def close_and_stop_listening(handler: _Handler) -> None:
    """Do as a process that is killed: no answer, and nobody at the port any more."""
    handler.server.socket.shutdown(socket.SHUT_RDWR)
    close(handler)


def close_later(handler: _Handler) -> None:
    """Serve the request, then close the connection that the client means to keep."""
    serve(handler)
    handler.close_connection = True


def reset_later(handler: _Handler) -> None:
    """Serve the request, then end the connection with a reset."""
    close_later(handler)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang(handler: _Handler) -> None:
    """Take the request and don't answer until ``released``."""
    handler.server.stub.released.wait(30)
    handler.close_connection = True


def raw(data: bytes) -> Act:
    """Answer with just these bytes."""

    def act(handler: _Handler) -> None:
        handler.wfile.write(data)

    return act


def garbage(handler: _Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def drip(handler: _Handler) -> None:
    """Answer byte by byte, without ever coming to the end."""
    with contextlib.suppress(OSError):  # the client has enough
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not handler.server.stub.released.wait(0.02):
            handler.wfile.write(b"x")
            handler.wfile.flush()
    handler.close_connection = True


def truncate(handler: _Handler) -> None:
    """Promise more than is sent."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    handler.close_connection = True


def stream(*pieces: bytes, end: str = "whole", **headers: str) -> Act:
    """Answer with pieces, a chunk each; then *end* it, ``close`` the connection or ``stay``."""

    def act(handler: _Handler) -> None:
        handler.send_response_only(200)
        handler.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if end == "whole":
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = end == "close"

    return act


def sse(kind: str, event_id: str, **data: object) -> bytes:
    """Return a server-sent event."""
    return f"event: {kind}\nid: {event_id}\ndata: {json.dumps(data)}\n\n".encode()
