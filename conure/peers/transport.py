"""Peers over TCP: messages of the core, snapshots, calls, and the question who is at an address.

The face of this wing. What the two ends say to each other is drawn in protocol.py; dialling.py and
accepting.py open and take connections, peer.py is the way to one node, inbox.py what one brings.
Calls have a way of their own (calling.py), and what one of those brings is answered (answering.py).

Duties, cited by number in code and tests:

1. Memory and threads are bounded whatever strangers send: a length is checked before anything is
   allocated, memory grows only as bytes arrive, over all connections no further than guests.py
   says, where members come first; a frame that has begun goes on or its connection ends; a
   handshake is bounded in size and time, JSON in its structure before it is parsed, connections
   and what is logged of them in number.
2. Where proofs are required, nothing is read of who gives none, and nothing said to it
   (proving.py, P1 to P4). No message is handed over from a node that was not admitted, nor one
   whose sender is another than that node or whose receiver is not this one. Each is stamped with
   the incarnation of that node's greeting. A connection ends when the host believes its other end
   no more (:meth:`Transport.judge`). Who is refused is told what :class:`Refused` lets out, and no
   name.
3. :meth:`Transport.send` never blocks and never raises for a dead peer. What can't be sent is
   lost, counted and told to :meth:`Host.unreachable`; the core sends again.
4. A connection that broke is dialled again by itself as soon as there is something to send, or
   :meth:`Transport.connect` asks for it: after a pause that grows, or at once if the other node
   has dialled this one. The newest connection of a node takes the place of its older one, which
   has ended by then: what a node sends is handed over in order.
5. A call that was sent is not sent again. Whoever asked is told whether it was, unless there is an
   answer.
6. :meth:`Transport.close` ends every thread and connection, whatever they wait for.

Threads: one accepts; each incoming connection has one; each peer has one, which dials, sends what
a socket did not take at once and else sleeps, and so has each that was ever called; so has each
snapshot that is sent, each probe and each question to a node that forms.
Every method of :class:`Transport` may be called from any thread, also by a caller that holds a
lock of its own, except :meth:`Transport.close`: what the host needs to return from its calls must
be free then. The host is called without any lock of this wing, but for :meth:`Host.is_member`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from conure.consensus.messages import Message
from conure.errors import ConureError, Refused
from conure.metrics import Counter, Registry
from conure.peers import sockets
from conure.peers.accepting import Acceptor, Answering, Registrar
from conure.peers.calling import CallReply, CallWay
from conure.peers.calls import Call
from conure.peers.dialling import Calling, Dialler
from conure.peers.forming import Question, Shown
from conure.peers.frames import encode_message
from conure.peers.joins import Applicant
from conure.peers.peer import Peer
from conure.peers.protocol import Greeting
from conure.peers.proving import OPEN, PeerSecurity
from conure.peers.threads import Threads
from conure.peers.transfer import Outgoing, Transfer

__all__ = ["Host", "Transport"]

log = logging.getLogger("conure.transport")


class Host(Calling, Answering, Protocol):
    """The node. Called by the transport's threads, with none of the transport's locks held."""

    def snapshot_sent(self, node_id: str, index: int | None) -> None:
        """Take note how :meth:`Transport.send_snapshot` ended, once for each; None: it failed."""


class Transport:
    """The way to the other nodes, and theirs to this one.

    Listens at *address* from the beginning, port 0 being the system's choice and an empty host
    every address, and answers from :meth:`start` on. *security* says what nodes prove to each
    other, by default nothing. Raises OSError if the address can't be bound.
    """

    _host: Host  # as of start()
    _registrar: Registrar | None

    def __init__(
        self,
        address: tuple[str, int],
        registry: Registry,
        security: PeerSecurity = PeerSecurity(),  # noqa: B008 - it never changes
    ) -> None:
        # Guards the three that follow, of which _peers is replaced and never changed. Held for
        # moments, and no other lock is taken under it.
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}
        self._ways: dict[str, CallWay] = {}  # to some of the peers, for calls
        self._transfers: set[str] = set()
        self._closed = threading.Event()

        self._threads = Threads()
        self._dialler = Dialler(self._closed, self._threads, security)
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
        refused = registry.counter(
            "conure_peer_refused_connections_total",
            "Incoming connections that were refused, for their node or their number.",
        )
        registry.gauge_callback(
            "conure_peers_connected",
            "Nodes to which a connection for messages is open.",
            lambda: sum(peer.is_connected for peer in self._peers.values()),
        )
        registry.labelled_callback(
            "conure_peer_proof",
            "gauge",
            "1 for each node to which a connection for messages is open, by its proof.",
            ("peer", "proof"),
            lambda: [((node_id, proof), 1) for node_id, proof in self.proofs().items()],
        )
        self._acceptor = Acceptor(
            address,
            self._closed,
            self._threads,
            refused,
            self._received_from,
            self._sent_to,
            self._hurry,
            security,
        )
        self.port = self._acceptor.port

    def start(
        self,
        host: Host,
        registrar: Registrar | None = None,
        lets_in: Callable[[str, str], bool] = lambda peer, local: True,  # noqa: ARG005
    ) -> None:
        """Begin to answer; returns at once. Once, before anything is sent.

        *registrar* reads messages, calls and answers, if not a thread for each connection.
        *lets_in* tells whether a connection is taken, given the IP addresses of who dials and of
        what is dialled; the accepting thread asks, and it doesn't wait.
        """
        self._host = host
        self._registrar = registrar
        self._dialler.start(host)
        self._acceptor.start(host, registrar, lets_in)

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
                node_id: before.get(node_id) or self._make_peer(node_id, address)
                for node_id, address in peers.items()
            }
            after = self._peers
            ways = dict(self._ways)
            for node_id in ways.keys() - after.keys():
                del self._ways[node_id]
        for node_id, way in ways.items():
            if node_id in after:
                way.move(peers[node_id])
            else:
                way.close()
        for node_id, peer in before.items():
            if node_id not in after:
                peer.close()
        for node_id, peer in after.items():
            if node_id not in before:
                self._threads.spawn(f"peer-{node_id}", peer.run)
            else:
                peer.move(peers[node_id])

    def send(self, message: Message) -> None:
        """Send a message, or let it wait, or drop it: to a stranger, or where too many wait (3)."""
        peer = self._peers.get(message.to)
        if peer is not None:
            peer.send(encode_message(message))

    def call(self, to: str, call: Call, reply: CallReply, seconds: float) -> bool:
        """Ask a peer; *reply* is told what it answers, or why it does not (5). False: it is none,
        or is being asked too much; nothing is told then.

        In the order of coming here, unless a connection is lost. Who does not answer within so many
        seconds loses the connection. Never blocks, and calls nobody.
        """
        with self._lock:
            peer = None if self._closed.is_set() else self._peers.get(to)
            if peer is None:
                return False
            way = self._ways.get(to)
            if way is None:
                sent, received = self._sent_to(to), self._received_from(to)
                way = CallWay(to, peer.address, self._dialler, sent, received, self._registrar)
                self._ways[to] = way
                self._threads.spawn(f"calls-{to}", way.run)
        return way.call(call, reply, seconds)

    def proofs(self) -> dict[str, str]:
        """Return how each node to which a connection for messages is open has proved itself:
        ``certificate``, ``secret`` or ``open``."""
        found = {node_id: peer.proof for node_id, peer in self._peers.items()}
        return {node_id: proof or OPEN for node_id, proof in found.items() if proof is not None}

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
        self._threads.spawn(f"snapshot-{node_id}", self._transfer, outgoing, is_free)

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
        self._acceptor.judge(believes)
        self._dialler.judge(expects)

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
        self._dialler.probe(address, node_id, reply, known_as)

    def ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        """Ask who is at an address, for a cluster that is to be formed (forming.py).

        *reply* is called once, by a thread of the question's own, within some seconds unless the
        look-up of a name hangs: Refused if the node there refuses, Unavailable if none answers.
        How many are asked at a time is the caller's to bound.
        """
        self._dialler.ask(address, question, reply)

    def join(self, address: str, applicant: Applicant) -> None:
        """Ask the member whose Raft port is at an address to add this node (joins.py); returns when
        it has. It waits for up to JOIN_TIME seconds and some more, or until
        :meth:`give_up_joining`. Raises Refused, with what the member says, and Unavailable.
        """
        self._dialler.join(address, applicant)

    def give_up_joining(self) -> None:
        """Have :meth:`join` end at once, in whichever thread waits there for an answer, and ask no
        more: this node is about to stop."""
        self._dialler.give_up_joining()

    def close(self) -> None:
        """End every connection and thread; returns when they have ended (6).

        The host is not called any more then. A look-up of a name that hangs is left behind. Calling
        it again does nothing.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            peers, ways = self._peers.values(), [*self._ways.values()]
        self._acceptor.stop()
        for peer in peers:
            peer.close()
        for way in ways:
            way.close()
        self._acceptor.close()
        self._dialler.close()
        self._threads.join(2 * sockets.CONNECT_TIME)

    # -- private ---------------------------------------------------------------------------------

    def _make_peer(self, node_id: str, address: str) -> Peer:
        sent, dropped = self.sent_bytes.labels(node_id), self.dropped.labels(node_id)
        return Peer(node_id, address, self._dialler, sent, dropped)

    def _hurry(self, node_id: str) -> None:
        way_back = self._peers.get(node_id)
        if way_back is not None:
            way_back.hurry()

    def _address_of(self, node_id: str) -> str:
        peer = self._peers.get(node_id)
        if peer is None:
            raise Refused("it is no peer any more")
        return peer.address

    def _received_from(self, node_id: str) -> Counter:
        return self.received_bytes.labels(self._known(node_id))

    def _sent_to(self, node_id: str) -> Counter:
        return self.sent_bytes.labels(self._known(node_id))

    def _known(self, node_id: str) -> str:
        # There are only so many peers, but any number of names.
        return node_id if node_id in self._peers else "other"

    def _transfer(self, outgoing: Outgoing, is_alone: bool) -> None:
        message = outgoing.header.message
        index: int | None = None
        try:
            if not is_alone:
                raise Refused("another one is being sent to it")
            assert message.snapshot is not None
            Transfer(
                outgoing, self._dialler, self._address_of, self.sent_bytes.labels, self._closed
            ).run()
            index = message.snapshot.index
        except ConureError as error:
            log.warning("the snapshot for %s was given up: %s", message.to, error)
        finally:
            outgoing.close()
            if is_alone:
                with self._lock:
                    self._transfers.discard(message.to)
            self._host.snapshot_sent(message.to, index)
