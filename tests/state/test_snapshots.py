"""A state on its way between two nodes: sent, staged, installed, and what can come in between."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.consensus.messages import (
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
)
from conure.consensus.raftlog import RaftLog
from conure.consensus.spares import RESERVE_FILES
from conure.errors import (
    CorruptionError,
    DiskFailed,
    DiskFull,
    ProtocolViolation,
    Refused,
    StorageError,
    WireError,
)
from conure.fileio import FileSystem, OsFileSystem
from conure.state import codec, snapshots
from conure.state.codec import encode_records
from conure.state.machine import Inspection, Store
from conure.state.snapshots import CHUNK_BYTES, IncomingSnapshot, OutgoingSnapshot, install, recover
from conure.storage.engine import EngineKind, EngineOptions, Record, StorageEngine
from conure.storage.engines import BTREE
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash
from tests.lab.engines import current, fill, kind, names_in, of_the_btree, open_engine

HOME = "/data"
pytestmark = pytest.mark.usefixtures("engine")
META = SnapshotMeta(100, 7, b"the members")
MODES: tuple[CrashMode, ...] = ("dropped", "kept", "torn", "random", "random", "random")
Content = dict[bytes, Record]


# -- the sender ----------------------------------------------------------------------------------


def some_content(count: int, seed: int = 1) -> Content:
    """Records of every kind: small, spilled, wide, with an expiry, with keys of every length."""
    rng = random.Random(seed)
    content: Content = {}
    expiring = b""
    for i in range(1, count):
        key = b"k%05d" % i + rng.randbytes(rng.choice([0, 0, 3, 100]))
        value = rng.randbytes(rng.choice([0, 5, 90, 90, 2000]))
        wide = 1 << 40 if i % 11 == 0 else 0
        expiry = 77 if i % 5 == 1 and i + 1 < count else 0
        if expiring:  # the one before expires, and so has its entry in the index
            key, expiring = b"e" + (77).to_bytes(8, "big") + expiring, b""
            content[key] = Record(b"", i + 1, i + 1, 1)
        else:
            content[key] = Record(value, i + 1 + wide, i + 2 + wide, 1 + i % 3, expiry)
            expiring = key[1:] if expiry else b""
    if count:
        own = sum(key[:1] != b"k" for key in content)
        content[b"c"] = Record(bytes(8) + own.to_bytes(8, "big"), count, count, 1)
    return content


def sending_store(content: Content, digest: int = 4711) -> Store:
    tree = open_engine(CrashFileSystem(), "/sender.db", page_size=1024, cache_bytes=1 << 16)
    fill(tree, sorted(content.items()))
    tree.checkpoint(META.index, META.term, digest)
    return Store(tree, META.configuration)


def outgoing(store: Store) -> OutgoingSnapshot:
    asked = Message(MessageType.SNAPSHOT, "n1", "n2", META.term, snapshot=SnapshotMeta(50, 6))
    return OutgoingSnapshot(asked, store.snapshot())


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 4000)


# -- the receiver --------------------------------------------------------------------------------


def ignore(_: IncomingSnapshot) -> None:
    """The node that takes no notice: these tests install by themselves."""


def incoming(
    fs: FileSystem,
    header: SnapshotHeader,
    finished: Callable[[IncomingSnapshot], None] = ignore,
    *,
    keep_free: int = 0,
) -> IncomingSnapshot:
    return IncomingSnapshot(
        fs,
        HOME,
        header,
        kind=kind(),
        options=EngineOptions(1024, 1 << 16),
        finished=finished,
        inspection=Inspection(1),
        keep_free=keep_free,
    )


def home() -> CrashFileSystem:
    fs = CrashFileSystem()
    fs.make_directory(HOME)
    return fs


def staged(fs: FileSystem) -> list[str]:
    return [name for name in names_in(fs, HOME) if name.startswith("incoming")]


def content_of(tree: StorageEngine) -> Content:
    tree.check()
    return dict(tree.items())


def receive(fs: FileSystem, out: OutgoingSnapshot) -> None:
    into = incoming(fs, out.header)
    feed(into, out.chunks(into.resume_after()))


def feed(into: IncomingSnapshot, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        into.add(chunk)
    into.finish()


# -- on the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 40, 3000])
def test_a_state_arrives_as_it_was(count: int, small_chunks: None) -> None:
    """While it is sent, its sender changes all of it and uses its pages again."""
    content = some_content(count)
    store = sending_store(content)
    out = outgoing(store)
    assert out.header.message.snapshot == META  # not what the core had asked for
    assert (out.header.message.to, out.header.digest, out.header.records) == ("n2", 4711, count)
    fs = home()
    finished: list[IncomingSnapshot] = []
    into = incoming(fs, out.header, finished.append)
    keys = sorted(content)
    for number, chunk in enumerate(out.chunks(into.resume_after())):
        for key in keys[number::7][:40]:
            store.engine.delete(key)
            store.engine.put(key, b"later", 200 + number)
        store.engine.checkpoint(200 + number, 8)
        into.add(chunk)
    assert not finished
    into.finish()
    assert finished == [into]
    out.close()
    store.engine.check()
    log = RaftLog.open(fs, HOME + "/raft")
    install(fs, HOME, log, into.meta, kind())
    into.discard()  # it is installed: this must not touch it
    tree = open_engine(fs, HOME + "/conure.db", create=False)
    assert content_of(tree) == content
    assert (tree.applied_index, tree.applied_term, tree.applied_digest) == (100, 7, 4711)
    assert (log.snapshot, log.last_index) == (META, 100)
    assert not staged(fs)


def test_chunks_are_of_like_size_and_a_large_value_goes_alone() -> None:
    content = {b"k%05d" % i: Record(bytes(1000), i, i, 1) for i in range(1500)}
    content[b"k00700"] = Record(bytes(3 * CHUNK_BYTES), 1, 1, 1)
    out = outgoing(sending_store(content))
    chunks = list(out.chunks(b""))
    sizes = sorted(map(len, chunks))
    assert sizes[-1] < 3 * CHUNK_BYTES + 100
    assert sizes[-2] < CHUNK_BYTES + 100
    assert sum(size > CHUNK_BYTES // 2 for size in sizes) >= len(sizes) - 1
    assert [row[0] for chunk in chunks for row in codec.decode_records(chunk)] == sorted(content)
    assert outgoing(sending_store(content)).header.id != out.header.id


def test_a_transfer_goes_on_where_it_broke_off(small_chunks: None) -> None:
    content = some_content(400)
    out = outgoing(sending_store(content))
    total = len(list(out.chunks(b"")))
    assert total > 10
    for broken_after in range(total + 1):
        fs = home()
        into = incoming(fs, out.header)
        chunks = out.chunks(into.resume_after())
        last = b""
        for _ in range(broken_after):
            chunk = next(chunks)
            into.add(chunk)
            last = codec.decode_records(chunk)[-1][0]
        into.interrupted()
        assert into.resume_after() == last
        for chunk in out.chunks(last):
            assert codec.decode_records(chunk)[0][0] > last
            break
        if broken_after:
            into.add(chunk)  # what the first connection still brings does no harm
        feed(into, out.chunks(last))
        log = RaftLog.open(fs, HOME + "/raft")
        install(fs, HOME, log, META, kind())
        assert content_of(open_engine(fs, HOME + "/conure.db")) == content


def cut_short(chunks: list[bytes]) -> list[bytes]:
    return chunks[:-1]


def with_a_gap(chunks: list[bytes]) -> list[bytes]:
    return chunks[:3] + chunks[4:]


def exchanged(chunks: list[bytes]) -> list[bytes]:
    return [chunks[1], chunks[0], *chunks[2:]]


def with_an_unordered_chunk(chunks: list[bytes]) -> list[bytes]:
    rows = codec.decode_records(chunks[2])
    rows[-2:] = rows[:-3:-1]
    return [*chunks[:2], codec.encode_records(rows), *chunks[3:]]


def with_a_record_twice(chunks: list[bytes]) -> list[bytes]:
    rows = codec.decode_records(chunks[2])
    return [*chunks[:2], codec.encode_records([*rows[:-1], rows[-2]]), *chunks[3:]]


def with_too_long_a_key(chunks: list[bytes]) -> list[bytes]:
    return [*chunks[:2], codec.encode_records([(b"k" + b"z" * 9000, b"", 1, 1, 1, 0)])]


def with_more_than_announced(chunks: list[bytes]) -> list[bytes]:
    return [*chunks, codec.encode_records([(b"z", b"", 1, 1, 1, 0)])]


def cut_inside(chunks: list[bytes]) -> list[bytes]:
    return [*chunks[:2], chunks[2][:-7]]


def of_another_kind(chunks: list[bytes]) -> list[bytes]:
    return [b"GET / HTTP/1.1\r\n\r\n"]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut_short, "400 records ended after"),
        (with_a_gap, "400 records ended after"),
        (exchanged, "400 records ended after"),
        (with_an_unordered_chunk, "keys have to ascend"),
        (with_a_record_twice, "keys have to ascend"),
        (with_too_long_a_key, "a key of 9000 bytes"),
        (with_more_than_announced, "400 records has more"),
        (cut_inside, "don't add up"),
        (of_another_kind, "format version"),
    ],
)
def test_a_stream_that_is_not_right_leaves_nothing(
    damage: Callable[[list[bytes]], list[bytes]], why: str, small_chunks: None
) -> None:
    out = outgoing(sending_store(some_content(400)))
    fs = home()
    into = incoming(fs, out.header, lambda _: pytest.fail("it can't be complete"))
    with pytest.raises((ProtocolViolation, WireError), match=why):
        feed(into, damage(list(out.chunks(b""))))
    assert names_in(fs, HOME) == []
    for call in (into.resume_after, into.finish, lambda: into.add(b"")):
        with pytest.raises(Refused, match="given up"):
            call()
    into.discard()
    receive(fs, out)  # another attempt begins from the start
    assert len(staged(fs)) == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_altered_bytes_are_an_error_or_well_formed(data: st.DataObject) -> None:
    out = outgoing(sending_store(some_content(20)))
    chunk = bytearray(next(out.chunks(b"")))
    for _ in range(data.draw(st.integers(1, 3))):
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.integers(0, 255))
    fs = home()
    into = incoming(fs, out.header)
    try:
        into.add(bytes(chunk))
        into.finish()
    except (ProtocolViolation, WireError):
        assert names_in(fs, HOME) == []
    else:
        (name,) = staged(fs)
        assert len(content_of(open_engine(fs, f"{HOME}/{name}"))) == 20


def test_what_was_not_announced_is_not_staged(small_chunks: None) -> None:
    out = outgoing(sending_store(some_content(400)))
    into = incoming(home(), out.header._replace(records=1))
    with pytest.raises(ProtocolViolation, match="has more"):
        into.add(next(out.chunks(b"")))


def test_a_state_leaves_the_log_its_room(small_chunks: None) -> None:
    """Whatever its sender announces, and for however long it sends. What is on its way to the disk
    in memory is little beside that room."""
    scale = 1 if current() == BTREE else 10  # it writes in larger pieces
    content = some_content(4000)
    for key in content:
        if key[:1] == b"k":
            content[key] = content[key]._replace(value=content[key].value * scale)
    out = outgoing(sending_store(content))
    chunks = list(out.chunks(b""))
    fs = home()
    room = 600_000 * scale
    keep = room // 3
    fs.set_capacity(fs.used_bytes() + room)
    for records in ((1 << 64) - 1, (room - keep) // 15 + 1):
        with pytest.raises(DiskFull, match=f"the log {keep} beside it"):
            incoming(fs, out.header._replace(records=records), keep_free=keep)
        assert names_in(fs, HOME) == []
    into = incoming(fs, out.header._replace(records=(room - keep) // 15), keep_free=keep)
    least = room

    def send_all() -> None:
        nonlocal least
        for chunk in chunks:
            into.add(chunk)
            least = min(least, fs.free_bytes(HOME))

    with pytest.raises(DiskFull, match=f"the log {keep} beside it"):
        send_all()
    assert 3 * keep / 4 < least < 5 * keep / 4
    assert names_in(fs, HOME) == []
    fs.set_capacity(None)
    feed(incoming(fs, out.header, keep_free=keep), chunks)
    assert len(staged(fs)) == 1


def test_a_header_has_to_say_what_it_covers() -> None:
    out = outgoing(sending_store({}))
    out.header.message.snapshot = None
    with pytest.raises(ProtocolViolation):
        incoming(home(), out.header)


def test_sending_ends_when_the_state_is_closed(small_chunks: None) -> None:
    store = sending_store(some_content(400))
    out = outgoing(store)
    chunks = out.chunks(b"")
    next(chunks)
    out.close()
    out.close()
    with pytest.raises(StorageError, match="closed"):
        list(chunks)
    assert store.engine.stats().readers == 0


def test_sending_goes_on_when_the_tree_is_closed(small_chunks: None) -> None:
    """A node that installs a newer state while it still sends the old one."""
    content = some_content(400)
    store = sending_store(content)
    out = outgoing(store)
    chunks = out.chunks(b"")
    found = [next(chunks)]
    store.engine.close()
    found += chunks
    assert [row[0] for chunk in found for row in codec.decode_records(chunk)] == sorted(content)
    out.close()


@of_the_btree
def test_a_page_that_was_damaged_is_not_sent(small_chunks: None) -> None:
    fs = CrashFileSystem()
    tree = open_engine(fs, "/sender.db", page_size=1024, cache_bytes=0)
    fill(tree, sorted(some_content(400).items()))
    tree.checkpoint(META.index, META.term, 1)
    fs.corrupt("/sender.db", 60 * 1024 + 500)
    with pytest.raises(CorruptionError):
        list(outgoing(Store(tree, b"")).chunks(b""))


def test_two_transfers_do_not_meet(small_chunks: None) -> None:
    """The one that was given up does not take the other one's file with it."""
    fs = home()
    old, new = (outgoing(sending_store(some_content(300, seed), seed)) for seed in (1, 2))
    first, second = incoming(fs, old.header), incoming(fs, new.header)
    for one, other in zip(old.chunks(b""), new.chunks(b""), strict=False):
        first.add(one)
        second.add(other)
    feed(second, new.chunks(second.resume_after()))
    first.discard()
    log = RaftLog.open(fs, HOME + "/raft")
    install(fs, HOME, log, META, kind())
    assert open_engine(fs, HOME + "/conure.db").applied_digest == 2
    first.discard()
    second.discard()
    assert set(names_in(fs, HOME)) - {"lsm"} == {"conure.db", "raft"}


def test_a_staged_state_that_is_not_needed_goes() -> None:
    fs = home()
    into = incoming(fs, outgoing(sending_store({})).header)
    into.finish()
    assert len(staged(fs)) == 1
    into.discard()
    assert names_in(fs, HOME) == []


# -- large and small -----------------------------------------------------------------------------


def test_a_value_of_64_mib_passes(tmp_path: Path) -> None:
    fs = OsFileSystem()
    value = random.Random(1).randbytes(1 << 20) * 64
    tree = open_engine(fs, str(tmp_path / "sender.db"))
    tree.put(b"klarge", value, 9)
    tree.put(b"kz", b"small", 10)
    tree.checkpoint(10, 1)
    out = outgoing(Store(tree, b""))
    (tmp_path / "home").mkdir()
    into = IncomingSnapshot(
        fs,
        str(tmp_path / "home"),
        out.header,
        kind=kind(),
        options=EngineOptions(4096, 4 << 20),
        finished=ignore,
    )
    feed(into, out.chunks(b""))
    log = RaftLog.open(fs, str(tmp_path / "home" / "raft"))
    install(fs, str(tmp_path / "home"), log, into.meta, kind())
    received = open_engine(fs, str(tmp_path / "home" / "conure.db"), create=False)
    assert received.get(b"klarge") == Record(value, 9, 9, 1)
    assert received.get(b"kz") == Record(b"small", 10, 10, 1)
    for each in (log, received, tree):
        each.close()


@pytest.mark.parametrize(
    ("row", "is_seen_at_once"),
    [
        ((b"c", b"short", 1, 1, 1, 0), True),
        ((b"x", b"of no kind", 1, 1, 1, 0), True),
        ((b"ka", b"expires, and is in no index", 1, 1, 1, 9), False),
        ((b"t" + bytes(8) + b"s", b"", 1, 1, 1, 0), False),
    ],
)
def test_a_record_that_no_state_machine_makes_ends_the_transfer(
    row: tuple[bytes, bytes, int, int, int, int], is_seen_at_once: bool
) -> None:
    fs = home()
    out = outgoing(sending_store({}))
    into = incoming(fs, out.header._replace(records=1))
    if is_seen_at_once:
        with pytest.raises(ProtocolViolation, match="that no state holds"):
            into.add(encode_records([row]))
    else:
        into.add(encode_records([row]))
        with pytest.raises(ProtocolViolation, match="contradict each other"):
            into.finish()
    assert staged(fs) == []
    out.close()


def test_neither_side_needs_much_memory(tmp_path: Path) -> None:
    """S7: 16 MB travel through little of it."""
    fs = OsFileSystem()
    tree = open_engine(fs, str(tmp_path / "sender.db"), cache_bytes=1 << 18)
    fill(tree, ((b"k%06d" % i, Record(bytes(2000), i, i, 1)) for i in range(1, 8001)))
    tree.checkpoint(8000, 1)
    (tmp_path / "home").mkdir()
    tracemalloc.start()
    try:
        out = outgoing(Store(tree, b""))
        into = IncomingSnapshot(
            fs,
            str(tmp_path / "home"),
            out.header,
            kind=kind(),
            options=EngineOptions(4096, 1 << 18),
            finished=ignore,
        )
        feed(into, out.chunks(b""))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (6 if current() == BTREE else 16) * CHUNK_BYTES
    out.close()
    tree.close()


# -- installing ----------------------------------------------------------------------------------


class Member:
    """A node's directory before a snapshot comes: a tree at 40, a log from 30 to 60."""

    old = some_content(60, seed=8)
    new = some_content(80, seed=9)

    def __init__(self) -> None:
        self.fs = home()
        tree = open_engine(self.fs, HOME + "/conure.db", page_size=1024)
        fill(tree, sorted(self.old.items()))
        tree.checkpoint(40, 3, 40)
        tree.close()
        self.log = RaftLog.open(self.fs, HOME + "/raft", segment_bytes=4096)
        self.log.set_hard_state(HardState(7, ""))
        self.log.append([Entry(3, i, EntryKind.COMMAND, b"%d" % i * 50) for i in range(1, 61)])
        self.log.sync()
        self.log.cut(SnapshotMeta(30, 3, b"old members"))

    def install(self) -> None:
        out = outgoing(sending_store(self.new, 100))
        into = incoming(self.fs, out.header)
        feed(into, out.chunks(b""))
        try:
            install(self.fs, HOME, self.log, META, kind())
        except (DiskFailed, DiskFull):
            into.discard()  # as its driver does, which is about to end
            raise


def restarted(fs: FileSystem) -> str:
    """Start again on this disk; tell which state was found, after proving that it is whole."""
    log = RaftLog.open(fs, HOME + "/raft", segment_bytes=4096)
    log.check()
    recover(fs, HOME, log, kind())
    assert not staged(fs)
    tree = open_engine(fs, HOME + "/conure.db", create=False)
    content = content_of(tree)
    found = "new" if log.snapshot == META else "old"
    if found == "new":
        assert content == Member.new
        assert (log.first_index, log.last_index, log.last_term) == (101, 100, 7)
        assert (tree.applied_index, tree.applied_term, tree.applied_digest) == (100, 7, 100)
    else:
        assert content == Member.old
        assert log.snapshot == SnapshotMeta(30, 3, b"old members")
        assert (log.last_index, tree.applied_index, tree.applied_digest) == (60, 40, 40)
    following = Entry(8, log.last_index + 1, EntryKind.NOOP, b"")
    log.append([following])  # and it works on
    log.sync()
    assert log.entries(following.index, following.index + 1, 100) == [following]
    return found


def crashed_members() -> Iterator[tuple[int, Member, bool]]:
    """Receive and install once more for every sync on the way, and lose power at that sync."""
    k = 0
    while True:
        k += 1
        member = Member()
        member.fs.crash_at_sync = k
        try:
            member.install()
        except SimulatedCrash:
            yield k, member, False
        else:
            yield k, member, True
            return


def test_power_loss_at_any_sync_leaves_the_old_state_or_the_new() -> None:
    found = []
    for k, member, done in crashed_members():
        for seed, mode in enumerate(MODES):
            state = restarted(member.fs.after_crash(mode, random.Random(100 * k + seed)))
            found.append(state)
            assert state == "new" or not done
    assert {"old", "new"} == set(found)
    assert len(found) >= 8 * len(MODES)


def test_power_loss_while_recovering_changes_nothing() -> None:
    for k, member, _ in crashed_members():
        for mode in ("kept", "random"):
            first = member.fs.after_crash(mode, random.Random(k))
            expected = restarted(first.after_crash("kept"))
            at_sync = 0
            crashed = True
            while crashed:
                at_sync += 1
                second = first.after_crash("kept")
                second.crash_at_sync = at_sync
                try:
                    log = RaftLog.open(second, HOME + "/raft", segment_bytes=4096)
                    recover(second, HOME, log, kind())
                    crashed = False
                except SimulatedCrash:
                    pass
                after = second.after_crash("random", random.Random(at_sync))
                assert restarted(after) == expected


@pytest.mark.parametrize("fault", ["io", "full", "half"])
def test_a_disk_that_fails_at_any_call_leaves_the_old_state_or_the_new(
    fault: Literal["io", "full", "half"],
) -> None:
    n = 0
    found = set()
    while True:
        n += 1
        member = Member()
        member.fs.fail_call(n, fault)
        error: DiskFailed | DiskFull | None = None
        try:
            member.install()
        except (DiskFailed, DiskFull) as caught:
            error = caught
        if member.fs.failure_is_due:
            break
        if fault != "io" and error is None:  # what is small finds room in the log's reserve
            assert len(member.log._spares.reserve) == RESERVE_FILES - 1
        elif fault != "io":
            # Nothing but a whole state still takes space, and a later attempt can work.
            assert all(name.endswith(".db") for name in staged(member.fs))
            assert member.log.snapshot.index == 30
            member.install()
        found.add(restarted(member.fs.after_crash("random", random.Random(n))))
        member.fs.restart_process()
        found.add(restarted(member.fs))
    assert n > 10
    assert found == ({"old", "new"} if fault == "io" else {"new"})


def test_a_full_disk_leaves_nothing_of_a_transfer(small_chunks: None) -> None:
    out = outgoing(sending_store(some_content(300)))
    n = 0
    while True:
        n += 1
        fs = home()
        fs.fail_call(n, "full")
        try:
            receive(fs, out)
        except DiskFull:
            assert names_in(fs, HOME) == []
        else:
            assert n > 5
            return


def test_an_installed_state_stays_in_place_when_it_goes_on() -> None:
    """Its name is durable before a checkpoint makes it another state than the log begins with."""
    member = Member()
    member.install()
    fs, log = member.fs, member.log
    tree = open_engine(fs, HOME + "/conure.db")
    log.append([Entry(7, i, EntryKind.NOOP, b"") for i in range(101, 131)])
    log.sync()
    tree.put(b"kmore", b"", 120)
    tree.checkpoint(120, 7, 120)
    log.cut(SnapshotMeta(110, 7, b"the members"))
    after = fs.after_crash("dropped")
    recover(after, HOME, RaftLog.open(after, HOME + "/raft"), kind())
    assert open_engine(after, HOME + "/conure.db").applied_index == 120


def test_only_a_complete_state_of_that_index_is_installed() -> None:
    member = Member()
    for meta in (SnapshotMeta(101, 7), SnapshotMeta(100, 6)):
        receive(member.fs, outgoing(sending_store(member.new, 100)))
        with pytest.raises(StorageError, match="no received state"):
            install(member.fs, HOME, member.log, meta, kind())
    fs = member.fs
    incoming(fs, outgoing(sending_store({})).header)  # begun, not complete
    for name in staged(fs)[:2]:
        fs.remove(f"{HOME}/{name}")
    with pytest.raises(StorageError, match="no received state"):
        install(fs, HOME, member.log, META, kind())
    assert restarted(fs) == "old"


@of_the_btree
def test_a_state_is_on_the_disk_before_the_log_begins_behind_it() -> None:
    """Whoever has written it: a transfer may be about to sync what looks whole by now."""
    member = Member()
    fs = member.fs
    receive(fs, outgoing(sending_store(member.new, 100)))
    (name,) = staged(fs)
    whole = fs.contents(f"{HOME}/{name}")
    fs.remove(f"{HOME}/{name}")
    file = fs.open(f"{HOME}/{name}", create=True)
    file.pwrite(whole, 0)
    file.close()
    install(fs, HOME, member.log, META, kind())
    assert restarted(fs.after_crash("dropped")) == "new"


def refusing() -> EngineKind:
    """Return a kind that doesn't get over a state that is there already, as one may that has
    several files."""
    plain = type(kind())

    class RefusingKind(plain):  # type: ignore[misc,valid-type]
        def rename(self, fs: FileSystem, place: str, new: str) -> None:
            assert self.applied(fs, new) == (0, 0)
            super().rename(fs, place, new)

    return RefusingKind()


@pytest.mark.parametrize("index", [META.index, META.index + 5])
def test_an_installation_is_tried_again_over_what_the_first_attempt_left(index: int) -> None:
    """On a full disk the log can't begin anew; what comes next may be as of another index."""
    member = Member()
    fs, log = member.fs, member.log
    receive(fs, outgoing(sending_store(member.new, 100)))
    log.give_up_reserve()
    fs.set_capacity(fs.used_bytes())
    for _ in range(2):
        with pytest.raises(DiskFull):
            install(fs, HOME, log, META, refusing())
        assert staged(fs) == ["incoming-0.db"]
    fs.set_capacity(None)
    meta = replace(META, index=index)
    if meta != META:
        tree = open_engine(fs, HOME + "/incoming-9.db")
        tree.checkpoint(index, META.term)
        tree.close()
    install(fs, HOME, log, meta, refusing())
    assert (log.snapshot, staged(fs)) == (meta, [])
    assert open_engine(fs, HOME + "/conure.db", create=False).applied_index == index


def test_a_left_over_never_replaces_what_is_further() -> None:
    """The state was received and not needed: the node had got as far by itself."""
    fs = home()
    receive(fs, outgoing(sending_store(Member.new)))
    tree = open_engine(fs, HOME + "/conure.db", page_size=1024)
    fill(tree, sorted(Member.old.items()))
    tree.checkpoint(120, 7, 1)
    tree.close()
    log = RaftLog.open(fs, HOME + "/raft")
    log.reset(META)
    recover(fs, HOME, log, kind())
    assert open_engine(fs, HOME + "/conure.db").applied_index == 120
    assert not staged(fs)


def test_an_arbiter_has_nothing_to_recover() -> None:
    fs = home()
    log = RaftLog.open(fs, HOME + "/raft")
    log.reset(META)
    recover(fs, HOME, log, kind())
    assert names_in(fs, HOME) == ["raft"]
