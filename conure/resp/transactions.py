"""MULTI, EXEC, DISCARD, WATCH and UNWATCH: commands queued, and done as one entry of the log.

Between MULTI and EXEC a data command is planned and queued; EXEC proposes the steps of all plans as
one sequential transaction. A key that is watched is a comparison of its revision, that of a key
which isn't there is 0: if one doesn't hold, nothing is done and EXEC is answered by null. What asks
nothing of the store (PING, CLIENT …) is done when EXEC is answered.

A command that can't be queued makes EXEC fail (EXECABORT). One whose words make no plan is an error
in its place of EXEC's array, as in Redis, and the others are done. CLIENT REPLY takes effect at its
place, as in Redis: an array of which replies are silenced has fewer of them than it says.

What is queued or watched counts with what is arriving (``Reactor.arriving``) as long as it is kept,
so that thousands of clients that queue and never end can't have all memory. Half of what may be
arriving is left to what does arrive: that has to end in time, and a transaction hasn't.

The reactor's thread only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conure.commands import READ_BYTES, Compare, Outcome, Relation, Target
from conure.errors import ConureError
from conure.resp.answers import Answers
from conure.resp.connection import RespConnection
from conure.resp.failures import INTERNAL, error_reply, error_text
from conure.resp.grammar import WORD_PRICE
from conure.resp.limits import Limits
from conure.resp.plans import Plans, Proposed
from conure.resp.replies import OK
from conure.resp.table import MOST_WORDS, READS, WRITES, Command
from conure.resp.verb import Plan, ReplyError
from conure.resp.waiters import Pending
from conure.resp.words import TOO_MUCH
from conure.resp.words import keys as valid_keys
from conure.service.backend import Found
from conure.service.requests import Desk
from conure.steps import Done, Step, reads_only

__all__ = ["Transactions"]

_QUEUED = b"+QUEUED\r\n"
_AT_ONCE = 128  # replies that are written in one go
_FEW = 16  # commands that ask nothing of the store, done in one go
_TOO_MUCH_HELD = "TRYAGAIN too much is queued or watched by clients, try again shortly"
_TOO_LARGE = "ERR the transaction is too large, the limit is {:,} {}"


class _Queue:
    """What MULTI has begun: plans, errors in the place of plans, and commands with their words."""

    __slots__ = ("bytes", "held", "is_aborted", "items", "steps")

    def __init__(self) -> None:
        self.items: list[Plan | bytes | tuple[Command, list[bytes]]] = []
        self.steps: list[Step] = []
        self.bytes = 0
        self.held = 0  # of these, as the reactor counts them
        self.is_aborted = False

    @property
    def size(self) -> int:
        """How many commands are queued."""
        return len(self.items)


class Transactions:
    """The commands, and what others mean in sessions that aren't plain."""

    def __init__(self, desk: Desk[Pending], answers: Answers, plans: Plans, limits: Limits) -> None:
        self._desk = desk
        self._answers = answers
        self._plans = plans
        self._limits = limits

    def commands(self) -> list[Command]:
        """Return the rows of the table."""
        flags = frozenset({"noscript", "loading", "stale", "fast"})
        return [
            Command("multi", 1, self._multi, "Starts a transaction.", flags=flags,
                    group="transactions", since="1.2.0", in_multi="now"),
            Command("exec", 1, self._exec, "Executes all commands in a transaction.",
                    flags=flags | {"skip_slowlog"}, group="transactions", since="1.2.0",
                    in_multi="now", lane=WRITES),
            Command("discard", 1, self._discard, "Discards a transaction.", flags=flags,
                    group="transactions", since="2.0.0", in_multi="now"),
            Command("watch", -2, self._watch, "Monitors changes to keys for a transaction.",
                    flags=flags, group="transactions", since="2.2.0", keys=(1, -1, 1),
                    in_multi="now", lane=READS, most=4 * MOST_WORDS),
            Command("unwatch", 1, self._unwatch, "Forgets about watched keys.",
                    flags=flags, group="transactions", since="2.2.0"),
        ]  # fmt: skip

    # -- what others mean (frontend.Modes) -------------------------------------------------------

    def take(self, client: RespConnection, command: Command, words: list[bytes]) -> bool:
        """Do what a command means in a session that isn't plain; False if that is as ever."""
        queue = client.session.transaction
        if not isinstance(queue, _Queue) or command.in_multi == "now":
            return False
        text = self._why_not(client, queue, command, words)
        if text:
            queue.is_aborted = True
            client.fail(text)
            return True
        if command.plan is None:
            queue.items.append((command, words))
        else:
            try:
                plan = command.plan(words)
                queue.items.append(plan)
                queue.steps += plan.steps
            except ReplyError as error:
                queue.items.append(error_reply(str(error)))
        if len(queue.steps) > self._limits.max_queued:
            queue.is_aborted = True
            self._empty(client, queue)
            client.fail(_TOO_LARGE.format(self._limits.max_queued, "steps"))
            return True
        client.reply(_QUEUED)
        return True

    def abort(self, client: RespConnection) -> None:
        """Note that a command was refused: EXEC will be, too."""
        queue = client.session.transaction
        if isinstance(queue, _Queue):
            queue.is_aborted = True

    def leave(self, client: RespConnection) -> None:
        """Forget what a client has begun."""
        queue = client.session.transaction
        if isinstance(queue, _Queue):
            self._empty(client, queue)
        client.session.transaction = None
        self._forget_watched(client)

    def _why_not(
        self, client: RespConnection, queue: _Queue, command: Command, words: list[bytes]
    ) -> str:
        """Return the error for what can't be queued; empty if it can."""
        if command.in_multi == "refuse":
            return f"ERR {command.name.upper()} is not allowed inside a transaction"
        size = _size_of(words)
        queue.bytes += size
        if queue.bytes > self._limits.max_command_bytes:
            self._empty(client, queue)
            return _TOO_LARGE.format(self._limits.max_command_bytes, "bytes")
        if len(queue.items) >= self._limits.max_queued:
            self._empty(client, queue)
            return _TOO_LARGE.format(self._limits.max_queued, "commands")
        if not _has_room(client, size):
            self._empty(client, queue)
            return _TOO_MUCH_HELD
        queue.held += size
        client.reactor.arriving += size
        return ""

    def _empty(self, client: RespConnection, queue: _Queue) -> None:
        """Let go of what is queued."""
        queue.items, queue.steps = [], []
        client.reactor.arriving -= queue.held
        queue.held = 0

    # -- the commands ----------------------------------------------------------------------------

    def _multi(self, client: RespConnection, _: list[bytes]) -> None:
        session = client.session
        if session.transaction is not None:
            client.fail("ERR MULTI calls can not be nested")
            return
        session.transaction = _Queue()
        session.refresh()
        client.reply(OK)

    def _discard(self, client: RespConnection, _: list[bytes]) -> None:
        if client.session.transaction is None:
            client.fail("ERR DISCARD without MULTI")
            return
        self._end(client)
        client.reply(OK)

    def _exec(self, client: RespConnection, _: list[bytes]) -> None:
        session = client.session
        queue = session.transaction
        if not isinstance(queue, _Queue):
            client.fail("ERR EXEC without MULTI")
            return
        watched, items, steps = session.watched, queue.items, queue.steps
        self._end(client)
        if queue.is_aborted:
            client.fail("EXECABORT Transaction discarded because of previous errors.")
            return
        pending = _Executed(client, items)
        if not (steps or watched):
            client.begin(pending)
            pending.tell(pending.show_items(()))
            return
        compares = [
            Compare(key, Target.MOD_REVISION, Relation.EQUAL, revision)
            for key, revision in watched.items()
        ]
        self._plans.propose(client, pending, steps, compares)

    def _watch(self, client: RespConnection, words: list[bytes]) -> None:
        session = client.session
        if session.transaction is not None:
            client.fail("ERR WATCH inside MULTI is not allowed")
            return
        try:
            known = session.watched
            keys = [key for key in dict.fromkeys(valid_keys(words[1:])) if key not in known]
        except ReplyError as error:
            client.fail(str(error))
            return
        if len(session.watched) + len(keys) > self._limits.max_watched:
            client.fail(f"ERR too many keys are watched, the limit is {self._limits.max_watched:,}")
            return
        if not keys:
            client.reply(OK)
            return
        size = _size_of(keys)
        if not _has_room(client, size):
            client.fail(_TOO_MUCH_HELD)
            return
        session.watched_bytes += size
        client.reactor.arriving += size
        session.begin_watching()
        pending = _Watching(client, keys)
        client.begin(pending)
        try:
            self._desk.get_all(pending, keys)
        except ConureError as error:
            for _ in keys:
                pending.fail(self._answers.text_of(error))

    def _unwatch(self, client: RespConnection, _: list[bytes]) -> None:
        self._forget_watched(client)
        client.reply(OK)

    def _end(self, client: RespConnection) -> None:
        self.leave(client)
        client.session.refresh()

    def _forget_watched(self, client: RespConnection) -> None:
        session = client.session
        client.reactor.arriving -= session.watched_bytes
        session.watched_bytes = 0
        session.end_watching()


def _size_of(words: Sequence[bytes]) -> int:
    return sum(map(len, words)) + len(words) * WORD_PRICE


def _has_room(client: RespConnection, size: int) -> bool:
    """Tell whether so much more may be kept of what clients have begun.

    ``size`` is of a command that may have arrived in pieces: those are not counted twice.
    """
    reactor = client.reactor
    return reactor.arriving - client.parked + size <= reactor.bounds.max_arriving_bytes // 2


class _Watching(Pending):
    """Reads the revisions of the keys of one WATCH."""

    __slots__ = ("_error", "_keys", "_watched")

    def __init__(self, client: RespConnection, keys: list[bytes]) -> None:
        super().__init__(client, len(keys))
        self._keys = iter(keys)
        self._watched = client.session.watched
        self._error = ""

    def take_found(self, records: Sequence[Found]) -> None:
        for record in records:
            key = next(self._keys)
            if isinstance(record, ConureError):
                self._error = error_text(record)
            else:
                revision = 0 if record is None else record.mod_revision
                self._watched.setdefault(key, revision)  # of the first WATCH, if there are two
        self._note(len(records))

    def fail(self, error: str) -> None:
        self._error = error
        self._note(1)

    def _note(self, count: int) -> None:
        if count == self.missing:
            self.pieces.append(error_reply(self._error) if self._error else OK)
        self.done(count)


class _Executed(Proposed):
    """An EXEC whose steps are proposed, if there are any."""

    __slots__ = ("_connection", "_items", "takes_long")

    def __init__(
        self,
        client: RespConnection,
        items: list[Plan | bytes | tuple[Command, list[bytes]]],
    ) -> None:
        super().__init__(client)
        self._connection = client
        self._items = items
        others = [item for item in items if not isinstance(item, Plan | bytes)]
        self.is_alone = bool(others)  # they may change what later commands mean
        slow = any(isinstance(item, Plan) and item.takes_long for item in items)
        self.takes_long = slow or len(others) > _FEW or len(items) > _AT_ONCE

    def may_change(self) -> bool:
        plans = [item for item in self._items if isinstance(item, Plan)]
        return not all(reads_only(plan.steps) for plan in plans)

    def show(self, outcome: Outcome) -> Iterator[None]:
        if outcome.succeeded:
            yield from self.show_items(outcome.done)
        else:
            self.replies.null_array()

    def show_items(self, done: Sequence[Done]) -> Iterator[None]:
        """Write the array of what came of each command, given that of all steps; yield after each
        that may take long."""
        client, replies = self._connection, self.replies
        replies.array_of(len(self._items))
        start = size = 0
        for number, item in enumerate(self._items, 1):
            if not number % _AT_ONCE:
                yield
            is_silent = client.session.silent
            if isinstance(item, bytes):
                if not is_silent:
                    replies.raw(item)
            elif isinstance(item, Plan):
                stop = start + len(item.steps)
                if not is_silent:
                    item.reply(done[start:stop], replies)
                start = stop
                if item.takes_long:
                    yield
            elif size >= READ_BYTES:
                replies.error(TOO_MUCH)
            else:
                command, words = item
                reply = client.capture(command.handle, words)
                if not (reply or client.session.silent or client.session.skips):
                    reply = error_reply(INTERNAL)
                if not (is_silent and client.session.silent):  # CLIENT REPLY ON has one
                    replies.raw(reply)
                size += len(reply)
                yield
