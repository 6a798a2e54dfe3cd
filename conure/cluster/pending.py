"""Requests that wait inside the node: writes for their commit, reads for their index.

A write that was proposed is answered by what is committed at its index: itself, or something
else, which proves that it is lost. Loss of leadership alone proves nothing, since the next leader
may hold the entry and commit it. Who waits too long is told that the outcome is unknown.

The methods return answers to be given: callables that take nothing, for whoever holds the lock to
call when it has let go of it. Everything here belongs to the holder of the node's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from sys import maxsize
from typing import NamedTuple

from conure.commands import Committed, Outcome
from conure.consensus.messages import Entry
from conure.errors import ConureError, OutcomeUnknown, Unavailable

__all__ = ["Answers", "Read", "Reads", "Reply", "Write", "WriteReply", "Writes", "shifted"]


WriteReply = Callable[[int, int, Committed | ConureError], None]
"""Told how the commands *start* to *stop* of a batch have ended: done, or why not."""

Reply = Callable[[ConureError | None], None]
"""Told how something ended: None is done, else why not."""

Answers = list[Callable[[], None]]

Outcomes = Mapping[int, Outcome]
"""By revision, of the transactions that were applied together."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Commands proposed together in a term: entries *first* to *first* + *count* - 1."""

    term: int
    first: int
    count: int
    reply: WriteReply
    deadline: float
    answered: int = 0

    def answer(self, stop: int, ended: Outcomes | ConureError) -> Callable[[], None]:
        """Answer for the commands up to *stop* that have no answer yet."""
        start, self.answered = self.answered, stop
        told = ended if isinstance(ended, ConureError) else Committed(self.first, ended)
        return partial(self.reply, start, stop, told)


class Write(NamedTuple):
    """Encoded commands that are not proposed yet; passed on, if this node doesn't lead. If *term*
    isn't 0, they may be proposed in that one only."""

    commands: list[bytes]
    reply: WriteReply
    deadline: float
    passes_on: bool = False
    term: int = 0

    def answer(self, error: ConureError) -> Callable[[], None]:
        return partial(self.reply, 0, len(self.commands), error)

    def parts(self, version_of: Callable[[bytes], int]) -> list[Write]:
        """Return the same commands in the same order, as writes of one version each."""
        parts, at = [], 0
        for _, same in groupby(self.commands, version_of):
            commands = list(same)
            parts.append(self._replace(commands=commands, reply=shifted(self.reply, at)))
            at += len(commands)
        return parts


class Writes:
    """Batches of commands: proposed ones in the order of being proposed, and those gathered."""

    def __init__(self) -> None:
        self._batches: deque[_Batch] = deque()
        self._gathered: deque[Write] = deque()
        self._gathered_bytes = 0

    def __bool__(self) -> bool:
        """Whether there are proposed ones."""
        return bool(self._batches)

    @property
    def count(self) -> int:
        """How many commands have no answer yet, proposed or gathered."""
        proposed = sum([batch.count - batch.answered for batch in self._batches])
        return proposed + self.gathered_count

    @property
    def gathered_bytes(self) -> int:
        """The size of the commands that are gathered."""
        return self._gathered_bytes

    @property
    def gathered_count(self) -> int:
        """How many commands are gathered."""
        return sum([len(write.commands) for write in self._gathered])

    def gather(self, write: Write) -> None:
        """Keep commands until they are proposed; deadlines never fall from one to the next."""
        self._gathered.append(write)
        self._gathered_bytes += sum(map(len, write.commands))

    def take(self, commands: int = maxsize, size: int = maxsize) -> Sequence[Write]:
        """Return what is gathered, to be proposed or refused: the first of it, of so many
        *commands* or bytes and no more than it takes to reach them."""
        taken = []
        while self._gathered and commands > 0 and size > 0:
            write = self._gathered.popleft()
            taken.append(write)
            its_size = sum(map(len, write.commands))
            self._gathered_bytes -= its_size
            commands -= len(write.commands)
            size -= its_size
        return taken

    def add(self, term: int, first: int, count: int, reply: WriteReply, deadline: float) -> None:
        """Let a proposed batch wait; deadlines never fall from one to the next."""
        self._batches.append(_Batch(term, first, count, reply, deadline))

    def applied(self, entries: Sequence[Entry], outcomes: Outcomes) -> Answers:
        """Answer those whose indexes were committed and applied."""
        if not self._batches:
            return []
        if self._batches[0].term == self._batches[-1].term == entries[-1].term:
            return self._done(entries[-1].index, outcomes)
        return self._compared(entries, outcomes)

    def skipped(self, index: int) -> Answers:
        """Answer those up to an index: what was committed there is hidden in a snapshot."""
        error = OutcomeUnknown("this node lost its leadership; the write may have been committed")
        hidden = [batch for batch in self._batches if batch.first <= index]
        self._batches = deque(batch for batch in self._batches if batch.first > index)
        return [batch.answer(batch.count, error) for batch in hidden]

    def expired(self, now: float, why: str = "") -> Answers:
        """Answer those whose time is up, and say *why*, where that is known."""
        reason = f" ({why})" if why else ""
        error = OutcomeUnknown(
            f"the write was not committed in time{reason}; it may still be, so read before "
            "repeating it"
        )
        late = why or "no quorum has taken earlier writes in time"
        answers = []
        while self._batches and self._batches[0].deadline <= now:
            batch = self._batches.popleft()
            answers.append(batch.answer(batch.count, error))
        while self._gathered and self._gathered[0].deadline <= now:
            write = self._gathered.popleft()
            self._gathered_bytes -= sum(map(len, write.commands))
            answers.append(write.answer(Unavailable(late)))
        return answers

    def ended(self, error: ConureError) -> Answers:
        """Answer all; of what was only gathered it is known that it did not happen."""
        batches, self._batches = self._batches, deque()
        answers = [batch.answer(batch.count, error) for batch in batches]
        nothing_happened = Unavailable(f"this write was not begun: {error}")
        return answers + [write.answer(nothing_happened) for write in self.take()]

    def _done(self, last: int, outcomes: Outcomes) -> Answers:
        """All that wait were proposed in the term of the last entry, and nothing else was in it.
        So what was committed at their indexes is what they proposed."""
        answers = []
        batches = self._batches
        while batches and batches[0].first <= last:
            batch = batches[0]
            stop = min(batch.count, last - batch.first + 1)
            answers.append(batch.answer(stop, outcomes))
            if stop < batch.count:
                break
            batches.popleft()
        return answers

    def _compared(self, entries: Sequence[Entry], outcomes: Outcomes) -> Answers:
        """Some were proposed in an earlier term, and their indexes may hold other entries now."""
        first, last = entries[0].index, entries[-1].index
        lost = Unavailable("another leader took over before this was committed; nothing happened")
        answers = []
        waiting: deque[_Batch] = deque()
        for batch in self._batches:
            start = batch.first + batch.answered
            assert start >= first, "a batch was passed over"
            for index in range(start, min(batch.first + batch.count, last + 1)):
                is_its_own = entries[index - first].term == batch.term
                ended = outcomes if is_its_own else lost
                answers.append(batch.answer(index - batch.first + 1, ended))
            if batch.answered < batch.count:
                waiting.append(batch)
        self._batches = waiting
        return answers


@dataclass(slots=True, eq=False)
class Read:
    """What waits for its confirmation, or for its *index* to be applied: the reads of so many
    *requests* that came together.

    Passed on, if this node doesn't lead; *patience* is when it has waited for a leader for long
    enough. *kept* is told the same for some requests more, but refused where this node doesn't
    lead.
    """

    reply: Reply
    deadline: float
    requests: int = 1
    index: int | None = None
    passes_on: bool = False
    patience: float = 0.0
    kept: Reply | None = None
    kept_requests: int = 0

    def answer(self, error: ConureError | None) -> None:
        """Tell how it ended; both, even if one is told in vain."""
        try:
            if self.kept is not None:
                self.kept(error)
        finally:
            self.reply(error)

    def split(self) -> Reply | None:
        """Tell no more those that aren't passed on, whose reply is returned."""
        kept, self.kept, self.kept_requests = self.kept, None, 0
        return kept


class Reads:
    """Reads in the order of being asked for, which is the order they are confirmed in."""

    def __init__(self) -> None:
        self._reads: deque[Read] = deque()
        self._gathered: list[Read] = []  # of these, the last ones: nobody was asked for them yet

    @property
    def count(self) -> int:
        """How many requests wait for their reads."""
        return sum([read.requests + read.kept_requests for read in self._reads])

    @property
    def gathered_count(self) -> int:
        """How many reads wait to be taken."""
        return len(self._gathered)

    def add(self, read: Read) -> None:
        """Let a read wait; deadlines never fall from one to the next."""
        self._reads.append(read)

    def gather(self, read: Read) -> None:
        """Let a read wait that is to be confirmed together with others."""
        self.add(read)
        self._gathered.append(read)

    def take(self) -> list[Read]:
        """Return what was gathered, to be confirmed now; some may have expired."""
        gathered, self._gathered = self._gathered, []
        return gathered

    def applied(self, index: int) -> Answers:
        """Answer those that are confirmed and may be served from the state as of *index*."""
        answers: Answers = []
        reads = self._reads
        while reads and (wanted := reads[0].index) is not None and wanted <= index:
            answers.append(partial(reads.popleft().answer, None))
        return answers

    def withdraw(self, read: Read) -> bool:
        """Let a read wait no more; False: it has had its answer."""
        is_waiting = read in self._reads
        if is_waiting:
            self._reads.remove(read)
        return is_waiting

    def lost(self, read: Read, error: ConureError) -> Answers:
        """Answer one that will not be confirmed; it may have expired before."""
        return [partial(read.answer, error)] if self.withdraw(read) else []

    def expired(self, now: float, why: str = "") -> Answers:
        """Answer those whose time is up, and say *why* they were not confirmed, where that is
        known."""
        unconfirmed = Unavailable(why or "no quorum has confirmed the read in time")
        behind = Unavailable(
            "this node is behind, and has not got in time to what the read has to see; ask another"
        )
        answers: Answers = []
        while self._reads and self._reads[0].deadline <= now:
            read = self._reads.popleft()
            answers.append(partial(read.answer, unconfirmed if read.index is None else behind))
        return answers

    def ended(self, error: ConureError) -> Answers:
        """Answer all."""
        reads, self._reads = self._reads, deque()
        self._gathered.clear()
        return [partial(read.answer, error) for read in reads]


def shifted(reply: WriteReply, offset: int) -> WriteReply:
    """Return what is told of the commands of a batch from *offset* on, as if they were all."""
    if not offset:
        return reply

    def told(start: int, stop: int, ended: Committed | ConureError) -> None:
        if isinstance(ended, Committed):
            ended = Committed(ended.first - offset, ended.outcomes)
        reply(start + offset, stop + offset, ended)

    return told
