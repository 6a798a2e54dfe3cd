"""Scan marks beside the set of keys that they speak of."""

from __future__ import annotations

import random

import pytest

from conure.storage.lsm.marks import MOST_MARKS, Marks


def is_true(marks: Marks, keys: set[bytes]) -> bool:
    return not any(start <= key < end for start, end in marks.all for key in keys)


@pytest.mark.parametrize("seed", range(60))
def test_no_mark_is_ever_untrue(seed: int) -> None:
    rng = random.Random(seed)
    keys: set[bytes] = set()
    marks = Marks()
    for _ in range(400):
        key = b"%02d" % rng.randrange(100)
        what = rng.randrange(5)
        if what < 2 and key not in keys:
            keys.add(key)
            marks.put(key)
        elif what == 2 and key in keys:
            keys.remove(key)
            marks.delete(key)
        else:
            following = min((each for each in keys if each >= key), default=b"~")
            if following != key:
                marks.add(key, following)
                assert marks.after(key) >= following
        assert is_true(marks, keys)
        assert len(marks.all) <= MOST_MARKS
        assert all(start < end for start, end in marks.all)
        start = b"%02d" % rng.randrange(100)
        jumped = marks.after(start)
        assert jumped >= start
        assert not any(start <= each < jumped for each in keys)
        before = marks.before(start)
        assert before <= start
        assert not any(before <= each < start for each in keys)


def test_the_head_of_a_queue_moves_on() -> None:
    marks = Marks()
    marks.add(b"q", b"q5")
    marks.delete(b"q5")
    assert marks.all == ((b"q", b"q5\0"),)
    marks.delete(b"q7")
    assert marks.all == ((b"q", b"q5\0"),)
    marks.add(b"q5\0", b"q8")
    assert marks.all == ((b"q", b"q8"),)


def test_the_top_of_a_stack_moves_on() -> None:
    marks = Marks()
    marks.add(b"q5\0", b"r")
    marks.delete(b"q4")
    assert marks.all == ((b"q5\0", b"r"),)
    marks.delete(b"q5")
    assert marks.all == ((b"q5", b"r"),)


def test_a_new_key_cuts_a_mark_in_two() -> None:
    marks = Marks()
    marks.add(b"a", b"z")
    marks.put(b"m")
    assert set(marks.all) == {(b"a", b"m"), (b"m\0", b"z")}
    assert marks.after(b"b") == b"m"
    assert marks.after(b"m") == b"m"
    assert marks.after(b"n") == b"z"


def test_the_one_that_was_used_longest_ago_goes() -> None:
    marks = Marks()
    for number in range(MOST_MARKS):
        marks.add(b"%02d1" % number, b"%02d2" % number)
    assert marks.after(b"001") == b"002"
    marks.add(b"x", b"y")
    assert marks.after(b"001") == b"002"
    assert marks.after(b"011") == b"011"
