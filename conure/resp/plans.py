"""Data commands carried out: what a verb has planned is read, or proposed as one entry of the log.

A plan that only reads is answered by reads of the service, and its results are worked out from the
records that are found. Any other is one sequential transaction (commands.Sequential). A read that
comes while writes of its connection are unanswered is proposed with them, as a step that reads: so
a pipeline of both is one batch.

A reply that takes long is written in turns with all else that the reactor does (Plan.takes_long):
so many of them hold up nobody.

The reactor's thread only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from conure.commands import READ_BYTES, Committed, Compare, Outcome
from conure.errors import ConureError
from conure.net.reactor import Reactor
from conure.resp.answers import Answers
from conure.resp.connection import RespConnection
from conure.resp.failures import error_text
from conure.resp.replies import Replies
from conure.resp.table import READS, WRITES, Command
from conure.resp.verb import Context, Plan, ReplyError, Verb
from conure.resp.waiters import LONG, Pending, begin
from conure.resp.words import TOO_MUCH
from conure.service.backend import Found, Record
from conure.service.limits import STEPS_AT_ONCE, Limits
from conure.service.promises import Promise
from conure.service.requests import Desk
from conure.service.turns import Turns
from conure.steps import Done, Step, evaluate, reads_only

__all__ = ["Plans", "Proposed"]

_MOST_KEYS = 2_000
"""Keys that a command may read; so many are read in one go."""

_UNREAD = "TRYAGAIN the read was not answered, try again"
"""What a read is told whose entry may or may not be in the log: nothing has happened by it."""


class Plans:
    """Carries plans out."""

    def __init__(
        self, reactor: Reactor, desk: Desk[Pending], answers: Answers, limits: Limits
    ) -> None:
        self._desk = desk
        self._answers = answers
        self._reactor = reactor
        self._limits = limits
        self._context = Context(limits, 0)
        self._round = 0.0  # whose time stands in that

    def command_of(self, verb: Verb) -> Command:
        """Return the row of the table for a verb."""
        is_write = "readonly" not in verb.flags
        return Command(
            verb.name.replace(" ", "|"),
            verb.arity,
            partial(self.write if is_write else self.read, verb),
            verb.summary,
            flags=verb.flags,
            group=verb.group,
            since=verb.since,
            keys=verb.keys,
            lane=WRITES if is_write else READS,
            join=None if is_write else partial(self.write, verb),
            plan=partial(self.plan, verb),
        )

    def plan(self, verb: Verb, words: Sequence[bytes]) -> Plan:
        """Return what a command asks of the store. Raises ReplyError."""
        now = self._reactor.now
        if now != self._round:  # one time for a round is exact enough
            self._round = now
            self._context = Context(self._limits, self._desk.backend.time())
        return verb.plan(words[verb.name.count(" ") + 1 :], self._context)

    def read(self, verb: Verb, client: RespConnection, words: list[bytes]) -> None:
        """Do a command that only reads."""
        plan = self._planned(verb, client, words)
        if plan is None:
            return
        assert reads_only(plan.steps), verb.name
        if len(plan.steps) > _MOST_KEYS:
            client.fail(f"ERR too many keys, the limit is {_MOST_KEYS}")
            return
        pending = _PlannedReads(client, plan, client.replies(), self._desk.backend.time)
        client.begin(pending)
        try:
            keys = [step.key for step in plan.steps]
            self._desk.get_all(pending, keys, client.session.freshness)
        except ConureError as error:
            pending.fail_all(self._answers.text_of(error))

    def write(self, verb: Verb, client: RespConnection, words: list[bytes]) -> None:
        """Do a command as one entry of the log, one that reads, too."""
        plan = self._planned(verb, client, words)
        if plan is not None:
            pending = _PlannedSteps(client, plan)
            self.propose(client, pending, plan.steps)

    def propose(
        self,
        client: RespConnection,
        pending: Proposed,
        steps: Sequence[Step],
        compares: Sequence[Compare] = (),
    ) -> None:
        """Have steps done as one entry of the log, if all comparisons hold."""
        client.begin(pending)
        turns = self._take(pending, steps, compares)
        if len(steps) > STEPS_AT_ONCE:
            pending.is_alone = True
            begin(pending, turns)
            return
        try:
            must_wait = any(turns)
        except ConureError as error:
            pending.fail(self._answers.text_of(error))
            return
        if must_wait:  # for what others read; nothing may overtake it meanwhile
            pending.is_alone = True
            begin(pending, turns)

    def _take(self, pending: Proposed, steps: Sequence[Step], compares: Sequence[Compare]) -> Turns:
        promise = self._desk.promise_steps(steps)
        yield from self._desk.sequence(pending, steps, compares, promise, None)
        pending.promise = promise

    def _planned(self, verb: Verb, client: RespConnection, words: list[bytes]) -> Plan | None:
        """Return what a command asks of the store; None if it has its reply."""
        try:
            plan = self.plan(verb, words)
        except ReplyError as error:
            client.fail(str(error))
            return None
        if plan.steps:
            return plan
        replies = client.replies()
        plan.reply((), replies)
        client.reply(replies.take())
        return None


class _PlannedReads(Pending):
    """Reads of one command, bounded as those of an entry are: of each only its result is kept."""

    __slots__ = ("_done", "_next", "_plan", "_read", "_replies", "_text", "_time")

    def __init__(
        self,
        client: RespConnection,
        plan: Plan,
        replies: Replies,
        time: Callable[[], int],
    ) -> None:
        super().__init__(client, len(plan.steps))
        self._plan = plan
        self._replies = replies
        self._time = time
        self._next = 0  # the step whose record comes next
        self._done: list[Done] = []
        self._read = 0  # bytes of values in them
        self._text = ""  # of the first error

    def take_found(self, records: Sequence[Found]) -> None:
        steps = self._plan.steps[self._next : self._next + len(records)]
        self._next += len(records)
        found: list[Record | None] = []
        for record in records:
            if isinstance(record, ConureError):
                self._text = self._text or error_text(record)
            else:
                found.append(record)
        if not self._text:
            self._keep(evaluate(steps, found, self._time()))
        self._end(len(records))

    def fail(self, error: str) -> None:
        self._next += 1
        self._text = self._text or error
        self._end(1)

    def _keep(self, done: list[Done]) -> None:
        self._done += done
        for value in [each.value for each in done if each.value is not None]:
            if self._read >= READ_BYTES:
                self._text = TOO_MUCH
                self._done = []
                self.unpark()
                return
            self._read += len(value)
            if len(value) > LONG:
                self.hold(len(value))

    def fail_all(self, text: str) -> None:
        """Take an error in the place of all answers."""
        self._text = text
        self._end(self.missing)

    def _end(self, count: int) -> None:
        if count == self.missing:
            if self._plan.takes_long and not self._text:
                begin(self, self._answer_in_turn(count))
                return
            self._answer()
        self.done(count)

    def _answer_in_turn(self, count: int) -> Turns:
        self._answer()
        self.done(count)
        yield False

    def _answer(self) -> None:
        if self._text:
            self._replies.error(self._text)
        else:
            self._plan.reply(self._done, self._replies)
        self._done = []
        self.unpark()
        self.pieces.append(self._replies.take())


class Proposed(Pending):
    """Steps that are proposed; *promise* is let go when they are answered, by *replies*."""

    __slots__ = ("promise", "replies")

    def __init__(self, client: RespConnection) -> None:
        super().__init__(client)
        self.promise: Promise | None = None
        self.replies = client.replies()

    def take_written(self, count: int, first: int, ended: Committed) -> None:
        assert count == 1, count
        self.tell(self.show(ended.outcomes[first]))

    def tell(self, steps: Iterator[None]) -> None:
        """Reply with what *steps* write, in turns if that takes long."""
        if self.takes_long:
            begin(self, self._show_in_turns(steps))
        else:
            for _ in steps:
                pass
            self._end()

    def fail(self, error: str) -> None:
        is_unread = error.startswith("UNKNOWN ") and not self.may_change()
        super().fail(_UNREAD if is_unread else error)
        self._let_go()

    @abstractmethod
    def may_change(self) -> bool:
        """Tell whether a step may change anything."""

    takes_long: bool
    """Whether the reply is written in turns."""

    @abstractmethod
    def show(self, outcome: Outcome) -> Iterator[None]:
        """Write the reply for an outcome; yield where something else may have its turn."""

    def _show_in_turns(self, steps: Iterator[None]) -> Turns:
        for _ in steps:
            yield False
        self._end()

    def _end(self) -> None:
        self.finish(self.replies.take())
        self._let_go()

    def _let_go(self) -> None:
        if self.promise is not None:
            self.promise.let_go()
            self.promise = None


class _PlannedSteps(Proposed):
    """The steps of one command."""

    __slots__ = ("_plan", "takes_long")

    def __init__(self, client: RespConnection, plan: Plan) -> None:
        super().__init__(client)
        self._plan = plan
        self.takes_long = plan.takes_long

    def may_change(self) -> bool:
        return not reads_only(self._plan.steps)

    def show(self, outcome: Outcome) -> Iterator[None]:
        self._plan.reply(outcome.done, self.replies)
        yield
