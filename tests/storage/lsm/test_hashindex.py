"""The hash index by itself: each record once, in its bucket; counting upwards crowds no bucket."""

from __future__ import annotations

from collections.abc import Callable, Generator
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.storage.lsm.hashindex import CROWD, HashBuilder, bits_for, numbers_of, size_for
from tests.lab.crc import colliding_keys

HASHES = st.integers(0, (1 << 32) - 1) | st.integers(0, 9)


def result_of(building: Generator[None, None, list[bytes]]) -> list[bytes]:
    while True:
        try:
            next(building)
        except StopIteration as ended:
            parts: list[bytes] = ended.value
            return parts


@settings(max_examples=100, deadline=None)
@given(hashes=st.lists(HASHES, min_size=1, max_size=300))
def test_each_record_is_in_its_bucket(hashes: list[int]) -> None:
    builder = HashBuilder()
    builder.extend(hashes, range(7, 7 + len(hashes)))
    parts = result_of(builder.build())
    assert sum(map(len, parts)) == size_for(len(hashes))
    places, starts, marks = numbers_of(parts[0]), numbers_of(parts[1]), parts[2]
    assert sorted(places) == list(range(7, 7 + len(hashes)))
    assert len(starts) == (1 << bits_for(len(hashes))) + 1
    sizes = []
    for bucket in range(len(starts) - 1):
        sizes.append(starts[bucket + 1] - starts[bucket])
        for slot in range(starts[bucket], starts[bucket + 1]):
            hash_ = hashes[places[slot] - 7]
            assert hash_ >> 32 - bits_for(len(hashes)) == bucket
            assert hash_ & 0xFF == marks[slot]
    assert builder.is_crowded == (max(sizes) > CROWD)


@pytest.mark.parametrize("count", [1, 8, 9, 16, 17, 1000, 130_000])
def test_a_bucket_has_four_to_eight_records_if_there_are_enough(count: int) -> None:
    buckets = 1 << bits_for(count)
    assert count / buckets <= 8
    assert buckets == 1 or count / buckets > 4
    assert size_for(count) <= 6 * count + 8


@pytest.mark.parametrize(
    "key",
    [
        lambda number: b"%d" % number,
        lambda number: b"user:%08d" % number,
        lambda number: b"a/%03d/b/%03d" % (number // 100, number % 100),
        lambda number: b"%010d" % (1000 * number),
        lambda number: number.to_bytes(8, "big"),
        lambda number: number.to_bytes(8, "little"),
        lambda number: (number << 20).to_bytes(8, "big"),
    ],
)
def test_keys_that_are_counted_upwards_crowd_no_bucket(key: Callable[[int], bytes]) -> None:
    builder = HashBuilder()
    builder.extend([crc32(key(number)) for number in range(20_000)], range(20_000))
    result_of(builder.build())
    assert not builder.is_crowded


def test_keys_chosen_to_collide_crowd_one() -> None:
    for count, is_crowded in ((CROWD, False), (CROWD + 1, True)):
        builder = HashBuilder()
        builder.extend(map(crc32, colliding_keys(count)), range(count))
        result_of(builder.build())
        assert builder.is_crowded == is_crowded
