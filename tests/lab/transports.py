"""Transports on loopback, and strangers who speak to them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from conure.consensus import records as records_module
from conure.consensus.messages import (
    COMMAND,
    Entry,
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
)
from conure.errors import ConureError, Refused, StorageError
from conure.http.server import HTTPServer
from conure.metrics import Registry
from conure.peers import frames
from conure.peers.accepting import Registrar
from conure.peers.calls import Answer, Call
from conure.peers.forming import Question, Shown
from conure.peers.joins import Applicant
from conure.peers.protocol import Greeting
from conure.peers.proving import PeerSecurity
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
        security: PeerSecurity = PeerSecurity(),  # noqa: B008 - it never changes
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
        self.called_by: list[tuple[Greeting, Call, Callable[[Answer], None]]] = []
        self.questions: list[Question] = []
        self.shown = Shown(node_id, f"i-{node_id}", "data", 0, "", "", 8081, ("b:7001",))
        self.applicants: list[tuple[Applicant, Callable[[ConureError | None], None]]] = []
        self.on_applicant: Callable[[Callable[[ConureError | None], None]], None] = lambda reply: (
            reply(None)
        )
        self.snapshot_needed = True
        self.on_receive: Callable[[Sequence[Message]], None] = lambda messages: None
        self.on_call: Callable[[Call, Callable[[Answer], None]], None] = lambda call, answer: None
        self.before_add: Callable[[], None] = lambda: None
        self.registry = Registry()
        self.transport = Transport((host, port), self.registry, security)
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

    def asked(self, question: Question) -> Shown:
        self.questions.append(question)
        return self.shown

    def asked_to_add(
        self, applicant: Applicant, reply: Callable[[ConureError | None], None]
    ) -> None:
        self.applicants.append((applicant, reply))
        self.on_applicant(reply)

    def is_member(self, peer: Greeting) -> bool:
        return peer.node_id in self.members

    def called(self, peer: Greeting, call: Call, answer: Callable[[Answer], None]) -> None:
        self.called_by.append((peer, call, answer))
        self.on_call(call, answer)

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
        security: PeerSecurity = PeerSecurity(),  # noqa: B008 - it never changes
    ) -> Node:
        node = Node(node_id, port, host, registrar, security)
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


def probe(node: Node, address: str, node_id: str) -> Greeting | ConureError:
    found: list[Greeting | ConureError] = []
    node.transport.probe(address, node_id, found.append)
    eventually(lambda: found)
    return found[0]


def header_fields(state: State, **changes: Any) -> dict[str, Any]:
    """What announces a snapshot, with changes."""
    message = b64encode(frames.encode_message(state.header.message)).decode()
    fields = {**state.header._asdict(), "message": message, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def message_to(node: Node, index: int, sender: str = "x") -> bytes:
    return frames.encode_message(Message(MessageType.APPEND, sender, node.id, 1, index=index))


def indexes(node: Node) -> list[int]:
    return [message.index for message in node.messages]
