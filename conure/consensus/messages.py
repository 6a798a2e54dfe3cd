"""What the core and its driver tell each other: entries, messages, and the duties of a Ready.

Values only: any thread may use them. What each message means stands in raft.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple, Protocol

from conure.consensus.members import Configuration

__all__ = [
    "COMMAND",
    "CONFIG",
    "NOOP",
    "Entry",
    "EntryKind",
    "HardState",
    "Message",
    "MessageType",
    "ReadState",
    "Ready",
    "SnapshotHeader",
    "SnapshotMeta",
    "State",
    "Storage",
]


class EntryKind(IntEnum):
    """What an entry is for; the values are part of the log's format."""

    NOOP = 0  # the first entry of every leader; says nothing
    COMMAND = 1  # for the state machine
    CONFIG = 2  # an encoded Configuration


NOOP, COMMAND, CONFIG = EntryKind


@dataclass(slots=True)
class Entry:
    """A log entry. The core never looks into the data of a COMMAND."""

    term: int
    index: int
    kind: int  # an EntryKind
    data: bytes


class HardState(NamedTuple):
    """What must be on disk before an answer that depends on it is sent (R1). "" is no vote."""

    term: int = 0
    vote: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """The last entry a snapshot covers, and the configuration as of it (encoded)."""

    index: int = 0
    term: int = 0
    configuration: bytes = b""


class MessageType(IntEnum):
    """What a message asks or answers; the values are part of the wire format."""

    PRE_VOTE = 1
    PRE_VOTE_RESPONSE = 2
    VOTE = 3
    VOTE_RESPONSE = 4
    APPEND = 5
    APPEND_RESPONSE = 6
    HEARTBEAT = 7
    HEARTBEAT_RESPONSE = 8
    SNAPSHOT = 9
    TIMEOUT_NOW = 10
    AUDIT = 11  # this and the next are between drivers; the core ignores them
    AUDIT_RESPONSE = 12


@dataclass(slots=True)
class Message:
    """One message between two nodes. A field that a type doesn't use keeps its default.

    ================== =====================================================================
    PRE_VOTE, VOTE     ``index``, ``log_term``: the candidate's last entry. ``term`` is the
                       term it stands for (a pre-candidate isn't in it yet). ``force``: the
                       leader asked for this election, so its voters may leave it.
    their responses    ``reject``. A pre-vote is granted at the term that was asked for and
                       rejected at the voter's own.
    APPEND             ``index``, ``log_term``: the entry before ``entries``; ``entries``
                       follow each other from ``index + 1``; ``commit``.
    APPEND_RESPONSE    ``index``: the log equals the leader's up to here, durably. With
                       ``reject``: the ``index`` that was refused, and ``hint``,
                       ``log_term``: the last entry the follower can still agree on.
    HEARTBEAT          ``commit`` (no further than the follower is known to match),
                       ``context``: the read round; its response brings it back.
    SNAPSHOT           ``snapshot``: what the state that is sent beside it covers.
    TIMEOUT_NOW        the leader hands over: campaign at once. From anybody else it means nothing.
    AUDIT, response    not for the core: see node.py.
    ================== =====================================================================

    ``incarnation`` is the data directory of the sender, as its core stamps it. It doesn't travel:
    whoever receives bytes stamps what the handshake of their connection said. "" is not known.
    """

    type: MessageType
    sender: str
    to: str
    term: int
    index: int = 0
    log_term: int = 0
    commit: int = 0
    hint: int = 0
    context: int = 0
    reject: bool = False
    force: bool = False
    entries: Sequence[Entry] = ()
    snapshot: SnapshotMeta | None = None
    incarnation: str = field(default="", compare=False)


class Storage(Protocol):
    """What the core reads of the durable log. Nothing here writes.

    What a storage shows when a core is made over it is durable. Later it may lag behind what was
    handed out in :class:`Ready`, and lag behind the cut that the driver made at its front.
    """

    @property
    def first_index(self) -> int:
        """The first index that :meth:`entries` can return; 1 in a new log."""

    @property
    def last_index(self) -> int:
        """The last index; ``snapshot.index`` when there is no entry after it."""

    @property
    def snapshot(self) -> SnapshotMeta:
        """Where the log begins: all before its index may be gone."""

    def term(self, index: int) -> int | None:
        """Return the term of an entry, or None when it isn't held."""

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Return entries from *low*, before *high*: at least one, then what fits."""


class State(StrEnum):
    """What a node is at this moment (paper, figure 4; thesis 9.6 for the pre-candidate)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(slots=True)
class ReadState:
    """A read that is linearizable at any state that has applied ``index``."""

    index: int
    context: object


@dataclass(slots=True)
class Ready:
    """What the driver has to do now. Its duties, in this order:

    1. ``hard_state``: make it durable, before anything else and before the core is called again
       (R1).
    2. ``configuration``: the members have changed; messages may go to new addresses.
    3. ``messages``: send them, without waiting for 4. They may be lost, doubled and reordered.
       For a SNAPSHOT the driver sends its newest state machine snapshot beside the message,
       with ``snapshot`` replaced by what that one covers (an arbiter needs the message only),
       and tells the end by :meth:`Raft.report_snapshot`.
    4. ``snapshot``: replace the state machine by the snapshot that was received with it, and the
       log by an empty one that starts after it; then ``entries``: append them, dropping what
       the log holds at or after the first one's index. Make it all durable.
    5. Call :meth:`Raft.persisted` with this Ready (R2), if it has something of 1 or 4
       (:attr:`must_persist`). 4 and 5 may lag behind other calls, and several Readys may share
       one sync, as long as the calls come in the order of the Readys. A hard state may be
       reported at once, in a Ready of its own, where 4 has to wait. What a later Ready's
       ``snapshot`` makes void need not be done any more.
    6. ``committed``: apply the COMMAND entries in this order, then call :meth:`Raft.applied`
       with the last index. An arbiter only makes the call. There are none beside entries of 4:
       those are acknowledged first, by a message of the next Ready.
    7. ``reads``: answer each as soon as its index is applied. ``lost_reads``, the contexts of
       others: leadership was lost first; they may be tried again.
    8. Ask for the next Ready, until there is none.
    """

    hard_state: HardState | None = None
    configuration: Configuration | None = None
    messages: Sequence[Message] = ()
    snapshot: SnapshotMeta | None = None
    entries: Sequence[Entry] = ()
    committed: Sequence[Entry] = ()
    reads: Sequence[ReadState] = ()
    lost_reads: Sequence[object] = ()
    epoch: int = 0  # the core's own: which history of the log the entries belong to

    @property
    def must_persist(self) -> bool:
        """Whether there is anything to make durable, and :meth:`Raft.persisted` to call."""
        return bool(self.entries) or self.hard_state is not None or self.snapshot is not None


class SnapshotHeader(NamedTuple):
    """What is announced before the chunks of a snapshot.

    *message* is the core's SNAPSHOT message, with what the state covers; *digest* the store's as of
    that index, *records* how many there are. *id* is random: a transfer that goes on keeps it.
    """

    message: Message
    digest: int
    records: int
    id: str
