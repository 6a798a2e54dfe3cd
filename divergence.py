"""Replicas that differ although they applied the same log: how that is noticed, and who is wrong.

Equal applied index means equal contents (R7). Each node keeps a running digest of what it applied
(store.py). About once a second the leader asks every follower for its digest at a certain index,
and at the next round it looks at the answers: the digest that most replicas share is right, the
leader's own in a draw. Who has another one has been hit by a bug or a broken machine, and must
not serve another read.

The node's lock guards an :class:`Audit`.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Audit"]


class Audit:
    """One question of a leader to its followers, and the answers to it."""

    def __init__(self) -> None:
        self.index = 0
        self.right_digest = 0
        self._answers: dict[str, int] = {}

    def ask(self, node_id: str, index: int, digest: int) -> None:
        """Begin a round about *index*, at which the leader, *node_id*, has *digest*."""
        self.index = index
        self.right_digest = digest
        self._answers = {node_id: digest}

    def answer(self, node_id: str, index: int, digest: int) -> None:
        """Take the answer of a follower; one to an earlier question is dropped."""
        if index == self.index:
            self._answers[node_id] = digest

    def deviants(self) -> list[str]:
        """Decide which digest is right, and return who of those that answered has another."""
        counted = Counter(self._answers.values())
        if len(counted) > 1:
            own = self.right_digest
            self.right_digest = max(counted, key=lambda digest: (counted[digest], digest == own))
        right = self.right_digest
        return sorted(node for node, digest in self._answers.items() if digest != right)
