"""Writes on their way into the log: encoded, gathered, and proposed as one batch of entries.

A batch takes what is gathered, up to MAX_BATCH commands, once :class:`Pacing` lets it go. Room in
the log is reserved before the core hears of it, so that a full disk refuses a write and nothing
else. From then on a write is answered by what is committed at its index.

Everything here belongs to the holder of the node's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from conure.cluster.checkpointing import Upkeep
from conure.cluster.expiring import Expiries
from conure.cluster.monitor import Monitor
from conure.cluster.pacing import Pacing
from conure.cluster.pending import Write, WriteReply, Writes
from conure.cluster.room import Room
from conure.cluster.versions import Versions
from conure.commands import Sequential, Transaction
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.errors import Conflict, ConureError, NotLeader, OutcomeUnknown
from conure.metrics import Histogram
from conure.state import codec
from raft import Raft

__all__ = ["Command", "Proposals"]

MAX_BATCH, MAX_BATCH_BYTES = 2048, 4 << 20
"""Gathered commands, and their bytes, after which no more are proposed in one go: to log and apply
them keeps the reactor busy, and those who lead or follow have to hear of each other meanwhile."""

Command = tuple[bytes, bytes | None] | Transaction | Sequential | bytes
"""A key and its new value, None to delete it; or a transaction, whose time is set by the node; one
may be encoded already."""


class Proposals:
    """Proposes to *raft* what is gathered in *writes*.

    *refused* is told why a write was refused and returns what to answer; *lose* is given those that
    find that this node doesn't lead any more; *fail* ends the node.
    *timeout* is how long a write may take, in seconds. *batch_sizes* observes commands a batch.
    """

    def __init__(
        self,
        raft: Raft,
        raft_log: RaftLog,
        writes: Writes,
        pacing: Pacing,
        room: Room,
        upkeep: Upkeep,
        versions: Versions,
        expiries: Expiries,
        monitor: Monitor,
        refused: Callable[[ConureError], ConureError],
        lose: Callable[[Write, ConureError], None],
        fail: Callable[[Exception], None],
        clock: Callable[[], float],
        timeout: float,
        batch_sizes: Histogram,
    ) -> None:
        self._raft = raft
        self._log = raft_log
        self._writes = writes
        self._pacing = pacing
        self._room = room
        self._upkeep = upkeep
        self._versions = versions
        self._expiries = expiries
        self._monitor = monitor
        self._refused = refused
        self._lose = lose
        self._fail = fail
        self._clock = clock
        self._timeout = timeout
        self._batch_sizes = batch_sizes

    def gather(
        self, commands: Sequence[Command], reply: WriteReply, *, passes_on: bool = False
    ) -> None:
        """Encode commands and let them wait until they are proposed. A transaction gets its time
        here."""
        self._writes.gather(self._write_of(commands, self._expiries.time(), reply, passes_on))

    def to_pass_on(self, commands: Sequence[Command], reply: WriteReply) -> Write:
        """Encode commands that another node is to propose, which gives transactions their time."""
        return self._write_of(commands, 0, reply, passes_on=True)

    def take_in(self, write: Write) -> None:
        """Let encoded commands wait likewise, which another node has taken in or was to propose;
        their transactions get their time here."""
        now = self._expiries.time()
        commands = [codec.stamp(command, now) for command in write.commands]
        self._writes.gather(write._replace(commands=commands))

    @property
    def is_held_up(self) -> bool:
        """Whether nothing is proposed for now, whatever is gathered.

        While leadership is handed over: soon another node takes it, which those are asked of that
        are passed on, or an election time-out later this one goes on. And while too few data voters
        answer to commit it (R11): of what is not proposed it is certain that it did not happen.
        """
        return self._raft.is_handing_over or self._raft.lacks_copies

    def propose(self) -> None:
        """Make one batch of log entries of the gathered writes, all that it takes, or refuse them.

        None while others wait for their quorum. So a batch grows while the one before it is sent
        and synced, and the disks sync for many. But nothing waits behind what waits for room.
        Nor while :attr:`is_held_up`.
        """
        if self.is_held_up:
            return
        pacing = self._pacing
        if pacing.is_pausing or (pacing.is_busy() and not self._room.unwritten):
            return
        gathered = self._writes.take(MAX_BATCH, MAX_BATCH_BYTES)
        if not gathered:
            return
        commands = list(chain.from_iterable([each.commands for each in gathered]))
        newest = codec.newest_version(commands)
        if newest > 1 and not self._is_read_by_all(newest):
            gathered = self._that_all_read(gathered)
            commands = list(chain.from_iterable([each.commands for each in gathered]))
            if not commands:
                return
            newest = codec.newest_version(commands)
        try:
            obstacle = self._upkeep.obstacle
            if obstacle is not None:
                raise obstacle
            self._log.reserve(sum(map(len, commands)) + ENTRY_OVERHEAD * len(commands))
            first = self._raft.propose(commands)
        except NotLeader as error:
            for each in gathered:
                self._lose(each, error)
            return
        except ConureError as error:
            self._monitor.finished += [each.answer(self._refused(error)) for each in gathered]
            return
        except Exception as error:  # noqa: BLE001 - a bug; see Node._drive
            self._fail(error)
            unknown = OutcomeUnknown(f"the node failed while it worked on this: {error}")
            self._monitor.finished += [each.answer(unknown) for each in gathered]
            return
        self._versions.note_logged(newest)
        term = self._raft.term
        pacing.note_proposed(term, first + len(commands) - 1)
        self._batch_sizes.observe(len(commands))
        for commands_of_one, reply, deadline, *_ in gathered:
            self._writes.add(term, first, len(commands_of_one), reply, deadline)
            first += len(commands_of_one)

    def _write_of(
        self, commands: Sequence[Command], now: int, reply: WriteReply, passes_on: bool
    ) -> Write:
        deadline = self._clock() + self._timeout
        return Write(_encode(commands, now), reply, deadline, passes_on)

    def _is_read_by_all(self, version: int) -> bool:
        try:
            self._versions.check(version, self._raft.configuration)
        except Conflict:
            return False
        return True

    def _that_all_read(self, gathered: Sequence[Write]) -> list[Write]:
        """Return the gathered writes whose format every member reads, and refuse the others."""
        kept = []
        for each in chain.from_iterable([each.parts(_version_of) for each in gathered]):
            try:
                self._versions.check(codec.newest_version(each.commands), self._raft.configuration)
            except Conflict as error:
                self._monitor.finished.append(each.answer(error))
            else:
                kept.append(each)
        return kept


def _encode(commands: Sequence[Command], now: int) -> list[bytes]:
    put, delete = codec.encode_put, codec.encode_delete
    encoded = []
    for command in commands:
        if type(command) is tuple:  # as most are
            key, value = command  # type: ignore[misc]
            encoded.append(delete(key) if value is None else put(key, value))
        elif isinstance(command, Transaction):
            encoded.append(codec.encode_transaction(command._replace(time=now)))
        elif isinstance(command, Sequential):
            encoded.append(codec.encode_sequential(command._replace(time=now)))
        else:
            assert isinstance(command, bytes), command
            encoded.append(codec.stamp(command, now))
    return encoded


def _version_of(command: bytes) -> int:
    return command[0]
