"""The page file: meta pages, checksums, free space and pins (S1-S5)."""

from __future__ import annotations

import contextlib
import random

import pytest

from conure.errors import CorruptionError, ForeignDirectory
from pager import ENVELOPE, LEAF, MAX_PAGE_SIZE, MIN_PAGE_SIZE, Meta, Pager, _meta_page
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash

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
    assert pager.meta == Meta(page_size, 1, 0, 2, 4, 3, 0, 0, 0, 0, 0)
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


@pytest.mark.parametrize(("version", "which"), [(1, "an older"), (3, "a newer")])
def test_another_format_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, version: int, which: str
) -> None:
    fs = CrashFileSystem()
    with monkeypatch.context() as patch:
        patch.setattr("pager._VERSION", version)
        open_pager(fs).close()
    with pytest.raises(ForeignDirectory, match=f"{which} version .format {version}."):
        open_pager(fs)


def test_a_file_cut_short_is_refused() -> None:
    fs = CrashFileSystem()
    open_pager(fs).close()
    fs.open("db").truncate(4 * PAGE - 1)
    with pytest.raises(CorruptionError, match="ends before its 4 pages"):
        open_pager(fs)


def test_random_bytes_with_valid_checksums_never_surprise_the_free_map() -> None:
    rng = random.Random(5)
    opened = 0
    for _ in range(400):
        fs = CrashFileSystem()
        pager = open_pager(fs)
        for number in (4, 5):
            kind = rng.choice([4, 4, 4, rng.randrange(256)])
            level = rng.choice([5 - number, 0, 1, 2, rng.randrange(256)])
            count = rng.choice([0, 0, 1, 1, 2, 59, 60, 65535])
            rest = b"".join(
                rng.choice([0, 3, 4, 5, 99, 0xFFFFFFFF, 0xFFFFFFDF]).to_bytes(4, "little")
                for _ in range(59)
            )
            body = ENVELOPE.pack(kind, level, count, 0, 0) + rest
            pager.write([(number, pager.seal(number, body))])
        meta = pager.meta._replace(txid=2, map_root=rng.choice([0, 3, 4, 4, 4, 7]), pages=6)
        fs.open("db").pwrite(_meta_page(meta), 0)
        with contextlib.suppress(CorruptionError):
            reopened = open_pager(fs)
            assert not {0, 1, 2} & set(reopened.free_numbers())
            assert max([0, *reopened.free_numbers()]) < 6
            opened += 1
    assert opened


def test_a_damaged_page_of_the_free_map_is_named() -> None:
    fs = CrashFileSystem()
    open_pager(fs).close()
    fs.corrupt("db", 3 * PAGE + 100)
    with pytest.raises(CorruptionError) as caught:
        open_pager(fs)
    assert caught.value.offset == 3 * PAGE


@pytest.mark.parametrize("bits", [b"\xff", b"\x1f"])
def test_a_free_map_that_contradicts_the_tree_is_refused(bits: bytes) -> None:
    fs = CrashFileSystem()
    pager = open_pager(fs)
    body = pager.read(3)[: ENVELOPE.size] + bits + b"\xff" * (PAGE - 21)
    pager.write([(3, pager.seal(3, body))])
    with pytest.raises(CorruptionError, match="the free map says"):
        open_pager(fs)


# -- S1, S5: when a page may be used again -------------------------------------------------------


def test_pages_are_handed_out_lowest_first_and_then_at_the_end() -> None:
    pager = open_pager(CrashFileSystem())
    with pager.lock:
        assert [pager.allocate() for _ in range(4)] == [4, 5, 6, 7]
        for number in (6, 4):
            assert pager.free(number, 1, 1)
        assert [pager.allocate() for _ in range(3)] == [4, 6, 8]


def test_a_page_waits_exactly_for_the_pins_that_need_it() -> None:
    pager = open_pager(CrashFileSystem())
    with pager.lock:
        while pager.allocate() < 13:
            pass
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
        assert not pager.has_free_below(3)  # the other meta page still names it
    commit(pager, 2, new)
    with pager.lock:
        assert pager.allocate() == 2


def grow(pager: Pager, pages: int) -> list[int]:
    """Let the tree take pages until the file has so many."""
    taken = []
    with pager.lock:
        while pager.pages < pages:
            taken.append(pager.allocate())
    live_page(pager, pages - 1, 1)
    return taken


@pytest.mark.parametrize("pages", [60, 1888, 1889, 4000, 59 * 1888 + 2000])
def test_what_waits_and_what_is_free_survives_reopening(pages: int) -> None:
    """A page of the map covers 1,888 pages, and one of the next level leads to 59 of them."""
    fs = CrashFileSystem()
    pager = open_pager(fs)
    numbers = grow(pager, pages)
    commit(pager, 1)
    commit(pager, 2)
    reused, waiting = numbers[: len(numbers) // 3], numbers[len(numbers) // 2 : -1 : 2]
    with pager.lock:
        assert not any(pager.free(number, 1, 3) for number in reused)
    for epoch in (3, 4):
        commit(pager, epoch)
    with pager.lock:
        assert not any(pager.free(number, 1, 5) for number in waiting)
    commit(pager, 5)
    reopened = open_pager(fs)
    assert (reopened.pages, reopened.map_pages) == (pager.pages, pager.map_pages)
    assert reopened.free_pages == pager.free_pages
    assert sorted(reopened.free_numbers()) == sorted(pager.free_numbers())
    assert not set(reopened.free_numbers()) & set(reopened.map_pages)
    with reopened.lock:
        taken = {reopened.allocate() for _ in range(reopened.free_pages + 20)}
    assert taken.isdisjoint(numbers[len(numbers) // 3 :])  # S1: the older meta page reaches them
    assert taken.isdisjoint(reopened.map_pages)


def test_a_checkpoint_writes_the_part_of_the_map_that_changed() -> None:
    fs = CrashFileSystem()
    pager = open_pager(fs)
    numbers = grow(pager, 20 * 1888 - 100)
    for epoch in (1, 2):
        commit(pager, epoch)
    before = set(pager.map_pages)
    commit(pager, 3)
    assert set(pager.map_pages) == before
    with pager.lock:
        pager.free(numbers[5 * 1888], 1, 4)
        space = pager.freeze()
        assert list(space.changed) == [5]  # no more is copied under the lock
        pager.thaw(space)
    commit(pager, 4)
    assert len(before) == 21
    assert len(before - set(pager.map_pages)) == 2


@pytest.mark.parametrize("mode", ["dropped", "kept", "torn", "random"])
@pytest.mark.parametrize("sync", [1, 2])
def test_a_crash_leaves_the_map_of_the_checkpoint_that_counts(mode: CrashMode, sync: int) -> None:
    fs = CrashFileSystem(seed=sync)
    pager = open_pager(fs)
    numbers = grow(pager, 5000)
    tree = {2, *numbers}
    for epoch in (1, 2):
        commit(pager, epoch)
    after = tree - set(numbers[1000::3])
    with pager.lock:
        for number in tree - after:
            pager.free(number, 1, 3)
    fs.crash_at_sync = sync
    with pytest.raises(SimulatedCrash):
        commit(pager, 3)
    reopened = open_pager(fs.after_crash(mode))
    expected = {2: tree, 3: after}[reopened.meta.epoch]
    assert sync == 2 or reopened.meta.epoch == 2
    used = [*expected, *reopened.map_pages, 0, 1]
    assert sorted(used + reopened.free_numbers()) == list(range(reopened.pages))


def test_what_a_dropped_checkpoint_knew_is_in_the_next_one() -> None:
    fs = CrashFileSystem()
    pager = open_pager(fs)
    numbers = grow(pager, 100)
    commit(pager, 1)
    with pager.lock:
        for number in numbers[:50]:
            pager.free(number, 1, 2)
        dropped = pager.freeze()
        pager.free(numbers[60], 1, 3)
        pager.thaw(dropped)
    for epoch in (3, 4):
        commit(pager, epoch)
    assert {*numbers[:50], numbers[60]} <= {*open_pager(fs).free_numbers(), *pager.map_pages}


@pytest.mark.parametrize("seed", range(6))
def test_no_page_is_lost_or_given_away_while_a_state_needs_it(seed: int) -> None:
    """S1 and S4 beside a model: what each checkpoint and reader reaches is a set of numbers."""
    rng = random.Random(seed)
    fs = CrashFileSystem()
    pager = open_pager(fs)
    tree = {2: 0}  # page: epoch in which it came
    epoch, metas, readers = 1, [{2}, {2}], dict[int, set[int]]()
    for _ in range(150):
        with pager.lock:
            for _ in range(rng.choice([0, 3, 30, 300])):
                number = pager.allocate()
                needed = metas + list(readers.values()) + [set(pager.map_pages)]
                assert not any(number in state for state in needed)
                tree[number] = epoch
            for number in rng.sample(sorted(tree.keys() - {2}), rng.randrange(len(tree))):
                pager.free(number, tree.pop(number), epoch)
            for number in pager.last_in_tree(5):
                assert number in tree
        if rng.random() < 0.2:
            readers[epoch] = set(tree)
            with pager.lock:
                pager.pin(epoch)
            epoch += 1
        if readers and rng.random() < 0.2:
            closed, _ = readers.popitem()
            with pager.lock:
                pager.unpin(closed)
                while pager.settle(closed, 7) is not None:
                    pass
        if pager.file_bytes() < pager.pages * PAGE:
            live_page(pager, pager.pages - 1, epoch)
        if rng.random() < 0.2:
            with pager.lock:
                pager.thaw(pager.freeze())
        commit(pager, epoch)
        metas = [metas[1], set(tree)]
        epoch += 1
        if rng.random() < 0.1:
            readers.clear()
            pager = open_pager(fs)
        free, mapped = pager.free_numbers(), pager.map_pages
        assert sorted([0, 1, *tree, *free, *mapped]) == list(range(pager.pages))  # S4
        assert pager.free_pages + pager.waiting_pages == len(free)


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
    for epoch in range(2, 8):
        commit(pager, epoch)
    assert pager.pages < 10
    assert pager.file_bytes() < 30 * PAGE
    assert open_pager(fs).pages == pager.meta.pages


def test_a_file_that_has_shrunk_opens_after_each_checkpoint() -> None:
    """The map of the older checkpoint may cover more pages than the file has."""
    fs = CrashFileSystem()
    pager = open_pager(fs)
    numbers = grow(pager, 3 * 1888)
    commit(pager, 1)
    with pager.lock:
        for number in numbers:
            pager.free(number, 1, 2)
    sizes = []
    for epoch in range(2, 7):
        commit(pager, epoch)
        reopened = open_pager(fs)
        assert sorted([0, 1, 2, *reopened.map_pages, *reopened.free_numbers()]) == list(
            range(reopened.pages)
        )
        sizes.append(reopened.pages)
    assert sizes[0] > 2 * 1888 > 1888 > sizes[-1]


def test_a_reader_that_goes_during_a_checkpoint_leaves_a_file_that_opens() -> None:
    """What waited for it at the end of the file is written by nobody then."""
    fs = CrashFileSystem()
    pager = open_pager(fs)
    with pager.lock:
        pager.pin(1)
        numbers = [pager.allocate() for _ in range(50)]
        assert pager.free(numbers[0], 2, 2)  # room for the map
        for number in numbers[40:]:
            assert not pager.free(number, 1, 2)
    live_page(pager, numbers[39], 1)
    with pager.lock:
        space = pager.freeze()
        pager.unpin(1)
        assert pager.settle(1, 100) == numbers[40:]
    pager.commit(space, pager.meta._replace(epoch=2))
    reopened = open_pager(fs.after_crash("dropped"))
    assert reopened.pages == numbers[-1] + 1
    assert set(numbers[40:]) <= set(reopened.free_numbers())
