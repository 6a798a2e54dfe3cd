"""Snapshots on their way between two nodes: how one is sent, and how one is received.

A snapshot goes over a connection of its own, drawn in protocol.py. One that breaks off goes on over
another connection, after the last key that has arrived, as long as the attempts get further. Where
the state comes from and goes to is behind :class:`Outgoing` and :class:`Incoming`: this file keeps
no record, reads no disk and takes no lock.
"""

from __future__ import annotations

import logging
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from time import thread_time
from typing import Any, Final, Protocol

from conure.consensus.messages import SnapshotHeader
from conure.consensus.records import FRAME_HEADER_BYTES, check_frame, encode_frame, frame_length
from conure.errors import ConureError, Unavailable, WireError
from conure.metrics import Counter
from conure.net.link import Link
from conure.peers import sockets
from conure.peers.dialling import Dialler
from conure.peers.protocol import (
    MAX_ANSWER,
    MAX_HEADER,
    Greeting,
    decode_base64,
    decode_header,
    encode_header,
    raise_if_refused,
    told,
)

__all__ = [
    "FINISH_TIME",
    "RESUMPTIONS",
    "RESUMPTION_PAUSE",
    "Incoming",
    "Outgoing",
    "Transfer",
    "receive",
]

FINISH_TIME: Final = 600.0
"""Seconds for the answer to its end: all of it has to get to a disk before."""

RESUMPTIONS = 5
"""Attempts in a row to go on with a snapshot, none of which gets further than the one before."""

RESUMPTION_PAUSE = 0.2
"""Seconds before the first of them; each pause is twice as long as the one before."""

log = logging.getLogger("conure.transport")


class Outgoing(Protocol):
    """A state to be sent. Used and closed by one thread of the transport."""

    header: SnapshotHeader

    def chunks(self, after: bytes) -> Iterator[bytes]:
        """Encode the records (codec.encode_records) whose keys are greater than *after*."""

    def close(self) -> None:
        """Let go of the state."""


class Incoming(Protocol):
    """A state being received. Used by one thread of the transport after the other.

    What raises has given the transfer up; a ConureError is told to the sender.
    """

    def resume_after(self) -> bytes:
        """Return the last key that has arrived, b"" at the beginning."""

    def add(self, chunk: bytes) -> None:
        """Take the next records."""

    def finish(self) -> None:
        """All chunks have come: make the state durable and hand it to the core."""

    def interrupted(self) -> None:
        """Take note that the connection broke; a later one may bring the rest."""


class Transfer:
    """Sends one snapshot, over as many connections as that takes. One thread of its own.

    *address* says where the node is by now, and raises Refused if it is no peer any more. *sent*
    returns the counter of bytes sent to a node, *stopping* is set when the transport is closed.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        dialler: Dialler,
        address: Callable[[str], str],
        sent: Callable[[str], Counter],
        stopping: threading.Event,
    ) -> None:
        self._outgoing = outgoing
        self._dialler = dialler
        self._address = address
        self._sent = sent
        self._stopping = stopping
        self._to = outgoing.header.message.to
        self._arrived = b""  # the last key that the other side has named
        self._failures = 0

    def run(self) -> None:
        """Send it; returns when the other side has it.

        Raises Refused, Unavailable, and what reading the state raises.
        """
        while True:
            try:
                return self._attempt()
            except (OSError, WireError, Unavailable) as error:
                self._failures += 1
                why = sockets.reason(error)
                pause = RESUMPTION_PAUSE * 2 ** (self._failures - 1)
                if self._failures > RESUMPTIONS or self._stopping.wait(pause):
                    raise Unavailable(f"it broke off too often, lastly because: {why}") from error
                log.info("the snapshot for %s broke off and goes on: %s", self._to, why)

    def _attempt(self) -> None:
        link, _ = self._dialler.dial("snapshot", self._address(self._to), self._to)
        try:
            sockets.write_json(link, encode_header(self._outgoing.header))
            answer = _read_reply(link)
            if answer.get("needed") is False:
                return
            after = decode_base64(answer.get("after"))
            if after > self._arrived:
                self._arrived, self._failures = after, 0
            self._send_chunks(link, after)
        finally:
            self._dialler.hang_up(link)

    def _send_chunks(self, link: Link, after: bytes) -> None:
        sent = self._sent(self._to)
        chunks = 0
        silence = sockets.PROGRESS_TIME
        began = thread_time()
        for chunk in self._outgoing.chunks(after):
            if sockets.is_readable(link):
                break  # it refuses the rest
            sockets.send_all(link, encode_frame(chunk))
            sent.inc(FRAME_HEADER_BYTES + len(chunk))
            chunks += 1  # noqa: SIM113 - there may be none
            self._address(self._to)
            self._rest(thread_time() - began)
            began = thread_time()
        else:
            sockets.write_json(link, {"chunks": chunks})
            silence = FINISH_TIME
        if _read_reply(link, silence).get("done") is not True:
            raise WireError("an answer that isn't one")

    def _rest(self, seconds: float) -> None:
        """Give requests their turn: rest as long as the processor was used."""
        if self._stopping.wait(seconds):
            raise ConnectionAbortedError("this node is being stopped")


def receive(
    link: Link,
    peer: Greeting,
    own_id: str,
    begin: Callable[[SnapshotHeader], Incoming | None],
    received: Callable[[], Counter],
    expect: Callable[[int], None],
) -> None:
    """Receive a snapshot from a node that was admitted, or what is missing of it.

    *begin* is Host.begin_snapshot; *expect* is told the size of each frame beforehand
    (Guests.expect); *received* returns what counts its bytes. Raises OSError and WireError.
    """
    header = decode_header(sockets.read_json(link, MAX_HEADER))
    message, node_id = header.message, peer.node_id
    message.incarnation = peer.incarnation
    if message.sender != node_id or message.to != own_id:
        raise WireError(f"a snapshot from {message.sender!r} to {message.to!r}")  # (2)
    try:
        incoming = begin(header)
        if incoming is None:
            sockets.write_json(link, {"needed": False})
            return
        after = incoming.resume_after()
        try:
            sockets.write_json(link, {"after": b64encode(after).decode()})
            for chunk in _read_chunks(link, received(), expect):
                incoming.add(chunk)
        except OSError as error:
            log.warning("a snapshot of %s broke off: %s", node_id, sockets.reason(error))
            incoming.interrupted()
            return
        incoming.finish()
    except ConureError as error:
        log.warning("a snapshot of %s was given up: %s", node_id, error)
        sockets.write_json(link, {"refused": told(error)})
        sockets.linger(link)
    else:
        sockets.write_json(link, {"done": True})


def _read_reply(link: Link, silence: float | None = None) -> dict[str, Any]:
    """Read an answer within a snapshot, for which one may wait so many seconds. Raises Refused,
    OSError and WireError."""
    fields = sockets.read_json(link, MAX_ANSWER, silence=silence)
    raise_if_refused(fields)
    return fields


def _read_chunks(link: Link, received: Counter, expect: Callable[[int], None]) -> Iterator[bytes]:
    """Read the chunks of a snapshot to its end; *expect* is told the size of each beforehand.

    Raises OSError for all that goes wrong.
    """
    chunks = 0
    try:
        while not (payload := _read_chunk(link, expect)).startswith(b"{"):
            received.inc(FRAME_HEADER_BYTES + len(payload))
            yield payload
            chunks += 1
        if len(payload) > MAX_ANSWER or sockets.parse_json(payload).get("chunks") != chunks:
            raise WireError(f"it ended after {chunks} chunks")
    except WireError as error:
        raise ConnectionAbortedError(str(error)) from error


def _read_chunk(link: Link, expect: Callable[[int], None]) -> bytes:
    header = sockets.read_exactly(link, FRAME_HEADER_BYTES, None)
    size = frame_length(header)
    expect(FRAME_HEADER_BYTES + size)
    try:
        return check_frame(header + sockets.read_exactly(link, size, None, must_go_on=True))
    finally:
        expect(0)
