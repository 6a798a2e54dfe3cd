"""Peers over TCP: messages of the core, snapshots, and the question who is at an address.

Connections go one way: whoever dials sends, whoever accepts only answers. So two nodes that talk
have two connections, and a half that broke says nothing about the other. What travels is frames
(frames.py), and each connection begins with a handshake of one frame each way, JSON::

    dialer     {"protocol": 1, "kind": "messages" | "snapshot" | "probe", "to": node id,
                "node_id": …, "cluster_id": …, "incarnation": …, "role": …,
                "raft_address": …, "http_address": …, "speaks": …, "election_timeout": …,
                "known_as": the incarnation that the dialer takes the acceptor to have}
    acceptor   {"protocol": 1, "node_id": …, and so on as above}, or
               {"protocol": 1, "refused": why}

    messages   dialer: one frame a message, without end
    probe      nothing: the answer to the handshake is what was asked for
    snapshot   dialer: {"message": base64 of the message's frame, "digest": …, "records": …,
                        "id": …}
               acceptor: {"after": base64 of the last key it holds}, {"needed": false} or
                         {"refused": why}
               dialer: frames of records with the keys behind that one, then
                       {"chunks": how many of them came over this connection}
               acceptor: {"done": true} or {"refused": why}

Records begin with their version byte, JSON with ``{``: that tells them apart.

Duties, cited by number in code and tests:

1. Memory and threads are bounded whatever strangers send: a length is checked before anything is
   allocated, memory grows only as bytes arrive, over all connections no further than guests.py
   says, where members come first; a frame that has begun goes on or its connection ends; a
   handshake is bounded in size and time, JSON in its structure before it is parsed, connections
   and what is logged of them in number.
2. No message is handed over from a node that was not admitted, nor one whose sender is another
   than that node or whose receiver is not this one. Each is stamped with the incarnation of that
   node's greeting. A connection ends when the host believes its other end no more
   (:meth:`Transport.judge`). Who is refused is told what :class:`Refused` lets out, and no name.
3. :meth:`Transport.send` never blocks and never raises for a dead peer. What can't be sent is
   lost, counted and told to :meth:`Host.unreachable`; the core sends again.
4. A connection that broke is dialled again by itself as soon as there is something to send, or
   :meth:`Transport.connect` asks for it: after a pause that grows, or at once if the other node
   has dialled this one. The newest connection of a node takes the place of its older one, which
   has ended by then: what a node sends is handed over in order.
5. :meth:`Transport.close` ends every thread and connection, whatever they wait for.

Threads: one accepts; each incoming connection has one; each peer has one, which dials, sends what
a socket did not take at once and else sleeps; so has each snapshot that is sent and each probe.
Every method of :class:`Transport` may be called from any thread, also by a caller that holds a
lock of its own, except :meth:`Transport.close`: what the host needs to return from its calls must
be free then. The host is called without any lock of this module.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import select
import socket
import threading
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from socketserver import BaseRequestHandler, ThreadingTCPServer
from time import monotonic, sleep, thread_time
from typing import Any, Final, Protocol

from conure.consensus.messages import Message, MessageType, SnapshotHeader
from conure.consensus.records import (
    FRAME_HEADER_BYTES,
    MAX_NODE_ID_BYTES,
    check_frame,
    encode_frame,
    frame_length,
)
from conure.errors import ConureError, Refused, Unavailable, WireError
from conure.metrics import Counter, Registry
from conure.peers.frames import decode_message, encode_message
from conure.peers.guests import MAX_INCOMING, SMALL_FRAME, Guests, is_stalled
from conure.values import is_address, is_base_url

__all__ = [
    "BACKOFF",
    "CONNECT_TIME",
    "FINISH_TIME",
    "HANDSHAKE_TIME",
    "MAX_BACKOFF",
    "MAX_PROBES",
    "MAX_QUEUED_BYTES",
    "MAX_QUEUED_MESSAGES",
    "MAX_WAITING",
    "PROGRESS_TIME",
    "PROTOCOL",
    "RESUMPTIONS",
    "RESUMPTION_PAUSE",
    "SILENCE",
    "Greeting",
    "Host",
    "Incoming",
    "Outgoing",
    "Transport",
    "Watcher",
    "log",
]

log = logging.getLogger("conure.transport")

PROTOCOL: Final = 1

MAX_PROBES = 8
"""Probes at a time."""

MAX_QUEUED_MESSAGES = 4096
MAX_QUEUED_BYTES = 64 << 20
"""What may wait for one peer; a single larger message may wait alone."""

CONNECT_TIME = 1.0
"""Seconds until a node that doesn't answer counts as unreachable."""

HANDSHAKE_TIME = 5.0
"""Seconds for all of a handshake."""

PROGRESS_TIME = 30.0
"""Seconds without a byte after which the transfer of a snapshot counts as broken."""

FINISH_TIME = 600.0
"""Seconds for the answer to its end: all of it has to get to a disk before."""

SILENCE = 2.0
"""Seconds after which messages that a peer's system doesn't take end a connection."""

BACKOFF = 0.05
MAX_BACKOFF = 1.0
"""Seconds between two attempts to dial, at first and at most, half of it more or less."""

MAX_WAITING = 3
"""Connections of one node and kind that may wait until what an earlier one has brought is taken."""

RESUMPTIONS = 5
"""Attempts in a row to go on with a snapshot, none of which gets further than the one before."""

RESUMPTION_PAUSE = 0.2
"""Seconds before the first of them; each pause is twice as long as the one before."""

_READ_BYTES = 256 << 10
_SEND_BYTES = 256 << 10  # what waits is sent in pieces of about this size
_MAX_HANDSHAKE = 8 << 10
_MAX_HEADER = 256 << 10  # all members in base64
_MAX_PARTS = 512  # of JSON: brackets and commas, which make objects in memory
_MAX_ANSWER = 128 << 10  # a key in base64
_MAX_TEXT = 512  # characters of a node id, an address, a reason
_LINGER_TIME = 2.0  # seconds in which whoever was refused amid sending can read why
_LOOK = 1.0  # seconds between two looks at whether a frame goes on
_ACCEPT_TICK = 0.2  # seconds between two looks at whether the accepting thread is to end
_ACCEPT_PAUSE = 0.1  # seconds without accepting when the process has no file descriptor left
_MAX_TOLD = 256  # refusals that are remembered, so that each is logged once; more are not logged
_TOLD_TIME = 600.0  # seconds after which all of them are forgotten
_KINDS = ("messages", "snapshot", "probe")
_CLOSED = "the other side closed it"
_KEEPALIVE = (  # seconds of silence, seconds between probes, probes
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 2),
    (socket.TCP_KEEPCNT, 3),
)
_NOTHING_LOST, _LOST, _TOLD = range(3)  # since the queue was empty, and whether the host knows


# -- types ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a node says of itself at the beginning of each connection. Printable text.

    *speaks* is the newest version of formats that it reads, *election_timeout* its own in
    milliseconds, 0 if it doesn't say. Nodes of earlier releases say neither.
    """

    node_id: str
    cluster_id: str
    incarnation: str
    role: str
    raft_address: str
    http_address: str
    speaks: int = 1
    election_timeout: int = 0


_TEXTS = tuple(field.name for field in fields(Greeting) if field.type == "str")
_NUMBERS = {field.name: field.default for field in fields(Greeting) if field.type == "int"}


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


class Host(Protocol):
    """The node. Called by the transport's threads, with none of the transport's locks held."""

    def greeting(self) -> Greeting:
        """Return what this node says of itself; its id never changes."""

    def known_as(self, node_id: str) -> str:
        """Return the incarnation that a node is taken to have, "" if that isn't known."""

    def admit(self, kind: str, to: str, peer: Greeting, known_as: str) -> None:
        """Decide on a node that has dialled this one, looking for *to*. Raises Refused.

        *kind* is ``messages``, ``snapshot`` or ``probe``, *known_as* the incarnation that the node
        takes this one to have, "" if it doesn't say.
        """

    def recognise(self, expected_id: str, peer: Greeting) -> None:
        """Decide on the node that answers at the address of a peer. Raises Refused."""

    def is_member(self, peer: Greeting) -> bool:
        """Tell whether that is a member, as it was admitted. The one question that is asked with a
        lock of the transport held: the answer takes none."""

    def receive(self, messages: Sequence[Message]) -> None:
        """Take messages of one node, all that were read in one go."""

    def unreachable(self, node_id: str) -> None:
        """Take note that what was sent to a node lately is probably lost."""

    def begin_snapshot(self, header: SnapshotHeader) -> Incoming | None:
        """Prepare for a snapshot; None if it isn't needed any more. Raises Refused."""

    def snapshot_sent(self, node_id: str, index: int | None) -> None:
        """Take note how :meth:`Transport.send_snapshot` ended, once for each; None: it failed."""


@dataclass(slots=True)
class _End:
    """Who is at the other end of a connection, by the handshake."""

    greeting: Greeting
    known_as: str = ""  # of one that has dialled: what it takes this node for
    why_dropped: str = ""


class Watcher(Protocol):
    """A thread that waits for many sockets. A node that reads its peers' messages in the thread
    that serves its clients answers them without waking another one."""

    def watch(self, sock: socket.socket, action: Callable[[], None]) -> None:
        """Call *action* in that thread whenever the socket has input."""

    def unwatch(self, sock: socket.socket) -> None:
        """Undo that."""


# -- the transport -------------------------------------------------------------------------------


class Transport:
    """The way to the other nodes, and theirs to this one.

    Listens at *address* from the beginning, port 0 being the system's choice and an empty host
    every address, and answers from :meth:`start` on. Set ``host`` before that. Raises OSError if
    the address can't be bound.
    """

    host: Host
    watcher: Watcher | None = None
    """Who reads the messages, if not a thread for each connection; set before :meth:`start`."""

    def __init__(self, address: tuple[str, int], registry: Registry) -> None:
        # Guards every attribute below but _peers, which is replaced and never changed. Held for
        # moments, and no other lock is taken under it.
        self._lock = threading.Lock()
        self._peers: dict[str, _Peer] = {}
        self._threads: set[threading.Thread] = set()
        self._guests = Guests()
        self._places: dict[tuple[str, str], _Place] = {}  # kind and node
        self._callers: dict[socket.socket, _End] = {}  # of incoming connections
        self._dialled: dict[socket.socket, _End | None] = {}  # None amid the handshake
        self._streams: dict[socket.socket, _Stream] = {}
        self._transfers: set[str] = set()
        self._probes = 0
        self._told: set[tuple[str, str]] = set()  # IP address and what was logged of it
        self._told_since = monotonic()
        self._started = False
        self._closed = threading.Event()

        self._listener = _Listener(address, self)
        self.port = int(self._listener.server_address[1])
        self.sent_bytes = registry.counter_family(
            "conure_peer_sent_bytes_total", "Bytes sent to a node.", ("peer",)
        )
        self.received_bytes = registry.counter_family(
            "conure_peer_received_bytes_total", "Bytes received from a node.", ("peer",)
        )
        self.dropped = registry.counter_family(
            "conure_peer_dropped_messages_total",
            "Messages to a node that were dropped before they were sent.",
            ("peer",),
        )
        self._refused = registry.counter(
            "conure_peer_refused_connections_total",
            "Incoming connections that were refused, for their node or their number.",
        )
        registry.gauge_callback(
            "conure_peers_connected",
            "Nodes to which a connection for messages is open.",
            lambda: sum(peer.is_connected for peer in self._peers.values()),
        )

    def start(self) -> None:
        """Begin to answer; returns at once. Once, after ``host`` was set."""
        self._started = True
        self._spawn("peer-accept", self._listener.serve_forever, _ACCEPT_TICK)

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """Tell where the others are: node id to ``host:port``.

        What waits for one that is not named any more is dropped. One whose address has changed is
        dialled again. Never blocks.
        """
        with self._lock:
            if self._closed.is_set():
                return
            before = self._peers
            self._peers = {
                node_id: before.get(node_id) or _Peer(self, node_id, address)
                for node_id, address in peers.items()
            }
            after = self._peers
        for node_id, peer in before.items():
            if node_id not in after:
                peer.close()
        for node_id, peer in after.items():
            if node_id not in before:
                self._spawn(f"peer-{node_id}", peer.run)
            else:
                peer.move(peers[node_id])

    def send(self, message: Message) -> None:
        """Send a message, or let it wait, or drop it: to a stranger, or where too many wait (3)."""
        peer = self._peers.get(message.to)
        if peer is not None:
            peer.send(encode_message(message))

    def connect(self, node_ids: Iterable[str]) -> None:
        """Open the connections to these peers that are missing: each is tried once. Never blocks.

        Who is no peer is passed over.
        """
        peers = self._peers
        for node_id in node_ids:
            if node_id in peers:
                peers[node_id].connect()

    def send_snapshot(self, outgoing: Outgoing) -> None:
        """Send a state in a thread of its own, and close it.

        ``Host.snapshot_sent`` is told how that ended, by that thread. One at a time is sent to a
        node; another one fails.
        """
        node_id = outgoing.header.message.to
        with self._lock:
            is_free = node_id not in self._transfers
            self._transfers.add(node_id)
        self._spawn(f"snapshot-{node_id}", self._transfer, outgoing, is_free)

    def judge(
        self,
        believes: Callable[[Greeting, str], bool],
        expects: Callable[[Greeting], bool],
    ) -> None:
        """Close the connections whose other end isn't believed any more. Never blocks.

        *believes* is asked about nodes that have dialled, by their greeting and what they take this
        node for, *expects* about those that were dialled; by this thread, without any lock. Each
        connection is known here before the host decides on it, so none slips through in between.
        """
        with self._lock:
            callers = [*self._callers.items()]
            dialled = [(sock, end) for sock, end in self._dialled.items() if end is not None]
        dropped = [
            *(item for item in callers if not believes(item[1].greeting, item[1].known_as)),
            *(item for item in dialled if not expects(item[1].greeting)),
        ]
        for sock, end in dropped:
            end.why_dropped = "it isn't who belongs to the cluster under that name, or not any more"
            with self._lock:
                stream = self._streams.get(sock)
            if stream is not None:
                stream.has_ended.set()  # what has arrived is not handed over either
            _shut(sock)

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str = "",
    ) -> None:
        """Ask at an address for the node with that id, which is taken to have the incarnation
        *known_as* ("" if that isn't known); *reply* is told who answers there.

        Whoever answers is not judged here. The error is Refused if that node refuses, Unavailable
        if none answers. *reply* is called by a thread of the probe's own, or at once, by this one,
        if too many are under way.
        """
        with self._lock:
            is_free = self._probes < MAX_PROBES
            self._probes += is_free
        if is_free:
            self._spawn("probe", self._probe, address, node_id, reply, known_as)
        else:
            reply(Unavailable(f"{MAX_PROBES} other nodes are being asked; try again shortly"))

    def close(self) -> None:
        """End every connection and thread; returns when they have ended (5).

        The host is not called any more then. A look-up of a name that hangs is left behind. Calling
        it again does nothing.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            peers = self._peers.values()
            sockets = [*self._guests.sockets(), *self._dialled]
            streams = [*self._streams.values()]
        if self._started:
            self._listener.shutdown()
        self._listener.server_close()
        for peer in peers:
            peer.close()
        for sock in sockets:
            _shut(sock)
        for stream in streams:
            stream.has_ended.set()  # whoever reads it may have ended before
        with self._lock:
            threads = self._threads - {threading.current_thread()}
        deadline = monotonic() + 2 * CONNECT_TIME
        for thread in threads:
            thread.join(max(deadline - monotonic(), 0.0))
            if thread.is_alive():
                log.warning("the thread %s has not ended in time", thread.name)

    # -- private: threads and connections of all kinds -------------------------------------------

    def _spawn(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """Start a thread that :meth:`close` waits for."""

        def run() -> None:
            try:
                target(*arguments)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:  # until it runs, or close() could meet one that has not begun
            thread.start()
            self._threads.add(thread)

    def _dial(
        self, kind: str, address: str, node_id: str, known_as: str
    ) -> tuple[socket.socket, Greeting]:
        """Connect and shake hands; the socket has to be given to :meth:`_hang_up` at last.

        Raises Refused, and Unavailable if no node answers.
        """
        try:
            sock = _connect(address)
        except (OSError, ValueError) as error:
            raise Unavailable(f"{address} can't be reached: {_reason(error)}") from error
        with self._lock:
            self._dialled[sock] = None
        try:
            if self._closed.is_set():
                raise ConnectionAbortedError("this node is being stopped")
            _configure(sock)
            silence = PROGRESS_TIME if kind == "snapshot" else SILENCE
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * silence))
            hello = {"protocol": PROTOCOL, "kind": kind, "to": node_id, "known_as": known_as}
            _write_json(sock, hello | asdict(self.host.greeting()))
            answer = _read_json(sock, _MAX_HANDSHAKE, monotonic() + HANDSHAKE_TIME)
            greeting = _check_answer(answer)
            if kind != "probe":
                with self._lock:
                    self._dialled[sock] = _End(greeting)
                self.host.recognise(node_id, greeting)
        except BaseException as error:
            self._hang_up(sock)
            if isinstance(error, OSError | WireError):
                raise Unavailable(f"no node answers at {address}: {_reason(error)}") from error
            raise
        return sock, greeting

    def _hang_up(self, sock: socket.socket) -> str:
        """Close a connection that was dialled; return why it was dropped, "" if it was not."""
        with self._lock:
            end = self._dialled.pop(sock, None)
        sock.close()
        return "" if end is None else end.why_dropped

    # -- private: the accepting thread -----------------------------------------------------------

    def _has_room(self, sock: socket.socket, ip: str) -> bool:
        """Take an incoming connection into account, if there is room for one more (1)."""
        with self._lock:
            if self._closed.is_set():
                return False
            has_room, ended = self._guests.enter(sock, ip)
        if ended is not None:
            _shut(ended)
        if ended is not None or not has_room:
            self._refused.inc()
        return has_room

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._guests.leave(sock)
            self._callers.pop(sock, None)

    def _expect(self, sock: socket.socket, size: int) -> None:
        """Make room for a frame that has begun to come in. Raises WireError (1)."""
        with self._lock:
            ended = self._guests.expect(sock, size)
        for each in ended:
            _shut(each)

    # -- private: incoming connections, each in its own thread -----------------------------------

    def _serve(self, sock: socket.socket, address: Any) -> None:
        whose = f"{address[0]}:{address[1]}"
        try:
            _configure(sock)
            hello = _read_json(sock, _MAX_HANDSHAKE, monotonic() + HANDSHAKE_TIME)
            kind, to, peer, known_as = _check_hello(hello)
            whose = f"{peer.node_id} ({whose})"
            end = _End(peer, known_as)
            if kind != "probe":
                with self._lock:
                    self._callers[sock] = end
            self.host.admit(kind, to, peer, known_as)
            if kind == "probe":
                self._answer(sock)
                return
            with self._lock:
                self._guests.recognise(sock, partial(self.host.is_member, peer))
            with self._place(sock, kind, peer.node_id):
                self._answer(sock)
                way_back = self._peers.get(peer.node_id)
                if way_back is not None:
                    way_back.hurry()
                if kind == "messages":
                    self._read_messages(sock, peer)
                else:
                    self._receive_snapshot(sock, peer)
            if end.why_dropped and self._is_news(address[0], end.why_dropped):
                log.warning("closed the connection of %s: %s", whose, end.why_dropped)
        except OSError as error:
            log.debug("a connection of %s has ended: %s", whose, _reason(error))
        except WireError as error:
            if self._is_news(address[0], str(error)):
                log.warning("closed a connection of %s: %s", whose, error)
        except ConureError as error:
            self._refused.inc()
            if self._is_news(address[0], str(error)):
                log.warning("refused a connection of %s: %s", whose, error)
            with suppress(OSError):  # it has gone, and need not know
                _write_json(sock, {"protocol": PROTOCOL, "refused": _told(error)})

    def _answer(self, sock: socket.socket) -> None:
        _write_json(sock, {"protocol": PROTOCOL, **asdict(self.host.greeting())})

    def _is_news(self, ip: str, why: str) -> bool:
        """Return whether to log this: whoever is refused comes again and again (1)."""
        with self._lock:
            if monotonic() - self._told_since > _TOLD_TIME:
                self._told.clear()
                self._told_since = monotonic()
            if (ip, why) in self._told or len(self._told) >= _MAX_TOLD:
                return False
            self._told.add((ip, why))
            return True

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
                _shut(older)
            if not place.is_taken.acquire(timeout=HANDSHAKE_TIME):
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

    def _read_messages(self, sock: socket.socket, peer: Greeting) -> None:
        stream = _Stream(self, sock, peer)
        sock.settimeout(_LOOK if self.watcher is None else 0.0)
        with self._lock:
            if self._closed.is_set() or self._callers[sock].why_dropped:
                return
            self._streams[sock] = stream
        try:
            if self.watcher is None:
                while not stream.has_ended.is_set():
                    stream.take()
                    stream.end_if_stalled()
            else:
                self.watcher.watch(sock, stream.take)
                while not stream.has_ended.wait(_LOOK):
                    stream.end_if_stalled()
                self.watcher.unwatch(sock)
        finally:
            with self._lock:
                del self._streams[sock]
        if stream.error is not None:
            raise stream.error

    def _received_from(self, node_id: str) -> Counter:
        # There are only so many peers, but any number of names.
        return self.received_bytes.labels(node_id if node_id in self._peers else "other")

    def _receive_snapshot(self, sock: socket.socket, peer: Greeting) -> None:
        sock.settimeout(PROGRESS_TIME)
        header = _decode_header(_read_json(sock, _MAX_HEADER))
        message, node_id = header.message, peer.node_id
        message.incarnation = peer.incarnation
        if message.sender != node_id or message.to != self.host.greeting().node_id:
            raise WireError(f"a snapshot from {message.sender!r} to {message.to!r}")  # (2)
        try:
            incoming = self.host.begin_snapshot(header)
            if incoming is None:
                _write_json(sock, {"needed": False})
                return
            after = incoming.resume_after()
            try:
                _write_json(sock, {"after": b64encode(after).decode()})
                expect = partial(self._expect, sock)
                for chunk in _read_chunks(sock, self._received_from(node_id), expect):
                    incoming.add(chunk)
            except OSError as error:
                log.warning("a snapshot of %s broke off: %s", node_id, _reason(error))
                incoming.interrupted()
                return
            incoming.finish()
        except ConureError as error:
            log.warning("a snapshot of %s was given up: %s", node_id, error)
            _write_json(sock, {"refused": _told(error)})
            _linger(sock)
        else:
            _write_json(sock, {"done": True})

    # -- private: threads of their own -----------------------------------------------------------

    def _probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        found: Greeting | ConureError
        try:
            sock, found = self._dial("probe", address, node_id, known_as)
            self._hang_up(sock)
        except ConureError as error:
            found = error
        with self._lock:
            self._probes -= 1
        reply(found)

    def _transfer(self, outgoing: Outgoing, is_alone: bool) -> None:
        message = outgoing.header.message
        index: int | None = None
        try:
            if not is_alone:
                raise Refused("another one is being sent to it")
            assert message.snapshot is not None
            _Transfer(self, outgoing).run()
            index = message.snapshot.index
        except ConureError as error:
            log.warning("the snapshot for %s was given up: %s", message.to, error)
        finally:
            outgoing.close()
            if is_alone:
                with self._lock:
                    self._transfers.discard(message.to)
            self.host.snapshot_sent(message.to, index)


@dataclass(slots=True)
class _Place:
    """What the connections of one kind from one node take one after the other."""

    newest: socket.socket | None = None
    users: int = 0  # whoever has it, and those who wait for it
    is_taken: threading.Lock = field(default_factory=threading.Lock)


class _Stream:
    """The messages that one connection brings.

    Whoever finds input calls :meth:`take`: the connection's own thread, or the watcher's while
    that one waits for the end.
    """

    def __init__(self, transport: Transport, sock: socket.socket, peer: Greeting) -> None:
        self.has_ended = threading.Event()
        self.error: Exception | None = None
        self._host = transport.host
        self._sock = sock
        self._peer = peer
        self._own_id = transport.host.greeting().node_id
        self._received = transport._received_from(peer.node_id)
        self._buffer = bytearray()
        self._space = memoryview(bytearray(_READ_BYTES))
        self._needed = FRAME_HEADER_BYTES
        self._begun = 0.0  # when the frame that is not complete did
        self._expect = partial(transport._expect, sock)

    def take(self) -> None:
        """Read once, and hand over the messages that are complete; nothing behind an error."""
        if self.has_ended.is_set():  # a watcher may call once more
            return
        try:
            size = self._sock.recv_into(self._space)
            if not size:
                self.has_ended.set()
            self._received.inc(size)
            if not self._buffer:
                self._begun = monotonic()
            self._buffer += self._space[:size]
            if len(self._buffer) >= self._needed:
                before = self._needed
                messages, self._needed = _take_messages(self._buffer)
                if messages:
                    self._begun = monotonic()
                for message in messages:
                    message.incarnation = self._peer.incarnation
                    if message.sender != self._peer.node_id or message.to != self._own_id:
                        whose = f"from {message.sender!r} to {message.to!r}"
                        raise WireError(f"a message {whose}")  # (2)
                if messages:
                    self._host.receive(messages)
                if self._needed != before and max(self._needed, before) > SMALL_FRAME:
                    self._expect(self._needed)
        except (BlockingIOError, TimeoutError):
            pass
        except Exception as error:  # noqa: BLE001 - raised again by the connection's thread
            self.error = error
            self.has_ended.set()

    def end_if_stalled(self) -> None:
        """End the connection if the frame that has begun doesn't go on. The connection's thread."""
        received = len(self._buffer)
        if received and is_stalled(monotonic() - self._begun, received):
            self.error = self.error or WireError("a frame that has begun and does not go on")
            self.has_ended.set()


class _Listener(ThreadingTCPServer):
    """Accepts, within bounds; gives each connection a thread."""

    allow_reuse_address = True
    request_queue_size = MAX_INCOMING

    def __init__(self, address: tuple[str, int], transport: Transport) -> None:
        self._transport = transport
        host, port = address[0].strip("[]"), address[1]
        if not host and socket.has_dualstack_ipv6():
            host = "::"
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), BaseRequestHandler)
        self.socket.setblocking(False)  # who is gone before accepting must not hold the thread

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            only_six = self.server_address[0] != "::"
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_six)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            sleep(_ACCEPT_PAUSE)  # it would be ready again at once, and fail again
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._transport._has_room(request, client_address[0])

    def process_request(self, request: Any, client_address: Any) -> None:
        self._transport._spawn("peer-in", self.process_request_thread, request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._transport._serve(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._transport._forget(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.exception("a connection of %s:%d has failed", *client_address[:2])


class _Peer:
    """The way to one node: a queue, a connection, and a thread that sends what waits.

    While nothing waits, :meth:`send` gives a message to the socket itself: to hand it over to
    the thread would cost more than that. ``_lock`` guards the attributes of the first group; only
    :meth:`run`, the thread, touches the second one.
    """

    def __init__(self, transport: Transport, node_id: str, address: str) -> None:
        self._transport = transport
        self._id = node_id
        self._sent = transport.sent_bytes.labels(node_id)
        self._dropped = transport.dropped.labels(node_id)
        self._lock = threading.Lock()

        self.address = address
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._unsent = memoryview(b"")  # of what was taken from the queue, or sent in part
        self._sock: socket.socket | None = None
        self._why_broken = ""
        self._dial_at = 0.0
        self._is_wanted = False  # dial even if nothing waits
        self._loss = _NOTHING_LOST
        self._is_closed = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._connected_at = 0.0
        self._backoff = BACKOFF
        self._trouble = ""  # what was logged

    @property
    def is_connected(self) -> bool:
        return self._sock is not None

    def send(self, frame: bytes) -> None:
        """Send a frame, or queue it, or drop it if too many wait. Any thread; never blocks."""
        with self._lock:
            if self._is_closed:
                return
            if self._sock is not None and not (self._unsent or self._queue or self._why_broken):
                try:
                    size = self._sock.send(frame, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    size = 0
                except OSError as error:
                    self._why_broken = _reason(error)
                    self._enqueue(frame)
                    self._wake()
                    return
                self._sent.inc(size)
                if size < len(frame):
                    self._unsent = memoryview(frame)[size:]
                    self._wake()
            elif self._queue and (
                len(self._queue) >= MAX_QUEUED_MESSAGES
                or self._queued_bytes + len(frame) > MAX_QUEUED_BYTES
            ):
                self._dropped.inc()
                if self._loss == _NOTHING_LOST:
                    self._loss = _LOST
                    self._wake()
            else:
                self._enqueue(frame)
                if len(self._queue) == 1:  # else it is awake, or knows when to wake
                    self._wake()

    def move(self, address: str) -> None:
        """Dial another address from now on. Any thread."""
        with self._lock:
            if address != self.address and not self._is_closed:
                self.address = address
                self._why_broken = f"it is at {address} now"
                self._wake()

    def connect(self) -> None:
        """Dial, if there is no connection, as soon as the pause is over. Any thread."""
        with self._lock:
            if self._sock is None and not self._is_closed and not self._is_wanted:
                self._is_wanted = True
                self._wake()

    def hurry(self) -> None:
        """Dial without a further pause: the node is there. Any thread."""
        with self._lock:
            if self._sock is None and not self._is_closed:
                self._dial_at = 0.0
                self._wake()

    def close(self) -> None:
        """End the thread and the connection. Any thread; doesn't wait for that."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._wake()

    def run(self) -> None:
        """Dial and send until closed; the peer's own thread."""
        while not self._is_closed:
            if self._sock is None:
                self._await_and_dial()
            else:
                self._pump(self._sock)
        with self._lock:
            sock, self._sock = self._sock, None
            self._queue.clear()
            os.close(self._wake_fd)  # nobody wakes what is closed
        if sock is not None:
            self._transport._hang_up(sock)

    def _enqueue(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    # -- private: the thread ---------------------------------------------------------------------

    def _await_and_dial(self) -> None:
        with self._lock:
            if self._why_broken:  # it has moved: what was tried before says nothing
                self._why_broken = ""
                self._dial_at = 0.0
            address, has_reason = self.address, self._is_wanted or bool(self._queue)
            delay = self._dial_at - monotonic()
            if delay <= 0:
                self._is_wanted = False
        if not has_reason or delay > 0:
            self._sleep(delay if has_reason else None)
            return
        try:
            known_as = self._transport.host.known_as(self._id)
            sock, _ = self._transport._dial("messages", address, self._id, known_as)
        except ConureError as error:
            self._give_up(error)
            return
        log.info("connected to %s at %s", self._id, address)
        self._trouble = ""
        self._connected_at = monotonic()
        sock.settimeout(None)
        self._poll.register(sock, select.POLLIN)
        with self._lock:
            self._sock = sock

    def _give_up(self, error: ConureError) -> None:
        """Drop what has waited for a connection; the next one is tried a little later."""
        with self._lock:
            is_lossy = bool(self._queue)
            self._dropped.inc(len(self._queue))
            self._queue.clear()
            self._queued_bytes = 0
            self._loss = _NOTHING_LOST
        self._postpone()
        if self._is_closed:
            return
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.warning("no connection to %s: %s", self._id, error)
        if is_lossy:
            self._transport.host.unreachable(self._id)

    def _postpone(self) -> None:
        with self._lock:
            self._dial_at = monotonic() + self._backoff * random.uniform(0.5, 1.5)
        self._backoff = min(2 * self._backoff, MAX_BACKOFF)

    def _pump(self, sock: socket.socket) -> None:
        """Send a piece of what waits; sleep if there is nothing, or the socket takes no more."""
        with self._lock:
            if self._queue and not self._unsent:
                self._unsent = memoryview(b"".join(self._take_some()))
            unsent, why = self._unsent, self._why_broken
            was_lossy = self._loss == _LOST
            if was_lossy:
                self._loss = _TOLD
            elif not unsent:
                self._loss = _NOTHING_LOST
        if was_lossy:
            self._transport.host.unreachable(self._id)
        size = 0
        if unsent and not why:
            try:
                size = sock.send(unsent, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                why = _reason(error)
            self._sent.inc(size)
            with self._lock:
                self._unsent = unsent[size:]
        if not why and (not size or size < len(unsent)):
            self._poll.modify(sock, select.POLLIN | (select.POLLOUT if unsent else 0))
            if self._sleep(None):
                why = _last_words(sock)
        if why:
            self._disconnect(sock, why)

    def _take_some(self) -> Iterator[bytes]:
        size = 0
        while self._queue and size < _SEND_BYTES:
            frame = self._queue.popleft()
            size += len(frame)
            yield frame
        self._queued_bytes -= size

    def _sleep(self, seconds: float | None) -> bool:
        """Sleep until woken; returns whether the connection has something to tell."""
        told = 0
        for fd, events in self._poll.poll(None if seconds is None else 1000 * seconds):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            else:
                told |= events & ~select.POLLOUT
        return bool(told)

    def _disconnect(self, sock: socket.socket, why: str) -> None:
        with self._lock:
            self._sock = None
            self._unsent = memoryview(b"")
            self._why_broken = ""
        self._poll.unregister(sock)
        why = self._transport._hang_up(sock) or why
        if self._is_closed:
            return
        log.info("lost the connection to %s: %s", self._id, why)
        if monotonic() - self._connected_at > MAX_BACKOFF:
            self._backoff = BACKOFF  # and now without a pause
        else:
            self._postpone()
        self._transport.host.unreachable(self._id)


class _Transfer:
    """Sends one snapshot, over as many connections as that takes."""

    def __init__(self, transport: Transport, outgoing: Outgoing) -> None:
        self._transport = transport
        self._outgoing = outgoing
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
                why = _reason(error)
                pause = RESUMPTION_PAUSE * 2 ** (self._failures - 1)
                if self._failures > RESUMPTIONS or self._transport._closed.wait(pause):
                    raise Unavailable(f"it broke off too often, lastly because: {why}") from error
                log.info("the snapshot for %s broke off and goes on: %s", self._to, why)

    def _attempt(self) -> None:
        known_as = self._transport.host.known_as(self._to)
        sock, _ = self._transport._dial("snapshot", self._address(), self._to, known_as)
        try:
            sock.settimeout(PROGRESS_TIME)
            _write_json(sock, _encode_header(self._outgoing.header))
            answer = _read_reply(sock)
            if answer.get("needed") is False:
                return
            after = _decode_base64(answer.get("after"))
            if after > self._arrived:
                self._arrived, self._failures = after, 0
            self._stream(sock, after)
        finally:
            self._transport._hang_up(sock)

    def _stream(self, sock: socket.socket, after: bytes) -> None:
        sent = self._transport.sent_bytes.labels(self._to)
        chunks = 0
        began = thread_time()
        for chunk in self._outgoing.chunks(after):
            if _is_readable(sock):
                break  # it refuses the rest
            _send_all(sock, encode_frame(chunk))
            sent.inc(FRAME_HEADER_BYTES + len(chunk))
            chunks += 1  # noqa: SIM113 - there may be none
            self._address()
            self._rest(thread_time() - began)
            began = thread_time()
        else:
            _write_json(sock, {"chunks": chunks})
            sock.settimeout(FINISH_TIME)
        if _read_reply(sock).get("done") is not True:
            raise WireError("an answer that isn't one")

    def _rest(self, seconds: float) -> None:
        """Give requests their turn: rest as long as the processor was used."""
        if self._transport._closed.wait(seconds):
            raise ConnectionAbortedError("this node is being stopped")

    def _address(self) -> str:
        peer = self._transport._peers.get(self._to)
        if peer is None:
            raise Refused("it is no peer any more")
        return peer.address


# -- private: frames and JSON over a socket --------------------------------------------------------


def _connect(address: str) -> socket.socket:
    """Open a connection. Raises OSError, and ValueError for what is no address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ValueError("it isn't an address of the form host:port")
    sock = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIME)
    try:
        if sock.getsockname() == sock.getpeername():
            # Where nobody listens on a port of the range for clients, TCP may connect to itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock


def _configure(sock: socket.socket) -> None:
    sock.settimeout(HANDSHAKE_TIME)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _shut(sock: socket.socket) -> None:
    """Wake whoever waits for a socket; its own thread closes it."""
    with suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def _linger(sock: socket.socket) -> None:
    """Let the other side read the last answer: unread input would make a reset of our close."""
    sock.shutdown(socket.SHUT_WR)
    deadline = monotonic() + _LINGER_TIME
    while (left := deadline - monotonic()) > 0:
        sock.settimeout(left)
        if not sock.recv(_READ_BYTES):
            return


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _last_words(sock: socket.socket) -> str:
    """Return why the connection to an acceptor ended; "" if it has not."""
    try:
        return "it answered a message" if sock.recv(1, socket.MSG_DONTWAIT) else _CLOSED
    except BlockingIOError:
        return ""
    except OSError as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _send_all(sock: socket.socket, data: bytes) -> None:
    """Send everything; the socket's time-out is for progress, not for all of it."""
    unsent = memoryview(data)
    while unsent:
        unsent = unsent[sock.send(unsent) :]


def _read_exactly(
    sock: socket.socket, size: int, deadline: float | None, *, must_go_on: bool = False
) -> bytes:
    data = bytearray()
    begun = monotonic()
    while len(data) < size:
        if deadline is not None:
            sock.settimeout(max(deadline - monotonic(), 0.001))
        elif must_go_on and is_stalled(monotonic() - begun, len(data)):
            raise TimeoutError("a frame that has begun and does not go on")
        piece = sock.recv(min(size - len(data), _READ_BYTES))  # grows only as bytes arrive (1)
        if not piece:
            raise ConnectionResetError(_CLOSED)
        data += piece
    return bytes(data)


def _read_frame(sock: socket.socket, most: int, deadline: float | None = None) -> bytes:
    """Read a frame and return its payload. Raises OSError and WireError."""
    header = _read_exactly(sock, FRAME_HEADER_BYTES, deadline)
    return check_frame(header + _read_exactly(sock, frame_length(header, most), deadline))


def _read_json(sock: socket.socket, most: int, deadline: float | None = None) -> dict[str, Any]:
    return _parse(_read_frame(sock, most, deadline))


def _write_json(sock: socket.socket, fields: Mapping[str, Any]) -> None:
    _send_all(sock, encode_frame(json.dumps(fields).encode()))


def _parse(payload: bytes) -> dict[str, Any]:
    if sum(map(payload.count, (b"[", b"{", b","))) > _MAX_PARTS:
        raise WireError("a frame of JSON with more in it than anybody says here")
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame that should be JSON: {error}") from error
    if not isinstance(fields, dict):
        raise WireError("a frame of JSON that is no object")
    return fields


def _text(fields: Mapping[str, Any], name: str) -> str:
    text = fields.get(name)
    # Printable, because it gets into the log; that excludes what UTF-8 can't encode, too.
    if not isinstance(text, str) or len(text) > _MAX_TEXT or not text.isprintable():
        raise WireError(f"a handshake without a proper {name}")
    return text


def _small_number(fields: Mapping[str, Any], name: str) -> int:
    number = fields.get(name, _NUMBERS[name])
    if type(number) is not int or not 0 <= number < 1 << 31:
        raise WireError(f"a handshake without a proper {name}")
    return number


def _number(fields: Mapping[str, Any], name: str) -> int:
    number = fields.get(name)
    if type(number) is not int or not 0 <= number < 1 << 64:
        raise WireError(f"a snapshot without a proper {name}")
    return number


def _decode_base64(text: object) -> bytes:
    try:
        if isinstance(text, str):
            return b64decode(text, validate=True)
    except ValueError as error:
        raise WireError(f"malformed base64: {error}") from error
    raise WireError("base64 is missing")


def _check_greeting(fields: Mapping[str, Any]) -> Greeting:
    if fields.get("protocol") != PROTOCOL:
        raise Refused(
            f"the nodes speak different versions of the protocol; {PROTOCOL} was expected here: "
            "run the same version of ConureDB on both"
        )
    said: dict[str, Any] = {name: _text(fields, name) for name in _TEXTS}
    for name in ("node_id", "incarnation"):  # a message that tells none would be anybody's
        if not 0 < len(said[name].encode()) <= MAX_NODE_ID_BYTES:
            raise WireError(f"a handshake without a proper {name}")
    said |= {name: _small_number(fields, name) for name in _NUMBERS}
    if not is_address(said["raft_address"]):
        raise WireError("a handshake without a proper raft_address")
    if said["http_address"] and not is_base_url(said["http_address"]):
        raise WireError("a handshake without a proper http_address")
    return Greeting(**said)


def _check_hello(fields: Mapping[str, Any]) -> tuple[str, str, Greeting, str]:
    greeting = _check_greeting(fields)
    kind = _text(fields, "kind")
    if kind not in _KINDS:
        raise WireError(f"a connection of an unknown kind {kind!r}")
    # Nodes of earlier releases don't say it.
    known_as = _text(fields, "known_as") if "known_as" in fields else ""
    return kind, _text(fields, "to"), greeting, known_as


def _told(error: ConureError) -> str:
    """Return what the other side hears of an error."""
    return (error.told if isinstance(error, Refused) else str(error))[:_MAX_TEXT]


def _raise_if_refused(fields: Mapping[str, Any]) -> None:
    if "refused" in fields:
        why = str(fields["refused"])[:_MAX_TEXT]
        raise Refused("".join([char if char.isprintable() else "?" for char in why]))


def _check_answer(fields: Mapping[str, Any]) -> Greeting:
    _raise_if_refused(fields)
    return _check_greeting(fields)


def _read_reply(sock: socket.socket) -> dict[str, Any]:
    """Read an answer within a snapshot. Raises Refused, OSError and WireError."""
    fields = _read_json(sock, _MAX_ANSWER)
    _raise_if_refused(fields)
    return fields


# -- private: messages and snapshots ---------------------------------------------------------------


def _take_messages(buffer: bytearray) -> tuple[list[Message], int]:
    """Cut all complete messages off a buffer; also return the size it needs for the next one.

    Raises WireError.
    """
    messages: list[Message] = []
    at, needed = 0, FRAME_HEADER_BYTES
    with memoryview(buffer) as data:  # no more than one copy of a large one
        while at + FRAME_HEADER_BYTES <= len(data):
            size = FRAME_HEADER_BYTES + frame_length(bytes(data[at : at + FRAME_HEADER_BYTES]))
            if at + size > len(data):
                needed = size
                break
            messages.append(decode_message(bytes(data[at : at + size])))
            at += size
    del buffer[:at]
    return messages, needed


def _encode_header(header: SnapshotHeader) -> dict[str, Any]:
    message = b64encode(encode_message(header.message)).decode()
    return {**header._asdict(), "message": message}


def _decode_header(fields: Mapping[str, Any]) -> SnapshotHeader:
    message = decode_message(_decode_base64(fields.get("message")))
    if message.type != MessageType.SNAPSHOT or message.snapshot is None:
        raise WireError("a snapshot that is announced by another message")
    return SnapshotHeader(
        message, _number(fields, "digest"), _number(fields, "records"), _text(fields, "id")
    )


def _read_chunks(
    sock: socket.socket, received: Counter, expect: Callable[[int], None]
) -> Iterator[bytes]:
    """Read the chunks of a snapshot to its end; *expect* is told the size of each beforehand.

    Raises OSError for all that goes wrong.
    """
    chunks = 0
    try:
        while not (payload := _read_chunk(sock, expect)).startswith(b"{"):
            received.inc(FRAME_HEADER_BYTES + len(payload))
            yield payload
            chunks += 1
        if len(payload) > _MAX_ANSWER or _parse(payload).get("chunks") != chunks:
            raise WireError(f"it ended after {chunks} chunks")
    except WireError as error:
        raise ConnectionAbortedError(str(error)) from error


def _read_chunk(sock: socket.socket, expect: Callable[[int], None]) -> bytes:
    header = _read_exactly(sock, FRAME_HEADER_BYTES, None)
    size = frame_length(header)
    expect(FRAME_HEADER_BYTES + size)
    try:
        return check_frame(header + _read_exactly(sock, size, None, must_go_on=True))
    finally:
        expect(0)
