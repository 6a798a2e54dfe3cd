"""The state machine: commands in log order in, records out, equal on every node (R7)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import MAX_KEY_BYTES, Acquire, OpenSession, Outcome, Put, Transaction
from conure.consensus.messages import Entry, EntryKind, SnapshotMeta
from conure.errors import CorruptionError, DiskFull, ProtocolViolation, VersionTooNew
from conure.state import codec
from conure.state.machine import LAST_TIME, MARK_EVERY, Checkpoint, Inspection, Store
from conure.storage.engine import Record
from tests.lab.crashfs import CrashFileSystem
from tests.lab.engines import fill, open_engine

PATH = "/conure.db"
pytestmark = pytest.mark.usefixtures("engine")
Command = tuple[bytes, bytes | None]


def open_store(
    fs: CrashFileSystem, configuration: bytes = b"", speaks: int = codec.SPEAKS
) -> Store:
    tree = open_engine(fs, PATH, page_size=512, cache_bytes=1 << 20)
    return Store(tree, configuration, speaks)


@pytest.fixture
def store() -> Iterator[Store]:
    store = open_store(CrashFileSystem())
    yield store
    store.engine.check()


def entries(first: int, *commands: Command, term: int = 1) -> list[Entry]:
    return [
        Entry(
            term,
            index,
            EntryKind.COMMAND,
            codec.encode_delete(key) if value is None else codec.encode_put(key, value),
        )
        for index, (key, value) in enumerate(commands, first)
    ]


def checkpoint(store: Store) -> None:
    running = store.begin_checkpoint()
    finish(running)


def finish(running: Checkpoint) -> None:
    while not running.step(1.0):
        pass
    running.finish()


def test_commands_are_applied_in_order(store: Store) -> None:
    store.apply(
        entries(1, (b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"b", None), (b"b", None), term=7)
    )
    record = store.get(b"a")
    assert record is not None
    assert (record.value, record.create_revision, record.mod_revision) == (b"3", 1, 3)
    assert store.get(b"b") is None
    assert (store.applied_index, store.applied_term) == (5, 7)


def test_an_index_is_applied_once_and_in_order(store: Store) -> None:
    store.apply(entries(1, (b"a", b"1")))
    for first in (1, 3):
        with pytest.raises(AssertionError):
            store.apply(entries(first, (b"a", b"2")))
    record = store.get(b"a")
    assert record is not None
    assert record.value == b"1"


def test_entries_without_a_command_count_too(store: Store) -> None:
    store.apply(
        [
            Entry(1, 1, EntryKind.CONFIG, b"members"),
            Entry(2, 2, EntryKind.NOOP, b""),
            *entries(3, (b"a", b"1"), term=2),
        ]
    )
    assert store.configuration == b"members"
    assert (store.applied_index, store.applied_term) == (3, 2)


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x00" + codec.encode_put(b"k", b"v")[1:], b"\x01\x63\x00\x00\x01k"]
)
def test_a_command_nobody_knows_is_never_skipped(data: bytes) -> None:
    store = open_store(CrashFileSystem())
    with pytest.raises(CorruptionError, match="raft log is corrupt"):
        store.apply([*entries(1, (b"a", b"1")), Entry(1, 2, EntryKind.COMMAND, data)])


def test_a_command_of_a_later_release_says_which_version_is_needed() -> None:
    fs = CrashFileSystem()
    store = open_store(fs)
    newest = codec.SPEAKS + 1  # one that reads configurations with a quorum size speaks 3
    newer = bytes((newest,)) + codec.encode_put(b"k", b"v")[1:]
    with pytest.raises(VersionTooNew, match=f"entry 2 of the log is of format version {newest}"):
        store.apply([*entries(1, (b"a", b"1")), Entry(1, 2, EntryKind.COMMAND, newer)])


def test_the_state_remembers_the_newest_version_that_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the log is cut, and in a state that is sent: as a record of its own, which a release
    before never meets, because it is not there before it is needed."""
    decode = codec.decode_command
    monkeypatch.setattr(codec, "decode_command", lambda data: decode(b"\x01" + data[1:]))
    fs = CrashFileSystem()
    store = open_store(fs, speaks=3)
    store.apply(entries(1, (b"a", b"1")))
    assert (store.version, len(store.engine)) == (1, 1)
    newer = [b"\x03" + codec.encode_put(b"k", b"%d" % n)[1:] for n in range(2)]
    store.apply([Entry(1, i, EntryKind.COMMAND, data) for i, data in enumerate(newer, 2)])
    store.apply(entries(4, (b"b", b"2")))
    assert (store.version, store.records, store.get(b"k") is not None) == (3, 3, True)
    checkpoint(store)
    store.engine.close()
    again = open_store(fs, speaks=3)
    assert (again.version, again.records) == (3, 3)
    again.engine.close()
    with pytest.raises(VersionTooNew, match="the state is of format version 3"):
        open_store(fs, speaks=2)


def test_user_keys_have_a_room_of_their_own(store: Store) -> None:
    store.apply(entries(1, (b"k", b"1"), (b"\0", b"2"), (b"\xff", b"3")))
    assert [key for key, _ in store.engine.items()] == [b"k\0", b"kk", b"k\xff"]


def test_a_checkpoint_holds_its_index_and_what_comes_later_does_not_touch_it() -> None:
    fs = CrashFileSystem()
    store = open_store(fs, b"members")
    store.apply(entries(1, *[(b"%d" % n, b"old") for n in range(50)], term=3))
    running = store.begin_checkpoint()
    assert (running.meta.index, running.meta.term, running.meta.configuration) == (
        50, 3, b"members",
    )  # fmt: skip
    store.apply(entries(51, (b"7", b"new"), (b"8", None), (b"later", b"x"), term=4))
    while not running.step(0.0):
        store.apply(entries(store.applied_index + 1, (b"more", b"y"), term=4))
    running.finish()
    again = open_store(fs.after_crash("dropped"))
    assert (again.applied_index, again.applied_term) == (50, 3)
    assert all((record := again.get(b"%d" % n)) and record.value == b"old" for n in range(50))
    assert again.get(b"later") is None
    assert store.get(b"8") is None
    store.engine.check()


def test_a_checkpoint_that_does_not_fit_is_given_up_and_done_again() -> None:
    fs = CrashFileSystem()
    store = open_store(fs)
    store.apply(entries(1, *[(b"%d" % n, bytes(300)) for n in range(40)]))
    fs.set_capacity(fs.used_bytes())
    running = store.begin_checkpoint()
    with pytest.raises(DiskFull):
        finish(running)
    running.abort()
    store.apply(entries(41, (b"x", b"y")))
    fs.set_capacity(None)
    checkpoint(store)
    again = open_store(fs.after_crash("dropped"))
    assert again.applied_index == 41
    assert len(again.engine) == 41


# -- the digest ----------------------------------------------------------------------------------


def digest_of(*commands: Command) -> int:
    store = open_store(CrashFileSystem())
    store.apply(entries(1, *commands))
    return store.digest


def test_the_digest_is_a_crc_over_commands_and_what_they_did(store: Store) -> None:
    assert store.digest == 0
    expected = 0
    put, delete = codec.encode_put(b"a", b"1"), codec.encode_delete(b"a")
    for data, done in ((put, 1), (put, 2), (delete, 1), (delete, 0), (put, 1)):
        store.apply([Entry(1, store.applied_index + 1, EntryKind.COMMAND, data)])
        expected = crc32(data, expected ^ done)
        assert store.digest == expected
    store.apply([Entry(2, 6, EntryKind.NOOP, b""), Entry(2, 7, EntryKind.CONFIG, b"members")])
    assert store.digest == expected


def test_another_command_gives_another_digest_for_good() -> None:
    commands: list[Command] = [(b"a", b"1"), (b"b", b"2"), (b"a", None), (b"c", b"3")]
    others = [
        [(b"a", b"0"), *commands[1:]],
        [commands[1], commands[0], *commands[2:]],
        [(b"a", None), *commands[1:]],
        [*commands[:2], (b"b", None), commands[3]],
    ]
    digests = {digest_of(*each, *[(b"z", b"%d" % n) for n in range(9)]) for each in others}
    digests.add(digest_of(*commands, *[(b"z", b"%d" % n) for n in range(9)]))
    assert len(digests) == 5


@pytest.mark.parametrize("later", [(b"a", b"2"), (b"a", None)])
def test_the_same_command_to_other_data_gives_another_digest(later: Command) -> None:
    sound, broken = open_store(CrashFileSystem()), open_store(CrashFileSystem())
    for each in (sound, broken):
        each.apply(entries(1, (b"a", b"1")))
    broken.engine.delete(b"ka")  # what no log has asked for
    for each in (sound, broken):
        each.apply(entries(2, later, (b"b", b"3")))
    assert sound.digest != broken.digest


def test_the_digest_comes_back_with_the_checkpoint() -> None:
    fs = CrashFileSystem()
    store = open_store(fs)
    store.apply(entries(1, (b"a", b"1"), (b"b", b"2")))
    digest = store.digest
    running = store.begin_checkpoint()
    store.apply(entries(3, (b"c", b"3")))
    finish(running)
    again = open_store(fs.after_crash("dropped"))
    assert (again.digest, again.digest_at(2)) == (digest, digest)
    again.apply(entries(3, (b"c", b"3")))
    assert again.digest == store.digest


def test_digests_of_round_indexes_are_remembered_however_the_entries_come() -> None:
    log = entries(1, *[(b"%d" % (n % 7), b"%d" % n) for n in range(70 * MARK_EVERY + 5)])
    rng = random.Random(3)
    stores = [open_store(CrashFileSystem()) for _ in range(2)]
    for store, most in zip(stores, (64, 5000), strict=True):
        assert store.last_mark() == (0, 0)
        while (at := store.applied_index) < len(log):
            store.apply(log[at : at + rng.randrange(1, most)])
            newest = at // MARK_EVERY * MARK_EVERY
            assert store.last_mark()[0] >= newest
    known = {store.digest_at(n) for store in stores for n in (len(log),)}
    assert len(known) == 1
    for number in range(1, 71):
        found = {store.digest_at(number * MARK_EVERY) for store in stores}
        assert len(found) == 1
        assert (found == {None}) == (number <= 6)  # 64 of them are kept
    assert stores[0].last_mark() == (70 * MARK_EVERY, stores[1].digest_at(70 * MARK_EVERY))
    assert stores[0].digest_at(len(log) - 1) is None
    assert stores[0].digest_at(70 * MARK_EVERY + 6) is None


# -- states that travel --------------------------------------------------------------------------


def test_a_pinned_state_is_that_of_its_index(store: Store) -> None:
    store.apply(
        [Entry(1, 1, EntryKind.CONFIG, b"members"), *entries(2, (b"a", b"1"), (b"b", b"2"), term=4)]
    )
    digest = store.digest
    state = store.snapshot()
    meta, pinned_digest, tree = state.meta, state.digest, state.reader
    store.apply([*entries(4, (b"a", None), term=5), Entry(5, 5, EntryKind.CONFIG, b"others")])
    assert meta == SnapshotMeta(3, 4, b"members")
    assert pinned_digest == digest != store.digest
    assert [key for key, _ in tree.items()] == [b"ka", b"kb"]
    tree.close()


def test_a_store_goes_on_with_an_installed_state() -> None:
    fs = CrashFileSystem()
    store = open_store(fs, b"old")
    store.apply(entries(1, *[(b"%d" % n, b"old") for n in range(2 * MARK_EVERY)]))
    pinned = store.snapshot()
    other = open_engine(fs, "/other.db", page_size=512)
    fill(other, [(b"ka", Record(b"new", 5, 6, 2))])
    meta = SnapshotMeta(9000, 8, b"new members")
    other.checkpoint(meta.index, meta.term, 77)
    store.replace(other, meta)
    assert (store.applied_index, store.applied_term, store.digest) == (9000, 8, 77)
    assert (store.configuration, store.last_mark()) == (b"new members", (0, 0))
    assert store.digest_at(MARK_EVERY) is None  # of a history that is not this state's
    store.apply(entries(9001, (b"a", b"newer"), term=8))
    assert store.get(b"a") == Record(b"newer", 5, 9001, 3)
    assert len(list(pinned.reader.items())) == 2 * MARK_EVERY
    pinned.reader.close()
    other.check()
    with pytest.raises(AssertionError):
        store.replace(other, SnapshotMeta(9002, 8))


def test_what_expires_next_is_looked_up_anew_in_an_installed_state() -> None:
    """Its leader may have led before, when nothing was due, and then have been sent a state."""
    fs = CrashFileSystem()
    store, other = open_store(fs), Store(open_engine(fs, "/other.db", page_size=512), b"")
    assert store.next_due() is None
    put = codec.encode_transaction(Transaction((), (Put(b"k", b"v", 1000, False),), time=5))
    other.apply([Entry(1, 1, EntryKind.COMMAND, put)])
    checkpoint(other)
    store.replace(other.engine, SnapshotMeta(1, 1, b""))
    assert store.next_due() == 1005
    store.engine.check()


KEYS = st.sampled_from([b"a", b"b", b"c", b"\0", b"a\0", b"long" * 30])
VALUES = st.none() | st.binary(max_size=40) | st.integers(0, 3).map(lambda n: b"%d" % n * 400)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=40), st.randoms(use_true_random=False)
)
def test_the_same_entries_give_the_same_records_however_they_come(
    commands: list[Command], rng: random.Random
) -> None:
    """R7: batches, checkpoints and restarts leave no trace in the contents."""
    log = entries(1, *commands)
    straight = open_store(CrashFileSystem())
    straight.apply(log)

    fs = CrashFileSystem()
    winding = open_store(fs)
    while winding.applied_index < len(log):
        at = winding.applied_index
        batch = log[at : at + rng.randrange(1, 6)]
        winding.apply(batch)
        if rng.random() < 0.3:
            checkpoint(winding)
        if rng.random() < 0.2:
            fs = fs.after_crash("dropped")
            winding = open_store(fs)  # and the log is applied again from there
    assert winding.digest == straight.digest
    assert list(winding.engine.items()) == list(straight.engine.items())
    model: dict[bytes, bytes] = {}
    for key, value in commands:
        model.pop(key, None)
        if value is not None:
            model[key] = value
    assert {key[1:]: record.value for key, record in winding.engine.items()} == model
    winding.engine.check()


# -- a state that another node sends ---------------------------------------------------------------

Row = tuple[bytes, bytes, int, int, int, int]
TIME = (9).to_bytes(8, "big")
WHOLE: list[Row] = [
    (b"c", (9).to_bytes(8, "big") + (8).to_bytes(8, "big"), 9, 9, 1, 0),
    (b"e" + TIME + b"a", b"", 3, 3, 1, 0),
    (b"h\x01sa", b"", 4, 4, 1, 0),
    (b"i" + b"once", b"\x02fp" + codec.encode_outcome(Outcome(5, True)), 5, 5, 1, 9),
    (b"j" + TIME + b"once", b"", 5, 5, 1, 0),
    (b"ka", b"1", 1, 3, 2, 9),
    (b"kb", b"", 2, 2, 1, 0),
    (b"la", TIME + b"s", 4, 4, 1, 0),
    (b"ss", bytes(9) + b"name", 4, 4, 1, 9),
    (b"t" + TIME + b"s", b"", 4, 4, 1, 0),
    (b"v", b"\x02", 6, 6, 1, 0),
]


def inspect(rows: list[Row], speaks: int = 2) -> None:
    inspection = Inspection(speaks)
    for row in rows:
        inspection.look([row])
    inspection.finish()


def clock(own: int, of: int = 0) -> Row:
    """The clock's record, of a state with so many other records of its own."""
    return (b"c", of.to_bytes(8, "big") + own.to_bytes(8, "big"), 1, 1, 1, 0)


def ending(session: bytes) -> list[Row]:
    return [(b"t" + TIME + session, b"", 1, 1, 1, 0)]


def test_a_whole_state_passes() -> None:
    inspect(WHOLE)
    inspect([])
    inspect([clock(0, of=LAST_TIME)])
    inspect([clock(2), (b"ss" + bytes(254), bytes(9), 1, 1, 1, 9), *ending(b"s" + bytes(254))])
    inspect([(b"k" + bytes(MAX_KEY_BYTES), b"", 1, 1, 1, 0)])
    with pytest.raises(VersionTooNew, match="the state is of format version 2"):
        inspect(WHOLE, speaks=1)


@pytest.mark.parametrize("position", [1, 2, 3, 4, 5, 7, 8, 9])
def test_a_record_without_its_counterpart_makes_no_state(position: int) -> None:
    """An entry of an index without its record would be due for ever, or end the node."""
    rest = WHOLE[1:position] + WHOLE[position + 1 :]
    with pytest.raises(ProtocolViolation, match="contradict each other"):
        inspect([clock(sum(row[0][:1] != b"k" for row in rest)), *rest])


@pytest.mark.parametrize("own", [0, 7, 9, (1 << 64) - 1])
def test_a_state_that_miscounts_its_own_records_is_none(own: int) -> None:
    """The number of users' keys is what is left, and would be wrong for good, or below zero."""
    with pytest.raises(ProtocolViolation, match=f"counts {own} records of its own and has 8"):
        inspect([clock(own), *WHOLE[1:]])
    with pytest.raises(ProtocolViolation, match="counts 0 records of its own and has 8"):
        inspect(WHOLE[1:])


NO_STATE_HOLDS: list[Row] = [
    (b"c", bytes(15), 1, 1, 1, 0),
    (b"cc", bytes(16), 1, 1, 1, 0),
    clock(0, of=LAST_TIME + 1),
    clock(0, of=(1 << 64) - 1),
    (b"e1234567", b"", 1, 1, 1, 0),
    (b"e12345678", b"x", 1, 1, 1, 0),
    (b"h", b"", 1, 1, 1, 0),
    (b"h\x03ab", b"", 1, 1, 1, 0),
    (b"i", b"\0" + codec.encode_outcome(Outcome(5, True)), 1, 1, 1, 9),
    (b"i" + bytes(256), b"\0" + codec.encode_outcome(Outcome(5, True)), 1, 1, 1, 9),
    (b"ik", b"", 1, 1, 1, 9),
    (b"ik", b"\x05x", 1, 1, 1, 9),
    (b"ik", b"\0" + codec.encode_outcome(Outcome(5, True))[:-1], 1, 1, 1, 9),
    (b"la", b"1234567", 1, 1, 1, 0),
    (b"la", TIME + bytes(256), 1, 1, 1, 0),
    (b"la", (1 << 62).to_bytes(8, "big") + b"s", 1, 1, 1, 0),
    (b"la", b"\xff" * 8 + b"s", 1, 1, 1, 0),
    (b"l", TIME + b"s", 1, 1, 1, 0),
    (b"l" + bytes(MAX_KEY_BYTES + 1), TIME + b"s", 1, 1, 1, 0),
    (b"ss", b"12345678", 1, 1, 1, 9),
    (b"s" + bytes(256), bytes(9), 1, 1, 1, 9),
    (b"v", b"", 1, 1, 1, 0),
    (b"v", b"\1", 1, 1, 1, 0),
    (b"vv", b"\2", 1, 1, 1, 0),
    (b"x", b"", 1, 1, 1, 0),
    (b"\xff", b"", 1, 1, 1, 0),
]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        *(
            (row, re.escape(f"a record {row[0][:20]!r} that no state holds"))
            for row in NO_STATE_HOLDS
        ),
        ((b"k", b"v", 1, 1, 1, 0), "a record with a key of 0 bytes"),
        ((b"k" + bytes(MAX_KEY_BYTES + 1), b"v", 1, 1, 1, 0), "a record with a key of 1025 bytes"),
        ((b"ka", b"v", 0, 1, 1, 0), "impossible revisions 0 and 1"),
        ((b"ka", b"v", 2, 1, 1, 0), "impossible revisions 2 and 1"),
        ((b"ka", b"v", 1, 1, 0, 0), "impossible revisions 1 and 1"),
        ((b"ka", b"v", 1, 1 << 62, 1, 0), "impossible revisions 1 and 46"),
        ((b"ka", b"v", 1, 1, (1 << 64) - 1, 0), "impossible revisions 1 and 1"),
        ((b"ka", b"v", 1, 1, 1, 1 << 63), "can't expire at 92"),
        ((b"la", TIME + b"s", 1, 1, 1, 9), "can't expire at 9"),
    ],
)
def test_a_record_that_no_state_machine_makes_is_refused(row: Row, why: str) -> None:
    """As soon as it comes: nothing after it is needed to see that."""
    with pytest.raises(ProtocolViolation, match=why):
        Inspection(2).look([row])


def test_applying_stops_after_a_transaction_or_some_hundred_plain_writes_if_it_is_time() -> None:
    """Wherever it stops, the state comes out the same."""
    put = Transaction((), (Put(b"t", b"1"),))
    log = [
        *entries(1, *[(b"%d" % n, b"v") for n in range(600)]),
        *[
            Entry(1, index, EntryKind.COMMAND, codec.encode_transaction(put))
            for index in (601, 602)
        ],
        *entries(603, (b"z", b"1")),
    ]
    whole, store = open_store(CrashFileSystem()), open_store(CrashFileSystem())
    whole.apply(log)
    stops: list[int] = []
    outcomes: list[int] = []
    while store.applied_index < len(log):
        outcomes += store.apply(log[store.applied_index :], lambda: True)
        stops.append(store.applied_index)
    assert stops == [256, 512, 601, 602, 603]
    assert outcomes == [601, 602]
    assert (store.digest, store.applied_term) == (whole.digest, whole.applied_term)
    assert list(store.engine.items()) == list(whole.engine.items())


def test_the_holdings_of_a_session_are_counted() -> None:
    store = open_store(CrashFileSystem())
    session = Transaction((), (OpenSession(b"s", 9_000, False, b""),), time=1)
    keys = [Transaction((), (Acquire(b"k%d" % n, b"s", None),), time=1) for n in range(5)]
    store.apply(
        [
            Entry(1, index, EntryKind.COMMAND, codec.encode_transaction(each))
            for index, each in enumerate([session, *keys], 1)
        ]
    )
    assert (store.holdings(b"s", b"k"), store.holdings(b"r", b"k")) == (5, 0)
    assert store.holdings(b"s", b"k3") == 0
