"""The sieve beside sets of hashes: it may take a run for one that has a key, never the reverse."""

from __future__ import annotations

import random
from collections.abc import Iterator
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.fileio import FileSystem
from conure.storage.lsm.sieve import MOST_RECORDS, Sieve
from conure.storage.lsm.tables import Table, TableFacts
from conure.storage.lsm.version import Version
from tests.lab.crashfs import CrashFileSystem
from tests.lab.lsmfiles import write_table

HASHES = st.integers(0, (1 << 32) - 1)
COUNTS = st.sampled_from([0, 1, 100, 1000, 100_000, 10_000_000])
RUNS = st.lists(st.lists(st.sets(HASHES, max_size=8), min_size=1, max_size=3), max_size=12)


class Hashes:
    """A table of keys of which only the hashes are known."""

    def __init__(self, hashes: set[int]) -> None:
        self.hashes = hashes
        self.reads = 0

    def fingerprints(self, bits: int) -> Iterator[bytes]:
        self.reads += 1
        parts: list[list[int]] = [[] for _ in range(1 << bits)]
        for each in self.hashes:
            parts[each >> 32 - bits].append(each & 0xFF)
        yield from map(bytes, parts)


def cell(sieve: Sieve, hash_: int) -> int:
    return sieve.cells[hash_ >> sieve.shift << 8 | hash_ & 0xFF]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(RUNS, COUNTS), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_no_run_that_has_a_key_is_left_out(
    rounds: list[tuple[list[list[set[int]]], int]], rng: random.Random
) -> None:
    """Whatever becomes of the runs: some go, some come, others change places. A table is read once
    as long as the number of records stays about the same."""
    runs: list[list[Hashes]] = []
    sieve = None
    for more, records in rounds:
        before = sieve
        runs = [run for run in runs if rng.random() < 0.7]
        runs += [[Hashes(hashes) for hashes in run] for run in more]
        rng.shuffle(runs)
        sieve = Sieve(runs, records, before)
        assert len(sieve.cells) == 256 << 32 - sieve.shift <= 1 << 20
        assert len(sieve.cells) >= min(1 << 20, 4 * records)
        reads = {table: table.reads for run in runs for table in run}
        assert sieve.cells == Sieve(runs, records, sieve).cells
        assert reads == {table: table.reads for run in runs for table in run}
        for run in runs:
            assert {sieve.bit(table) for table in run} <= {1 << at for at in range(8)}
            for table in run:
                assert all(cell(sieve, each) & sieve.bit(table) for each in table.hashes)


def test_most_keys_that_are_not_there_are_told_by_their_cell() -> None:
    rng = random.Random(1)
    runs = [[Hashes({rng.getrandbits(32) for _ in range(1000)})] for _ in range(4)]
    sieve = Sieve(runs[:3], 3000, Sieve(runs[1:], 10_000))
    assert [table.reads for run in runs for table in run] == [1, 1, 1, 1]
    assert sieve.bit(runs[3][0]) == 0
    others = [rng.getrandbits(32) for _ in range(10_000)]
    assert sum(bool(cell(sieve, each)) for each in others) < 1000
    assert sum(sieve.cells[at] != 0 for at in range(len(sieve.cells))) <= 3000
    assert len(Sieve([], 100, sieve).cells) < len(sieve.cells)


@pytest.mark.parametrize("count", [1, 7, 300, 9000, 40_000])
def test_a_table_tells_its_fingerprints_however_many_buckets_it_has(count: int) -> None:
    fs, rng = CrashFileSystem(), random.Random(count)
    keys = [rng.randbytes(8) for _ in range(count)]
    table = opened(fs, write_table(fs, "/t", dict.fromkeys(keys, b"cell"), 4096))
    for records in (count, 100, 100_000):
        sieve = Sieve([[table]], records)
        assert all(cell(sieve, crc32(key)) == 1 for key in keys)
        others = [rng.randbytes(9) for _ in range(2000)]
        assert records < count or sum(cell(sieve, crc32(key)) for key in others) < 400


def opened(fs: FileSystem, facts: TableFacts) -> Table:
    return Table.open(fs, "/", facts)


@pytest.mark.parametrize("most", [MOST_RECORDS, 2])
def test_a_version_looks_wherever_a_key_may_be(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 0, a level between, and the last one; runs with too many records have no bit."""
    monkeypatch.setattr("conure.storage.lsm.version.MOST_RECORDS", most)
    fs = CrashFileSystem()
    content = [
        {b"a": b"0", b"m": b"0"},
        {b"a": b"1", b"n": b"1"},
        {b"a": b"2", b"k": b"2"},
        {b"o": b"2", b"p": b""},
        {b"a": b"3", b"p": b"3", b"q": b"3"},
    ]
    tables = [
        opened(fs, write_table(fs, f"/t{number}", records, 64))
        for number, records in enumerate(content)
    ]
    version = Version([tables[:2], (), tables[2:4], (), tables[4:]])
    model = {key: cell for records in reversed(content) for key, cell in records.items()}
    for each in (version, version.edited(), version.edited().edited(gone=["t0"])):
        if each is not version:
            assert 0 < each.sieve_bytes <= 1024
        if "t0" not in each.names:
            del model[b"m"]
            model[b"a"] = b"1"
        assert {key: each.find(key) for key in model} == model
        assert each.find(b"zz") is None
    assert version.sieve_bytes == 0
    assert Version([(), tables[4:]]).edited().sieve_bytes == 0
    assert len(Sieve([], MOST_RECORDS).cells) == 4 * MOST_RECORDS
