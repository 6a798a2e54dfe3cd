"""The kinds of storage engines by their names: the one place that knows which there are.

A kind has no state, so any thread may use one that was found here.
"""

from __future__ import annotations

from typing import Final

from btree import BTreeKind
from conure.storage.engine import EngineKind

__all__ = ["BTREE", "KINDS", "kind_named"]

BTREE: Final = "btree"
"""The name of the kind that every data directory has."""

KINDS: Final[dict[str, EngineKind]] = {BTREE: BTreeKind()}


def kind_named(name: str) -> EngineKind:
    """Return the kind of engine of that name. Raises ValueError if there is none."""
    try:
        return KINDS[name]
    except KeyError:
        known = ", ".join(KINDS)
        raise ValueError(f"there is no storage engine {name!r}, only {known}") from None
