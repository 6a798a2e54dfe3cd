"""A connection between two nodes: opened, configured, and read and written in frames.

What is read and written is a :class:`Link`, which never waits; whoever waits for one waits here,
within bounds: for a connection, for all of a handshake, for the next byte. A length is checked
before anything is allocated, memory grows only as bytes arrive, and JSON is bounded in its
structure before it is parsed (duty 1 of transport.py). What the frames say is none of this file's
business (protocol.py, frames.py), nor what the bytes of a link are wrapped in.

Any thread may call anything; each link belongs to one thread at a time, and :func:`shut` may be
called by any other one.
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
from conure.net.link import Link
from conure.peers.guests import is_stalled
from conure.protection import is_same_machine
from conure.values import split_address

__all__ = [
    "CONNECT_TIME",
    "HANDSHAKE_TIME",
    "PROGRESS_TIME",
    "READ_BYTES",
    "await_event",
    "configure",
    "connect",
    "is_of_this_machine",
    "is_readable",
    "last_words",
    "linger",
    "parse_json",
    "read_exactly",
    "read_json",
    "reason",
    "send_all",
    "shut",
    "wait",
    "write_json",
]

CONNECT_TIME = 1.0
"""Seconds until a node that doesn't answer counts as unreachable."""

HANDSHAKE_TIME = 5.0
"""Seconds for all of a handshake."""

PROGRESS_TIME = 30.0
"""Seconds without a byte, either way, after which a connection that is waited for counts as broken,
such as the transfer of a snapshot."""

READ_BYTES: Final = 256 << 10
"""What is read at a time, at most."""

_MAX_PARTS = 512  # of JSON: brackets and commas, which make objects in memory
_LINGER_TIME = 2.0  # seconds in which whoever was refused amid sending can read why
_CLOSED = "the other side closed it"
_TOO_LATE = "timed out"
_KEEPALIVE = (  # seconds of silence, seconds between probes, probes
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 2),
    (socket.TCP_KEEPCNT, 3),
)


def connect(address: str) -> socket.socket:
    """Open a connection, and wait until it is there. Raises OSError, and ValueError for what is no
    address."""
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
    """Prepare a socket to become a link. Raises OSError."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def is_of_this_machine(sock: socket.socket) -> bool:
    """Tell whether the other end of a connection is on this machine, by its IP address."""
    try:
        return is_same_machine(sock.getpeername()[0], sock.getsockname()[0])
    except OSError:
        return False  # it has gone


def shut(sock: socket.socket) -> None:
    """Wake whoever waits for a socket; its own thread closes it."""
    with suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def wait(link: Link, events: int, seconds: float) -> bool:
    """Wait until the socket of a link has one of these events of ``select.poll``, or has ended.

    Return False if *seconds* pass without.
    """
    poll = select.poll()
    poll.register(link.descriptor, events)
    return bool(poll.poll(max(1000 * seconds, 0.0)))


def linger(link: Link) -> None:
    """Let the other side read the last answer: unread input would make a reset of our close."""
    link.shut()
    deadline = monotonic() + _LINGER_TIME
    while True:
        try:
            if not link.receive(READ_BYTES):
                return
        except BlockingIOError:
            if not wait(link, select.POLLIN, deadline - monotonic()):
                return
        if monotonic() > deadline:
            return


def is_readable(link: Link) -> bool:
    """Tell whether something has come in, or the end."""
    return link.pending or wait(link, select.POLLIN, 0.0)


def last_words(link: Link) -> str:
    """Return why the connection to an acceptor ended; "" if it has not."""
    try:
        return "it answered a message" if link.receive(1) else _CLOSED
    except BlockingIOError:
        return ""
    except OSError as error:
        return reason(error)


def reason(error: Exception) -> str:
    """Return why a connection failed, in the system's words without its number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def send_all(
    link: Link, data: bytes, deadline: float | None = None, silence: float | None = None
) -> None:
    """Send everything, by a moment of ``monotonic`` if *deadline* names one, and never longer than
    *silence* seconds without progress. Raises OSError."""
    unsent = memoryview(data)
    while unsent:
        try:
            unsent = unsent[link.send(unsent) :]
        except BlockingIOError:
            await_event(link, select.POLLOUT, deadline, silence)


def read_exactly(
    link: Link,
    size: int,
    deadline: float | None,
    *,
    silence: float | None = None,
    must_go_on: bool = False,
) -> bytes:
    """Read so many bytes, by a moment of ``monotonic`` if *deadline* names one, and never waiting
    longer than *silence* seconds for the next one.

    With *must_go_on* they have to come as fast as guests.py asks of a frame. Raises OSError.
    """
    data = bytearray()
    begun = monotonic()
    while len(data) < size:
        try:
            piece = link.receive(min(size - len(data), READ_BYTES))  # grows as bytes arrive (1)
        except BlockingIOError:
            await_event(link, select.POLLIN, deadline, silence)
            continue
        if not piece:
            raise ConnectionResetError(_CLOSED)
        data += piece
        if deadline is not None:
            if monotonic() > deadline:
                raise TimeoutError(_TOO_LATE)
        elif must_go_on and is_stalled(monotonic() - begun, len(data)):
            raise TimeoutError("a frame that has begun and does not go on")
    return bytes(data)


def await_event(
    link: Link, events: int, deadline: float | None, silence: float | None = None
) -> None:
    """Wait as :func:`wait` does, by the *deadline* and for *silence* seconds at most; also until
    what a link has to send for itself can be sent. Raises TimeoutError."""
    seconds = PROGRESS_TIME if silence is None else silence
    if deadline is not None:
        seconds = min(seconds, deadline - monotonic())
    if link.stalled:
        events |= select.POLLOUT
    if seconds <= 0 or not wait(link, events, seconds):
        raise TimeoutError(_TOO_LATE)


def read_json(
    link: Link, most: int, deadline: float | None = None, silence: float | None = None
) -> dict[str, Any]:
    """Read a frame of at most so many bytes that is a JSON object. Raises OSError and WireError.

    One that has begun goes on, or is complete by the *deadline*.
    """
    header = read_exactly(link, FRAME_HEADER_BYTES, deadline, silence=silence)
    size = frame_length(header, most)
    payload = read_exactly(link, size, deadline, silence=silence, must_go_on=True)
    return parse_json(check_frame(header + payload))


def write_json(link: Link, fields: Mapping[str, Any], deadline: float | None = None) -> None:
    """Send a JSON object as a frame. Raises OSError."""
    send_all(link, encode_frame(json.dumps(fields).encode()), deadline)


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
