"""What interleaved measurements say of a ratio: one number, and how sure it is.

Two systems take turns at short bursts of the same work, so that a machine that gets slower for a
while does so for both. Burst *n* of one and burst *n* of the other are a pair.

:func:`of_medians`
    The median of the pairs' ratios. Its interval needs no assumption about how they are spread:
    the number of pairs below the true median is binomial, so the k-th smallest and the k-th
    largest ratio enclose it with a probability that can be counted (the sign test turned round).
    Of 20 pairs these are the 6th and the 15th, with 95.9 %.
:func:`of_totals`
    The ratio of the sums, for work whose cost comes in lumps, as loading does where merges follow:
    a median would leave the lumps out. Its interval comes from drawing pairs with replacement.

Both give intervals of 95 %. A goal is met if the interval reaches it, and undecided with fewer
than :data:`ENOUGH` pairs. Noise makes intervals wide: a :class:`Verdict` tells whether the number
itself reaches the goal or the interval alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

__all__ = ["ENOUGH", "Paired", "Verdict", "of_medians", "of_totals"]

ENOUGH = 20
"""Pairs that a judgement takes."""

_OUTSIDE = 0.05  # the probability that the true ratio lies outside of the interval
_DRAWS = 2_000


class Verdict(StrEnum):
    """Whether a goal is met, in the words of the tables."""

    YES = "yes"
    BY_INTERVAL = "yes, by its interval"
    NO = "**no**"
    UNKNOWN = "can't tell"


@dataclass(frozen=True, slots=True)
class Paired:
    """How many times *theirs* is *ours*, the interval of 95 %, and of how many pairs that is."""

    value: float
    low: float
    high: float
    pairs: int

    def reaches(self, goal: float) -> Verdict:
        """Judge a ratio that is to be at least *goal*."""
        return self._judge(itself=self.value >= goal, interval=self.high >= goal)

    def stays_within(self, goal: float) -> Verdict:
        """Judge a ratio that is to be at most *goal*."""
        return self._judge(itself=self.value <= goal, interval=self.low <= goal)

    def __str__(self) -> str:
        return f"{self.value:.2f} x ({self.low:.2f} - {self.high:.2f}, {self.pairs} pairs)"

    def _judge(self, *, itself: bool, interval: bool) -> Verdict:
        if self.pairs < ENOUGH:
            return Verdict.UNKNOWN
        if itself:
            return Verdict.YES
        return Verdict.BY_INTERVAL if interval else Verdict.NO


def of_medians(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare bursts pair by pair. Raises ValueError for none, or unequal numbers of them."""
    ratios = sorted(_ratios(ours, theirs))
    outer = _outer(len(ratios))
    return Paired(median(ratios), ratios[outer], ratios[-1 - outer], len(ratios))


def of_totals(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare the sums of amounts, such as seconds. Raises ValueError like :func:`of_medians`."""
    count = len(_ratios(ours, theirs))
    chance = random.Random(count)
    pairs = list(zip(ours, theirs, strict=True))
    drawn = []
    for _ in range(_DRAWS):
        mine, other = map(sum, zip(*chance.choices(pairs, k=count), strict=True))
        drawn.append(mine / other)
    drawn.sort()
    edge = round(_DRAWS * _OUTSIDE / 2)
    return Paired(sum(ours) / sum(theirs), drawn[edge], drawn[-1 - edge], count)


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    if not ratios:
        raise ValueError("there are no pairs to compare")
    return ratios


def _outer(count: int) -> int:
    """Return how many ratios at each end lie outside of the interval of the median.

    With few pairs no two of them enclose it with 95 %: then it is the whole range.
    """
    outer = below = 0  # below: in how many of 2**count cases fewer than *outer* lie on one side
    while 2 * (below := below + math.comb(count, outer)) <= _OUTSIDE * 2**count:
        outer += 1
    return max(0, outer - 1)
