"""A round: what the requests of all fronts ask for until the reactor has none left to take in.

1. All writes of a round become one proposal, and all its linearizable reads share one confirmation
   (R6), whichever fronts they came by, and whether these have them passed on to the leader or not.
2. Reads are answered, and sent, before the writes are synced: :meth:`Rounds.end` returns True to be
   called again, for the writes, once that is done.
3. Each front has lists of its own, and is told what came of them as if it were alone. A bug of one
   front costs those of the others no answer.

The reactor thread gathers and ends; whichever thread commits or confirms brings the replies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple

from conure.commands import Committed
from conure.errors import ConureError
from conure.service.backend import Command, KeyValueBackend, Reply
from conure.service.freshness import Contact
from conure.service.front import FrontEnd, WaiterT
from conure.service.slices import Slices, failing
from conure.service.turns import Turns, begin

__all__ = ["Gathered", "Look", "Rounds"]

log = logging.getLogger("conure.service")

Look = Callable[[Contact | None], None]
"""Answers a read, given the contact of a stale one. May raise ConureError."""


class Gathered(Generic[WaiterT]):
    """What the requests of one front ask for in this round; filled by its desk."""

    __slots__ = (
        "answers",
        "commands",
        "front",
        "keys",
        "looks",
        "passes_on",
        "readers",
        "stale_keys",
        "stale_readers",
        "writers",
    )

    def __init__(self, front: FrontEnd[WaiterT], *, passes_on: bool) -> None:
        self.front = front
        self.passes_on = passes_on
        """Whether all of it is passed on to the leader where this node doesn't lead."""
        # Writes, each with its waiter, and by position what is to be given back with their ends;
        # reads of plain keys, and others; stale reads of plain keys.
        self.commands: list[Command] = []
        self.writers: list[WaiterT] = []
        self.answers: dict[int, Any] = {}
        self.keys: list[bytes] = []
        self.readers: list[WaiterT] = []
        self.looks: list[tuple[WaiterT, Look]] = []
        self.stale_keys: list[bytes] = []
        self.stale_readers: list[WaiterT] = []


class Rounds:
    """Ends the rounds of all fronts."""

    def __init__(self, backend: KeyValueBackend) -> None:
        self._backend = backend
        self._slices = Slices(backend)
        self._gathered: list[Gathered[Any]] = []

    def gather(self, front: FrontEnd[WaiterT], *, passes_on: bool) -> Gathered[WaiterT]:
        """Return where the requests of a front are gathered, which are passed on to the leader
        where this node doesn't lead, or refused. Before the first round."""
        gathered = Gathered(front, passes_on=passes_on)
        self._gathered.append(gathered)
        self._gathered.sort(key=lambda each: each.passes_on)  # as the backend wants writes
        return gathered

    def end(self) -> bool:
        """End a round: answer its reads together, then commit its writes as one batch.

        True asks for another call, before which the answers given so far are to be sent.
        """
        has_read = False
        reading = []
        for each in self._gathered:
            if each.stale_readers:
                self._read_stale(each)
                has_read = True
            if each.readers or each.looks:
                reading.append(each)
        if reading:
            self._read(reading)
            has_read = True
        writing = [each for each in self._gathered if each.writers]
        if writing and not has_read:
            self._write(writing)
            return False
        return bool(writing)

    def confirm(
        self, front: FrontEnd[WaiterT], waiter: WaiterT, look: Look, *, passes_on: bool
    ) -> None:
        """Have one read confirmed, apart from any round. Any thread."""
        reply = partial(self._confirmed, _Reads(front, [], [], [(waiter, look)]))
        self._backend.confirm_read(reply, passes_on=passes_on)

    def _read_stale(self, gathered: Gathered[Any]) -> None:
        readers, gathered.stale_readers = gathered.stale_readers, []
        keys, gathered.stale_keys = gathered.stale_keys, []
        # Asked before the records are read: they are at least as new as this contact.
        contact = Contact(self._backend.last_contact())
        self._slices.answer(gathered.front, readers, keys, contact)

    def _read(self, reading: list[Gathered[Any]]) -> None:
        """Have the reads of fronts confirmed together."""
        kept: list[_Reads] = []
        passed: list[_Reads] = []
        for each in reading:
            (passed if each.passes_on else kept).append(
                _Reads(each.front, each.readers, each.keys, each.looks)
            )
            each.readers, each.keys, each.looks = [], [], []
        with ExitStack() as stack:
            for reads in (*kept, *passed):
                stack.enter_context(failing(reads.front, reads.waiters()))
            if not passed:
                self._backend.confirm_read(self._reply(kept), _count(kept))
            elif not kept:
                self._backend.confirm_read(self._reply(passed), _count(passed), passes_on=True)
            else:
                self._backend.confirm_read(
                    self._reply(passed),
                    _count(passed),
                    passes_on=True,
                    kept=self._reply(kept),
                    kept_requests=_count(kept),
                )

    def _reply(self, some: list[_Reads]) -> Reply:
        if len(some) == 1:
            return partial(self._confirmed, some[0])
        return partial(self._confirmed_all, some)

    def _confirmed_all(self, some: list[_Reads], error: ConureError | None) -> None:
        for reads in some:
            with _apart(reads.front, reads.waiters()):
                self._confirmed(reads, error)

    def _confirmed(self, reads: _Reads, error: ConureError | None) -> None:
        front, readers, keys, looks = reads
        if error is None:
            if readers:
                self._slices.answer(front, readers, keys, None)
            if looks:
                begin(looks[0][0], _look_each(front, looks), front.failed)
            return
        for waiter in reads.waiters():
            front.failed(waiter, error)

    def _write(self, writing: list[Gathered[Any]]) -> None:
        """Commit the writes of fronts: first those that aren't passed on, if there are both."""
        commands: list[Command] = []
        shares: list[_Share] = []
        kept = 0
        with ExitStack() as stack:
            for each in writing:
                shares.append(_Share(each.front, each.writers, each.answers, len(commands)))
                stack.enter_context(failing(each.front, each.writers))
                commands = commands + each.commands if commands else each.commands
                kept += 0 if each.passes_on else len(each.writers)
                each.commands, each.writers, each.answers = [], [], {}
            front, writers, answers, _ = shares[0]
            reply = partial(front.written, writers, answers)
            if len(shares) > 1:
                reply = partial(_written_all, shares)
            self._backend.write(commands, reply, kept)


class _Reads(NamedTuple):
    """Reads of one front that are confirmed: of plain keys, and others."""

    front: FrontEnd[Any]
    readers: list[Any]
    keys: list[bytes]
    looks: list[tuple[Any, Look]]

    def waiters(self) -> list[Any]:
        return [*self.readers, *(waiter for waiter, _ in self.looks)]


def _count(some: list[_Reads]) -> int:
    return sum(len(reads.readers) + len(reads.looks) for reads in some)


class _Share(NamedTuple):
    """The writes of one front in a batch, from position *start* on."""

    front: FrontEnd[Any]
    writers: list[Any]
    answers: Mapping[int, Any]
    start: int


def _written_all(
    shares: Sequence[_Share], start: int, stop: int, ended: Committed | ConureError
) -> None:
    """Tell each front what came of its own writes among those from *start* to *stop*."""
    for front, writers, answers, at in shares:
        first, last = max(start - at, 0), min(stop - at, len(writers))
        if first < last:
            told = ended
            if isinstance(ended, Committed):
                told = Committed(ended.first + at, ended.outcomes)
            with _apart(front, writers[first:last]):
                front.written(writers, answers, first, last, told)


def _look_each(front: FrontEnd[WaiterT], looks: list[tuple[WaiterT, Look]]) -> Turns:
    for waiter, look in looks:
        try:
            look(None)
        except ConureError as error:
            front.failed(waiter, error)
        except Exception:  # noqa: BLE001 - those after it are to be answered all the same
            front.broken(waiter, "not answered")
        yield False


@contextmanager
def _apart(front: FrontEnd[Any], waiters: Sequence[Any]) -> Iterator[None]:
    """Let a bug of a front end with its own waiters: those of the others are answered."""
    try:
        yield
    except Exception:
        log.exception("a front did not answer")
        try:
            for waiter in waiters:
                if not waiter.is_answered:
                    front.broken(waiter)
        except Exception:
            log.exception("a front could not tell of a bug")
