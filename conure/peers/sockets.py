"""A connection between two nodes as a socket: opened, configured, and read and written in frames.

Whoever waits here waits within bounds: for a connection, for all of a handshake, for the next byte.
A length is checked before anything is allocated, memory grows only as bytes arrive, and JSON is
bounded in its structure before it is parsed (duty 1 of transport.py). What the frames say is none
of this file's business (protocol.py, frames.py).

Any thread may call anything; each socket belongs to one thread at a time, but for :func:`shut`.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from conure.consensus.records import FRAME_HEADER_BYTES, check_frame, encode_frame, frame_length
from conure.errors import WireError
from conure.peers.guests import is_stalled
from conure.values import split_address

__all__ = [
    "CONNECT_TIME",
    "HANDSHAKE_TIME",
    "PROGRESS_TIME",
    "READ_BYTES",
    "configure",
    "connect",
    "is_readable",
    "last_words",
    "linger",
    "parse_json",
    "read_exactly",
    "read_handshake",
    "read_json",
    "reason",
    "send_all",
    "shut",
    "write_json",
]

CONNECT_TIME = 1.0
"""Seconds until a node that doesn't answer counts as unreachable."""

HANDSHAKE_TIME = 5.0
"""Seconds for all of a handshake."""

PROGRESS_TIME = 30.0
"""Seconds without a byte after which the transfer of a snapshot counts as broken."""

READ_BYTES: Final = 256 << 10
"""What is read at a time, at most."""

_MAX_PARTS = 512  # of JSON: brackets and commas, which make objects in memory
_LINGER_TIME = 2.0  # seconds in which whoever was refused amid sending can read why
_CLOSED = "the other side closed it"
_KEEPALIVE = (  # seconds of silence, seconds between probes, probes
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 2),
    (socket.TCP_KEEPCNT, 3),
)


def connect(address: str) -> socket.socket:
    """Open a connection. Raises OSError, and ValueError for what is no address."""
    sock = socket.create_connection(split_address(address), CONNECT_TIME)
    try:
        if sock.getsockname() == sock.getpeername():
            # Where nobody listens on a port of the range for clients, TCP may connect to itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock


def configure(sock: socket.socket) -> None:
    """Prepare a socket for a handshake. Raises OSError."""
    sock.settimeout(HANDSHAKE_TIME)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def shut(sock: socket.socket) -> None:
    """Wake whoever waits for a socket; its own thread closes it."""
    with suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def linger(sock: socket.socket) -> None:
    """Let the other side read the last answer: unread input would make a reset of our close."""
    sock.shutdown(socket.SHUT_WR)
    deadline = monotonic() + _LINGER_TIME
    while (left := deadline - monotonic()) > 0:
        sock.settimeout(left)
        if not sock.recv(READ_BYTES):
            return


def is_readable(sock: socket.socket) -> bool:
    """Tell whether something has come in, or the end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def last_words(sock: socket.socket) -> str:
    """Return why the connection to an acceptor ended; "" if it has not."""
    try:
        return "it answered a message" if sock.recv(1, socket.MSG_DONTWAIT) else _CLOSED
    except BlockingIOError:
        return ""
    except OSError as error:
        return reason(error)


def reason(error: Exception) -> str:
    """Return why a connection failed, in the system's words without its number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send everything; the socket's time-out is for progress, not for all of it."""
    unsent = memoryview(data)
    while unsent:
        unsent = unsent[sock.send(unsent) :]


def read_exactly(
    sock: socket.socket, size: int, deadline: float | None, *, must_go_on: bool = False
) -> bytes:
    """Read so many bytes, by a moment of ``monotonic`` if *deadline* names one.

    With *must_go_on* they have to come as fast as guests.py asks of a frame. Raises OSError.
    """
    data = bytearray()
    begun = monotonic()
    while len(data) < size:
        if deadline is not None:
            sock.settimeout(max(deadline - monotonic(), 0.001))
        elif must_go_on and is_stalled(monotonic() - begun, len(data)):
            raise TimeoutError("a frame that has begun and does not go on")
        piece = sock.recv(min(size - len(data), READ_BYTES))  # grows only as bytes arrive (1)
        if not piece:
            raise ConnectionResetError(_CLOSED)
        data += piece
    return bytes(data)


def read_handshake(sock: socket.socket, most: int) -> dict[str, Any]:
    """Read a frame of a handshake within ``HANDSHAKE_TIME``. Raises OSError and WireError."""
    return read_json(sock, most, monotonic() + HANDSHAKE_TIME)


def read_json(sock: socket.socket, most: int, deadline: float | None = None) -> dict[str, Any]:
    """Read a frame of at most so many bytes that is a JSON object. Raises OSError and WireError.

    One that has begun goes on, or is complete by the *deadline*.
    """
    header = read_exactly(sock, FRAME_HEADER_BYTES, deadline)
    size = frame_length(header, most)
    return parse_json(check_frame(header + read_exactly(sock, size, deadline, must_go_on=True)))


def write_json(sock: socket.socket, fields: Mapping[str, Any]) -> None:
    """Send a JSON object as a frame. Raises OSError."""
    send_all(sock, encode_frame(json.dumps(fields).encode()))


def parse_json(payload: bytes) -> dict[str, Any]:
    """Return the JSON object that a frame's payload is. Raises WireError."""
    if sum(map(payload.count, (b"[", b"{", b","))) > _MAX_PARTS:
        raise WireError("a frame of JSON with more in it than anybody says here")
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame that should be JSON: {error}") from error
    if not isinstance(fields, dict):
        raise WireError("a frame of JSON that is no object")
    return fields
