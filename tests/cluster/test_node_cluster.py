"""Several nodes in one thread: what the driver adds to the core, with the test as the network.

The simulator (tests/sim/) brings faults by the thousand; here each property of node.py has one
short story: who is admitted, how a write ends whose leader lost, leases, audits, what of the log is
kept.
"""

from __future__ import annotations

import contextlib
import math
import random
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from conure import errors
from conure.cluster import pacing, transfers
from conure.cluster.leases import LEASE_SHARE, MAX_TOLD
from conure.cluster.membership import newcomer
from conure.cluster.monitor import CallLater
from conure.cluster.node import TICK, Node
from conure.cluster.options import NodeOptions
from conure.cluster.proposing import Command
from conure.commands import (
    Acquire,
    Committed,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    EventKind,
    Expire,
    Get,
    Increment,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Release,
    RenewSession,
    Target,
    Touch,
    Transaction,
)
from conure.consensus.members import Configuration, Server
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    NOOP,
    Entry,
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
    State,
)
from conure.consensus.spares import RESERVE_FILES
from conure.errors import (
    Conflict,
    ConureError,
    CorruptionError,
    DiskFull,
    Diverged,
    ForeignDirectory,
    MemberNotFound,
    NotLeader,
    OutcomeUnknown,
    ProtocolViolation,
    Refused,
    Unavailable,
    VersionTooNew,
)
from conure.metrics import Registry
from conure.peers import frames
from conure.peers.protocol import Greeting
from conure.peers.transfer import Incoming, Outgoing
from conure.state import codec
from conure.state.machine import Session
from conure.state.snapshots import IncomingSnapshot
from conure.storage.engine import Record
from tests.lab.answers import Ended, outcomes_of, value_of
from tests.lab.crashfs import CrashFileSystem

EPOCH = 1_700_000_000.0


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


class Lab:
    """Nodes, their disks, a clock and the messages between them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ahead: dict[str, float] = {}  # seconds by which a node's wall clock is wrong
        self.nodes: dict[str, Node] = {}
        self.disks: dict[str, CrashFileSystem] = {}
        self.failed: set[str] = set()
        self.under_way: deque[tuple[str, str, Message]] = deque()
        self.snapshots: deque[tuple[str, Outgoing]] = deque()
        self.sent: list[Message] = []
        self.cut: set[str] = set()  # nodes that nobody reaches, and that reach nobody
        self.refused: list[str] = []
        self.connecting: dict[str, set[str]] = {}  # by node, to whom it wanted connections
        self.later: dict[str, CallLater] = {}  # by node, unless all is done at once

    def __getitem__(self, node_id: str) -> Node:
        return self.nodes[node_id]

    def add(self, node_id: str, **changes: Any) -> Node:
        facts: dict[str, Any] = {
            "node_id": node_id,
            "told_node_id": True,
            "data_dir": "/data",
            "raft_address": f"{node_id}:7001",
            "http_address": f"http://{node_id}:8081",
            "bootstrap": False,
            "version": "test",
            "page_size": 512,
            "cache_bytes": 1 << 20,
            "log_segment_bytes": 4096,
            "checkpoint_interval": 3600.0,
        }
        disk = self.disks.setdefault(node_id, CrashFileSystem())
        node = Node.open(
            NodeOptions(**{**facts, **changes}),
            disk,
            Wire(self, node_id),
            Registry(),
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
        while self.under_way or self.snapshots:
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


def do(lab: Lab, *operations: Operation, **facts: Any) -> Outcome:
    """Carry a transaction out and return how it ended."""
    told: list[Committed | ConureError] = []
    wanted = Transaction((), operations, **facts)
    lab.leader().write([wanted], lambda _, __, ended: told.append(ended))
    lab.tick_until(lambda: bool(told))
    (ended,) = told
    assert isinstance(ended, Committed)
    return ended.outcomes[ended.first]


def read(node: Node, requests: int = 1) -> list[ConureError | None]:
    answers: list[ConureError | None] = []
    node.confirm_read(answers.append, requests)
    return answers


def suffrages(node: Node) -> dict[str, str]:
    return {server["id"]: server["suffrage"] for server in node.members()["servers"]}


# -- joining and leaving -------------------------------------------------------------------------


def test_three_nodes_join_replicate_and_agree() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(5)
    assert suffrages(lab["n3"]) == {"n1": "voter", "n2": "voter", "n3": "voter"}
    assert [value_of(lab[n], b"k") for n in ("n1", "n2", "n3")] == [b"v"] * 3
    assert len({node._store.digest for node in lab.nodes.values()}) == 1
    assert len({node._directory.identity.cluster_id for node in lab.nodes.values()}) == 1


def test_a_node_that_nobody_reaches_is_not_added() -> None:
    lab = cluster()
    answer = lab.join("n2")
    assert isinstance(answer, Conflict)
    assert "nobody answers at n2:7001" in str(answer)
    assert suffrages(lab["n1"]) == {"n1": "voter"}
    put(lab, b"k", b"v")


def test_a_node_of_another_cluster_is_not_added() -> None:
    lab = cluster()
    lab.add("n2", bootstrap=True)
    answers: list[ConureError | None] = []
    lab["n1"].join("n2", "n2:7001", "", voter=True, role="", reply=answers.append)
    assert isinstance(answers[0], Conflict)
    assert str(answers[0]) == "n2 was not added: it belongs to another cluster"
    assert suffrages(lab["n1"]) == {"n1": "voter"}


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"raft_address": "n2:9999"}, "nobody answers"),
        ({"http_address": "http://elsewhere:1"}, "clients reach it at http://n2:8081"),
        ({"role": "arbiter"}, "runs with the role data"),
        ({"node_id": "n3"}, "another node is at this address"),
    ],
)
def test_a_join_with_wrong_facts_changes_nothing(facts: dict[str, str], why: str) -> None:
    lab = cluster()
    lab.add("n2")
    given = {"node_id": "n2", "raft_address": "n2:7001", "http_address": "", "role": ""} | facts
    answers: list[ConureError | None] = []
    lab["n1"].join(**given, voter=True, reply=answers.append)
    assert isinstance(answers[0], Conflict)
    assert why in str(answers[0])
    assert suffrages(lab["n1"]) == {"n1": "voter"}


def test_a_node_is_added_under_the_addresses_that_it_knows() -> None:
    """Another one may lead to it today: through a proxy, or a name that is about to change."""
    greeting = cluster()["n1"].greeting()
    wanted: dict[str, Any] = {"raft_address": "n1:7001", "http_address": "", "voter": True}
    assert newcomer(greeting, None, **wanted, role="").raft_address == "n1:7001"
    for changes, why in (
        ({"raft_address": "elsewhere:1"}, "peers reach it at n1:7001, not elsewhere:1"),
        ({"http_address": "http://x:1"}, "clients reach it at http://n1:8081, not http://x:1"),
    ):
        with pytest.raises(Conflict, match=why):
            newcomer(greeting, None, **{**wanted, **changes}, role="")


def test_a_learner_is_shown_as_one() -> None:
    lab = cluster()
    lab.add("n2")
    assert lab.join("n2", voter=False) is None
    assert suffrages(lab["n1"]) == {"n1": "voter", "n2": "nonvoter"}


def test_an_arbiter_holds_no_data_and_keeps_two_data_nodes_writable() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    put(lab, b"k", b"v")
    with pytest.raises(NotLeader):
        value_of(lab["a"], b"k")
    assert len(lab["a"]._store.engine) == 0
    lab.stop("n2")
    put(lab, b"k", b"w")
    lab.stop("a")
    lab.add("a", role="arbiter")
    put(lab, b"k", b"x")
    lab.stop("a")
    with pytest.raises(ForeignDirectory, match="role"):
        lab.add("a")


def test_a_wiped_disk_is_refused_until_the_member_is_removed() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.wipe("n3")
    lab.add("n3")
    lab.tick(20)
    assert any("another data directory" in why for why in lab.refused)
    assert lab["n3"]._log.last_index == 0
    assert isinstance(lab.join("n3"), Conflict)
    assert lab.remove("n3") is None
    assert lab.join("n3") is None
    lab.tick(5)
    assert value_of(lab["n3"], b"k") == b"v"


def test_who_is_behind_follows_a_leader_that_was_admitted_again_meanwhile() -> None:
    """Its log ends where that leader was a member with another disk."""
    lab = cluster("n2", "n3", "n4")
    lab.stop("n3")
    lab.wipe("n2")
    assert lab.remove("n2") is None
    lab.add("n2")
    assert lab.join("n2") is None
    answers: list[ConureError | None] = []
    lab.leader().hand_over("n2", answers.append)
    lab.tick_until(lambda: bool(answers))
    assert lab.leader() is lab["n2"]
    put(lab, b"k", b"v")
    lab.add("n3")
    lab.tick(40)
    assert value_of(lab["n3"], b"k") == b"v"


def test_a_member_that_moved_is_found_and_one_entry_follows() -> None:
    lab = cluster("n2", "n3")
    lab.stop("n3")
    last = lab["n1"]._raft.last_index
    lab.add("n3", raft_address="elsewhere:7001", http_address="http://elsewhere:8081")
    lab.tick(60)
    server = lab.leader()._roster.members.get("n3")
    assert server is not None
    assert (server.raft_address, server.http_address) == ("elsewhere:7001", "http://elsewhere:8081")
    put(lab, b"k", b"v")
    lab.tick(5)
    assert value_of(lab["n3"], b"k") == b"v"
    log = lab["n1"]._log
    entries = log.entries(last + 1, log.last_index + 1, 1 << 20)
    assert sum(entry.kind == 2 for entry in entries) == 1


def test_an_arbiter_that_moved_is_found_without_a_leader() -> None:
    """It campaigns never, so it has to call the others by itself."""
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    lab.stop("n2")
    lab.stop("a")
    lab.tick(40)
    assert lab["n1"]._raft.state is not State.LEADER
    lab.add("a", role="arbiter", raft_address="elsewhere:7001")
    put(lab, b"k", b"v")
    server = lab.leader()._roster.members.get("a")
    assert server is not None
    assert server.raft_address == "elsewhere:7001"


def test_a_cluster_that_moved_as_a_whole_finds_itself_by_its_seeds() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    for node_id in ("n1", "n2", "n3"):
        lab.stop(node_id)
    for node_id in ("n1", "n2", "n3"):
        lab.add(node_id, raft_address=f"new-{node_id}:7001")
    lab.tick(60)
    assert all(node._raft.state is not State.LEADER for node in lab.nodes.values())
    for node_id in ("n2", "n3"):  # what a joiner does
        answers: list[ConureError | None] = []
        address = f"new-{node_id}:7001"
        lab["n1"].join(node_id, address, "", voter=True, role="data", reply=answers.append)
        assert isinstance(answers[0], NotLeader)
    put(lab, b"k", b"w")
    lab.tick(60)
    addresses = {server.id: server.raft_address for server in lab["n3"]._roster.members.servers}
    assert addresses == {n: f"new-{n}:7001" for n in ("n1", "n2", "n3")}


def test_a_removed_node_knows_and_stays_out() -> None:
    lab = cluster("n2", "n3")
    assert lab.remove("n3") is None
    lab.tick(5)
    assert lab["n3"].status()["member"] is False
    assert not lab["n3"].wants_to_join()
    term = lab["n1"].status()["term"]
    lab.connecting.clear()
    lab.tick(100)
    assert lab["n1"].status()["term"] == term
    assert lab.connecting == {"n2": {"n1", "n2"}}  # n1 leads: it writes to the others anyway


def test_a_removed_node_leads_its_clients_on_to_who_led_then() -> None:
    lab = cluster("n2", "n3")
    assert lab.remove("n3") is None
    lab.tick(100)
    assert lab["n3"].status()["leader_id"] == ""
    referral = lab["n3"].referral()
    assert referral is not None
    assert (referral.leader_id, referral.leader_http) == ("n1", "http://n1:8081")
    assert lab.join("n3") is None
    lab.tick(3)
    lab.cut.add("n3")
    lab.tick(100)
    assert lab["n3"].status()["leader_id"] == ""
    referral = lab["n3"].referral()
    assert referral is not None
    assert referral.leader_id == ""  # a member again: it waits for what its cluster elects


def test_a_node_that_was_removed_and_added_again_asks_for_its_place_like_any_member() -> None:
    lab = cluster("n2", "n3")
    assert lab.remove("n3") is None
    assert not lab["n3"].wants_to_join()  # until it is started again
    assert lab.join("n3") is None
    lab.tick(3)
    assert not lab["n3"].wants_to_join()
    lab.cut.add("n3")
    lab.tick(110)  # nobody was heard for longer than five seconds
    assert lab["n3"].wants_to_join()


def test_who_is_about_to_stop_stands_for_nothing() -> None:
    lab = cluster("n2", "n3")
    lab["n2"].begin_stop()
    term = lab["n2"].status()["term"]
    lab.cut |= {"n1", "n3"}
    lab.tick(100)
    status = lab["n2"].status()
    assert (status["state"], status["term"]) == ("follower", term)
    assert ("stopping", False, "yes") in lab["n2"].readiness()


def test_a_removal_waits_until_those_who_stay_have_answered_it() -> None:
    """n3 has died a moment ago and still counts as one that answers."""
    lab = cluster("n2", "n3")
    lab.tick(3)
    lab.stop("n3")
    answers: list[ConureError | None] = []
    lab["n1"].remove("n2", force=False, reply=answers.append)
    lab.tick_until(lambda: bool(answers))
    assert isinstance(answers[0], Conflict)
    assert set(suffrages(lab["n1"])) == {"n1", "n2", "n3"}
    put(lab, b"k", b"v")


def test_nobody_dials_a_removed_member_that_came_back_for_a_while() -> None:
    lab = cluster("n2", "n3")
    lab.cut.add("n3")
    lab.tick(20)
    assert lab.remove("n3") is None
    lab.tick(100)
    lab.cut.clear()
    lab.tick(60)  # it doesn't know, and asks for votes
    assert "n3" in lab["n2"]._admission._book.addresses()  # a new leader, for all n2 knows
    lab.cut.add("n3")
    lab.connecting.clear()
    lab.tick(100)
    assert lab.connecting["n2"] == {"n1", "n2"}


def test_a_member_that_comes_back_at_once_is_found_at_its_new_address() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.wipe("n3")
    lab.add("n3", raft_address="elsewhere:7001")
    assert lab.remove("n3") is None
    answers: list[ConureError | None] = []
    lab["n1"].join("n3", "elsewhere:7001", "", voter=True, role="", reply=answers.append)
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert suffrages(lab["n1"])["n3"] == "voter"
    lab.tick(30)
    assert value_of(lab["n3"], b"k") == b"v"
    member = lab["n1"]._roster.members.get("n3")
    assert member is not None
    assert member.raft_address == "elsewhere:7001"


def test_a_member_at_an_address_that_is_taken_does_not_hold_up_others_that_moved() -> None:
    lab = cluster("n2", "n3", "n4")
    for node_id in ("n2", "n3", "n4"):
        lab.stop(node_id)
    lab.add("n2", raft_address="n4:7001")  # n4's, which is dead
    lab.add("n3", raft_address="elsewhere:7001")
    lab.tick(60)
    moved = lab.leader()._roster.members.get("n3")
    assert moved is not None
    assert moved.raft_address == "elsewhere:7001"


def test_members_that_change_places_are_known_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    lab = cluster("n2", "n3", "n4")
    for node_id in ("n2", "n3", "n4"):
        lab.stop(node_id)
    for node_id, place in (("n2", "n3"), ("n3", "n2"), ("n4", "n1")):  # n1's, which stays
        lab.add(node_id, raft_address=f"{place}:7001")
    lab.tick(60)
    members = lab.leader()._roster.members
    addresses = {server.id: server.raft_address for server in members.servers}
    assert addresses == {"n1": "n1:7001", "n2": "n3:7001", "n3": "n2:7001", "n4": "n4:7001"}
    assert set(suffrages(lab.leader()).values()) == {"voter"}
    told = [message for message in caplog.messages if "is reached at" in message]
    assert sorted(told) == [
        "node n2 is reached at n3:7001 now",
        "node n3 is reached at n2:7001 now",
    ]


def test_two_members_that_were_at_one_address_hold_up_no_other_that_moved() -> None:
    """No leader lets that happen; one that lies may have, and what the log holds is there."""
    lab = cluster("n2", "n3", "n4", "n5")
    for node_id in ("n3", "n4"):
        lab.stop(node_id)
    raft = lab.leader()._raft
    n3 = raft.configuration.get("n3")
    assert n3 is not None
    assert raft._leading is not None
    raft._change(raft._leading, raft.configuration.with_server(replace(n3, raft_address="n4:7001")))
    lab.tick(5)
    lab.stop("n2")
    lab.add("n2", raft_address="elsewhere:7001")
    lab.tick(60)
    assert lab.failed == set()
    places = {"n3": "n4:7001", "n4": "n4:7001", "n2": "elsewhere:7001"}
    for node_id, place in places.items():
        member = lab.leader()._roster.members.get(node_id)
        assert member is not None
        assert member.raft_address == place


def test_new_addresses_wait_while_somebody_reads_too_little_for_them() -> None:
    lab = cluster("n2", "n3")
    leader = lab.leader()

    def refuse(version: int, members: Configuration) -> None:
        raise Conflict(f"this needs format version {version}, of {len(members.servers)}")

    known, leader._raft._check_format = leader._raft._check_format, refuse
    lab.stop("n3")
    lab.add("n3", raft_address="elsewhere:7001")
    lab.tick(30)
    assert lab.failed == set()
    assert lab.leader() is leader
    leader._raft._check_format = known
    lab.tick(5)
    moved = leader._roster.members.get("n3")
    assert moved is not None
    assert moved.raft_address == "elsewhere:7001"


def test_a_node_belongs_to_no_cluster_that_takes_it_for_another_one() -> None:
    lab = cluster("n2", "n3")
    lab.wipe("n3")
    lab.add("n3")
    lab.tick(20)
    assert any("another data directory" in why for why in lab.refused)
    assert lab["n3"].greeting().cluster_id == ""


def test_a_removal_is_not_answered_by_a_join_that_is_not_committed() -> None:
    lab = cluster("n2", "n3", write_timeout=1.0)
    lab.add("n4")
    lab.cut |= {"n2", "n3"}
    joined: list[ConureError | None] = []
    lab["n1"].join("n4", "n4:7001", "", voter=True, role="", reply=joined.append)
    removed: list[ConureError | None] = []
    lab["n1"].remove("n4", force=True, reply=removed.append)
    assert removed == []
    lab.cut.clear()
    lab.tick_until(lambda: bool(removed))
    assert removed == [None]
    lab.tick(5)
    assert "n4" not in suffrages(lab["n1"])


def test_a_voter_that_moves_while_it_is_removed_comes_back_as_a_voter() -> None:
    """Its join is asked for while it is a voter, and is done when it is no member any more."""
    lab = cluster("n2", "n3")
    lab.stop("n3")
    lab.add("n3", raft_address="elsewhere:7001")
    lab.add("n4")
    answers: dict[str, ConureError | None] = {}

    def told(what: str) -> Callable[[ConureError | None], None]:
        return lambda answer: answers.update({what: answer})

    leader = lab["n1"]
    leader.join("n4", "n4:7001", "", voter=False, role="", reply=told("another change"))
    leader.remove("n3", force=True, reply=told("removal"))
    leader.join("n3", "elsewhere:7001", "", voter=True, role="", reply=told("move"))
    assert suffrages(leader)["n3"] == "voter"
    assert not answers
    lab.tick_until(lambda: len(answers) == 3)
    assert answers == {"another change": None, "removal": None, "move": None}
    assert suffrages(leader)["n3"] == "voter"


def test_leadership_is_handed_over_and_reads_say_where_it_is() -> None:
    lab = cluster("n2", "n3")
    answers: list[ConureError | None] = []
    lab["n1"].hand_over("n3", answers.append)
    lab.tick_until(lambda: bool(answers))
    assert answers == [None]
    assert lab.leader() is lab["n3"]
    lab.tick(2)
    (refusal,) = read(lab["n1"])
    assert isinstance(refusal, NotLeader)
    assert refusal.leader_http == "http://n3:8081"


def test_dry_runs_tell_the_quorum_and_change_nothing() -> None:
    lab = cluster("n2", "n3")
    before = lab["n1"].members()
    joined = lab["n1"].preview_join("n4", voter=True, role="data")
    assert joined == {
        "allowed": True, "reason": "", "warning": "",
        "voters": 4, "quorum": 3, "active": 4, "tolerates": 1
    }  # fmt: skip
    removed = lab["n1"].preview_remove("n3")
    assert (removed["voters"], removed["quorum"], removed["tolerates"]) == (2, 2, 0)
    assert lab["n1"].members() == before
    with pytest.raises(NotLeader):
        lab["n2"].preview_remove("n3")


def test_dry_runs_warn_of_arbiters_that_make_a_cluster_weaker() -> None:
    lab = cluster("n2")
    assert lab["n1"].preview_join("a", voter=True, role="arbiter")["warning"] == ""
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    third = lab["n1"].preview_join("n3", voter=True, role="data")
    assert third["allowed"]
    assert third["warning"].startswith(
        "3 data nodes and an arbiter can be blocked by the loss of 1 of the data nodes, "
        "where 3 data nodes alone survive the loss of 1"
    )
    assert lab["n1"].preview_join("n3", voter=False, role="data")["warning"] == ""
    lab.add("n3")
    assert lab.join("n3") is None
    assert lab["n1"].preview_join("n4", voter=True, role="data")["warning"] == ""
    assert lab["n1"].preview_remove("a")["warning"] == ""
    lone = cluster("n2", "n3")
    joined = lone["n1"].preview_join("a", voter=True, role="arbiter")
    assert (joined["allowed"], joined["warning"]) == (True, third["warning"])


def test_dry_runs_refuse_what_would_be_refused() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    leaving = lab["n1"].preview_remove("n1")
    assert not leaving["allowed"]
    assert "arbiter" in leaving["reason"]
    last = cluster()
    assert "last voter" in last["n1"].preview_remove("n1")["reason"]
    with pytest.raises(MemberNotFound):
        last["n1"].preview_remove("n9")
    for facts in ({"voter": False, "role": ""}, {"voter": True, "role": "arbiter"}):
        joined = lab["n1"].preview_join("n2", **facts)  # type: ignore[arg-type]
        assert not joined["allowed"]
        assert joined["reason"]


# -- how writes end ------------------------------------------------------------------------------


def test_a_write_that_another_leader_commits_is_acknowledged_by_the_old_one() -> None:
    lab = cluster("n2", "n3")
    outcome = begin(lab["n1"], (b"k", b"v"))
    lab.settle()  # committed: but first let the answers be lost
    assert outcome == [None]
    pending = begin(lab["n1"], (b"k", b"w"))
    while lab.under_way:  # the followers hold it; what they answer goes down
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        if sender == "n1" and receiver is not None:
            lab.deliver(sender, receiver, message)
    lab.under_way.clear()
    assert pending == ["unanswered"]
    lab.cut.add("n1")
    assert lab.leader() is not lab["n1"]
    lab.cut.clear()
    lab.tick_until(lambda: pending != ["unanswered"])
    assert pending == [None]
    assert value_of(lab["n1"], b"k") == b"w"


def test_a_write_that_was_overwritten_is_refused_and_may_be_tried_again() -> None:
    lab = cluster("n2", "n3")
    lab.cut.add("n1")
    lost = begin(lab["n1"], (b"k", b"lost"), (b"l", b"lost"))
    lab.settle()
    put(lab, b"k", b"kept")
    put(lab, b"m", b"kept")
    lab.cut.clear()
    lab.tick_until(lambda: "unanswered" not in lost)
    assert [type(error) for error in lost] == [Unavailable, Unavailable]
    lab.tick(5)
    assert value_of(lab["n1"], b"k") == b"kept"
    assert value_of(lab["n1"], b"l") is None


class Later(list[tuple[Callable[[], None], float]]):
    """What n1 wants to do later, and after how many seconds; done by hand."""

    def act(self) -> float:
        """Do the one thing there is; return for how long it was to wait."""
        ((action, seconds),) = self
        self.clear()
        action()
        return seconds

    def act_on(self) -> None:
        """Do everything, and what comes of it."""
        while self:
            action, _ = self.pop(0)
            action()


def paused(lab: Lab) -> Later:
    later = Later()
    lab.later["n1"] = lambda action, seconds: later.append((action, seconds))
    return later


def batches(node: Node) -> list[int]:
    """The numbers of commands that were proposed together."""
    sizes: list[int] = []
    propose = node._raft.propose

    def noted(commands: Sequence[bytes]) -> int:
        first = propose(commands)
        sizes.append(len(commands))
        return first

    node._raft.propose = noted  # type: ignore[method-assign]
    return sizes


def test_writes_gather_while_others_wait_and_need_no_tick() -> None:
    lab = cluster("n2", "n3")
    sizes = batches(lab["n1"])
    outcomes = [begin(lab["n1"], (b"k", b"%d" % number)) for number in range(4)]
    assert sizes == [1]
    lab.settle()  # time stands still
    assert outcomes == [[None]] * 4
    assert sizes == [1, 3]
    assert value_of(lab["n1"], b"k") == b"3"
    outcomes = [begin(lab["n1"], (b"k", b"4"))]
    lab.settle()
    assert (outcomes, sizes) == ([[None]], [1, 3, 1])


def test_a_write_that_comes_while_answers_are_sent_goes_with_those_held_back() -> None:
    lab = cluster("n2", "n3")
    later, sizes = paused(lab), batches(lab["n1"])
    begin(lab["n1"], (b"k", b"0"), (b"l", b"0"), (b"m", b"0"))
    outcomes = [begin(lab["n1"], (b"k", b"1"))]
    lab.settle()
    outcomes.append(begin(lab["n1"], (b"k", b"2")))
    lab.tick()  # does not come before its turn
    assert sizes == [3]
    later.act()
    outcomes.append(begin(lab["n1"], (b"k", b"3")))
    assert sizes == [3]
    later.act()
    lab.settle()
    assert outcomes == [[None]] * 3
    assert sizes == [3, 3]
    later.act()  # nothing is held
    assert later == []
    outcomes.append(begin(lab["n1"], (b"k", b"4")))
    assert sizes == [3, 3, 1]  # nobody else is waited for


def test_nobody_is_waited_for_once_all_who_were_answered_have_asked_again() -> None:
    lab = cluster("n2", "n3")
    later, sizes, before = paused(lab), batches(lab["n1"]), rounds(lab)
    outcomes = [begin(lab["n1"], (b"k", b"1"), (b"l", b"1")), begin(lab["n1"], (b"k", b"2"))]
    lab.settle()
    assert outcomes == [[None, None], ["unanswered"]]
    outcomes.append(begin(lab["n1"], (b"k", b"3")))
    assert sizes == [2]
    answers = read(lab["n1"])  # the third of three
    assert sizes == [2, 2]
    assert rounds(lab) == before + 1
    later.act_on()
    lab.settle()
    assert (outcomes, answers) == ([[None, None], [None], [None]], [None])
    assert sizes == [2, 2]


@pytest.mark.parametrize(
    ("held", "waits"),
    [
        (0, []),
        (1, [pacing.GATHER]),
        (63, [pacing.GATHER]),
        (64, [0.0]),
    ],
)
def test_few_held_writes_wait_a_moment_for_those_of_who_was_answered(
    held: int, waits: list[float]
) -> None:
    lab = cluster("n2", "n3")
    later = paused(lab)
    outcomes = [begin(lab["n1"], (b"k", b"%d" % number)) for number in range(1 + held)]
    lab.settle()
    assert later.act() == 0.0
    assert [seconds for _, seconds in later] == waits
    later.act_on()
    lab.settle()
    assert outcomes == [[None]] * (1 + held)


def test_a_lone_node_holds_nothing_back() -> None:
    lab = cluster()
    later = paused(lab)
    assert [begin(lab["n1"], (b"k", b"v")), begin(lab["n1"], (b"k", b"w"))] == [[None], [None]]
    assert later == []


def rounds(lab: Lab) -> int:
    """How many rounds n1 has begun to confirm reads."""
    leading = lab["n1"]._raft._leading
    assert leading is not None
    return leading.read_round


def test_reads_gather_while_others_are_confirmed_and_need_no_tick() -> None:
    lab = cluster("n2", "n3")
    before = rounds(lab)
    answers = [read(lab["n1"]) for _ in range(4)]
    assert rounds(lab) == before + 1
    lab.settle()  # time stands still
    assert answers == [[None]] * 4
    assert rounds(lab) == before + 2


def test_a_read_that_comes_while_answers_are_sent_goes_with_those_held_back() -> None:
    lab = cluster("n2", "n3")
    later, before = paused(lab), rounds(lab)
    answers = [read(lab["n1"], 3), read(lab["n1"])]
    lab.settle()
    assert answers == [[None], []]
    answers.append(read(lab["n1"]))
    lab.tick()  # does not come before its turn
    assert rounds(lab) == before + 1
    assert later.act() == 0.0
    answers.append(read(lab["n1"]))
    assert rounds(lab) == before + 1
    assert later.act() == pacing.GATHER
    lab.settle()
    assert answers == [[None]] * 4
    assert rounds(lab) == before + 2
    later.act()  # nothing is held
    assert later == []
    answers.append(read(lab["n1"]))
    assert rounds(lab) == before + 3  # nobody else is waited for


@pytest.mark.parametrize("ask", ["write", "read"])
def test_what_is_held_goes_on_when_a_smaller_quorum_has_ended_what_it_waits_for(ask: str) -> None:
    lab = cluster("n2")
    later, node = paused(lab), lab["n1"]
    ended = [begin(node, (b"k", b"v")) if ask == "write" else read(node) for _ in range(2)]
    node.remove("n2", force=True, reply=lambda _: None)
    lab.settle()  # time stands still
    later.act_on()
    assert ended == [[None], [None]]


def test_answers_in_a_pause_do_not_end_it_for_those_who_were_answered_before() -> None:
    lab = cluster("n2", "n3")
    later, sizes = paused(lab), batches(lab["n1"])
    read(lab["n1"], 3)
    begin(lab["n1"], (b"k", b"1"), (b"l", b"1"), (b"m", b"1"))
    heartbeats = [each for each in lab.under_way if each[2].type is MessageType.HEARTBEAT]
    lab.under_way = deque([each for each in lab.under_way if each not in heartbeats])
    lab.settle()  # the writes are answered
    begin(lab["n1"], (b"k", b"2"))
    lab.under_way.extend(heartbeats)
    lab.settle()  # the reads are
    read(lab["n1"], 3)
    assert sizes == [3]  # two more are to come
    begin(lab["n1"], (b"k", b"3"), (b"l", b"3"))
    assert sizes == [3, 3]
    later.act_on()


def settle_without_appends(lab: Lab) -> None:
    while lab.under_way:
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        if message.type is not MessageType.APPEND and receiver is not None:
            lab.deliver(sender, receiver, message)


def test_a_read_does_not_wait_for_writes_that_wait_for_their_quorum() -> None:
    lab = cluster("n2", "n3")
    outcomes = [begin(lab["n1"], (b"k", b"1")), begin(lab["n1"], (b"k", b"2"))]
    answers = read(lab["n1"])
    settle_without_appends(lab)
    assert answers == [None]
    assert outcomes == [["unanswered"], ["unanswered"]]


def test_a_read_does_not_wait_for_writes_that_are_held_back() -> None:
    """It is taken up with them, and answered without them."""
    lab = cluster("n2", "n3")
    later = paused(lab)
    outcomes = [begin(lab["n1"], (b"k", b"1")), begin(lab["n1"], (b"k", b"2"))]
    lab.settle()
    answers = read(lab["n1"])
    later.act_on()
    settle_without_appends(lab)
    assert answers == [None]
    assert value_of(lab["n1"], b"k") == b"1"
    assert outcomes == [[None], ["unanswered"]]


def test_a_held_read_is_not_answered_by_the_round_before_it() -> None:
    lab = cluster("n2", "n3")
    later, old = paused(lab), lab["n1"]
    first, second = read(old), read(old)
    lab.settle()
    assert (first, second) == ([None], [])
    lab.cut.add("n1")
    put(lab, b"k", b"v")  # by another leader
    later.act_on()
    assert [type(error) for error in second] == [NotLeader]


@pytest.mark.parametrize("end", ["step down", "time", "failure", "stop", "lead again"])
def test_reads_that_are_held_back_are_answered_once_however_it_ends(end: str) -> None:
    lab = cluster("n2", "n3", barrier_timeout=0.2, election_timeout=30.0)
    later, node = paused(lab), lab["n1"]
    read(node)
    held = [read(node), read(node)]
    expected: object = Unavailable
    if end == "step down":
        node.receive([Message(MessageType.APPEND, "n2", "n1", node._raft.term + 1)])
        expected = NotLeader
    elif end == "time":
        lab.cut |= {"n2", "n3"}
        lab.tick(5)
    elif end == "failure":
        with node._monitor:
            node._fail(CorruptionError("conure.db", 0, "it is torn"))
    elif end == "stop":
        lab.stop("n1")
    else:
        lab.settle()  # the first one is answered
        with node._monitor.lock:
            node._raft._become_follower(node._raft.term)
            node._raft._become_candidate(force=True)
            node._drive()
        lab.settle()
        expected = type(None)
    later.act_on()
    lab.settle()
    later.act_on()
    assert [[type(error) for error in each] for each in held] == [[expected], [expected]]


def test_a_reply_that_raises_does_not_hold_up_the_writes_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster("n2", "n3")

    def reply(start: int, stop: int, ended: Committed | ConureError) -> None:
        raise RuntimeError("boom")

    lab["n1"].write([(b"k", b"v")], reply)
    held = begin(lab["n1"], (b"k", b"w"))
    lab.settle()
    assert held == [None]
    assert "boom" in caplog.text


def test_what_was_proposed_in_an_earlier_term_holds_nothing_back() -> None:
    """Its entries were overwritten, and the log is shorter than it was."""
    lab = cluster("n2", "n3")
    lab.cut.add("n1")
    lost = begin(lab["n1"], *[(b"k%d" % number, b"v") for number in range(50)])
    lab.leader()
    lab.cut.clear()
    lab.tick_until(lambda: "unanswered" not in lost)
    assert lab["n1"]._raft.state is State.FOLLOWER
    answers: list[ConureError | None] = []
    lab.leader().hand_over("n1", answers.append)
    lab.tick_until(lambda: bool(answers))
    assert lab["n1"]._raft.last_index < 50
    outcome = begin(lab["n1"], (b"k", b"w"))
    lab.settle()
    assert outcome == [None]


def test_writes_that_are_held_back_go_to_the_new_leader() -> None:
    lab = cluster("n2", "n3")
    lab.cut.add("n1")
    proposed, held = begin(lab["n1"], (b"k", b"1")), begin(lab["n1"], (b"k", b"2"))
    leader = lab.leader()
    assert [type(error) for error in held] == [NotLeader]  # it stepped down: there is no quorum
    assert proposed == ["unanswered"]
    lab.cut.clear()
    lab.tick_until(lambda: proposed != ["unanswered"])
    assert [type(error) for error in proposed] == [Unavailable]

    lab.tick(5)
    proposed, held = begin(leader, (b"k", b"3")), begin(leader, (b"k", b"4"))
    term = leader._raft.term + 1
    message = Message(MessageType.APPEND, "n1", leader._raft.id, term)
    leader.receive([message])  # n1 leads now
    (error,) = held
    assert isinstance(error, NotLeader)
    assert error.leader_id == "n1"
    assert proposed == ["unanswered"]


def test_writes_that_are_held_back_are_proposed_by_who_leads_again() -> None:
    lab = cluster("n2", "n3")
    later, node = paused(lab), lab["n1"]
    outcomes = [begin(node, (b"k", b"1")), begin(node, (b"k", b"2"))]
    lab.settle()
    with node._monitor.lock:  # loses leadership and has it again before its turn comes
        node._raft._become_follower(node._raft.term)
        node._raft._become_candidate(force=True)
        node._drive()
    lab.settle()
    assert node._raft.state is State.LEADER
    later.act_on()
    lab.settle()
    assert outcomes == [[None], [None]]


@pytest.mark.parametrize("end", ["time", "disk", "failure", "stop"])
def test_writes_that_are_held_back_are_answered_once_however_it_ends(end: str) -> None:
    lab = cluster("n2", "n3", write_timeout=0.2, election_timeout=30.0)
    later, node = paused(lab), lab["n1"]
    proposed = begin(node, (b"k", b"1"))
    held = [begin(node, (b"k", b"2" * 9000), (b"l", b"2")), begin(node, (b"k", b"3"))]
    expected: type[ConureError] = Unavailable
    if end == "time":
        lab.cut |= {"n2", "n3"}
        lab.tick(5)
        assert isinstance(proposed[0], OutcomeUnknown)
    elif end == "disk":
        lab.settle()
        lab.disks["n1"].set_capacity(lab.disks["n1"].used_bytes())
        expected = DiskFull
    elif end == "failure":
        with node._monitor:
            node._fail(CorruptionError("conure.db", 0, "it is torn"))
        assert isinstance(proposed[0], OutcomeUnknown)
    else:
        lab.stop("n1")
        assert isinstance(proposed[0], OutcomeUnknown)
    node.take_gathered()
    later.act_on()
    lab.settle()
    assert [[type(error) for error in each] for each in held] == [[expected] * 2, [expected]]


def test_what_is_held_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conure.cluster.node.MAX_GATHERED_BYTES", 1000)
    lab = cluster("n2", "n3")
    outcomes = [begin(lab["n1"], (b"k", b"v" * 600)) for _ in range(4)]
    assert [type(each[0]) for each in outcomes] == [str, str, str, Unavailable]
    lab.settle()
    assert [each[0] for each in outcomes[:3]] == [None] * 3
    assert begin(lab["n1"], (b"k", b"v")) == ["unanswered"]  # there is room again


def test_a_write_without_a_quorum_is_of_unknown_outcome_in_time() -> None:
    lab = cluster("n2", "n3", write_timeout=1.0)
    lab.cut |= {"n2", "n3"}
    outcome = begin(lab["n1"], (b"k", b"v"))
    lab.tick(21)
    assert isinstance(outcome[0], OutcomeUnknown)
    assert [type(error) for error in read(lab["n1"])] == [NotLeader]


def test_reads_that_lose_their_leader_are_told_at_once() -> None:
    lab = cluster("n2", "n3", barrier_timeout=3600.0)
    lab.cut |= {"n2", "n3"}
    answers = read(lab["n1"])
    lab.tick(30)
    assert [type(error) for error in answers] == [NotLeader]


# -- time, outcomes and what watchers see ----------------------------------------------------------


def test_a_key_expires_by_an_entry_and_everywhere_at_once() -> None:
    lab = cluster("n2", "n3")
    do(lab, Put(b"k", b"v", ttl=1000))
    lab.tick(19)
    assert [value_of(node, b"k") for node in lab.nodes.values()] == [b"v"] * 3
    lab.cut.add("n3")
    lab.tick(4)
    assert value_of(lab.leader(), b"k") is None
    assert value_of(lab["n3"], b"k") == b"v"  # no node finds out by itself
    lab.cut.clear()
    lab.tick(5)
    assert value_of(lab["n3"], b"k") is None
    assert lab["n1"]._store.digest == lab["n3"]._store.digest


def test_a_wall_clock_that_jumps_means_nothing_while_its_node_leads() -> None:
    lab = cluster("n2", "n3")
    do(lab, Put(b"k", b"v", ttl=1000))
    for ahead in (7200.0, -7200.0):
        lab.ahead["n1"] = ahead
        lab.tick(9)
        assert value_of(lab["n1"], b"k") == b"v"
    lab.tick(5)
    assert lab.leader() is lab["n1"]
    assert value_of(lab["n1"], b"k") is None


def test_time_goes_on_at_a_leader_whose_wall_clock_is_behind() -> None:
    lab = cluster("n2", "n3")
    do(lab, Put(b"k", b"v", ttl=1000), Put(b"l", b"v", ttl=60_000))
    lab.ahead = {"n2": -7200.0, "n3": -7200.0}
    before = lab["n1"].time()
    lab.cut.add("n1")
    lab.tick_until(lambda: value_of(lab.leader(), b"k") is None)
    assert lab.leader() is not lab["n1"]
    assert before <= lab.leader().time() < before + 10_000
    assert value_of(lab.leader(), b"l") == b"v"


def test_what_is_due_ends_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conure.cluster.expiring.MAX_EXPIRED", 2)
    lab = cluster("n2")
    do(lab, *[Put(b"%d" % number, b"v", ttl=100) for number in range(5)])
    lab.tick_until(lambda: len(lab["n1"]._store.engine) == 1)  # but for the clock
    kinds = [
        kind for block in lab["n1"]._applying._history.view().blocks for _, kind, *_ in block.events
    ]
    assert kinds == [EventKind.PUT] * 5 + [EventKind.EXPIRE] * 5


def test_an_outcome_is_remembered_by_whoever_leads_next() -> None:
    lab = cluster("n2", "n3")
    facts = {"idempotency_key": b"once", "fingerprint": b"f", "window": 60_000}
    first = do(lab, Increment(b"n", 1), **facts)
    lab.stop("n1")
    again = do(lab, Increment(b"n", 1), **facts)
    assert again == first._replace(repeated=True)
    lab.add("n1")
    lab.tick(20)
    assert value_of(lab["n1"], b"n") == b"1"
    other = do(lab, Increment(b"n", 1), **{**facts, "fingerprint": b"g"})
    assert other.refusal is Refusal.KEY_REUSED


def test_a_session_and_what_it_holds_are_seen_until_it_ends() -> None:
    lab = cluster("n2")
    do(lab, OpenSession(b"s", 1000, True, b"name"))
    token = do(lab, Acquire(b"k", b"s", b"mine")).results[0].number
    lab.tick(3)
    index, record, holder = lab["n2"].look(b"k")
    assert isinstance(record, Record)
    assert (record.mod_revision, record.value, holder) == (token, b"mine", (b"s", token))
    assert index >= token
    _, session = lab["n2"].session(b"s")
    assert isinstance(session, Session)
    assert session.name == b"name"
    lab.tick(25)
    assert lab["n2"].look(b"k")[1:] == (None, None)
    assert lab["n2"].session(b"s")[1] is None
    ((*_, last),) = [b.events for b in lab["n2"]._applying._history.view().blocks]
    _, kind, key, _, _ = last[:5]
    assert (kind, key) == (EventKind.EXPIRE, b"k")


def test_an_arbiter_has_no_state_to_show() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    do(lab, Put(b"k", b"v", ttl=100))
    lab.tick(20)
    for refuses in (lab["a"].pin, lab["a"].backup):
        with pytest.raises(NotLeader):
            refuses()
    assert isinstance(lab["a"].look(b"k")[1], NotLeader)
    assert isinstance(lab["a"].session(b"s")[1], NotLeader)
    assert value_of(lab["n1"], b"k") is None  # it has acknowledged that all the same


def test_only_a_member_with_records_can_be_watched() -> None:
    lab = cluster("n2", "n3")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    lab.add("stranger")
    for node_id in ("n1", "n2", "n3"):
        lab[node_id].check_watchable()
    with pytest.raises(Unavailable, match="an arbiter keeps no records; watch at another"):
        lab["a"].check_watchable()
    with pytest.raises(Unavailable, match="this node is of no cluster; watch at another"):
        lab["stranger"].check_watchable()
    put(lab, b"k", b"v")
    lab.tick(5)
    events = lab["n3"]._applying._history.view()
    assert lab.remove("n3") is None
    lab.tick(5)
    with pytest.raises(Unavailable, match="this node is of no cluster; watch at another"):
        lab["n3"].check_watchable()
    assert lab["n3"]._applying._history.view().floor > events.revision, (
        "those who watch there are ended"
    )
    assert lab["n2"]._applying._history.view().floor == 0


def test_a_log_that_is_damaged_while_it_is_read_ends_the_node_and_sends_nothing() -> None:
    """A follower that was away needs what only the leader's disk still has (S3)."""
    lab = cluster("n2", "n3")
    lab.stop("n3")
    for number in range(20):
        put(lab, b"%02d" % number, bytes(100))
    leader = lab["n1"]
    leader._log._cache.clear()
    assert not leader._raft._log.recent
    segment = leader._log._segments[0]
    for offset in range(segment.offset_of(1), segment.end, 40):
        lab.disks["n1"].corrupt(segment.path, offset)
    lab.sent.clear()
    lab.add("n3")
    lab.tick_until(lambda: "n1" in lab.failed)
    assert isinstance(leader._standing.failure, CorruptionError)
    assert leader._standing.failure.file == segment.path
    assert not [m for m in lab.sent if m.sender == "n1" and m.to == "n3" and m.entries]
    put(lab, b"after", b"the others go on")
    lab.tick(10)
    assert value_of(lab["n3"], b"07") == bytes(100)


def test_an_installed_state_begins_another_history() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("n3")
    lab.tick(20)
    history = lab["n3"]._applying._history
    assert history.floor > lab["n1"]._applying._history.floor
    assert history.events < lab["n1"]._applying._history.events
    put(lab, b"after", b"all")
    lab.tick(5)
    revision, _, key, _, _ = history.view().blocks[-1].events[-1][:5]
    assert (revision, key) == (history.revision, b"after")


# -- leases --------------------------------------------------------------------------------------


def test_a_lease_answers_without_a_message_and_runs_out() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    assert read(lab["n1"]) == [None]  # nothing was delivered in between
    lab.cut |= {"n2", "n3"}
    lab.now += 0.39  # the election time-out, but for a moment
    assert read(lab["n1"]) == []


def test_a_read_without_a_lease_is_confirmed_however_long_the_rounds_of_leases_take() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    node = lab["n1"]

    def far_away(ticks: int) -> None:
        """A message takes a tick, so that a round ends when the next one is asked for already."""
        for _ in range(ticks):
            arriving = lab.under_way.copy()
            lab.under_way.clear()
            lab.now += TICK
            for each in lab.nodes.values():
                each.tick()
            for sender, address, message in arriving:
                receiver = lab.at(address)
                assert receiver is not None
                lab.deliver(sender, receiver, message)

    far_away(10)
    assert node._holds_lease()
    lab.now += 1.0  # it stood still
    assert not node._holds_lease()
    answers = [read(node), read(node)]
    far_away(6)
    assert node._holds_lease()
    assert answers == [[None], [None]]


def test_a_lease_is_void_for_the_rest_of_a_term_with_a_hand_over() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    assert lab["n1"]._holds_lease()
    lab["n1"].hand_over("n2", lambda _: None)
    lab.under_way.clear()
    lab.tick(3)
    assert not lab["n1"]._holds_lease()


def test_a_lease_is_void_when_a_leader_that_was_removed_hands_over() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    assert lab["n1"]._holds_lease()
    lab["n1"].remove("n1", force=True, reply=lambda _: None)
    while "n1" in suffrages(lab["n1"]) or lab["n1"]._raft.commit_index < lab["n1"]._raft.last_index:
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        assert receiver is not None
        lab.deliver(sender, receiver, message)
    assert lab["n1"]._raft.state is State.LEADER  # and somebody was asked to take over
    assert not lab["n1"]._holds_lease()


def test_a_lease_lasts_its_share_of_the_time_out_to_the_moment() -> None:
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    node = lab["n1"]
    seconds = LEASE_SHARE * (8 - 1) * TICK  # of eight ticks, the first of which may be a short one
    assert node._lease.seconds == pytest.approx(seconds)
    since = node._raft.lease_since
    assert since == lab.now
    lab.cut |= {"n2", "n3"}
    lab.now = math.nextafter(since + node._lease.seconds, 0.0)
    assert read(node) == [None]
    lab.now = since + node._lease.seconds
    assert read(node) == []


def test_nobody_leads_while_a_lease_holds_though_clocks_run_apart_as_far_as_they_may() -> None:
    """Those who have promised tick at once, then faster than the leader's clock, and don't wait."""
    lab = cluster("n2", "n3", read_mode="lease")
    lab.tick(3)
    others = [lab["n2"], lab["n3"]]
    begun, held = lab.now, 0
    lab.cut.add("n1")
    lab["n2"]._raft._timeout = lab["n2"]._raft.options.election_ticks
    for number in range(20):
        lab.now = begun + LEASE_SHARE * number * TICK
        for node in others:
            node.tick()
        lab.settle()
        if any(node._raft.state is State.LEADER for node in others):
            break
        held += lab["n1"]._holds_lease()
    assert any(node._raft.state is State.LEADER for node in others)
    assert held == 7
    assert not lab["n1"]._holds_lease()


def test_a_lease_ends_with_its_term_even_if_the_next_ones_are_short() -> None:
    lab = cluster("n2", "n3", read_mode="lease", election_timeout=2.0)
    put(lab, b"k", b"old")
    lab.tick(5)
    node, other = lab["n1"], lab["n2"]
    assert node._holds_lease()
    node.hand_over("n2", lambda _: None)
    lab.settle()
    lab.tick()
    assert other._holds_lease()
    assert begin(other, (b"k", b"new")) == ["unanswered"]
    lab.settle()
    other.hand_over("n1", lambda _: None)
    while node._raft.state is not State.LEADER:
        sender, address, message = lab.under_way.popleft()
        receiver = lab.at(address)
        assert receiver is not None
        lab.deliver(sender, receiver, message)
    assert value_of(node, b"k") == b"old"  # it does not know yet that "new" is committed
    assert read(node) == []


def unequal(**timeouts: float) -> Lab:
    """A cluster of n1, which leads, and others, with these election time-outs and leases."""
    lab = Lab()
    for node_id, seconds in timeouts.items():
        facts: dict[str, Any] = {"read_mode": "lease", "election_timeout": seconds}
        lab.add(node_id, bootstrap=node_id == "n1", **facts)
        if node_id != "n1":
            assert lab.join(node_id) is None
    lab.tick(3)
    return lab


def test_a_lease_is_no_longer_than_the_shortest_promise() -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    node = lab["n1"]
    assert node._lease.seconds == pytest.approx(LEASE_SHARE * (4 - 1) * TICK)
    lab.cut.add("n3")
    lab.tick(30)  # n3 hears nobody: it would vote at once
    assert node._holds_lease()
    lab.cut = {"n1"}
    lab.tick_until(lambda: lab["n2"]._raft.leader_id in ("n2", "n3"))
    assert node._raft.state is State.LEADER
    assert not node._holds_lease()


def test_a_promise_of_a_member_that_is_removed_counts_until_that_is_committed() -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    node = lab["n1"]
    node.remove("n2", force=True, reply=lambda _: None)
    assert "n2" not in suffrages(node)
    assert node._lease.seconds == pytest.approx(LEASE_SHARE * (4 - 1) * TICK)
    lab.settle()
    lab.tick()
    assert node._lease.seconds == pytest.approx(LEASE_SHARE * (20 - 1) * TICK)


def test_unequal_election_timeouts_are_told_once_and_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    lab.tick(50)
    told = [record.getMessage() for record in caplog.records if "election time-out" in record.msg]
    assert sorted(text[:60] for text in told) == [
        "node n1 has an election time-out of 1000 ms, node n2 one of ",
        "node n2 has an election time-out of 200 ms, node n1 one of 1",
    ]
    assert all("--election-timeout" in text for text in told)
    checks = {check: (passes, why) for check, passes, why in lab["n1"].readiness()}
    assert checks["timeouts"] == (True, "n2 has 200 ms, this node 1000 ms")
    checks = {check: (passes, why) for check, passes, why in lab["n2"].readiness()}
    assert checks["timeouts"] == (True, "n1 has 1000 ms, this node 200 ms")
    lab.stop("n2")
    lab.add("n2", read_mode="lease", election_timeout=1.0)
    lab.tick(30)
    checks = {check: (passes, why) for check, passes, why in lab["n1"].readiness()}
    assert checks["timeouts"] == (True, "ok")
    assert lab["n1"]._lease.seconds == pytest.approx(LEASE_SHARE * (20 - 1) * TICK)


def test_a_node_that_does_not_tell_its_election_timeout_is_taken_to_have_the_same() -> None:
    lab = cluster("n2", "n3")
    lease = lab["n1"]._lease
    for said, seconds in ((200, 0.1125), (0, 0.2625), (9000, 0.2625)):
        lease.hear(replace(lab["n2"].greeting(), election_timeout=said))
        assert lease.seconds == pytest.approx(seconds)


def test_what_strangers_say_of_their_election_timeouts_is_bounded_and_counts_for_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster("n2")
    lease, greeting = lab["n1"]._lease, lab["n2"].greeting()
    for number in range(1000):
        lease.hear(replace(greeting, node_id=f"s{number}", election_timeout=100))
    lease.hear(replace(greeting, election_timeout=200))
    assert lease.seconds == pytest.approx(0.1125)
    assert len(lease._told) == MAX_TOLD + 1
    assert caplog.text.count("election time-out") == 1
    lab["n1"].admit("probe", "n1", replace(greeting, election_timeout=300))
    assert lease.seconds == pytest.approx(0.1125)  # who only looks says nothing that counts


def test_what_another_directory_tells_is_not_the_members() -> None:
    """Neither its time-out, of which leases are made, nor what it reads."""
    lab = cluster("n2", "n3", speaks=2)
    node, greeting = lab["n1"], lab["n2"].greeting()
    node._lease.hear(replace(greeting, election_timeout=200))
    other = replace(greeting, incarnation="another", election_timeout=9000, speaks=1)
    node._lease.hear(other)
    assert node._lease.seconds == pytest.approx(0.1125)
    assert "n2 has 200 ms" in node._lease.differences
    members = node._raft.configuration
    member = members.get("n2")
    assert member is not None
    node._versions.hear(other, members)
    assert node._versions.of(member) == greeting.speaks == 2
    node._versions.hear(replace(greeting, speaks=1), members)
    node._versions.hear(replace(other, speaks=9), members)
    assert node._versions.of(member) == 1
    for number in range(1000):
        node._lease.hear(replace(other, incarnation=f"{number}", election_timeout=100))
        node._versions.hear(replace(other, incarnation=f"{number}"), members)
    assert node._lease.seconds == pytest.approx(0.1125)
    assert node._versions.of(member) == 1
    assert len(node._lease._told) <= MAX_TOLD + 3
    assert len(node._versions._said) <= MAX_TOLD + 3


def test_the_time_out_of_a_member_that_comes_back_with_another_directory_is_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = unequal(n1=1.0, n2=0.2, n3=1.0)
    for times in (1, 2):
        lab.tick(30)
        told = [record.getMessage() for record in caplog.records]
        assert sum("node n2 has an election time-out of 200 ms" in text for text in told) == times
        assert lab.remove("n2") is None
        lab.wipe("n2")
        lab.tick(30)
        lab.add("n2", read_mode="lease", election_timeout=0.2)
        assert lab.join("n2") is None


# -- replicas that differ ------------------------------------------------------------------------


def test_a_replica_that_differs_stops_and_stays_stopped() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab["n3"]._store.digest ^= 1
    lab.tick_until(lambda: "n3" in lab.failed)
    assert isinstance(lab["n3"]._standing.failure, Diverged)
    with pytest.raises(Unavailable):
        value_of(lab["n3"], b"k")
    put(lab, b"k", b"w")
    lab.stop("n3")
    with pytest.raises(ForeignDirectory, match="let it join again"):
        lab.add("n3")


def test_a_leader_that_differs_from_the_majority_stops_itself() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab["n1"]._store.digest ^= 1
    lab.tick_until(lambda: "n1" in lab.failed)
    assert not lab.failed & {"n2", "n3"}
    put(lab, b"k", b"w")


def test_a_leader_that_differs_does_not_end_those_that_are_right() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(5)
    lab.stop("n3")
    lab["n1"]._store.digest ^= 1
    lab.tick(100)
    assert lab.failed == set()  # one says this, one says that
    lab.add("n3")
    lab.tick_until(lambda: bool(lab.failed))
    assert lab.failed == {"n1"}


def test_a_leader_that_can_not_note_that_it_differs_ends_all_the_same() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab["n1"]._store.digest ^= 1
    lab.disks["n1"].set_capacity(0)
    pending: list[ConureError | None] = []
    lab.tick_until(lambda: "n1" in lab.failed)
    assert isinstance(lab["n1"]._standing.failure, Diverged)
    assert pending == []


def test_a_leader_is_followed_in_its_term_and_with_its_directory_only() -> None:
    raft = cluster("n2")["n2"]._raft
    message = Message(MessageType.AUDIT, "n1", "n2", raft.term, index=1)
    assert raft.follows(message)
    assert raft.follows(replace(message, incarnation=raft.leader_incarnation))
    for change in ({"term": raft.term - 1}, {"sender": "n3"}, {"incarnation": "another"}):
        assert not raft.follows(replace(message, **change))


def test_only_who_leads_now_decides_that_a_replica_differs() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(3)
    node, term = lab["n2"], lab["n1"]._raft.term
    node._audits._told = ("n1", term, node._store.applied_index)
    for sender, said in (("n3", term), ("n1", term - 1), ("n1", term)):
        assert node._standing.failure is None
        verdict = Message(MessageType.AUDIT, sender, "n2", said, index=node._store.applied_index)
        verdict.reject, verdict.context = True, node._store.digest ^ 1
        node.receive([verdict])
    assert isinstance(node._standing.failure, Diverged)


def test_a_verdict_that_answers_nothing_ends_nobody() -> None:
    """It would be for good: only the leader that was told the digest may say that it is wrong."""
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(30)
    raft, store = lab["n3"]._raft, lab["n3"]._store
    told, lab["n3"]._audits._told = lab["n3"]._audits._told, ("", 0, 0)
    for sender, term in (("n1", raft.term), ("n2", raft.term), ("n1", 0), ("n1", 1 << 63)):
        verdict = Message(MessageType.AUDIT, sender, "n3", term, index=store.applied_index)
        verdict.context, verdict.reject = store.digest ^ 1, True
        lab["n3"].receive([verdict])
    lab["n3"]._audits._told = told
    for sender, index in (("n2", told[2]), ("n1", told[2] + 1), ("n1", (1 << 64) - 1)):
        verdict = Message(MessageType.AUDIT, sender, "n3", raft.term, index=index)
        verdict.context, verdict.reject = store.digest ^ 1, True
        lab["n3"].receive([verdict])
    assert lab.failed == set()


def test_what_a_former_life_of_a_member_says_of_its_digest_counts_for_nothing() -> None:
    """Nor is a question answered, or a verdict taken, of one of the leader's."""
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick_until(lambda: lab["n1"]._audits.current.index == lab["n1"]._store.applied_index)
    raft, audit, store = lab["n1"]._raft, lab["n1"]._audits.current, lab["n2"]._store
    answer = Message(MessageType.AUDIT_RESPONSE, "n2", "n1", raft.term, index=audit.index)
    answer.context, answer.incarnation = store.digest ^ 1, "a former one"
    lab["n1"].receive([answer])
    assert not audit.differs
    for is_verdict in (False, True):
        lab.sent.clear()
        told = Message(MessageType.AUDIT, "n1", "n2", raft.term, index=audit.index)
        told.reject, told.context, told.incarnation = is_verdict, store.digest ^ 1, "a former one"
        lab["n2"].receive([told])
        assert (lab.sent, lab.failed) == ([], set())
    answer.incarnation = lab["n2"].greeting().incarnation
    lab["n1"].receive([answer])
    assert audit.differs


def test_what_a_leader_was_told_before_it_lost_its_office_condemns_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    node = lab["n1"]
    lab.tick_until(lambda: node._audits.current.index == node._store.applied_index)
    index, wrong = node._audits.current.index, node._store.digest ^ 1
    answer = Message(MessageType.AUDIT_RESPONSE, "n2", "n1", node._raft.term, index=index)
    answer.context = wrong
    node.receive([answer])
    assert node._audits.current.differs
    for node_id in ("n3", "n1"):
        answers: list[ConureError | None] = []
        lab.leader().hand_over(node_id, answers.append)
        lab.tick_until(lambda answers=answers: bool(answers))  # type: ignore[misc]
        assert answers == [None]
    lab.tick(50)
    assert lab.leader() is node
    assert not [message for message in caplog.messages if "differ" in message]


def test_busy_replicas_are_compared_at_marks() -> None:
    lab = cluster("n2", "n3")
    for first in range(0, 1100, 100):
        outcome = begin(lab["n1"], *[(b"%d" % n, b"v") for n in range(first, first + 100)])
        lab.settle()
        assert outcome == [None] * 100
    lab.tick(2)
    assert lab["n2"]._store.last_mark()[0] == 1024
    lab["n2"]._store._marks[1024] ^= 1
    lab.tick_until(lambda: "n2" in lab.failed)


# -- the log and snapshots -----------------------------------------------------------------------


def checkpoint(node: Node) -> None:
    node._upkeep.checkpoint(0.0)
    node._upkeep.prepare()
    assert node._standing.failure is None


def test_a_lone_node_cuts_its_log_at_each_checkpoint_others_keep_a_tail() -> None:
    lone = cluster()
    put(lone, b"k", b"v")
    checkpoint(lone["n1"])
    assert lone["n1"]._log.snapshot.index == lone["n1"]._store.applied_index
    lab = cluster("n2", "n3")
    node = lab["n1"]
    seen = [node._log.snapshot.index]
    for number in range(4):
        before = node._store.engine.applied_index
        put(lab, b"k", b"%d" % number)
        checkpoint(node)
        assert node._log.snapshot.index == before
        seen.append(node._log.snapshot.index)
    assert seen[-1] > seen[0]


def test_a_node_that_was_away_for_a_moment_gets_the_entries_that_it_lacks() -> None:
    lab = cluster("n2", "n3")
    node = lab["n1"]
    lab.tick(5)
    lab.stop("n3")
    has = node._log.last_index
    for number in range(4):
        put(lab, b"%d" % number, b"v")
        checkpoint(node)
    assert node._log.snapshot.index <= has < node._store.engine.applied_index
    lab.sent.clear()
    lab.add("n3")
    lab.tick(20)
    assert value_of(lab["n3"], b"3") == b"v"
    assert MessageType.SNAPSHOT not in {message.type for message in lab.sent}


def test_a_node_that_was_away_for_long_gets_the_whole_state() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    assert lab["n1"]._log.snapshot.index > 20
    lab.add("n3")
    lab.tick(20)
    assert lab["n3"]._store.digest == lab["n1"]._store.digest
    assert list(lab["n3"]._store.engine.items()) == list(lab["n1"]._store.engine.items())
    lab["n3"]._store.engine.check()
    lab["n3"]._log.check()
    put(lab, b"after", b"all")
    lab.tick(5)
    lab.stop("n3")
    lab.add("n3")
    assert value_of(lab["n3"], b"05") == b"45"


def test_a_state_takes_the_place_of_what_waits_to_be_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    busy = lab["n3"]
    lab.later["n3"] = lambda action, seconds: None
    with monkeypatch.context() as patch:
        patch.setattr(busy._applying, "apply_some", list)
        put(lab, b"00", b"waits")
        lab.tick(2)
        assert busy._applying.backlog
        lab.cut.add("n3")
        for number in range(60):
            put(lab, b"%02d" % (number % 20), b"%d" % number)
            checkpoint(lab["n1"])
        lab.cut.clear()
        lab.tick_until(lambda: busy._store.applied_index >= lab["n1"]._log.snapshot.index)
    put(lab, b"after", b"all")
    lab.tick_until(lambda: value_of(busy, b"after") == b"all")
    assert value_of(busy, b"00") == b"40"


def test_an_arbiter_that_was_away_for_long_begins_behind_the_cut() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a") is None
    lab.stop("a")
    for number in range(30):
        put(lab, b"k", b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("a", role="arbiter")
    lab.tick(20)
    assert lab["a"]._log.snapshot.index > 20
    lab.stop("n2")
    put(lab, b"k", b"with the arbiter")


def test_an_arbiter_cuts_its_log_of_positions() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter", checkpoint_log_bytes=500)
    assert lab.join("a") is None
    for number in range(60):
        put(lab, b"k", b"%d" % number)
        lab["a"].housekeep()
    assert lab["a"]._log.snapshot.index > 20
    lab.stop("a")
    lab.add("a", role="arbiter", checkpoint_log_bytes=500)
    put(lab, b"k", b"v")


def test_a_state_that_no_leader_sends_is_dropped() -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(3)
    state = lab["n1"]._store.snapshot()
    for sender, configuration in (("n1", b"\xff"), ("n3", state.meta.configuration)):
        meta = SnapshotMeta(10_000, lab["n1"]._raft.term, configuration)
        message = Message(MessageType.SNAPSHOT, sender, "n2", lab["n1"]._raft.term, snapshot=meta)
        header = SnapshotHeader(message, state.digest, 0, sender)
        with pytest.raises(ProtocolViolation):
            lab["n2"].begin_snapshot(header)
        assert staged(lab, "n2") == []
    meta = replace(meta, configuration=state.meta.configuration)
    message = replace(message, sender="n1", snapshot=meta)
    incoming = lab["n2"].begin_snapshot(SnapshotHeader(message, state.digest, 0, "late"))
    assert incoming is not None
    lab["n1"].hand_over("n3", lambda _: None)
    lab.tick_until(lambda: lab["n2"]._raft.leader_id == "n3")
    incoming.finish()
    state.reader.close()
    assert lab.failed == set()
    assert staged(lab, "n2") == []
    put(lab, b"k", b"w")
    lab.tick(3)
    assert value_of(lab["n2"], b"k") == b"w"


def test_a_state_that_was_given_up_amid_its_end_is_not_installed() -> None:
    """Another transfer takes its place while it is made durable; both are as of one index."""
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(3)
    node, term = lab["n2"], lab["n1"]._raft.term
    meta = SnapshotMeta(10_000, term, lab["n1"]._store.configuration)
    message = Message(MessageType.SNAPSHOT, "n1", "n2", term, snapshot=meta)
    first = node.begin_snapshot(SnapshotHeader(message, 0, 0, "1"))
    assert first is not None
    finished = first._finished

    next_header = SnapshotHeader(message, 0, 0, "2")
    begun: list[IncomingSnapshot | None] = []

    def late(incoming: IncomingSnapshot) -> None:
        # Its lock is held no more: the next transfer begins, and discards this one.
        begun.append(node.begin_snapshot(next_header))
        finished(incoming)

    first._finished = late
    first.finish()
    assert lab.failed == set()
    assert begun[0] is not first
    assert node.begin_snapshot(next_header) is begun[0]  # and goes on
    assert node._raft.commit_index < meta.index
    assert value_of(node, b"k") == b"v"
    assert len(staged(lab, "n2")) == 1
    put(lab, b"k", b"w")
    lab.tick(3)
    assert value_of(node, b"k") == b"w"


def test_a_leader_that_was_does_not_displace_the_state_that_the_present_one_sends() -> None:
    lab = cluster("n2", "n3")
    node, term = lab["n2"], lab["n1"]._raft.term
    meta = SnapshotMeta(10_000, term - 1, lab["n1"]._store.configuration)
    first = node.begin_snapshot(header(lab, 10_000, "1"))
    old = Message(MessageType.SNAPSHOT, "n3", "n2", term - 1, snapshot=meta)
    with pytest.raises(Refused):
        node.begin_snapshot(SnapshotHeader(old, 0, 1, "2"))
    assert first is not None
    assert node.begin_snapshot(first.header) is first


def test_a_state_that_is_not_needed_is_not_received() -> None:
    lab = cluster("n2")
    put(lab, b"k", b"v")
    lab.tick(3)
    known = lab["n2"]._raft.commit_index
    assert lab["n2"].begin_snapshot(header(lab, known, "1")) is None
    assert staged(lab, "n2") == []
    assert lab["n2"].begin_snapshot(header(lab, known + 1, "2")) is not None


def test_an_installed_state_tells_who_the_members_are() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    lab.add("n4", checkpoint_log_bytes=500)
    assert lab.join("n4") is None
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("n3", checkpoint_log_bytes=500)
    assert lab["n3"]._roster.members.get("n4") is None
    lab.tick(20)
    assert lab["n3"]._log.snapshot.index == lab["n3"]._store.applied_index
    assert lab["n3"]._roster.members == lab["n1"]._roster.members
    assert lab["n3"]._roster.members.get("n4") is not None


def test_a_write_whose_end_is_hidden_in_a_snapshot_is_of_unknown_outcome() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500, write_timeout=1000.0)
    old = lab["n1"]
    lab.cut.add("n1")
    outcome = begin(old, (b"k", b"old"))
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab.leader())
    assert outcome == ["unanswered"]
    assert lab.leader()._log.snapshot.index > old._raft.last_index
    lab.cut.clear()
    lab.tick(20)
    assert lab.failed == set()
    assert isinstance(outcome[0], OutcomeUnknown)
    assert old._store.digest == lab.leader()._store.digest
    put(lab, b"k", b"new")
    assert value_of(lab.leader(), b"k") == b"new"


def test_the_log_is_kept_behind_a_state_that_is_on_its_way() -> None:
    """Or whoever gets it would need another one at once, and so on for as long as others write."""
    lab = cluster("n2", "n3")
    lab.stop("n3")
    for number in range(200):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
    for number in range(3):
        put(lab, b"k", b"%d" % number)
        lab.tick()
        checkpoint(lab["n1"])
    lab.add("n3")

    def go_on() -> None:
        """Let time pass, while the state is on its way."""
        lab.now += TICK
        for node in lab.nodes.values():
            node.tick()
        while lab.under_way:
            sender, address, message = lab.under_way.popleft()
            receiver = lab.at(address)
            if receiver is not None:
                lab.deliver(sender, receiver, message)

    for _ in range(20):
        go_on()
    ((_, outgoing),) = lab.snapshots
    assert outgoing.header.message.snapshot is not None
    index = outgoing.header.message.snapshot.index
    lab.stop("n3")  # it answers no more, so that nothing else keeps the log
    for number in range(20):
        begin(lab["n1"], (b"k", b"%d" % number * 10))
        go_on()
        checkpoint(lab["n1"])
    assert lab["n1"]._store.engine.applied_index > index
    assert lab["n1"]._log.snapshot.index <= index
    lab.snapshots.clear()
    outgoing.close()
    lab["n1"].snapshot_sent("n3", None)
    for number in range(2):
        begin(lab["n1"], (b"k", b"%d" % number))
        go_on()
        checkpoint(lab["n1"])
    assert lab["n1"]._log.snapshot.index > index


def staged(lab: Lab, node_id: str) -> list[str]:
    return [name for name in lab.disks[node_id].list("/data") if name.startswith("incoming-")]


def header(lab: Lab, index: int, transfer: str) -> SnapshotHeader:
    """Announce a state of n1 to n2."""
    leader = lab["n1"]
    meta = SnapshotMeta(index, leader._raft.term, leader._store.configuration)
    message = Message(MessageType.SNAPSHOT, "n1", "n2", leader._raft.term, snapshot=meta)
    return SnapshotHeader(message, 0, 1, transfer)


def test_a_state_that_does_not_go_on_leaves_no_file() -> None:
    """Its disk room is not for who announces a state and never sends it."""
    lab = cluster("n2", "n3")
    far = lab["n2"].begin_snapshot(header(lab, 1 << 40, "far"))
    assert far is not None
    rows = [(b"ka", b"v", 1, 1, 1, 0)]
    lab["n2"].housekeep()
    lab.now += transfers.TRANSFER_REST - 1
    far.add(codec.encode_records(rows))
    lab["n2"].housekeep()
    lab.now += transfers.TRANSFER_REST - 1
    lab["n2"].housekeep()
    assert len(staged(lab, "n2")) == 1  # a record has come meanwhile
    lab.now += 2
    lab["n2"].housekeep()
    assert staged(lab, "n2") == []
    with pytest.raises(Refused, match="complete or was given up"):
        far.add(codec.encode_records(rows))


def test_a_state_of_who_leads_no_more_leaves_no_file() -> None:
    lab = cluster("n2", "n3")
    assert lab["n2"].begin_snapshot(header(lab, 1 << 40, "far")) is not None
    lab["n2"].housekeep()
    assert len(staged(lab, "n2")) == 1
    lab["n1"].hand_over("n3", lambda _: None)
    lab.tick_until(lambda: lab["n2"]._raft.leader_id == "n3")
    lab["n2"].housekeep()
    assert staged(lab, "n2") == []


def test_a_state_that_is_needed_no_more_leaves_no_file() -> None:
    lab = cluster("n2")
    first = lab["n2"].begin_snapshot(header(lab, lab["n1"]._raft.last_index + 3, "1"))
    assert first is not None
    assert len(staged(lab, "n2")) == 1
    assert lab["n2"].begin_snapshot(first.header) is first
    second = lab["n2"].begin_snapshot(header(lab, lab["n1"]._raft.last_index + 3, "2"))
    assert second is not first
    assert len(staged(lab, "n2")) == 1
    first.interrupted()
    for number in range(5):
        put(lab, b"k", b"%d" % number)
    lab.tick(3)
    lab["n2"].housekeep()
    assert staged(lab, "n2") == []
    third = lab["n2"].begin_snapshot(header(lab, lab["n1"]._raft.last_index + 3, "3"))
    assert third is not None
    lab.stop("n2")
    assert staged(lab, "n2") == []
    with pytest.raises(Refused):
        third.resume_after()


def test_a_second_transfer_waits_for_the_one_of_an_earlier_term() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=500)
    lab.stop("n3")
    for number in range(60):
        put(lab, b"%02d" % (number % 20), b"%d" % number)
        checkpoint(lab["n1"])
    lab.add("n3")
    for _ in range(20):  # n3 answers, and is sent a state: a long one
        lab.now += TICK
        lab["n1"].tick()
        while lab.under_way:
            sender, address, message = lab.under_way.popleft()
            receiver = lab.at(address)
            assert receiver is not None
            lab.deliver(sender, receiver, message)
    ((_, outgoing),) = lab.snapshots
    incoming = lab["n3"].begin_snapshot(outgoing.header)
    assert incoming is not None
    lab.snapshots.clear()
    with lab["n1"]._monitor.lock:
        lab["n1"]._raft._become_follower(lab["n1"]._raft.term)
        lab["n1"]._raft._become_candidate(force=True)
        lab["n1"]._drive()
    sent = len(lab.sent)
    lab.tick(20)
    assert lab["n1"]._raft.state is State.LEADER
    assert lab["n1"]._transfers.outgoing  # and nothing but this one goes to n3
    assert lab["n3"]._store.digest != lab["n1"]._store.digest
    assert len(lab.sent) > sent
    for chunk in outgoing.chunks(b""):
        incoming.add(chunk)
    incoming.finish()
    outgoing.close()
    lab["n1"].snapshot_sent("n3", incoming.meta.index)
    lab.tick(20)
    assert not lab["n1"]._transfers.outgoing
    assert lab["n3"]._store.digest == lab["n1"]._store.digest


# -- messages ------------------------------------------------------------------------------------


def test_a_snapshot_message_without_its_data_does_nothing() -> None:
    lab = cluster("n2")
    term = lab["n1"]._raft.term
    meta = lab["n1"]._store.meta
    fake = Message(MessageType.SNAPSHOT, "n1", "n2", term, snapshot=meta)
    applied = lab["n2"]._store.applied_index
    lab["n2"].receive([fake])
    assert lab["n2"]._store.applied_index == applied
    assert lab["n2"]._standing.failure is None


def test_a_node_that_was_stopped_takes_nothing_any_more() -> None:
    lab = cluster("n2")
    node, leader = lab["n2"], lab["n1"]
    incoming = node.begin_snapshot(header(lab, 100, "1"))
    assert incoming is not None
    last = leader._raft.last_index
    lab.stop("n2")
    leader.write([(b"k", b"v")], lambda *_: None)
    message = next(m for m in reversed(lab.sent) if m.to == "n2" and m.index >= last)
    node.receive([message])
    node.tick()
    assert lab.failed == set()
    assert isinstance(read(node)[0], Unavailable)


def test_a_follower_without_room_sends_writers_to_the_leader() -> None:
    lab = cluster("n2")
    put(lab, b"k", b"v" * 500)
    lab.tick(3)
    lab.disks["n2"].set_capacity(0)
    lab["n2"]._upkeep.checkpoint(0.0)
    assert lab["n2"]._upkeep.obstacle is not None
    assert [type(error) for error in begin(lab["n2"], (b"k", b"w"))] == [NotLeader]


def test_a_follower_without_room_for_entries_goes_on_when_there_is_some() -> None:
    lab = cluster("n2", "n3")
    lab.disks["n3"].set_capacity(lab.disks["n3"].used_bytes())
    for number in range(60):
        put(lab, b"k%d" % number, b"v" * 1000)
    lab.tick(5)
    assert lab.failed == set()
    assert value_of(lab["n3"], b"k59") is None
    assert value_of(lab["n3"], b"k0") is not None
    assert len(lab["n3"]._log._spares.reserve) == RESERVE_FILES // 2  # the rest isn't for commands
    lab.disks["n3"].set_capacity(None)
    lab.tick(20)
    assert value_of(lab["n3"], b"k59") == b"v" * 1000


def test_last_contact_tells_how_old_a_stale_read_may_be() -> None:
    lab = cluster("n2")
    lab.tick(3)
    assert lab["n1"].last_contact() == 0.0
    lab.now += 2.5
    contact = lab["n2"].last_contact()
    assert contact is not None
    assert 2.5 <= contact < 2.7
    lab.add("n3")
    assert lab["n3"].last_contact() is None


def test_only_a_leader_counts_as_contact() -> None:
    lab = cluster("n2", "n3")
    lab.tick(3)
    lab.now += 2.5
    last = lab["n2"]._raft.last_index
    term = lab["n1"]._raft.term
    request = Message(MessageType.PRE_VOTE, "n3", "n2", term + 1, index=last, log_term=term)
    lab["n2"].receive([request])
    contact = lab["n2"].last_contact()
    assert contact is not None
    assert contact >= 2.5


def test_a_leader_that_lost_its_office_counts_from_then() -> None:
    lab = cluster("n2", "n3")
    lab.tick(3)
    node = lab["n1"]
    lab.cut.add("n1")
    lab.tick_until(lambda: node._raft.state is not State.LEADER)
    assert node.last_contact() == 0.0
    lab.now += 2.5
    assert node.last_contact() == 2.5


# -- what is said at a start ---------------------------------------------------------------------


def test_a_follower_that_was_killed_does_not_seem_to_have_lost_what_its_log_has() -> None:
    """What is committed is known again when a leader has said so, and is applied only then."""
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(5)
    last = lab["n2"]._log.last_index
    del lab.nodes["n2"]
    lab.disks["n2"].restart_process()
    node = lab.add("n2")
    assert node._describe_start() == (
        f"follower in term 2: its log reaches to index {last}; what it has behind index 0 is "
        "applied as soon as a leader confirms it"
    )
    lab.tick_until(lambda: node._store.applied_index >= last)
    lab.stop("n2")  # which leaves a checkpoint
    assert lab.add("n2")._describe_start() == f"follower at index {last}, 1 records"
    del lab.nodes["n1"]
    lab.disks["n1"].restart_process()


def test_an_arbiter_is_not_said_to_have_lost_its_records() -> None:
    lab = cluster("n2")
    lab.add("a", role="arbiter")
    assert lab.join("a", role="arbiter") is None
    put(lab, b"k", b"v")
    lab.tick(5)
    last = lab["a"]._log.last_index
    assert lab["a"]._describe_start() == f"follower at index {last}, no records"


def test_a_node_that_is_alone_has_everything_when_it_says_so() -> None:
    lab = cluster()
    put(lab, b"k", b"v")
    del lab.nodes["n1"]
    lab.disks["n1"].restart_process()
    node = lab.add("n1")
    assert node._describe_start() == f"leader at index {node._log.last_index}, 1 records"


# -- what a member that lies may send --------------------------------------------------------------

LONG = b"k" * 1025
POISON = {
    "garbage": b"garbage",
    "nothing": b"",
    "an unknown operation": b"\x01\x09\x00\x00\x01k",
    "unknown flags": b"\x01\x01\x80\x00\x01kv",
    "half a transaction": codec.encode_transaction(Transaction((), (Put(b"k", b"v"),)))[:-1],
    "a later release's": b"\x02" + codec.encode_put(b"k", b"v")[1:],
    "a key that fits in no page": codec.encode_put(LONG, b"v"),
    "such a key in a transaction": codec.encode_transaction(Transaction((), (Put(LONG, b"v"),))),
}


def forged(node: Node, *entries: tuple[int, bytes], term: int = 0) -> Message:
    """An APPEND of a member that says it leads, with entries that follow the node's log."""
    raft = node._raft
    term = term or raft.term + 5
    last = raft.last_index
    message = Message(MessageType.APPEND, "n2", raft.id, term, last, raft.last_term, last + 9)
    message.entries = [
        Entry(term, last + position, kind, data) for position, (kind, data) in enumerate(entries, 1)
    ]
    return message


def test_messages_that_are_dropped_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    lab = cluster("n2", "n3")
    for _ in range(1000):
        lab["n3"].receive([Message(MessageType.HEARTBEAT, "n2", "n3", 1 << 63)])
    assert len([1 for record in caplog.records if "was dropped" in record.message]) == 1
    lab.tick(25)
    lab["n3"].receive([Message(MessageType.HEARTBEAT, "n2", "n3", 1 << 63)])
    assert caplog.messages[-1] == (
        "a message of n2 was dropped, and 999 before it: n2 sent a HEARTBEAT with a term or an "
        "index that no cluster gets to: term 9223372036854775808, 2 here, index 0"
    )


@pytest.mark.parametrize("data", POISON.values(), ids=POISON)
def test_a_command_that_could_not_be_applied_never_gets_into_a_log(data: bytes) -> None:
    lab = cluster("n2", "n3")
    put(lab, b"k", b"v")
    lab.tick(5)
    before = {n: (node._raft.term, node._log.last_index) for n, node in lab.nodes.items()}
    for node_id in ("n1", "n3"):
        good = (COMMAND, codec.encode_put(b"a", b"b"))
        lab[node_id].receive([forged(lab[node_id], (NOOP, b""), good, (COMMAND, data))])
    assert before == {n: (node._raft.term, node._log.last_index) for n, node in lab.nodes.items()}
    for node_id in ("n1", "n3"):
        lab.stop(node_id)
        lab.add(node_id)
    put(lab, b"k", b"w")
    assert lab.failed == set()


def test_members_at_no_address_never_get_into_a_log() -> None:
    lab = cluster("n2", "n3")
    for url in ("http://evil.example\r\nSet-Cookie: x=y\r\nX: ", "http://\u20ac", "ftp://h"):
        members = Configuration((Server("n1", "n1:7001"), Server("n2", "n2:7001", url))).encode()
        before = lab["n3"]._raft.term, lab["n3"]._log.last_index
        lab["n3"].receive([forged(lab["n3"], (CONFIG, members))])
        assert before == (lab["n3"]._raft.term, lab["n3"]._log.last_index)
    put(lab, b"k", b"v")
    assert lab.failed == set()


@pytest.mark.parametrize("name", ["n" * 256, "ö" * 128, "n\n2"])
def test_members_that_no_message_can_name_never_get_into_a_log(name: str) -> None:
    """A leader couldn't write to them: the length of a name has one byte."""
    lab = cluster("n2", "n3")
    for server in (Server(name, "n9:7001"), Server("n9", "n9:7001", incarnation=name)):
        members = Configuration((Server("n1", "n1:7001"), server)).encode()
        before = lab["n3"]._raft.term, lab["n3"]._log.last_index
        lab["n3"].receive([forged(lab["n3"], (CONFIG, members))])
        assert before == (lab["n3"]._raft.term, lab["n3"]._log.last_index)
    put(lab, b"k", b"v")
    assert lab.failed == set()


def test_whatever_a_member_sends_a_node_lives_and_starts_again() -> None:
    """Valid and impossible messages of every type, by one that knows all there is to know."""
    rng = random.Random(7)
    lab = cluster("n2", "n3", page_size=4096)  # the smallest there can be, by the settings
    lab.cut |= {"n1", "n2"}
    far = [0, 1, 1 << 61, (1 << 62) - 1, 1 << 62, (1 << 64) - 1]
    members = lab["n1"]._raft.configuration.encode()
    fine = [codec.encode_put(b"k", b"v"), codec.encode_delete(b"k")]
    fine += [_random_transaction(rng) for _ in range(60)]
    taken = 0
    for number in range(1500):
        raft = lab["n3"]._raft
        kind = rng.choice([*MessageType, *[MessageType.APPEND] * 12])
        message = Message(kind, "n2", "n3", raft.term + rng.choice([0, 0, 1]))
        message.index, message.log_term = raft.last_index, raft.last_term
        message.commit = raft.last_index + rng.randrange(3)
        term, datas = message.term, fine
        if rng.random() < 0.6:  # something is wrong
            near = [raft.last_index + n for n in (-1, 0, 1, 9)]
            message.term = rng.choice([raft.term - 1, *[message.term] * 4, *far])
            message.index = rng.choice([raft.last_index, *near, *far])
            message.log_term = rng.choice([*[raft.last_term] * 4, 0, raft.term, *far])
            message.commit, message.hint = rng.choice([*near, *far]), rng.choice([*near, *far])
            message.context = rng.choice(far)
            message.reject, message.force = rng.random() < 0.3, rng.random() < 0.3
            term = rng.choice([*[message.term] * 5, 0, *far])
            datas = [*fine, *POISON.values(), members, rng.randbytes(30)]
        message.entries = [
            Entry(term, message.index + position, rng.choice([COMMAND, COMMAND, NOOP]), data)
            for position, data in enumerate(rng.choices(datas, k=rng.randrange(4)), 1)
        ]
        if message.entries and rng.random() < 0.1:
            message.entries[-1].kind = CONFIG
        if kind is not MessageType.SNAPSHOT:  # its state comes by another way
            before = raft.last_index
            with contextlib.suppress(errors.WireError, struct.error):  # no frame can hold it
                lab["n3"].receive([frames.decode_message(frames.encode_message(message))])
            taken += raft.last_index > before
        lab.tick(rng.randrange(2))
        assert lab.failed == set(), message
        if number % 100 == 99:
            lab.stop("n3")
            lab.add("n3", page_size=4096)
    assert taken > 100


def _random_transaction(rng: random.Random) -> bytes:
    """A command that can be read, with numbers and keys at their ends."""
    numbers = [0, 1, 3, (1 << 63) - 1, (1 << 64) - 1]
    keys = [b"k", b"\0", b"\xff" * 1024, b"a"]
    sessions = [b"", b"s", b"\xff" * 255]
    operations: list[Operation] = []
    for _ in range(rng.randrange(4)):
        key, session, number = rng.choice(keys), rng.choice(sessions), rng.choice(numbers)
        operations += rng.sample(
            [
                Put(key, rng.randbytes(9), number, rng.random() < 0.5),
                Increment(key, rng.choice([-(1 << 63), -1, 0, 1, (1 << 63) - 1])),
                Acquire(key, session, rng.choice([None, b"v"])),
                Release(key, session, None),
                OpenSession(session, number, rng.random() < 0.5, b"name"),
                RenewSession(session),
                EndSession(session),
                Touch(key, number),
                Delete(key),
                DeleteRange(key, rng.choice([None, b"z"]), number),
                Get(key),
                Range(b"", None, number, rng.random() < 0.5, rng.random() < 0.5),
                Expire(number),
            ],
            2,
        )
    compares = [
        Compare(b"k", Target.VERSION, rng.choice([*Relation]), rng.choice(numbers)),
        Compare(b"k", Target.VALUE, rng.choice([*Relation]), b"v"),
    ]
    return codec.encode_transaction(
        Transaction(
            tuple(compares[: rng.randrange(3)]),
            tuple(operations),
            tuple(operations[:1]),
            rng.choice(numbers),
            rng.choice([b"", b"i", b"\xff" * 255]),
            b"f",
            rng.choice(numbers),
        )
    )


# -- members that read different versions ----------------------------------------------------------


@pytest.fixture
def second_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release whose puts of keys that begin with 2 are commands of version 2.

    Whether a node reads them is in its options: here, one program plays two releases.
    """
    put, decode, check = codec.encode_put, codec.decode_command, codec.check_command

    def encode(key: bytes, value: bytes) -> bytes:
        return b"\x02" + put(key, value)[1:] if key[:1] == b"2" else put(key, value)

    monkeypatch.setattr(codec, "encode_put", encode)
    monkeypatch.setattr(codec, "decode_command", lambda data: decode(b"\x01" + data[1:]))
    monkeypatch.setattr(codec, "check_command", lambda data: check(b"\x01" + data[1:]))


def spoken(node: Node) -> str:
    return node.raft_stats()["speaks"]


def test_who_has_no_time_to_apply_takes_no_more_than_it_may_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conure.cluster.intake.MAX_UNAPPLIED", 5)
    lab = cluster("n2", "n3")
    busy = lab["n3"]
    lab.later["n3"] = lambda action, seconds: None
    with monkeypatch.context() as patch:
        patch.setattr(busy._applying, "apply_some", list)
        for number in range(30):
            put(lab, b"%d" % number, b"v")
        assert 5 < len(busy._applying.backlog) < 15
        assert busy._log.last_index < lab["n1"]._log.last_index
    lab.tick_until(lambda: value_of(busy, b"29") == b"v")
    assert busy._log.last_index == lab["n1"]._log.last_index


def try_put(lab: Lab, *keys: bytes) -> list[Ended]:
    ended = begin(lab.leader(), *[(key, b"v") for key in keys])
    lab.tick_until(lambda: "unanswered" not in ended)
    return ended


@pytest.mark.usefixtures("second_version")
def test_nothing_newer_is_proposed_than_what_every_member_reads() -> None:
    lab = cluster("n2", "n3", speaks=2)
    lab.stop("n3")
    lab.add("n3", speaks=1)  # put back to the release before
    put(lab, b"1", b"v")
    assert spoken(lab["n1"]) == '{"n1": 2, "n2": 2, "n3": 1}'
    plain, newer = begin(lab["n1"], (b"1", b"w")), begin(lab["n1"], (b"2", b"v"))
    lab.settle()
    assert plain == [None]
    assert isinstance(newer[0], Conflict)
    assert str(newer[0]) == (
        "this needs format version 2, and n3 reads up to 1; "
        "upgrade it, or remove it from the cluster"
    )
    lab.stop("n3")  # upgraded
    (still,) = try_put(lab, b"2")
    assert isinstance(still, Conflict)  # what it said last holds until it says something else
    lab.add("n3", speaks=2)
    lab.tick(5)
    assert try_put(lab, b"2") == [None]
    assert value_of(lab["n1"], b"2") == b"v"
    lab.tick(5)
    assert value_of(lab["n3"], b"2") == b"v"


@pytest.mark.usefixtures("second_version")
def test_a_member_counts_for_what_it_has_said_since_this_node_started() -> None:
    lab = cluster("n2", "n3", speaks=2)
    assert lab.join("n3", voter=True) is None
    lab.stop("n3")
    for node_id in ("n1", "n2"):
        lab.stop(node_id)
    for node_id in ("n1", "n2", "n4"):
        lab.add(node_id, speaks=2)
    (ended,) = try_put(lab, b"2")
    assert isinstance(ended, Conflict)
    assert "n3 has not said yet what it reads; start it, or remove it" in str(ended)
    assert '"n3": null' in spoken(lab.leader())
    put(lab, b"1", b"v")
    assert lab.join("n4") is None  # what every release reads goes on
    assert lab.remove("n3") is None  # the remedy
    assert try_put(lab, b"2") == [None]


@pytest.mark.usefixtures("second_version")
@pytest.mark.parametrize("role", ["data", "arbiter"])
def test_learners_and_arbiters_are_members_too(role: str) -> None:
    lab = cluster("n2", speaks=2)
    lab.add("x", role=role)
    assert lab.join("x", role=role, voter=role == "arbiter") is None
    (ended,) = try_put(lab, b"2")
    assert isinstance(ended, Conflict)
    lab.stop("x")
    lab.add("x", role=role, speaks=2)
    lab.tick(5)
    assert try_put(lab, b"2") == [None]


@pytest.mark.usefixtures("second_version")
def test_another_life_of_a_member_has_said_nothing() -> None:
    """What the one before said of itself is not its word."""
    lab = cluster("n2", "n3", speaks=2)
    versions, members = lab["n1"]._versions, lab["n1"]._raft.configuration
    versions.check(2, members)
    server = members.get("n3")
    assert server is not None
    with pytest.raises(Conflict, match="n3 has not said yet"):
        versions.check(2, members.with_server(replace(server, incarnation="another")))


@pytest.mark.usefixtures("second_version")
def test_who_reads_less_than_the_log_holds_takes_no_part() -> None:
    lab = cluster("n2", "n3", speaks=2)
    assert try_put(lab, b"2", b"1") == [None, None]
    lab.tick(5)
    for node_id in ("n1", "n2"):  # what the log holds is known after a restart
        lab.stop(node_id)
        lab.add(node_id, speaks=2)
        put(lab, b"1", b"w")
    lab.add("n4", speaks=1)
    refusal = lab.join("n4")
    assert isinstance(refusal, Conflict)
    assert "n4 reads formats up to version 1, and the log holds version 2; run a newer" in str(
        refusal
    )
    assert set(suffrages(lab.leader())) == {"n1", "n2", "n3"}
    old = replace(lab["n3"].greeting(), speaks=1)
    for node in (lab["n1"], lab["n2"]):
        with pytest.raises(Refused, match="n3 reads formats up to version 1"):
            node.admit("messages", node._raft.id, old)
        with pytest.raises(Refused, match="the log holds version 2"):
            node.recognise("n3", old)
        node.admit("messages", node._raft.id, lab["n3"].greeting())


@pytest.mark.usefixtures("second_version")
def test_a_join_that_waits_is_refused_if_the_log_holds_more_by_then() -> None:
    lab = cluster("n2", "n3", speaks=2)
    leader = lab.leader()
    lab.add("n4", speaks=2)
    lab.add("n5", speaks=1)
    lab.cut |= {"n2", "n3"}
    answers: dict[str, ConureError | None] = {}
    for node_id in ("n4", "n5"):  # the second one waits for the first
        reply = partial(answers.__setitem__, node_id)
        leader.join(node_id, f"{node_id}:7001", "", voter=True, role="", reply=reply)
    written = begin(leader, (b"2", b"v"))
    assert leader._versions.logged == 2
    lab.cut.clear()
    lab.tick(20)
    assert (written, answers["n4"]) == ([None], None)
    assert "n5 reads formats up to version 1, and the log holds version 2" in str(answers["n5"])
    assert set(suffrages(lab.leader())) == {"n1", "n2", "n3", "n4"}


@pytest.mark.usefixtures("second_version")
def test_an_older_release_does_not_skip_what_it_can_not_read() -> None:
    """With the entry in its log it ends and says what to run; with the state, it doesn't start."""
    lab = cluster("n2", "n3", speaks=2)
    assert try_put(lab, b"2") == [None]
    lab.tick(5)
    node = lab["n3"]
    node._log.close()  # killed: the entry is in the log and not in the tree's file
    node._store.engine.close()
    node._directory.close()
    del lab.nodes["n3"]
    lab.add("n3", speaks=1)
    lab["n3"].receive([Message(MessageType.HEARTBEAT, "n1", "n3", lab["n1"]._raft.term, commit=99)])
    assert lab.failed == {"n3"}
    assert isinstance(lab["n3"]._standing.failure, VersionTooNew)
    assert "run a release of ConureDB that speaks version 2" in str(lab["n3"]._standing.failure)
    lab.failed.clear()
    lab.stop("n3")
    lab.add("n3", speaks=2)
    lab.tick(5)
    assert value_of(lab["n3"], b"2") == b"v"
    lab.stop("n3")
    with pytest.raises(VersionTooNew, match="the state is of format version 2"):
        lab.add("n3", speaks=1)


@pytest.mark.usefixtures("second_version")
def test_a_received_state_tells_what_it_takes_to_read_it() -> None:
    lab = cluster("n2", "n3", checkpoint_log_bytes=1, speaks=2)
    lab.cut.add("n3")
    assert try_put(lab, b"2") == [None]
    _make_the_log_forget(lab)
    lab.cut.clear()
    lab.tick_until(lambda: value_of(lab["n3"], b"2") == b"v")
    assert lab["n3"]._log.snapshot.index > 0
    with pytest.raises(Refused, match="the log holds version 2"):
        lab["n3"].admit("probe", "n3", replace(lab["n2"].greeting(), speaks=1))


def _make_the_log_forget(lab: Lab) -> None:
    """Write and checkpoint until a node that is away can only be sent the whole state."""
    away = lab["n3"]._raft.last_index
    for number in range(300):
        put(lab, b"%d" % (100 + number), b"x" * 100)
        for node_id in ("n1", "n2"):
            lab[node_id].housekeep()
        if lab["n1"]._log.first_index > away + 1:
            return
    raise AssertionError("the log was never cut")
