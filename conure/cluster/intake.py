"""Which messages of an admitted node are taken: those that this node has room and time for.

A follower takes no entries that its log has no room for, and none while too many committed ones
wait to be applied or changes take too much memory (S7): it is sent them again. Nor does it take a
command that it could not apply: in its log that would end it, now and at each start. Messages
without entries are always taken.

Everything here belongs to the holder of the node's lock. Nothing here gives a message to the core.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from conure import errors
from conure.cluster.applying import Applying
from conure.cluster.checkpointing import DISK_FULL_RETRY, Upkeep
from conure.cluster.greetings import Admission
from conure.cluster.room import Room
from conure.cluster.standing import Standing
from conure.consensus.messages import EntryKind, Message
from conure.consensus.raftlog import ENTRY_OVERHEAD, RaftLog
from conure.errors import DiskFull, ProtocolViolation, VersionTooNew
from conure.state import codec

__all__ = ["Intake"]

MAX_UNAPPLIED = 32_768
"""Committed entries that may wait to be applied, about: beyond that a follower takes no more, and
is sent them again."""

log = logging.getLogger("conure.node")


class Intake:
    """Decides which messages the node takes that writes *raft_log*.

    *on_full* is told whenever entries found no room. *speaks* is the newest version of commands
    that this node applies; an arbiter is sent the places of commands only.
    """

    def __init__(
        self,
        raft_log: RaftLog,
        room: Room,
        upkeep: Upkeep,
        applying: Applying,
        admission: Admission,
        standing: Standing,
        clock: Callable[[], float],
        on_full: Callable[[DiskFull], object],
        speaks: int,
    ) -> None:
        self._log = raft_log
        self._room = room
        self._upkeep = upkeep
        self._applying = applying
        self._admission = admission
        self._clock = clock
        self._on_full = on_full
        self._speaks = speaks
        self._is_arbiter = standing.is_arbiter
        self._warn_again_at = 0.0  # of a lack of room
        self._make_again_at = 0.0  # room for a leader's entries, after there was none
        self._untold = 0  # messages that were dropped without a word since
        self._tell_again_at = 0.0  # of messages that were dropped

    def hears(self, messages: Sequence[Message]) -> bool:
        """Tell whether to take a node's messages. To become one of its cluster takes some room."""
        try:
            return self._admission.hears(messages)
        except DiskFull as error:
            if self._clock() >= self._warn_again_at:
                self._warn_again_at = self._clock() + 60.0
                sender = messages[0].sender
                log.error("no room to become a member of the cluster of %s: %s", sender, error)
            return False

    def that_fit(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages without those whose entries the log has no room for, or this node
        no time."""
        entries = [entry for message in messages for entry in message.entries]
        if entries:
            if (
                self._room.unwritten
                or len(self._applying.backlog) > MAX_UNAPPLIED
                or self._upkeep.is_crowded
            ):
                return [message for message in messages if not message.entries]
            size = sum([len(entry.data) for entry in entries])
            may_make = self._clock() >= self._make_again_at
            try:
                self._log.reserve(size + ENTRY_OVERHEAD * len(entries), may_make=may_make)
            except DiskFull as error:
                if may_make:  # every attempt fills what room there is with zeros, under the lock
                    self._make_again_at = self._clock() + DISK_FULL_RETRY
                self._on_full(error)
                if self._clock() >= self._warn_again_at:
                    self._warn_again_at = self._clock() + 60.0
                    log.warning("entries of the leader find no room: %s", error)
                return self._that_fit_the_reserve(messages)
        return messages

    def _that_fit_the_reserve(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages up to the first whose entries don't fit, and those without any.

        What the log has already needs no room, nor does what the core refuses: entries behind a
        gap. It says so to the leader, which couldn't find out otherwise where the logs agree.
        """
        fitting: list[Message] = []
        last, size, commands, is_full = self._log.last_index, 0, False, False
        for message in messages:
            if message.entries and message.index <= last:
                missing = self._log.missing(message.entries)
                size += sum([len(entry.data) + ENTRY_OVERHEAD for entry in missing])
                commands |= any(entry.kind == EntryKind.COMMAND for entry in missing)
                is_full |= size > 0 and not self._log.may_use_reserve(size, commands=commands)
                last = max(last, message.index + len(message.entries))
            if not (message.entries and is_full):
                fitting.append(message)
        return fitting

    def check_commands(self, message: Message) -> int:
        """Return the newest version of the commands that a message brings.

        Raises ProtocolViolation for what this node could not apply. In its log that would end it,
        now and at each start: a replica can't skip a command (R7).
        """
        if self._is_arbiter:
            return 1  # it is sent their places only
        try:
            return codec.check_commands(message.entries, self._speaks)
        except (errors.WireError, VersionTooNew) as error:
            raise ProtocolViolation(
                f"{message.sender} sent a command that can't be taken: {error}"
            ) from error

    def drop(self, message: Message, error: ProtocolViolation) -> None:
        """Say that a message was not taken; once a second, however many come."""
        if self._clock() < self._tell_again_at:
            self._untold += 1
            return
        others = f", and {self._untold} before it" if self._untold else ""
        log.error("a message of %s was dropped%s: %s", message.sender, others, error)
        self._untold, self._tell_again_at = 0, self._clock() + 1.0
