"""Whether this node works, leads and has records, and what a request is told where it doesn't.

:class:`Standing` is asked before anything is done for a request. It raises what the request is
answered with: Unavailable once the node has failed or stopped, NotLeader with the way to the leader
where another node has to be asked. It decides nothing: the node tells it when that has failed or
stops. The attributes are for any thread to read, and the methods change them.
"""

from __future__ import annotations

from conure.cluster.roster import Roster
from conure.consensus.messages import State
from conure.errors import NotLeader, Unavailable
from raft import Raft

__all__ = ["Standing"]


class Standing:
    """What the node whose core is *raft* is able to serve. The methods are for the holder of the
    node's lock, but for :meth:`begin_stop`."""

    def __init__(self, raft: Raft, roster: Roster, *, is_arbiter: bool) -> None:
        self._raft = raft
        self._roster = roster
        self.is_arbiter = is_arbiter
        """Whether it holds no records, ever."""
        self.failure: BaseException | None = None
        """Why it has failed; it never works again then."""
        self.is_working = True
        """False once it has failed or is stopped."""
        self.is_stopping = False
        """True once it is about to stop; it works on until it does."""

    def begin_stop(self) -> None:
        """The node is about to stop. Any thread."""
        self.is_stopping = True

    def end(self) -> None:
        """The node does nothing any more."""
        self.is_working = False

    def fail(self, error: BaseException) -> None:
        """The node does nothing any more, because of this."""
        self.failure = error
        self.is_working = False

    def refuse_if_failed(self) -> None:
        """Raise Unavailable where nothing is done any more."""
        if not self.is_working:
            why = f"has failed and is stopping: {self.failure}" if self.failure else "has stopped"
            raise Unavailable(f"this node {why}")

    def refuse_if_no_records(self) -> None:
        """Raise Unavailable or, on an arbiter, NotLeader."""
        self.refuse_if_failed()
        if self.is_arbiter:
            raise self.not_leader()

    def refuse_if_not_leading(self) -> None:
        """Raise Unavailable or NotLeader on all nodes but the leader."""
        self.refuse_if_failed()
        if self._raft.state is not State.LEADER:
            raise self.not_leader()

    def lacking(self) -> str:
        """Say why this leader commits nothing though a majority may be there (R11), or ""."""
        raft = self._raft
        if not raft.lacks_copies:
            return ""
        outlook = raft.outlook()
        return (
            f"by the quorum size of {raft.configuration.quorum_size} a write needs {outlook.copies}"
            f" data voters, and {outlook.active_data} answer; start the others, or lower it with "
            "POST /quorum"
        )

    def not_leader(self) -> NotLeader:
        """Return who has to be asked instead, as far as is known here."""
        # One that was removed hears from nobody; as long as it runs it leads its clients on.
        leader = self._raft.configuration.get(self._raft.leader_id) or self._roster.left_to
        if leader is None or leader.id == self._raft.id:
            return NotLeader()
        return NotLeader(leader.raft_address, leader.id, leader.http_address)
