"""The formats on disk and between nodes: round trips, golden bytes, and bytes nobody wrote."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import (
    MAX_VALUE_BYTES,
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    Expire,
    Get,
    Increment,
    Item,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Release,
    RenewSession,
    Result,
    Sequential,
    Target,
    Touch,
    Transaction,
)
from conure.consensus import records
from conure.consensus.messages import (
    COMMAND,
    CONFIG,
    NOOP,
    Entry,
    Message,
    MessageType,
    SnapshotMeta,
)
from conure.errors import WireError
from conure.peers import frames
from conure.state import codec
from conure.steps import (
    ALWAYS,
    FOREVER,
    WHEN_ABSENT,
    WHEN_EXISTS,
    Add,
    AddFloat,
    Append,
    Check,
    Condition,
    Done,
    Erase,
    Expiry,
    Lapse,
    Life,
    Limit,
    Look,
    Move,
    Obstacle,
    Overlay,
    Read,
    Step,
    When,
    Write,
)

U64 = st.integers(0, 2**64 - 1)
NODE_ID = st.text(max_size=60).filter(lambda text: max(text, default="") < "\ud800")
SALT = 0x5A17C0DF
# Many to an example: it takes longer to draw what is damaged than to damage and decode it.
DAMAGES = st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=8)), min_size=4, max_size=12)


@st.composite
def batches(draw: st.DrawFn, most: int = 20) -> list[Entry]:
    """Entries of one term with consecutive indexes."""
    term, first = draw(U64), draw(st.integers(0, 2**64 - 100))
    bodies = draw(
        st.lists(st.tuples(st.integers(0, CONFIG), st.binary()), min_size=1, max_size=most)
    )
    return [Entry(term, first + i, kind, data) for i, (kind, data) in enumerate(bodies)]


@st.composite
def messages(draw: st.DrawFn) -> Message:
    entries: list[Entry] = []
    for batch in draw(st.lists(batches(5), max_size=3)):
        first = entries[-1].index + 1 if entries else min(batch[0].index, 2**63)
        term = entries[-1].term + 1 if entries else min(batch[0].term, 2**63)
        for i, entry in enumerate(batch):
            entries.append(Entry(term, first + i, entry.kind, entry.data))
    return Message(
        type=draw(st.sampled_from(MessageType)),
        sender=draw(NODE_ID),
        to=draw(NODE_ID),
        term=draw(U64),
        index=draw(U64),
        log_term=draw(U64),
        commit=draw(U64),
        hint=draw(U64),
        context=draw(U64),
        reject=draw(st.booleans()),
        force=draw(st.booleans()),
        entries=entries,
        snapshot=draw(st.none() | st.builds(SnapshotMeta, U64, U64, st.binary(max_size=300))),
    )


def total(decode: Callable[[bytes], Any], data: bytes) -> None:
    """Decode bytes from anywhere; whatever is accepted would be decoded the same again."""
    try:
        first = decode(data)
    except WireError:
        return
    assert decode(data) == first


def damaged(data: bytes, start: int, damages: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield the bytes with each of the damages, at its place behind *start*."""
    for offset, junk in damages:
        at = start + offset
        yield data[:at] + junk + data[at + len(junk) :]


# -- commands ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=1024), st.binary(max_size=3000))
def test_commands_come_back(key: bytes, value: bytes) -> None:
    assert codec.decode_command(codec.encode_put(key, value)) == (codec.OP_PUT, key, value)
    assert codec.decode_command(codec.encode_delete(key)) == (codec.OP_DELETE, key, b"")


def test_golden_commands() -> None:
    assert codec.encode_put(b"k", b"hi").hex() == "010100" + "0001" + "6b" + "6869"
    assert codec.encode_delete(b"k").hex() == "010200" + "0001" + "6b"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "too short"),
        ("01010000", "too short"),
        ("0101000002" + "6b", "a key of 2 bytes"),
        ("0101000000" + "6b", "a key of 0 bytes"),
        ("0301000001" + "6b", "format version 3"),
        ("0201000001" + "6b", "operation 1"),
        ("0204010001" + "6b", "flags 0x01"),
        ("0003000001" + "6b", "format version 0"),
        ("0104000001" + "6b", "operation 4"),
        ("0103010001" + "6b", "flags 0x01"),
        ("0101010001" + "6b", "flags 0x01"),
        ("0102800001" + "6b", "flags 0x80"),
        ("0102000001" + "6b6b", "behind its key"),
    ],
)
def test_a_command_of_a_newer_version_is_named_and_never_guessed(data: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        codec.decode_command(bytes.fromhex(data))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40) | st.binary(max_size=30).map(lambda tail: b"\x01\x01\x00\x00" + tail))
def test_any_bytes_are_a_command_or_a_wire_error(data: bytes) -> None:
    total(codec.decode_command, data)


# -- transactions and outcomes -------------------------------------------------------------------

KEY = st.binary(min_size=1, max_size=30)
VALUE = st.binary(max_size=60)
SHORT = st.binary(max_size=255)
MAYBE = st.none() | VALUE
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Put, KEY, VALUE, U64, st.booleans()),
    st.builds(Delete, KEY),
    st.builds(DeleteRange, VALUE, MAYBE, U64),
    st.builds(Get, KEY),
    st.builds(Range, VALUE, MAYBE, U64, st.booleans(), st.booleans()),
    st.builds(Increment, KEY, st.integers(-(2**63), 2**63 - 1)),
    st.builds(Touch, KEY, U64),
    st.builds(Acquire, KEY, SHORT, MAYBE),
    st.builds(Release, KEY, SHORT, MAYBE),
    st.builds(OpenSession, SHORT, U64, st.booleans(), VALUE),
    st.builds(RenewSession, SHORT),
    st.builds(EndSession, SHORT),
    st.builds(Expire, U64),
)
COMPARES = st.one_of(
    st.builds(Compare, KEY, st.just(Target.VALUE), st.sampled_from(Relation), VALUE),
    st.builds(
        Compare,
        KEY,
        st.sampled_from([Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION]),
        st.sampled_from(Relation),
        U64,
    ),
)
TRANSACTIONS = st.builds(
    Transaction,
    st.lists(COMPARES, max_size=3).map(tuple),
    st.lists(OPERATIONS, max_size=4).map(tuple),
    st.lists(OPERATIONS, max_size=4).map(tuple),
    U64,
    SHORT,
    SHORT,
    U64,
)
ITEMS = st.builds(Item, VALUE, MAYBE, U64, U64, U64, U64)
RESULTS = st.builds(
    Result,
    U64,
    st.booleans(),
    st.lists(ITEMS, max_size=3).map(tuple),
    st.integers(-(2**63), 2**63 - 1),
)
OUTCOMES = st.builds(
    Outcome,
    U64,
    st.booleans(),
    st.lists(RESULTS, max_size=3).map(tuple),
    st.sampled_from(Refusal),
    VALUE,
    U64,
    st.booleans(),
    st.just(()),
    st.just(0),
)


@settings(deadline=None)
@given(TRANSACTIONS)
def test_transactions_come_back(transaction: Transaction) -> None:
    data = codec.encode_transaction(transaction)
    assert codec.decode_command(data) == (codec.OP_TRANSACTION, b"", b"")
    decoded = codec.decode_transaction(data)
    assert decoded == transaction
    for one, other in zip(
        decoded.success + decoded.failure, transaction.success + transaction.failure, strict=True
    ):
        assert type(one) is type(other)  # which equal tuples may not be
    for compare in decoded.compares:
        assert isinstance(compare.target, Target)
        assert isinstance(compare.relation, Relation)


@settings(deadline=None)
@given(OUTCOMES)
def test_outcomes_come_back(outcome: Outcome) -> None:
    decoded = codec.decode_outcome(codec.encode_outcome(outcome))
    assert decoded == outcome
    assert isinstance(decoded.refusal, Refusal)


HEAD = "010300" + "0000018bcfe56800" + "0000000000000000" + "0000"


def test_golden_transactions() -> None:
    put = Transaction(
        (Compare(b"k", Target.MOD_REVISION, Relation.EQUAL, 7),),
        (Put(b"k", b"hi", 3000),),
        (Get(b"k"),),
        time=1_700_000_000_000,
    )
    assert codec.encode_transaction(put).hex() == (
        HEAD + "0001" "0001" "0001"
        "03" "00" "0001" "00000008" "6b" "0000000000000007"
        "01" "00" "00" "0001" "00000002" "0000000000000bb8" "6b" "6869"
        "04" "00" "00" "0001" "00000000" "0000000000000000" "6b"
    )  # fmt: skip
    once = Transaction((), (), idempotency_key=b"id", fingerprint=b"fp", window=256)
    assert codec.encode_transaction(once).hex() == (
        "010300" "0000000000000000" "0000000000000100" "02" "02" "0000" "0000" "0000" "6964" "6670"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "golden"),
    [
        (Put(b"k", b"v", 1, keep_ttl=True), "01 01 00 0001 00000001 0000000000000001 6b 76"),
        (Delete(b"k"), "02 00 00 0001 00000000 0000000000000000 6b"),
        (DeleteRange(b"a", None), "03 00 00 0001 00000000 0000000000000000 61"),
        (DeleteRange(b"a", b"", 9), "03 01 00 0001 00000000 0000000000000009 61"),
        (Get(b"k"), "04 00 00 0001 00000000 0000000000000000 6b"),
        (Range(b"a", b"b", 9), "05 01 00 0001 00000001 0000000000000009 61 62"),
        (Range(b"", None, 9, True, True), "05 06 00 0000 00000000 0000000000000009"),
        (Increment(b"k", -2), "06 00 00 0001 00000000 fffffffffffffffe 6b"),
        (Touch(b"k", 5), "07 00 00 0001 00000000 0000000000000005 6b"),
        (Acquire(b"k", b"s", b"v"), "08 01 01 0001 00000001 0000000000000000 73 6b 76"),
        (Release(b"k", b"s", None), "09 00 01 0001 00000000 0000000000000000 73 6b"),
        (OpenSession(b"s", 5, True, b"n"), "0a 01 01 0000 00000001 0000000000000005 73 6e"),
        (RenewSession(b"s"), "0b 00 01 0000 00000000 0000000000000000 73"),
        (EndSession(b"s"), "0c 00 01 0000 00000000 0000000000000000 73"),
        (Expire(100), "0d 00 00 0000 00000000 0000000000000064"),
    ],
)
def test_golden_operations(operation: Operation, golden: str) -> None:
    data = codec.encode_transaction(Transaction((), (operation,)))
    assert data[27:] == bytes.fromhex(golden)


def test_golden_outcomes() -> None:
    done = Outcome(
        9,
        True,
        (
            Result(2, True, (Item(b"k", b"hi", 1, 2, 3, 4), Item(b"l", None, 5, 6, 7))),
            Result(number=-1),
        ),
        repeated=True,
    )
    assert codec.encode_outcome(done).hex() == (
        "01" "03" "00" "00" "0000000000000009" "0000000000000000" "0000" "0002"
        "01" "0000000000000002" "0000000000000000" "00000002"
        "01" "0001" "00000002" "0000000000000001" "0000000000000002"
        "0000000000000003" "0000000000000004" "6b" "6869"
        "00" "0001" "00000000" "0000000000000005" "0000000000000006"
        "0000000000000007" "0000000000000000" "6c"
        "00" "0000000000000000" "ffffffffffffffff" "00000000"
    )  # fmt: skip
    refused = Outcome(9, False, refusal=Refusal.HELD_BY_ANOTHER, refused_key=b"k", current=8)
    assert codec.encode_outcome(refused).hex() == (
        "01" "00" "05" "00" "0000000000000009" "0000000000000008" "0001" "0000" "6b"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        ("0000 0000 00", "unpack"),
        ("0000 0000 0000 00", "27 bytes in a command of 28"),
        ("0001 0000 0000" + "040000010000000861" + "00" * 8, "4 is not a valid Target"),
        ("0001 0000 0000" + "000400010000000161" + "62", "4 is not a valid Relation"),
        ("0001 0000 0000" + "0000000000000000", "a comparison of a key of 0 bytes"),
        ("0001 0000 0000" + "010000010000000461" + "00" * 4, "with 4 bytes"),
        ("0001 0000 0000" + "000000010000000961" + "62", "with 9 bytes"),
        ("ffff 0000 0000" + "000000010000000161" + "62", "unpack"),
        ("0000 ffff ffff", "unpack"),
        ("0000 0001 0000" + "0e" + "00" * 16, "unknown kind of operation 14"),
        ("0000 0001 0000" + "01" + "00" * 16, "a key of 0 bytes"),
        ("0000 0001 0000" + "0200000002" + "00" * 12 + "6b", "a key of 2 bytes"),
        ("0000 0001 0000" + "0200000001" + "00000001" + "00" * 8 + "6b6b", "it can't have"),
        ("0000 0001 0000" + "0200000001" + "00" * 11 + "01" + "6b", "it can't have"),
        ("0000 0001 0000" + "0200010001" + "00" * 12 + "736b", "it can't have"),
        ("0000 0001 0000" + "0102000001" + "00" * 12 + "6b", "it can't have"),
        ("0000 0001 0000" + "0508000001" + "00" * 12 + "6b", "it can't have"),
        ("0000 0001 0000" + "0300000001" + "00000001" + "00" * 8 + "6b6b", "it can't have"),
    ],
)
def test_a_transaction_that_nobody_encodes(tail: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        codec.decode_transaction(bytes.fromhex(HEAD + tail))


def test_a_put_is_no_transaction() -> None:
    with pytest.raises(WireError, match="no transaction"):
        codec.decode_transaction(codec.encode_put(b"k", bytes(100)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("01" + "00" * 22, "unpack"),
        ("03" + "00" * 23, "version 3"),
        ("0104" + "00" * 22, "flags 0x04"),
        ("01000001" + "00" * 20, "version 1"),
        ("010009" + "00" * 21, "9 is not a valid Refusal"),
        ("01" + "00" * 19 + "00010000", "25 bytes in 24"),
        ("01" + "00" * 24, "24 bytes in 25"),
        ("01" + "00" * 22 + "01", "unpack"),
        ("01" + "00" * 22 + "01" + "02" + "00" * 20, "flags 0x02"),
        ("01" + "00" * 22 + "01" + "00" * 17 + "ffffffff", "4294967295 items"),
        ("01" + "00" * 22 + "01" + "00" * 20 + "01" + "02" + "00" * 38, "flags 0x02"),
        ("01" + "00" * 22 + "01" + "00" * 20 + "01" + "00000000000001" + "00" * 33, "an item"),
    ],
)
def test_an_outcome_that_nobody_encodes(data: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        codec.decode_outcome(bytes.fromhex(data))


def canonical(
    decode: Callable[[bytes], Any], encode: Callable[[Any], bytes], data: Iterable[bytes]
) -> None:
    """Decode bytes from anywhere: whatever is accepted is what the encoder would have made."""
    for each in data:
        try:
            value = decode(each)
        except WireError:
            continue
        assert encode(value) == each


@settings(deadline=None, max_examples=60)
@given(TRANSACTIONS, OUTCOMES, DAMAGES)
def test_any_bytes_are_a_transaction_an_outcome_or_a_wire_error(
    transaction: Transaction, outcome: Outcome, damages: list[tuple[int, bytes]]
) -> None:
    def broken(whole: bytes) -> Iterator[bytes]:
        yield from damaged(whole, 0, damages)
        for offset, junk in damages:
            yield from (whole[:offset], whole + junk, junk)

    data = codec.encode_transaction(transaction)
    canonical(codec.decode_transaction, codec.encode_transaction, broken(data))
    for each in broken(data):
        assert is_taken(each) == is_read(codec.decode_transaction, each), each
    canonical(codec.decode_outcome, codec.encode_outcome, broken(codec.encode_outcome(outcome)))


@settings(deadline=None)
@given(TRANSACTIONS, st.data())
def test_a_transaction_is_checked_as_it_is_read(
    transaction: Transaction, data: st.DataObject
) -> None:
    """Any byte of it may be another one: heads are where that counts."""
    whole = codec.encode_transaction(transaction)
    codec.check_command(whole)
    at = data.draw(st.integers(3, len(whole) - 1))
    for byte in (0, 1, 2, 3, 4, 7, 8, 13, 14, 255):
        each = whole[:at] + bytes((byte,)) + whole[at + 1 :]
        assert is_taken(each) == is_read(codec.decode_transaction, each), each


def is_taken(data: bytes) -> bool:
    """Tell whether a transaction is taken, or would be if its keys weren't too long."""
    try:
        codec.check_command(data)
    except WireError as error:
        return "with a key of" in str(error) and is_read(codec.decode_transaction, data)
    return data[:3] == codec.encode_transaction(Transaction((), ()))[:3]


# -- sequential transactions ---------------------------------------------------------------------

I64 = st.integers(-(2**63), 2**63 - 1)
CONDITIONS = st.sampled_from(When).filter(lambda when: when not in (3, 4)).map(
    Condition
) | st.builds(Condition, st.sampled_from([When.EQUAL, When.DIFFERS]), VALUE)
EXPIRIES = st.sampled_from([FOREVER, Expiry(Life.KEPT)]) | st.builds(
    Expiry, st.sampled_from([Life.TTL, Life.AT, Life.LONGER]), I64
)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(Read, KEY, I64, I64, st.integers(0, 255)),
    st.builds(Look, KEY),
    st.builds(Write, KEY, VALUE, st.just(ALWAYS), st.just(FOREVER)),
    st.builds(Write, KEY, VALUE, CONDITIONS, EXPIRIES),
    st.builds(Erase, KEY, CONDITIONS),
    st.builds(Lapse, KEY, EXPIRIES, CONDITIONS, st.integers(0, 15).map(Limit)),
    st.builds(Add, KEY, I64),
    st.builds(AddFloat, KEY, VALUE),
    st.builds(Append, KEY, VALUE),
    st.builds(Overlay, KEY, st.integers(0, 2**63 - 1), VALUE),
    st.builds(Move, KEY, KEY, st.booleans(), st.booleans()),
    st.builds(Check, KEY, CONDITIONS, st.integers(0, 2**63 - 1)),
)
SEQUENTIALS = st.builds(
    Sequential,
    st.lists(COMPARES, max_size=3).map(tuple),
    st.lists(STEPS, max_size=6).map(tuple),
    st.integers(0, MAX_VALUE_BYTES),
    U64,
    SHORT,
    SHORT,
    U64,
)
DONE = st.builds(Done, st.sampled_from(Obstacle), st.booleans(), I64, MAYBE, U64, I64)
ENDED = st.builds(
    Outcome,
    U64,
    st.booleans(),
    results=st.just(()),
    refused_key=st.just(b""),
    refusal=st.sampled_from(Refusal),
    current=U64,
    repeated=st.booleans(),
    done=st.lists(DONE, max_size=4).map(tuple),
    time=st.integers(1, 2**64 - 1),
)


@settings(deadline=None)
@given(SEQUENTIALS)
def test_sequential_transactions_come_back(sequential: Sequential) -> None:
    data = codec.encode_sequential(sequential)
    assert codec.decode_command(data) == (codec.OP_SEQUENTIAL, b"", b"")
    assert codec.newest_version([codec.encode_put(b"k", b"v"), data]) == 2
    decoded = codec.decode_sequential(data)
    assert decoded == sequential
    checked = codec.check_command(data)
    assert isinstance(checked, codec.Checked)
    assert checked.reads == [each.key for each in sequential.steps if isinstance(each, Read)]
    for one, other in zip(decoded.steps, sequential.steps, strict=True):
        assert type(one) is type(other)  # which equal tuples may not be


@settings(deadline=None)
@given(ENDED)
def test_outcomes_of_steps_come_back(outcome: Outcome) -> None:
    decoded = codec.decode_outcome(codec.encode_outcome(outcome))
    assert decoded == outcome
    assert all(isinstance(each.obstacle, Obstacle) for each in decoded.done)
    assert all(each.existed in (True, False) for each in decoded.done)


STEPS_HEAD = "020400" + "0000018bcfe56800" + "0000000000000000" + "00100000" + "0000"


@settings(deadline=None)
@given(
    st.lists(st.tuples(KEY, VALUE), min_size=1, max_size=6, unique_by=lambda pair: pair[0])
    | st.builds(
        lambda keys, value: [(b"%03d" % key, value) for key in keys],
        st.lists(st.integers(0, 999), min_size=1, max_size=6, unique=True),
        VALUE,
    )
)
def test_writes_are_encoded_and_read_without_steps(pairs: list[tuple[bytes, bytes]]) -> None:
    keys, values = [[*column] for column in zip(*pairs, strict=True)]
    longest = max(map(len, values))
    whole = Sequential((), tuple(Write(*pair) for pair in pairs), longest, time=7)
    data = codec.stamp(codec.encode_writes(keys, values, longest), 7)
    assert data == codec.encode_sequential(whole)
    found = codec.decode_writes(data)
    assert found is not None
    assert (found.time, [*found.keys], [*found.values]) == (7, keys, values)


@pytest.mark.parametrize("step", [Write(b"b", b"w", WHEN_ABSENT), Erase(b"b"), Add(b"b", 0)])
def test_what_is_as_long_as_writes_is_not_taken_for_them(step: Step) -> None:
    steps = (
        (Write(b"a", b""), step) if isinstance(step, (Erase, Add)) else (Write(b"a", b"v"), step)
    )
    data = codec.encode_sequential(Sequential((), steps, 9))
    assert len(data) == len(codec.encode_sequential(Sequential((), (steps[0],) * 2, 9)))
    assert codec.decode_writes(data) is None


def test_writes_of_other_lengths_may_have_as_many_bytes() -> None:
    pairs = [(b"a", b"xx"), (b"bb", b"y"), (b"c", b"zz")]
    data = codec.encode_writes([pair[0] for pair in pairs], [pair[1] for pair in pairs], 9)
    found = codec.decode_writes(data)
    assert found is not None
    assert [*zip(found.keys, found.values, strict=True)] == pairs


def test_golden_sequential_transactions() -> None:
    whole = Sequential(
        (Compare(b"k", Target.MOD_REVISION, Relation.EQUAL, 7),),
        (Write(b"k", b"hi"),),
        1 << 20,
        time=1_700_000_000_000,
    )
    assert codec.encode_sequential(whole).hex() == (
        STEPS_HEAD + "0001" "0001"
        "03" "00" "0001" "00000008" "6b" "0000000000000007"
        "03" "00" "00" "00" "0001" "00000002" "00000000"
        "0000000000000000" "0000000000000000" "6b" "6869"
    )  # fmt: skip
    once = Sequential((), (), 9, idempotency_key=b"id", fingerprint=b"fp", window=256)
    assert codec.encode_sequential(once).hex() == (
        "020400" "0000000000000000" "0000000000000100" "00000009" "02" "02" "0000" "0000"
        "6964" "6670"
    )  # fmt: skip


NOTHING = " 0000000000000000"


@pytest.mark.parametrize(
    ("step", "golden"),
    [
        (Read(b"k"), "01 00 00 00 0001 00000000 00000000" + NOTHING + " ffffffffffffffff 6b"),
        (
            Read(b"k", 1, 2, skips=3),
            "01 00 00 03 0001 00000000 00000000 0000000000000001 0000000000000002 6b",
        ),
        (Look(b"k"), "02 00 00 00 0001 00000000 00000000" + 2 * NOTHING + "6b"),
        (
            Write(b"k", b"v", Condition(When.EQUAL, b"w"), Expiry(Life.TTL, 5)),
            "03 03 02 00 0001 00000001 00000001 0000000000000005" + NOTHING + "6b 76 77",
        ),
        (Erase(b"k", WHEN_EXISTS), "04 01 00 00 0001 00000000 00000000" + 2 * NOTHING + "6b"),
        (
            Lapse(b"k", Expiry(Life.AT, 5), limit=Limit.HAS_ONE | Limit.LATER),
            "05 00 03 06 0001 00000000 00000000 0000000000000005" + NOTHING + "6b",
        ),
        (
            Lapse(b"k", Expiry(Life.LONGER, 5), WHEN_ABSENT, Limit.EARLIER),
            "05 02 04 08 0001 00000000 00000000 0000000000000005" + NOTHING + "6b",
        ),
        (Add(b"k", -2), "06 00 00 00 0001 00000000 00000000 fffffffffffffffe" + NOTHING + "6b"),
        (AddFloat(b"k", b"1"), "07 00 00 00 0001 00000001 00000000" + 2 * NOTHING + "6b 31"),
        (Append(b"k", b"v"), "08 00 00 00 0001 00000001 00000000" + 2 * NOTHING + "6b 76"),
        (
            Overlay(b"k", 9, b"v"),
            "09 00 00 00 0001 00000001 00000000 0000000000000009" + NOTHING + "6b 76",
        ),
        (
            Move(b"k", b"l", replaces=False, copies=True),
            "0a 00 00 02 0001 00000001 00000000" + 2 * NOTHING + "6b 6c",
        ),
        (
            Check(b"k", Condition(When.DIFFERS, b"v"), 2),
            "0b 04 00 00 0001 00000000 00000001 0000000000000002" + NOTHING + "6b 76",
        ),
    ],
)
def test_golden_steps(step: Step, golden: str) -> None:
    data = codec.encode_sequential(Sequential((), (step,), 0))
    assert data[29:] == bytes.fromhex(golden)


def test_what_means_nothing_is_left_out_of_a_step() -> None:
    steps = (
        Write(b"k", b"v", Condition(When.EXISTS, b"x"), Expiry(Life.KEPT, 5)),
        Erase(b"k", Condition(When.ALWAYS, b"x")),
        Lapse(b"k", Expiry(Life.FOREVER, 5), Condition(When.ABSENT, b"x")),
        Check(b"k", Condition(When.ABSENT, b"x"), 1),
    )
    data = codec.encode_sequential(Sequential((), steps, 0))
    assert codec.decode_sequential(data).steps == (
        Write(b"k", b"v", WHEN_EXISTS, Expiry(Life.KEPT)),
        Erase(b"k"),
        Lapse(b"k", FOREVER, WHEN_ABSENT),
        Check(b"k", WHEN_ABSENT, 1),
    )


def test_golden_outcomes_of_steps() -> None:
    done = Outcome(
        9,
        True,
        done=(
            Done(Obstacle.NONE, True, 2, b"hi", 3, 1),
            Done(Obstacle.UNMET, number=-1),
        ),
        time=2,
    )
    assert codec.encode_outcome(done).hex() == (
        "02" "01" "00" "00" "0000000000000009" "0000000000000000" "0000000000000002" "0002"
        "00" "03" "0000000000000002" "0000000000000003" "0000000000000001" "00000002" "6869"
        "01" "00" "ffffffffffffffff" "0000000000000000" "ffffffffffffffff" "00000000"
    )  # fmt: skip
    failed = Outcome(9, False, current=8, time=2)
    assert codec.encode_outcome(failed).hex() == (
        "02" "00" "00" "00" "0000000000000009" "0000000000000008" "0000000000000002" "0000"
    )  # fmt: skip


A_STEP = "0001 00000000 00000000" + 2 * NOTHING + "6b"


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        ("0000 00", "unpack"),
        ("0000 0000 00", "29 bytes in a command of 30"),
        ("0001 0000" + "040000010000000861" + "00" * 8, "4 is not a valid Target"),
        ("ffff 0000" + "000000010000000161" + "62", "unpack"),
        ("0000 ffff" + "01 00 00 00" + A_STEP, "unpack"),
        ("0000 0001" + "00 00 00 00" + A_STEP, "unknown kind of step 0"),
        ("0000 0001" + "0c 00 00 00" + A_STEP, "unknown kind of step 12"),
        ("0000 0001" + "02 00 00 00 0000 00000000 00000000" + 2 * NOTHING, "a key of 0 bytes"),
        ("0000 0001" + "02 00 00 00 0002 00000000 00000000" + 2 * NOTHING + "6b", "of 2 bytes"),
        ("0000 0001" + "02 00 00 00 0001 ffffffff 00000000" + 2 * NOTHING + "6b", "of 1 bytes"),
        ("0000 0001" + "02 00 00 00 0001 00000001 00000000" + 2 * NOTHING + "6b76", "can't have"),
        ("0000 0001" + "02 01 00 00" + A_STEP, "something it can't have"),
        ("0000 0001" + "03 07 00 00" + A_STEP, "something it can't have"),
        ("0000 0001" + "03 00 05 00" + A_STEP, "something it can't have"),
        ("0000 0001" + "03 00 00 01" + A_STEP, "something it can't have"),
        ("0000 0001" + "05 00 00 10" + A_STEP, "something it can't have"),
        ("0000 0001" + "0a 00 00 00" + A_STEP, "something it can't have"),
        ("0000 0001" + "0a 00 00 04 0001 00000001 00000000" + 2 * NOTHING + "6b6c", "can't have"),
        (
            "0000 0001 09 00 00 00 0001 00000000 00000000 8000000000000000" + NOTHING + "6b",
            "something it can't have",
        ),
        (
            "0000 0001 0b 00 00 00 0001 00000000 00000000 8000000000000000" + NOTHING + "6b",
            "something it can't have",
        ),
        (
            "0000 0001 03 01 00 00 0001 00000000 00000001" + 2 * NOTHING + "6b76",
            "something it can't have",
        ),
        (
            "0000 0001 03 00 01 00 0001 00000000 00000000 0000000000000001" + NOTHING + "6b",
            "something it can't have",
        ),
    ],
)
def test_a_sequential_transaction_that_nobody_encodes(tail: str, why: str) -> None:
    data = bytes.fromhex(STEPS_HEAD + tail)
    with pytest.raises(WireError, match=why):
        codec.decode_sequential(data)
    with pytest.raises(WireError):
        codec.check_command(data)


def test_a_put_is_no_sequential_transaction() -> None:
    with pytest.raises(WireError, match="no sequential transaction"):
        codec.decode_sequential(codec.encode_put(b"k", bytes(100)))


def test_no_entry_makes_a_longer_value_than_anybody_may_allow() -> None:
    """A step of a few bytes could make nodes run out of memory as they apply it."""
    steps = (Overlay(b"k", (64 << 20) - 1, b"v"),)
    codec.check_command(codec.encode_sequential(Sequential((), steps, 64 << 20)))
    with pytest.raises(WireError, match="with values of 67108865 bytes"):
        codec.check_command(codec.encode_sequential(Sequential((), steps, (64 << 20) + 1)))


def test_no_step_has_a_longer_key_than_anybody_may_have() -> None:
    for step in (Read(bytes(1025)), Move(b"k", bytes(1025)), Move(bytes(1025), b"k")):
        with pytest.raises(WireError, match="a step with a key of 1025 bytes"):
            codec.check_command(codec.encode_sequential(Sequential((), (step,), 0)))
    codec.check_command(codec.encode_sequential(Sequential((), (Move(bytes(1024), b"k"),), 0)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("02" + "00" * 28, "unpack"),
        ("02" + "00" * 29, "0 steps"),
        ("0204" + "00" * 28, "flags 0x04"),
        ("02000001" + "00" * 26, "an outcome"),
        ("020009" + "00" * 24 + "01" + "0000", "9 is not a valid Refusal"),
        ("02" + "00" * 26 + "01" + "0000" + "00", "30 bytes in 31"),
        ("02" + "00" * 28 + "01", "unpack"),
        ("02" + "00" * 28 + "01" + "0a" + "00" * 29, "a result 10"),
        ("02" + "00" * 28 + "01" + "0004" + "00" * 28, "flags 0x04"),
        ("02" + "00" * 28 + "01" + "0002" + "00" * 27 + "01", "ends at 61"),
        ("02" + "00" * 28 + "01" + "00" * 29 + "01" + "76", "without a value, of 1 bytes"),
    ],
)
def test_an_outcome_of_steps_that_nobody_encodes(data: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        codec.decode_outcome(bytes.fromhex(data))


@settings(deadline=None, max_examples=60)
@given(SEQUENTIALS, ENDED, DAMAGES)
def test_any_bytes_are_a_sequential_transaction_or_a_wire_error(
    sequential: Sequential, outcome: Outcome, damages: list[tuple[int, bytes]]
) -> None:
    def broken(whole: bytes) -> Iterator[bytes]:
        yield from damaged(whole, 0, damages)
        for offset, junk in damages:
            yield from (whole[:offset], whole + junk, junk)

    data = codec.encode_sequential(sequential)
    canonical(codec.decode_sequential, codec.encode_sequential, broken(data))
    for each in broken(data):
        assert is_read(codec.check_command, each) == is_read(codec.decode_sequential, each)
    canonical(codec.decode_outcome, codec.encode_outcome, broken(codec.encode_outcome(outcome)))


def is_read(decode: Callable[[bytes], object], data: bytes) -> bool:
    try:
        decode(data)
    except WireError:
        return False
    return True


# -- log records ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(batches(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=9))
def test_records_come_back(batch: list[Entry], salt: int, unsynced: int, around: bytes) -> None:
    data = records.encode_record(batch, salt, unsynced)
    assert [(batch, len(data) - 44)] == list(records.split_batches(batch, 1 << 30))
    buffer = around + data + around
    record, entries = records.decode_record(buffer, len(around), salt)
    first = batch[0]
    assert record == (len(around) + len(data), unsynced, first.term, first.index, len(batch))
    assert entries == batch
    assert records.check_record(buffer, len(around), salt) == record
    assert records.read_record_header(buffer, len(around), salt) == record


def test_golden_record() -> None:
    batch = [Entry(2, 9, COMMAND, b"\x01\x01\x00\x00\x01khi"), Entry(2, 10, NOOP, b"")]
    assert records.encode_record(batch, SALT, 3).hex() == (
        "eb167855" "fe17e519" "5a17c0df" "00000012" "00000003" "01" "000000"
        "0000000000000002" "0000000000000009" "00000002"
        "00000008" "00000000" "01" "00" "01010000016b6869"
    )  # fmt: skip


def test_every_changed_bit_of_a_record_is_noticed() -> None:
    data = records.encode_record([Entry(2, 9, COMMAND, b"data"), Entry(2, 10, NOOP, b"")], SALT, 0)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            records.check_record(bytes(changed), 0, SALT)
        if 4 <= bit // 8 < records.RECORD_HEADER_BYTES:
            with pytest.raises(WireError, match="header"):
                records.read_record_header(bytes(changed), 0, SALT)
    for size in range(len(data)):
        with pytest.raises(WireError):
            records.check_record(data[:size], 0, SALT)
    with pytest.raises(WireError, match="another file"):
        records.check_record(data, 0, SALT + 1)


def resealed(record: bytes) -> bytes:
    """Make both checksums of a record right again, as a hostile writer would."""
    header = crc32(record[8 : records.RECORD_HEADER_BYTES]).to_bytes(4, "big")
    return crc32(header + record[8:]).to_bytes(4, "big") + header + record[8:]


@settings(deadline=None, max_examples=50)
@given(batches(), DAMAGES)
def test_a_record_with_right_checksums_and_wrong_contents_harms_nobody(
    batch: list[Entry], damages: list[tuple[int, bytes]]
) -> None:
    record = records.encode_record(batch, SALT, 0)
    for data in damaged(record, 8, damages):
        for candidate in (data, resealed(data)):
            total(lambda b: records.decode_record(b, 0, SALT), candidate)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 210))
def test_any_bytes_are_a_record_or_a_wire_error(data: bytes, offset: int) -> None:
    total(lambda b: records.decode_record(b, offset, SALT), data)
    total(lambda b: records.read_record_header(b, offset, SALT), data)


@settings(deadline=None)
@given(st.lists(batches(6), max_size=4), st.integers(1, 300))
def test_splitting_keeps_every_entry_and_both_limits(parts: list[list[Entry]], limit: int) -> None:
    entries = [
        Entry(term, 0, entry.kind, entry.data) for term, part in enumerate(parts) for entry in part
    ]
    split = list(records.split_batches(entries, limit))
    assert [entry for batch, _ in split for entry in batch] == entries
    for batch, size in split:
        assert len({entry.term for entry in batch}) == 1
        assert len(records.encode_record(batch, SALT, 0)) == records.RECORD_HEADER_BYTES + size
        assert len(batch) == 1 or size <= limit


# -- messages ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(messages())
def test_messages_come_back(message: Message) -> None:
    frame = frames.encode_message(message)
    assert records.frame_length(frame[: records.FRAME_HEADER_BYTES]) == len(frame) - 8
    assert frames.decode_message(frame) == message


def test_no_field_of_a_message_is_left_behind() -> None:
    values: dict[str, Any] = {
        "type": MessageType.APPEND, "sender": "node-1", "to": "nöde-2", "term": 1, "index": 2,
        "log_term": 3, "commit": 4, "hint": 5, "context": 6, "reject": True, "force": True,
        "entries": [Entry(1, 3, COMMAND, b"x"), Entry(2, 4, CONFIG, b"yz")],
        "snapshot": SnapshotMeta(7, 8, b"members"),
    }  # fmt: skip
    of_the_connection = {"incarnation"}  # stamped by whoever receives it
    fields = {field.name for field in dataclasses.fields(Message)}
    assert set(values) == fields - of_the_connection
    message = Message(**values)
    assert frames.decode_message(frames.encode_message(message)) == message
    for name, value in values.items():
        plain: dict[str, Any] = {"type": MessageType.VOTE, "sender": "", "to": "", "term": 0}
        plain[name] = value
        message = Message(**plain)
        decoded = frames.decode_message(frames.encode_message(message))
        assert decoded == dataclasses.replace(message, entries=list(message.entries))
        assert isinstance(decoded.type, MessageType)


def test_golden_message() -> None:
    message = Message(
        type=MessageType.APPEND, sender="a", to="bc", term=2, index=8, log_term=1, commit=7,
        hint=6, context=5, reject=True, entries=[Entry(2, 9, NOOP, b"")],
        snapshot=SnapshotMeta(3, 1, b"cfg"),
    )  # fmt: skip
    assert frames.encode_message(message).hex() == (
        "0000006c" "5f960480" "01" "05" "05" "01" "02"
        "0000000000000002" "0000000000000008" "0000000000000001" "0000000000000007"
        "0000000000000006" "0000000000000005" "61" "6263"
        "0000000000000003" "0000000000000001" "00000003" "636667"
        "00000019" "0000000000000002" "0000000000000009" "00000001" "00000000" "00"
    )  # fmt: skip


def test_every_changed_bit_of_a_message_is_noticed() -> None:
    frame = frames.encode_message(
        Message(MessageType.APPEND, "a", "b", 1, entries=[Entry(1, 1, COMMAND, b"data")])
    )
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            frames.decode_message(bytes(changed))
    for size in range(len(frame)):
        with pytest.raises(WireError):
            frames.decode_message(frame[:size])


@settings(deadline=None, max_examples=60)
@given(messages(), DAMAGES)
def test_a_message_with_a_right_checksum_and_wrong_contents_harms_nobody(
    message: Message, damages: list[tuple[int, bytes]]
) -> None:
    for payload in damaged(frames.encode_message(message)[8:], 0, damages):
        total(frames.decode_message, struct.pack(">II", len(payload), crc32(payload)) + payload)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    total(frames.decode_message, data)
    total(frames.decode_message, struct.pack(">II", len(data), crc32(data)) + data)
    total(records.frame_length, data)


def test_a_frame_that_announces_too_much_is_refused_before_it_is_read() -> None:
    for length in (0, records.MAX_FRAME_BYTES + 1, 2**32 - 1):
        with pytest.raises(WireError, match="a frame of"):
            records.frame_length(struct.pack(">II", length, 0))
    assert records.frame_length(struct.pack(">II", 100, 0), 100) == 100
    with pytest.raises(WireError, match="1 to 100 are possible"):
        records.frame_length(struct.pack(">II", 101, 0), 100)
    with pytest.raises(WireError, match="cut short"):
        records.frame_length(b"\0\0\0\1")


def test_a_small_frame_can_not_become_a_mountain_of_entries() -> None:
    fits = [Entry(1, i, NOOP, b"") for i in range(1, frames.MAX_MESSAGE_ENTRIES + 1)]
    frame = frames.encode_message(Message(MessageType.APPEND, "a", "b", 1, entries=fits))
    assert len(frames.decode_message(frame).entries) == frames.MAX_MESSAGE_ENTRIES

    payload = records.check_frame(frame)
    one_more = Message(
        MessageType.APPEND, "a", "b", 1, entries=[Entry(1, len(fits) + 1, NOOP, b"")]
    )
    batch = records.check_frame(frames.encode_message(one_more))[
        55:
    ]  # 53 bytes of fields, "a", "b"
    with pytest.raises(WireError, match="more than 65536 entries"):
        frames.decode_message(records.encode_frame(payload + batch))

    n = 5_000_000  # in one batch, and told by its header alone: no bytes stand after it
    head = struct.pack(">QQI", 1, 1, n)
    with pytest.raises(WireError, match="more than 65536 entries"):
        frames.decode_message(records.encode_frame(payload[:55] + struct.pack(">I", 20) + head))


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [(8, 2, "version 2"), (9, 200, "200 is not a valid MessageType"), (10, 8, "flags 0x08")],
)
def test_a_message_of_a_newer_version_is_named(at: int, value: int, why: str) -> None:
    payload = bytearray(frames.encode_message(Message(MessageType.VOTE, "a", "b", 1)))[8:]
    payload[at - 8] = value
    with pytest.raises(WireError, match=why):
        frames.decode_message(struct.pack(">II", len(payload), crc32(payload)) + payload)


# -- frames and records of a snapshot ------------------------------------------------------------

RECORDS = st.lists(
    st.tuples(st.binary(min_size=1, max_size=300), st.binary(), U64, U64, U64, U64), max_size=12
)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_frames_come_back(payload: bytes) -> None:
    frame = records.encode_frame(payload)
    assert records.frame_length(frame[: records.FRAME_HEADER_BYTES]) == len(payload)
    assert records.check_frame(frame) == payload


def test_golden_frame() -> None:
    assert records.encode_frame(b"hi").hex() == "00000002d8932aac6869"


def test_every_changed_bit_of_a_frame_is_noticed() -> None:
    frame = records.encode_frame(b"payload")
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            records.check_frame(bytes(changed))
    for size in range(len(frame)):
        with pytest.raises(WireError):
            records.check_frame(frame[:size])


@settings(deadline=None)
@given(RECORDS)
def test_records_of_a_snapshot_come_back(
    items: list[tuple[bytes, bytes, int, int, int, int]],
) -> None:
    assert codec.decode_records(codec.encode_records(items)) == items


def test_golden_records() -> None:
    items = [(b"k", b"hi", 3, 9, 2, 0), (b"key", b"", 10, 10, 1, 1 << 40)]
    assert codec.encode_records(items).hex() == (
        "01" "000000" "00000002" "0001" "0003" "00000002" "00000000"
        "0000000000000003" "0000000000000009" "0000000000000002" "0000000000000000"
        "000000000000000a" "000000000000000a" "0000000000000001" "0000010000000000"
        "6b" "6b6579" "6869"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("010000", "3 bytes"),
        ("0200000000000000", "version 2"),
        ("0100010000000000", "0 records in 8 bytes"),
        ("0100000000000001", "1 records in 8 bytes"),
        ("01000000ffffffff", "4294967295 records"),
        ("010000000000000000", "add up"),
        ("0100000000000001000000000001" + "00" * 32 + "6b", "add up"),  # an empty key
    ],
)
def test_records_that_no_node_sends(data: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        codec.decode_records(bytes.fromhex(data))


@settings(deadline=None, max_examples=50)
@given(RECORDS, DAMAGES)
def test_any_bytes_are_records_or_a_wire_error(
    items: list[tuple[bytes, bytes, int, int, int, int]], damages: list[tuple[int, bytes]]
) -> None:
    for data in damaged(codec.encode_records(items), 0, damages):
        total(codec.decode_records, data)
    for _, junk in damages:
        total(codec.decode_records, junk)
