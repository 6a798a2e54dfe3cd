"""Replicas that differ although they applied the same log: how that is noticed, and who is wrong.

Equal applied index means equal contents (R7). Each node keeps a running digest of what it applied
(machine.py). About once a second the leader asks every follower for its digest at a certain index,
and at the next round it looks at the answers: the digest that more than half of all replicas share
is right. If all have answered and there is no such digest, it is the one that most of them share,
the leader's own in a draw. Until then nobody is condemned: the leader may be the one that is wrong.
Who has another digest has been hit by a bug or a broken machine, and must not serve another read.

The node's lock guards an :class:`Audit`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["Audit"]


class Audit:
    """One question of a leader to its followers, and the answers to it."""

    def __init__(self) -> None:
        self.index = 0
        self.right_digest = 0
        self._digests: dict[str, int | None] = {}  # of all replicas; None: not answered yet

    def ask(self, node_id: str, followers: Iterable[str], index: int, digest: int) -> None:
        """Begin a round about *index*, at which the leader, *node_id*, has *digest*."""
        self.index = index
        self.right_digest = digest
        self._digests = {**dict.fromkeys(followers), node_id: digest}

    def answer(self, node_id: str, index: int, digest: int) -> None:
        """Take the answer of a follower; one to an earlier question is dropped."""
        if index == self.index and node_id in self._digests:
            self._digests[node_id] = digest

    @property
    def differs(self) -> bool:
        """Whether those that have answered differ, whoever is right."""
        return len(self._count()) > 1

    def deviants(self) -> list[str]:
        """Decide which digest is right, and return who of those that answered has another."""
        counted = self._count()
        if len(counted) < 2:
            return []
        own = self.right_digest
        right = max(counted, key=lambda digest: (counted[digest], digest == own))
        replicas = len(self._digests)
        if 2 * counted[right] <= replicas and counted.total() < replicas:
            return []
        self.right_digest = right
        return sorted(node for node, digest in self._digests.items() if digest not in (None, right))

    def _count(self) -> Counter[int]:
        return Counter(digest for digest in self._digests.values() if digest is not None)
