"""Connections that this node opens: the handshake, who is at the other end, and which are open.

A connection is in the table before the host decides on its other end. So none slips through when
what the host goes by changes in between: :meth:`Dialler.judge` closes those that are believed no
more. What is sent over a connection is for whoever asked for it: a peer (peer.py), a snapshot
(transfer.py), or nobody, for a probe.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from conure.errors import ConureError, Unavailable, WireError
from conure.peers import sockets
from conure.peers.forming import MAX_SHOWN, Question, Shown, check_shown, encode_question
from conure.peers.protocol import MAX_HANDSHAKE, NOT_BELIEVED, Greeting, check_answer, encode_hello
from conure.peers.threads import Threads

__all__ = ["MAX_PROBES", "SILENCE", "Calling", "Dialler"]

MAX_PROBES = 8
"""Probes at a time."""

SILENCE = 2.0
"""Seconds after which messages that a peer's system doesn't take end a connection."""


class Calling(Protocol):
    """The part of the host that is asked about nodes that are dialled. Any thread."""

    def greeting(self) -> Greeting:
        """Return what this node says of itself; its id never changes."""

    def known_as(self, node_id: str) -> str:
        """Return the incarnation that a node is taken to have, "" if that isn't known."""

    def recognise(self, expected_id: str, peer: Greeting) -> None:
        """Decide on the node that answers at the address of a peer. Raises Refused."""

    def unreachable(self, node_id: str) -> None:
        """Take note that what was sent to a node lately is probably lost."""


@dataclass(slots=True)
class _End:
    """Who is at the other end of a connection, by the handshake."""

    greeting: Greeting
    why_dropped: str = ""


class Dialler:
    """Opens connections, and knows those that are open. Every method: any thread.

    *stopping* is set when the transport is closed, before :meth:`close` is called; *threads* run
    the probes.
    """

    _host: Calling  # as of start()

    def __init__(self, stopping: threading.Event, threads: Threads) -> None:
        self._stopping = stopping
        self._threads = threads
        # Guards what follows. Held for moments, and no other lock is taken under it.
        self._lock = threading.Lock()
        self._open: dict[socket.socket, _End | None] = {}  # None amid the handshake
        self._probes = 0

    def start(self, host: Calling) -> None:
        """Tell who decides; once, before anything is dialled."""
        self._host = host

    def dial(
        self, kind: str, address: str, node_id: str, known_as: str | None = None
    ) -> tuple[socket.socket, Greeting]:
        """Connect and shake hands; the socket has to be given to :meth:`hang_up` at last.

        *known_as* is the incarnation that the node is taken to have, by default what the host says.
        Raises Refused, and Unavailable if no node answers.
        """
        if known_as is None:
            known_as = self._host.known_as(node_id)
        sock = self._connect(address)
        try:
            if self._stopping.is_set():
                raise ConnectionAbortedError("this node is being stopped")
            sockets.configure(sock)
            silence = sockets.PROGRESS_TIME if kind == "snapshot" else SILENCE
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * silence))
            hello = encode_hello(kind, node_id, known_as, self._host.greeting())
            sockets.write_json(sock, hello)
            greeting = check_answer(sockets.read_handshake(sock, MAX_HANDSHAKE))
            if kind != "probe":
                with self._lock:
                    self._open[sock] = _End(greeting)
                self._host.recognise(node_id, greeting)
        except BaseException as error:
            self.hang_up(sock)
            if isinstance(error, OSError | WireError):
                why = sockets.reason(error)
                raise Unavailable(f"no node answers at {address}: {why}") from error
            raise
        return sock, greeting

    def hang_up(self, sock: socket.socket) -> str:
        """Close a connection that was dialled; return why it was dropped, "" if it was not."""
        with self._lock:
            end = self._open.pop(sock, None)
        sock.close()
        return "" if end is None else end.why_dropped

    def tell_unreachable(self, node_id: str) -> None:
        """Tell the host that what was sent to a node lately is probably lost."""
        self._host.unreachable(node_id)

    def judge(self, expects: Callable[[Greeting], bool]) -> None:
        """Close the connections whose other end isn't expected any more. Never blocks.

        *expects* is asked about each by its greeting, by this thread, without any lock.
        """
        with self._lock:
            ends = [(sock, end) for sock, end in self._open.items() if end is not None]
        for sock, end in [item for item in ends if not expects(item[1].greeting)]:
            end.why_dropped = NOT_BELIEVED
            sockets.shut(sock)

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        """Ask at an address for a node: :meth:`Transport.probe`."""
        with self._lock:
            is_free = self._probes < MAX_PROBES
            self._probes += is_free
        if is_free:
            self._threads.spawn("probe", self._probe, address, node_id, reply, known_as)
        else:
            reply(Unavailable(f"{MAX_PROBES} other nodes are being asked; try again shortly"))

    def ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        """Ask who is at an address: :meth:`Transport.ask`."""
        self._threads.spawn("forming", self._ask, address, question, reply)

    def close(self) -> None:
        """End every connection; who has dialled it notices, and hangs up."""
        with self._lock:
            still_open = [*self._open]
        for sock in still_open:
            sockets.shut(sock)

    def _connect(self, address: str) -> socket.socket:
        """Connect, and have the socket in the table. Raises Unavailable."""
        try:
            sock = sockets.connect(address)
        except (OSError, ValueError) as error:
            why = sockets.reason(error)
            raise Unavailable(f"{address} can't be reached: {why}") from error
        with self._lock:
            self._open[sock] = None
        return sock

    def _ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        found: Shown | ConureError
        try:
            sock = self._connect(address)
            try:
                if self._stopping.is_set():
                    raise ConnectionAbortedError("this node is being stopped")
                sockets.configure(sock)
                sockets.write_json(sock, encode_question(question))
                found = check_shown(sockets.read_handshake(sock, MAX_SHOWN))
            except (OSError, WireError) as error:
                found = Unavailable(f"doesn't answer: {sockets.reason(error)}")
            finally:
                self.hang_up(sock)
        except ConureError as error:
            found = error
        reply(found)

    def _probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        found: Greeting | ConureError
        try:
            sock, found = self.dial("probe", address, node_id, known_as)
            self.hang_up(sock)
        except ConureError as error:
            found = error
        with self._lock:
            self._probes -= 1
        reply(found)
