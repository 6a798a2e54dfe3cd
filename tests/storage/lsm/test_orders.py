"""Frames between a node and its worker: there and back, golden bytes, and anything else."""

from __future__ import annotations

import json
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import (
    CorruptionError,
    DiskFailed,
    DiskFull,
    Exhausted,
    ForeignDirectory,
    StorageError,
)
from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.jobs import FlushJob, Job, JobLimits, JobResult, MergeJob
from conure.storage.lsm.orders import (
    Frames,
    Kind,
    Order,
    decode_answer,
    decode_failure,
    decode_items,
    decode_order,
    encode_answer,
    encode_failure,
    encode_items,
    encode_order,
    frame,
)
from conure.storage.lsm.tables import TableFacts

TABLE = TableFacts("t-1.sst", 1 << 40, 0xFFFFFFFF, 7, 2, b"\x00a", b"\xff" * 9, (("b-2.blob", 5),))
LIMITS = JobLimits(16 << 20, 64 << 20, 4096)
RESULT = JobResult((TABLE, TABLE), (BlobFacts("b-3.blob", 77),), 9, 1, 1)
JOBS: list[Job] = [
    FlushJob("conure.db-00", 5, LIMITS),
    MergeJob("s", 1, LIMITS, ((TABLE,), (TABLE, TABLE)), 4, ((b"a", b"\xff"),), RESULT.blobs),
]


def test_a_frame_has_these_bytes() -> None:
    assert frame(Kind.END).hex() == "0000000037be0b4b03"
    items = encode_items(([b"k", b"ky"], [b"", b"cell"]))
    assert b"".join(items).hex() == (
        "02000000" "01000000" "02000000" "00000000" "04000000" "6b6b79" "63656c6c"
    )  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40)), max_size=8),
    st.integers(1, 30),
)
def test_frames_survive_any_cutting(sent: list[tuple[Kind, bytes]], size: int) -> None:
    stream = b"".join(frame(kind, body[:3], body[3:]) for kind, body in sent)
    frames = Frames()
    heard: list[tuple[Kind, bytes]] = []
    for at in range(0, len(stream), size):
        frames.feed(stream[at : at + size])
        heard += frames
    assert heard == sent


def test_every_flipped_byte_of_a_frame_is_noticed() -> None:
    stream = frame(Kind.DONE, b"body")
    for at in range(len(stream)):
        for bit in range(8):
            broken = bytearray(stream)
            broken[at] ^= 1 << bit
            frames = Frames(max_body=64)
            frames.feed(bytes(broken))
            try:
                heard = list(frames)
            except ValueError:
                continue
            assert heard == []  # it is longer now, and the rest doesn't come


def test_a_frame_that_is_too_long_is_refused_before_it_is_held() -> None:
    frames = Frames(max_body=100)
    frames.feed(frame(Kind.DONE, bytes(101))[:9])
    with pytest.raises(ValueError, match="101 bytes"):
        list(frames)


def test_a_kind_that_is_not_known_is_refused() -> None:
    frames = Frames()
    frames.feed(bytes(4) + crc32(b"\x09").to_bytes(4, "little") + b"\x09")
    with pytest.raises(ValueError, match="9 is not a valid Kind"):
        list(frames)


@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=20))
def test_items_there_and_back(items: list[tuple[bytes, bytes]]) -> None:
    keys, cells = [key for key, _ in items], [cell for _, cell in items]
    body = b"".join(encode_items((keys, cells)))
    assert decode_items(body) == (keys, cells)
    for wrong in (body[:-1], body + b"x", b""):
        if wrong != body:
            with pytest.raises(ValueError, match="items"):
                decode_items(wrong)


@pytest.mark.parametrize("job", JOBS, ids=["flush", "merge"])
def test_orders_there_and_back(job: Job) -> None:
    order = Order(3, "/data/\udcff \u00e4", job)  # a folder with a byte that is no UTF-8
    assert decode_order(encode_order(order)) == order


def test_answers_there_and_back() -> None:
    assert decode_answer(encode_answer(3, RESULT), 3) == RESULT
    with pytest.raises(ValueError, match="another job"):
        decode_answer(encode_answer(3, RESULT), 4)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CorruptionError("/lsm/a.sst", 1 << 33, "a block"), CorruptionError),
        (DiskFull("full; free some space"), DiskFull),
        (Exhausted("too many open files"), Exhausted),
        (DiskFailed("broken"), DiskFailed),
        (ForeignDirectory("no place"), DiskFailed),
    ],
)
def test_failures_there_and_back(error: StorageError, kind: type[StorageError]) -> None:
    found = decode_failure(encode_failure(8, error), 8)
    assert type(found) is kind
    assert str(found) == str(error)
    if isinstance(error, CorruptionError):
        assert isinstance(found, CorruptionError)
        assert (found.file, found.offset, found.why) == (error.file, error.offset, error.why)
    with pytest.raises(ValueError, match="another job"):
        decode_failure(encode_failure(8, error), 9)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
BODIES = [
    encode_order(Order(1, "/f", JOBS[1])),
    encode_answer(1, RESULT),
    encode_failure(1, DiskFull("no")),
]
FIELDS = ["serial", "folder", "stem", "number", "limits", "inputs", "level", "older", "emptied"]
FIELDS += ["tables", "blobs", "balance", "error", "of"]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(BODIES),
    st.sampled_from(FIELDS),
    ANYTHING,
)
def test_whatever_stands_in_a_field_is_read_or_refused(
    body: bytes, field: str, value: object
) -> None:
    facts = json.loads(body)
    wrong = json.dumps(facts | {field: value}).encode()
    for decode in (
        lambda: decode_order(wrong),
        lambda: decode_answer(wrong, 1),
        lambda: decode_failure(wrong, 1),
    ):
        try:
            decode()
        except ValueError:
            continue


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(body: bytes) -> None:
    for decode in (
        lambda: decode_order(body),
        lambda: decode_answer(body, 1),
        lambda: decode_failure(body, 1),
    ):
        with pytest.raises(ValueError):  # noqa: PT011  # each says something else
            decode()
