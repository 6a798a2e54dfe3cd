"""Connections that other nodes open to this one: who may have one, and who reads what it brings.

One thread accepts, within the bounds of guests.py, and gives each connection a thread of its own:
it shakes hands, and then reads, receives a snapshot (transfer.py), or sleeps while others read
the messages (inbox.py) or the calls (answering.py). The newest connection of a node and kind takes
the place of its older one, which has ended by then: what a node sends is handed over in order (duty
4 of transport.py). A connection is in the table before the host decides on its other end, so that
none slips through when what the host goes by changes in between (:meth:`Acceptor.judge`). The host
is called without any lock of this file, but for the question whether somebody is a member.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from socketserver import ThreadingMixIn
from time import monotonic, sleep
from typing import Any, Protocol

from conure.consensus.messages import Message, SnapshotHeader
from conure.errors import ConureError, Refused, Unavailable, WireError
from conure.metrics import Counter
from conure.net.link import Link, PlainLink
from conure.net.listener import BoundServer, bind
from conure.peers import sockets
from conure.peers.answering import Called, Calls
from conure.peers.forming import FORMING, Question, Shown, check_question, encode_shown
from conure.peers.guests import MAX_INCOMING, Guests
from conure.peers.inbox import Inbox
from conure.peers.joins import (
    JOIN,
    JOIN_TIME,
    MAX_JOINS,
    NO_PROOF,
    Applicant,
    check_applicant,
    encode_added,
    encode_taken,
)
from conure.peers.line import Line
from conure.peers.news import News
from conure.peers.protocol import (
    MAX_HANDSHAKE,
    NOT_BELIEVED,
    Greeting,
    check_hello,
    encode_answer,
    encode_refusal,
)
from conure.peers.proving import OFFER, PeerSecurity, check_name
from conure.peers.threads import Threads
from conure.peers.transfer import Incoming, receive
from conure.protection import NODES_REMEDIES

__all__ = ["MAX_WAITING", "Acceptor", "Answering", "Registrar"]

MAX_WAITING = 3
"""Connections of one node and kind that may wait until what an earlier one has brought is taken."""

_DECISION_TIME = JOIN_TIME - 2.0  # seconds until whoever asks to be added is to ask again
_DECISION_TICK = 0.2  # seconds between two looks at whether this node is being stopped
_NOT_LET_APPLY = (
    "it asks to be added and has proved nothing; give both nodes a --cluster-secret-file or "
    "certificates (--peer-tls-cert), or turn protected mode off where --peer-auth is open"
)
_LOOK = 1.0  # seconds between two looks at whether a frame goes on
_ACCEPT_TICK = 0.2  # seconds between two looks at whether the accepting thread is to end
_ACCEPT_PAUSE = 0.1  # seconds without accepting when the process has no file descriptor left
_TOLD_TIME = 600.0  # seconds after which a refusal is logged again
_OPEN_TIME = 3600.0  # seconds after which it is logged again that a node has proved nothing
_BARRED = f"nodes of other machines prove nothing here (protected mode); {NODES_REMEDIES}"

log = logging.getLogger("conure.transport")


class Answering(Called, Protocol):
    """The part of the host that is asked about nodes that have dialled, and told what they send.
    Called by the threads of the connections, or the registrar's."""

    def greeting(self) -> Greeting:
        """Return what this node says of itself; its id never changes."""

    def admit(self, kind: str, to: str, peer: Greeting, known_as: str) -> None:
        """Decide on a node that has dialled this one, looking for *to*. Raises Refused.

        *kind* is ``messages``, ``snapshot``, ``calls`` or ``probe``, *known_as* the incarnation
        that the node takes this one to have, "" if it doesn't say.
        """

    def asked(self, question: Question) -> Shown:
        """Show this node to one that forms a cluster. Raises Refused."""

    def asked_to_add(
        self, applicant: Applicant, reply: Callable[[ConureError | None], None]
    ) -> None:
        """Make a node a member that asks for it, or have the leader do so; *reply* is told once,
        any thread: None if it is one, or why not."""

    def is_member(self, peer: Greeting) -> bool:
        """Tell whether that is a member, as it was admitted. The one question that is asked with a
        lock of the transport held: the answer takes none."""

    def receive(self, messages: Sequence[Message]) -> None:
        """Take messages of one node, all that were read in one go."""

    def begin_snapshot(self, header: SnapshotHeader) -> Incoming | None:
        """Prepare for a snapshot; None if it isn't needed any more. Raises Refused."""


class Registrar(Protocol):
    """A thread that waits for many sockets. A node that reads its peers' messages in the thread
    that serves its clients answers them without waking another one."""

    def register(self, descriptor: int, action: Callable[[], None]) -> None:
        """Call *action* in that thread whenever the socket has input."""

    def unregister(self, descriptor: int) -> None:
        """Undo that."""


@dataclass(slots=True)
class _Caller:
    """A connection, and what its other end is called in the log."""

    sock: socket.socket
    link: Link  # the socket as it is until the proof
    ip: str
    whose: str


@dataclass(slots=True)
class _End:
    """Who is at the other end of a connection, by the handshake."""

    greeting: Greeting
    known_as: str  # what it takes this node for
    why_dropped: str = ""


@dataclass(slots=True)
class _Place:
    """What the connections of one kind from one node take one after the other."""

    newest: socket.socket | None = None
    users: int = 0  # whoever has it, and those who wait for it
    is_taken: threading.Lock = field(default_factory=threading.Lock)


class _Decision:
    """What is decided about a node that asks to be added."""

    def __init__(self) -> None:
        self._is_made = threading.Event()
        self._error: ConureError | None = None

    def tell(self, error: ConureError | None) -> None:
        """Take the decision: None if the node was added, or why not. Once; any thread."""
        self._error = error
        self._is_made.set()

    def wait(self, stopping: threading.Event) -> ConureError | None:
        """Return it as soon as it is made; an error of its own if that takes too long."""
        deadline = monotonic() + _DECISION_TIME
        while not self._is_made.wait(_DECISION_TICK):
            if stopping.is_set() or monotonic() > deadline:
                return Unavailable("nothing was decided in time; ask again")
        return self._error


class Acceptor:
    """The connections of one Raft port: bound at once, accepted from :meth:`start` on.

    *stopping* is set when the transport is closed, before :meth:`stop` is called; *threads* run the
    connections. *refused* counts those that are, *received_from* and *sent_to* return the counters
    for the bytes of a node, and *hurry* is told which node has just dialled: it is there.
    *security* says what those who dial have to prove. Raises OSError if the address can't be bound.
    """

    _host: Answering  # as of start()
    _registrar: Registrar | None
    _lets_in: Callable[[str, str], bool]

    def __init__(
        self,
        address: tuple[str, int],
        stopping: threading.Event,
        threads: Threads,
        refused: Counter,
        received_from: Callable[[str], Counter],
        sent_to: Callable[[str], Counter],
        hurry: Callable[[str], None],
        security: PeerSecurity,
    ) -> None:
        self._security = security
        self._stopping = stopping
        self._threads = threads
        self._refused = refused
        self._received_from = received_from
        self._sent_to = sent_to
        self._hurry = hurry
        # Guards what follows. Held for moments, and no other lock is taken under it.
        self._lock = threading.Lock()
        self._guests = Guests()
        self._places: dict[tuple[str, str], _Place] = {}  # kind and node
        self._callers: dict[socket.socket, _End] = {}
        self._inboxes: dict[socket.socket, Inbox | Line] = {}
        self._applicants = threading.Semaphore(MAX_JOINS)
        self._refusals, self._unproved = News(_TOLD_TIME), News(_OPEN_TIME)
        self._started = False

        self._listener = _Listener(address, self)
        self.port = int(self._listener.server_address[1])

    def start(
        self, host: Answering, registrar: Registrar | None, lets_in: Callable[[str, str], bool]
    ) -> None:
        """Begin to answer; once. *registrar* reads the messages, or the connections' threads.
        *lets_in* tells, given the IP addresses of both ends, whether a connection is taken."""
        self._host = host
        self._lets_in = lets_in
        self._registrar = registrar
        self._started = True
        self._threads.spawn("peer-accept", self._listener.serve_forever, _ACCEPT_TICK)

    def judge(self, believes: Callable[[Greeting, str], bool]) -> None:
        """Close the connections whose other end isn't believed any more. Any thread; never blocks.

        *believes* is asked about each by its greeting and what it takes this node for, by this
        thread, without any lock.
        """
        with self._lock:
            ends = [*self._callers.items()]
        for sock, end in [
            item for item in ends if not believes(item[1].greeting, item[1].known_as)
        ]:
            end.why_dropped = NOT_BELIEVED
            with self._lock:
                inbox = self._inboxes.get(sock)
            if inbox is not None:
                inbox.has_ended.set()  # what has arrived is not handed over either
            sockets.shut(sock)

    def stop(self) -> None:
        """Accept no more; returns when that has ended."""
        if self._started:
            self._listener.shutdown()
        self._listener.server_close()

    def close(self) -> None:
        """End every connection; their threads notice. After :meth:`stop`."""
        with self._lock:
            still_open = [*self._guests.sockets()]
            inboxes = [*self._inboxes.values()]
        for sock in still_open:
            sockets.shut(sock)
        for inbox in inboxes:
            inbox.has_ended.set()  # whoever reads it may have ended before

    # -- the accepting thread, and each connection's at its ends ---------------------------------

    def has_room(self, sock: socket.socket, ip: str) -> bool:
        """Take an incoming connection into account, if there is room for one more (1)."""
        with self._lock:
            if self._stopping.is_set():
                return False
            has_room, ended = self._guests.enter(sock, ip)
        if ended is not None:
            sockets.shut(ended)
        if ended is not None or not has_room:
            self._refused.inc()
        return has_room

    def is_let_in(self, sock: socket.socket, ip: str) -> bool:
        """Tell whether a connection may be made from where it comes from."""
        try:
            if self._lets_in(ip, sock.getsockname()[0]):
                return True
        except OSError:
            return False  # it has gone
        self._refused.inc()
        if self._is_news(ip, _BARRED):
            log.warning("closed a connection of %s: %s", ip, _BARRED)
        return False

    def serve(self, sock: socket.socket, address: Any) -> None:
        """Shake hands, and take what the connection brings until it ends. Its own thread."""
        caller = _Caller(sock, PlainLink(sock), address[0], f"{address[0]}:{address[1]}")
        try:
            sockets.configure(sock)
            self._take_in(caller)
        except OSError as error:
            log.debug("a connection of %s has ended: %s", caller.whose, sockets.reason(error))
        except WireError as error:
            if self._is_news(caller.ip, str(error)):
                log.warning("closed a connection of %s: %s", caller.whose, error)
        except ConureError as error:
            self._refused.inc()
            if self._is_news(caller.ip, str(error)):
                log.warning("refused a connection of %s: %s", caller.whose, error)
            with suppress(OSError):  # it has gone, and need not know
                sockets.write_json(caller.link, encode_refusal(error), _soon())
        finally:
            if caller.link.proof:
                with suppress(OSError):  # it has gone, or hears of a connection that is lost
                    caller.link.shut()

    def leave(self, sock: socket.socket) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._guests.leave(sock)
            self._callers.pop(sock, None)

    def spawn(self, target: Callable[..., None], *arguments: Any) -> None:
        """Give a connection its thread."""
        self._threads.spawn("peer-in", target, *arguments)

    # -- private: incoming connections, each in its own thread -----------------------------------

    def _take_in(self, caller: _Caller) -> None:
        """Have the other end prove itself and say what it wants, and do that until it ends."""
        sock, deadline = caller.sock, monotonic() + sockets.HANDSHAKE_TIME
        caller.link = link = self._security.accept(sock, deadline)
        if link.proof:
            with self._lock:
                self._guests.recognise(sock, _has_proved)
        hello = sockets.read_json(link, MAX_HANDSHAKE, deadline)
        if self._has_answered(caller, hello, deadline):
            return
        kind, to, peer, known_as = check_hello(hello)
        self._check_proof(caller, peer.node_id)
        caller.whose = f"{peer.node_id} ({caller.whose})"
        if kind == "probe":
            self._host.admit(kind, to, peer, known_as)
            self._answer(link)
            return
        end = _End(peer, known_as)
        with self._lock:
            self._callers[sock] = end
        self._host.admit(kind, to, peer, known_as)
        if not link.proof:
            with self._lock:
                self._guests.recognise(sock, partial(self._host.is_member, peer))
        with self._place(sock, kind, peer.node_id):
            self._answer(link)
            self._hurry(peer.node_id)
            if kind == "messages":
                self._read_messages(sock, link, peer)
            elif kind == "calls":
                self._take_calls(sock, link, peer)
            else:
                self._receive_snapshot(sock, link, peer)
        if end.why_dropped and self._is_news(caller.ip, end.why_dropped):
            log.warning("closed the connection of %s: %s", caller.whose, end.why_dropped)

    def _check_proof(self, caller: _Caller, node_id: str) -> None:
        """Raise WireError for a node that is proved to be another one; tell of one that isn't
        proved where it should be."""
        check_name(caller.link, node_id)  # (P2)
        if not caller.link.proof and self._security.mode == OFFER:
            whose = f"{node_id} ({caller.ip})"
            if self._unproved.is_new(whose):
                log.warning(
                    "%s has proved nothing, and --peer-auth=offer lets it in, as anybody else who "
                    "reaches this port: only --peer-auth=require protects this node",
                    whose,
                )

    def _answer(self, link: Link) -> None:
        sockets.write_json(link, encode_answer(self._host.greeting()), _soon())

    def _has_answered(self, caller: _Caller, hello: Mapping[str, Any], deadline: float) -> bool:
        """Answer a node that forms a cluster, or asks to be added; return False for any other one.
        Raises WireError for what neither says."""
        if hello.get("kind") == FORMING:
            question = check_question(hello)
            self._check_proof(caller, question.node_id)
            sockets.write_json(caller.link, encode_shown(self._host.asked(question)), deadline)
        elif hello.get("kind") == JOIN:
            applicant = check_applicant(hello)
            self._check_proof(caller, applicant.node_id)
            caller.whose = f"{applicant.node_id} ({caller.whose})"
            if not self._security.lets_apply(caller.link, caller.sock):  # (P4)
                raise Refused(_NOT_LET_APPLY, NO_PROOF)
            self._take_applicant(caller.link, applicant)
        else:
            return False
        return True

    def _take_applicant(self, link: Link, applicant: Applicant) -> None:
        """Let the host decide on a node that asks to be added, and tell it. Raises Unavailable
        where too many ask (1)."""
        if not self._applicants.acquire(blocking=False):
            raise Unavailable(f"{MAX_JOINS} other nodes ask to be added; try again shortly")
        try:
            sockets.write_json(link, encode_taken(self._host.greeting().node_id), _soon())
            decision = _Decision()
            self._host.asked_to_add(applicant, decision.tell)
            sockets.write_json(link, encode_added(decision.wait(self._stopping)), _soon())
        finally:
            self._applicants.release()

    def _expect(self, sock: socket.socket, size: int) -> None:
        """Make room for a frame that has begun to come in. Raises WireError (1)."""
        with self._lock:
            ended = self._guests.expect(sock, size)
        for each in ended:
            sockets.shut(each)

    def _is_news(self, ip: str, why: str) -> bool:
        """Return whether to log this: whoever is refused comes again and again (1)."""
        return self._refusals.is_new(f"{ip} {why}")

    @contextmanager
    def _place(self, sock: socket.socket, kind: str, node_id: str) -> Iterator[None]:
        """Be the newest connection of a node; the older one has ended by then (4).

        Raises Refused if that takes too long.
        """
        with self._lock:
            place = self._places.setdefault((kind, node_id), _Place())
            if place.users > MAX_WAITING:
                raise Refused("too many connections wait for what an earlier one has brought")
            older, place.newest = place.newest, sock
            place.users += 1
        try:
            if older is not None:
                sockets.shut(older)
            if not place.is_taken.acquire(timeout=sockets.HANDSHAKE_TIME):
                raise Refused("what an earlier connection has brought is still being taken in")
            try:
                yield
            finally:
                place.is_taken.release()
        finally:
            with self._lock:
                place.users -= 1
                if not place.users:
                    del self._places[kind, node_id]

    def _read_messages(self, sock: socket.socket, link: Link, peer: Greeting) -> None:
        inbox = Inbox(
            link,
            peer,
            self._host.greeting().node_id,
            self._host.receive,
            self._received_from(peer.node_id),
            partial(self._expect, sock),
        )
        with self._lock:
            if self._stopping.is_set() or self._callers[sock].why_dropped:
                return
            self._inboxes[sock] = inbox
        try:
            if self._registrar is None:
                while not inbox.has_ended.is_set():
                    sockets.wait(link, select.POLLIN, _LOOK)
                    inbox.take()
                    inbox.end_if_stalled()
            else:
                self._registrar.register(link.descriptor, inbox.take)
                while not inbox.has_ended.wait(_LOOK):
                    inbox.end_if_stalled()
                self._registrar.unregister(link.descriptor)
        finally:
            with self._lock:
                del self._inboxes[sock]
        if inbox.error is not None:
            raise inbox.error

    def _take_calls(self, sock: socket.socket, link: Link, peer: Greeting) -> None:
        sent, received = self._sent_to(peer.node_id), self._received_from(peer.node_id)
        line = Calls(link, peer, self._host, sent, received, partial(self._expect, sock)).line
        with self._lock:
            if self._stopping.is_set() or self._callers[sock].why_dropped:
                line.close()
                return
            self._inboxes[sock] = line
        try:
            line.run(self._registrar)
        finally:
            with self._lock:
                del self._inboxes[sock]
        if line.error is not None:
            raise line.error

    def _receive_snapshot(self, sock: socket.socket, link: Link, peer: Greeting) -> None:
        receive(
            link,
            peer,
            self._host.greeting().node_id,
            self._host.begin_snapshot,
            partial(self._received_from, peer.node_id),
            partial(self._expect, sock),
        )


def _has_proved() -> bool:
    return True


def _soon() -> float:
    """Return by when the other side has to have taken an answer of the handshake."""
    return monotonic() + sockets.HANDSHAKE_TIME


class _Listener(ThreadingMixIn, BoundServer):
    """Accepts, within bounds; gives each connection a thread."""

    def __init__(self, address: tuple[str, int], acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        super().__init__(bind(address, MAX_INCOMING))

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            sleep(_ACCEPT_PAUSE)  # it would be ready again at once, and fail again
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        ip = client_address[0]
        return self._acceptor.is_let_in(request, ip) and self._acceptor.has_room(request, ip)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._acceptor.spawn(self.process_request_thread, request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._acceptor.serve(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._acceptor.leave(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.exception("a connection of %s:%d has failed", *client_address[:2])
