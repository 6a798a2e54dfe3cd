"""What other members ask of this node for their clients: writes, reads, changes (peers/calls.py).

Only a leader does any of it, in the term that the call names; everybody else answers NotLeader, and
nothing has happened. A write is taken in as if it came from a client of this node: into the same
batch, behind what waits, its transactions with this node's time. It is answered as it would be
here, in parts if it ends in parts. A confirmed index is what a read here would wait for.

A member may lie. What it asks for is checked as a client's request is: commands that could be
applied, none that only a leader makes for itself, no session that holds too much, and no more to be
read in one call than clients of a node may ask for at a time. To look at many operations takes
long, so that is done in turns (LOOKED_AT_BYTES), and so is to count what a session holds that wants
a lock, which nobody knows after a change of leaders (COUNTED_AT_ONCE): calls that write are taken
in one after the other, each as a whole when all of it was looked at. What a member that lies has
hidden behind its first turn fails its call, and nothing of that is taken in.

Called by the thread that reads calls. Takes the node's lock; whoever commits brings the answers.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

from conure.cluster import pending
from conure.cluster.monitor import CallLater, Monitor
from conure.cluster.pending import Write, shifted
from conure.cluster.reading import STILL_COUNTED
from conure.cluster.standing import Standing
from conure.commands import (
    MAX_HELD,
    MAX_KEY_BYTES,
    READ_BYTES,
    Acquire,
    Committed,
    Expire,
    Get,
    Range,
    Transaction,
)
from conure.errors import ConureError, NotLeader, TooManyHeld, Unavailable, WireError
from conure.peers.calls import (
    Answer,
    AnswerKind,
    Call,
    CallKind,
    decode_commands,
    decode_facts,
    decode_index,
    encode_error,
    encode_facts,
    encode_index,
    encode_outcomes,
)
from conure.peers.protocol import Greeting
from conure.state import codec
from conure.state.machine import Store
from conure.values import MAX_QUORUM_SIZE, is_address, is_base_url
from raft import Raft

__all__ = ["LOOKED_AT_BYTES", "MAX_READ_BYTES", "Ask", "Changing", "Serving"]

MAX_READ_BYTES = 64 << 20
"""Bytes that the transactions of one call may read, as far as can be told before."""

LOOKED_AT_BYTES: Final = 32 << 10
"""Bytes of transactions that are looked at in one turn; if they have the shortest operations there
are, that takes some 3 ms. Plain writes take no time."""

COUNTED_AT_ONCE: Final = 2
"""Sessions of a call whose keys are counted in one turn: some milliseconds each at most, and most
of them are known."""

log = logging.getLogger("conure.node")

_LOOKED_AT = 256  # keys of steps that are looked up, to see how much they read; locks in one turn
_ANSWER_BYTES = 4 << 20  # of outcomes, after which an answer is given in another part
_ROLES = ("", "data", "arbiter")

Ask = Callable[[Answer], None]
"""Takes a part of an answer."""


class Changing(Protocol):
    """The part of the node that changes members; see httpapi.Backend."""

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        *,
        voter: bool,
        role: str,
        reply: Callable[[ConureError | None], None],
        incarnation: str,
    ) -> None: ...

    def remove(
        self,
        node_id: str,
        *,
        force: bool,
        reply: Callable[[ConureError | None], None],
        note: Callable[[str], None],
    ) -> None: ...

    def resize(self, quorum_size: int, reply: Callable[[ConureError | None], None]) -> None: ...

    def hand_over(self, node_id: str, reply: Callable[[ConureError | None], None]) -> None: ...

    def preview_join(self, node_id: str, *, voter: bool, role: str) -> dict[str, Any]: ...

    def preview_remove(self, node_id: str) -> dict[str, Any]: ...

    def preview_resize(self, quorum_size: int) -> dict[str, Any]: ...


class _Taken:
    """A call that writes, whose commands are still being looked at."""

    __slots__ = ("answer", "commands", "locks", "seen", "term")

    def __init__(self, term: int, commands: list[bytes], answer: Ask) -> None:
        self.term = term
        self.commands = commands
        self.answer = answer
        self.seen: list[Transaction | codec.Checked | None] = []
        self.locks: deque[Acquire] = deque()  # that are wanted, of sessions to be counted

    def look(self) -> bool:
        """Look at some commands, and tell whether these were the last ones. Raises WireError."""
        size = 0
        for command in self.commands[len(self.seen) :]:
            if size >= LOOKED_AT_BYTES:
                return False
            seen = _checked(command)
            self.seen.append(seen)
            if isinstance(seen, Transaction):
                self.locks += _locks_of(seen)
            size += len(command) if codec.has_outcome(command) else 0
        return True


class Serving:
    """Serves the calls to the node whose core is *raft* and whose state is *store*.

    *call_later* brings the next turn. *take_in* takes a write, and *confirm* a read, whoever asked
    for it, and the index that he has applied, both with the lock held; they raise ConureError.
    *write_timeout* and *read_timeout* are in seconds, by *clock*.
    """

    def __init__(
        self,
        raft: Raft,
        store: Store,
        standing: Standing,
        monitor: Monitor,
        clock: Callable[[], float],
        call_later: CallLater,
        take_in: Callable[[Write], None],
        confirm: Callable[[pending.Read, Greeting, int], None],
        changing: Changing,
        *,
        write_timeout: float,
        read_timeout: float,
    ) -> None:
        self._raft = raft
        self._store = store
        self._standing = standing
        self._monitor = monitor
        self._clock = clock
        self._call_later = call_later
        self._take_in = take_in
        self._confirm = confirm
        self._changing = changing
        self._write_timeout = write_timeout
        self._read_timeout = read_timeout
        self._taken: deque[_Taken] = deque()  # the first one is being looked at

    def take(self, peer: Greeting, call: Call, answer: Ask) -> None:
        """Serve a call of an admitted node. Raises WireError for one that no node makes."""
        if call.kind is CallKind.WRITE:
            self._take_write(_Taken(call.term, decode_commands(call.body), answer))
        elif call.kind is CallKind.CONFIRM:
            self._read(peer, call.term, decode_index(call.body), answer)
        else:
            self._change(call.term, decode_facts(call.body), answer)

    # -- private ---------------------------------------------------------------------------------

    def _take_write(self, taken: _Taken) -> None:
        """Look at what there is time for; take it in if that is all, and nothing waits before it.
        Raises WireError."""
        if not self._taken and taken.look() and self._count(taken):
            self._write(taken.term, taken.commands, taken.seen, taken.answer)
            return
        self._taken.append(taken)
        if len(self._taken) == 1:
            self._call_later(self._go_on, 0.0)

    def _go_on(self) -> None:
        """Look at more of the first call; one that was looked at as a whole is taken in."""
        taken = self._taken[0]
        try:
            is_over = taken.look() and self._count(taken)
        except WireError as error:
            log.error("a call was not taken in: %s", error)
            self._taken.popleft()
            size = len(taken.commands)
            taken.answer(Answer(AnswerKind.FAILED, taken.term, encode_error(error), 0, size))
        else:
            if is_over:
                self._taken.popleft()
                self._write(taken.term, taken.commands, taken.seen, taken.answer)
        if self._taken:
            self._call_later(self._go_on, 0.0)

    def _count(self, taken: _Taken) -> bool:
        """Count on what the sessions hold that want locks; tell whether nothing is left to count.

        What is counted stays known, so that the write itself is taken in at once.
        """
        if not taken.locks:
            return True
        counted = 0
        with self._monitor.lock:
            try:
                self._refuse_if_not_asked(taken.term)
            except ConureError:
                return True  # which the write is told
            for _ in range(min(len(taken.locks), _LOOKED_AT)):
                lock = taken.locks[0]
                if not self._store.has_counted(lock.session, lock.key):
                    if counted == COUNTED_AT_ONCE:
                        return False
                    counted += 1
                    if self._store.holdings(lock.session, lock.key) is None:
                        return False
                taken.locks.popleft()
        return not taken.locks

    def _refuse_if_not_asked(self, term: int) -> None:
        """Raise NotLeader, unless this node is the leader of that term; Unavailable, if it has
        ended."""
        self._standing.refuse_if_not_leading()
        if self._raft.term != term:
            raise NotLeader

    def _write(
        self,
        term: int,
        commands: Sequence[bytes],
        transactions: Sequence[Transaction | codec.Checked | None],
        answer: Ask,
    ) -> None:
        reply = _Ending(term, len(commands), answer).tell
        with self._monitor:
            try:
                self._refuse_if_not_asked(term)
                wanted = [self._reads_of(each) for each in transactions if each is not None]
                if sum(wanted) > MAX_READ_BYTES:
                    raise Unavailable("too much would be read at a time; try again shortly")
                runs = [*self._runs(transactions)]
            except ConureError as error:
                runs = [(0, len(commands), error)]
            for start, stop, refusal in runs:
                deadline = self._clock() + self._write_timeout
                told = shifted(reply, start)
                write = Write([*commands[start:stop]], told, deadline, term=term)
                try:
                    if refusal is not None:
                        raise refusal
                    self._take_in(write)
                except ConureError as error:  # what was taken in before is answered by its end
                    self._monitor.finished.append(write.answer(error))

    def _read(self, peer: Greeting, term: int, applied: int, answer: Ask) -> None:
        def confirmed(error: ConureError | None) -> None:
            if error is None:
                assert read.index is not None
                answer(Answer(AnswerKind.CONFIRMED, term, encode_index(read.index)))
            else:
                answer(Answer(AnswerKind.FAILED, term, encode_error(error)))

        read = pending.Read(confirmed, self._clock() + self._read_timeout)
        with self._monitor:
            try:
                self._refuse_if_not_asked(term)
                self._confirm(read, peer, applied)
            except ConureError as error:
                self._monitor.finished.append(partial(confirmed, error))

    def _change(self, term: int, facts: dict[str, Any], answer: Ask) -> None:
        notes: dict[str, Any] = {}

        def changed(error: ConureError | None) -> None:
            if error is None:
                answer(Answer(AnswerKind.CHANGED, term, encode_facts(notes)))
            else:
                answer(Answer(AnswerKind.FAILED, term, encode_error(error)))

        begin = self._change_of(facts, changed, partial(notes.__setitem__, "note"))
        try:
            with self._monitor.lock:
                self._refuse_if_not_asked(term)
            found = begin()
        except ConureError as error:
            changed(error)
        else:
            if found is not None:
                answer(Answer(AnswerKind.CHANGED, term, encode_facts(found)))

    def _change_of(
        self,
        facts: dict[str, Any],
        changed: Callable[[ConureError | None], None],
        note: Callable[[str], None],
    ) -> Callable[[], dict[str, Any] | None]:
        """Return what begins a change, and returns what it would be if that is what is asked for.
        Raises WireError."""
        change, changing = _text(facts, "change"), self._changing
        if change == "resize":
            return partial(changing.resize, _size(facts), changed)
        if change == "preview resize":
            return partial(changing.preview_resize, _size(facts))
        node_id = _text(facts, "id")
        match change:
            case "join":
                raft_address, http_address = _text(facts, "raft"), _text(facts, "http")
                if not is_address(raft_address) or (http_address and not is_base_url(http_address)):
                    raise WireError("a node that joins at what is no address")
                return partial(
                    changing.join,
                    node_id,
                    raft_address,
                    http_address,
                    voter=_flag(facts, "voter"),
                    role=_role(facts),
                    reply=changed,
                    incarnation=_text(facts, "incarnation"),
                )
            case "remove":
                force = _flag(facts, "force")
                return partial(changing.remove, node_id, force=force, reply=changed, note=note)
            case "hand over":
                return partial(changing.hand_over, node_id, changed)
            case "preview join":
                voter, role = _flag(facts, "voter"), _role(facts)
                return partial(changing.preview_join, node_id, voter=voter, role=role)
            case "preview remove":
                return partial(changing.preview_remove, node_id)
        raise WireError("a change of members of an unknown kind")

    def _runs(
        self, transactions: Sequence[Transaction | codec.Checked | None]
    ) -> Iterator[tuple[int, int, ConureError | None]]:
        """Yield from where to where commands can be taken in, and between, why one can't be."""
        start = 0
        may_count = True  # once it takes long, it isn't tried for each of them
        for position, transaction in enumerate(transactions):
            error = None if transaction is None else self._obstacle(transaction, may_count)
            if error is None:
                continue
            may_count &= not isinstance(error, Unavailable)
            if start < position:
                yield start, position, None
            start = position + 1
            yield position, start, error
        if start < len(transactions):
            yield start, len(transactions), None

    def _obstacle(
        self, transaction: Transaction | codec.Checked, may_count: bool
    ) -> ConureError | None:
        """Return why a transaction can't be taken in, if a session would hold too much by it."""
        if isinstance(transaction, Transaction):
            for each in _locks_of(transaction):
                count = self._store.holdings(each.session, each.key) if may_count else None
                if count is None:
                    return Unavailable(STILL_COUNTED)
                if count >= MAX_HELD:
                    return TooManyHeld(MAX_HELD)
        return None

    def _reads_of(self, transaction: Transaction | codec.Checked) -> int:
        """Return about how many bytes a transaction reads at most."""
        if isinstance(transaction, codec.Checked):
            read = transaction.reads
            if len(read) > _LOOKED_AT:
                return READ_BYTES
            return min(sum(map(self._length, read)), READ_BYTES)
        most = 0
        for branch in (transaction.success, transaction.failure):
            size = keys = 0
            for each in branch:
                if isinstance(each, Get):
                    size += self._length(each.key)
                elif isinstance(each, Range):
                    size += 0 if each.keys_only else READ_BYTES
                    keys += each.limit * MAX_KEY_BYTES
            most = max(most, min(size, READ_BYTES) + keys)
        return most

    def _length(self, key: bytes) -> int:
        heading = self._store.heading(key)
        return 0 if heading is None else heading[1]


def _locks_of(transaction: Transaction) -> Iterator[Acquire]:
    for each in (*transaction.success, *transaction.failure):
        if isinstance(each, Acquire):
            yield each


def _checked(command: bytes) -> Transaction | codec.Checked | None:
    """Return the transaction that a command stands for, None: it is a plain write. Raises WireError
    for a command that a client's request can't become."""
    checked = codec.check_command(command)
    if checked is not None or not codec.has_outcome(command):
        return checked
    transaction = codec.decode_transaction(command)
    operations = (*transaction.success, *transaction.failure)
    if any(isinstance(each, Expire) for each in operations):
        raise WireError("a call to let keys expire, which only a leader does")
    return transaction


class _Ending:
    """How a call of *size* commands ends, in parts, in whichever order they come."""

    def __init__(self, term: int, size: int, answer: Ask) -> None:
        self._term = term
        self._answer = answer
        self._lock = threading.Lock()  # guards the number
        self._missing = size

    def tell(self, start: int, stop: int, ended: Committed | ConureError) -> None:
        """Answer the commands *start* to *stop*. Any thread."""
        if isinstance(ended, ConureError):
            self._give(AnswerKind.FAILED, encode_error(ended), start, stop)
            return
        outcomes: list[tuple[int, bytes]] = []
        taken = 0
        for position in range(start, stop) if ended.outcomes else ():
            outcome = ended.outcomes.get(ended.first + position)
            if outcome is None:
                continue
            if taken > _ANSWER_BYTES:
                body = encode_outcomes(ended.first, outcomes)
                self._give(AnswerKind.COMMITTED, body, start, position)
                start, taken, outcomes = position, 0, []
            encoded = codec.encode_outcome(outcome)
            outcomes.append((position, encoded))
            taken += len(encoded)
        body = encode_outcomes(ended.first, outcomes)
        self._give(AnswerKind.COMMITTED, body, start, stop)

    def _give(self, kind: AnswerKind, body: bytes, start: int, stop: int) -> None:
        with self._lock:  # until it is on its way, or another thread's would be the last one
            self._missing -= stop - start
            self._answer(Answer(kind, self._term, body, start, stop, not self._missing))


def _text(facts: dict[str, Any], name: str) -> str:
    text = facts.get(name)
    if not isinstance(text, str) or len(text) > 512 or not text.isprintable():
        raise WireError(f"a change of members without a proper {name}")
    return text


def _flag(facts: dict[str, Any], name: str) -> bool:
    value = facts.get(name)
    if not isinstance(value, bool):
        raise WireError(f"a change of members without a proper {name}")
    return value


def _size(facts: dict[str, Any]) -> int:
    size = facts.get("size")
    if type(size) is not int or not (size == 0 or 2 <= size <= MAX_QUORUM_SIZE):
        raise WireError("a change of the quorum size without a proper one")
    return size


def _role(facts: dict[str, Any]) -> str:
    role = _text(facts, "role")
    if role not in _ROLES:
        raise WireError("a change of members without a proper role")
    return role
