"""The durable log: what it keeps, how it reads, and what it makes of bytes that changed (S3)."""

from __future__ import annotations

import os
import random
import struct
import threading
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conure.consensus.logscan import examine
from conure.consensus.messages import COMMAND, CONFIG, NOOP, Entry, HardState, SnapshotMeta, Storage
from conure.consensus.raftlog import ENTRY_OVERHEAD, Compacted, RaftLog
from conure.consensus.records import decode_record, encode_record
from conure.consensus.spares import RESERVE_BYTES, RESERVE_FILES
from conure.errors import CorruptionError, DiskFailed, DiskFull
from conure.fileio import FileSystem, OsFileSystem
from tests.lab.crashfs import SECTOR, CrashFileSystem

DIRECTORY = "/data/raft"
YOUNGEST = f"{DIRECTORY}/{9:020}.log"


def check(fs: FileSystem, directory: str) -> None:
    examine(fs, directory, read_only=True).close()


def entries(first: int, last: int, term: int = 1, size: int = 40) -> list[Entry]:
    return [
        Entry(term, i, COMMAND, (b"%d/%d " % (term, i) * size)[:size])
        for i in range(first, last + 1)
    ]


def open_log(fs: FileSystem, directory: str = DIRECTORY, segment_bytes: int = 2048) -> RaftLog:
    return RaftLog.open(fs, directory, segment_bytes=segment_bytes)


def read_all(log: RaftLog, max_bytes: int = 1 << 20) -> list[Entry]:
    found: list[Entry] = []
    while (low := log.first_index + len(found)) <= log.last_index:
        found += log.entries(low, log.last_index + 1, max_bytes)
    return found


def reopened(log: RaftLog, fs: FileSystem, directory: str = DIRECTORY) -> RaftLog:
    log.close()
    return open_log(fs, directory)


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> tuple[FileSystem, str]:
    if request.param == "disk":
        return OsFileSystem(), os.path.join(tmp_path, "raft")
    return CrashFileSystem(), DIRECTORY


# -- keeping and reading -------------------------------------------------------------------------


def test_a_new_log_is_empty_and_stays_so(place: tuple[FileSystem, str]) -> None:
    fs, directory = place
    log = open_log(fs, directory)
    for _ in range(2):
        assert (log.first_index, log.last_index, log.last_term) == (1, 0, 0)
        assert (log.hard_state, log.snapshot) == (HardState(), SnapshotMeta())
        assert (log.term(0), log.term(1), log.segments, log.size_bytes) == (0, None, 0, 0)
        log.check()
        log = reopened(log, fs, directory)
    log.close()


def test_entries_come_back_from_memory_and_from_disk(place: tuple[FileSystem, str]) -> None:
    fs, directory = place
    log: RaftLog = open_log(fs, directory)
    storage: Storage = log
    written = entries(1, 40, 1) + entries(41, 50, 3, 0) + entries(51, 90, 4, 200)
    for start in range(0, 90, 7):
        log.append(written[start : start + 7])
    log.sync()
    assert log.segments > 3
    for _ in range(2):
        assert (storage.first_index, storage.last_index, log.last_term) == (1, 90, 4)
        assert read_all(log) == read_all(log, max_bytes=0) == written
        assert storage.entries(45, 60, 1 << 20) == written[44:59]
        assert storage.entries(55, 90, 450) == written[54:56]
        assert [log.term(i) for i in range(92)] == [0] + [e.term for e in written] + [None]
        log.check()
        log = storage = reopened(log, fs, directory)
    log.close()


def test_the_cache_is_bounded_and_reading_is_the_same_without_it() -> None:
    fs = CrashFileSystem()
    log = RaftLog.open(fs, DIRECTORY, segment_bytes=1 << 16, cache_bytes=10_000)
    written = entries(1, 500, size=100)
    for start in range(0, 500, 10):
        log.append(written[start : start + 10])
        calls = fs.calls
        low = log.last_index - 9
        assert log.entries(low, log.last_index + 1, 1 << 20) == written[start : start + 10]
        assert fs.calls == calls, "the latest entries come from memory"
    assert read_all(log) == written
    assert fs.calls > calls
    log.check()


def test_entries_that_are_known_are_left_and_conflicting_ones_replaced() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    old = entries(1, 60, 2)
    log.append(old)
    log.sync()
    before = {name: fs.contents(f"{DIRECTORY}/{name}") for name in fs.list(DIRECTORY)}
    log.append(old[10:30])
    assert {name: fs.contents(f"{DIRECTORY}/{name}") for name in fs.list(DIRECTORY)} == before
    assert log.last_index == 60
    log.append(old[50:] + entries(61, 62, 2))
    assert read_all(log) == old + entries(61, 62, 2)
    log.append(old[20:25] + entries(26, 27, 3))
    for _ in range(2):
        assert read_all(log) == old[:25] + entries(26, 27, 3)
        assert (log.term(25), log.term(26), log.term(28)) == (2, 3, None)
        log.check()
        log = reopened(log, fs)


def test_replaced_entries_stay_replaced_even_where_the_old_ones_look_newer() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    log.append(entries(1, 4, 1))
    log.append(entries(5, 50, 6))  # never committed, and of a later term
    log.append(entries(5, 5, 4))
    log.append(entries(5, 5, 5))
    log.sync()
    log = reopened(log, fs)
    assert read_all(log) == entries(1, 4, 1) + entries(5, 5, 5)
    log.check()


def test_an_entry_larger_than_a_segment_gets_one_of_its_own_size() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    written = entries(1, 2) + entries(3, 3, size=10_000) + entries(4, 5)
    log.append(written)
    log.sync()
    assert len(fs.contents(f"{DIRECTORY}/{3:020}.log")) > 10_000
    assert read_all(reopened(log, fs)) == written


def test_term_and_vote_are_on_disk_after_one_sync(place: tuple[FileSystem, str]) -> None:
    fs, directory = place
    log = open_log(fs, directory)
    for state in (HardState(1, "a"), HardState(2), HardState(2, "ä" * 100), HardState(2**64 - 1)):
        syncs = fs.syncs if isinstance(fs, CrashFileSystem) else 0
        log.set_hard_state(state)
        log.set_hard_state(state)
        assert log.hard_state == state
        if isinstance(fs, CrashFileSystem):
            assert fs.syncs == syncs + 1
            assert open_log(fs.after_crash("dropped")).hard_state == state
        log = reopened(log, fs, directory)
        assert log.hard_state == state
    log.close()


# -- cutting, spares -----------------------------------------------------------------------------


def test_cutting_forgets_whole_segments_and_keeps_the_rest() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    written = entries(1, 60) + entries(61, 100, 2)
    for start in range(0, 100, 5):
        log.append(written[start : start + 5])
    log.sync()
    segments, size = log.segments, log.size_bytes
    meta = SnapshotMeta(70, 2, b"three servers")
    log.cut(meta)
    log.cut(SnapshotMeta(20, 1))  # an older one changes nothing
    for _ in range(2):
        assert log.segments < segments
        assert log.size_bytes < size * 0.45
        assert (log.snapshot, log.first_index, log.last_index) == (meta, 71, 100)
        assert (log.term(69), log.term(70), log.term(71)) == (None, 2, 2)
        assert read_all(log) == written[70:]
        with pytest.raises(Compacted):
            log.entries(70, 80, 1)
        log.check()
        log = reopened(log, fs)
    log.cut(SnapshotMeta(100, 2, b""))
    assert (log.first_index, log.last_index, log.last_term, log.size_bytes) == (101, 100, 2, 0)
    log = reopened(log, fs)
    log.append(entries(101, 130, 3))
    log.sync()
    assert read_all(reopened(log, fs)) == entries(101, 130, 3)


def test_resetting_forgets_everything_wherever_the_snapshot_is() -> None:
    for index in (1, 30, 60, 500):
        fs = CrashFileSystem()
        log = open_log(fs)
        log.append(entries(1, 60))
        log.sync()
        meta = SnapshotMeta(index, 9, b"sent by the leader")
        log.reset(meta)
        for _ in range(2):
            assert (log.snapshot, log.last_index, log.last_term) == (meta, index, 9)
            assert (log.segments, log.size_bytes, log.term(index)) == (0, 0, 9)
            log.check()
            log = reopened(log, fs)
        more = entries(index + 1, index + 80, 9)
        log.append(more)
        log.sync()
        log.prepare()
        assert read_all(reopened(log, fs)) == more


def test_old_segments_become_spares_of_zeros_and_the_rest_goes() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    log.append(entries(1, 300))
    log.append(entries(301, 301, size=9000))
    log.append(entries(302, 310))
    log.sync()
    log.cut(SnapshotMeta(305, 1, b""))
    assert len([name for name in fs.list(DIRECTORY) if name.endswith(".old")]) > 2
    log.prepare()
    names = fs.list(DIRECTORY)
    assert not [name for name in names if name.endswith((".old", ".tmp"))]
    spares = [name for name in names if name.endswith(".spare")]
    assert len(spares) == 2
    for name in spares:
        assert fs.contents(f"{DIRECTORY}/{name}") == bytes(2048)
    used = fs.used_bytes()
    log.append(entries(311, 340))
    log.append(entries(341, 370))
    log.sync()
    assert fs.used_bytes() == used
    log.check()
    assert read_all(reopened(log, fs)) == entries(306, 370)


def test_a_record_of_an_earlier_life_is_never_read() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    log.append(entries(1, 1))
    log.sync()
    path = f"{DIRECTORY}/{1:020}.log"
    end = len(fs.contents(path).rstrip(b"\0"))
    stale = encode_record(entries(2, 2), salt=12345, unsynced=0)
    file = fs.open(path)
    file.pwrite(stale, end)
    with pytest.raises(CorruptionError, match="another file") as raised:
        reopened(log, fs)
    assert (raised.value.file, raised.value.offset) == (path, end)


@pytest.mark.parametrize("name", ["99.tmp", "snapshot.tmp", "state.tmp"])
def test_what_a_crash_has_left_half_made_goes_at_the_next_open(
    place: tuple[FileSystem, str], name: str
) -> None:
    fs, directory = place
    RaftLog.open(fs, directory).close()
    before = fs.list(directory)
    file = fs.open(os.path.join(directory, name), create=True)
    file.pwrite(b"half", 0)
    file.close()
    RaftLog.open(fs, directory).close()
    assert sorted(fs.list(directory)) == sorted(before)


def test_segments_that_a_cut_was_about_to_clear_away_go_at_the_next_open() -> None:
    fs = CrashFileSystem()
    log = RaftLog.open(fs, DIRECTORY, segment_bytes=1024)
    log.append(entries(1, 30, size=200))
    log.sync()
    log.cut(SnapshotMeta(29, 1, b""))
    later = fs.after_crash("dropped")
    named = [name for name in later.list(DIRECTORY) if name.endswith(".log")]
    assert len(named) > log.segments
    again = RaftLog.open(later, DIRECTORY, segment_bytes=1024)
    named = [name for name in later.list(DIRECTORY) if name.endswith(".log")]
    assert len(named) == again.segments == log.segments
    again.prepare()
    assert not [name for name in later.list(DIRECTORY) if name.endswith(".old")]


def test_spares_are_made_beside_appending(tmp_path: os.PathLike[str]) -> None:
    fs, directory = OsFileSystem(), os.path.join(tmp_path, "raft")
    log = open_log(fs, directory)
    done = threading.Event()
    failures: list[BaseException] = []

    def housekeeping() -> None:
        try:
            while not done.is_set():
                log.prepare()
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            failures.append(error)

    thread = threading.Thread(target=housekeeping)
    thread.start()
    written: list[Entry] = []
    for first in range(1, 1500, 10):
        more = entries(first, first + 9)
        written += more
        log.append(more)
        if first % 300 == 1 and first > 1:
            log.cut(SnapshotMeta(first - 100, 1, b""))
    log.sync()
    done.set()
    thread.join()
    assert not failures
    log.check()
    log = reopened(log, fs, directory)
    assert read_all(log) == written[log.first_index - 1 :]
    log.close()


def test_what_a_full_disk_left_of_a_record_is_not_in_the_way_of_the_next_one() -> None:
    fs = CrashFileSystem()
    log = open_log(fs, segment_bytes=8192)
    log.append(entries(1, 2))
    fs.fail_call(1, "half")
    with pytest.raises(DiskFull):
        log.append(entries(3, 3, size=4000))
    log.append(entries(3, 4))
    log.sync()
    log.check()
    assert read_all(reopened(log, fs)) == entries(1, 4)


def test_a_failed_sync_is_final() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    log.append(entries(1, 3))
    fs.fail_call(1)
    with pytest.raises(DiskFailed):
        log.sync()
    with pytest.raises(DiskFailed):  # S6: asking again doesn't make it true
        log.sync()
    with pytest.raises(DiskFailed):
        log.append(entries(4, 5))


# -- the reserve ---------------------------------------------------------------------------------


def no_ops(first: int, last: int, term: int = 1) -> list[Entry]:
    return [Entry(term, index, NOOP, b"") for index in range(first, last + 1)]


def full_log(written: int = 4) -> tuple[CrashFileSystem, RaftLog]:
    """A log with some entries, on a disk that takes nothing new, and no room but the reserve's."""
    fs = CrashFileSystem()
    log = open_log(fs)
    for entry in entries(1, written, size=(2048 - 64) // written - ENTRY_OVERHEAD):
        log.append([entry])
    log.sync()
    fs.set_capacity(fs.used_bytes())
    with pytest.raises(DiskFull):
        log.reserve(ENTRY_OVERHEAD)
    return fs, log


def reserve_of(fs: CrashFileSystem) -> list[str]:
    return [name for name in fs.list(DIRECTORY) if name.endswith(".reserve")]


def test_a_reserve_of_zeros_is_there_from_the_start_and_outlasts_a_crash() -> None:
    fs = CrashFileSystem()
    open_log(fs)
    after = fs.after_crash("dropped")
    assert len(reserve_of(after)) == RESERVE_FILES
    for name in reserve_of(after):
        assert after.contents(f"{DIRECTORY}/{name}") == bytes(RESERVE_BYTES)
    open_log(after)
    assert len(reserve_of(after)) == RESERVE_FILES


def test_the_reserve_takes_as_many_no_ops_as_the_head_of_the_file_says() -> None:
    fs, log = full_log()
    for index in range(5, 10_000):
        try:
            log.append(no_ops(index, index))
        except DiskFull:
            break
    log.sync()
    assert (index - 5) * RESERVE_FILES // 2 // RESERVE_FILES == 666
    log.check()
    found = read_all(reopened(log, fs))
    assert found[4:] == no_ops(5, index - 1)


def test_commands_leave_half_of_the_reserve_to_no_ops_and_configurations() -> None:
    fs, log = full_log()
    index = 5
    while True:
        fits = log.may_use_reserve(1000 + ENTRY_OVERHEAD, commands=True)
        try:
            log.append(entries(index, index, size=1000))
        except DiskFull:
            break
        assert fits
        index += 1
    assert not fits
    assert index - 5 == 2 * ((RESERVE_BYTES - 64) // (1000 + ENTRY_OVERHEAD))
    assert len(reserve_of(fs)) == RESERVE_FILES // 2
    assert log.may_use_reserve(15_000, commands=False)
    log.append([Entry(2, index, CONFIG, bytes(15_000))])
    log.append(no_ops(index + 1, index + 1, term=3))
    assert not log.may_use_reserve(0, commands=True)  # nor what is left of that one
    with pytest.raises(DiskFull):
        log.append(entries(index + 2, index + 2, term=3, size=0))
    assert log.last_index == index + 1
    log.sync()
    log.check()


def test_what_was_begun_in_the_reserve_is_for_clients_at_no_time() -> None:
    fs, log = full_log()
    log.append(no_ops(5, 5))
    log.sync()
    for _ in range(2):
        with pytest.raises(DiskFull):
            log.reserve(ENTRY_OVERHEAD)
        log = reopened(log, fs)
    fs.set_capacity(None)
    log.prepare()
    assert len(reserve_of(fs)) == RESERVE_FILES
    log.reserve(100)
    log.append(no_ops(6, 6) + entries(7, 7))
    assert log.segments == 3
    assert not log._segments[-1].is_reserve
    log.sync()
    log.check()
    assert read_all(reopened(log, fs))[4:] == no_ops(5, 6) + entries(7, 7)


def test_what_little_room_there_is_becomes_a_reserve_first() -> None:
    fs, log = full_log()
    log.append(no_ops(5, 5))
    log.sync()
    log.cut(SnapshotMeta(5, 1, b"members"))
    log.append(no_ops(6, 6, term=2))
    log.sync()
    before = len(reserve_of(fs))
    assert before < RESERVE_FILES
    fs.set_capacity(fs.used_bytes() + RESERVE_BYTES)
    with pytest.raises(DiskFull):
        log.prepare()
    assert len(reserve_of(fs)) > before


def test_entries_that_conflict_go_on_in_another_file_of_the_reserve() -> None:
    fs, log = full_log()
    for term in range(2, 2 + RESERVE_FILES):
        log.append(no_ops(5, 6, term))
        log.sync()
        log.check()
        fs.set_capacity(fs.used_bytes())  # somebody else takes what that gave back
        assert read_all(open_log(fs.after_crash("dropped")))[4:] == no_ops(5, 6, term)
    log.append(no_ops(7, 7, term))
    with pytest.raises(DiskFull):
        log.append(no_ops(7, 7, term + 1))
    assert log.last_term == term
    fs.set_capacity(None)
    log.append(no_ops(7, 7, term + 1))
    assert log.last_term == term + 1


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_the_beginning_of_the_log_finds_room_in_the_reserve(how: str) -> None:
    fs, log = full_log(8)
    for turn in range(1, 1 + RESERVE_FILES):
        meta = SnapshotMeta(turn if how == "cut" else 100 + turn, 1, b"members %d" % turn * 100)
        (log.cut if how == "cut" else log.reset)(meta)
        assert open_log(fs.after_crash("dropped")).snapshot == meta
        fs.set_capacity(fs.used_bytes())  # somebody else takes what that gave back
    log.give_up_reserve()
    fs.set_capacity(fs.used_bytes())
    before = log.snapshot
    with pytest.raises(DiskFull):
        (log.cut if how == "cut" else log.reset)(SnapshotMeta(5, 1, b"members"))
    assert log.snapshot == before


def test_where_room_that_is_there_can_not_be_written_no_more_of_it_is_spent() -> None:
    """On a disk that copies on write, the fourth attempt finds no more than the first."""
    fs, log = full_log(8)
    fs.copies_on_write = True
    for turn in range(1, 6):
        with pytest.raises(DiskFull):
            log.cut(SnapshotMeta(turn, 1, b"members"))
        with pytest.raises(DiskFull):
            log.append(no_ops(9, 9))
    assert len(reserve_of(fs)) == RESERVE_FILES - 1
    fs.set_capacity(None)
    log.cut(SnapshotMeta(5, 1, b"members"))
    log.append(no_ops(9, 9))
    log.prepare()
    assert len(reserve_of(fs)) == RESERVE_FILES
    assert "snapshot.tmp" not in fs.list(DIRECTORY)


def test_a_segment_of_the_reserve_is_an_ordinary_one_to_who_knows_of_none() -> None:
    """Its mark is where there was nothing but zeros, which nobody looked at."""
    fs, log = full_log()
    log.append(no_ops(5, 5))
    header = fs.contents(log._segments[-1].path)[:64]
    assert header[48:60] == b"\x01" + bytes(11)
    assert crc32(header[:60]) == int.from_bytes(header[60:])
    magic, version, _, _, first, _, size = struct.unpack(">8sB3xIQQQQ12x", header[:60])
    assert (magic, version, first, size) == (b"CONURLOG", 1, 5, RESERVE_BYTES)


# -- bytes that changed --------------------------------------------------------------------------


def small_log() -> tuple[CrashFileSystem, list[Entry]]:
    """A log with a cut, an older segment, and three synced groups in the youngest one."""
    fs = CrashFileSystem()
    log = RaftLog.open(fs, DIRECTORY, segment_bytes=2048)
    log.append(entries(1, 8, size=200))
    log.set_hard_state(HardState(3, "someone"))
    log.append(entries(9, 11, 2, size=150))
    log.append(entries(12, 12, 2, size=70))
    log.sync()
    log.append(entries(13, 14, 2, size=150))
    log.sync()
    log.cut(SnapshotMeta(2, 1, b"members"))
    log.append(entries(15, 15, 3, size=60))
    log.append(entries(16, 17, 3, size=170))
    log.append(entries(18, 18, 3, size=120))
    log.sync()
    written = read_all(log)
    log.close()
    assert YOUNGEST.rpartition("/")[2] in fs.list(DIRECTORY)
    assert len(written) == 16
    return fs, written


def test_a_flipped_bit_is_never_taken_for_the_end_of_the_log() -> None:
    fs, written = small_log()
    rng = random.Random(1)
    flips = silent = 0
    files_blamed = set()
    for name in ("state", "snapshot", f"{1:020}.log", f"{9:020}.log"):
        path = f"{DIRECTORY}/{name}"
        for offset in range(len(fs.contents(path))):
            flipped = fs.after_crash("kept")
            flipped.corrupt(path, offset, 1 << rng.randrange(8))
            flips += 1
            try:
                log = open_log(flipped)
            except CorruptionError as error:
                files_blamed.add((error.file, path))
                continue
            silent += 1
            assert fs.contents(path)[offset] == 0, "only bytes that say nothing"
            assert (read_all(log), log.hard_state) == (written, HardState(3, "someone"))
            log.check()
    assert silent < flips / 2
    assert all(blamed == changed for blamed, changed in files_blamed)


def log_on_disk(sizes: int = 40) -> tuple[CrashFileSystem, RaftLog, list[Entry]]:
    """A log that is open and keeps nothing in memory: one record an entry, several segments."""
    fs = CrashFileSystem()
    log = RaftLog.open(fs, DIRECTORY, segment_bytes=2048, cache_bytes=1)
    written = entries(1, 40, size=sizes)
    for entry in written:
        log.append([entry])
    log.sync()
    assert log.segments > 1
    assert read_all(log) == written
    return fs, log, written


def test_damage_that_comes_while_the_log_is_open_is_an_error_and_never_data() -> None:
    fs, log, written = log_on_disk()
    segment = log._segments[0]
    first, end = segment.offset_of(1), segment.end
    noticed = 0
    for offset in range(first, end):
        fs.corrupt(segment.path, offset, 1 << offset % 8)
        blamed = (segment.path, first)
        try:
            assert read_all(log) == written
        except CorruptionError as error:
            blamed = (error.file, error.offset)
            noticed += 1
        assert blamed[0] == segment.path
        assert first <= blamed[1] <= offset
        fs.corrupt(segment.path, offset, 1 << offset % 8)
        assert log.entries(40, 41, 1) == written[39:], "the rest can be read"
    assert noticed > 0.9 * (end - first)
    assert read_all(log) == written


def test_a_file_that_becomes_short_while_the_log_is_open_is_an_error() -> None:
    fs, log, _ = log_on_disk()
    segment = log._segments[0]
    fs.open(segment.path).truncate(segment.end - 10)
    with pytest.raises(CorruptionError) as found:
        read_all(log)
    assert found.value.file == segment.path


def test_a_record_in_the_place_of_another_one_is_an_error() -> None:
    """Its checksums are right; it is the index that says that it doesn't belong there."""
    fs, log, _ = log_on_disk()
    segment = log._segments[0]
    file = fs.open(segment.path)
    start = segment.offset_of(1)
    size = decode_record(file.pread(200, start), 0, segment.salt)[0].end
    one, other = (file.pread(size, start + at * size) for at in (3, 4))
    file.pwrite(other + one, start + 3 * size)
    for index in (4, 5):
        with pytest.raises(CorruptionError, match=f"entry {index} is not where it was written"):
            log.entries(index, index + 1, 1)


def test_a_lost_sector_of_an_older_group_is_corruption_and_of_the_last_one_a_torn_tail() -> None:
    fs, written = small_log()
    content = fs.contents(YOUNGEST)
    end = len(content.rstrip(b"\0"))
    last_group = content.find(b"3/15") - 60  # its first record begins a little before its data
    assert SECTOR < last_group // SECTOR * SECTOR < last_group
    outcomes = set()
    for offset in range(0, end, SECTOR):
        lost = fs.after_crash("kept")
        file = lost.open(YOUNGEST)
        file.pwrite(bytes(SECTOR), offset)
        file.sync()
        try:
            log = open_log(lost)
        except CorruptionError:
            outcomes.add("corrupt")
            assert offset < last_group
            continue
        outcomes.add("torn")
        assert offset >= last_group
        found = read_all(log)
        assert found == written[: len(found)]
        assert found[-1].index >= 14
        log.check()
    assert outcomes == {"corrupt", "torn"}


def test_a_torn_record_tells_too_that_those_before_it_were_on_disk() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    log.append([Entry(1, 1, 1, bytes(1000))])  # a sector of zeros: it looks as if it was lost
    log.sync()
    log.append(entries(2, 2, size=800))  # of this one only its first sector arrives
    path = f"{DIRECTORY}/{1:020}.log"
    torn = fs.after_crash("kept")
    file = torn.open(path)
    second = fs.contents(path).find(b"1/2 ") // SECTOR + 1
    file.pwrite(bytes(2048 - second * SECTOR), second * SECTOR)
    file.sync()
    assert open_log(torn.after_crash("kept")).last_index == 1
    torn.corrupt(path, 64 + 44 + 7)  # in the data of the record that was synced
    with pytest.raises(CorruptionError):
        open_log(torn)


def test_a_torn_tail_is_cut_off_for_good() -> None:
    fs = CrashFileSystem()
    log = open_log(fs)
    log.append(entries(1, 2, size=100))
    log.sync()
    for index in range(3, 8):
        log.append(entries(index, index, size=200))  # one group of five records, not synced
    path = f"{DIRECTORY}/{1:020}.log"
    torn = fs.after_crash("kept")
    file = torn.open(path)
    file.pwrite(bytes(SECTOR), SECTOR)  # a sector of it never arrived, the ones after it did
    file.sync()
    check(torn, DIRECTORY)
    before = torn.contents(path)
    log = open_log(torn)
    kept = log.last_index
    assert 2 <= kept < 5
    assert torn.contents(path) != before
    again = torn.after_crash("dropped")
    log = open_log(again)
    assert log.last_index == kept
    log.append(entries(kept + 1, kept + 1, 2, size=200))
    log.sync()
    assert read_all(reopened(log, again))[-1] == entries(kept + 1, kept + 1, 2, size=200)[0]


def test_check_changes_nothing(tmp_path: os.PathLike[str]) -> None:
    fs, _ = small_log()
    before = {name: fs.contents(f"{DIRECTORY}/{name}") for name in fs.list(DIRECTORY)}
    syncs = fs.syncs
    check(fs, DIRECTORY)
    assert {name: fs.contents(f"{DIRECTORY}/{name}") for name in fs.list(DIRECTORY)} == before
    assert fs.syncs == syncs
    with pytest.raises(FileNotFoundError):
        check(OsFileSystem(), os.path.join(tmp_path, "nothing"))
    fs.corrupt(YOUNGEST, 150)
    with pytest.raises(CorruptionError):
        check(fs, DIRECTORY)


@pytest.mark.parametrize("name", ["state", "snapshot", f"{1:020}.log"])
def test_a_file_that_is_gone_or_short_is_named(name: str) -> None:
    for damage in ("gone", "short"):
        fs, _ = small_log()
        path = f"{DIRECTORY}/{name}"
        if damage == "gone":
            fs.remove(path)
        else:
            file = fs.open(path)
            file.truncate(file.size() - 1 if name != "state" else 600)
        with pytest.raises(CorruptionError) as raised:
            open_log(fs)
        assert raised.value.file == (
            YOUNGEST if path.endswith("1.log") and damage == "gone" else path
        )


def test_a_vote_is_not_forgotten_with_a_file() -> None:
    for name in ("state", "snapshot"):
        fs = CrashFileSystem()
        log = open_log(fs)
        log.set_hard_state(HardState(1, "a"))
        fs.remove(f"{DIRECTORY}/{name}")
        with pytest.raises(CorruptionError, match=f"{name} is corrupt at byte 0: the file is"):
            reopened(log, fs)
    fs = CrashFileSystem()
    open_log(fs)
    fs.remove(f"{DIRECTORY}/snapshot")  # as a crash leaves it while the log is made
    assert open_log(fs).hard_state == HardState()


def test_a_segment_under_another_name_is_refused() -> None:
    fs, _ = small_log()
    fs.rename(YOUNGEST, f"{DIRECTORY}/{10:020}.log")
    with pytest.raises(CorruptionError, match="not what its name says"):
        open_log(fs)


# -- formats -------------------------------------------------------------------------------------

# Version 1 of each file, up to the zeros at its end. A change here breaks every existing log.
GOLDEN_SLOT = "434f4e5552564f5401060000000000000000000200000000000000026e6f64652d316008662a"
GOLDEN_SNAPSHOT = (
    "434f4e5552534e500100000000000000000000010000000000000001000000000000000100000009"
    "6f6e6520766f746572efe12462"
)
GOLDEN_SEGMENT = (
    "434f4e55524c4f47010000005a17c0df000000000000000100000000000000010000000000000000"
    "0000000000000800000000000000000000000000e0af07db0797cc59abe7a1475a17c0df00000005"
    "0000000001000000000000000000000100000000000000010000000100000000003d7550584e4c6b"
    "e65a17c0df0000001500000000010000000000000000000002000000000000000200000002000000"
    "0800000003010201010000016b6869636667"
)


def test_golden_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda n: b"\x5a\x17\xc0\xde"[:n])
    fs = CrashFileSystem()
    log = open_log(fs)
    log.append([Entry(1, 1, 0, b"")])
    log.sync()
    log.cut(SnapshotMeta(1, 1, b"one voter"))
    log.append([Entry(2, 2, 1, b"\x01\x01\x00\x00\x01khi"), Entry(2, 3, 2, b"cfg")])
    log.sync()
    log.set_hard_state(HardState(2, "node-1"))
    state = fs.contents(f"{DIRECTORY}/state")
    assert len(state) == 4096 + SECTOR
    assert state[:508].rstrip(b"\0").hex() + state[508:512].hex() == GOLDEN_SLOT
    assert fs.contents(f"{DIRECTORY}/snapshot").hex() == GOLDEN_SNAPSHOT
    segment = fs.contents(f"{DIRECTORY}/{1:020}.log")
    assert len(segment) == 2048
    assert segment.rstrip(b"\0").hex() == GOLDEN_SEGMENT


# -- any order of things -------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Operations in any order beside a list that can't be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = CrashFileSystem()
        self.log = RaftLog.open(self.fs, DIRECTORY, segment_bytes=1024, cache_bytes=3000)
        self.meta = SnapshotMeta()
        self.model: list[Entry] = []
        self.state = HardState()
        self.term = 1

    @property
    def last_index(self) -> int:
        return self.meta.index + len(self.model)

    @rule(count=st.integers(1, 12), size=st.sampled_from([0, 1, 30, 150, 700, 1500]))
    def append(self, count: int, size: int) -> None:
        more = entries(self.last_index + 1, self.last_index + count, self.term, size)
        self.log.append(more)
        self.model += more

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(1, 8))
    def append_over(self, data: st.DataObject, count: int) -> None:
        at = data.draw(st.integers(0, len(self.model) - 1))
        known = data.draw(st.integers(0, min(3, len(self.model) - at)))
        self.term += 1
        first = self.meta.index + at + known + 1
        more = self.model[at : at + known] + entries(first, first + count - 1, self.term)
        self.log.append(more)
        self.model[at:] = more

    @rule()
    def sync(self) -> None:
        self.log.sync()

    @rule()
    def prepare(self) -> None:
        self.log.prepare()

    @rule(vote=st.sampled_from(["", "a", "b"]))
    def vote(self, vote: str) -> None:
        self.state = HardState(self.term, vote)
        self.log.set_hard_state(self.state)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(1, len(self.model)))
        last = self.model[at - 1]
        self.meta = SnapshotMeta(last.index, last.term, b"%d" % last.index)
        self.log.cut(self.meta)
        del self.model[:at]

    @rule(beyond=st.integers(-5, 5))
    def reset(self, beyond: int) -> None:
        index = max(self.meta.index, 1, self.last_index + beyond)
        self.meta = SnapshotMeta(index, self.term, b"reset")
        self.log.reset(self.meta)
        self.model = []

    @rule(how=st.sampled_from(["restart", "power"]))
    def reopen(self, how: str) -> None:
        if how == "power":
            self.log.sync()
            self.fs = self.fs.after_crash("dropped")
        self.log.close()
        self.log = RaftLog.open(self.fs, DIRECTORY, segment_bytes=1024, cache_bytes=3000)

    @invariant()
    def is_the_model(self) -> None:
        assert (self.log.snapshot, self.log.hard_state) == (self.meta, self.state)
        assert self.log.last_index == self.last_index
        assert self.log.last_term == (self.model[-1].term if self.model else self.meta.term)
        assert read_all(self.log, max_bytes=300) == self.model
        self.log.check()


AnyOrder.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyOrder = AnyOrder.TestCase
