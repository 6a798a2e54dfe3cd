"""The page file: meta pages, checksums, free space and pins (S1-S5)."""

from __future__ import annotations

import contextlib
import random

import pytest

from errors import CorruptionError, ForeignDirectory
from pager import ENVELOPE, LEAF, MAX_PAGE_SIZE, MIN_PAGE_SIZE, Meta, Pager, _meta_page
from tests.crashfs import CrashFileSystem, CrashMode, SimulatedCrash

PAGE = 256


def open_pager(fs: CrashFileSystem, page_size: int = PAGE) -> Pager:
    return Pager.open(fs, "db", page_size, create=True)


def commit(pager: Pager, epoch: int, root: int = 2) -> None:
    """One checkpoint of a tree whose only live page is *root*."""
    with pager.lock:
        space = pager.freeze()
    settled = pager.commit(space, pager.meta._replace(epoch=epoch, root=root))
    with pager.lock:
        while pager.settle(settled, 3) is not None:
            pass
    pager.shrink()


def live_page(pager: Pager, number: int, epoch: int) -> None:
    pager.write([(number, pager.seal(number, ENVELOPE.pack(LEAF, 0, 0, 0, epoch)))])


@pytest.mark.parametrize("page_size", [256, 512, 4096, 32768, 65536])
def test_a_new_file_has_an_empty_root_and_two_equal_checkpoints(page_size: int) -> None:
    fs = CrashFileSystem()
    open_pager(fs, page_size).close()
    fs = fs.after_crash("dropped")
    pager = Pager.open(fs, "db", 4096, create=False)
    assert pager.page_size == page_size
    assert pager.meta == Meta(page_size, 1, 0, 2, 3, 0, 0, 0, 0, 0, 0)
    assert pager.read(2)[0] == LEAF
    assert fs.list(".") == ["db"]


@pytest.mark.parametrize("page_size", [0, 128, 300, 131072])
def test_page_size_is_a_power_of_two_within_limits(page_size: int) -> None:
    fs = CrashFileSystem()
    with pytest.raises(ValueError, match="power of two"):
        open_pager(fs, page_size)
    assert not fs.exists("db")
    assert MIN_PAGE_SIZE <= PAGE <= MAX_PAGE_SIZE


def test_a_missing_file_is_not_made_unasked() -> None:
    with pytest.raises(FileNotFoundError):
        Pager.open(CrashFileSystem(), "db", PAGE, create=False)


@pytest.mark.parametrize("mode", ["dropped", "kept", "torn", "random"])
def test_creation_is_all_or_nothing(mode: CrashMode) -> None:
    for k in (1, 2):
        fs = CrashFileSystem(seed=k)
        fs.crash_at_sync = k
        with pytest.raises(SimulatedCrash):
            open_pager(fs)
        assert open_pager(fs.after_crash(mode)).meta.txid == 1


# -- S3: nothing damaged is ever data ------------------------------------------------------------


def test_every_flipped_byte_of_a_page_is_noticed() -> None:
    fs = CrashFileSystem()
    pager = open_pager(fs)
    for at in range(PAGE):
        fs.corrupt("db", 2 * PAGE + at)
        with pytest.raises(CorruptionError, match="checksum") as caught:
            pager.read(2)
        assert (caught.value.file, caught.value.offset) == ("db", 2 * PAGE)
        fs.corrupt("db", 2 * PAGE + at)
    assert pager.read(2)


def test_a_page_in_the_wrong_place_is_noticed() -> None:
    pager = open_pager(CrashFileSystem())
    pager.write([(3, pager.read(2))])
    with pytest.raises(CorruptionError, match="checksum"):
        pager.read(3)


def test_a_page_beyond_the_end_is_corruption() -> None:
    pager = open_pager(CrashFileSystem())
    with pytest.raises(CorruptionError, match="ends before"):
        pager.read(99)


def test_one_damaged_record_of_a_meta_page_heals_and_two_do_not() -> None:
    for slot in (0, 1):
        for at in (0, 20, 75):
            fs = CrashFileSystem()
            pager = open_pager(fs)
            live_page(pager, 2, 0)
            commit(pager, 1)
            txid = pager.meta.txid
            fs.corrupt("db", slot * PAGE + at)
            assert open_pager(fs).meta.txid == txid
            fs.corrupt("db", slot * PAGE + PAGE // 2 + at)
            with pytest.raises(CorruptionError) as caught:
                open_pager(fs)
            assert caught.value.offset == slot * PAGE


def test_no_valid_meta_page_at_all() -> None:
    fs = CrashFileSystem()
    open_pager(fs)
    for offset in range(0, 2 * PAGE, PAGE // 2):
        fs.corrupt("db", offset + 30)
    with pytest.raises(CorruptionError, match="neither meta page"):
        open_pager(fs)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000, b"SQLite format 3\0" * 100])
def test_another_kind_of_file_is_refused(content: bytes) -> None:
    fs = CrashFileSystem()
    fs.open("db", create=True).pwrite(content, 0)
    with pytest.raises(CorruptionError, match="neither meta page"):
        open_pager(fs)


def test_a_newer_format_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = CrashFileSystem()
    with monkeypatch.context() as patch:
        patch.setattr("pager._VERSION", 2)
        open_pager(fs).close()
    with pytest.raises(ForeignDirectory, match="newer version"):
        open_pager(fs)


def test_a_file_cut_short_is_refused() -> None:
    fs = CrashFileSystem()
    open_pager(fs).close()
    fs.open("db").truncate(3 * PAGE - 1)
    with pytest.raises(CorruptionError, match="ends before its 3 pages"):
        open_pager(fs)


def test_random_bytes_with_valid_checksums_never_surprise_the_free_list() -> None:
    rng = random.Random(5)
    for _ in range(200):
        fs = CrashFileSystem()
        pager = open_pager(fs)
        kind = rng.choice([4, 4, 4, rng.randrange(256)])
        count = rng.choice([0, 1, 3, 28, 29, 30, 65535])
        link = rng.choice([0, 2, 3, 4, 99, rng.randrange(1 << 32)])
        body = ENVELOPE.pack(kind, 0, count, link, 0) + bytes(
            rng.choice([0, 0, 1, 2, rng.randrange(256)]) for _ in range(PAGE - 20)
        )
        pager.write([(3, pager.seal(3, body)), (4, pager.seal(4, body))])
        pager.meta = pager.meta._replace(pages=5)
        commit(pager, 1)
        meta = pager.meta._replace(txid=pager.meta.txid + 1, free_root=3, pages=5)
        fs.open("db").pwrite(_meta_page(meta), (meta.txid & 1) * PAGE)
        with contextlib.suppress(CorruptionError):
            assert open_pager(fs).free_pages < 5


# -- S1, S5: when a page may be used again -------------------------------------------------------


def test_pages_are_handed_out_lowest_first_and_then_at_the_end() -> None:
    pager = open_pager(CrashFileSystem())
    with pager.lock:
        assert [pager.allocate() for _ in range(4)] == [3, 4, 5, 6]
        for number in (5, 3):
            assert pager.free(number, 1, 1)
        assert [pager.allocate() for _ in range(3)] == [3, 5, 7]


def test_a_page_waits_exactly_for_the_pins_that_need_it() -> None:
    pager = open_pager(CrashFileSystem())
    with pager.lock:
        for epoch in (5, 9):
            pager.pin(epoch)
        assert pager.free(10, 6, 9)  # made after 5 was pinned, gone before 9
        assert pager.free(11, 10, 20)
        assert not pager.free(12, 4, 7)
        assert not pager.free(13, 4, 12)
        assert pager.waiting_pages == 2
        pager.unpin(9)
        assert pager.settle(9, 100) == []  # 13 still waits for 5
        pager.unpin(5)
        assert pager.settle(5, 1) in ([12], [13])
        assert pager.settle(5, 1) in ([12], [13])
        assert pager.settle(5, 1) is None
        assert pager.waiting_pages == 0


def test_a_page_is_reused_only_after_neither_meta_page_reaches_it() -> None:
    pager = open_pager(CrashFileSystem())
    live_page(pager, 2, 0)
    with pager.lock:
        new = pager.allocate()
        assert not pager.free(2, 0, 1)
    live_page(pager, new, 1)
    commit(pager, 1, new)
    with pager.lock:
        assert 2 not in pager._free  # the other meta page still names it
    commit(pager, 2, new)
    with pager.lock:
        assert 2 in pager._free


@pytest.mark.parametrize("freed", [slice(5, 50, 2), slice(5, 60)])
def test_what_waits_and_what_is_free_survives_reopening(freed: slice) -> None:
    fs = CrashFileSystem()
    pager = open_pager(fs)
    with pager.lock:
        numbers = [pager.allocate() for _ in range(60)]
    for number in [2, *numbers]:
        live_page(pager, number, 1)
    commit(pager, 1)
    with pager.lock:
        assert not any(pager.free(number, 1, 2) for number in numbers[:5])
    for epoch in (2, 3, 4):  # until these are free, for the free list to move to the front
        commit(pager, epoch)
    with pager.lock:
        assert not any(pager.free(number, 1, 5) for number in numbers[freed])
    commit(pager, 5)
    reopened = open_pager(fs)
    assert set(reopened.free_numbers()) | set(reopened.list_pages) == (
        set(pager.free_numbers()) | set(pager.list_pages)
    )
    with reopened.lock:
        taken = {reopened.allocate() for _ in range(80)}
    assert not taken & set(numbers[5:])  # S1: the older meta page reaches all of them


def test_the_file_is_cut_when_its_tail_is_free() -> None:
    fs = CrashFileSystem()
    pager = open_pager(fs)
    with pager.lock:
        numbers = [pager.allocate() for _ in range(500)]
    for number in numbers:
        live_page(pager, number, 1)
    commit(pager, 1)
    assert pager.file_bytes() >= 500 * PAGE
    with pager.lock:
        for number in numbers:
            pager.free(number, 1, 2)
    for epoch in (2, 3, 4, 5):
        commit(pager, epoch)
    assert pager.pages < 10
    assert pager.file_bytes() < 30 * PAGE
    assert open_pager(fs).pages == pager.meta.pages
