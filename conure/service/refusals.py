"""Why a change that the state machine refused was refused, as the error that its waiter is told.

Nothing here has state: any thread may call anything.
"""

from __future__ import annotations

from conure.commands import Outcome, Refusal
from conure.errors import (
    Conflict,
    ConureError,
    KeyNotFound,
    KeyReused,
    NotFound,
    PayloadTooLarge,
)
from conure.service.limits import MAX_WORK
from conure.service.quoting import shown

__all__ = ["NO_SESSION", "error_of"]

NO_SESSION = "there is no such session; it has ended, or never began"


def error_of(outcome: Outcome) -> ConureError:
    """Return the error that a refused transaction is answered with."""
    key = shown(outcome.refused_key)
    match outcome.refusal:
        case Refusal.NOT_A_NUMBER:
            return Conflict(f"the value of {key} is no whole number of 64 bits")
        case Refusal.NUMBER_TOO_LARGE:
            return Conflict(f"the sum under {key} would not fit into 64 bits; nothing was changed")
        case Refusal.KEY_NOT_FOUND:
            return KeyNotFound()
        case Refusal.SESSION_NOT_FOUND:
            return NotFound(NO_SESSION)
        case Refusal.HELD_BY_ANOTHER:
            return Conflict(f"{key} is held by another session")
        case Refusal.NOT_THE_HOLDER:
            return Conflict(f"{key} is not held by this session")
        case Refusal.KEY_REUSED:
            return KeyReused()
        case Refusal.TOO_MANY_KEYS:
            return PayloadTooLarge(
                "the range has more keys than one change may delete (max_range_items, and up to "
                f"{MAX_WORK:,}), and nothing was deleted; delete it in parts, with limit"
            )
        case _:
            raise AssertionError(outcome)
