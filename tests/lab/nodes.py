"""Clusters of real nodes in one thread: disks in memory, messages that a test delivers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from conure.cluster.monitor import CallLater
from conure.cluster.node import TICK, Node
from conure.cluster.options import NodeOptions
from conure.cluster.proposing import Command
from conure.consensus.messages import (
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
    State,
)
from conure.consensus.records import FRAME_HEADER_BYTES
from conure.errors import (
    ConureError,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from conure.metrics import Registry
from conure.peers.calling import CallReply
from conure.peers.calls import Answer, Call, decode_answer, decode_call, encode_answer, encode_call
from conure.peers.forming import (
    Question,
    Shown,
    check_question,
    check_shown,
    encode_question,
    encode_shown,
)
from conure.peers.joins import check_applicant, encode_applicant
from conure.peers.protocol import Greeting
from conure.peers.transfer import Incoming, Outgoing
from tests.lab import engines
from tests.lab.answers import Ended, outcomes_of
from tests.lab.crashfs import CrashFileSystem

EPOCH = 1_700_000_000.0

Asked = tuple[str, str, Question, Callable[["Shown | ConureError"], None]]


class Wire:
    """The peers of one node: messages go to the lab, which delivers them when it is told to."""

    def __init__(self, lab: Lab, node_id: str) -> None:
        self.lab = lab
        self.node_id = node_id
        self.addresses: Mapping[str, str] = {}

    def set_peers(self, peers: Mapping[str, str]) -> None:
        self.addresses = dict(peers)

    def send(self, message: Message) -> None:
        self.lab.sent.append(message)
        address = self.addresses.get(message.to)
        if address is not None:
            self.lab.under_way.append((self.node_id, address, message))

    def call(self, to: str, call: Call, reply: CallReply, seconds: float) -> bool:
        address = self.addresses.get(to)
        if address is not None:
            self.lab.calls.append((self.node_id, address, call, reply))
        return address is not None

    def connect(self, node_ids: Iterable[str]) -> None:
        self.lab.connecting[self.node_id] = set(node_ids)

    def judge(
        self, believes: Callable[[Greeting, str], bool], expects: Callable[[Greeting], bool]
    ) -> None:
        self.lab.judge(self.node_id, believes, expects)

    def send_snapshot(self, outgoing: Outgoing) -> None:
        self.lab.snapshots.append((self.node_id, outgoing))

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        target = self.lab.at(address)
        if target is None or target is self.lab[self.node_id]:
            reply(Unavailable(f"nobody answers at {address}"))
            return
        try:
            target.admit("probe", node_id, self.lab[self.node_id].greeting(), known_as)
        except Refused as refusal:
            reply(Refused(refusal.told))
        else:
            reply(target.greeting())

    def ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        self.lab.questions.append((self.node_id, address, question, reply))


class Lab:
    """Nodes, their disks, a clock and the messages between them. Each draws its engine."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ahead: dict[str, float] = {}  # seconds by which a node's wall clock is wrong
        self.nodes: dict[str, Node] = {}
        self.disks: dict[str, CrashFileSystem] = {}
        self.failed: set[str] = set()
        self.under_way: deque[tuple[str, str, Message]] = deque()
        self.snapshots: deque[tuple[str, Outgoing]] = deque()
        self.sent: list[Message] = []
        self.calls: deque[tuple[str, str, Call, CallReply]] = deque()
        self.asked: list[tuple[str, Call]] = []  # the calls that were delivered, by who asked
        self.answers: deque[tuple[str, CallReply, bytes]] = deque()
        self.loses_answers = False  # of calls
        self.questions: deque[Asked] = deque()  # of nodes that form a cluster
        self.cut: set[str] = set()  # nodes that nobody reaches, and that reach nobody
        self.refused: list[str] = []
        self.connecting: dict[str, set[str]] = {}  # by node, to whom it wanted connections
        self.later: dict[str, CallLater] = {}  # by node, unless all is done at once
        self.registries: dict[str, Registry] = {}  # by node

    def __getitem__(self, node_id: str) -> Node:
        return self.nodes[node_id]

    def add(self, node_id: str, /, **changes: Any) -> Node:
        facts: dict[str, Any] = {
            "node_id": node_id,
            "told_node_id": True,
            "data_dir": "/data",
            "raft_address": f"{node_id}:7001",
            "http_address": f"http://{node_id}:8081",
            "bootstrap": False,
            "version": "test",
            "engine": engines.drawn(node_id),
            "page_size": 512,
            "cache_bytes": 1 << 20,
            "log_segment_bytes": 4096,
            "checkpoint_interval": 3600.0,
        }
        disk = self.disks.setdefault(node_id, CrashFileSystem())
        registry = self.registries[node_id] = Registry()
        node = Node.open(
            NodeOptions(**{**facts, **changes}),
            disk,
            Wire(self, node_id),
            registry,
            lambda: self.failed.add(node_id),
            clock=lambda: self.now,
            wall=lambda: EPOCH + self.now + self.ahead.get(node_id, 0.0),
            rng=random.Random(node_id),
            call_later=lambda action, seconds: self.call_later(node_id, action, seconds),
        )
        self.nodes[node_id] = node
        node.recover()
        return node

    def call_later(self, node_id: str, action: Callable[[], None], seconds: float) -> None:
        if node_id in self.later:
            self.later[node_id](action, seconds)
        else:
            action()

    def stop(self, node_id: str) -> None:
        self.nodes.pop(node_id).stop()

    def wipe(self, node_id: str) -> None:
        self.stop(node_id)
        del self.disks[node_id]

    def at(self, address: str) -> Node | None:
        for node_id, node in self.nodes.items():
            if node.greeting().raft_address == address and node_id not in self.cut | self.failed:
                return node
        return None

    def settle(self) -> None:
        """Deliver everything, and what comes of it."""
        while self.under_way or self.snapshots or self.calls or self.answers or self.questions:
            while self.questions:
                self.put(*self.questions.popleft())
            while self.calls:
                self.ask(*self.calls.popleft())
            while self.answers:
                self.answer(*self.answers.popleft())
            while self.under_way:
                sender, address, message = self.under_way.popleft()
                receiver = self.at(address)
                if receiver is not None and sender in self.nodes and sender not in self.cut:
                    self.deliver(sender, receiver, message)
            if self.snapshots:
                self.stream(*self.snapshots.popleft())

    def deliver(self, sender: str, receiver: Node, message: Message) -> None:
        try:
            caller, known_as = self[sender].greeting(), self[sender].known_as(message.to)
            receiver.admit("messages", message.to, caller, known_as)
            self[sender].recognise(message.to, receiver.greeting())
        except Refused as refusal:
            self.refused.append(str(refusal))
        else:
            receiver.receive([message])

    def ask(self, caller: str, address: str, call: Call, reply: CallReply) -> None:
        """Deliver a call, as bytes, or tell why not."""
        target = self.at(address)
        if caller not in self.nodes:
            return
        if target is None or caller in self.cut:
            reply(Unavailable(f"nobody answers at {address}"))
            return
        to, greeting = target.greeting().node_id, self[caller].greeting()
        try:
            target.admit("calls", to, greeting, self[caller].known_as(to))
            self[caller].recognise(to, target.greeting())
        except Refused as refusal:
            reply(Unavailable(refusal.told))
            return
        self.asked.append((caller, call))
        _, call = decode_call(encode_call(1, call)[FRAME_HEADER_BYTES:])

        def give(answer: Answer) -> None:
            self.answers.append((caller, reply, encode_answer(1, answer)[FRAME_HEADER_BYTES:]))

        target.called(greeting, call, give)

    def put(
        self,
        asker: str,
        address: str,
        question: Question,
        reply: Callable[[Shown | ConureError], None],
    ) -> None:
        """Put a question of a node that forms a cluster to who is at an address, as JSON. A node is
        found by its name here, as it may not know its address itself."""
        name = address.partition(":")[0]
        target = self.nodes.get(name)
        if asker not in self.nodes:
            return
        if target is None or {asker, name} & (self.cut | self.failed):
            reply(Unavailable(f"{address} can't be reached"))
            return
        shown = target.asked(check_question(encode_question(question)))
        reply(check_shown(encode_shown(shown)))

    def answer(self, caller: str, reply: CallReply, payload: bytes) -> None:
        """Deliver a part of an answer."""
        if caller in self.nodes:
            lost = OutcomeUnknown("the connection was lost")
            reply(lost if self.loses_answers or caller in self.cut else decode_answer(payload)[1])

    def judge(
        self,
        node_id: str,
        believes: Callable[[Greeting, str], bool],
        expects: Callable[[Greeting], bool],
    ) -> None:
        """Nothing to do: here each message is a connection of its own."""

    def stream(self, sender: str, outgoing: Outgoing) -> None:
        header = outgoing.header
        target = self.at(self[sender]._raft.configuration.get(header.message.to).raft_address)  # type: ignore[union-attr]
        index: int | None = None
        if target is not None and sender not in self.cut:
            incoming: Incoming | None = target.begin_snapshot(header)
            if incoming is not None:
                for chunk in outgoing.chunks(incoming.resume_after()):
                    incoming.add(chunk)
                incoming.finish()
            assert header.message.snapshot is not None
            index = header.message.snapshot.index
        outgoing.close()
        self[sender].snapshot_sent(header.message.to, index)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.now += TICK
            for node_id, node in list(self.nodes.items()):
                if node_id not in self.failed:
                    node.tick()
            self.settle()

    def tick_until(self, condition: Callable[[], bool], limit: int = 400) -> None:
        for _ in range(limit):
            if condition():
                return
            self.tick()
        raise AssertionError("not in time")

    def leader(self) -> Node:
        def found() -> list[Node]:
            return [
                node
                for node_id, node in self.nodes.items()
                if node._raft.state is State.LEADER and node_id not in self.cut | self.failed
            ]

        self.tick_until(lambda: len(found()) == 1)
        return found()[0]

    def join(self, node_id: str, **facts: Any) -> ConureError | None:
        answers: list[ConureError | None] = []
        given: dict[str, Any] = {"voter": True, "role": ""} | facts
        self.leader().join(node_id, f"{node_id}:7001", "", reply=answers.append, **given)
        self.tick_until(lambda: bool(answers))
        return answers[0]

    def apply(self, node_id: str, at: str) -> ConureError | None:
        """Let a node ask another one over the Raft port to be added, as JSON."""
        answers: list[ConureError | None] = []
        said = encode_applicant(self[node_id].applicant())
        self[at].asked_to_add(check_applicant(said), answers.append)
        self.tick_until(lambda: bool(answers))
        return answers[0]

    def remove(self, node_id: str) -> ConureError | None:
        answers: list[ConureError | None] = []
        self.leader().remove(node_id, force=False, reply=answers.append)
        self.tick_until(lambda: bool(answers))
        return answers[0]


def cluster(*others: str, **changes: Any) -> Lab:
    """A cluster of n1, which leads, and the others."""
    lab = Lab()
    lab.add("n1", bootstrap=True, **changes)
    for node_id in others:
        lab.add(node_id, **changes)
        assert lab.join(node_id) is None
    return lab


def begin(node: Node, *commands: Command) -> list[Ended]:
    """Write without waiting; the list fills with how each command ended, once each."""
    return outcomes_of(node.write, commands)


def put(lab: Lab, key: bytes, value: bytes) -> None:
    outcome = begin(lab.leader(), (key, value))
    lab.tick_until(lambda: outcome[0] != "unanswered")
    assert outcome == [None]


def read(node: Node, requests: int = 1) -> list[ConureError | None]:
    answers: list[ConureError | None] = []
    node.confirm_read(answers.append, requests)
    return answers


def suffrages(node: Node) -> dict[str, str]:
    return {server["id"]: server["suffrage"] for server in node.members()["servers"]}


def checkpoint(node: Node) -> None:
    node._upkeep.checkpoint(0.0)
    node._upkeep.prepare()
    assert node._standing.failure is None


def header(lab: Lab, index: int, transfer: str) -> SnapshotHeader:
    """Announce a state of n1 to n2."""
    leader = lab["n1"]
    meta = SnapshotMeta(index, leader._raft.term, leader._store.configuration)
    message = Message(MessageType.SNAPSHOT, "n1", "n2", leader._raft.term, snapshot=meta)
    return SnapshotHeader(message, 0, 1, transfer)
