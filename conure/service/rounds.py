"""A round: what the requests of all fronts ask for until the reactor has none left to take in.

1. All writes of a round become one proposal, and all its linearizable reads share one confirmation
   (R6), whichever fronts they came by; two where some fronts pass them on and others don't.
2. Reads are answered, and sent, before the writes are synced: :meth:`Rounds.end` returns True to be
   called again, for the writes, once that is done.
3. Each front has lists of its own. Where one front alone has something to do, its lists are handed
   on as they are; only where several have, they are joined, and what came of them is taken apart.
   A bug of one front costs those of the others no answer then.

The reactor thread gathers and ends; whichever thread commits or confirms brings the replies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic

from conure.commands import Committed
from conure.errors import ConureError
from conure.service.backend import Command, Found, KeyValueBackend
from conure.service.freshness import Contact
from conure.service.front import FrontEnd, Waiter, WaiterT
from conure.service.gate import Caller
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
        self.clear()

    def clear(self) -> None:
        """Ask for nothing any more; what was asked for stays with whoever has taken it."""
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

    def is_empty(self) -> bool:
        """Tell whether nothing is asked for."""
        return not (self.writers or self.readers or self.looks or self.stale_readers)


class Rounds:
    """Ends the rounds of all fronts."""

    def __init__(self, backend: KeyValueBackend) -> None:
        self._backend = backend
        self._slices = Slices(backend)
        self._gathered: list[Gathered[Any]] = []
        # What several fronts ask for, of which writes may be left that are still to go: of those
        # whose requests are passed on, and of the others.
        self._joined = {each: _joined([], passes_on=each) for each in (False, True)}

    def gather(self, front: FrontEnd[WaiterT], *, passes_on: bool) -> Gathered[WaiterT]:
        """Return where the requests of a front are gathered, which are passed on to the leader
        where this node doesn't lead, or refused. Before the first round."""
        gathered = Gathered(front, passes_on=passes_on)
        self._gathered.append(gathered)
        return gathered

    def end(self) -> bool:
        """End a round: answer its reads together, then commit its writes as one batch.

        True asks for another call, before which the answers given so far are to be sent.
        """
        parts = self._gathered if len(self._gathered) == 1 else self._join()
        has_read = False
        for part in parts:
            has_read |= self._read(part)
        parts = [part for part in parts if part.writers]
        if parts and not has_read:
            self._write(parts)
            return False
        return bool(parts)

    def confirm(
        self, front: FrontEnd[WaiterT], waiter: WaiterT, look: Look, *, passes_on: bool
    ) -> None:
        """Have one read confirmed, apart from any round. Any thread."""
        reply = partial(self._confirmed, front, [], [], [(waiter, look)])
        self._backend.confirm_read(reply, passes_on=passes_on)

    def _read(self, gathered: Gathered[Any]) -> bool:
        """Answer the reads that are gathered; return whether there are any."""
        front = gathered.front
        has_read = False
        if gathered.stale_readers:
            readers, gathered.stale_readers = gathered.stale_readers, []
            keys, gathered.stale_keys = gathered.stale_keys, []
            # Asked before the records are read: they are at least as new as this contact.
            contact = Contact(self._backend.last_contact())
            self._slices.answer(front, readers, keys, contact)
            has_read = True
        if gathered.readers or gathered.looks:
            readers, gathered.readers = gathered.readers, []
            keys, gathered.keys = gathered.keys, []
            looks, gathered.looks = gathered.looks, []
            reply = partial(self._confirmed, front, readers, keys, looks)
            waiters = [*readers, *(waiter for waiter, _ in looks)]
            with failing(front, waiters):
                self._backend.confirm_read(reply, len(waiters), passes_on=gathered.passes_on)
            has_read = True
        return has_read

    def _write(self, parts: list[Gathered[Any]]) -> None:
        """Commit the writes of a round: first those that aren't passed on, if there are both."""
        gathered = parts[0]
        kept = 0 if gathered.passes_on else len(gathered.writers)
        if len(parts) > 1:
            gathered = _joined(parts, passes_on=True)
        writers, gathered.writers = gathered.writers, []
        commands, gathered.commands = gathered.commands, []
        answers, gathered.answers = gathered.answers, {}
        reply = partial(gathered.front.written, writers, answers)
        with failing(gathered.front, writers):
            self._backend.write(commands, reply, kept)

    def _join(self) -> list[Gathered[Any]]:
        """Return what the fronts ask for: of those that don't pass it on, and of those that do;
        each of the one that asks for something, or of all that do."""
        parts = []
        for passes_on, joined in self._joined.items():
            fronts = [each for each in self._gathered if each.passes_on is passes_on]
            busy = [each for each in (joined, *fronts) if not each.is_empty()]
            if busy != [joined]:
                made = _joined(busy if len(busy) > 1 else [], passes_on=passes_on)
                self._joined[passes_on] = made
                busy = [made] if len(busy) > 1 else busy
            parts += busy
        return parts

    def _confirmed(
        self,
        front: FrontEnd[WaiterT],
        readers: list[WaiterT],
        keys: list[bytes],
        looks: list[tuple[WaiterT, Look]],
        error: ConureError | None,
    ) -> None:
        if error is None:
            if readers:
                self._slices.answer(front, readers, keys, None)
            if looks:
                begin(looks[0][0], _look_each(front, looks), front.failed)
            return
        for reader in readers:
            front.failed(reader, error)
        for looker, _ in looks:
            front.failed(looker, error)


def _look_each(front: FrontEnd[WaiterT], looks: list[tuple[WaiterT, Look]]) -> Turns:
    for waiter, look in looks:
        try:
            look(None)
        except ConureError as error:
            front.failed(waiter, error)
        except Exception:  # noqa: BLE001 - those after it are to be answered all the same
            front.broken(waiter, "not answered")
        yield False


# -- several fronts in one round -------------------------------------------------------------------


def _joined(busy: list[Gathered[Any]], *, passes_on: bool) -> Gathered[Any]:
    """Take what several fronts ask for together, in the order of the fronts."""
    owners: dict[Waiter, FrontEnd[Any]] = {}
    joined: Gathered[Any] = Gathered(_Several(owners), passes_on=passes_on)
    for each in busy:
        for waiters in (each.writers, each.readers, each.stale_readers):
            owners |= dict.fromkeys(waiters, each.front)
        owners |= {waiter: each.front for waiter, _ in each.looks}
        before = len(joined.commands)
        joined.answers |= {before + n: answer for n, answer in each.answers.items()}
        joined.commands += each.commands
        joined.writers += each.writers
        joined.keys += each.keys
        joined.readers += each.readers
        joined.looks += each.looks
        joined.stale_keys += each.stale_keys
        joined.stale_readers += each.stale_readers
        each.clear()
    return joined


class _Several:
    """Stands for several fronts, and gives to each what is its own."""

    def __init__(self, owners: Mapping[Waiter, FrontEnd[Any]]) -> None:
        self._owners = owners

    def caller_of(self, waiter: Waiter) -> Caller:
        return self._owners[waiter].caller_of(waiter)

    def written(
        self,
        waiters: Sequence[Waiter],
        answers: Mapping[int, Any],
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        for front, first, last in self._runs(waiters, start, stop):
            with _apart(front, waiters[first:last]):
                front.written(waiters, answers, first, last, ended)

    def found(
        self,
        waiters: Sequence[Waiter],
        records: Sequence[Found],
        index: int,
        contact: Contact | None,
    ) -> None:
        for front, start, stop in self._runs(waiters, 0, len(waiters)):
            some = waiters[start:stop]
            with _apart(front, some):
                front.found(some, records[start:stop], index, contact)

    def failed(self, waiter: Waiter, error: ConureError, contact: Contact | None = None) -> None:
        front = self._owners[waiter]
        with _apart(front, [waiter]):
            front.failed(waiter, error, contact)

    def broken(self, waiter: Waiter, how: str = "") -> None:
        try:
            self._owners[waiter].broken(waiter, how)
        except Exception:
            log.exception("a front could not tell of a bug")

    def _runs(
        self, waiters: Sequence[Waiter], start: int, stop: int
    ) -> Iterator[tuple[FrontEnd[Any], int, int]]:
        """Yield the fronts of waiters, and from where to where one after another is of the same."""
        while start < stop:
            front = self._owners[waiters[start]]
            end = start + 1
            while end < stop and self._owners[waiters[end]] is front:
                end += 1
            yield front, start, end
            start = end


@contextmanager
def _apart(front: FrontEnd[Any], waiters: Sequence[Waiter]) -> Iterator[None]:
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
