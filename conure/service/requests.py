"""The one service that every front uses: what clients of all protocols may ask of this node.

:class:`Requests` is made once. Each front takes a :class:`Desk` at its construction and hands it
what its clients ask for; what came of it comes back through the methods of ``front.FrontEnd``.

1. Every entry point asks the gate first, with the waiter's caller, what is to be done and to which
   keys. A request that the gate refuses raises Forbidden and has changed nothing.
2. A write is answered after it is committed and applied (R8). A read is answered by what a leader
   has confirmed (R6), or if it says so by this node's own state as it is.
3. Whatever is asked for in a round is committed and confirmed together: rounds.py.

The reactor thread calls the desk, unless a method says otherwise. Nothing here knows a protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Generic

from conure.commands import MAX_HELD, Acquire, Compare, Outcome, Put, Sequential, Transaction
from conure.errors import ConureError, TooManyHeld
from conure.service.backend import Backup, Command, KeyValueBackend
from conure.service.batches import PART_BYTES, PART_LINES, BatchCount, Line
from conure.service.freshness import LINEARIZABLE, STALE, Contact, Freshness
from conure.service.front import FrontEnd, WaiterT
from conure.service.gate import NO_KEYS, Action, AllowAll, Gate, steps_of
from conure.service.limits import STEPS_AT_ONCE, Limits
from conure.service.parts import PartOfRange
from conure.service.promises import Promise, Promises
from conure.service.referral import Referral
from conure.service.rounds import Gathered, Look, Rounds
from conure.service.turns import Turns
from conure.service.watchers import SinkT, Watch, Watchers
from conure.service.workers import Workers
from conure.state import codec
from conure.state.history import Position
from conure.steps import Step, write_all

__all__ = ["Desk", "Opening", "Requests"]


class Requests:
    """What all fronts share: one node, its gate, rounds, workers and watchers."""

    def __init__(
        self,
        backend: KeyValueBackend,
        gate: Gate,
        watchers: Watchers[Any],
        limits: Limits,
        *,
        max_workers: int,
    ) -> None:
        self._backend = backend
        self._gate = None if isinstance(gate, AllowAll) else gate
        self._watchers = watchers
        self._rounds = Rounds(backend)
        self._limits = limits
        self._promises = Promises(limits)
        self._workers = Workers(max_workers)
        self.end_round = self._rounds.end
        """Ends the round of all fronts; see ``Rounds.end``. The reactor thread."""

    def for_front(self, front: FrontEnd[WaiterT], referral: Referral[WaiterT]) -> Desk[WaiterT]:
        """Return the desk of a front. Before the first round."""
        return Desk(
            front,
            referral,
            self._backend,
            self._gate,
            self._rounds,
            self._limits,
            self._promises,
            self._workers,
            self._watchers,
        )


class Desk(Generic[WaiterT]):
    """Where one front hands its requests over. Made by :meth:`Requests.for_front`."""

    def __init__(
        self,
        front: FrontEnd[WaiterT],
        referral: Referral[WaiterT],
        backend: KeyValueBackend,
        gate: Gate | None,
        rounds: Rounds,
        limits: Limits,
        promises: Promises,
        workers: Workers,
        watchers: Watchers[Any],
    ) -> None:
        self._front = front
        self._passes_on = referral.passes_on
        self._gate = gate
        self._rounds = rounds
        self._gathered: Gathered[WaiterT] = rounds.gather(front, passes_on=referral.passes_on)
        self._limits = limits
        self._promises = promises
        self._workers = workers
        self._watchers = watchers
        self.backend = backend
        """This node's own state, for what a :data:`Look` or a worker reads. Any thread."""

    def permit(self, waiter: WaiterT, action: Action, start: bytes, end: bytes | None) -> None:
        """Return if the caller may do what no other method does. Raises Forbidden."""
        if self._gate is not None:
            self._ask_for_range(waiter, action, start, end)

    # -- writes ----------------------------------------------------------------------------------

    def write(self, waiter: WaiterT, command: Command, answer: object = None) -> None:
        """Take a command into this round. *answer*, unless it is None, comes back with its end:
        see ``FrontEnd.written``. Raises Forbidden."""
        if self._gate is not None:
            self._ask(waiter, command)
        gathered = self._gathered
        if answer is not None:
            gathered.answers[len(gathered.commands)] = answer
        gathered.commands.append(command)
        gathered.writers.append(waiter)

    def write_all(self, waiter: WaiterT, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Take plain puts into this round, all of one waiter, whose answers come in the
        same order. Raises Forbidden; nothing is taken then."""
        if self._gate is not None:
            for pair in pairs:
                self._ask(waiter, pair)
        gathered = self._gathered
        gathered.commands += pairs
        gathered.writers += [waiter] * len(pairs)

    def write_together(
        self, waiter: WaiterT, keys: Sequence[bytes], values: Sequence[bytes]
    ) -> None:
        """Take plain puts of STEPS_AT_ONCE keys at most, each there once, into this round as one
        sequential transaction, whose outcome has what came of each put. Who asks has checked each
        key and each value. Raises Forbidden, PayloadTooLarge."""
        self._limits.check_change(sum(map(len, values)))
        longest = self._limits.value_bytes
        if self._gate is not None:
            self._ask(waiter, Sequential((), write_all(keys, values), longest))
        gathered = self._gathered
        gathered.commands.append(codec.encode_writes(keys, values, longest))
        gathered.writers.append(waiter)

    def write_lines(
        self, waiter: WaiterT, lines: Sequence[Line], answer: object, count: BatchCount
    ) -> Turns:
        """Take the lines of a batch into the rounds, a part into each, with the same *answer* for
        each line. Ends early once the *count* of its entries is over. Raises Forbidden."""
        if self._gate is not None:
            for number, (key, value, _) in enumerate(lines, 1):
                self._ask(waiter, (key, value))
                if number % PART_LINES == 0:
                    yield False
        gathered = self._gathered
        taken = size = 0
        for key, value, ttl in lines:
            if taken >= PART_LINES or size >= PART_BYTES:
                taken = size = 0
                yield True  # what there is by now is committed first
                if count.is_over:
                    return
                count.begin()
            gathered.answers[len(gathered.commands)] = answer
            gathered.writers.append(waiter)
            if ttl and value is not None:
                gathered.commands.append(Transaction((), (Put(key, value, ttl),)))
            else:
                gathered.commands.append((key, value))
            taken += 1
            size += len(value or b"")

    def promise(self, transaction: Transaction) -> Promise:
        """Return what a transaction has to be promised, for :meth:`transact`."""
        return self._promises.promise(transaction)

    def transact(
        self, waiter: WaiterT, transaction: Transaction, promise: Promise, answer: object
    ) -> Turns:
        """Take a transaction that may read much into a round, once its *promise* can be made, which
        *answer* has to let go whatever comes of it. Raises Forbidden."""
        yield from self._take(waiter, transaction, transaction, promise, answer)

    def promise_steps(self, steps: Sequence[Step]) -> Promise:
        """Return what steps have to be promised, for :meth:`sequence`."""
        return self._promises.promise_steps(steps)

    def sequence(
        self,
        waiter: WaiterT,
        steps: Sequence[Step],
        compares: Sequence[Compare],
        promise: Promise,
        answer: object,
    ) -> Turns:
        """Take steps into a round as one sequential transaction, likewise: into this one, if
        nothing is yielded. Its outcome has what came of each step, or none of them was done because
        a comparison failed. Raises Forbidden, PayloadTooLarge.

        More than STEPS_AT_ONCE steps take several turns, whether or not they are in this round."""
        for _ in self._limits.check_in_turns(steps, compares):
            yield False
        whole = Sequential(tuple(compares), tuple(steps), self._limits.value_bytes)
        command: Command = whole
        if len(steps) > STEPS_AT_ONCE:
            for part in codec.sequential_in_turns(whole):
                command = part
                yield False
        yield from self._take(waiter, whole, command, promise, answer)

    def _take(
        self,
        waiter: WaiterT,
        transaction: Transaction | Sequential,
        command: Command,
        promise: Promise,
        answer: object,
    ) -> Turns:
        """Take a transaction into a round, as the *command* that it is handed over as."""
        if self._gate is not None:
            self._ask(waiter, transaction)
        while not promise.take(waiter.room):
            yield True
        # Nothing fails from here on, so that the promise is taken back with the answer.
        gathered = self._gathered
        gathered.answers[len(gathered.commands)] = answer
        gathered.commands.append(command)
        gathered.writers.append(waiter)

    def delete_part(
        self,
        waiter: WaiterT,
        whole: Transaction,
        ended: Callable[[Outcome | ConureError], None],
    ) -> None:
        """Delete the first keys of a range, as many as the limit of *whole* says, which deletes
        the whole range. *ended* is told what came of it, by any thread. Raises Forbidden."""
        if self._gate is not None:
            self._ask(waiter, whole)
        write = partial(self.backend.write, kept=0) if self._passes_on else self.backend.write
        part = PartOfRange(self.backend, write, whole, partial(self._delete_again, waiter), ended)
        self._gathered.looks.append((waiter, lambda _: self.work(waiter, part.commit)))

    def check_holdings(self, waiter: WaiterT, session: bytes, key: bytes) -> None:
        """Raise TooManyHeld if a session that is to hold a *key* holds as many others as one may.
        Raises Forbidden, and ConureError."""
        if self._gate is not None:
            self._ask(waiter, Transaction((), (Acquire(key, session, None),)))
        if self.backend.holdings(session, key) >= MAX_HELD:
            raise TooManyHeld(MAX_HELD)

    # -- reads -----------------------------------------------------------------------------------

    def get(self, waiter: WaiterT, key: bytes, freshness: Freshness = LINEARIZABLE) -> None:
        """Take a read of one key into this round; see ``FrontEnd.found``. Raises Forbidden, and
        Unavailable if this node's own state may be too old."""
        if self._gate is not None:
            self._ask_for_range(waiter, Action.READ, key, key + b"\0")
        gathered = self._gathered
        if not freshness.is_stale:
            gathered.keys.append(key)
            gathered.readers.append(waiter)
            return
        if freshness is not STALE:
            freshness.check(Contact(self.backend.last_contact()))
        gathered.stale_keys.append(key)
        gathered.stale_readers.append(waiter)

    def get_all(
        self, waiter: WaiterT, keys: Sequence[bytes], freshness: Freshness = LINEARIZABLE
    ) -> None:
        """Take reads of several keys into this round, all of one waiter, whose answers come in the
        same order. Raises as :meth:`get`; nothing is taken then."""
        if self._gate is not None:
            for key in keys:
                self._ask_for_range(waiter, Action.READ, key, key + b"\0")
        gathered = self._gathered
        if not freshness.is_stale:
            gathered.keys += keys
            gathered.readers += [waiter] * len(keys)
            return
        if freshness is not STALE:
            freshness.check(Contact(self.backend.last_contact()))
        gathered.stale_keys += keys
        gathered.stale_readers += [waiter] * len(keys)

    def look(
        self, waiter: WaiterT, start: bytes, end: bytes | None, freshness: Freshness, look: Look
    ) -> None:
        """Have *look* called, by any thread, when the keys of a range may be read from
        :attr:`backend`: once a leader has confirmed it, or at once. It has to be quick. Raises
        Forbidden."""
        if self._gate is not None:
            self._ask_for_range(waiter, Action.READ, start, end)
        self._look(waiter, freshness, look)

    def look_at_session(self, waiter: WaiterT, freshness: Freshness, look: Look) -> None:
        """Have *look* called likewise, to read a session. Raises Forbidden."""
        if self._gate is not None:
            self._ask_for_range(waiter, Action.SESSION, *NO_KEYS)
        self._look(waiter, freshness, look)

    def wait(
        self,
        waiter: WaiterT,
        key: bytes,
        after: int,
        seconds: float,
        freshness: Freshness,
        look: Look,
    ) -> None:
        """Have *look* called likewise, when a key has changed after a revision, or so many seconds
        are over, or the client has left. Raises ConureError."""
        if self._gate is not None:
            self._ask_for_range(waiter, Action.READ, key, key + b"\0")
        waiter.wait()

        def wait(_: Contact | None) -> None:
            deadline = monotonic() + seconds
            # The pump calls it, so it must not take long.
            waiting = self._watchers.wait_for(
                key, key + b"\0", after, deadline, lambda _: look_again()
            )
            waiter.on_leave(waiting.give_up)

        def look_again() -> None:
            if freshness.is_stale:
                self._look_stale(waiter, freshness, look)
            else:
                self._confirm(waiter, look)

        self._look(waiter, freshness, wait)

    def work(self, waiter: WaiterT, action: Callable[[], None]) -> None:
        """Have a :data:`Look` carried on by a worker, or refuse it. Any thread."""
        self._workers.work(self._front, waiter, action)

    def watch(
        self, waiter: WaiterT, start: bytes, end: bytes | None, *, shows_previous: bool
    ) -> Opening:
        """Begin to open a watch of a range. Raises Forbidden, and Unavailable where nothing would
        come to it."""
        if self._gate is not None:
            self._ask_for_range(waiter, Action.WATCH, start, end)
            if shows_previous:
                self._ask_for_range(waiter, Action.READ, start, end)
        self.backend.check_watchable()
        if shows_previous:  # before the present revision is asked for: no later event is without
            self._watchers.keep_previous()
        return Opening(self.backend, self._watchers, start, end, shows_previous=shows_previous)

    def back_up(self, waiter: WaiterT, send: Callable[[int, Backup], None]) -> None:
        """Have a backup and its revision sent, by a worker, which closes it. Raises Forbidden."""
        if self._gate is not None:
            self._ask_for_range(waiter, Action.BACKUP, b"", None)
        self.work(waiter, partial(self._back_up, send))

    # -- private ---------------------------------------------------------------------------------

    def _confirm(self, waiter: WaiterT, look: Look) -> None:
        """Have one read confirmed, apart from any round. Any thread."""
        self._rounds.confirm(self._front, waiter, look, passes_on=self._passes_on)

    def _delete_again(self, waiter: WaiterT, part: PartOfRange) -> None:
        """Look again where a deletion in parts is to end. Any thread."""
        self._confirm(waiter, lambda _: self.work(waiter, part.commit))

    def _back_up(self, send: Callable[[int, Backup], None]) -> None:
        index, backup = self.backend.backup()
        try:
            send(index, backup)
        finally:
            backup.close()

    def _look(self, waiter: WaiterT, freshness: Freshness, look: Look) -> None:
        if freshness.is_stale:
            self._look_stale(waiter, freshness, look)
        else:
            self._gathered.looks.append((waiter, look))

    def _look_stale(self, waiter: WaiterT, freshness: Freshness, look: Look) -> None:
        contact = Contact(self.backend.last_contact())
        try:
            freshness.check(contact)
            look(contact)
        except ConureError as error:
            self._front.failed(waiter, error, contact)

    def _ask(self, waiter: WaiterT, command: Command) -> None:
        """Ask the gate about all that a command may do. Raises Forbidden."""
        for action, start, end in steps_of(command, self._deletes):
            self._ask_for_range(waiter, action, start, end)

    def _ask_for_range(
        self, waiter: WaiterT, action: Action, start: bytes, end: bytes | None
    ) -> None:
        assert self._gate is not None
        self._gate.allow(self._front.caller_of(waiter), action, start, end)

    def _deletes(self, session: bytes) -> bool:
        """Tell whether the keys that a session holds may be removed with it."""
        _, found = self.backend.session(session)
        return found is None or isinstance(found, ConureError) or found.deletes


class Opening:
    """A watch that is about to begin. The reactor thread; made by :meth:`Desk.watch`."""

    def __init__(
        self,
        backend: KeyValueBackend,
        watchers: Watchers[Any],
        start: bytes,
        end: bytes | None,
        *,
        shows_previous: bool,
    ) -> None:
        self._backend = backend
        self._watchers = watchers
        self._start = start
        self._end = end
        self._shows_previous = shows_previous

    def now(self) -> Position:
        """Return the position after all that has happened."""
        index, _ = self._backend.get_all([])
        return Position(index + 1)

    def check(self, position: Position) -> None:
        """Raise what speaks against a watch from there, as long as that can be answered."""
        self._watchers.check(position)

    def begin(self, position: Position, sink: SinkT) -> Watch[SinkT]:
        """Send what happens from a position on to a sink. Raises Unavailable."""
        return self._watchers.watch(
            self._start, self._end, position, sink, shows_previous=self._shows_previous
        )
