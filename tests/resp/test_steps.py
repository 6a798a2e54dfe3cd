"""What steps that only read come to, given the records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.steps import Done, Erase, Look, Obstacle, Read, evaluate, reads_only, span
from conure.storage.engine import Record


@pytest.mark.parametrize(
    ("first", "last", "part"),
    [
        (0, -1, b"hello"),
        (1, 3, b"ell"),
        (-3, -1, b"llo"),
        (-100, 1, b"he"),
        (3, 100, b"lo"),
        (3, 2, b""),
        (5, 9, b""),
        (0, -100, b"h"),  # as Redis has it
        (-100, -200, b""),
        (-1, -5, b""),
    ],
)
def test_a_range_counts_from_either_end(first: int, last: int, part: bytes) -> None:
    start, stop = span(5, first, last)
    assert b"hello"[start:stop] == part


@given(st.integers(0, 9), st.integers(-12, 12), st.integers(-12, 12))
def test_a_range_lies_within_its_value(size: int, first: int, last: int) -> None:
    start, stop = span(size, first, last)
    assert 0 <= start <= stop <= size


def test_steps_that_only_read_are_evaluated_on_records() -> None:
    record = Record(b"hello", 1, 2, 3, 5_000)
    steps = (Read(b"k"), Read(b"k", 1, 2), Look(b"k"), Look(b"none"), Read(b"none"))
    assert reads_only(steps)
    assert not reads_only((*steps, Erase(b"k")))
    assert evaluate(steps, [record, record, record, None, None], 4_000) == [
        Done(Obstacle.NONE, True, 5, b"hello", 5_000, 1_000),
        Done(Obstacle.NONE, True, 5, b"el", 5_000, 1_000),
        Done(Obstacle.NONE, True, 5, None, 5_000, 1_000),
        Done(),
        Done(),
    ]
    # What is due and has not ended yet is there.
    assert evaluate(steps[2:3], [record], 6_000)[0].left == 0
    assert evaluate(steps[2:3], [record._replace(expiry=0)], 6_000)[0].left == -1
