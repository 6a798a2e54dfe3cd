"""How old what a read finds may be, and how old it is.

A linearizable read sees every write that was acknowledged before it was asked for, which a leader
has to confirm (R6). A stale read sees this node's own state as it is, at once, and is told when
this node last heard a leader; with a limit it is refused if that is longer ago.

Nothing here has state: any thread may use anything.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from conure.errors import Unavailable

__all__ = ["LINEARIZABLE", "STALE", "Contact", "Freshness"]


class Contact(NamedTuple):
    """For how many seconds this node had heard no leader when a stale read began; 0.0 on the
    leader, None if it never has."""

    seconds: float | None


class Freshness(NamedTuple):
    """What a read asks for; *limit*: the most seconds since this node heard a leader, of a stale
    read, None if any number will do."""

    is_stale: bool
    limit: float | None = None

    def check(self, contact: Contact) -> None:
        """Raise Unavailable if a leader was last heard too long ago."""
        limit, seconds = self.limit, contact.seconds
        if limit is None or (seconds is not None and seconds <= limit):
            return
        if seconds is None:
            found = "this node has heard no leader since it was started"
        else:
            over = seconds - limit
            found = (
                f"this node last heard a leader {seconds:.3f} s ago, {over:.3f} s over max_stale"
            )
        raise Unavailable(f"{found}; ask another server, or allow for more")


LINEARIZABLE: Final = Freshness(is_stale=False)
STALE: Final = Freshness(is_stale=True)
