"""What tests ask of a node, in fewer words: a key's value, and how writes have ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conure.cluster.node import Node
from conure.cluster.proposing import Command
from conure.commands import Committed
from conure.errors import ConureError

__all__ = ["Ended", "outcomes_of", "value_of"]

Ended = ConureError | str | None
"""How a write ended: None is done; a string says that it has no answer yet."""


def value_of(node: Node, key: bytes) -> bytes | None:
    """Return the value of a key in a node's own state; raise what it answers instead."""
    _, (found,) = node.get_all([key])
    if isinstance(found, ConureError):
        raise found
    return None if found is None else found.value


def outcomes_of(write: Callable[..., None], commands: Sequence[Command]) -> list[Ended]:
    """Call a node's ``write``; the list fills with how each command ended, once each."""
    outcomes: list[Ended] = ["unanswered"] * len(commands)

    def reply(start: int, stop: int, ended: Committed | ConureError) -> None:
        assert 0 <= start < stop <= len(commands)
        for position in range(start, stop):
            assert outcomes[position] == "unanswered"
            outcomes[position] = None if isinstance(ended, Committed) else ended

    write(commands, reply)
    return outcomes
