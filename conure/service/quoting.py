"""How messages quote what somebody sent: not too long for a line, and nothing in it ends the line.

Any thread.
"""

from __future__ import annotations

__all__ = ["shortened", "shown"]


def shortened(text: str) -> str:
    """Return what somebody sent, quoted, and not too long for a line."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"


def shown(text: bytes) -> str:
    """Return the same of bytes."""
    return shortened(text.decode(errors="replace"))
