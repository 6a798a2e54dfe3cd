"""Connections that this node opens: the handshake, who is at the other end, and which are open.

A connection is in the table before the host decides on its other end. So none slips through when
what the host goes by changes in between: :meth:`Dialler.judge` closes those that are believed no
more. What is sent over a connection is for whoever asked for it: a peer (peer.py), a snapshot
(transfer.py), or nobody, for a probe.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from conure.errors import ConureError, Unavailable, WireError
from conure.net.link import Link, PlainLink
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
    """A connection that is open, and who is at its other end, by the handshake."""

    sock: socket.socket
    greeting: Greeting | None = None  # amid the handshake
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
        self._open: dict[int, _End] = {}  # by descriptor
        self._probes = 0

    def start(self, host: Calling) -> None:
        """Tell who decides; once, before anything is dialled."""
        self._host = host

    def dial(
        self, kind: str, address: str, node_id: str, known_as: str | None = None
    ) -> tuple[Link, Greeting]:
        """Connect and shake hands; the link has to be given to :meth:`hang_up` at last.

        *known_as* is the incarnation that the node is taken to have, by default what the host says.
        Raises Refused, and Unavailable if no node answers.
        """
        if known_as is None:
            known_as = self._host.known_as(node_id)
        silence = sockets.PROGRESS_TIME if kind == "snapshot" else SILENCE
        hello = encode_hello(kind, node_id, known_as, self._host.greeting())
        link = self._connect(address, silence)
        try:
            greeting = check_answer(self._converse(link, hello, MAX_HANDSHAKE))
            if kind != "probe":
                with self._lock:
                    self._open[link.descriptor].greeting = greeting
                self._host.recognise(node_id, greeting)
        except BaseException as error:
            self.hang_up(link)
            if isinstance(error, OSError | WireError):
                why = sockets.reason(error)
                raise Unavailable(f"no node answers at {address}: {why}") from error
            raise
        return link, greeting

    def hang_up(self, link: Link) -> str:
        """Close a connection that was dialled; return why it was dropped, "" if it was not."""
        with self._lock:
            end = self._open.pop(link.descriptor, None)
        link.close()
        return "" if end is None else end.why_dropped

    def tell_unreachable(self, node_id: str) -> None:
        """Tell the host that what was sent to a node lately is probably lost."""
        self._host.unreachable(node_id)

    def judge(self, expects: Callable[[Greeting], bool]) -> None:
        """Close the connections whose other end isn't expected any more. Never blocks.

        *expects* is asked about each by its greeting, by this thread, without any lock.
        """
        with self._lock:
            ends = [end for end in self._open.values() if end.greeting is not None]
        for end in [end for end in ends if end.greeting and not expects(end.greeting)]:
            end.why_dropped = NOT_BELIEVED
            sockets.shut(end.sock)

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
            still_open = [*self._open.values()]
        for end in still_open:
            sockets.shut(end.sock)

    def _connect(self, address: str, silence: float) -> Link:
        """Connect, and have the connection in the table. *silence* is for how many seconds the
        other system may take nothing. Raises Unavailable."""
        try:
            sock = sockets.connect(address)
        except (OSError, ValueError) as error:
            why = sockets.reason(error)
            raise Unavailable(f"{address} can't be reached: {why}") from error
        link = PlainLink(sock)
        with self._lock:
            self._open[link.descriptor] = _End(sock)
        try:
            sockets.configure(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * silence))
            if self._stopping.is_set():
                raise ConnectionAbortedError("this node is being stopped")
        except OSError as error:
            self.hang_up(link)
            why = sockets.reason(error)
            raise Unavailable(f"no node answers at {address}: {why}") from error
        return link

    def _converse(self, link: Link, said: Mapping[str, Any], most: int) -> dict[str, Any]:
        """Say this, and return the answer, of so many bytes at most. Raises OSError and
        WireError."""
        deadline = monotonic() + sockets.HANDSHAKE_TIME
        sockets.write_json(link, said, deadline)
        return sockets.read_json(link, most, deadline)

    def _ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        found: Shown | ConureError
        try:
            link = self._connect(address, SILENCE)
            try:
                found = check_shown(self._converse(link, encode_question(question), MAX_SHOWN))
            except (OSError, WireError) as error:
                found = Unavailable(f"doesn't answer: {sockets.reason(error)}")
            finally:
                self.hang_up(link)
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
            link, found = self.dial("probe", address, node_id, known_as)
            self.hang_up(link)
        except ConureError as error:
            found = error
        with self._lock:
            self._probes -= 1
        reply(found)
