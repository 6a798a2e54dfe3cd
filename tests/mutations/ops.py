"""Faults of the commands for a node that doesn't run, and of an orchestrator's jobs."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "what a collection leaves is looked at by the next one",
        "conure/collector.py",
        '        if phase == "stop":\n            gc.freeze()\n',
        '        if phase == "stop":\n            pass\n',
        ("tests/test_collector.py",),
    ),
    Mutation(
        "a frozen cycle is kept for ever",
        "conure/collector.py",
        "        elif self._clock() >= self._next_thaw:",
        "        elif False:",
        ("tests/test_collector.py",),
    ),
    Mutation(
        "the command check ends well in spite of faults",
        "conure/ops/offline.py",
        "    return 1 if faults else 0\n",
        "    return 0\n",
        ("tests/ops/test_offline.py",),
    ),
    Mutation(
        "records written anew count before they outlast a power failure",
        "conure/ops/compacting.py",
        "new.checkpoint(engine.applied_index, engine.applied_term, engine.applied_digest)",
        "pass",
        ("tests/ops/test_compacting.py",),
    ),
    Mutation(
        "a compaction that failed leaves its files behind",
        "conure/ops/compacting.py",
        "            kind.remove(fs, staged)\n            raise\n",
        "            raise\n",
        ("tests/ops/test_compacting.py",),
    ),
    Mutation(
        "a cluster is founded before all witnesses were heard",
        "conure/ops/scaling.py",
        "if not unheard:",
        "if len(unheard) < 2:",
        ("tests/ops/test_scaling.py",),
    ),
    Mutation(
        "a removal is begun that would cost the quorum",
        "conure/ops/scaling.py",
        "    if len(answering) < quorum:\n",
        "    if len(answering) < 1:\n",
        ("tests/ops/test_scaling.py",),
    ),
    Mutation(
        "a removal is begun that leaves too few data voters",
        "conure/ops/scaling.py",
        "        if holding < copies:\n",
        "        if holding < 1:\n",
        ("tests/ops/test_scaling.py",),
    ),
]
