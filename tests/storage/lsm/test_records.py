"""Records in blocks: what is packed comes back, and nothing else is ever made of bytes."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.storage.lsm.records import (
    HEAD,
    pack,
    pack_laid,
    places_of,
    split,
    split_keys,
    split_laid,
)

SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 11, 40])
RECORDS = st.dictionaries(
    st.binary(min_size=1, max_size=9), SIZES.map(lambda size: bytes(range(size))), min_size=1
)


@settings(max_examples=200, deadline=None)
@given(records=RECORDS, block_bytes=st.integers(1, 200), whole=st.booleans())
def test_records_come_back_as_they_were_packed(
    records: dict[bytes, bytes], block_bytes: int, whole: bool
) -> None:
    keys = sorted(records)
    cells = [records[key] for key in keys]
    packed = pack(keys, cells, block_bytes, whole=whole)
    count = sum(count for _, count in packed.blocks)
    assert len(packed.hashes) == len(packed.sizes) == count
    assert packed.hashes == list(map(crc32, keys[:count]))
    assert sum(packed.sizes) == sum(len(block) for block, _ in packed.blocks)
    assert count == len(keys) or not whole
    first = 0
    for block, count in packed.blocks:
        part = slice(first, first + count)
        assert split(block) == (keys[part], cells[part])
        assert split_keys(block) == keys[part]
        assert copied(block, keys[part]) == block
        assert len(block) <= block_bytes or count == 1
        assert not len(block) % 4
        first += count
    laid = split_laid(b"".join(block for block, _ in pack(keys, cells, 1, whole=True).blocks))
    assert pack_laid(*laid, block_bytes, whole=whole) == packed
    rest = zip(keys[first:], cells[first:], strict=True)
    assert sum(HEAD.size + len(key) + len(cell) for key, cell in rest) < block_bytes


def copied(block: bytes, keys: list[bytes]) -> bytes:
    """Take a block apart into whole records, and put it together again."""
    found, records = split_laid(block)
    assert found == keys
    assert len(records) == len(keys)
    return pack_laid(found, records, len(block), whole=True).blocks[0][0]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 29, 600])
@pytest.mark.parametrize("odd", [None, 0, 1, -1])
@pytest.mark.parametrize("change", [b"", b"4", b"4444"])
def test_a_block_of_even_records_but_for_one(count: int, odd: int | None, change: bytes) -> None:
    """Whether all are of one size is looked at, not believed; one may be as long by padding."""
    keys = [number.to_bytes(4, "big") for number in range(count)]
    cells = [b"123"] * count
    if odd is not None and odd < count:
        cells[odd] = change
    ((block, found),) = pack(keys, cells, 1 << 20, whole=True).blocks
    assert found == count
    assert split(block) == (keys, cells)
    assert split_keys(block) == keys
    assert copied(block, keys) == block


@settings(max_examples=300, deadline=None)
@given(block=st.binary(max_size=100), head=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_any_bytes_are_records_or_an_error(block: bytes, head: tuple[int, int]) -> None:
    for content in (block, HEAD.pack(1, *head) + block, HEAD.pack(1, 65535, 1 << 31) + block):
        try:
            keys, cells = split(content)
        except ValueError:
            with pytest.raises(ValueError, match="don't end"):
                split_keys(content)
            with pytest.raises(ValueError, match="don't end"):
                split_laid(content)
        else:
            assert split_keys(content) == keys
            assert len(keys) == len(cells)


def test_places_are_counted_in_units_of_four_bytes() -> None:
    assert list(places_of(8, [16, 12, 40])) == [2, 6, 9]


def test_a_record_as_it_is_drawn() -> None:
    packed = pack([b"k"], [b"cell"], 4096, whole=True)
    assert packed.blocks[0][0].hex() == "bfe903c20100040000006b63656c6c00"
