"""What strangers say at a port, in every tongue that some port here understands.

Functions and bytes; nothing waits longer than it says.
"""

from __future__ import annotations

import contextlib
import socket

from conure.consensus import records

__all__ = [
    "CLIENT_HELLO",
    "HELLO_BY_SECRET",
    "OPEN_FRAME",
    "PLAIN_HTTP",
    "PLAIN_RESP",
    "say_raw",
]

PLAIN_HTTP = b"GET /kv?key=k HTTP/1.1\r\nHost: localhost\r\n\r\n"
PLAIN_RESP = b"*1\r\n$4\r\nPING\r\n"
HELLO_BY_SECRET = b"CDB\x01" + b"n" * 32
OPEN_FRAME = records.encode_frame(b'{"protocol": 1, "kind": "probe", "to": "node1"}')
CLIENT_HELLO = bytes.fromhex("16030100050100000100")


def say_raw(host: str, port: int, data: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes over TCP and return all that comes back, up to its end."""
    heard = b""
    with socket.create_connection((host, port), seconds) as sock:
        with contextlib.suppress(OSError):  # it has been closed by then
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(1 << 16):
                heard += piece
    return heard
