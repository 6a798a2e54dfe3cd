"""Ratios of interleaved bursts and their intervals (bench/pairs.py)."""

from __future__ import annotations

import random

import pytest

from bench.pairs import ENOUGH, Verdict, of_medians, of_totals


def test_the_median_of_twenty_pairs_lies_between_the_sixth_and_the_fifteenth() -> None:
    found = of_medians([*range(20, 0, -1)], [10] * 20)
    assert (found.value, found.low, found.high, found.pairs) == (1.05, 0.6, 1.5, 20)


def test_few_pairs_have_their_whole_range_for_an_interval() -> None:
    found = of_medians([1, 2, 3], [1, 1, 1])
    assert (found.value, found.low, found.high) == (2, 1, 3)


def test_the_interval_of_a_median_encloses_the_true_one_as_often_as_it_says() -> None:
    chance = random.Random(1)
    runs = 1_000
    hits = 0
    for _ in range(runs):
        found = of_medians([chance.lognormvariate(0, 0.5) for _ in range(20)], [1.0] * 20)
        hits += found.low <= 1 <= found.high
    assert 0.94 <= hits / runs <= 0.98  # 95.9 %, and 1.3 for chance


def test_totals_count_the_lumps_that_a_median_leaves_out() -> None:
    ours, theirs = [1.0] * 19 + [21.0], [1.0] * 20
    assert of_medians(ours, theirs).value == 1
    found = of_totals(ours, theirs)
    assert found.value == 2
    assert 1 <= found.low < 2 < found.high < 5


def test_totals_of_equal_pairs_are_certain() -> None:
    found = of_totals([3.0] * 20, [2.0] * 20)
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_a_goal_is_met_if_the_interval_reaches_it() -> None:
    found = of_medians([*range(1, 21)], [10] * ENOUGH)  # 1.05, from 0.6 to 1.5
    verdicts = [Verdict.YES, Verdict.BY_INTERVAL, Verdict.BY_INTERVAL, Verdict.NO]
    assert [found.reaches(goal) for goal in (1.05, 1.06, 1.5, 1.51)] == verdicts
    assert [found.stays_within(goal) for goal in (1.05, 1.04, 0.6, 0.59)] == verdicts


def test_too_few_pairs_decide_nothing() -> None:
    found = of_medians([2.0] * (ENOUGH - 1), [1.0] * (ENOUGH - 1))
    assert found.reaches(1.0) == Verdict.UNKNOWN
    assert found.stays_within(3.0) == Verdict.UNKNOWN


@pytest.mark.parametrize("method", [of_medians, of_totals])
def test_pairs_have_two_sides_and_there_are_some(method: type) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        method([], [])
    with pytest.raises(ValueError, match="longer"):
        method([1.0], [1.0, 2.0])
