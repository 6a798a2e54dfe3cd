"""The replicated state machine: commands in log order in, records out.

Every node applies the same entries in the same order and so holds the same records, byte for
byte (R7). Nothing here reads a clock, draws a random number or depends on the order of a
dictionary; what a command needs to know of its time or origin stands in the command.

1. ``apply`` takes each index once and in order. The applied index is stored with the data in
   one checkpoint, so that a restart applies exactly the entries behind it again.
2. ``apply`` changes memory only. The log is the write-ahead log; a :class:`Checkpoint` brings
   the tree to disk beside further writes, and lets the log be cut up to its index.
3. A command this version does not know ends the node (CorruptionError): skipping it would make
   replicas differ.

User keys stand in the tree behind the byte ``k``. The other prefixes are kept for what the
state machine has to remember itself.

``apply``, ``get`` and ``begin_checkpoint`` belong to whoever holds the node's lock. What a
:class:`Checkpoint` offers is the checkpoint thread's, which calls it without that lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import wire
from btree import BTree, Record
from errors import CorruptionError
from raft import Entry, EntryKind, SnapshotMeta

if TYPE_CHECKING:
    from btree import Checkpoint as TreeCheckpoint

__all__ = ["Checkpoint", "Outcome", "Store"]

_USER = b"k"

Outcome = int
"""What a command did: the revision it wrote, or 0 where it changed nothing."""


class Checkpoint:
    """A consistent state on its way to disk, begun by :meth:`Store.begin_checkpoint`."""

    def __init__(self, tree: TreeCheckpoint, meta: SnapshotMeta) -> None:
        self._tree = tree
        self.meta = meta

    def step(self, seconds: float) -> bool:
        """Encode and write pages for about *seconds*; tell whether all of them are written."""
        return self._tree.step(seconds)

    def finish(self) -> None:
        """Sync the pages and swap the root; the log may be cut at :attr:`meta` after it (S2)."""
        self._tree.finish()

    def abort(self) -> None:
        """Give up, after DiskFull: nothing on disk has changed, the next checkpoint does it."""
        self._tree.abort()


class Store:
    """The state machine over a B-tree.

    *configuration* is the encoded membership as of the tree's applied index, kept here because
    it changes with the same entries that change the data.
    """

    def __init__(self, tree: BTree, configuration: bytes) -> None:
        self.tree = tree
        self.applied_index = tree.applied_index
        self.applied_term = tree.applied_term
        self.configuration = configuration

    def apply(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Apply committed entries and return one outcome for each of them.

        Raises CorruptionError for a command that can't be read, and what the tree raises; the
        node ends then, since it can neither skip the entry nor go on without it.
        """
        assert entries[0].index == self.applied_index + 1
        put, delete = self.tree.put, self.tree.delete
        decode, put_op, delete_op = wire.decode_command, wire.OP_PUT, wire.OP_DELETE
        outcomes: list[Outcome] = []
        for entry in entries:
            outcome = 0
            if entry.kind == EntryKind.COMMAND:
                try:
                    op, key, value = decode(entry.data)
                except wire.WireError as error:
                    raise CorruptionError("raft log", entry.index, str(error)) from error
                if op == put_op:
                    put(_USER + key, value, entry.index)
                    outcome = entry.index
                elif op == delete_op and delete(_USER + key):
                    outcome = entry.index
            elif entry.kind == EntryKind.CONFIG:
                self.configuration = entry.data
            outcomes.append(outcome)
        self.applied_index = entries[-1].index
        self.applied_term = entries[-1].term
        return outcomes

    def get(self, key: bytes) -> Record | None:
        """Return the record of a user key as of the applied index, or None."""
        return self.tree.get(_USER + key)

    def begin_checkpoint(self) -> Checkpoint:
        """Freeze the state as of the applied index; writes go on beside it."""
        meta = SnapshotMeta(self.applied_index, self.applied_term, self.configuration)
        return Checkpoint(self.tree.begin_checkpoint(meta.index, meta.term), meta)
