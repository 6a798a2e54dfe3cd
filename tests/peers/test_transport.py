"""transport: handshakes, order, loss and its report, snapshots that break off, and strangers.

Everything runs over real sockets on ports of the system's choice. After each test no thread and
no file descriptor may be left (duty 5).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import select
import socket
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conure.consensus import records as records_module
from conure.consensus.messages import (
    COMMAND,
    Entry,
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
)
from conure.errors import ConureError, Refused, StorageError, Unavailable
from conure.http.server import HTTPServer
from conure.metrics import Registry
from conure.peers import accepting, dialling, frames, guests, inbox, peer, sockets, transfer
from conure.peers.accepting import Registrar
from conure.peers.protocol import Greeting
from conure.peers.transport import Transport
from conure.state import codec
from tests.lab.httpdriver import Recorder

CLUSTER = "c1"
PATIENCE = 10.0


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it didn't come true in time"
        time.sleep(0.002)


def waits_for(gate: threading.Event) -> Callable[[object], None]:
    def wait(_: object) -> None:
        assert gate.wait(PATIENCE)

    return wait


class Staged:
    """A transfer.Incoming in memory."""

    def __init__(self, host: Node, header: SnapshotHeader) -> None:
        self.host = host
        self.header = header
        self.records: list[tuple[bytes, bytes, int, int, int, int]] = []
        self.events: list[str] = []

    def resume_after(self) -> bytes:
        self.events.append("resume")
        return self.records[-1][0] if self.records else b""

    def add(self, chunk: bytes) -> None:
        self.host.before_add()
        rows = codec.decode_records(chunk)
        keys = [row[0] for row in rows]
        if keys != sorted(keys) or keys[0] <= (self.records[-1][0] if self.records else b""):
            raise StorageError("the keys are not in order")
        self.records += rows

    def finish(self) -> None:
        self.events.append("finish")
        if len(self.records) != self.header.records:
            raise StorageError(f"{len(self.records)} of {self.header.records} records have come")

    def interrupted(self) -> None:
        self.events.append("interrupted")


class State:
    """A transfer.Outgoing in memory: *records*, some to a chunk."""

    def __init__(self, to: str, records: int, *, sender: str = "a", value: bytes = b"v" * 100):
        message = Message(
            MessageType.SNAPSHOT, sender, to, 3, snapshot=SnapshotMeta(70, 2, b"members")
        )
        self.header = SnapshotHeader(message, 0xD1, records, f"id-{random.random()}")
        self.value = value
        self.per_chunk = 10
        self.closed = 0
        self.chunks_made = 0
        self.before_chunk: Callable[[int], None] = lambda n: None

    def chunks(self, after: bytes) -> Iterator[bytes]:
        keys = [b"%08d" % i for i in range(self.header.records)]
        keys = [key for key in keys if key > after]
        for i in range(0, len(keys), self.per_chunk):
            self.chunks_made += 1
            self.before_chunk(self.chunks_made)
            yield self.make([(key, self.value, 1, 2, 3, 0) for key in keys[i : i + self.per_chunk]])

    def make(self, rows: list[tuple[bytes, bytes, int, int, int, int]]) -> bytes:
        return codec.encode_records(rows)

    def close(self) -> None:
        self.closed += 1


class Node:
    """A transport with a host that remembers what it was told."""

    def __init__(
        self,
        node_id: str,
        port: int = 0,
        host: str = "127.0.0.1",
        registrar: Registrar | None = None,
    ) -> None:
        self.id = node_id
        self.cluster = CLUSTER
        self.members: Container[str] = "abcx"
        self.rounds: list[list[Message]] = []
        self.lost: list[str] = []
        self.admitted: list[tuple[str, str, Greeting]] = []
        self.taken_for: list[str] = []
        self.recognised: list[tuple[str, Greeting]] = []
        self.sent: list[tuple[str, int | None]] = []
        self.staged: list[Staged] = []
        self.snapshot_needed = True
        self.on_receive: Callable[[Sequence[Message]], None] = lambda messages: None
        self.before_add: Callable[[], None] = lambda: None
        self.registry = Registry()
        self.transport = Transport((host, port), self.registry)
        self.transport.start(self, registrar)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.transport.port}"

    @property
    def messages(self) -> list[Message]:
        return [message for messages in list(self.rounds) for message in messages]

    def knows(self, *others: Node) -> None:
        self.transport.set_peers({other.id: other.address for other in others})

    def send(self, to: str, index: int = 0, data: bytes | None = None) -> None:
        entries = [] if data is None else [Entry(1, index + 1, COMMAND, data)]
        self.transport.send(
            Message(MessageType.APPEND, self.id, to, 1, index=index, entries=entries)
        )

    def metric(self, text: str) -> float:
        page = self.registry.render().decode()
        found = re.search(rf"^{re.escape(text)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    # transport.Host

    def greeting(self) -> Greeting:
        return Greeting(self.id, self.cluster, f"i-{self.id}", "data", "raft:1", "http://h:2")

    def known_as(self, node_id: str) -> str:
        return f"i-{node_id}"

    def admit(self, kind: str, to: str, peer: Greeting, known_as: str) -> None:
        if peer.cluster_id != self.cluster:
            raise Refused(f"{peer.node_id} is of another cluster")
        if to != self.id:
            raise Refused(f"this is {self.id} and not {to}")
        self.admitted.append((kind, to, peer))
        self.taken_for.append(known_as)

    def recognise(self, expected_id: str, peer: Greeting) -> None:
        self.recognised.append((expected_id, peer))
        if peer.node_id != expected_id:
            raise Refused(f"{peer.node_id} answers in the place of {expected_id}")

    def is_member(self, peer: Greeting) -> bool:
        return peer.node_id in self.members

    def receive(self, messages: Sequence[Message]) -> None:
        self.on_receive(messages)
        self.rounds.append(list(messages))

    def unreachable(self, node_id: str) -> None:
        self.lost.append(node_id)

    def begin_snapshot(self, header: SnapshotHeader) -> Staged | None:
        if not self.snapshot_needed:
            return None
        if self.staged and self.staged[-1].header.id == header.id:
            return self.staged[-1]
        self.staged.append(Staged(self, header))
        return self.staged[-1]

    def snapshot_sent(self, node_id: str, index: int | None) -> None:
        self.sent.append((node_id, index))


def descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


class Net:
    """Makes nodes, and closes all of them."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()

    def node(
        self,
        node_id: str,
        port: int = 0,
        host: str = "127.0.0.1",
        registrar: Registrar | None = None,
    ) -> Node:
        node = Node(node_id, port, host, registrar)
        self.stack.callback(node.transport.close)
        return node

    def pair(self) -> tuple[Node, Node]:
        a, b = self.node("a"), self.node("b")
        a.knows(b)
        b.knows(a)
        return a, b

    def reactor(self) -> HTTPServer:
        """A server of clients that reads the messages of peers, too."""
        server = HTTPServer(("127.0.0.1", 0), Recorder())
        self.stack.callback(server.drain, 0)
        return server

    def listener(self, backlog: int = 8) -> socket.socket:
        listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))
        listener.settimeout(PATIENCE)
        return listener

    def dial(self, node: Node) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", node.transport.port), PATIENCE)
        return self.stack.enter_context(sock)

    def admitted(self, node: Node, kind: str = "messages", node_id: str = "x") -> socket.socket:
        """Connect as a node would, by hand."""
        sock = self.dial(node)
        sock.sendall(frame(hello(node, kind=kind, node_id=node_id)))
        assert read_json(sock)["node_id"] == node.id
        return sock


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 1.0)
    monkeypatch.setattr(transfer, "RESUMPTION_PAUSE", 0.01)
    monkeypatch.setattr(peer, "MAX_BACKOFF", 0.1)
    monkeypatch.setattr(accepting, "_ACCEPT_TICK", 0.005)
    threads, before = set(threading.enumerate()), descriptors()
    net = Net()
    with net.stack:
        yield net
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    assert set(threading.enumerate()) <= threads
    assert descriptors() <= before


def frame(fields: object) -> bytes:
    return records_module.encode_frame(json.dumps(fields).encode())


def hello(node: Node, **changes: Any) -> dict[str, Any]:
    """The handshake of node x, which *node* would admit, with changes."""
    greeting = asdict(Greeting("x", CLUSTER, "i-x", "data", "raft:9", "http://x"))
    fields = {"protocol": 1, "kind": "messages", "to": node.id, **greeting, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def read_frame(sock: socket.socket) -> bytes:
    header = read_exactly(sock, 8)
    return records_module.check_frame(
        header + read_exactly(sock, records_module.frame_length(header))
    )


def read_json(sock: socket.socket) -> dict[str, Any]:
    fields = json.loads(read_frame(sock))
    assert isinstance(fields, dict)
    return fields


def is_closed(sock: socket.socket) -> bool:
    """Wait for the other side to end a connection without another word."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def accept(listener: socket.socket, node_id: str = "b") -> socket.socket:
    """Accept as a node would, by hand; the handshake is answered."""
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    read_json(sock)
    greeting = asdict(Greeting(node_id, CLUSTER, "i", "data", "raft:3", ""))
    sock.sendall(frame({"protocol": 1, **greeting}))
    return sock


def address(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


# -- messages ------------------------------------------------------------------------------------


def test_messages_arrive_in_order_and_as_they_were(net: Net) -> None:
    a, b = net.pair()
    sent = [
        Message(MessageType.APPEND, "a", "b", 2, index=i, entries=[Entry(2, i + 1, COMMAND, b"x")])
        for i in range(3000)
    ]
    for message in sent:
        a.transport.send(message)
    b.send("a", 77)
    eventually(lambda: len(b.messages) == 3000 and a.messages)
    assert b.messages == sent
    assert [message.index for message in a.messages] == [77]
    assert b.admitted == [("messages", "b", a.greeting())]
    assert a.recognised == [("b", b.greeting())]
    assert a.lost == b.lost == []


def test_nothing_is_dialled_before_there_is_something_to_send(net: Net) -> None:
    a, b = net.pair()
    listener = net.listener()
    listener.settimeout(0.1)
    a.transport.set_peers({"b": b.address, "c": address(listener)})
    a.send("b")
    eventually(lambda: b.messages)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_missing_connections_are_opened_when_asked_for(net: Net) -> None:
    a, b = net.pair()
    port = net.listener().getsockname()[1]  # somebody who never answers
    a.transport.set_peers({"b": b.address, "c": f"127.0.0.1:{port}"})
    a.transport.connect(["a", "b", "c"])
    eventually(lambda: a.metric("conure_peers_connected") == 1)
    assert (a.recognised[0][0], b.messages, b.metric("conure_peers_connected")) == ("b", [], 0)
    b.transport.close()
    eventually(lambda: a.metric("conure_peers_connected") == 0)
    again = net.node("b", b.transport.port)
    lost = list(a.lost)
    eventually(
        lambda: (
            a.transport.connect(["b"])  # type: ignore[func-returns-value]
            or a.metric("conure_peers_connected") == 1
        )
    )
    assert again.messages == []
    assert a.lost == lost  # nothing was to be sent


def test_what_arrives_together_is_handed_over_together(net: Net) -> None:
    a, b = net.pair()
    gate = threading.Event()
    b.on_receive = waits_for(gate)
    a.send("b", 1)
    eventually(lambda: a.metric("conure_peers_connected") == 1)
    for i in range(2, 1002):
        a.send("b", i)
    gate.set()
    eventually(lambda: len(b.messages) == 1001)
    assert [message.index for message in b.messages] == list(range(1, 1002))
    assert len(b.rounds) < 20


def test_large_messages_pass_and_keep_their_place(net: Net) -> None:
    a, b = net.pair()
    large = os.urandom(1 << 20) * 24
    for i in range(6):
        a.send("b", i, large if i % 3 == 1 else b"small")
    eventually(lambda: len(b.messages) == 6)
    assert [message.index for message in b.messages] == list(range(6))
    assert all(
        message.entries[0].data == (large if message.index % 3 == 1 else b"small")
        for message in b.messages
    )


def test_many_threads_may_send(net: Net) -> None:
    a, b = net.pair()

    def send_many(first: int) -> None:
        for i in range(first, first + 500):
            a.send("b", i, b"data")

    threads = [threading.Thread(target=send_many, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(b.messages) == 2000)
    indexes = [message.index for message in b.messages]
    for i in range(4):
        own = [index for index in indexes if index // 1000 == i]
        assert own == list(range(1000 * i, 1000 * i + 500))


def test_a_message_to_a_stranger_is_dropped(net: Net) -> None:
    a, b = net.pair()
    a.send("nobody")
    a.send("b")
    eventually(lambda: b.messages)
    assert a.lost == []


def test_two_hosts_may_hold_their_locks_while_they_send(net: Net) -> None:
    a, b = net.pair()
    locks = {"a": threading.Lock(), "b": threading.Lock()}
    left = {"a": 300, "b": 300}

    def answer(node: Node, other: Node) -> None:
        with locks[node.id]:
            if left[node.id]:
                left[node.id] -= 1
                node.send(other.id)

    a.on_receive = lambda messages: answer(a, b)
    b.on_receive = lambda messages: answer(b, a)
    a.send("b")
    eventually(lambda: not left["b"])


def test_metrics_count_what_is_sent_received_and_dropped(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 0, b"x" * 1000)
    eventually(lambda: b.messages)
    stranger = net.admitted(b)
    stranger.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1)))
    eventually(lambda: len(b.messages) == 2)
    size = len(frames.encode_message(b.messages[0]))
    assert a.metric('conure_peer_sent_bytes_total{peer="b"}') == size
    assert b.metric('conure_peer_received_bytes_total{peer="a"}') == size
    assert b.metric('conure_peer_received_bytes_total{peer="other"}') == 63
    assert a.metric("conure_peers_connected") == 1
    assert b.metric("conure_peers_connected") == 0
    assert a.metric('conure_peer_dropped_messages_total{peer="b"}') == 0


# -- connections that break ----------------------------------------------------------------------


def test_a_peer_that_restarts_on_its_port_is_dialled_again(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 1)
    eventually(lambda: b.messages)
    b.transport.close()
    eventually(lambda: a.lost)  # noticed without sending
    assert a.metric("conure_peers_connected") == 0

    lost = len(a.lost)
    eventually(lambda: a.send("b", 2) or len(a.lost) > lost)  # type: ignore[func-returns-value]
    assert a.metric('conure_peer_dropped_messages_total{peer="b"}') > 0

    again = net.node("b", b.transport.port)
    eventually(lambda: a.send("b", 3) or again.messages)  # type: ignore[func-returns-value]
    assert a.metric("conure_peers_connected") == 1


def test_a_peer_that_restarts_elsewhere_is_found_there(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 1)
    eventually(lambda: b.messages)
    elsewhere = net.node("b")
    a.knows(elsewhere)
    eventually(lambda: a.send("b", 2) or elsewhere.messages)  # type: ignore[func-returns-value]
    assert {message.index for message in b.messages} == {1}


def test_an_address_that_is_put_right_is_tried_at_once(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(peer, "BACKOFF", 60.0)
    a, b = net.pair()
    a.transport.set_peers({"b": "no address"})
    a.send("b")
    eventually(lambda: a.lost)
    a.knows(b)
    a.send("b", 2)
    eventually(lambda: [message.index for message in b.messages] == [2])


def test_a_peer_that_accepts_and_closes_is_dialled_less_and_less(
    net: Net, monkeypatch: Any
) -> None:
    """What opens a connection and ends it at once, such as a proxy without a node, is no peer."""
    monkeypatch.setattr(peer, "BACKOFF", 0.02)
    monkeypatch.setattr(peer, "MAX_BACKOFF", 60.0)
    a, listener = net.node("a"), net.listener()
    a.transport.set_peers({"b": address(listener)})
    dialled = []
    for _ in range(7):
        a.transport.connect(["b"])
        accept(listener).close()
        dialled.append(time.monotonic())
        lost = len(dialled)
        eventually(lambda lost=lost: len(a.lost) >= lost)  # type: ignore[misc]
    shortest = sum(0.5 * 0.02 * 2**n for n in range(6))
    assert dialled[-1] - dialled[0] > 0.9 * shortest


def test_a_peer_that_dials_is_dialled_back_at_once(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(peer, "BACKOFF", 60.0)
    a, b = net.pair()
    b.transport.close()
    a.send("b", 1)
    eventually(lambda: a.lost)
    again = net.node("b", b.transport.port)
    a.send("b", 2)
    again.knows(a)
    again.send("a")
    eventually(lambda: [message.index for message in again.messages] == [2])


def test_a_peer_that_is_none_any_more_is_left(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 1)
    eventually(lambda: b.messages)
    a.transport.set_peers({})
    a.send("b", 2)
    eventually(lambda: not any(thread.name == "peer-b" for thread in threading.enumerate()))
    assert len(b.messages) == 1
    assert a.metric("conure_peers_connected") == 0
    a.knows(b)
    a.send("b", 3)
    eventually(lambda: len(b.messages) == 2)


def test_only_trouble_that_is_new_is_logged(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    a, b = net.pair()
    b.transport.close()
    with caplog.at_level(logging.INFO, "conure.transport"):
        eventually(lambda: a.send("b") or len(a.lost) > 4)  # type: ignore[func-returns-value]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "no connection to b" in caplog.text
        again = net.node("b", b.transport.port)
        eventually(lambda: a.send("b") or again.messages)  # type: ignore[func-returns-value]
        assert f"connected to b at {again.address}" in caplog.text


def test_a_peer_that_reads_nothing_costs_a_bounded_queue(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(peer, "MAX_QUEUED_BYTES", 4 << 20)
    a, b = net.pair()
    listener = net.listener()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    a.transport.set_peers({"b": b.address, "deaf": address(listener)})
    a.send("deaf", 0)
    with accept(listener, "deaf"):
        eventually(lambda: a.metric("conure_peers_connected") == 1)
        data = b"x" * 50_000
        slowest = 0.0
        dropped = 'conure_peer_dropped_messages_total{peer="deaf"}'
        for i in range(600):
            began = time.perf_counter()
            a.send("deaf", i, data)
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 0.5
        eventually(lambda: a.lost == ["deaf"])  # once, not for each
        assert a.metric(dropped) > 100
        a.send("b", 5)
        eventually(lambda: b.messages)

        before = a.metric(dropped)
        for i in range(5000):
            a.send("deaf", i)  # small ones are bounded by their number
        assert a.metric(dropped) > before
        assert a.lost == ["deaf"]


def test_a_peer_that_reads_again_gets_what_has_waited(net: Net) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b", 0, b"first")
    with accept(listener) as sock:
        eventually(lambda: a.metric("conure_peers_connected") == 1)
        for i in range(1, 300):
            a.send("b", i, b"y" * 60_000)
        indexes = [
            frames.decode_message(records_module.encode_frame(read_frame(sock))).index
            for _ in range(300)
        ]
    assert indexes == list(range(300))


def test_silence_is_noticed(net: Net, monkeypatch: Any) -> None:
    # As of a peer whose process is stopped: its system accepts, and takes bytes up to a point.
    monkeypatch.setattr(dialling, "SILENCE", 0.3)
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b", 0)
    with accept(listener):
        eventually(lambda: a.metric("conure_peers_connected") == 1)
        for i in range(200):
            a.send("b", i, b"y" * 100_000)
        eventually(lambda: "b" in a.lost)


def test_a_peer_whose_process_is_stopped_costs_nobody_else(net: Net, monkeypatch: Any) -> None:
    # Its system accepts the connection, and nobody answers the handshake.
    a, b = net.pair()
    a.send("b")
    eventually(lambda: b.messages)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.3)
    stopped = net.listener()
    a.transport.set_peers({"b": b.address, "stopped": address(stopped)})
    for i in range(100):
        a.send("stopped", i)
        a.send("b", i)
    eventually(lambda: len(b.messages) == 101)
    eventually(lambda: "stopped" in a.lost)  # when the handshake's time is over
    assert a.metric('conure_peer_dropped_messages_total{peer="stopped"}') >= 100


# -- handshakes ----------------------------------------------------------------------------------


def test_a_node_of_another_cluster_is_refused_until_it_is_right(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = net.pair()
    b.cluster = "another"
    with caplog.at_level(logging.INFO, "conure.transport"):
        eventually(lambda: a.send("b") or len(a.lost) > 3)  # type: ignore[func-returns-value]
        assert b.messages == []
        refusals = [r.getMessage() for r in caplog.records if "another cluster" in r.getMessage()]
        assert len(refusals) == 2  # one by each of the two
        assert b.metric("conure_peer_refused_connections_total") > 2
    b.cluster = CLUSTER
    eventually(lambda: a.send("b") or b.messages)  # type: ignore[func-returns-value]


def test_the_wrong_node_at_an_address_gets_nothing(net: Net) -> None:
    a, c = net.node("a"), net.node("c")
    a.transport.set_peers({"b": c.address})
    c.admit = lambda kind, to, peer, known_as: None  # type: ignore[method-assign]
    eventually(lambda: a.send("b") or len(a.lost) > 2)  # type: ignore[func-returns-value]
    assert c.messages == []
    assert a.recognised[0] == ("b", c.greeting())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"protocol": 2}, "versions of the protocol"),
        ({"protocol": None}, "versions of the protocol"),
        ({"cluster_id": "other"}, "another cluster"),
        ({"to": "z"}, "not z"),
    ],
)
def test_refusals_say_why(net: Net, changes: dict[str, Any], why: str) -> None:
    b = net.node("b")
    sock = net.dial(b)
    sock.sendall(frame(hello(b, **changes)))
    answer = read_json(sock)
    assert answer["protocol"] == 1
    assert why in answer["refused"]
    assert is_closed(sock)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        bytes(200),
        struct.pack(">II", 8193, 0),
        struct.pack(">II", 2**32 - 1, 0),
        struct.pack(">II", 20, 0) + bytes(20),
        records_module.encode_frame(b"no json"),
        records_module.encode_frame(b"[" * 8000),
        records_module.encode_frame(b'{"protocol":' + b"9" * 5000 + b"}"),
        frame([1, 2]),
        frame({"protocol": 1}),
    ],
)
def test_a_stranger_is_left_without_a_word(net: Net, data: bytes) -> None:
    a, b = net.pair()
    sock = net.dial(b)
    sock.sendall(data)
    assert is_closed(sock)
    a.send("b")
    eventually(lambda: b.messages)


@pytest.mark.parametrize("field", ["kind", "to", "node_id", "cluster_id", "http_address"])
def test_a_field_that_is_no_proper_text_ends_the_handshake(net: Net, field: str) -> None:
    b = net.node("b")
    for value in (..., None, 7, "line\nend", "\ud800", "x" * 513, ["a"]):
        sock = net.dial(b)
        sock.sendall(frame(hello(b, **{field: value})))
        assert is_closed(sock), value
    assert b.admitted == []


@pytest.mark.parametrize("field", ["node_id", "incarnation"])
def test_who_says_not_which_node_it_is_gets_no_further(net: Net, field: str) -> None:
    """A message's sender is known by what was said here: by nothing, it could be anybody."""
    b = net.node("b")
    for value in ("", "x" * 256, "\u20ac" * 86):
        sock = net.dial(b)
        sock.sendall(frame(hello(b, **{field: value})))
        assert is_closed(sock), value
    assert b.admitted == []
    sock = net.dial(b)
    sock.sendall(frame(hello(b, **{field: "x" * 255})))
    assert read_json(sock)["node_id"] == "b"


def test_a_node_that_dials_says_what_it_takes_the_other_one_for(net: Net) -> None:
    a, b = net.pair()
    a.send("b")
    eventually(lambda: b.messages)
    assert b.taken_for == ["i-b"]
    assert b.messages[0].incarnation == "i-a"  # by the handshake: it doesn't travel
    probe(a, b.address, "b")
    found: list[object] = []
    a.transport.probe(b.address, "b", found.append, "i-other")
    eventually(lambda: found)
    assert b.taken_for == ["i-b", "", "i-other"]
    net.admitted(b)  # as a node of an earlier release would
    assert b.taken_for[-1] == ""
    sock = net.dial(b)
    sock.sendall(frame(hello(b, known_as=7)))
    assert is_closed(sock)


def test_the_bytes_of_a_message_do_not_say_whose_it_is(net: Net) -> None:
    b = net.node("b")
    sock = net.admitted(b)
    message = Message(MessageType.APPEND, "x", "b", 1, incarnation="forged")
    sock.sendall(frames.encode_message(message))
    eventually(lambda: b.messages)
    assert b.messages[0].incarnation == "i-x"


@pytest.mark.parametrize("is_registered", [False, True])
def test_connections_are_closed_when_their_other_end_is_believed_no_more(
    net: Net, caplog: pytest.LogCaptureFixture, is_registered: bool
) -> None:
    a = net.node("a")
    server = net.reactor() if is_registered else None
    if server is not None:
        server.start()
    b = net.node("b", registrar=server.reactor if server else None)
    a.knows(b)
    b.knows(a)
    a.send("b")
    b.send("a")
    eventually(lambda: b.messages and a.messages)
    asked: list[tuple[str, str]] = []

    def believes(peer: Greeting, known_as: str) -> bool:
        asked.append((peer.node_id, known_as))
        return a.cluster == CLUSTER

    b.transport.judge(believes, lambda peer: peer.node_id == "a")
    assert asked == [("a", "i-b")]
    a.send("b", 1)
    eventually(lambda: len(b.messages) == 2)
    assert (a.lost, b.lost) == ([], [])  # nothing was closed
    a.cluster = "another"
    with caplog.at_level(logging.INFO, "conure.transport"):
        b.transport.judge(believes, lambda peer: True)
        eventually(lambda: a.lost)
        eventually(lambda: "closed the connection of a" in caplog.text)
    a.send("b", 2)
    eventually(lambda: len(a.lost) > 1)
    assert len(b.messages) == 2
    b.send("a", 3)
    eventually(lambda: len(a.messages) == 2)  # the other one is as it was

    with caplog.at_level(logging.INFO, "conure.transport"):
        b.transport.judge(lambda peer, known_as: True, lambda peer: False)
        eventually(lambda: b.lost)
    assert "lost the connection to a: it isn't who belongs to the cluster" in caplog.text


def test_what_has_arrived_by_a_connection_that_is_closed_is_not_handed_over(net: Net) -> None:
    b = net.node("b")
    began, gate = threading.Event(), threading.Event()

    def receive(messages: Sequence[Message]) -> None:
        began.set()
        assert gate.wait(PATIENCE)

    b.on_receive = receive
    sock = net.admitted(b)
    sock.sendall(message_to(b, 1))
    assert began.wait(PATIENCE)
    inbox_ = next(iter(b.transport._acceptor._inboxes.values()))
    sock.sendall(message_to(b, 2))
    assert select.select([inbox_._sock], [], [], PATIENCE)[0]
    b.transport.judge(lambda peer, known_as: False, lambda peer: True)
    gate.set()
    assert is_closed(sock)
    eventually(lambda: not b.transport._acceptor._callers)
    assert [message.index for message in b.messages] == [1]


def test_a_snapshot_of_who_is_believed_no_more_is_cut_off(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 1000)

    def judge(chunk: int) -> None:
        if chunk == 3:
            b.cluster = "another"
            b.transport.judge(lambda peer, known_as: False, lambda peer: True)

    state.before_chunk = judge
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert "finish" not in b.staged[0].events


def test_who_is_refused_is_told_no_more_than_is_meant_for_it(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    b = net.node("b")

    def admit(*_: object) -> None:
        raise Refused("b of cluster c1 doesn't know x", "it doesn't know who asks")

    b.admit = admit  # type: ignore[method-assign,assignment]
    for kind in ("messages", "snapshot", "probe"):
        sock = net.dial(b)
        sock.sendall(frame(hello(b, kind=kind)))
        assert read_json(sock) == {"protocol": 1, "refused": "it doesn't know who asks"}
        assert is_closed(sock)
    assert "b of cluster c1 doesn't know x" in caplog.text


def test_a_slow_handshake_is_ended_however_slow(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.2)
    b = net.node("b")
    silent, slow = net.dial(b), net.dial(b)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for byte in frame(hello(b)):
            slow.sendall(bytes([byte]))
            time.sleep(0.02)
    assert 0.1 < time.monotonic() - began < 2  # all of it would take longer than that
    assert is_closed(slow)
    assert is_closed(silent)
    assert b.admitted == []


def test_a_plain_visit_leaves_no_trace(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    b = net.node("b")
    with caplog.at_level(logging.INFO, "conure.transport"):
        net.dial(b).close()  # as a load balancer's check does
        sock = net.dial(b)
        sock.sendall(bytes(100))
        assert is_closed(sock)
    assert len(caplog.records) == 1


def test_strangers_cannot_fill_the_log(
    net: Net, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "_MAX_TOLD", 3)
    b = net.node("b")

    def visit(size: int) -> None:
        sock = net.dial(b)
        sock.sendall(struct.pack(">II", 1 << 20 | size, 0))  # each time there is another reason
        assert is_closed(sock)

    for size in range(10):
        visit(size)
    assert len(caplog.records) == 3
    monkeypatch.setattr(accepting, "_TOLD_TIME", 0.0)
    visit(10)
    assert len(caplog.records) == 4


def test_strangers_cannot_keep_a_peer_out(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(guests, "MAX_INCOMING", 5)
    monkeypatch.setattr(guests, "MAX_STRANGERS", 2)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 60.0)
    b = net.node("b")
    peer = net.admitted(b)
    strangers = [net.dial(b) for _ in range(20)]
    a = net.node("a")
    a.knows(b)
    eventually(lambda: a.send("b") or b.messages)  # type: ignore[func-returns-value]
    assert sum(thread.name == "peer-in" for thread in threading.enumerate()) <= 8
    assert is_closed(strangers[0])
    message = Message(MessageType.HEARTBEAT, "x", "b", 1, index=4, entries=[])
    peer.sendall(frames.encode_message(message))  # the admitted one was spared
    eventually(lambda: message in b.messages)


def test_who_is_believed_but_no_member_takes_no_members_place(net: Net) -> None:
    """As a node that is behind, or of no cluster, has to believe anybody of that cluster."""
    b = net.node("b")
    b.members = "a"
    strangers = [
        net.admitted(b, node_id=f"s{number}") for number in range(2 * guests.MAX_STRANGERS)
    ]
    a = net.node("a")
    a.knows(b)
    eventually(lambda: a.send("b") or b.messages)  # type: ignore[func-returns-value]
    assert is_closed(strangers[0])
    strangers[-1].sendall(message_to(b, 5, sender=f"s{len(strangers) - 1}"))
    eventually(lambda: 5 in indexes(b))
    assert len(list(b.transport._acceptor._guests.sockets())) <= guests.MAX_STRANGERS + 1


@pytest.mark.parametrize("is_registered", [False, True])
def test_what_arrives_and_is_not_complete_is_bounded_over_all_connections(
    net: Net, monkeypatch: Any, is_registered: bool
) -> None:
    monkeypatch.setattr(guests, "MAX_ARRIVING", 4 << 20)
    for module in (guests, inbox):
        monkeypatch.setattr(module, "SMALL_FRAME", 64 << 10)
    server = net.reactor() if is_registered else None
    if server is not None:
        server.start()
    b = net.node("b", registrar=server.reactor if server else None)
    b.members = "a"
    begun = struct.pack(">II", 2 << 20, 0) + bytes(1 << 20)
    socks = []
    for number in range(8):
        socks.append(net.admitted(b, node_id=f"s{number}"))
        with contextlib.suppress(OSError):  # it may be ended amid it
            socks[-1].sendall(begun)
        eventually(
            lambda: b.transport._acceptor._guests.arriving
        )  # the first has the room before others ask
    for sock in socks[1:]:
        assert is_closed(sock)
    a = net.node("a")
    a.knows(b)
    large = bytes(3 << 20)
    a.send("b", data=large)  # and is sent once: no part of it was given up
    eventually(lambda: b.messages)
    assert b.messages[0].entries[0].data == large
    assert is_closed(socks[0])  # which had to make room


@pytest.mark.parametrize("is_registered", [False, True])
def test_a_frame_that_does_not_go_on_ends_its_connection(
    net: Net, monkeypatch: Any, is_registered: bool
) -> None:
    monkeypatch.setattr(guests, "FRAME_TIME", 0.2)
    monkeypatch.setattr(guests, "SLOWEST", 1000)
    monkeypatch.setattr(accepting, "_LOOK", 0.02)
    server = net.reactor() if is_registered else None
    if server is not None:
        server.start()
    b = net.node("b", registrar=server.reactor if server else None)
    idle, drips, slow = [net.admitted(b, node_id=node_id) for node_id in "xyz"]
    message = frames.encode_message(
        Message(
            MessageType.APPEND, "z", "b", 1, index=7, entries=[Entry(1, 8, COMMAND, b"z" * 600)]
        )
    )
    drips.settimeout(0.01)
    ended = False
    for at in range(0, len(message), 20):  # twice as fast as has to be
        slow.sendall(message[at : at + 20])
        with contextlib.suppress(TimeoutError, ConnectionError):
            if not ended:
                drips.sendall(message[at // 20 : at // 20 + 1])  # a tenth
            ended = ended or drips.recv(1) == b""
        time.sleep(0.005)
    drips.settimeout(PATIENCE)
    assert ended or is_closed(drips)
    eventually(lambda: b.messages)
    assert b.messages[0].index == 7
    idle.sendall(message_to(b, 3))  # nothing had begun there
    eventually(lambda: len(b.messages) == 2)


def test_what_announces_a_snapshot_goes_on_or_its_connection_ends(
    net: Net, monkeypatch: Any
) -> None:
    monkeypatch.setattr(guests, "FRAME_TIME", 0.2)
    monkeypatch.setattr(guests, "SLOWEST", 1000)
    b = net.node("b")
    sock = net.admitted(b, kind="snapshot")
    sock.settimeout(0.01)
    announcement, sent, ended = frame(header_fields(State("b", 1, sender="x"))), 0, False
    with contextlib.suppress(ConnectionError):
        while not ended and sent < 100:
            sock.sendall(announcement[sent : sent + 1])
            sent += 1
            with contextlib.suppress(TimeoutError):
                ended = sock.recv(1) == b""
    assert sent < 100 < len(announcement)


def test_json_is_bounded_in_its_parts_before_it_is_parsed(net: Net, monkeypatch: Any) -> None:
    b = net.node("b")
    parsed: list[bytes] = []
    monkeypatch.setattr(json, "loads", parsed.append)
    for bomb in (b"[" * 4000, b"[{}" + b",{}" * 2000 + b"]", b'{"a":' * 1000, b"[1" + b",1" * 3900):
        sock = net.dial(b)
        sock.sendall(records_module.encode_frame(bomb))
        assert is_closed(sock)
    assert not parsed


def test_the_end_of_a_snapshot_is_bounded_as_well(net: Net) -> None:
    """It looks like a chunk, which may be large, and is JSON."""
    b = net.node("b")
    sock = net.admitted(b, kind="snapshot")
    sock.sendall(frame(header_fields(State("b", 1, sender="x"))))
    assert read_json(sock) == {"after": ""}
    sock.sendall(records_module.encode_frame(b'{"chunks": 0, "more": "' + b"x" * (1 << 20) + b'"}'))
    eventually(lambda: b.staged[0].events[-1] == "interrupted")


def test_only_so_many_connections_of_a_node_wait(net: Net, monkeypatch: Any) -> None:
    """Whoever has the name of a member has no more than a few of its places."""
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 5.0)
    b = net.node("b")
    gate, entered = threading.Event(), threading.Event()

    def wait(_: Sequence[Message]) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    b.on_receive = wait
    net.admitted(b).sendall(message_to(b, 1))
    assert entered.wait(PATIENCE)
    waiting = []
    for _ in range(accepting.MAX_WAITING):
        waiting.append(net.dial(b))
        waiting[-1].sendall(frame(hello(b)))
        eventually(lambda: b.transport._acceptor._places["messages", "x"].users == len(waiting) + 1)
    more = net.dial(b)
    more.sendall(frame(hello(b)))
    assert "too many connections wait" in read_json(more)["refused"]
    gate.set()


def test_the_newest_connection_of_a_node_takes_over_in_order(net: Net) -> None:
    b = net.node("b")
    gate = threading.Event()
    b.on_receive = waits_for(gate)
    old = net.admitted(b)
    old.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=1)))
    new = net.dial(b)
    new.sendall(frame(hello(b)))
    assert is_closed(old)
    gate.set()
    assert read_json(new)["node_id"] == "b"
    new.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=2)))
    eventually(lambda: [message.index for message in b.messages] == [1, 2])


def test_a_node_that_takes_long_admits_no_further_connection(net: Net, monkeypatch: Any) -> None:
    b = net.node("b")
    gate = threading.Event()
    b.on_receive = waits_for(gate)
    old = net.admitted(b)
    old.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=1)))
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.2)
    for _ in range(2):  # one that was refused doesn't make room for the next one
        new = net.dial(b)
        new.sendall(frame(hello(b)))
        assert "earlier connection" in read_json(new)["refused"]
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", PATIENCE)
    gate.set()
    newest = net.admitted(b)
    newest.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=2)))
    eventually(lambda: [message.index for message in b.messages] == [1, 2])


@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.HEARTBEAT, "a", "b", 1),  # another sender than was admitted
        Message(MessageType.HEARTBEAT, "x", "c", 1),  # not for this node
    ],
)
def test_a_message_with_another_name_than_admitted_is_not_handed_over(
    net: Net, message: Message, caplog: pytest.LogCaptureFixture
) -> None:
    b = net.node("b")
    sock = net.admitted(b)
    own = frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1))
    sock.sendall(own)
    eventually(lambda: len(b.messages) == 1)
    sock.sendall(own + frames.encode_message(message))
    assert is_closed(sock)
    assert len(b.messages) == 1
    assert "a message from" in caplog.text


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.binary(min_size=1, max_size=100).map(records_module.encode_frame),
            st.builds(
                lambda n, tail: struct.pack(">II", n, 0) + tail,
                st.integers(0, 2**32 - 1),
                st.binary(max_size=20),
            ),
            st.tuples(st.integers(0, 70), st.integers(0, 255)).map(
                lambda change: bytes(
                    change[1] if i == change[0] else byte
                    for i, byte in enumerate(
                        frames.encode_message(Message(MessageType.VOTE, "x", "b", 1))
                    )
                )
            ),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_no_bytes_harm(net: Net, pieces: list[bytes], admitted: bool) -> None:
    if not hasattr(net, "target"):
        net.target = net.node("b")  # type: ignore[attr-defined]
    b: Node = net.target  # type: ignore[attr-defined]
    sock = net.dial(b)
    if admitted:
        sock.sendall(frame(hello(b)))
        read_json(sock)
    for piece in pieces:
        with contextlib.suppress(ConnectionError):
            sock.sendall(piece)
    sock.close()
    b.rounds.clear()
    good = Message(MessageType.HEARTBEAT, "y", "b", 1, index=9, entries=[])
    with net.admitted(b, node_id="y") as peer:
        peer.sendall(frames.encode_message(good))
        eventually(lambda: good in b.messages)


# -- an acceptor that is none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no node answers"),
        (struct.pack(">II", 1 << 20, 0), "no node answers"),
        (records_module.encode_frame(b"what?"), "no node answers"),
        (frame({"protocol": 1, "node_id": "b"}), "no node answers"),
        (frame({"protocol": 9}), "versions of the protocol"),
        (frame({"refused": "go\naway" + "!" * 5000}), "go.away!!!"),
        (b"", "no node answers"),
    ],
)
def test_an_answer_that_is_none_is_trouble_and_no_connection(
    net: Net, answer: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b")
    sock, _ = listener.accept()
    with sock:
        read_json(sock)
        sock.sendall(answer)
    eventually(lambda: a.lost)
    assert re.search(why, caplog.text)
    assert max(len(record.getMessage()) for record in caplog.records) < 700


def test_an_acceptor_that_talks_is_left(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b")
    with accept(listener) as sock, caplog.at_level(logging.INFO, "conure.transport"):
        read_frame(sock)
        sock.sendall(b"?")
        assert is_closed(sock)
        eventually(lambda: "it answered a message" in caplog.text)


# -- probes --------------------------------------------------------------------------------------


def probe(node: Node, address: str, node_id: str) -> Greeting | ConureError:
    found: list[Greeting | ConureError] = []
    node.transport.probe(address, node_id, found.append)
    eventually(lambda: found)
    return found[0]


def test_a_probe_tells_who_is_there(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    assert probe(a, b.address, "b") == b.greeting()
    assert b.admitted == [("probe", "b", a.greeting())]
    assert a.recognised == []  # that is for whoever asked
    assert str(probe(a, b.address, "c")) == "this is b and not c"


def test_a_probe_of_an_address_where_no_node_is(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    b.transport.close()
    for where in (
        b.address,
        "nonsense",
        ":80",
        "127.0.0.1:",
        "127.0.0.1:99999",
        "\0:1",
        "x" * 80 + ":1",
    ):
        found = probe(a, where, "b")
        assert isinstance(found, Unavailable), where
        assert "can't be reached" in str(found)


def test_only_so_many_probes_at_a_time(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.3)
    a, b = net.node("a"), net.node("b")
    silent = net.listener(backlog=20)
    found: list[Greeting | ConureError] = []
    for _ in range(dialling.MAX_PROBES):
        a.transport.probe(address(silent), "b", found.append)
    assert found == []
    assert "try again" in str(probe(a, b.address, "b"))
    eventually(lambda: len(found) == dialling.MAX_PROBES)
    assert all(isinstance(error, Unavailable) for error in found)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", PATIENCE)
    assert probe(a, b.address, "b") == b.greeting()


def test_both_internet_protocols(net: Net) -> None:
    a = net.node("a")
    for host, where in (
        ("", "127.0.0.1"),
        ("", "[::1]"),
        ("[::1]", "[::1]"),
        ("localhost", "localhost"),
    ):
        b = net.node("b", 0, host)
        assert probe(a, f"{where}:{b.transport.port}", "b") == b.greeting()
    with pytest.raises(OSError, match="in use"):
        Transport(("", b.transport.port), Registry())


# -- snapshots -----------------------------------------------------------------------------------


def header_fields(state: State, **changes: Any) -> dict[str, Any]:
    """What announces a snapshot, with changes."""
    message = b64encode(frames.encode_message(state.header.message)).decode()
    fields = {**state.header._asdict(), "message": message, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def assert_complete(staged: Staged, state: State) -> None:
    assert staged.events[-1] == "finish"
    assert [row[0] for row in staged.records] == [b"%08d" % i for i in range(state.header.records)]
    assert {row[1:] for row in staged.records} <= {(state.value, 1, 2, 3, 0)}


@pytest.mark.parametrize("records", [0, 1, 1000])
def test_a_snapshot_arrives(net: Net, records: int) -> None:
    a, b = net.pair()
    state = State("b", records)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", 70)]
    assert state.closed == 1
    (staged,) = b.staged
    assert staged.events == ["resume", "finish"]
    assert staged.header == state.header._replace(message=staged.header.message)
    assert staged.header.message.snapshot == SnapshotMeta(70, 2, b"members")
    assert_complete(staged, state)
    sent = a.metric('conure_peer_sent_bytes_total{peer="b"}')
    assert sent == b.metric('conure_peer_received_bytes_total{peer="a"}')
    assert sent >= records * 100


def test_a_large_value_is_a_large_chunk(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 2, value=os.urandom(1 << 20) * 24)
    state.per_chunk = 1
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert_complete(b.staged[0], state)


def test_a_snapshot_that_is_not_needed_is_as_good_as_sent(net: Net) -> None:
    a, b = net.pair()
    b.snapshot_needed = False
    state = State("b", 100)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert (state.chunks_made, state.closed) == (0, 1)


def test_a_snapshot_that_is_refused_is_not_tried_again(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = net.pair()

    def begin(header: SnapshotHeader) -> None:
        raise StorageError("the disk is full")

    b.begin_snapshot = begin  # type: ignore[method-assign]
    state = State("b", 100)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert len([kind for kind, _, _ in b.admitted if kind == "snapshot"]) == 1
    assert "given up: the disk is full" in caplog.text


def test_an_altered_chunk_ends_the_transfer_at_once(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = net.pair()

    class Altered(State):
        def make(self, rows: list[tuple[bytes, bytes, int, int, int, int]]) -> bytes:
            return super().make(rows[::-1] if self.chunks_made == 3 else rows)

    # So much that the answer has to come amid the sending, and to survive what is unread.
    state = Altered("b", 4000, value=b"v" * 10_000)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert state.closed == 1
    assert "b was given up: the keys are not in order" in caplog.text
    assert len(b.staged) == 1
    assert b.staged[0].events == ["resume"]


def test_a_snapshot_with_too_few_records_is_refused_at_its_end(net: Net) -> None:
    a, b = net.pair()

    class Short(State):
        def chunks(self, after: bytes) -> Iterator[bytes]:
            yield from list(super().chunks(after))[:-1]

    a.transport.send_snapshot(Short("b", 100))
    eventually(lambda: a.sent == [("b", None)])
    assert b.staged[0].events == ["resume", "finish"]


def test_a_state_that_can_not_be_read_ends_the_transfer(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 100)

    def fail(n: int) -> None:
        raise StorageError("page 7 is damaged")

    state.before_chunk = fail
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", None)])
    assert state.closed == 1
    eventually(lambda: b.staged[0].events == ["resume", "interrupted"])


def test_a_transfer_that_breaks_off_goes_on_where_it_was(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 6_000)  # 600 chunks
    breaks = range(30, 600, 60)
    assert len(breaks) > transfer.RESUMPTIONS  # but each gets further than the one before

    def cut(n: int) -> None:
        if n in breaks:  # a newer connection of the same node ends the older one
            eventually(lambda: len(b.staged[0].records) > 10 * (n - 30))
            net.admitted(b, "snapshot", "a")

    state.before_chunk = cut
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    (staged,) = b.staged
    assert_complete(staged, state)
    assert staged.events.count("interrupted") == len(breaks)
    assert staged.events.count("resume") == len(breaks) + 1
    assert state.chunks_made < 1200


def test_a_transfer_outlives_a_restart_of_the_receiver(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 2000)
    again: list[Node] = []

    def restart(n: int) -> None:
        if n == 100:
            b.transport.close()
            again.append(net.node("b", b.transport.port))

    state.before_chunk = restart
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert "interrupted" in b.staged[0].events
    assert_complete(again[0].staged[0], state)


def test_a_receiver_that_is_gone_is_given_up(net: Net) -> None:
    a, b = net.pair()
    b.transport.close()
    state = State("b", 100)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert state.closed == 1


def test_a_transfer_without_progress_is_given_up(net: Net) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.transport.send_snapshot(State("b", 100))
    for _ in range(1 + transfer.RESUMPTIONS):
        assert a.sent == []
        with accept(listener) as sock:
            assert read_json(sock)["records"] == 100
            sock.sendall(frame({"after": ""}))
    eventually(lambda: a.sent == [("b", None)])


@pytest.mark.parametrize("answer", [{"after": 7}, {"after": "*"}, {}, {"done": True}, [1]])
def test_an_answer_that_is_none_breaks_the_transfer_off(
    net: Net, answer: object, monkeypatch: Any
) -> None:
    monkeypatch.setattr(transfer, "RESUMPTIONS", 0)
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.transport.send_snapshot(State("b", 100))
    with accept(listener) as sock:
        read_json(sock)
        sock.sendall(frame(answer))
        eventually(lambda: a.sent == [("b", None)])


def test_silence_of_either_side_ends_a_transfer(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "PROGRESS_TIME", 0.1)
    monkeypatch.setattr(transfer, "RESUMPTIONS", 0)
    a, b = net.node("a"), net.node("b")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.transport.send_snapshot(State("b", 100))
    with accept(listener):
        eventually(lambda: a.sent == [("b", None)])

    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(State("b", 100, sender="x"))))
    assert read_json(sock) == {"after": ""}
    eventually(lambda: b.staged[0].events == ["resume", "interrupted"])


def test_the_end_of_a_transfer_may_take_longer_than_its_parts(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "PROGRESS_TIME", 0.2)
    monkeypatch.setattr(transfer, "RESUMPTIONS", 0)
    a, b = net.pair()
    monkeypatch.setattr(Staged, "finish", lambda staged: time.sleep(0.4))
    a.transport.send_snapshot(State("b", 10))
    eventually(lambda: a.sent)
    assert a.sent == [("b", 70)]
    assert len(b.staged) == 1


def test_one_snapshot_at_a_time_for_a_node(net: Net) -> None:
    a, b = net.pair()
    gate = threading.Event()
    first, second, third = State("b", 100), State("b", 100), State("b", 100)
    first.before_chunk = waits_for(gate)
    a.transport.send_snapshot(first)
    eventually(lambda: b.staged)
    a.transport.send_snapshot(second)
    eventually(lambda: a.sent == [("b", None)])
    assert (second.closed, second.chunks_made) == (1, 0)
    gate.set()
    eventually(lambda: a.sent == [("b", None), ("b", 70)])
    a.transport.send_snapshot(third)
    eventually(lambda: a.sent[2:] == [("b", 70)])


def test_no_snapshot_for_a_stranger_nor_for_one_who_has_left(net: Net) -> None:
    a, b = net.pair()
    a.transport.send_snapshot(State("nobody", 1))
    eventually(lambda: a.sent == [("nobody", None)])
    state = State("b", 10_000)
    state.before_chunk = lambda n: a.transport.set_peers({}) if n == 50 else None
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent[1:] == [("b", None)])
    assert state.chunks_made < 60
    eventually(lambda: b.staged[0].events == ["resume", "interrupted"])


def test_a_transfer_rests_as_long_as_it_works(net: Net) -> None:
    a, _ = net.pair()
    state = State("b", 100)

    def work(n: int) -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass

    state.before_chunk = work
    began = time.monotonic()
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert time.monotonic() - began > 2 * 10 * 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"message": ...},
        {"message": "*"},
        {"message": b64encode(b"junk").decode()},
        {
            "message": b64encode(
                frames.encode_message(Message(MessageType.VOTE, "x", "b", 1))
            ).decode()
        },
        {"digest": -1},
        {"digest": "1"},
        {"records": 1 << 64},
        {"records": True},
        {"id": 5},
    ],
)
def test_a_malformed_announcement_ends_the_connection(net: Net, changes: dict[str, Any]) -> None:
    b = net.node("b")
    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(State("b", 1, sender="x"), **changes)))
    assert is_closed(sock)
    assert b.staged == []


@pytest.mark.parametrize(("sender", "to"), [("a", "b"), ("x", "c")])
def test_a_snapshot_with_another_name_than_admitted_is_not_begun(
    net: Net, sender: str, to: str
) -> None:
    b = net.node("b")
    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(State(to, 1, sender=sender))))
    assert is_closed(sock)
    assert b.staged == []


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 4, 0) + b"abcd",  # fails its checksum
        struct.pack(">II", records_module.MAX_FRAME_BYTES + 1, 0),
        frame({"chunks": 1}),  # says that a chunk is missing
        records_module.encode_frame(b"{"),
        b"",
    ],
)
def test_a_stream_that_is_damaged_on_its_way_is_only_interrupted(net: Net, data: bytes) -> None:
    b = net.node("b")
    state = State("b", 10, sender="x")
    with net.admitted(b, "snapshot") as sock:
        sock.sendall(frame(header_fields(state)))
        assert read_json(sock) == {"after": ""}
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)
        eventually(lambda: b.staged[0].events == ["resume", "interrupted"])

    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(state)))
    assert read_json(sock) == {"after": ""}
    sock.sendall(
        b"".join(map(records_module.encode_frame, state.chunks(b""))) + frame({"chunks": 1})
    )
    assert read_json(sock) == {"done": True}
    assert_complete(b.staged[0], state)


# -- the end -------------------------------------------------------------------------------------


def test_close_ends_whatever_is_going_on(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 60.0)
    monkeypatch.setattr(transfer, "RESUMPTION_PAUSE", 60.0)
    monkeypatch.setattr(sockets, "CONNECT_TIME", 0.4)
    a, b = net.pair()
    full = net.listener(backlog=0)  # with one that waits in it, further ones can't connect
    net.stack.enter_context(socket.create_connection(full.getsockname()))
    silent, deaf, idle = net.listener(), net.listener(), net.listener()
    nowhere = address(idle)
    idle.close()
    a.transport.set_peers(
        {
            "b": b.address,
            "full": address(full),
            "silent": address(silent),
            "deaf": address(deaf),
            "nowhere": nowhere,
        }
    )
    a.send("full")
    a.send("silent")
    a.send("deaf")
    found: list[Greeting | ConureError] = []
    a.transport.probe(address(silent), "z", found.append)
    big, stuck, broken = (State(to, 5000, value=b"v" * 10_000) for to in ("deaf", "b", "nowhere"))
    b.before_add = lambda: time.sleep(0.2)
    a.transport.send_snapshot(stuck)
    a.transport.send_snapshot(broken)
    with accept(deaf, "deaf"), net.admitted(a, "snapshot", "x") as sender:
        a.transport.send_snapshot(big)
        sender.sendall(frame(header_fields(State("a", 10, sender="x"))))
        with accept(deaf, "deaf") as second:
            read_json(second)
            second.sendall(frame({"after": ""}))
            for i in range(200):
                a.send("deaf", i, b"z" * 100_000)
            eventually(lambda: a.staged and b.staged and big.chunks_made > 20)
            began = time.monotonic()
            a.transport.close()
            assert time.monotonic() - began < 1.5
    assert sorted(a.sent) == [("b", None), ("deaf", None), ("nowhere", None)]
    assert [state.closed for state in (big, stuck, broken)] == [1, 1, 1]
    assert a.staged[0].events == ["resume", "interrupted"]
    (error,) = found
    assert isinstance(error, Unavailable)


def test_what_is_asked_of_a_closed_transport_fails_quietly(net: Net) -> None:
    a, b = net.pair()
    a.send("b")
    eventually(lambda: b.messages)
    a.transport.close()
    a.transport.close()
    told = len(a.lost)
    a.send("b")
    a.knows(b)
    a.send("b")
    state = State("b", 1)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", None)])
    assert state.closed == 1
    assert isinstance(probe(a, b.address, "b"), Unavailable)
    assert len(a.lost) == told
    assert len(b.messages) == 1


def test_a_transport_that_never_began_can_be_closed() -> None:
    Transport(("127.0.0.1", 0), Registry()).close()


def test_the_host_is_not_called_after_close(net: Net) -> None:
    a, b = net.pair()
    calls = 0
    for i in range(2000):
        a.send("b", i)
    b.transport.close()
    calls = len(b.rounds)
    for i in range(100):
        a.send("b", i)
    eventually(lambda: a.lost)
    assert len(b.rounds) == calls


# -- messages that a registrar reads ---------------------------------------------------------------


def message_to(node: Node, index: int, sender: str = "x") -> bytes:
    return frames.encode_message(Message(MessageType.APPEND, sender, node.id, 1, index=index))


def indexes(node: Node) -> list[int]:
    return [message.index for message in node.messages]


def registered(server: HTTPServer) -> int:
    return len(server.reactor.registered)


def test_a_registrar_hands_over_what_comes_in_its_own_thread(net: Net) -> None:
    server = net.reactor()
    node = net.node("a", registrar=server.reactor)
    threads: set[str] = set()
    node.on_receive = lambda _: threads.add(threading.current_thread().name)
    early = net.admitted(node)
    early.sendall(message_to(node, 0))  # it has to wait: the server doesn't run yet
    server.start()
    data = b"".join([message_to(node, index) for index in range(1, 3000)])
    for at in range(0, len(data), 9999):
        early.sendall(data[at : at + 9999])
    eventually(lambda: len(node.messages) == 3000)
    assert indexes(node) == list(range(3000))
    assert threads == {"http-reactor"}


def end_by_close(sock: socket.socket, node: Node) -> None:
    sock.close()


def end_by_reset(sock: socket.socket, node: Node) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def end_by_garbage(sock: socket.socket, node: Node) -> None:
    sock.sendall(b"\xff" * 100)


def end_by_another_name(sock: socket.socket, node: Node) -> None:
    sock.sendall(message_to(node, 666, sender="y"))


def end_by_the_host(sock: socket.socket, node: Node) -> None:
    def fail(_: Sequence[Message]) -> None:
        node.on_receive = lambda _: None
        raise RuntimeError("boom")

    node.on_receive = fail
    sock.sendall(message_to(node, 666))


ENDS = (end_by_close, end_by_reset, end_by_garbage, end_by_another_name, end_by_the_host)


@pytest.mark.parametrize("end", ENDS)
def test_a_registered_connection_that_ends_leaves_nothing(
    net: Net, end: Callable[[socket.socket, Node], None]
) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    before = descriptors()
    for index in range(3):
        sock = net.admitted(node)
        sock.sendall(message_to(node, index))
        eventually(lambda: len(node.messages) == index + 1)  # noqa: B023 - called at once
        end(sock, node)
        with contextlib.suppress(OSError):
            sock.sendall(message_to(node, 777))  # nothing behind an error is handed over
        if sock.fileno() >= 0:
            assert is_closed(sock)
        sock.close()
        eventually(lambda: not registered(server) and not node.transport._acceptor._guests._guests)
    eventually(lambda: descriptors() <= before)
    assert indexes(node) == [0, 1, 2]
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")  # the server lives on
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_nothing_behind_an_error_is_handed_over_however_often_the_registrar_calls(net: Net) -> None:
    actions: list[Callable[[], None]] = []

    class ByHand:
        def register(self, sock: socket.socket, action: Callable[[], None]) -> None:
            actions.append(action)

        def unregister(self, sock: socket.socket) -> None:
            gate.wait(PATIENCE)

    gate = threading.Event()
    node = net.node("a", registrar=ByHand())
    sock = net.admitted(node)
    eventually(lambda: actions)
    actions[0]()  # without input
    sock.sendall(message_to(node, 666, sender="y"))
    inbox_ = next(iter(node.transport._acceptor._inboxes.values()))
    while not inbox_.has_ended.is_set():
        actions[0]()
    sock.sendall(message_to(node, 1))
    assert select.select([inbox_._sock], [], [], PATIENCE)[0]
    actions[0]()
    gate.set()
    assert is_closed(sock)
    assert node.messages == []


def test_the_newest_registered_connection_takes_the_place_of_the_older_one(net: Net) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    for index in range(20):  # descriptors are used again and again
        sock = net.admitted(node)
        sock.sendall(message_to(node, index))
        eventually(lambda: len(node.messages) == index + 1)  # noqa: B023 - called at once
    assert indexes(node) == list(range(20))
    eventually(lambda: registered(server) == 1)


def test_a_registrar_that_has_ended_leaves_no_thread_behind(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    before = net.admitted(node)
    before.sendall(message_to(node, 0))
    eventually(lambda: node.messages)
    server.drain(0)
    after = net.admitted(node, node_id="y")  # is greeted, and read no more
    after.sendall(message_to(node, 1, sender="y"))
    eventually(lambda: len(node.transport._acceptor._inboxes) == 2)
    node.transport.close()
    assert is_closed(before)
    assert is_closed(after)
    assert indexes(node) == [0]
    assert not node.transport._acceptor._inboxes
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_close_ends_what_a_registrar_reads(net: Net) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    sock = net.admitted(node)
    sock.sendall(message_to(node, 0)[:-1])
    eventually(lambda: node.metric('conure_peer_received_bytes_total{peer="other"}'))
    node.transport.close()
    assert is_closed(sock)
    assert not registered(server)
