"""Backups: the format byte by byte, what is refused, and restores that are interrupted."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import Acquire, OpenSession, Put, Sequential, Transaction
from conure.consensus.members import Configuration
from conure.consensus.messages import Entry, EntryKind, SnapshotMeta
from conure.consensus.raftlog import RaftLog
from conure.consensus.records import encode_frame
from conure.errors import (
    ConureError,
    CorruptionError,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    ForeignDirectory,
    StorageError,
    VersionTooNew,
)
from conure.fileio import FileSystem
from conure.state import backup as backup_module
from conure.state import snapshots
from conure.state.backup import (
    UNFINISHED,
    Backup,
    BackupFile,
    Facts,
    Header,
    UnusableBackup,
    restore,
)
from conure.state.codec import encode_records, encode_sequential, encode_transaction
from conure.state.machine import Inspection, PinnedState, Store
from conure.steps import Add, Append, Expiry, Life, Write
from conure.storage.datadir import Identity
from conure.storage.engine import Record, StorageEngine
from conure.storage.engines import kind_named
from tests.cluster.test_node import open_node, started, write
from tests.lab.answers import value_of
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash
from tests.lab.engines import ENGINES, fill, kind, of_the_btree, open_engine

FILE, HOME = "/b.backup", "/new"
pytestmark = pytest.mark.usefixtures("engine")
META = SnapshotMeta(1 << 33, 7, b"the members of old")
FACTS = Facts("c0ffee", "n\xf6de", 1_795_378_244_799)
Content = dict[bytes, Record]
Row = tuple[bytes, bytes, int, int, int, int]


def some_content(count: int, seed: int = 1) -> Content:
    """Records of users: small, spilled, with an expiry, with keys of every length."""
    rng = random.Random(seed)
    content: Content = {}
    for i in range(count):
        key = b"k%05d" % i + rng.randbytes(rng.choice([0, 0, 3, 60]))
        value = rng.randbytes(rng.choice([0, 5, 90, 90, 700]))
        content[key] = Record(value, i + 1, (i + 2) << 8, 1 + i % 3, 77 * (i % 5 == 0))
    return content


def sender(content: Content, page_size: int = 1024) -> StorageEngine:
    tree = open_engine(CrashFileSystem(), "/sender.db", page_size=page_size, cache_bytes=1 << 16)
    fill(tree, sorted(content.items()))
    return tree


def taken(content: Content, meta: SnapshotMeta = META) -> bytes:
    """A backup's bytes."""
    backup = Backup(PinnedState(meta, 4711, sender(content).snapshot()), FACTS)
    data = b"".join(backup.chunks())
    backup.close()
    return data


def disk_with(data: bytes) -> CrashFileSystem:
    fs = CrashFileSystem()
    file = fs.open(FILE, create=True)
    file.pwrite(data, 0)
    file.sync()
    file.close()
    fs.sync_directory("/")
    return fs


def ignore(doing: str, done: int, total: int) -> None:
    """Nobody looks at the progress."""


def restored(fs: FileSystem, **changes: Any) -> Identity:
    facts: dict[str, Any] = {
        "kind": kind(),
        "node_id": "n1",
        "raft_address": "127.0.0.1:7001",
        "http_address": "http://h:1",
    }
    made = restore(fs, FILE, HOME, **{**facts, **changes}, page_size=1024, progress=ignore)
    assert made.header == BackupFile(fs, FILE).header
    return made.identity


def content_of(fs: FileSystem) -> Content:
    tree = open_engine(fs, f"{HOME}/conure.db", create=False)
    tree.check()
    return dict(tree.items())


@pytest.fixture(name="small_chunks")
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 2000)


# -- the file ------------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    content = {b"ka": Record(b"hi", 1, 2, 3, 4), b"s1": Record(b"", 5, 6, 1, 0)}
    golden = (
        "434f4e555245424b 01 000000 0000000200000000 0000000000000007 0000000000001267"
        "000001a204e1ecbf 0000000000000002 0006 0005 633066666565 6ec3b66465 32aebd01"
        "0000005a cdd0bcdc 01 000000 00000002 0002 0002 00000002 00000000"
        "0000000000000001 0000000000000002 0000000000000003 0000000000000004"
        "0000000000000005 0000000000000006 0000000000000001 0000000000000000"
        "6b61 7331 6869"
        "00000000 0000000000000002"
        "e5ab55a04b1cb6d38ecd6870c324d4aa7262cdff17d6e6b2c91b67bb5c605681"
    )
    data = bytes.fromhex(golden)
    assert taken(content) == data
    file = BackupFile(disk_with(data), FILE)
    assert file.header == Header(1 << 33, 7, 4711, 1_795_378_244_799, 2, "c0ffee", "n\xf6de")
    file.verify(ignore)


def test_a_backup_is_of_one_moment_and_its_pieces_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it is taken, all of the state changes and its pages are used again."""
    monkeypatch.setattr(backup_module, "PIECE_BYTES", 1000)
    content = some_content(400) | {b"kbig": Record(bytes(50_000), 1, 2, 1, 0)}
    tree = sender(content)
    tree.checkpoint(1, 1)
    backup = Backup(PinnedState(META, 4711, tree.snapshot()), FACTS)
    pieces = []
    keys = sorted(content)
    for number, piece in enumerate(backup.chunks()):
        pieces.append(piece)
        if number < len(keys):
            tree.delete(keys[number])
            tree.checkpoint(2 + number, 1)
    backup.close()
    backup.close()
    assert max(map(len, pieces)) == 1000
    data = b"".join(pieces)
    fs = disk_with(data)
    restored(fs)
    assert content_of(fs) == content
    tree.check()


def test_a_closed_state_yields_nothing_that_would_be_taken_for_a_backup(
    small_chunks: None,
) -> None:
    backup = Backup(PinnedState(META, 4711, sender(some_content(100)).snapshot()), FACTS)
    pieces = backup.chunks()
    begun = [next(pieces), next(pieces)]
    backup.close()
    with pytest.raises(StorageError, match="closed"):
        list(pieces)
    assert_refused(b"".join(begun))


# -- what is refused -----------------------------------------------------------------------------


def assert_refused(data: bytes, why: str = "can't be restored") -> UnusableBackup:
    """See that a restore is refused for a reason, and nothing is touched."""
    fs = disk_with(data)
    with pytest.raises(UnusableBackup, match=why) as caught:
        restored(fs)
    assert caught.value.file == FILE
    assert 0 <= caught.value.offset <= len(data)
    assert str(caught.value.offset) in str(caught.value)
    assert not fs.exists(HOME)
    return caught.value


def frames(data: bytes) -> list[int]:
    """Return where each frame begins, and the trailer at the end."""
    sizes = int.from_bytes(data[52:54], "big") + int.from_bytes(data[54:56], "big")
    offsets = [56 + sizes + 4]
    while length := int.from_bytes(data[offsets[-1] : offsets[-1] + 4], "big"):
        offsets.append(offsets[-1] + 8 + length)
    return offsets


def test_a_cut_at_every_boundary_is_refused(small_chunks: None) -> None:
    data = taken(some_content(60))
    boundaries = frames(data)
    assert len(boundaries) > 5
    assert boundaries[-1] + 44 == len(data)
    for boundary in (0, 8, 56, *boundaries, len(data)):
        for size in range(boundary - 1, boundary + 2):
            if 0 <= size < len(data):
                assert_refused(data[:size], "cut|begin like")


def test_a_change_of_any_byte_is_refused() -> None:
    data = taken(some_content(3))
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        assert_refused(bytes(changed))


WHOLE = taken(some_content(10))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_happens_to_a_file_is_noticed(draw: st.DataObject) -> None:
    data = WHOLE
    position = draw.draw(st.integers(0, len(data)))
    removed = draw.draw(st.integers(0, 60))
    added = draw.draw(st.binary(max_size=60))
    changed = data[:position] + added + data[position + removed :]
    if changed != data:
        assert_refused(changed)


def test_frames_that_change_places_or_go_are_refused(small_chunks: None) -> None:
    data = taken(some_content(60))
    first, second, third, *_, end = frames(data)
    assert_refused(data[:first] + data[second:third] + data[first:second] + data[third:], "ascend")
    assert_refused(data[:first] + data[second:])
    assert_refused(data[:second] + data[first:], "ascend")
    assert_refused(data + b"\0", "1 bytes behind its end")
    assert_refused(data + data, "behind its end")
    assert_refused(data[:end] + data[first:], "ascend")


def sealed(rows: list[Row], index: int = 9, records: int | None = None, version: int = 1) -> bytes:
    """Return a file with all checksums right, whatever it says."""
    count = len(rows) if records is None else records
    data = backup_module._encode_header(Header(index, 1, 0, 0, count, "c", "n"))[:-4]
    data = data[:8] + bytes((version,)) + data[9:]
    data += crc32(data).to_bytes(4, "big")
    if rows:
        data += encode_frame(encode_records(rows))
    data += bytes(4) + count.to_bytes(8, "big")
    return data + hashlib.sha256(data).digest()


def test_a_file_that_is_whole_and_makes_no_sense_is_refused() -> None:
    row: Row = (b"ka", b"v", 1, 9, 1, 0)
    fs = disk_with(sealed([row]))
    restored(fs)
    assert content_of(fs) == {b"ka": Record(b"v", 1, 9, 1, 0)}
    assert_refused(sealed([row, row]), "don't ascend")
    assert_refused(sealed([row], records=2), "it has 1 records, and says that it has 2")
    assert_refused(sealed([row], index=8), "a record of revision 9, though it ends at 8")
    assert_refused(sealed([], index=0), "nothing had been applied")
    assert_refused(sealed([row], version=2), "format version 2")
    assert_refused(sealed([row], version=0), "format version 0")


def test_a_file_of_another_kind_is_refused() -> None:
    assert_refused(b"", "cut")
    assert_refused(b"-- a dump of some other database\n" * 10, "doesn't begin like a backup")
    assert_refused(bytes(10_000), "doesn't begin like a backup")
    with pytest.raises(FileNotFoundError):
        restored(CrashFileSystem())


# -- a restore -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 40, 2000])
def test_a_node_goes_on_where_the_backup_ends(count: int) -> None:
    content = some_content(count)
    fs = disk_with(taken(content))
    identity = restored(fs)
    assert set(fs.list(HOME)) - {"lsm"} == {"LOCK", "conure.db", "identity.json", "raft"}
    assert content_of(fs) == content
    with started(fs, data_dir=HOME, bootstrap=False) as node:
        status = node.status()
        assert status["is_leader"]
        assert status["cluster_id"] == identity.cluster_id
        assert status["term"] == META.term + 1
        assert status["applied_index"] > META.index
        for key, record in content.items():
            assert value_of(node, key[1:]) == record.value
        assert write(node, (b"new", b"value")) == [None]
        found = node._store.get(b"new")
        assert found is not None
        assert found.mod_revision > META.index
        members = node.members()["servers"]
        assert [server["id"] for server in members] == ["n1"]
        assert members[0]["address"] == "127.0.0.1:7001"
    with started(fs, data_dir=HOME) as node:
        assert value_of(node, b"new") == b"value"
        assert len(node._store.engine) == len(content) + 1


def test_sessions_locks_and_expiry_come_along() -> None:
    tree = open_engine(CrashFileSystem(), "/sender.db")
    store = Store(tree, META.configuration)
    now = 1_800_000_000_000
    for index, operations in enumerate(
        (
            (OpenSession(b"s1", 60_000, False, b"worker"), Put(b"job", b"1", ttl=5000)),
            (Acquire(b"lock", b"s1", b"mine"),),
        ),
        1,
    ):
        transaction = Transaction((), operations, time=now, idempotency_key=b"once%d" % index)
        data = encode_transaction(transaction._replace(window=1000))
        store.apply([Entry(3, index, EntryKind.COMMAND, data)])
    backup = Backup(store.snapshot(), FACTS)
    fs = disk_with(b"".join(backup.chunks()))
    backup.close()
    restored(fs)
    again = Store(open_engine(fs, f"{HOME}/conure.db"), b"")
    assert (again.records, again.clock, again.next_due()) == (2, now, store.next_due())
    assert again.session(b"s1") == store.session(b"s1") is not None
    assert again.holder(b"lock") == store.holder(b"lock") is not None
    assert again.digest == store.digest
    assert again.apply([Entry(4, 3, EntryKind.COMMAND, data)])[3].repeated


def test_a_state_of_the_second_version_comes_along() -> None:
    """And is read by no release that doesn't read what made it."""
    store = Store(open_engine(CrashFileSystem(), "/sender.db"), META.configuration)
    steps = (Write(b"k", b"v", expiry=Expiry(Life.TTL, 5000)), Append(b"k", b"w"), Add(b"n", 2))
    sequential = Sequential((), steps, 100, 7, b"once", b"fp", 1000)
    data = encode_sequential(sequential)
    done = store.apply([Entry(3, 1, EntryKind.COMMAND, data)])[1]
    backup = Backup(store.snapshot(), FACTS)
    fs = disk_with(b"".join(backup.chunks()))
    backup.close()
    restored(fs)
    tree = open_engine(fs, f"{HOME}/conure.db")
    again = Store(tree, b"")
    assert (again.version, again.records, again.clock, again.next_due()) == (2, 2, 7, 1007)
    assert again.get(b"k") == store.get(b"k") == (b"vw", 1, 1, 2, 5007)
    assert again.digest == store.digest
    repeated = again.apply([Entry(4, 2, EntryKind.COMMAND, data)])[2]
    assert repeated == done._replace(repeated=True)
    with pytest.raises(VersionTooNew, match="the state is of format version 2"):
        Store(tree, b"", speaks=1)
    inspection = Inspection(speaks=1)
    rows = [(key, *record) for key, record in again.engine.items()]
    with pytest.raises(VersionTooNew, match="the state is of format version 2"):
        inspection.look(rows)
    whole = Inspection(speaks=2)
    whole.look(rows)
    whole.finish()


def test_a_restored_cluster_is_another_one_each_time() -> None:
    """Rule 2: no member of the old cluster, and none of a restore before, is taken for it."""
    fs = disk_with(taken(some_content(3)))
    one = restored(fs, node_id="n1")
    other_fs = disk_with(taken(some_content(3)))
    other = restored(other_fs, node_id="n2")
    assert (one.node_id, other.node_id, one.role) == ("n1", "n2", "data")
    assert len({one.cluster_id, other.cluster_id, FACTS.cluster_id}) == 3
    assert one.incarnation != other.incarnation
    raft_log = RaftLog.open(other_fs, f"{HOME}/raft")
    member = Configuration.decode(raft_log.snapshot.configuration).servers[0]
    assert member.incarnation == other.incarnation
    assert raft_log.hard_state.term == META.term


def test_only_an_empty_directory_is_taken() -> None:
    fs = disk_with(taken(some_content(5)))
    fs.make_directory(f"{HOME}/lost+found")  # a file system of its own has that
    restored(fs)
    before = content_of(fs), fs.contents(f"{HOME}/identity.json")
    with pytest.raises(ForeignDirectory, match=r"conure\.db.*new or empty"):
        restored(fs, node_id="n2")
    assert (content_of(fs), fs.contents(f"{HOME}/identity.json")) == before

    strange = disk_with(taken(some_content(5)))
    strange.make_directory(HOME)
    strange.open(f"{HOME}/thesis.txt", create=True).close()
    with pytest.raises(ForeignDirectory, match=r"thesis\.txt"):
        restored(strange)
    strange.open(f"{HOME}/{UNFINISHED}", create=True).close()
    with pytest.raises(ForeignDirectory, match=r"thesis\.txt"):
        restored(strange)
    assert strange.list(HOME) == [UNFINISHED, "thesis.txt"]


def test_a_directory_that_somebody_holds_is_left_alone() -> None:
    fs = disk_with(taken(some_content(5)))
    fs.make_directory(HOME)
    lock = fs.lock(f"{HOME}/LOCK", "process 7 on here")
    with pytest.raises(DirectoryInUse, match="process 7"):
        restored(fs)
    assert fs.list(HOME) == ["LOCK"]
    lock.release()
    restored(fs)


@of_the_btree
def test_pages_that_are_too_small_for_the_keys_are_no_reason_to_lose_anything() -> None:
    content = {b"k" + bytes(900): Record(b"v", 1, 1, 1, 0)}
    data = b"".join(Backup(PinnedState(META, 1, sender(content, 4096).snapshot()), FACTS).chunks())
    fs = disk_with(data)
    with pytest.raises(StorageError, match="page_size"):
        restored(fs)
    with pytest.raises(ForeignDirectory):
        open_node(fs, data_dir=HOME)
    made = restore(
        fs, FILE, HOME, node_id="n1", raft_address="h:1", http_address="", kind=kind(),
        page_size=4096, progress=ignore,
    )  # fmt: skip
    assert made.header.records == 1
    assert content_of(fs) == content


def test_memory_is_bounded(small_chunks: None) -> None:
    content = some_content(3000)
    tree = sender(content)
    tree.checkpoint(1, 1)
    fs = disk_with(taken(content))
    file = BackupFile(fs, FILE)
    size = len(fs.contents(FILE))
    tracemalloc.start()
    try:
        backup = Backup(PinnedState(META, 4711, tree.snapshot()), FACTS)
        assert sum(map(len, backup.chunks())) == size
        file.verify(ignore)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 4


def test_progress_ends_at_the_whole_of_each_pass(small_chunks: None) -> None:
    fs = disk_with(taken(some_content(200)))
    seen: list[tuple[str, int, int]] = []
    restore(
        fs, FILE, HOME, node_id="n1", raft_address="h:1", http_address="", kind=kind(),
        page_size=1024, progress=lambda *facts: seen.append(facts),
    )  # fmt: skip
    size = len(fs.contents(FILE))
    assert {total for _, _, total in seen} == {size}
    for doing in ("verifying the backup", "restoring"):
        steps = [done for what, done, _ in seen if what == doing]
        assert len(steps) > 5
        assert steps == sorted(steps)
        assert steps[-1] == size


# -- a restore that does not end -----------------------------------------------------------------


def assert_nothing_or_all(fs: CrashFileSystem, content: Content) -> None:
    """See that no half of a node starts (rule 3), and that a restore makes a whole one of it."""
    names = set(fs.list(HOME)) - {"LOCK"} if fs.exists(HOME) else set()
    try:
        node = open_node(fs, data_dir=HOME, bootstrap=False)
    except (ForeignDirectory, CorruptionError):
        assert "identity.json" not in names
        assert restored(fs).node_id == "n1"
    else:
        node.stop()
        if not names:
            return  # it had not begun
    assert set(fs.list(HOME)) - {"lsm"} == {"LOCK", "conure.db", "identity.json", "raft"}
    with started(fs, data_dir=HOME, bootstrap=False) as node:
        assert dict(node._store.engine.items()) == content
        assert node.status()["applied_index"] > META.index


@pytest.mark.parametrize("other", ENGINES)
def test_what_is_left_of_a_restore_into_another_engine_goes(engine: str, other: str) -> None:
    content = some_content(60)
    data = taken(content)
    fs = disk_with(data)
    before = fs.syncs
    restored(fs, kind=kind_named(other))
    for number in range(1, fs.syncs - before + 1):
        fs = disk_with(data)
        fs.crash_at_sync = number
        with pytest.raises(SimulatedCrash):
            restored(fs, kind=kind_named(other))
        for mode in ("kept", "random"):
            after = fs.after_crash(mode, random.Random(number))
            if after.exists(f"{HOME}/identity.json"):
                continue
            identity = restored(after)
            assert identity.engine == engine
            assert content_of(after) == content
            left = after.list(f"{HOME}/lsm") if after.exists(f"{HOME}/lsm") else []
            assert bool(left) == (engine == "lsm")


@pytest.mark.parametrize("part", range(2))
def test_a_crash_at_every_sync_leaves_nothing_or_all(part: int) -> None:
    content = some_content(40)
    data = taken(content)
    fs = disk_with(data)
    before = fs.syncs
    restored(fs)
    syncs = fs.syncs - before
    assert syncs > 10
    states = 0
    for number in range(1 + part, syncs + 1, 2):
        fs = disk_with(data)
        fs.crash_at_sync = number
        with pytest.raises(SimulatedCrash):
            restored(fs)
        for survivor in fs.survivors(number):
            assert_nothing_or_all(survivor, content)
            states += 1
    assert states > 5 * syncs / 2


def test_what_was_restored_is_on_the_disk() -> None:
    content = some_content(40)
    fs = disk_with(taken(content))
    restored(fs)
    after = fs.after_crash("dropped")
    with started(after, data_dir=HOME, bootstrap=False) as node:
        assert dict(node._store.engine.items()) == content


@pytest.mark.parametrize("mode", ["dropped", "random"])
def test_a_restore_after_a_crash_may_crash_as_well(mode: CrashMode) -> None:
    """The leftovers of one restore are not taken for the work of the next."""
    content = some_content(40)
    old = disk_with(taken(some_content(50, seed=2)))
    old.crash_at_sync = 12
    with pytest.raises(SimulatedCrash):
        restored(old)
    for number in range(1, 30):
        fs = old.after_crash("kept")
        file = fs.open(FILE)
        data = taken(content)
        file.truncate(0)
        file.pwrite(data, 0)
        file.sync()
        fs.crash_at_sync = number
        try:
            restored(fs)
        except SimulatedCrash:
            fs = fs.after_crash(mode, random.Random(number))
        fs.crash_at_sync = None
        assert_nothing_or_all(fs, content)


@pytest.mark.parametrize("kind", ["io", "full"])
def test_a_failure_at_every_call_leaves_nothing_or_all(kind: str) -> None:
    content = some_content(40)
    data = taken(content)
    failures = 0
    number = 0
    while True:
        number += 1
        fs = disk_with(data)
        fs.fail_call(number, kind)  # type: ignore[arg-type]
        outcome: ConureError | None = None
        try:
            restored(fs)
        except (DiskFailed, DiskFull) as error:
            outcome = error
        if fs.failure_is_due:
            break
        failures += outcome is not None
        fs.restart_process()
        assert_nothing_or_all(fs, content)
    assert failures > 5
