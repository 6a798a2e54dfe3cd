"""Which merge is next, in thousands of histories of stores that have only keys and sizes."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.storage.lsm import picking
from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.jobs import JobLimits
from conure.storage.lsm.picking import INPUTS, LAST_LEVEL, load_level, pick
from conure.storage.lsm.tables import TableFacts
from tests.storage.lsm.levels import RECORD, Store

# A thousandth of what a node has: tables of 16 MiB, flushes of 10 MB of memory.
TABLE = 115 * RECORD
FLUSH = 62
LIMITS = JobLimits(table_bytes=TABLE, blob_bytes=TABLE, long_value=4096)

TINY = JobLimits(table_bytes=8 * RECORD, blob_bytes=20_000, long_value=4096)
WRITES = st.dictionaries(st.integers(0, 200), st.sampled_from([0, 1, 1, 2]), min_size=1)
ROUNDS = st.lists(st.tuples(WRITES, st.integers(0, 3), st.booleans()), min_size=1, max_size=25)


@settings(max_examples=120, deadline=None)
@given(ROUNDS)
def test_any_history_settles_and_is_never_wrong(
    rounds: list[tuple[dict[int, int], int, bool]],
) -> None:
    """Store.carry_out asserts what each job has to be, and that no content changes by it."""
    store = Store(TINY)
    model: dict[int, int] = {}
    for writes, jobs, idle in rounds:
        store.flush(writes)
        model |= writes
        store.run(idle=idle, most=jobs)
        assert store.content() == {key for key, each in model.items() if each}
    store.run()
    assert len(store.levels[0]) < 7
    store.run(idle=True)
    settled(store)


def settled(store: Store) -> None:
    """Assert that there is little left of what could be given back."""
    there = store.content()
    assert store.size <= 1.2 * RECORD * len(there)
    live = sum(store.live_bytes.values())
    assert store.blob_size <= max(1.2 * live, store.value)
    last = sum(table.facts.size for table in store.levels[-1])
    may_be_one = store.size <= (INPUTS + 4) * store.limits.table_bytes
    assert last >= (0.95 if may_be_one else 0.85) * store.size
    assert pick(store, store.limits, "s", 0) is None


def load(store: Store, keys: list[int], *, rate: float | None, long: bool = False) -> None:
    """Flush keys, merging beside it: up to *rate* bytes for each byte flushed, None without bound.

    Writers are held back at 12 tables in level 0.
    """
    budget = 0.0
    for at in range(0, len(keys), FLUSH):
        part = keys[at : at + FLUSH]
        store.flush(dict.fromkeys(part, 2 if long else 1))
        if rate is None:
            store.run()
            continue
        budget += rate * RECORD * len(part)
        while budget > 0 or len(store.levels[0]) >= 12:
            before = store.written
            if not store.run(most=1):
                budget = 0.0
                break
            budget -= store.written - before


@pytest.mark.parametrize(
    ("records", "rate", "amplification"),
    [(1000, None, 4), (1000, 3, 4), (10_000, 6, 8), (10_000, 3, 8), (10_000, None, 8)],
)
def test_write_amplification_of_loading_and_overwriting_all(
    records: int, rate: float | None, amplification: float
) -> None:
    """The thousandth part of one and of ten million records, in random order; merging as fast as a
    worker can while writes go on at full speed, or faster than any."""
    store = Store(LIMITS)
    rng = random.Random(1)
    most_runs = 0
    for _ in range(2):
        keys = list(range(records))
        rng.shuffle(keys)
        load(store, keys, rate=rate)
        most_runs = max(most_runs, store.runs)
    store.run(idle=True)
    settled(store)
    assert store.written / store.flushed <= amplification
    assert store.most_bytes <= (INPUTS + 4) * max(TABLE, store.size // 250)
    assert most_runs <= 16


def test_small_checkpoints_of_a_large_store_are_merged_a_few_times() -> None:
    """A thousandth of the records in each flush, as if every commit were a checkpoint."""
    store = Store(LIMITS)
    rng = random.Random(7)
    for _ in range(2):
        for key in rng.sample(range(1000), 1000):
            store.flush({key: 1})
            store.run()
    store.run(idle=True)
    settled(store)
    assert store.written / store.flushed <= 8


def test_ascending_keys_are_written_few_times() -> None:
    store = Store(LIMITS)
    load(store, list(range(10_000)), rate=None)
    store.run(idle=True)
    settled(store)
    assert store.written / store.flushed <= 3


def test_a_store_that_one_job_can_merge_becomes_one_run() -> None:
    store = Store(LIMITS)
    records = 8 * TABLE // RECORD
    load(store, random.Random(4).sample(range(records), records), rate=None)
    store.run(idle=True)
    store.flush(dict.fromkeys(range(0, records, 12), 1))
    store.run(idle=True)
    settled(store)
    assert store.runs == 1


def test_a_trickle_of_writes_does_not_rewrite_the_store() -> None:
    """Checkpoints by the clock make small tables; merging them costs in proportion to them."""
    store = Store(LIMITS)
    load(store, random.Random(2).sample(range(10_000), 10_000), rate=None)
    store.run(idle=True)
    before, rng = store.written, random.Random(3)
    for _ in range(200):
        store.flush(dict.fromkeys(rng.sample(range(10_000), 2), 1))
        store.run(idle=True)
    assert store.written - before < 60 * 400 * RECORD
    assert store.written - before < 10_000 * RECORD


def test_level_0_drains_however_full_the_others_are() -> None:
    store = Store(LIMITS)
    rng = random.Random(4)
    for _ in range(40):
        store.flush(dict.fromkeys(rng.sample(range(5000), FLUSH), 1))
    store.run()
    assert len(store.levels[0]) < 4
    assert store.content()


@pytest.mark.parametrize("long", [False, True])
def test_a_store_of_which_everything_was_deleted_becomes_empty(long: bool) -> None:
    store = Store(LIMITS)
    keys = random.Random(5).sample(range(3000), 3000)
    load(store, keys, rate=None, long=long)
    for at in range(0, 3000, FLUSH):
        store.flush(dict.fromkeys(keys[at : at + FLUSH], 0))
        store.run()
    store.run(idle=True)
    assert store.size == 0
    assert not store.blobs


def test_half_of_it_deleted_takes_half_the_space() -> None:
    store = Store(LIMITS)
    load(store, list(range(3000)), rate=None, long=True)
    for at in range(0, 1500, FLUSH):
        store.flush(dict.fromkeys(range(at, min(1500, at + FLUSH)), 0))
        store.run()
    store.run(idle=True)
    settled(store)
    assert store.size <= 1.2 * 1500 * RECORD
    assert store.blob_size <= 1.2 * 1500 * store.value


def test_overwritten_long_values_go_while_writes_go_on() -> None:
    store = Store(LIMITS)
    rng = random.Random(6)
    for _ in range(6):
        load(store, rng.sample(range(2000), 2000), rate=None, long=True)
        assert store.blob_size <= 2.5 * 2000 * store.value
    store.run(idle=True)
    settled(store)


def test_many_small_blob_files_become_fewer() -> None:
    store = Store(LIMITS)
    for at in range(600):
        store.flush({3 * at: 2, 3 * at + 1: 1})
        store.run()
    assert len(store.blobs) <= 257
    assert store.content()


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_blob_files_of_which_any_table_knows_a_few_become_fewer_and_merging_ends(
    seed: int, ascending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a file of few values that are moved may be the next one with the least in it."""
    monkeypatch.setattr(picking, "_BLOBS", 40)
    store = Store(JobLimits(100 * RECORD, 10 * 5000, 4096))
    rng = random.Random(seed)
    for at in range(0, 60 * 200, 60):
        keys = range(at, at + 60) if ascending else rng.sample(range(12_000), 60)
        long = set(rng.sample(keys, rng.choice([0, 1, 2, 3, 4, 8])))
        store.flush({key: 2 if key in long else 1 for key in keys})
        store.run()
        assert len(store.blobs) <= 45
    assert store.written <= (4.5 if ascending else 9) * store.flushed
    store.run(idle=True)


def referring(references: dict[int, tuple[str, int]]) -> SimpleNamespace:
    """Return a layout of 38 tables in the last level; some of them refer to values in files."""
    blobs: dict[str, int] = {}
    tables = []
    for at in range(38):
        name, count = references.get(at, ("", 0))
        refers = ((name, 100 * count),) if count else ()
        facts = TableFacts(f"t{at}", TABLE, 0, 115, 0, b"%02d" % at, b"%02d-" % at, refers)
        tables.append(SimpleNamespace(facts=facts))
        if count:
            blobs[name] = blobs.get(name, 0) + 100 * count
    return SimpleNamespace(
        levels=[[], [], [], [], tables],
        blobs={name: SimpleNamespace(facts=BlobFacts(name, size)) for name, size in blobs.items()},
        live_bytes=blobs,
    )


def test_files_become_one_only_if_that_has_twice_as_much_as_any_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no table is written for it but those that refer to them, and what lies between."""
    monkeypatch.setattr(picking, "_BLOBS", 1)
    apart = referring({3: ("a", 6), 9: ("b", 6), 31: ("a", 4), 35: ("b", 4)})
    assert pick(apart, LIMITS, "s", 0, idle=False) is None
    whole = referring({3: ("a", 6), 5: ("b", 6), 31: ("c", 14)})
    job = pick(whole, LIMITS, "s", 0, idle=False)
    assert job is not None
    assert [table.name for table in job.inputs[0]] == ["t3", "t4", "t5"]
    assert [blob.name for blob in job.emptied] == ["a", "b"]
    assert job.level == LAST_LEVEL


def test_nothing_is_picked_of_nothing() -> None:
    assert pick(Store(LIMITS), LIMITS, "s", 0) is None
    assert pick(Store(LIMITS), LIMITS, "s", 0, idle=False) is None


def test_the_job_names_its_files_and_grows_its_tables() -> None:
    store = Store(JobLimits(10 * RECORD, 50_000, 4096))
    for at in range(8):
        store.flush(dict.fromkeys(range(at, 8000, 8), 2))
    job = pick(store, store.limits, "conure.db-00", 7)
    assert job is not None
    assert (job.stem, job.number, job.level) == ("conure.db-00", 7, LAST_LEVEL)
    assert job.limits.table_bytes == 8000 * RECORD // 256
    assert job.limits.blob_bytes == 8000 * store.value // 128
    assert job.limits.long_value == 4096
    assert load_level(1 << 40, store.limits) == LAST_LEVEL


def test_a_tombstone_stays_where_something_older_is() -> None:
    """And the job says where that is, overlapping ranges joined."""
    store = Store(TINY)
    store.flush(dict.fromkeys(range(0, 200, 2), 1))
    store.run(idle=True)
    assert [len(level) for level in store.levels] == [0, 0, 0, 0, 13]
    for first in (4, 5, 6, 7):
        store.flush({first: 0})
    job = pick(store, TINY, "s", 0, idle=False)
    if job is None:  # it is cheaper to wait
        for first in (8, 9):
            store.flush({first: 0})
        job = pick(store, TINY, "s", 0, idle=False)
    assert job is not None
    below = store.levels[LAST_LEVEL][0].facts
    if job.level < LAST_LEVEL:
        assert job.older[0] == (below.first, below.last)
    else:
        assert job.older == ()


@pytest.mark.parametrize("write", [lambda n: {n: 1}, lambda n: {0: 1}, lambda n: {n % 7: n % 2}])
def test_many_flushes_of_one_key_each(write: Callable[[int], dict[int, int]]) -> None:
    store = Store(TINY)
    for n in range(400):
        store.flush(write(n))
        store.run(idle=n % 3 == 0)
    assert len(store.levels[0]) < 7
    store.run(idle=True)
    settled(store)
