"""The node over a disk that crashes, breaks and runs full at every point of a scripted life.

The script writes, deletes, checkpoints and cuts the log. Whatever happens to it, a later start
has to find each acknowledged write (R8), and for the others one of the values they may have.
"""

from __future__ import annotations

import contextlib
import operator
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from btree import BTree
from conure.cluster import applying, checkpointing
from conure.cluster import node as node_module
from conure.cluster.node import Node, Peers
from conure.cluster.options import NodeOptions
from conure.commands import Committed, Increment, Outcome, Sequential, Transaction
from conure.consensus.messages import Entry, HardState, Message, MessageType
from conure.consensus.raftlog import RaftLog
from conure.errors import (
    Conflict,
    ConureError,
    CorruptionError,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    ForeignDirectory,
    MemberNotFound,
    NotLeader,
    NotRead,
    OutcomeUnknown,
    Unavailable,
)
from conure.fileio import FileSystem, OsFileSystem
from conure.metrics import Registry
from conure.peers.calling import CallReply
from conure.peers.calls import Call
from conure.peers.forming import Question, Shown
from conure.peers.protocol import Greeting
from conure.peers.transfer import Outgoing
from conure.steps import Add
from conure.storage.engine import Record
from raft import Raft
from tests.lab import engines
from tests.lab.answers import outcomes_of, value_of
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash
from tests.lab.engines import of_the_btree
from tests.lab.process import wait_until

MODES: tuple[CrashMode, ...] = ("dropped", "kept", "torn", "random", "random")
Command = tuple[bytes, bytes | None]


class Nobody:
    """The peers of a node that has none: nobody answers."""

    def set_peers(self, peers: Mapping[str, str]) -> None: ...

    def call(self, to: str, call: Call, reply: CallReply, seconds: float) -> bool:
        raise AssertionError("nobody is to be asked")

    def send(self, message: Message) -> None:
        raise AssertionError(f"a lone node wrote to {message.to}")

    def connect(self, node_ids: Iterable[str]) -> None: ...

    def send_snapshot(self, outgoing: Outgoing) -> None:
        raise AssertionError("a lone node sent a snapshot")

    def judge(
        self, believes: Callable[[Greeting, str], bool], expects: Callable[[Greeting], bool]
    ) -> None: ...

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        reply(Unavailable(f"nobody answers at {address} as {node_id}"))

    def ask(
        self, address: str, question: Question, reply: Callable[[Shown | ConureError], None]
    ) -> None:
        raise AssertionError("a node without a list asked who is at " + address)


def options(**changes: Any) -> NodeOptions:
    """Tiny limits, and nothing that happens by time: the script says when."""
    facts: dict[str, Any] = {
        "node_id": "n1",
        "told_node_id": True,
        "data_dir": "/data",
        "raft_address": "127.0.0.1:7001",
        "http_address": "http://127.0.0.1:8081",
        "bootstrap": True,
        "version": "test",
        "engine": engines.current(),
        "page_size": 512,
        "cache_bytes": 1 << 20,
        "log_segment_bytes": 4096,
        "checkpoint_interval": 3600.0,
        "apply_seconds": 3600.0,
    }
    return NodeOptions(**{**facts, **changes})


def open_node(
    fs: FileSystem,
    on_failure: Callable[[], None] = lambda: None,
    peers: Peers | None = None,
    given: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Node:
    """*given* is what else the node is opened with, by name."""
    wired = given or {}
    return Node.open(options(**changes), fs, peers or Nobody(), Registry(), on_failure, **wired)


@contextlib.contextmanager
def started(fs: FileSystem, **changes: Any) -> Iterator[Node]:
    """A node that runs, is whole at the end of the block and stopped after it."""
    node = open_node(fs, **changes)
    try:
        node.start()
        yield node
        rest(node)  # a check is for a tree without a running checkpoint
        check(node)
    finally:
        node.stop()


def rest(node: Node) -> None:
    """End the node's threads."""
    node._stopped.set()
    node._checkpoint_wanted.set()
    for thread in node._threads:
        thread.join()


def assert_failed_by_the_disk(node: Node) -> None:
    """See that a failure was the disk's fault and not a bug that a failure hides."""
    allowed = (type(None), SimulatedCrash, DiskFailed, DiskFull)
    assert isinstance(node._standing.failure, allowed), repr(node._standing.failure)


def check(node: Node) -> None:
    """See that the tree and the log hold what they believe to hold (S3, S4)."""
    node._store.engine.check()
    node._log.check()


def write(node: Node, *commands: Command) -> list[ConureError | None]:
    """Write, and return how each command ended; each has to be answered exactly once."""
    outcomes = outcomes_of(node.write, commands)
    if "unanswered" in outcomes and node._room.unwritten:
        node._room._write_again_at = 0.0  # what a second of waiting would do
    if node._standing.failure is None:  # some may be applied later, by another thread
        wait_until(lambda: "unanswered" not in outcomes)
    answered = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    assert len(answered) == len(commands)
    return answered


def confirm(node: Node) -> list[ConureError | None]:
    answers: list[ConureError | None] = []
    node.confirm_read(answers.append)
    return answers


def found_by(node: Node, check_name: str) -> str:
    return next(found for name, _, found in node.readiness() if name == check_name)


def checkpoint(node: Node) -> None:
    """Do what the checkpointer's thread does, now; pass on how it failed."""
    try:
        node._upkeep.checkpoint(0.0)
        node._upkeep.prepare()
    except Exception as error:
        with node._monitor.lock:
            node._fail(error)
        raise


class Ledger:
    """What a client knows: for each key the values it may have; the first one is acknowledged."""

    def __init__(self) -> None:
        self.possible: dict[bytes, list[bytes | None]] = {}
        self.refused = 0

    def write(self, node: Node, *commands: Command) -> None:
        for key, value in commands:
            self.possible.setdefault(key, [None]).append(value)
        for (key, value), error in zip(commands, write(node, *commands), strict=True):
            known = self.possible[key]
            if error is None:
                del known[: len(known) - 1 - known[::-1].index(value)]
            elif not isinstance(error, OutcomeUnknown):  # a refusal: nothing has changed
                known.remove(value)
                self.refused += 1

    def verify(self, node: Node) -> None:
        found = {key: value_of(node, key) for key in self.possible}
        for key, value in found.items():
            assert value in self.possible[key], (key, value, self.possible[key])
            self.possible[key] = [value]
        held = sum(value is not None for value in found.values())
        assert len(node._store.engine) == held  # and nothing that nobody wrote


def live(node: Node, ledger: Ledger) -> None:
    """The scripted life. Values differ, so that none can be taken for another."""
    number = 0

    def value(size: int) -> bytes:
        nonlocal number
        number += 1
        return b"%d:" % number + bytes([number % 251]) * size

    for turn in range(3):
        for key in range(6):
            ledger.write(node, (b"key%d" % key, value(10)))
        ledger.write(
            node,
            (b"large%d" % turn, value(1500)),
            (b"key1", value(0)),
            (b"key2", None),
            (b"absent", None),
            (b"batch%d" % turn, value(100)),
        )
        checkpoint(node)
        ledger.write(node, (b"key3", None), (b"key3", value(30)))
        ledger.write(node, (b"key4", value(1800)))


def survive(fs: CrashFileSystem, ledger: Ledger) -> None:
    """Start what is left on a disk, compare it with what must be there, and live on."""
    with started(fs) as node:
        ledger.verify(node)
        ledger.write(node, (b"after", b"the crash"))
        assert confirm(node) == [None]
        ledger.verify(node)
    with started(fs) as node:
        ledger.verify(node)


def run_until_it_ends(fs: CrashFileSystem, ledger: Ledger) -> bool:
    """Live until the disk says no; tell whether the whole life was lived."""
    try:
        node = open_node(fs)
    except (SimulatedCrash, DiskFailed, DiskFull):
        return False
    try:
        node.start()
        live(node, ledger)
        if node.liveness()[1]:
            check(node)
    except (SimulatedCrash, DiskFailed, DiskFull):
        return False
    else:
        return node.liveness()[1]
    finally:
        assert_failed_by_the_disk(node)
        with contextlib.suppress(SimulatedCrash, DiskFailed):
            node.stop()


class Witness(Nobody):
    """Reaches one other node, and sees what this node's disk would keep whenever it is written to.

    *kept* has the term and vote of the disk beside each message.
    """

    def __init__(self, fs: CrashFileSystem) -> None:
        self.fs = fs
        self.other: Greeting | ConureError = Unavailable("nobody is there yet")
        self.kept: list[tuple[Message, HardState]] = []

    def send(self, message: Message) -> None:
        raft_log = RaftLog.open(self.fs.after_crash("dropped"), "/data/raft", segment_bytes=4096)
        self.kept.append((message, raft_log.hard_state))
        raft_log.close()

    def probe(
        self,
        address: str,
        node_id: str,
        reply: Callable[[Greeting | ConureError], None],
        known_as: str,
    ) -> None:
        reply(self.other)


# -- crashes and failures at every point -----------------------------------------------------------


def test_the_life_without_any_fault() -> None:
    fs, ledger = CrashFileSystem(), Ledger()
    assert run_until_it_ends(fs, ledger)
    assert ledger.refused == 0
    assert all(len(values) == 1 for values in ledger.possible.values())
    assert fs.syncs > 40
    survive(fs.after_crash("dropped"), ledger)


def sync_points() -> int:
    fs = CrashFileSystem()
    run_until_it_ends(fs, Ledger())
    return fs.syncs


@pytest.mark.parametrize("part", range(4))
def test_a_crash_at_any_sync_loses_nothing_acknowledged(part: int) -> None:
    for sync in range(1 + part, sync_points() + 1, 4):
        fs, ledger = CrashFileSystem(seed=sync), Ledger()
        fs.crash_at_sync = sync
        run_until_it_ends(fs, ledger)
        assert fs.crash_at_sync == 0  # it did happen
        for survivor in fs.survivors(sync):
            possible = {key: list(values) for key, values in ledger.possible.items()}
            again = Ledger()
            again.possible = possible
            survive(survivor, again)


@pytest.mark.parametrize("part", range(4))
def test_any_call_that_fails_ends_the_node_and_loses_nothing(part: int) -> None:
    call, failed = 1 + part, 0
    while True:
        fs, ledger = CrashFileSystem(seed=call), Ledger()
        fs.fail_call(call, "io")
        lived = run_until_it_ends(fs, ledger)
        if fs.failure_is_due:
            break
        failed += not lived
        lost = Ledger()
        lost.possible = {key: list(values) for key, values in ledger.possible.items()}
        survive(fs.after_crash("dropped"), lost)
        fs.restart_process()
        survive(fs, ledger)
        call += 4
    assert failed > 20


@pytest.mark.parametrize("part", range(2))
def test_no_space_for_any_single_call_loses_nothing(part: int) -> None:
    call = 1 + part
    while True:
        fs, ledger = CrashFileSystem(seed=call), Ledger()
        fs.fail_call(call, "full")
        run_until_it_ends(fs, ledger)
        if fs.failure_is_due:
            break
        fs.restart_process()
        survive(fs, ledger)
        call += 2
    assert call > 40


def test_a_disk_of_any_size_refuses_what_does_not_fit_and_goes_on() -> None:
    whole = CrashFileSystem()
    run_until_it_ends(whole, Ledger())
    refusals = 0
    for capacity in range(24 << 10, whole.used_bytes() + 2048, 1024):
        fs, ledger = CrashFileSystem(), Ledger()
        fs.set_capacity(capacity)
        try:
            node = open_node(fs)
            node.start()
        except DiskFull:
            continue
        live(node, ledger)
        assert node.liveness()[1], capacity  # a full disk is no failure
        assert confirm(node) == [None]
        ledger.verify(node)
        check(node)
        refusals += ledger.refused
        fs.set_capacity(None)
        checkpoint(node)
        refused_before = ledger.refused
        ledger.write(node, (b"room", b"again"))
        assert ledger.refused == refused_before
        ledger.verify(node)
        node.stop()
        survive(fs.after_crash("dropped"), ledger)
    assert refusals > 10


def random_life(node: Node, ledger: Ledger, rng: random.Random, seed: int) -> None:
    for number in range(rng.randrange(1, 60)):
        action = rng.random()
        if action < 0.08:
            checkpoint(node)
        elif action < 0.16:
            node._upkeep.prepare()
        else:
            keys = rng.sample(range(12), rng.randrange(1, 5))
            sizes = [rng.choice([None, 0, 5, 90, 300, 2500]) for _ in keys]
            ledger.write(
                node,
                *[
                    (
                        b"%d" % key,
                        None if size is None else b"%d.%d." % (seed, number) + bytes(size),
                    )
                    for key, size in zip(keys, sizes, strict=True)
                ],
            )


@pytest.mark.parametrize("seed", range(10))
def test_lives_that_end_in_a_fault_one_after_the_other(seed: int) -> None:
    """The same disk through many crashes, failures and shortages: what is left has to be right."""
    lives_of_one_disk(seed)


def lives_of_one_disk(seed: int) -> None:
    rng = random.Random(seed)
    fs, ledger = CrashFileSystem(seed), Ledger()
    for generation in range(8):
        fault = rng.choice(["none", "crash", "io", "full"])
        if fault == "crash":
            fs.crash_at_sync = rng.randrange(1, 25)
        elif fault == "io":
            fs.fail_call(rng.randrange(1, 150), "io")
        elif fault == "full":
            fs.set_capacity(fs.used_bytes() + rng.randrange(0, 12_000))
        node = None
        with contextlib.suppress(SimulatedCrash, DiskFailed, DiskFull):
            node = open_node(fs)
            node.start()
            ledger.verify(node)
            random_life(node, ledger, rng, generation)
            if rng.random() < 0.5:
                node.stop()
        if node is not None:
            rest(node)
            assert_failed_by_the_disk(node)
        fs.set_capacity(None)
        fs = fs.after_crash(rng.choice(MODES), rng)
    survive(fs, ledger)


# -- a full disk, step by step ---------------------------------------------------------------------


def test_term_and_vote_are_on_the_disk_before_a_message_that_tells_them() -> None:
    """If the power fails when the vote has left, it is remembered (R1)."""
    fs = CrashFileSystem()
    peers = Witness(fs)
    node = open_node(fs, peers=peers)
    node.recover()
    cluster_id = node.greeting().cluster_id
    peers.other = Greeting("n2", cluster_id, "another disk", "data", "n2:7001", "http://n2:8081")
    node.join("n2", "n2:7001", "", voter=True, role="", reply=lambda _: None)
    term = node.status()["term"]

    def hear(kind: MessageType, **facts: Any) -> None:
        node.receive([Message(kind, "n2", "n1", **{"term": term, **facts})])

    for _ in range(10):  # it is made a voter
        hear(MessageType.HEARTBEAT_RESPONSE)
        hear(MessageType.APPEND_RESPONSE, index=node._raft.last_index)
        node.tick()
    assert node.members()["servers"][1]["suffrage"] == "voter"
    last = {"index": node._raft.last_index, "log_term": term}
    hear(MessageType.VOTE, term=term + 1, force=True, **last)
    answers = [
        (message.reject, disk)
        for message, disk in peers.kept
        if message.type is MessageType.VOTE_RESPONSE
    ]
    assert answers == [(False, HardState(term + 1, "n2"))]
    hear(MessageType.HEARTBEAT, term=term + 1)
    hear(MessageType.TIMEOUT_NOW, term=term + 1)
    asked = [disk for message, disk in peers.kept if message.type is MessageType.VOTE]
    assert asked == [HardState(term + 2, "n1")]
    node.stop()


def test_a_write_that_finds_no_room_in_the_log_is_refused_whole() -> None:
    fs = CrashFileSystem()
    with started(fs) as node:
        assert write(node, (b"k", b"old")) == [None]
        last = node.status()["commit_index"]
        fs.set_capacity(0)
        first, second = write(node, (b"k", b"new"), (b"large", bytes(100_000)))
        assert isinstance(first, DiskFull)
        assert isinstance(second, DiskFull)
        assert (value_of(node, b"k"), value_of(node, b"large")) == (b"old", None)
        assert node.status()["commit_index"] == last
        assert write(node, (b"k", b"small")) == [None]  # there is room for this one
        fs.set_capacity(None)
        assert write(node, (b"large", bytes(100_000))) == [None]


def test_a_checkpoint_without_room_stops_writes_until_there_is_some() -> None:
    fs = CrashFileSystem()
    with started(fs) as node:
        write(node, *[(b"%d" % n, bytes(400)) for n in range(50)])
        fs.set_capacity(fs.used_bytes())
        checkpoint(node)
        (refusal,) = write(node, (b"k", b"v"))
        assert isinstance(refusal, DiskFull)
        assert "writes are refused" in found_by(node, "disk")
        assert all(ok for _, ok, _ in node.readiness())  # reads go on
        assert confirm(node) == [None]
        assert value_of(node, b"7") == bytes(400)
        fs.set_capacity(None)
        node._upkeep._prepare_again_at = 0.0  # what a second of waiting would do
        checkpoint(node)
        assert write(node, (b"k", b"v")) == [None]
        assert found_by(node, "disk") == "ok"


def test_the_node_finds_out_by_itself_that_there_is_room_again() -> None:
    fs = CrashFileSystem()
    with started(fs, checkpoint_entries=30, checkpoint_interval=0.02) as node:
        fs.fail_call(None)
        fs.set_capacity(fs.used_bytes())
        write(node, *[(b"%d" % n, bytes(20)) for n in range(60)])
        wait_until(lambda: isinstance(write(node, (b"k", b"v"))[0], DiskFull))
        fs.set_capacity(None)
        wait_until(lambda: write(node, (b"k", b"v")) == [None])


def test_a_full_log_is_cut_so_that_writes_go_on() -> None:
    fs = CrashFileSystem()
    with started(fs) as node:
        node._upkeep.prepare()
        fs.set_capacity(fs.used_bytes() + 3072)  # too little for a segment, enough for the tree
        refused = 0
        for number in range(300):
            (error,) = write(node, (b"k", b"%d" % number * 100))
            if isinstance(error, DiskFull):
                refused += 1
                wait_until(lambda: write(node, (b"k", b"again")) == [None])
                if refused == 3:
                    break
        assert refused == 3
        assert value_of(node, b"k") is not None


def test_a_shortage_is_told_once_and_shown_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    fs = CrashFileSystem()
    with started(fs) as node:
        fs.set_capacity(fs.used_bytes())
        for _ in range(3):
            node._upkeep.prepare()
        assert caplog.text.count("no room for the next log segment") == 1
        assert "Traceback" not in caplog.text
        assert "no space left" in found_by(node, "disk")
        fs.set_capacity(None)
        node._upkeep._prepare_again_at = 0.0  # what a second of waiting would do
        node._upkeep.prepare()
        assert found_by(node, "disk") == "ok"


# -- what can't be waited for any longer -----------------------------------------------------------


def test_a_write_that_is_not_committed_in_time_is_of_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with started(CrashFileSystem(), write_timeout=0.05) as node:
        answers: list[tuple[int, int, Committed | ConureError]] = []
        with monkeypatch.context() as stuck:
            stuck.setattr(Raft, "ready", lambda _: None)
            node.write([(b"a", b"1"), (b"b", b"2")], lambda *answer: answers.append(answer))
            assert answers == []
            wait_until(lambda: bool(answers))
        start, stop, error = answers[0]
        assert (start, stop) == (0, 2)
        assert isinstance(error, OutcomeUnknown)
        assert write(node, (b"c", b"3")) == [None]
        assert value_of(node, b"a") == b"1"  # it was committed after all, and is answered only once
        assert len(answers) == 1


def test_a_read_that_is_not_confirmed_in_time_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with started(CrashFileSystem(), barrier_timeout=0.05) as node:
        with monkeypatch.context() as stuck:
            stuck.setattr(Raft, "read_index", lambda *_: None)
            answers = confirm(node)
            assert answers == []
            wait_until(lambda: bool(answers))
        assert isinstance(answers[0], Unavailable)
        assert confirm(node) == [None]


def test_a_stop_answers_whoever_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = []
    fs = CrashFileSystem()
    node = open_node(fs)
    node.start()
    with monkeypatch.context() as stuck:
        stuck.setattr(Raft, "ready", lambda _: None)
        node.write([(b"a", b"1")], lambda start, stop, ended: answers.append(ended))
        stuck.setattr(Raft, "read_index", lambda *_: None)
        node.confirm_read(answers.append)
        node.stop()
    assert isinstance(answers[0], OutcomeUnknown)  # the entry exists: nobody may say it doesn't
    assert isinstance(answers[1], Unavailable)
    assert len(answers) == 2


def test_a_failed_disk_is_told_to_everybody_and_final() -> None:
    fs, failures = CrashFileSystem(), []
    node = open_node(fs, on_failure=lambda: failures.append(True))
    node.start()
    assert write(node, (b"k", b"v")) == [None]
    fs.fail_call(2)  # the write itself goes well, the sync fails
    (error,) = write(node, (b"k", b"w"))
    assert isinstance(error, OutcomeUnknown)
    assert failures == [True]
    name, alive, why = node.liveness()
    assert (name, alive) == ("process", False)
    assert "syncing" in why
    (refusal,) = write(node, (b"k", b"x"))
    assert isinstance(refusal, Unavailable)
    assert isinstance(confirm(node)[0], Unavailable)
    with pytest.raises(Unavailable):
        value_of(node, b"k")
    before = fs.calls
    node.stop()
    assert fs.calls == before  # nothing is written any more (S6)
    assert failures == [True]


# -- starting and stopping -------------------------------------------------------------------------


def test_a_stop_leaves_a_checkpoint_of_everything() -> None:
    fs = CrashFileSystem()
    with started(fs) as node:
        write(node, *[(b"%d" % n, b"v") for n in range(20)])
        applied = node.status()["applied_index"]
    with contextlib.closing(open_node(fs)._store.engine) as tree:
        assert tree.applied_index == applied
        assert len(tree) == 20


def test_a_start_applies_what_no_checkpoint_holds() -> None:
    fs = CrashFileSystem()
    node = open_node(fs)
    node.start()
    write(node, (b"before", b"1"))
    checkpoint(node)
    write(node, (b"behind", b"2"), (b"before", None))
    with started(fs.after_crash("dropped")) as again:
        assert (value_of(again, b"before"), value_of(again, b"behind")) == (None, b"2")
        assert again.status()["term"] == node.status()["term"] + 1
    node.stop()


def test_a_directory_has_one_process_and_one_node(tmp_path: Path) -> None:
    fs, here = OsFileSystem(), str(tmp_path / "data")
    with started(fs, data_dir=here), pytest.raises(DirectoryInUse, match="process"):
        open_node(fs, data_dir=here)
    with pytest.raises(ForeignDirectory, match="n1"):
        open_node(fs, data_dir=here, node_id="n2")
    with started(fs, data_dir=here, node_id="n2", told_node_id=False) as node:
        assert node.status()["node_id"] == "n1"


def test_a_node_that_was_not_told_to_begin_waits() -> None:
    fs = CrashFileSystem()
    with started(fs, bootstrap=False) as node:
        (refusal,) = write(node, (b"k", b"v"))
        assert isinstance(refusal, NotLeader)
        assert isinstance(confirm(node)[0], NotLeader)
        assert value_of(node, b"k") is None
        assert node.members() == {
            "leader": "", "quorum_size": None, "quorum": 0, "data_quorum": 0, "servers": []
        }  # fmt: skip
        assert node.status()["cluster_id"] == ""
        assert not all(ok for _, ok, _ in node.readiness())
        assert node.liveness()[1]
    with started(fs, bootstrap=True) as node:  # told later, it begins
        assert write(node, (b"k", b"v")) == [None]
        cluster = node.status()["cluster_id"]
        assert cluster
    with started(fs, bootstrap=True) as node:
        assert node.status()["cluster_id"] == cluster
        assert value_of(node, b"k") == b"v"


def test_a_node_that_moved_says_so_once() -> None:
    fs = CrashFileSystem()
    moved = {"raft_address": "10.0.0.1:7001", "http_address": "http://10.0.0.1:8081"}
    indexes = []
    for changes in ({}, {}, moved, moved):
        with started(fs, **changes) as node:
            indexes.append(node.status()["commit_index"])
            (server,) = node.members()["servers"]
            here = options(**changes)
            assert server["address"] == here.raft_address
            assert server["http_address"] == node.status()["leader_http"] == here.http_address
            assert server["suffrage"] == "voter"
    growth = [after - before for before, after in pairwise(indexes)]
    assert growth == [1, 2, 1]  # the first entry of a term, and one for the move


@pytest.mark.parametrize("keep", ["older tree", "older log", "other log"])
def test_a_tree_and_a_log_that_do_not_belong_together_are_refused(
    tmp_path: Path, keep: str
) -> None:
    fs = OsFileSystem()
    mine, other = tmp_path / "mine", tmp_path / "other"
    with started(fs, data_dir=str(mine)) as node:
        write(node, (b"k", b"v"))
    tree, log = (mine / "conure.db").read_bytes(), copy_of(mine / "raft")
    with started(fs, data_dir=str(mine)) as node:
        write(node, *[(b"%d" % n, b"v") for n in range(100)])
    if keep == "older tree":
        (mine / "conure.db").write_bytes(tree)
    elif keep == "older log":
        replace(mine / "raft", log)
    else:
        for _ in range(5):  # every start is a term of its own
            with started(fs, data_dir=str(other)) as node:
                write(node, *[(b"%d" % n, b"v") for n in range(40)])
        replace(mine / "raft", copy_of(other / "raft"))
    with pytest.raises(CorruptionError, match=r"conure\.db"):
        open_node(fs, data_dir=str(mine))


def test_a_log_whose_segments_were_removed_is_refused(tmp_path: Path) -> None:
    fs = OsFileSystem()
    with started(fs, data_dir=str(tmp_path / "alive")) as node:
        write(node, (b"k", b"v"))
        shutil.copytree(tmp_path / "alive", tmp_path / "killed")  # before any checkpoint
    for segment in (tmp_path / "killed" / "raft").glob("*.log"):
        segment.unlink()
    with pytest.raises(CorruptionError, match="the log is empty"):
        open_node(fs, data_dir=str(tmp_path / "killed"))


def copy_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


# -- members and what is shown -----------------------------------------------------------------


def test_members() -> None:
    def join(node: Node, *facts: str, voter: bool = True, role: str = "data") -> ConureError | None:
        answers: list[ConureError | None] = []
        node.join(*facts, voter=voter, role=role, reply=answers.append)
        (answer,) = answers
        return answer

    def remove(node: Node, node_id: str) -> ConureError | None:
        answers: list[ConureError | None] = []
        node.remove(node_id, force=False, reply=answers.append)
        (answer,) = answers
        return answer

    with started(CrashFileSystem()) as node:
        assert join(node, "n1", "127.0.0.1:7001", "") is None
        assert join(node, "n1", "127.0.0.1:7001", "http://127.0.0.1:8081") is None
        assert isinstance(join(node, "n1", "127.0.0.1:7001", "http://h:1"), Conflict)
        assert isinstance(join(node, "n1", "127.0.0.1:7002", ""), Conflict)
        assert isinstance(join(node, "n1", "127.0.0.1:7001", "", voter=False), Conflict)
        assert isinstance(join(node, "n1", "127.0.0.1:7001", "", role="arbiter"), Conflict)
        assert "nobody answers" in str(join(node, "n2", "127.0.0.1:7002", ""))
        assert isinstance(join(node, "n2", "127.0.0.1:7001", ""), Conflict)
        assert len(node.members()["servers"]) == 1
        assert isinstance(remove(node, "n2"), MemberNotFound)
        assert isinstance(remove(node, "n1"), Conflict)
    with started(CrashFileSystem(), bootstrap=False) as node:
        assert isinstance(join(node, "n1", "127.0.0.1:7001", ""), NotLeader)
        assert isinstance(remove(node, "n1"), NotLeader)


def test_readiness_fails_as_soon_as_a_stop_begins() -> None:
    with started(CrashFileSystem()) as node:
        assert all(ok for _, ok, _ in node.readiness())
        node.begin_stop()
        failing = [name for name, ok, _ in node.readiness() if not ok]
        assert failing == ["stopping"]
        assert node.liveness()[1]
        assert write(node, (b"k", b"v")) == [None]  # requests in flight are still served


def test_metrics_show_what_happens() -> None:
    registry = Registry()
    node = Node.open(options(), CrashFileSystem(), Nobody(), registry, lambda: None)
    node.start()
    write(node, *[(b"%d" % n, b"v") for n in range(5)])
    page = registry.render()
    assert b"conure_db_records 5\n" in page
    assert b"conure_write_batch_size_count 1\n" in page
    assert b"conure_write_batch_size_sum 5" in page
    assert b"conure_raft_is_leader 1\n" in page
    applied = node.status()["applied_index"]
    assert b"conure_raft_applied_index %d\n" % applied in page
    node.stop()


@of_the_btree
def test_metrics_tell_what_the_node_is_made_of() -> None:
    """Each figure beside where it comes from, at a moment when no two of them are the same."""
    registry = Registry()
    fs = CrashFileSystem()
    facts = options(cache_bytes=3000, log_segment_bytes=8192)
    node = Node.open(facts, fs, Nobody(), registry, lambda: None)
    node.start()
    rest(node)
    for number in range(120):
        write(node, (b"%03d" % number, bytes(60)))
    for number in range(0, 120, 3):
        write(node, (b"%03d" % number, None))
    checkpoint(node)
    for number in range(120):
        value_of(node, b"%03d" % number)
    write(node, *((b"%03d" % number, b"") for number in range(7)))
    assert isinstance(node._store.engine, BTree)
    stats, status = node._store.engine.stats(), node.status()
    pool = node._store.engine._pool
    log_files = [fs.contents(f"/data/raft/{n}") for n in fs.list("/data/raft") if n[0] == "0"]
    wanted = {
        "conure_raft_term": status["term"],
        "conure_raft_is_leader": 1,
        "conure_raft_commit_index": status["commit_index"],
        "conure_raft_applied_index": status["applied_index"],
        "conure_log_segments": len(log_files),
        "conure_db_size_bytes": len(fs.contents("/data/conure.db")),
        "conure_db_free_bytes": 512 * stats.free_pages,
        "conure_db_records": 83,
        "conure_db_depth": node._store.engine.check().depth,
        "conure_db_unwritten_pages": len(pool.unwritten),
        "conure_page_cache_bytes": sum(pool._ring.values()),
        "conure_record_cache_bytes": stats.recent_bytes,
        "conure_page_cache_hits_total": stats.cache_hits,
        "conure_page_cache_misses_total": stats.cache_misses,
        "conure_page_cache_evictions_total": stats.evictions,
        'conure_engine_info{engine="btree"}': 1,
        "conure_write_stalls_total": 0,
        "conure_disk_full": 0,
        "conure_checkpoint_duration_seconds_count": 1,
        "conure_write_batch_size_count": 161,
        "conure_write_batch_size_sum": 167,
    }
    page = registry.render().decode()
    shown = {
        line.split()[0]: float(line.split()[1]) for line in page.splitlines() if "#" not in line
    }
    assert {name: shown[name] for name in wanted} == wanted
    assert 0 < shown["conure_log_size_bytes"] <= sum(map(len, log_files))
    assert shown["conure_log_sync_duration_seconds_count"] >= 161
    assert stats.cache_hits != stats.cache_misses != stats.evictions > 0
    node.stop()


# -- threads -----------------------------------------------------------------------------------


def test_checkpoints_run_beside_writes_and_reads(tmp_path: Path) -> None:
    fs = OsFileSystem()
    changes = {"data_dir": str(tmp_path), "checkpoint_entries": 25, "log_segment_bytes": 65536}
    wrong: list[object] = []
    with started(fs, **changes) as node:

        def work(name: bytes) -> None:
            for number in range(150):
                key = b"%b%d" % (name, number % 50)
                if write(node, (key, b"%d" % number)) != [None]:
                    wrong.append(key)
                wait_until(partial(operator.eq, confirm(node), [None]))
                if value_of(node, key) != b"%d" % number:
                    wrong.append(key)

        threads = [threading.Thread(target=work, args=(name,)) for name in (b"a", b"b", b"c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        wait_until(lambda: int(node.raft_stats()["last_snapshot_index"]) > 100)
    with started(fs, **changes) as node:
        for name in (b"a", b"b", b"c"):
            assert all(value_of(node, b"%b%d" % (name, n)) == b"%d" % (n + 100) for n in range(50))


@pytest.mark.parametrize("writes_go_on", [False, True])
def test_a_checkpoint_rests_until_a_restart_would_have_too_much_to_apply(
    monkeypatch: pytest.MonkeyPatch, writes_go_on: bool
) -> None:
    node = open_node(CrashFileSystem(), checkpoint_entries=1000)
    node.recover()
    behind: list[int] = []  # at each rest, what a restart would apply

    def pause(_: float) -> None:
        behind.append(node._store.applied_index - node._store.engine.applied_index)
        if writes_go_on:
            write(node, *[(b"%d" % n, b"again") for n in range(250)])

    write(node, *[(b"%d" % n, bytes(300)) for n in range(1000)])
    monkeypatch.setattr(checkpointing, "sleep", pause)
    node._upkeep.checkpoint(1e-9)
    if writes_go_on:
        assert behind == [1002, 1252, 1502, 1752]
    else:
        assert len(behind) > 10
    node.stop()


def test_a_checkpoint_that_may_not_rest_still_keeps_the_log_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = open_node(CrashFileSystem(), checkpoint_entries=100)
    node.recover()
    write(node, *[(b"%d" % n, bytes(300)) for n in range(1000)])
    prepared: list[None] = []
    monkeypatch.setattr(node._log, "prepare", lambda: prepared.append(None))
    monkeypatch.setattr(checkpointing, "sleep", lambda _: pytest.fail("it rested"))
    node._upkeep.checkpoint(1e-9)
    assert prepared  # or the next writes would have to make their segments themselves
    monkeypatch.undo()
    node.stop()


@of_the_btree
def test_writers_are_slowed_while_changed_pages_take_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brakes: list[float] = []
    bound = 400_000

    def pause(seconds: float) -> None:
        if seconds > node_module.BRAKE:
            brakes.append(seconds)
        else:
            time.sleep(seconds)

    monkeypatch.setattr(node_module, "sleep", pause)
    changes = {"data_dir": str(tmp_path), "max_unwritten_bytes": bound}
    with started(OsFileSystem(), **changes) as node:
        assert write(node, (b"k", b"v")) == [None]
        assert not brakes
        assert write(node, *[(b"%d" % n, bytes(50_000)) for n in range(10)]) == [None] * 10
        assert brakes
        wait_until(lambda: node._store.engine.unwritten_bytes < bound // 2)


# -- reads of many bytes ---------------------------------------------------------------------------


def test_long_values_beyond_a_bound_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with started(CrashFileSystem()) as node:
        values = [(b"a", bytes(5000)), (b"b", b"short"), (b"c", bytes(5000)), (b"d", b"x")]
        assert write(node, *values) == [None] * 4
        keys = [b"a", b"b", b"c", b"none", b"d"]
        read: list[bytes] = []
        get = node._store.get

        def noted(key: bytes) -> Record | None:
            read.append(key)
            return get(key)

        monkeypatch.setattr(node._store, "get", noted)
        _, found = node.get_all(keys, 5000, 100)
        assert read == [b"a", b"b", b"none", b"d"]
        shown = [getattr(each, "value", each) for each in found]
        assert shown[:2] == [bytes(5000), b"short"]
        assert isinstance(shown[2], NotRead)
        assert shown[3:] == [None, b"x"]
        _, found = node.get_all(keys, 0, 100)
        assert [isinstance(each, NotRead) for each in found] == [True, False, True, False, False]
        _, found = node.get_all(keys)
        assert [len(each.value) for each in found if isinstance(each, Record)] == [5000, 5, 5000, 1]


# -- what is committed takes turns -----------------------------------------------------------------


def test_what_is_committed_is_applied_by_and_by() -> None:
    """Reads wait for what they have to see, writes for their own entries, and new ones for both."""
    later: list[Callable[[], None]] = []
    given = {"call_later": lambda action, _: later.append(action)}
    with started(CrashFileSystem(), given=given, apply_seconds=0.0) as node:
        transactions = [Transaction((), (Increment(b"n", 1),)) for _ in range(3)]
        ended: list[tuple[int, int]] = []

        def reply(start: int, stop: int, told: Committed | ConureError) -> None:
            assert isinstance(told, Committed)
            ended.append((start, stop))

        rest(node)  # its timer goes on, too
        before = node._store.applied_index
        node.write(transactions, reply)
        assert node._raft.commit_index == before + 3
        assert ended == []
        answers: list[ConureError | None] = []
        node.confirm_read(answers.append)
        node.write([(b"k", b"v")], reply)
        assert node._raft.last_index == before + 3  # nothing more is proposed meanwhile
        for count in (1, 2, 3):
            assert later.count(node.go_on) == 1
            later.remove(node.go_on)
            assert answers == []
            node.go_on()
            assert node._store.applied_index == before + count
        assert ended[:3] == [(0, 1), (1, 2), (2, 3)]
        assert answers == [None]
        assert value_of(node, b"n") == b"3"
        while later:
            later.pop(0)()
        assert ended[3:] == [(0, 1)]
        assert value_of(node, b"k") == b"v"


def test_a_long_entry_is_seen_whole_or_not_at_all() -> None:
    """No checkpoint begins meanwhile; a node that stops amid it, and one that is started again,
    have the whole of it in the end."""
    fs = CrashFileSystem()
    later: list[Callable[[], None]] = []
    given = {"call_later": lambda action, _: later.append(action)}
    steps = tuple(Add(b"n%d" % (n % 3), 1) for n in range(90))
    with started(fs, given=given, apply_seconds=0.0) as node:
        rest(node)
        node._stopped.clear()
        node._upkeep.checkpoint(0.0)
        node.write([(b"n0", b"5")], lambda *_: None)
        while later:
            later.pop(0)()
        before, durable = node._store.applied_index, node._store.checkpointed_index
        assert durable < before
        ended: list[object] = []
        node.write([Sequential((), steps, 100)], lambda *told: ended.append(told))
        turns = 0
        later.pop(0)()
        while node._store.applied_index == before:
            assert (value_of(node, b"n0"), value_of(node, b"n1")) == (b"5", None)
            state = node.pin()
            assert (state.index, [*state.keys()]) == (before, [b"n0"])
            state.close()
            node._upkeep.checkpoint(0.0)
            assert node._store.checkpointed_index == durable
            later.pop(0)()
            turns += 1
        assert turns > 5
        assert [told[:2] for told in ended] == [(0, 1)]  # type: ignore[index]
        assert [value_of(node, b"n%d" % n) for n in range(3)] == [b"35", b"30", b"30"]
        node._upkeep.checkpoint(0.0)
        assert node._store.checkpointed_index == before + 1
        node.write([Sequential((), steps, 100)], lambda *_: None)
        node.go_on()
        assert node._store.is_amid
    with started(fs) as node:
        assert [value_of(node, b"n%d" % n) for n in range(3)] == [b"65", b"60", b"60"]


def test_a_checkpoint_finds_its_moment_among_long_entries() -> None:
    """A turn ends with an entry that took several, though there is time for a bit of the next."""
    fs = CrashFileSystem()
    later: list[Callable[[], None]] = []
    ticks = count()
    given = {
        "call_later": lambda action, _: later.append(action),
        "clock": lambda: float(next(ticks)),
    }
    steps = tuple(Add(b"n%d" % (n % 3), 1) for n in range(90))
    with started(fs, given=given, apply_seconds=7.0, election_timeout=1e6) as node:
        rest(node)
        node._stopped.clear()
        first = node._store.applied_index + 1
        ended: list[object] = []
        for _ in range(5):
            node.write([Sequential((), steps, 100)], lambda *told: ended.append(told))
        moments, turns = set(), 0
        while node._store.applied_index < first + 4:
            assert turns < 1000
            later.pop(0)()
            turns += 1
            if not node._store.is_amid:
                moments.add(node._store.applied_index)
                node._upkeep.checkpoint(0.0)
                assert node._store.checkpointed_index == node._store.applied_index
        assert turns > 5
        assert moments >= set(range(first, first + 5))


def test_it_is_applied_for_as_long_as_all_else_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower whose clients read without a pause would fall behind without end otherwise."""
    monkeypatch.setattr(applying, "LONG_BACKLOG", 8)
    now = time.monotonic()
    later: list[Callable[[], None]] = []
    given = {"call_later": lambda action, _: later.append(action), "clock": lambda: now}
    with started(CrashFileSystem(), given=given, apply_seconds=0.004) as node:
        rest(node)
        slices: list[float] = []
        apply = node._store.apply

        def noted(entries: Sequence[Entry], is_over: Callable[[], bool]) -> Mapping[int, Outcome]:
            slices.append(round(node._applying._until - now, 3))
            assert not is_over()
            return apply(entries[:1])

        monkeypatch.setattr(node._store, "apply", noted)
        node.write([Transaction((), (Increment(b"n", 1),))] * 11, lambda *_: None)
        for seconds in (0.0, 0.001, 0.006, 0.012, 0.012, 1.0):
            now += seconds
            assert later.pop() == node.go_on
            node.go_on()
        assert slices == [0.004, 0.004, 0.004, 0.012, 0.012, 0.012, 0.016]


def test_a_start_applies_all_of_its_log() -> None:
    fs = CrashFileSystem()
    with started(fs, apply_seconds=0.0) as node:
        assert write(node, *[(b"%d" % n, b"v") for n in range(600)]) == [None] * 600
        node._standing.fail(DiskFailed("no last checkpoint"))
    with started(fs, apply_seconds=0.0) as node:
        assert node._store.records == 600
        node.write([Transaction((), (Increment(b"n", 1),))] * 3, lambda *_: None)


def test_long_values_to_be_reclaimed_keep_nothing_else_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many there are, the log is prepared; a checkpoint is begun when there are none."""
    monkeypatch.setattr(checkpointing, "MAINTAIN_SECONDS", 0.0)
    with started(CrashFileSystem()) as node:
        rest(node)
        node._stopped.clear()
        assert write(node, (b"k", b"v")) == [None]
        tree, left = node._store.engine, [True] * 3
        prepared: list[int] = []
        assert tree.applied_index < node._store.applied_index
        monkeypatch.setattr(tree, "maintain", lambda _: bool(left) and left.pop())
        monkeypatch.setattr(node._upkeep, "is_due", lambda: True)
        monkeypatch.setattr(node._upkeep, "prepare", lambda: prepared.append(len(left)))
        for count in (3, 2, 1):
            node._checkpoint_wanted.clear()
            node.housekeep()
            assert prepared.pop() == count
            assert tree.applied_index < node._store.applied_index
            assert node._checkpoint_wanted.is_set()  # at once
        node.housekeep()
        assert tree.applied_index == node._store.applied_index
