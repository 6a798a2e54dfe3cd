"""What a node answers from its own state, as of now: records, sessions, backups, pinned states.

Nothing here asks whether the state is fresh: who needs that has asked ``Node.confirm_read`` before.
Each method takes the node's lock for as long as it reads, and may be called by any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from sys import maxsize

from conure.cluster.expiring import Expiries
from conure.cluster.monitor import Monitor
from conure.cluster.standing import Standing
from conure.consensus.messages import State
from conure.errors import ConureError, NotRead, StorageError, Unavailable
from conure.state.backup import Backup, Facts
from conure.state.machine import PinnedState, Session, Store
from conure.storage.datadir import DataDirectory
from conure.storage.engine import Record
from raft import Raft

__all__ = ["STILL_COUNTED", "LocalState"]

STILL_COUNTED = "the keys that the session holds are still being counted; try again"

log = logging.getLogger("conure.node")


class LocalState:
    """The state of the node whose core is *raft*, in *store*; *wall* tells the time since the Unix
    epoch in seconds."""

    def __init__(
        self,
        raft: Raft,
        store: Store,
        directory: DataDirectory,
        standing: Standing,
        expiries: Expiries,
        monitor: Monitor,
        wall: Callable[[], float],
    ) -> None:
        self._raft = raft
        self._store = store
        self._directory = directory
        self._standing = standing
        self._expiries = expiries
        self._monitor = monitor
        self._wall = wall

    def get_all(
        self, keys: Sequence[bytes], most: int = maxsize, longest: int = 0
    ) -> tuple[int, list[Record | ConureError | None]]:
        """Return the revision of this node's state, and of each key in it the record, None if
        there is none, or what went wrong.

        Once values of *most* bytes are read, none of more than *longest* bytes is any more, and
        NotRead is in its place.
        """
        left = most
        found: list[Record | ConureError | None] = []
        with self._monitor.lock:
            index = self._store.applied_index
            try:
                self._standing.refuse_if_no_records()
            except ConureError as error:
                return index, [error] * len(keys)
            get = self._store.get
            for key in keys:
                try:
                    if left <= 0 and self._is_longer(key, longest):
                        found.append(NotRead())
                        continue
                    record = get(key)
                    found.append(record)
                    if record is not None:
                        left -= len(record.value)
                except StorageError as error:
                    log.error("a read met a damaged tree: %s", error)
                    found.append(error)
        return index, found

    def _is_longer(self, key: bytes, most: int) -> bool:
        heading = self._store.heading(key)
        return heading is not None and heading[1] > most

    def pin(self) -> PinnedState:
        """Return this node's state as of now, for any thread; whoever gets it closes it.

        Raises Unavailable, and NotLeader on an arbiter.
        """
        with self._monitor.lock:
            self._standing.refuse_if_no_records()
            return self._store.snapshot()

    def look(self, key: bytes) -> tuple[int, Record | ConureError | None, tuple[bytes, int] | None]:
        """Return the same of one key, and which session holds it, with its fencing token."""
        with self._monitor.lock:
            index = self._store.applied_index
            try:
                self._standing.refuse_if_no_records()
                return index, self._store.get(key), self._store.holder(key)
            except ConureError as error:
                return index, error, None

    def session(self, session: bytes) -> tuple[int, Session | ConureError | None]:
        """Return the revision of this node's state, and a session in it, or what went wrong."""
        with self._monitor.lock:
            index = self._store.applied_index
            try:
                self._standing.refuse_if_no_records()
                return index, self._store.session(session)
            except ConureError as error:
                return index, error

    def holdings(self, session: bytes, key: bytes) -> int:
        """Count the keys that a session holds in the leader's state; 0 if *key* is one of them, and
        elsewhere, where nothing is decided by it. Raises Unavailable while they are counted."""
        with self._monitor.lock:
            if self._raft.state is not State.LEADER or self._standing.is_arbiter:
                return 0
            count = self._store.holdings(session, key)
        if count is None:
            raise Unavailable(STILL_COUNTED)
        return count

    def backup(self) -> tuple[int, Backup]:
        """Return the revision of this node's state, and a backup of it, for any one thread.

        Raises Unavailable, and NotLeader on an arbiter.
        """
        state = self.pin()
        try:
            identity = self._directory.identity
            facts = Facts(identity.cluster_id, identity.node_id, int(self._wall() * 1000))
            return state.meta.index, Backup(state, facts)
        except BaseException:
            state.close()
            raise

    def check_watchable(self) -> None:
        """Raise Unavailable where nothing, or nothing any more, would come to a watch."""
        with self._monitor.lock:
            self._standing.refuse_if_failed()
            if self._standing.is_arbiter:
                raise Unavailable("an arbiter keeps no records; watch at another server")
            if self._raft.configuration.get(self._raft.id) is None:
                raise Unavailable("this node is of no cluster; watch at another server")

    def time(self) -> int:
        """Return what expiries are counted by, in milliseconds since the Unix epoch.

        Exact on the leader; elsewhere by this node's own wall clock.
        """
        with self._monitor.lock:
            if self._raft.state is State.LEADER:
                return self._expiries.time()
            return max(self._store.clock, int(self._wall() * 1000))
