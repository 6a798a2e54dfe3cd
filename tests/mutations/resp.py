"""Faults of the front that speaks RESP."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "resp: a map of RESP2 is counted by pairs",
        "conure/resp/replies.py",
        "            self.array_of(2 * count)",
        "            self.array_of(count)",
        ("tests/resp/test_replies.py",),
    ),
    Mutation(
        "resp: an error may have two lines",
        "conure/resp/replies.py",
        '        line = text.replace("\\r", " ").replace("\\n", " ")',
        "        line = text",
        ("tests/resp/test_replies.py",),
    ),
    Mutation(
        "resp: the last byte of a range is left out",
        "conure/steps.py",
        "    stop = min(last + 1, size)",
        "    stop = min(last, size)",
        ("tests/resp/test_steps.py",),
    ),
]
