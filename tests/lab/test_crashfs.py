"""The crashing disk itself: a test tool that lies would prove nothing.

What the real file system does too is asserted of both.
"""

from __future__ import annotations

import os
import random

import pytest

from conure.errors import CorruptionError, DirectoryInUse, DiskFailed, DiskFull, ForeignDirectory
from conure.fileio import File, FileSystem, OsFileSystem
from tests.lab.crashfs import SECTOR, CrashFileSystem, CrashMode, SimulatedCrash


def disk_with(content: bytes, path: str = "/d/f") -> tuple[CrashFileSystem, File]:
    fs = CrashFileSystem()
    fs.make_directory("/d")
    file = fs.open(path, create=True)
    file.pwrite(content, 0)
    file.sync()
    fs.sync_directory("/d")
    return fs, file


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> tuple[FileSystem, str]:
    fs: FileSystem = CrashFileSystem() if request.param == "memory" else OsFileSystem()
    base = os.path.join(tmp_path, "a", "b")
    fs.make_directory(base)
    return fs, base


def test_files_behave_like_files(place: tuple[FileSystem, str]) -> None:
    fs, base = place
    path = os.path.join(base, "f")
    with pytest.raises(FileNotFoundError):
        fs.open(path)
    with pytest.raises(FileNotFoundError):
        fs.open(os.path.join(base, "no", "f"), create=True)
    file = fs.open(path, create=True)
    file.pwrite(b"hello", 3)
    file.pwritev([b"12", b"", b"345"], 8)
    file.allocate(6, 1)
    assert (file.path, file.size(), file.pread(100, 0)) == (path, 13, b"\0\0\0hel\0o12345")
    assert (file.pread(2, 4), file.pread(9, 11), file.pread(1, 50)) == (b"el", b"45", b"")
    file.truncate(5)
    file.truncate(7)
    assert fs.open(path, create=True).pread(100, 0) == b"\0\0\0he\0\0"
    file.sync()
    other = os.path.join(base, "g")
    fs.open(other, create=True).close()
    fs.rename(path, other)
    fs.sync_directory(base)
    assert (fs.list(base), fs.exists(path), fs.exists(other)) == (["g"], False, True)
    assert fs.list(os.path.dirname(base)) == ["b"]
    assert fs.open(other, read_only=True).pread(2, 3) == b"he"
    file.pwrite(b"!", 0)
    assert fs.open(other).pread(1, 0) == b"!", "a renamed file is the same file"
    fs.remove(other)
    assert file.pread(1, 0) == b"!", "an open file outlives its name"
    file.close()


@pytest.mark.parametrize("mapped", [True, False])
def test_files_are_read_at_random(place: tuple[FileSystem, str], mapped: bool) -> None:
    fs, base = place
    path = os.path.join(base, "f")
    with pytest.raises(FileNotFoundError):
        fs.map(path, 0, mapped=mapped)
    file = fs.open(path, create=True)
    empty = fs.map(path, 0, mapped=mapped)
    assert (len(empty), empty[0:9], empty.find(b"x", 0, 9), bytes(empty.view(0, 9))) == (
        (0, b"", -1, b"")
    )
    content = b"0123456789"
    file.pwrite(content, 0)
    found = fs.map(path, 10, mapped=mapped)
    assert len(found) == 10
    for start in range(12):
        for stop in range(12):
            assert found[start:stop] == content[start:stop]
            assert bytes(found.view(start, stop)) == content[start:stop]
            for sub in (b"3", b"45", b"x"):
                assert found.find(sub, start, stop) == content.find(sub, start, stop)
    assert (found[:3], found[8:]) == (b"012", b"89")
    for size in (9, 11):
        with pytest.raises(CorruptionError, match=f"has 10 bytes and not {size}") as caught:
            fs.map(path, size, mapped=mapped)
        assert (caught.value.file, caught.value.offset) == (path, min(size, 10))
    file.pwrite(b"!", 4)
    assert found[3:6] == b"3!5", "what programs see"
    fs.remove(path)
    assert found[3:6] == b"3!5", "what is open outlives its name"
    file.close()


def test_a_file_is_made_exclusively(place: tuple[FileSystem, str]) -> None:
    fs, base = place
    path = os.path.join(base, "f")
    file = fs.open(path, exclusive=True)
    file.pwrite(b"mine", 0)
    for _ in range(2):
        with pytest.raises(FileExistsError):
            fs.open(path, create=True, exclusive=True)
    with pytest.raises(FileExistsError):
        fs.open(base, exclusive=True)
    with pytest.raises(FileNotFoundError):
        fs.open(os.path.join(base, "no", "f"), exclusive=True)
    assert fs.open(path, create=True).pread(9, 0) == b"mine"
    file.close()


def test_errors_are_the_same_errors(place: tuple[FileSystem, str]) -> None:
    fs, base = place
    path = os.path.join(base, "f")
    fs.open(path, create=True).close()
    for attempt in (
        lambda: fs.remove(os.path.join(base, "no")),
        lambda: fs.rename(os.path.join(base, "no"), path),
        lambda: fs.sync_directory(os.path.join(base, "no")),
        lambda: fs.open(path, read_only=True).pwrite(b"x", 0),
    ):
        with pytest.raises(DiskFailed):
            attempt()
    with pytest.raises(ForeignDirectory):
        fs.make_directory(path)
    with pytest.raises(ForeignDirectory):
        fs.open(base)
    with pytest.raises(FileNotFoundError):
        fs.list(os.path.join(base, "no"))
    file = fs.open(path)
    file.close()
    file.close()
    with pytest.raises(DiskFailed):
        file.pwrite(b"x", 0)
    with pytest.raises(DiskFailed):
        file.pread(1, 0)


def test_a_lock_names_its_holder_and_is_released(place: tuple[FileSystem, str]) -> None:
    fs, base = place
    path = os.path.join(base, "LOCK")
    lock = fs.lock(path, "process 7")
    with pytest.raises(DirectoryInUse, match="process 7"):
        fs.lock(path, "process 8")
    lock.release()
    fs.lock(path, "process 8").release()
    assert fs.list(base) == ["LOCK"]


def test_only_what_was_synced_survives() -> None:
    fs, file = disk_with(b"old")
    file.pwrite(b"new!", 0)
    assert fs.contents("/d/f") == b"new!"
    assert fs.after_crash("dropped").contents("/d/f") == b"old"
    assert fs.after_crash("kept").contents("/d/f") == b"new!"
    file.sync()
    file.truncate(1)
    assert fs.after_crash("dropped").contents("/d/f") == b"new!"
    assert fs.after_crash("kept").contents("/d/f") == b"n"
    fs.lock("/d/LOCK", "someone")
    fs.after_crash("kept").lock("/d/LOCK", "the next one")


def test_names_survive_only_the_sync_of_their_directory() -> None:
    fs, _ = disk_with(b"old")
    file = fs.open("/d/new", create=True)
    file.pwrite(b"new", 0)
    file.sync()
    assert fs.after_crash("dropped").list("/d") == ["f"]
    fs.rename("/d/new", "/d/f")
    assert fs.after_crash("dropped").contents("/d/f") == b"old"
    assert fs.after_crash("kept").list("/d") == ["f"]
    assert fs.after_crash("kept").contents("/d/f") == b"new"
    fs.sync_directory("/")
    assert fs.after_crash("dropped").contents("/d/f") == b"old"
    fs.sync_directory("/d")
    assert fs.after_crash("dropped").contents("/d/f") == b"new"
    fs.remove("/d/f")
    assert fs.after_crash("dropped").list("/d") == ["f"]
    assert fs.after_crash("kept").list("/d") == []


def test_a_torn_write_ends_at_a_sector_and_sectors_never_mix() -> None:
    fs, file = disk_with(b"o" * 5 * SECTOR)
    file.pwrite(b"1" * 3 * SECTOR, 100)
    file.pwrite(b"2" * SECTOR, 3 * SECTOR)
    torn: set[str] = set()
    mixed: set[str] = set()
    modes: list[tuple[CrashMode, set[str]]] = [("torn", torn), ("random", mixed)]
    for seed in range(200):
        for mode, seen in modes:
            content = fs.after_crash(mode, random.Random(seed)).contents("/d/f")
            sectors = [content[i : i + SECTOR] for i in range(0, len(content), SECTOR)]
            assert sectors[0] in (b"o" * SECTOR, b"o" * 100 + b"1" * 412)
            assert sectors[1] in (b"o" * SECTOR, b"1" * SECTOR)
            assert sectors[3] in (b"o" * SECTOR, b"1" * 100 + b"o" * 412, b"2" * SECTOR)
            assert sectors[4] == b"o" * SECTOR
            seen.add("".join(chr(sector[-1]) for sector in sectors))
    assert torn == {"ooooo", "1oooo", "11ooo", "111oo"}
    assert {"ooooo", "1112o", "111oo", "o1ooo", "ooo2o", "o1o2o"} <= mixed


def test_a_write_that_arrives_brings_what_its_sector_held_before() -> None:
    fs, file = disk_with(b"")
    file.pwrite(b"first", 0)
    file.pwrite(b"second", 5)
    found = {fs.after_crash("random", random.Random(s)).contents("/d/f") for s in range(100)}
    assert {content.rstrip(b"\0") for content in found} == {b"", b"first", b"firstsecond"}


def test_the_same_seed_is_the_same_crash() -> None:
    fs, file = disk_with(b"")
    for i in range(50):
        file.pwrite(bytes([i]) * 700, i * 900)
    assert fs.after_crash("random").contents("/d/f") == fs.after_crash("random").contents("/d/f")
    others = {fs.after_crash("random", random.Random(s)).contents("/d/f") for s in range(9)}
    assert len(others) == 9


def test_a_crash_at_a_sync_comes_before_it_and_lasts() -> None:
    fs, file = disk_with(b"old")
    file.pwrite(b"new", 0)
    syncs = fs.syncs
    fs.crash_at_sync = 2
    fs.sync_directory("/d")
    with pytest.raises(SimulatedCrash):
        file.sync()
    assert fs.syncs == syncs + 2
    for attempt in (lambda: file.pwrite(b"x", 0), lambda: fs.list("/d"), lambda: file.pread(1, 0)):
        with pytest.raises(SimulatedCrash):
            attempt()
    file.close()
    assert fs.after_crash("dropped").contents("/d/f") == b"old"
    fs.restart_process()
    assert fs.open("/d/f").pread(9, 0) == b"new"
    assert fs.after_crash("dropped").contents("/d/f") == b"old"


def test_the_call_that_was_ordered_to_fail_fails_once_and_poisons() -> None:
    fs, file = disk_with(b"old")
    fs.fail_call(2)
    assert file.pread(3, 0) == b"old"
    with pytest.raises(DiskFailed):
        file.sync()
    assert not fs.failure_is_due
    with pytest.raises(DiskFailed):
        file.pwrite(b"x", 0)
    assert file.pread(3, 0) == b"old", "reading goes on"
    fs.open("/d/f").pwrite(b"new", 0)
    fs.fail_call(1)
    with pytest.raises(DiskFailed):
        file.pread(1, 0)
    fs.fail_call(2, "full")
    other = fs.open("/d/g", create=True)
    other.sync()
    with pytest.raises(DiskFull):
        other.pwrite(b"x", 0)
    other.pwrite(b"y", 0)
    assert fs.contents("/d/g") == b"y", "a full disk poisons nothing"


def test_mapping_may_fail_and_looking_may_not() -> None:
    fs, _ = disk_with(b"content")
    for number in (1, 2):
        fs.fail_call(number)
        with pytest.raises(DiskFailed):
            fs.map("/d/f", 7)
    found = fs.map("/d/f", 7)
    by_calls = fs.map("/d/f", 7, mapped=False)
    calls = fs.calls
    assert (found[0:7], bytes(found.view(1, 3)), found.find(b"t", 0, 7)) == (b"content", b"on", 3)
    assert fs.calls == calls
    fs.fail_call(1)
    with pytest.raises(DiskFailed):
        by_calls[0:7]
    assert by_calls[0:7] == b"content"
    assert fs.calls == calls + 2
    fs.corrupt("/d/f", 0)
    assert found[0:1] == by_calls[0:1] == b"b"


def test_a_disk_that_runs_full_within_a_write_has_written_whole_sectors() -> None:
    fs, file = disk_with(b"o" * 4 * SECTOR)
    for offset, written in ((0, 2 * SECTOR), (100, 2 * SECTOR - 100)):
        fs.fail_call(1, "half")
        with pytest.raises(DiskFull):
            file.pwrite(b"n" * 4 * SECTOR, offset)
        assert fs.contents("/d/f")[offset:].count(b"n") == written
        file.pwrite(b"o" * 4 * SECTOR, 0)


def test_a_full_disk_takes_what_fits_and_goes_on_in_old_sectors() -> None:
    fs, file = disk_with(b"x" * SECTOR)
    fs.set_capacity(3 * SECTOR)
    with pytest.raises(DiskFull):
        file.allocate(SECTOR, 3 * SECTOR)
    assert (file.size(), fs.used_bytes()) == (3 * SECTOR, 3 * SECTOR)
    file.pwrite(b"y" * 3 * SECTOR, 0)
    file.truncate(SECTOR)
    file.pwrite(b"z", 5 * SECTOR)  # a hole takes no space
    assert fs.used_bytes() == 2 * SECTOR
    fs.remove("/d/f")
    assert fs.used_bytes() == 0
    fs.set_capacity(None)
    file.allocate(0, 9 * SECTOR)


def test_corruption_reaches_the_disk_and_every_open_file() -> None:
    fs, file = disk_with(b"abc")
    fs.corrupt("/d/f", 1, 0x20)
    assert file.pread(3, 0) == b"aBc"
    assert fs.after_crash("dropped").contents("/d/f") == b"aBc"
