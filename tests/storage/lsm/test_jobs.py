"""Flushes and merges beside a dict, on a disk that fails at every call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import CorruptionError, DiskFailed, DiskFull, StorageError
from conure.fileio import FileSystem, OsFileSystem
from conure.storage.lsm.durable import remove_files
from conure.storage.lsm.jobs import (
    FILES_PER_JOB,
    FlushJob,
    JobLimits,
    MergeJob,
    discard,
    flush,
    is_output,
    merge,
    pieces,
)
from conure.storage.lsm.tables import TOMBSTONE, TableFacts
from conure.storage.lsm.tablewriter import TableWriter
from conure.storage.lsm.verifying import prove
from tests.lab.crashfs import CrashFileSystem, FailureKind, SimulatedCrash
from tests.storage.lsm.jobtools import (
    FOLDER,
    LIMITS,
    STEM,
    cell,
    chunks,
    content,
    end,
    fed,
    flushed,
    merge_of,
    names,
    number,
)

KEYS = st.integers(0, 60).map(lambda key: b"%03d" % key)
CELLS = st.one_of(
    st.just(TOMBSTONE),
    st.binary(max_size=12).map(cell),
    st.integers(150, 900).map(lambda size: cell(b"L" * size)),
)
RUNS = st.lists(st.dictionaries(KEYS, CELLS, max_size=60), min_size=1, max_size=6)


def disk() -> CrashFileSystem:
    fs = CrashFileSystem()
    fs.make_directory(FOLDER)
    return fs


def overlaid(runs: Sequence[Mapping[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return what runs, the newest first, have together."""
    found: dict[bytes, bytes] = {}
    for run in reversed(runs):
        found |= run
    return found


@settings(max_examples=150, deadline=None)
@given(RUNS, st.lists(st.tuples(KEYS, KEYS).map(sorted), max_size=3), st.booleans())
def test_a_merge_is_what_dicts_would_be(
    runs: list[dict[bytes, bytes]], ranges: list[list[bytes]], move_values: bool
) -> None:
    fs = disk()
    written = [flushed(fs, run) for run in runs]
    assert [content(fs, each.tables, each.blobs) for each in written] == runs
    blobs = tuple(blob for each in written for blob in each.blobs)
    older: list[tuple[bytes, bytes]] = []
    for first, last in sorted(ranges):
        if not older or first > older[-1][1]:
            older.append((first, last))
    job = merge_of(
        [each.tables for each in written],
        older=tuple(older),
        emptied=blobs[::2] if move_values else (),
    )
    if not job.inputs:
        return
    before = {name: fs.contents(f"{FOLDER}/{name}") for name in names(fs)}
    result = end(merge(fs, FOLDER, job))
    expected = {
        key: value
        for key, value in overlaid(runs).items()
        if value or any(first <= key <= last for first, last in older)
    }
    kept = [blob for blob in blobs if blob not in job.emptied]
    assert content(fs, result.tables, [*kept, *result.blobs]) == expected
    assert result.read == sum(map(len, runs))
    assert result.dropped == len(overlaid(runs)) - len(expected)
    assert {name: fs.contents(f"{FOLDER}/{name}") for name in before} == before
    made = {file.name for file in result.tables} | {file.name for file in result.blobs}
    assert names(fs) == before.keys() | made
    assert len(end(prove(fs, FOLDER, job, result)).tables) == len(result.tables)


def test_what_is_done_is_durable() -> None:
    fs = disk()
    items = {b"%04d" % key: cell(b"v" * 500) for key in range(40)}
    result = flushed(fs, items)
    assert content(fs.after_crash("dropped"), result.tables, result.blobs) == items


def test_tables_and_blob_files_end_at_their_limits() -> None:
    fs = disk()
    items = {b"%05d" % key: cell(b"v" * 90) for key in range(400)}
    limits = JobLimits(table_bytes=4096, blob_bytes=2048, long_value=200)
    first = flushed(fs, items, limits=limits)
    result = end(merge(fs, FOLDER, merge_of([first.tables], limits=limits)))
    assert len(result.tables) > 8
    assert all(table.size < 8192 for table in result.tables)
    long = {b"%05d" % key: cell(b"v" * 1000) for key in range(20)}
    found = flushed(fs, long, limits=limits)
    assert [blob.size < 4096 for blob in found.blobs] == 10 * [True]


def test_a_long_value_goes_apart_and_its_key_counts() -> None:
    fs = disk()
    limits = LIMITS._replace(long_value=100)
    items = {b"k" * 50: cell(b"v" * 50), b"k" * 51: cell(b"v" * 50), b"l": cell(b"v" * 99)}
    result = flushed(fs, items, limits=limits)
    assert content(fs, result.tables, result.blobs) == items
    (blob,) = result.blobs
    assert result.tables[0].blobs[0][0] == blob.name
    assert b"v" * 60 not in fs.contents(f"{FOLDER}/{blob.name}")  # one value of 50 alone


def test_a_merge_of_neither_old_nor_emptied_files_opens_no_blob_file() -> None:
    fs = disk()
    first = flushed(fs, {b"a": cell(b"v" * 300)})
    for blob in first.blobs:
        fs.remove(f"{FOLDER}/{blob.name}")
    result = end(merge(fs, FOLDER, merge_of([first.tables])))
    assert result.tables[0].blobs == first.tables[0].blobs
    assert result.blobs == ()


def inputs(fs: FileSystem) -> MergeJob:
    """Make a merge that reads blob files, drops, supersedes, and writes several files."""
    old = flushed(fs, {b"%03d" % key: cell(b"o" * (300 * (key % 2))) for key in range(40)})
    new = flushed(fs, {b"%03d" % key: TOMBSTONE if key % 3 else cell(b"n") for key in range(30)})
    return merge_of([new.tables, old.tables], emptied=old.blobs)


@pytest.mark.parametrize("kind", ["io", "full", "half"])
def test_any_call_that_fails_leaves_nothing(kind: FailureKind) -> None:
    fs = disk()
    job = inputs(fs)
    before = names(fs)
    expected: type[StorageError] = DiskFailed if kind == "io" else DiskFull
    for n in range(1, 1000):
        fs.fail_call(n, kind)
        try:
            end(merge(fs, FOLDER, job))
        except expected:
            assert names(fs) == before
        else:
            break
    assert n > 5
    assert fs.failure_is_due
    fs.fail_call(None)


def test_any_call_of_a_flush_that_fails_leaves_nothing() -> None:
    items = {b"%03d" % key: cell(b"v" * (key % 4 * 100)) for key in range(40)}
    fs = disk()
    job = FlushJob(STEM, number(), LIMITS)
    for n in range(1, 1000):
        fs.fail_call(n, "io")
        try:
            end(flush(fs, FOLDER, job, chunks(items)))
        except StorageError:
            assert names(fs) == set()
        else:
            break
    assert n > 5


def test_a_job_that_is_given_up_is_discarded() -> None:
    fs = disk()
    job = inputs(fs)
    before = names(fs)
    for slices in range(100):
        running = merge(fs, FOLDER, job)
        if any(next(running, "over") for _ in range(slices)):
            break
        calls = fs.calls
        running.close()
        assert fs.calls == calls, "nobody would hear of a disk that fails"
        discard(fs, FOLDER, job)
        assert names(fs) == before
    assert slices > 3


def test_a_job_that_is_given_up_holds_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    items = {b"%03d" % key: cell(b"v" * 300) for key in range(40)}
    running = flush(OsFileSystem(), str(tmp_path), FlushJob(STEM, number(), LIMITS), chunks(items))
    next(running)
    assert len(os.listdir("/proc/self/fd")) > before
    running.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_power_lost_at_any_sync_harms_no_input() -> None:
    fs = disk()
    job = inputs(fs)
    expected = end(merge(fs, FOLDER, job))
    found = content(fs, expected.tables, expected.blobs)
    discard(fs, FOLDER, job)
    for n in range(1, 100):
        fs.crash_at_sync = n
        try:
            end(merge(fs, FOLDER, job))
        except SimulatedCrash:
            pass
        else:
            break
        fs.restart_process()
        for survivor in fs.survivors(n):
            discard(survivor, FOLDER, job)
            again = end(merge(survivor, FOLDER, job))
            assert content(survivor, again.tables, again.blobs) == found
        discard(fs, FOLDER, job)
    assert n > 3


@pytest.mark.parametrize("blob", [False, True])
def test_an_input_that_is_missing_or_damaged_is_named(blob: bool) -> None:
    fs = disk()
    job = inputs(fs)
    before = names(fs)
    name = job.emptied[-1].name if blob else job.inputs[1][0].name
    fs.corrupt(f"{FOLDER}/{name}", len(fs.contents(f"{FOLDER}/{name}")) - 20 if blob else 60)
    with pytest.raises(CorruptionError) as caught:
        end(merge(fs, FOLDER, job))
    assert caught.value.file == f"{FOLDER}/{name}"
    assert names(fs) == before
    fs.remove(f"{FOLDER}/{name}")
    with pytest.raises(CorruptionError, match="missing"):
        end(merge(fs, FOLDER, job))


def test_a_file_that_is_there_is_never_written_over() -> None:
    fs = disk()
    job = FlushJob(STEM, number(), LIMITS)
    theirs = f"{FOLDER}/{STEM}-{job.number}.sst"
    fs.open(theirs, create=True).pwrite(b"another's", 0)
    with pytest.raises(FileExistsError):
        end(flush(fs, FOLDER, job, chunks({b"k": cell(b"v")})))
    assert fs.contents(theirs) == b"another's"


def test_only_a_jobs_own_files_are_discarded() -> None:
    fs = disk()
    job = FlushJob(STEM, 7 * FILES_PER_JOB, LIMITS)
    mine = [f"{STEM}-7000000.sst", f"{STEM}-7999999.blob"]
    others = [
        f"{STEM}-6999999.sst",
        f"{STEM}-8000000.sst",
        f"{STEM}-07000000.sst",
        f"{STEM}-7000000.tmp",
        f"{STEM}-7000000",
        f"{STEM}-.sst",
        f"{STEM}-\u0667000000.sst",
        "incoming-1.db-0123456789abcdef-7000000.sst",
        "7000000.sst",
    ]
    for name in mine + others:
        fs.open(f"{FOLDER}/{name}", create=True)
    discard(fs, FOLDER, job)
    assert names(fs) == set(others)
    assert [is_output(name, job) for name in mine] == [True, True]
    discard(fs, "/nowhere", job)


def test_pieces_are_bounded_in_records_and_bytes() -> None:
    keys = [b"%05d" % key for key in range(5000)]
    cells = [b"x" * (300_000 if key % 1000 == 7 else 10) for key in range(5000)]
    found = list(pieces(keys, cells))
    assert [key for part, _ in found for key in part] == keys
    assert [each for _, part in found for each in part] == cells
    assert max(len(part) for part, _ in found) <= 1000
    assert max(sum(map(len, part)) for _, part in found) <= 1 << 20
    huge = [bytes(3 << 20), b"", bytes(2 << 20)]
    assert [part for _, part in pieces([b"a", b"b", b"c"], huge)] == [huge[:1], huge[1:2], huge[2:]]
    assert list(pieces([], [])) == []


def test_slices_of_a_merge_are_of_some_records_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a fallback in the node's own process holds nobody up."""
    fs = disk()
    limits = JobLimits(1 << 30, 1 << 30, 4096)
    runs: list[Sequence[TableFacts]] = []
    for at in range(12):
        items = {b"%06d" % key: cell(b"v" * 100) for key in range(at, 36_000, 12)}
        runs.append(flushed(fs, items, limits=limits).tables)
    written = 0
    add = TableWriter.add

    def counted(self: TableWriter, keys: Sequence[bytes], cells: Sequence[bytes]) -> None:
        nonlocal written
        written += len(keys)
        add(self, keys, cells)

    monkeypatch.setattr(TableWriter, "add", counted)
    slices = before = most = 0
    for _ in merge(fs, FOLDER, merge_of(runs, limits=limits)):
        slices += 1
        most, before = max(most, written - before), written
    assert written == 36_000
    assert most <= 2000
    assert slices >= 50  # records are read and written


def test_keys_that_do_not_ascend_are_an_error() -> None:
    fs = disk()
    wrong = [([b"b"], [cell(b"1")]), ([b"a"], [cell(b"2")])]
    with pytest.raises(ValueError, match="ascend"):
        end(flush(fs, FOLDER, FlushJob(STEM, number(), LIMITS), wrong))
    assert names(fs) == set()


def test_nothing_to_write_writes_nothing() -> None:
    fs = disk()
    result = flushed(fs, {})
    assert result == ((), (), 0, 0, 0)
    gone = flushed(fs, {b"a": TOMBSTONE})
    result = end(merge(fs, FOLDER, merge_of([gone.tables])))
    assert result == ((), (), 1, 0, 1)
    assert names(fs) == {table.name for table in gone.tables}
    assert fed({}).records == 0


def test_another_may_remove_an_output_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose job fails, while its node, or the next one, does the same."""
    fs = disk()
    job = FlushJob(STEM, number(), LIMITS)
    made = end(flush(fs, FOLDER, job, [([b"a"], [cell(b"1")])]))
    remove = fs.remove

    def late(path: str) -> None:
        remove(path)
        remove(path)

    monkeypatch.setattr(fs, "remove", late)
    discard(fs, FOLDER, job)
    assert made.tables[0].name not in names(fs)
    end(flush(fs, FOLDER, job, [([b"a"], [cell(b"1")])]))
    remove_files(fs, FOLDER, names(fs))
    assert names(fs) == set()


def test_an_output_that_cannot_be_removed_is_a_failed_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = disk()
    job = FlushJob(STEM, number(), LIMITS)
    end(flush(fs, FOLDER, job, [([b"a"], [cell(b"1")])]))

    def fail(path: str) -> None:
        raise DiskFailed(path)

    monkeypatch.setattr(fs, "remove", fail)
    with pytest.raises(DiskFailed):
        discard(fs, FOLDER, job)
