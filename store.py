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
4. The *digest* is a CRC-32 that runs over all commands and what each of them did. It is stored
   with every checkpoint and snapshot, so two nodes that have applied the same index and tell
   different digests hold different records, and R7 is broken on one of them.

User keys stand in the tree behind the byte ``k``. The other prefixes are kept for what the
state machine has to remember itself.

Everything on :class:`Store` belongs to whoever holds the node's lock. What a :class:`Checkpoint`
offers is the checkpoint thread's, and a :class:`PinnedState` that of the thread that sends it;
both call it without that lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import wire
from btree import BTree, Record, Snapshot
from errors import CorruptionError
from raft import COMMAND, CONFIG, Entry, SnapshotMeta

if TYPE_CHECKING:
    from btree import Checkpoint as TreeCheckpoint

__all__ = ["MARK_EVERY", "Checkpoint", "PinnedState", "Store"]

MARK_EVERY = 1024
"""The digest is remembered at each index that is a multiple of this."""

_MARKS = 64  # how many of these are kept
_USER = b"k"


class PinnedState(NamedTuple):
    """The state as of one index, to be read while writes go on. Close ``tree`` when done."""

    meta: SnapshotMeta
    digest: int
    tree: Snapshot


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
    it changes with the same entries that change the data. ``digest`` is as of the applied index.
    """

    tree: BTree
    applied_index: int
    applied_term: int
    digest: int
    configuration: bytes

    def __init__(self, tree: BTree, configuration: bytes) -> None:
        self._marks: dict[int, int] = {}
        self._become(tree, configuration)

    def apply(self, entries: Sequence[Entry]) -> None:
        """Apply committed entries, which follow the applied index.

        Raises CorruptionError for a command that can't be read, and what the tree raises; the
        node ends then, since it can neither skip the entry nor go on without it.
        """
        first = entries[0].index
        assert first == self.applied_index + 1
        start = 0
        stop = -first % MARK_EVERY + 1
        while start < len(entries):  # once, unless the digest has to be remembered in between
            last = self._apply(entries[start:stop])
            if last % MARK_EVERY == 0:
                self._marks[last] = self.digest
                self._marks.pop(last - _MARKS * MARK_EVERY, None)
            start, stop = stop, stop + MARK_EVERY
        self.applied_index = entries[-1].index
        self.applied_term = entries[-1].term

    @property
    def meta(self) -> SnapshotMeta:
        """What the state covers: the applied index, its term, the members as of it."""
        return SnapshotMeta(self.applied_index, self.applied_term, self.configuration)

    def skip(self, entries: Sequence[Entry]) -> None:
        """Pass over committed entries, as an arbiter does: it keeps who the members are."""
        for entry in entries:
            if entry.kind == CONFIG:
                self.configuration = entry.data
        self.applied_index = entries[-1].index
        self.applied_term = entries[-1].term

    def get(self, key: bytes) -> Record | None:
        """Return the record of a user key as of the applied index, or None."""
        return self.tree.get(_USER + key)

    def digest_at(self, index: int) -> int | None:
        """Return the digest as of an index: the applied one, or a recent multiple of MARK_EVERY.

        None if it isn't known: of any other index, of one before the last start or snapshot.
        """
        return self.digest if index == self.applied_index else self._marks.get(index)

    def last_mark(self) -> tuple[int, int]:
        """Return the newest multiple of MARK_EVERY whose digest is known, and the digest.

        (0, 0) if none was applied since the start or the last snapshot.
        """
        return next(reversed(self._marks.items()), (0, 0))

    def begin_checkpoint(self) -> Checkpoint:
        """Freeze the state as of the applied index; writes go on beside it."""
        meta = self.meta
        return Checkpoint(self.tree.begin_checkpoint(meta.index, meta.term, self.digest), meta)

    def snapshot(self) -> PinnedState:
        """Pin the state as of the applied index for another thread; takes constant time."""
        return PinnedState(self.meta, self.digest, self.tree.snapshot())

    def replace(self, tree: BTree, meta: SnapshotMeta) -> None:
        """Go on with the state of an installed snapshot, and close the tree used so far.

        Who reads a pinned state of that one reads it to its end.
        """
        assert (tree.applied_index, tree.applied_term) == (meta.index, meta.term)
        self.tree.close()
        self._become(tree, meta.configuration)

    # -- private ---------------------------------------------------------------------------------

    def _become(self, tree: BTree, configuration: bytes) -> None:
        self.tree = tree
        self.applied_index = tree.applied_index
        self.applied_term = tree.applied_term
        self.digest = tree.applied_digest
        self.configuration = configuration
        self._marks.clear()

    def _apply(self, entries: Sequence[Entry]) -> int:
        """Apply entries and return the index of the last one."""
        put, delete = self.tree.put, self.tree.delete
        decode, put_op = wire.decode_command, wire.OP_PUT
        digest = self.digest
        for entry in entries:
            kind = entry.kind
            if kind == COMMAND:
                data = entry.data
                try:
                    op, key, value = decode(data)
                except wire.WireError as error:
                    raise CorruptionError("raft log", entry.index, str(error)) from error
                key = _USER + key
                done = put(key, value, entry.index) if op == put_op else delete(key)
                digest = crc32(data, digest ^ done)
            elif kind == CONFIG:
                self.configuration = entry.data
        self.digest = digest
        return entries[-1].index
