"""What fileio promises of the real file system, with the system calls misbehaving in between."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from conure.errors import (
    CorruptionError,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    Exhausted,
    ForeignDirectory,
)
from conure.fileio import File, OsFileSystem, others_who_may_write

FS = OsFileSystem()
CHANGES: list[Any] = [
    pytest.param("pwrite", lambda file: file.pwrite(b"x", 0), id="pwrite"),
    pytest.param("pwritev", lambda file: file.pwritev([b"x", b"y"], 0), id="pwritev"),
    pytest.param("pwrite", lambda file: file.allocate(0, 10), id="allocate"),
    pytest.param("fdatasync", lambda file: file.sync(), id="sync"),
    pytest.param("ftruncate", lambda file: file.truncate(0), id="truncate"),
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


def failing(number: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def content(path: str) -> bytes:
    return Path(path).read_bytes()


# -- 1: everything is written, and reads are short only at the end --------------------------------


def test_reads_are_short_only_at_the_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FS.open(path, create=True)
    file.pwrite(b"0123456789", 0)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 3), offset))
    assert file.pread(10, 0) == b"0123456789"
    assert file.pread(4, 5) == b"5678"
    assert file.pread(100, 8) == b"89"
    assert file.pread(5, 10) == file.pread(0, 3) == b""
    file.close()


@pytest.mark.parametrize("most", [1, 2, 7])
def test_short_writes_are_continued(path: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write, write_many = os.pwrite, os.pwritev

    def short_many(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        return write_many(fd, [b"".join(buffers)[:most]], offset)

    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:most], at))
    monkeypatch.setattr(os, "pwritev", short_many)
    file = FS.open(path, create=True)
    file.pwrite(b"0123456789", 2)
    file.pwritev([b"ab", b"", b"cdef", b"g"], 12)
    assert content(path) == b"\0\x000123456789abcdefg"
    file.close()


def test_any_number_of_buffers(path: str) -> None:
    file = FS.open(path, create=True)
    buffers = [b"%d," % number for number in range(2000)]  # more than the system takes at once
    file.pwritev(buffers, 5)
    assert content(path) == bytes(5) + b"".join(buffers)
    file.pwritev([], 0)
    file.close()


def test_allocate_fills_with_zeros(path: str) -> None:
    file = FS.open(path, create=True)
    file.pwrite(b"x" * 3_000_000, 0)
    file.allocate(1000, 2_500_000)
    assert content(path) == b"x" * 1000 + bytes(2_500_000) + b"x" * 499_000
    file.truncate(10)
    assert file.size() == 10
    file.close()


# -- 3: lack of space can be waited out, anything else is final (S6) ------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(("call", "change"), CHANGES[:3])
def test_a_lack_of_space_is_not_final(
    path: str, call: str, change: Callable[[File], None], number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = FS.open(path, create=True)
    with monkeypatch.context() as full:
        full.setattr(os, call, failing(number))
        with pytest.raises(DiskFull, match=f"{path}.*free some space"):
            change(file)
    change(file)
    file.sync()
    file.close()


@pytest.mark.parametrize(("call", "change"), CHANGES)
def test_any_other_failure_poisons_the_file(
    path: str, call: str, change: Callable[[File], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FS.open(path, create=True)
    file.pwrite(b"before", 0)
    with monkeypatch.context() as broken:
        broken.setattr(os, call, failing(errno.EIO))
        with pytest.raises(DiskFailed, match=path):
            change(file)
    touched: list[str] = []
    for name in ("pwrite", "pwritev", "fdatasync", "ftruncate"):
        monkeypatch.setattr(os, name, lambda *_, name=name: touched.append(name))
    for _, later in (parameters.values for parameters in CHANGES):
        with pytest.raises(DiskFailed):
            later(file)
    assert touched == []
    assert file.pread(6, 0) == b"before"  # reading is still possible
    file.close()


@pytest.mark.parametrize("call", ["fdatasync", "ftruncate"])
def test_a_sync_that_lacks_space_is_final_too(
    path: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FS.open(path, create=True)
    with monkeypatch.context() as full:
        full.setattr(os, call, failing(errno.ENOSPC))
        with pytest.raises(DiskFailed):
            file.sync() if call == "fdatasync" else file.truncate(5)
    with pytest.raises(DiskFailed):
        file.sync()
    file.close()


def test_a_read_that_fails_poisons_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FS.open(path, create=True)
    file.pwrite(b"x", 0)
    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", failing(errno.EIO))
        with pytest.raises(DiskFailed, match=f"reading {path}"):
            file.pread(1, 0)
    assert file.pread(1, 0) == b"x"
    file.pwrite(b"y", 0)
    file.close()


def test_a_write_cut_short_by_a_full_disk_is_told(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, []

    def two_bytes_then_full(fd: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data[:2], offset)

    file = FS.open(path, create=True)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", two_bytes_then_full)
        with pytest.raises(DiskFull):
            file.pwrite(b"0123", 0)
    assert calls == [0, 2]
    file.pwrite(b"0123", 0)
    assert content(path) == b"0123"
    file.close()


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
def test_what_is_read_at_random_is_let_go_with_its_last_reference(path: str, mapped: bool) -> None:
    before = set(os.listdir("/proc/self/fd"))
    file = FS.open(path, create=True)
    file.pwrite(b"content", 0)
    file.close()
    found = FS.map(path, 7, mapped=mapped)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    view = found.view(0, 3)
    del found
    assert bytes(view) == b"con"
    view.release()
    del view
    with pytest.raises(CorruptionError):
        FS.map(path, 8, mapped=mapped)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_map_that_is_not_to_be_had_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FS.open(path, create=True)
    file.pwrite(b"content", 0)
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("conure.fileio.OsMap", lambda *_, **__: failing(errno.ENOMEM)())
    with pytest.raises(DiskFailed, match=f"mapping {path} failed"):
        FS.map(path, 7)
    assert set(os.listdir("/proc/self/fd")) == before
    file.close()


def test_nothing_is_written_through_a_map(path: str) -> None:
    file = FS.open(path, create=True)
    file.pwrite(b"content", 0)
    view = FS.map(path, 7).view(0, 7)
    assert view.readonly
    file.close()


def test_opening(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        FS.open(path)
    file = FS.open(path, create=True)
    file.pwrite(b"x", 0)
    file.close()
    file.close()  # once more does no harm
    again = FS.open(path, create=True)  # what is there is left as it is
    assert again.pread(10, 0) == b"x"
    again.close()
    read_only = FS.open(path, read_only=True)
    with pytest.raises(DiskFailed):
        read_only.pwrite(b"y", 0)
    read_only.close()
    for is_read_only in (False, True):
        with pytest.raises(ForeignDirectory):
            FS.open(str(tmp_path), read_only=is_read_only)
    with pytest.raises(ForeignDirectory):
        FS.open(path + "/below", create=True)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EACCES, ForeignDirectory),
        (errno.EROFS, ForeignDirectory),
        (errno.EIO, DiskFailed),
        (errno.EMFILE, DiskFailed),
    ],
)
def test_a_file_that_cannot_be_opened_is_named(
    path: str, number: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", failing(number))
    with pytest.raises(kind, match=path):
        FS.open(path, create=True)
    with pytest.raises(kind, match=path):
        FS.lock(path, "me")


def test_a_directory_of_somebody_else_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", failing(errno.EACCES))
    with pytest.raises(ForeignDirectory, match=path):
        FS.list(path)
    monkeypatch.setattr(os, "listdir", failing(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        FS.list(path)


def test_directories(tmp_path: Path) -> None:
    deep = str(tmp_path / "a" / "b" / "c")
    FS.make_directory(deep)
    FS.make_directory(deep)
    FS.sync_directory(deep)
    assert FS.exists(deep)
    assert FS.list(str(tmp_path)) == ["a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ForeignDirectory, match="file"):
        FS.make_directory(str(tmp_path / "file" / "below"))
    with pytest.raises(DiskFailed):
        FS.sync_directory(str(tmp_path / "missing"))


def test_only_a_directory_that_can_not_be_opened_may_be_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what a sync that failed has lost, and the next one need not tell."""
    monkeypatch.setattr(os, "fsync", failing(errno.ENOMEM))
    with pytest.raises(DiskFailed) as failed:
        FS.sync_directory(str(tmp_path))
    assert not isinstance(failed.value, Exhausted)
    monkeypatch.setattr(os, "open", failing(errno.EMFILE))
    with pytest.raises(Exhausted):
        FS.sync_directory(str(tmp_path))


def test_every_new_directory_is_synced_in_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(OsFileSystem, "sync_directory", lambda _, path: synced.append(path))
    FS.make_directory(str(tmp_path / "a" / "b"))
    assert synced == [str(tmp_path), str(tmp_path / "a")]


def test_a_directory_that_another_process_makes_just_now_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several nodes are started at once with directories in one that isn't there yet."""
    make = os.mkdir

    def late(path: str, mode: int) -> None:
        make(path, mode)
        raise FileExistsError(errno.EEXIST, "File exists", path)

    monkeypatch.setattr(os, "mkdir", late)
    FS.make_directory(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_rename_and_remove(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("new")
    two.write_text("old")
    FS.rename(str(one), str(two))
    assert FS.list(str(tmp_path)) == ["2"]
    assert two.read_text() == "new"
    FS.remove(str(two))
    assert FS.list(str(tmp_path)) == []
    with pytest.raises(DiskFailed):
        FS.remove(str(two))
    with pytest.raises(DiskFailed):
        FS.rename(str(one), str(two))


def test_a_lock_is_exclusive_and_says_who_has_it(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    lock = FS.lock(path, "process 1 on a")
    with pytest.raises(DirectoryInUse, match=f"{tmp_path} is in use by process 1 on a"):
        FS.lock(path, "process 2 on b")
    assert content(path) == b"process 1 on a\n"
    lock.release()
    lock.release()
    FS.lock(path, "b").release()
    assert content(path) == b"b\n"


def test_a_lock_is_taken_even_if_there_is_no_room_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "LOCK")
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", failing(errno.ENOSPC))
        lock = FS.lock(path, "me")
    with pytest.raises(DirectoryInUse, match="another process"):
        FS.lock(path, "you")
    lock.release()


def test_a_lock_that_cannot_be_asked_for_is_not_somebody_elses(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(DiskFailed, match="locking"):
        FS.lock(path, "me")


def test_a_lock_file_that_leads_elsewhere_is_refused(path: str, tmp_path: Path) -> None:
    """Whoever may write the directory would otherwise choose what the holder's name overwrites."""
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    os.symlink(precious, path)
    with pytest.raises(ForeignDirectory, match=r"file is a symbolic link.*remove the link"):
        FS.lock(path, "me")
    assert precious.read_text() == "years of work"
    os.remove(path)
    os.symlink(tmp_path / "nothing", path)
    with pytest.raises(ForeignDirectory, match="is a symbolic link"):
        FS.lock(path, "me")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("mode", "others"),
    [
        (0o700, ""), (0o750, ""), (0o755, ""), (0o2755, ""),
        (0o770, "its group"), (0o775, "its group"),
        (0o777, "everybody"), (0o1777, "everybody"), (0o702, "everybody"), (0o2777, "everybody"),
    ],
)  # fmt: skip
def test_who_else_may_write_a_directory(tmp_path: Path, mode: int, others: str) -> None:
    os.chmod(tmp_path, mode)
    assert others_who_may_write(str(tmp_path)) == others


def test_a_volume_handed_over_to_this_group_is_no_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chmod(tmp_path, 0o2775)
    assert others_who_may_write(str(tmp_path)) == ""
    own = {os.getegid(), *os.getgroups()}
    monkeypatch.setattr(os, "getegid", lambda: max(own) + 1)
    monkeypatch.setattr(os, "getgroups", list)
    assert others_who_may_write(str(tmp_path)) == "its group"
