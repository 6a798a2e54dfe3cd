"""The kinds of storage engines by their names: the one place that knows which there are.

A kind has no state, so any thread may use one that was found here.
"""

from __future__ import annotations

from typing import Final

from btree import BTreeKind
from conure.storage.engine import EngineKind
from conure.storage.lsm.kind import LSMKind

__all__ = ["BTREE", "KINDS", "LSM", "kind_named"]

BTREE: Final = "btree"
"""The name of the kind that a data directory has if nobody asks for another."""

LSM: Final = "lsm"
"""The name of the kind with a log-structured merge tree."""

KINDS: Final[dict[str, EngineKind]] = {BTREE: BTreeKind(), LSM: LSMKind()}


def kind_named(name: str) -> EngineKind:
    """Return the kind of engine of that name. Raises ValueError if there is none."""
    try:
        return KINDS[name]
    except KeyError:
        known = ", ".join(KINDS)
        raise ValueError(f"there is no storage engine {name!r}, only {known}") from None
