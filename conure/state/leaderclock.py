"""The leader's time, by which keys and sessions expire.

The state machine's clock moves by what entries say (commands.Transaction.time), so replicas agree
on it whatever their own clocks do. What a leader puts there is its wall clock as of the moment its
term began, or the state's clock if that is ahead, and from then on what its monotonic clock adds.
So a wall clock that jumps changes nothing while somebody leads, and the time never goes back.

Belongs to the holder of the node's lock.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LeaderClock"]


class LeaderClock:
    """Tells the time in milliseconds since the Unix epoch; *clock* and *wall* tell seconds."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._term = 0
        self._begun_at = 0.0
        self._base = 0

    def now(self, term: int, state_clock: int) -> int:
        """Return the time of this term's leader, never less than the state's clock."""
        if term != self._term:
            self._term = term
            self._begun_at = self._clock()
            self._base = max(state_clock, int(self._wall() * 1000))
        elapsed = int((self._clock() - self._begun_at) * 1000)
        return max(state_clock, self._base + elapsed)
