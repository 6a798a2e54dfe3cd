"""Connections that this node opens: the handshake, who is at the other end, and which are open.

A connection is in the table before the host decides on its other end. So none slips through when
what the host goes by changes in between: :meth:`Dialler.judge` closes those that are believed no
more. What is sent over a connection is for whoever asked for it: a peer (peer.py), a snapshot
(transfer.py), or nobody, for a probe.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from conure.errors import ConureError, Unavailable, WireError
from conure.net.link import Link, PlainLink
from conure.peers import sockets
from conure.peers.forming import MAX_SHOWN, Question, Shown, check_shown, encode_question
from conure.peers.joins import (
    JOIN_TIME,
    Applicant,
    check_added,
    check_taken,
    encode_applicant,
)
from conure.peers.news import News
from conure.peers.protocol import MAX_HANDSHAKE, NOT_BELIEVED, Greeting, check_answer, encode_hello
from conure.peers.proving import CERTIFICATE, OPEN, SECRET, UNPROVED, PeerSecurity, check_name
from conure.peers.threads import Threads

__all__ = ["MAX_PROBES", "SILENCE", "Calling", "Dialler"]

MAX_PROBES = 8
"""Probes at a time."""

_BY_HTTP = (
    "is that a member's Raft port? An earlier release takes no wish to be added there: name a base "
    "URL of the member as the seed then, http://HOST:PORT"
)

SILENCE = 2.0
"""Seconds after which messages that a peer's system doesn't take end a connection."""

_TOLD_TIME = 3600.0  # seconds after which it is logged again how a node is talked to
_HOW = {CERTIFICATE: "by certificate: ", SECRET: "by secret: ", UNPROVED: ""}
_BY = {CERTIFICATE: "by certificate", SECRET: "by the cluster secret", UNPROVED: "without a proof"}

log = logging.getLogger("conure.transport")


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
    the probes. *security* says how this node proves itself.
    """

    _host: Calling  # as of start()

    def __init__(self, stopping: threading.Event, threads: Threads, security: PeerSecurity) -> None:
        self._stopping = stopping
        self._security = security
        self._news = News(_TOLD_TIME)
        self._threads = threads
        # Guards what follows. Held for moments, and no other lock is taken under it.
        self._lock = threading.Lock()
        self._open: dict[int, _End] = {}  # by descriptor
        self._probes = 0
        self._has_given_up_joining = False
        self._joining: set[int] = set()  # the descriptors of those that ask to be added

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
        link, fields = self._converse(address, silence, hello, MAX_HANDSHAKE, node_id)
        try:
            greeting = check_answer(fields)
            check_name(link, greeting.node_id)  # (P2)
            if kind != "probe":
                with self._lock:
                    self._open[link.descriptor].greeting = greeting
                self._host.recognise(node_id, greeting)
        except BaseException as error:
            self.hang_up(link)
            if isinstance(error, OSError | WireError):
                raise Unavailable(_no_answer(address, sockets.reason(error))) from error
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

    def join(self, address: str, applicant: Applicant) -> None:
        """Ask a member to add a node: :meth:`Transport.join`."""
        said = encode_applicant(applicant)
        try:
            link, fields = self._converse(address, SILENCE, said, MAX_HANDSHAKE)
        except Unavailable as error:
            raise Unavailable(f"{error}; {_BY_HTTP}") from error
        try:
            with self._lock:
                self._joining.add(link.descriptor)
                is_given_up = self._has_given_up_joining
            if is_given_up:
                raise ConnectionAbortedError("this node is being stopped")
            check_name(link, check_taken(fields))  # (P2)
            said = sockets.read_json(link, MAX_HANDSHAKE, monotonic() + JOIN_TIME)
        except (OSError, WireError) as error:
            raise Unavailable(_no_answer(address, sockets.reason(error))) from error
        finally:
            with self._lock:
                self._joining.discard(link.descriptor)
            self.hang_up(link)
        check_added(said)

    def give_up_joining(self) -> None:
        """End the connections that ask for this node to be added, and let none go on any more."""
        with self._lock:
            self._has_given_up_joining = True
            ends = [self._open[each] for each in self._joining if each in self._open]
        for end in ends:
            sockets.shut(end.sock)

    def close(self) -> None:
        """End every connection; who has dialled it notices, and hangs up."""
        with self._lock:
            still_open = [*self._open.values()]
        for end in still_open:
            sockets.shut(end.sock)

    def _connect(self, address: str, silence: float) -> PlainLink:
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
            raise Unavailable(_no_answer(address, sockets.reason(error))) from error
        return link

    def _converse(
        self, address: str, silence: float, said: Mapping[str, Any], most: int, node_id: str = ""
    ) -> tuple[Link, dict[str, Any]]:
        """Connect, prove this node, say this, and return the answer, of so many bytes at most.

        One way of proving after the other is tried, each over a connection of its own, until there
        is an answer. *node_id* is the node that is looked for, "" if that isn't known. Raises
        Unavailable.
        """
        ways = self._security.ways
        failures: list[str] = []
        for way in ways:
            plain = self._connect(address, silence)
            link: Link = plain
            deadline = monotonic() + sockets.HANDSHAKE_TIME
            try:
                link = self._security.dial(plain.socket, way, deadline)
                if node_id:
                    check_name(link, node_id)  # (P2)
                sockets.write_json(link, said, deadline)
                fields = sockets.read_json(link, most, deadline)
            except BaseException as error:
                self.hang_up(link)
                if not isinstance(error, OSError | WireError):
                    raise
                failures.append(_HOW[way] + _why_unanswered(error, way, self._security.mode))
            else:
                self._tell_way(address, node_id, way, failures)
                return link, fields
        raise Unavailable(_no_answer(address, "; ".join(failures)))

    def _tell_way(self, address: str, node_id: str, way: str, failures: Sequence[str]) -> None:
        """Log how a node has proved itself that could not do so in a better way."""
        whose = node_id or "the node"
        if failures:
            why = f"{whose} at {address} is talked to {_BY[way]}; {'; '.join(failures)}"
            if self._news.is_new(f"{address} {why}"):
                log.warning("%s", why)

    def _ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        found: Shown | ConureError
        try:
            said = encode_question(question)
            link, fields = self._converse(address, SILENCE, said, MAX_SHOWN)
            try:
                found = check_shown(fields)
                check_name(link, found.node_id)  # (P2)
            except WireError as error:
                found = Unavailable(f"doesn't answer: {error}")
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


def _no_answer(address: str, why: str) -> str:
    return f"no node answers at {address}: {why}"


def _why_unanswered(error: Exception, way: str, mode: str) -> str:
    """Return why there was no answer, and what that may mean."""
    why = sockets.reason(error)
    if way == UNPROVED and isinstance(error, ConnectionError):
        hint = "set --cluster-secret-file or --peer-tls-cert here if it asks for a proof"
        return f"{why}; {hint}" if mode == OPEN else why
    if way == CERTIFICATE and isinstance(error, ConnectionError):
        return f"{why}; does this node's certificate name its node ID? The log there says more"
    return why
