"""What nodes take from each other: messages, lies, other versions; what they say at a start."""

from __future__ import annotations

import contextlib
import random
import struct
from dataclasses import replace
from functools import partial

import pytest

from conure import errors
from conure.cluster.node import Node
from conure.commands import (
    Acquire,
    Committed,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    Expire,
    Get,
    Increment,
    OpenSession,
    Operation,
    Put,
    Range,
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
    State,
)
from conure.consensus.spares import RESERVE_FILES
from conure.errors import (
    Conflict,
    ConureError,
    NotLeader,
    Refused,
    Unavailable,
    VersionTooNew,
)
from conure.peers import frames
from conure.state import codec
from tests.lab.answers import Ended, value_of
from tests.lab.nodes import (
    Lab,
    begin,
    cluster,
    header,
    put,
    read,
    suffrages,
)


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
    # What is asked for together with it, and read by all, is done.
    before = lab["n1"]._log.last_index
    batch = [(b"1", b"w"), (b"2", b"v"), (b"2", b"w"), (b"1", b"x"), (b"1", b"y")]
    told: dict[int, int | ConureError] = {}

    def reply(start: int, stop: int, ended: Committed | ConureError) -> None:
        for at in range(start, stop):
            assert at not in told
            told[at] = ended if isinstance(ended, ConureError) else ended.first + at

    lab["n1"].write(batch, reply)
    lab.settle()
    assert [isinstance(told[at], Conflict) for at in range(5)] == [False, True, True, False, False]
    # The refused ones have no entry, and so the others other revisions than they might have had.
    found = [told[at] for at in (0, 3, 4)]
    assert found == [before + 1, before + 2, before + 3]
    assert lab["n1"]._versions.logged == 1
    lab["n1"].admit("messages", "n1", lab["n3"].greeting())  # it is as welcome as before
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
    lab.add("x", role=role, speaks=1)
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
def test_what_the_state_is_made_of_is_asked_of_nobody_again() -> None:
    """A quorum goes on writing it after a restart, though another member is down by then."""
    lab = cluster("n2", "n3", speaks=2)
    assert try_put(lab, b"2") == [None]
    lab.tick(5)
    for each in ("n3", "n1", "n2"):
        lab.stop(each)
    for each in ("n1", "n2"):
        lab.add(each, speaks=2)
    assert try_put(lab, b"2") == [None]


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
