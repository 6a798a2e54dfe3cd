"""Clients in the fake world that do more than put, get and delete: all of commands.py.

Each kind of request has keys of its own, so that something happens on them; conditional puts and
transactions also meet the plain writes of the others, whose keys they share:

============ ===================================================================================
``a`` … ``d`` conditional puts and transactions over several keys
``n``        increments that are sent once
``o``        idempotent increments: sent until they are answered, and sometimes once more or
             twice at a time, at any nodes
``q`` ``r``  sequential transactions over both
``t`` ``u``  puts with a time to live, touches, idempotent transactions over both
``x`` ``y``  locks of sessions, which are renewed, ended, and forgotten
============ ===================================================================================

All that was answered is kept as calls for ``linearizability.check_calls``. Two promises are checked
without the model as well: an idempotent increment has counted once, and who acquires a key has a
greater fencing token than any other session before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from conure.cluster.node import Node
from conure.commands import (
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    Get,
    Increment,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Release,
    RenewSession,
    Sequential,
    Target,
    Touch,
    Transaction,
)
from conure.errors import ConureError, OutcomeUnknown
from conure.steps import (
    KEPT,
    WHEN_ABSENT,
    Add,
    Append,
    Check,
    Erase,
    Expiry,
    Lapse,
    Life,
    Move,
    Read,
    Step,
    Write,
)
from conure.storage.engine import Record
from tests.lab.linearizability import DELETE, PUT, Call, Seen, check_calls
from tests.lab.linearizability import Operation as Register
from tests.lab.model import Command, Model
from tests.sim.registers import PlainClients
from tests.sim.requests import Account, Done, Reply, Requests, write
from tests.sim.world import Lost, Pending, Process, World

__all__ = ["Clients"]

ONCE, EXACTLY_ONCE = b"n", b"o"
MORTAL = (b"t", b"u")
STEPPED = (b"q", b"r")
LOCKS = (b"x", b"y")
MANY_TIMES = 12  # a sequence of steps that is to be a long one
SESSIONS = 6  # as many are remembered, the oldest of which may have ended long ago
LONG, SHORT = 3_600_000_000, 300  # milliseconds for which outcomes are remembered


class Clients:
    """What they do, and what they know of it. Plain writes they leave to *plain*."""

    def __init__(
        self, world: World, requests: Requests, account: Account, plain: PlainClients
    ) -> None:
        self._world = world
        self._requests = requests
        self._account = account
        self._plain = plain
        self._begun_at: dict[Transaction, int] = {}  # all that were sent, as of the first time
        self._refused: set[Transaction | Sequential] = set()
        self._sequences: set[Sequential] = set()  # all that were sent
        self._numbers = 0
        self._seen_revision: dict[bytes, int] = {}
        self._sessions: list[bytes] = []
        self._repeatable: list[Transaction] = []  # of late, with an idempotency key
        self._counted: dict[bytes, int] = {}  # answers to idempotent increments
        self._begun = 0  # idempotent increments

    # -- requests --------------------------------------------------------------------------------

    def client(self, number: int) -> Process:
        """Do this and that until the faults end."""
        world, rng = self._world, self._world.rng
        actions = [
            self._put_if_unchanged,
            self._transact,
            self._count,
            self._count_once,
            self._let_expire,
            self._use_session,
            self._look,
            self._take_steps,
        ]
        while not world.mending:
            yield rng.expovariate(1 / world.luck.think)
            yield from rng.choice(actions)(number)

    def count_to_the_end(self, number: int) -> Process:
        """Send an idempotent increment until it is answered."""
        yield from self._submit(number, self._increment_once(), attempts=10_000)

    def _insist(self, number: int, wanted: Transaction, attempts: int) -> Process:
        yield from self._submit(number, wanted, attempts=attempts)

    def _put_if_unchanged(self, number: int) -> Process:
        world = self._world
        key = world.rng.choice(self._account.keys)
        revision = self._seen_revision.get(key, 0)
        compare = Compare(key, Target.MOD_REVISION, Relation.EQUAL, revision)
        wanted = self._transaction([compare], [Put(key, self._account.new_value())], [Get(key)])
        answer = yield from self._submit(number, wanted)
        if answer is not None:
            world.counts["conditional puts" if answer.succeeded else "failed conditions"] += 1
            self._seen_revision[key] = answer.revision if answer.succeeded else answer.current

    def _transact(self, number: int) -> Process:
        """Write some keys, together and under a condition; or read them together."""
        rng = self._world.rng
        keys = rng.sample(self._account.keys, min(len(self._account.keys), rng.choice([2, 2, 3])))
        compare = Compare(
            rng.choice(keys),
            rng.choice([Target.VERSION, Target.CREATE_REVISION]),
            rng.choice([Relation.GREATER, Relation.LESS]),
            rng.choice([0, 1, 3]),
        )
        operations: list[Operation] = [
            Delete(key) if rng.random() < 0.2 else Put(key, self._account.new_value())
            for key in keys
        ]
        reads: list[Operation] = [Range(b"", None, 10), *map(Get, keys)]
        wanted = self._transaction([compare], operations, reads)
        yield from self._submit(number, wanted)

    def _take_steps(self, number: int) -> Process:
        """Do some steps one after the other, or nothing if a key has changed."""
        world, rng = self._world, self._world.rng
        one, other = rng.sample(STEPPED, 2)
        steps: list[Step] = [
            Write(one, self._account.new_value(), expiry=Expiry(Life.TTL, rng.randint(1, 2_000))),
            Write(one, b"%d" % rng.randint(0, 9), expiry=KEPT),
            Check(one, WHEN_ABSENT, 1),
            Write(other, b"0"),
            Add(one, 1),
            Append(other, b"5"),
            Move(one, other),
            Move(other, one, replaces=False, copies=True),
            Lapse(one, Expiry(Life.TTL, rng.randint(-5, 900))),
            Erase(other),
        ]
        chosen = tuple(rng.sample(steps, rng.randint(1, 5)))
        chosen *= rng.choice([1, 1, 1, MANY_TIMES])  # so many that they take turns
        revision = self._seen_revision.get(one, 0)
        compare = Compare(one, Target.MOD_REVISION, Relation.EQUAL, revision)
        compares = (compare,) if rng.random() < 0.3 else ()
        self._numbers += 1
        told = b"%d" % self._numbers
        steps_and_reads: tuple[Step, ...] = (*chosen, Read(one), Read(other))
        if rng.random() < 0.2:  # what is done in one pass
            steps_and_reads = tuple(Write(key, self._account.new_value()) for key in (one, other))
        wanted = Sequential(compares, steps_and_reads, 1 << 16, fingerprint=told)
        self._sequences.add(wanted)
        begun = self._account.next_moment()
        (answer,) = yield self._requests.send(
            self._requests.machine_for(number), write([wanted], passes_on=world.luck.forward)
        )
        self._requests.learn(number, answer)
        if isinstance(answer, Done):
            assert answer.outcome is not None
            world.counts["sequences" if answer.outcome.succeeded else "failed conditions"] += 1
            self._account.note(Call(number, begun, 0, answer.revision, wanted, answer.outcome))
            if not answer.outcome.succeeded:
                self._seen_revision[one] = answer.outcome.current
        elif not isinstance(answer, (Lost, OutcomeUnknown)):
            self._refused.add(wanted)

    def _count(self, number: int) -> Process:
        yield from self._submit(number, self._transaction([], [Increment(ONCE, 1)]))

    def _count_once(self, number: int) -> Process:
        """Send an increment often; or another request under the key of an earlier one."""
        rng = self._world.rng
        if self._repeatable and rng.random() < 0.2:
            again = rng.choice(self._repeatable)
            if rng.random() < 0.5:
                again = again._replace(fingerprint=b"other than " + again.fingerprint)
            yield from self._submit(number, again)
            return
        wanted = self._increment_once()
        if rng.random() < 0.3:  # by two connections at a time
            self._world.start(self._insist(-number, wanted, rng.randint(1, 4)))
        yield from self._submit(number, wanted, attempts=rng.randint(1, 8))

    def _let_expire(self, number: int) -> Process:
        rng = self._world.rng
        key = rng.choice(MORTAL)
        ttl = rng.choice([1, 50, 300, 2000])
        chance = rng.random()
        operations: list[Operation]
        if chance < 0.4:
            operations = [Put(key, self._account.new_value(), ttl, keep_ttl=rng.random() < 0.2)]
        elif chance < 0.6:
            operations = [Touch(key, rng.choice([0, ttl, ttl]))]
        elif chance < 0.7:
            operations = [DeleteRange(MORTAL[0], b"v", rng.randint(0, 2)), Get(key)]
        elif chance < 0.8:
            yield from self._plain.write(number, [(key, self._account.new_value())])
            return
        else:
            puts = [Put(each, self._account.new_value(), ttl) for each in MORTAL]
            window = rng.choice([SHORT, LONG])
            wanted = self._transaction([], puts, [], b"puts", window)
            yield from self._submit(number, wanted, attempts=rng.randint(1, 5))
            return
        yield from self._submit(number, self._transaction([], operations))

    def _use_session(self, number: int) -> Process:
        """Do something with some session; or begin one, hold a key for a while, and let go."""
        rng = self._world.rng
        lock = rng.choice(LOCKS)
        value = self._account.new_value() if rng.random() < 0.5 else None
        if not self._sessions or rng.random() < 0.3:
            self._numbers += 1
            session = b"session %d" % self._numbers
            self._sessions = [*self._sessions, session][-SESSIONS:]
            ttl = rng.choice([200, 1000, 4000])
            yield from self._ask(number, OpenSession(session, ttl, rng.random() < 0.5, b""))
            yield from self._ask(number, Acquire(lock, session, value))
            yield rng.choice([0.01, 0.1, 0.3])
            if rng.random() < 0.5:
                yield from self._ask(number, RenewSession(session))
            yield from self._ask(number, Release(lock, session, value))
        else:
            session = rng.choice(self._sessions)
            choices: list[Operation] = [
                Acquire(lock, session, value),
                Release(lock, session, value),
                RenewSession(session),
                EndSession(session),
            ]
            yield from self._ask(number, rng.choices(choices, [5, 1, 2, 1])[0])

    def _ask(self, number: int, operation: Operation) -> Process:
        answer = yield from self._submit(number, self._transaction([], [operation]))
        if answer is not None and answer.refusal is not Refusal.NONE:
            self._world.counts["locks and sessions refused"] += 1

    def _look(self, number: int) -> Process:
        """Read what is not a plain value, from anywhere."""
        rng = self._world.rng
        kind = rng.choice(["key", "key", "session", "range"])
        key: Any = rng.choice([*MORTAL, *LOCKS, ONCE, EXACTLY_ONCE])
        if kind == "session":
            key = rng.choice(self._sessions) if self._sessions else b"none"
        elif kind == "range":
            key = (b"", rng.choice([None, b"t"]))
        is_stale = rng.random() < 0.3
        call = partial(_look, kind, key, is_stale, self._world.luck.forward)
        begun = self._account.next_moment()
        machine = self._requests.machine_for(number)
        (answer,) = yield self._requests.send(machine, call)
        if isinstance(answer, tuple):
            revision, seen = answer
            self._account.note(Call(number, begun, 0, revision, seen=seen, is_stale=is_stale))
        self._requests.learn(number, answer)

    # -- sending them ----------------------------------------------------------------------------

    def _transaction(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        idempotency_key: bytes = b"",
        window: int = 0,
    ) -> Transaction:
        """Return a transaction that differs from all others, by its fingerprint."""
        self._numbers += 1
        number = b"%d" % self._numbers
        if idempotency_key:
            idempotency_key += number
        return Transaction(
            tuple(compares), tuple(success), tuple(failure), 0, idempotency_key, number, window
        )

    def _increment_once(self) -> Transaction:
        self._begun += 1
        return self._transaction([], [Increment(EXACTLY_ONCE, 1)], [], b"count", LONG)

    def _submit(
        self, number: int, wanted: Transaction, *, attempts: int = 1
    ) -> Generator[float | Pending, Any, Outcome | None]:
        """Send a transaction, again and again as far as allowed; return how it ended, if known."""
        world, rng = self._world, self._world.rng
        if wanted.idempotency_key and wanted not in self._begun_at:
            self._repeatable = [*self._repeatable, wanted][-5:]
        begun = self._begun_at.setdefault(wanted, self._account.next_moment())
        registers = _Registers(self._account, number, wanted)
        found: Outcome | None = None
        for attempt in range(attempts):
            (answer,) = yield self._requests.send(
                self._requests.machine_for(number), write([wanted], passes_on=world.luck.forward)
            )
            self._requests.learn(number, answer)
            if isinstance(answer, Done):
                assert answer.outcome is not None
                world.counts["transactions"] += 1
                world.counts["repetitions"] += answer.outcome.repeated
                found = answer.outcome
                self._account.note(Call(number, begun, 0, answer.revision, wanted, found))
                self._compare_answers(wanted, found)
                if attempts > 1 and rng.random() < 0.2:
                    continue  # as if the answer had been lost
                break
            if isinstance(answer, (Lost, OutcomeUnknown)):
                world.counts["unknown transactions"] += 1
            elif attempts == 1 and not wanted.idempotency_key:
                self._refused.add(wanted)
                registers.forget()
            if attempt < attempts - 1:
                yield 0.05 * rng.random()
        if found is not None:
            registers.ended(found)
        return found

    def _compare_answers(self, wanted: Transaction, outcome: Outcome) -> None:
        """See that an idempotent increment is always told the same number, and no other is."""
        if outcome.refusal or wanted.success != (Increment(EXACTLY_ONCE, 1),):
            return
        number = outcome.results[0].number
        first = self._counted.setdefault(wanted.idempotency_key, number)
        self._world.expect(first == number, f"{wanted} counted {first}, then {number}")

    # -- what has to be true in the end ------------------------------------------------------------

    def check(self, log: Mapping[int, Command], leader: Node) -> Model:
        """See that the log explains every answer, and what can be told without it."""
        expect = self._world.expect
        for command in log.values():
            if isinstance(command, Transaction) and command.fingerprint:
                is_known = command._replace(time=0) in self._begun_at
                expect(is_known, f"nobody has sent {command}")
            if isinstance(command, Sequential):
                is_known = command._replace(time=0) in self._sequences
                expect(is_known, f"nobody has sent {command}")
        _, (record,) = leader.get_all([EXACTLY_ONCE])
        assert isinstance(record, Record | None)
        total = int(record.value) if record else 0
        numbers = Counter(self._counted.values())
        expect(max(numbers.values(), default=1) == 1, f"two increments are one: {numbers}")
        expect(
            len(self._counted) <= total <= self._begun,
            f"{len(self._counted)} to {self._begun} increments are {total}",
        )
        self._check_tokens()
        return check_calls(self._account.calls, log, self._refused)

    def _check_tokens(self) -> None:
        """See that a fencing token belongs to one session, and that later ones are greater."""
        tokens: dict[bytes, list[tuple[int, int, bytes]]] = {}
        for call in self._account.calls:
            command, outcome = call.command, call.outcome
            if not isinstance(command, Transaction) or outcome is None or outcome.refusal:
                continue
            (operation, *_) = command.success
            if isinstance(operation, Acquire):
                token = outcome.results[0].number
                row = (call.revision, token, operation.session)
                tokens.setdefault(operation.key, []).append(row)
        for key, rows in tokens.items():
            self._world.counts["locks"] += len({token for _, token, _ in rows})
            holders: dict[int, bytes] = {}
            latest = 0
            for _, token, session in sorted(rows):
                self._world.expect(token >= latest, f"{key!r} has token {token} after {latest}")
                first = holders.setdefault(token, session)
                self._world.expect(first == session, f"{first!r} and {session!r} have {token}")
                latest = token


class _Registers:
    """What a transaction does to the keys of plain writes, for the history of those.

    Until its outcome is known, each of its writes may have happened.
    """

    def __init__(self, account: Account, client: int, wanted: Transaction) -> None:
        self._account = account
        self._moments = []
        for operation in wanted.success:
            if isinstance(operation, Put | Delete) and operation.key in account.keys:
                moment = account.next_moment()
                value = operation.value if isinstance(operation, Put) else None
                kind = DELETE if value is None else PUT
                what = Register(client, kind, operation.key, value, moment, None)
                account.registers[moment] = what
                self._moments.append(moment)

    def forget(self) -> None:
        """Nothing has happened."""
        for moment in self._moments:
            del self._account.registers[moment]

    def ended(self, outcome: Outcome) -> None:
        """This has happened."""
        if not outcome.succeeded:
            self.forget()
            return
        history = self._account.registers
        for moment in self._moments:
            history[moment] = replace(history[moment], returned=self._account.next_moment())


def _look(kind: str, key: Any, is_stale: bool, passes_on: bool, node: Node, reply: Reply) -> None:
    def confirmed(error: ConureError | None) -> None:
        try:
            if error is not None:
                raise error
            reply(0, 1, [_looked(kind, key, node)])
        except ConureError as refusal:
            reply(0, 1, [refusal])

    if is_stale:
        confirmed(None)
    else:
        node.confirm_read(confirmed, passes_on=passes_on)


def _looked(kind: str, key: Any, node: Node) -> tuple[int, tuple[Seen, ...]]:
    """Return the revision of a node's state, and what it has of something."""
    if kind == "session":
        index, session = node.session(key)
        return index, (Seen("sessions", key, _or_raise(session)),)
    if kind == "range":
        state = node.pin()
        try:
            return state.index, (Seen("range", key, list(state.items(*key))),)
        finally:
            state.close()
    index, record, holder = node.look(key)
    return index, (Seen("records", key, _or_raise(record)), Seen("locks", key, holder))


def _or_raise(found: Any) -> Any:
    if isinstance(found, ConureError):
        raise found
    return found
