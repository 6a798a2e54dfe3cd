"""Lone commands: the one plain GET or SET of each of many clients, handed over and answered as one.

Most clients send a command and wait for its reply. Whatever such a command costs beside its bytes
and its key is paid once for all of a round: a :class:`LoneGets` or :class:`LonePuts` is one waiter
of the service (``service/front.py``) for its *members*, connections that have nothing else under
way. It is answered in the order in which they joined, a part of them at a time if need be.

A member that sends more before it has its reply, gets a long value or has waited for long is an
ordinary one from then on: its command waits in its connection as a :class:`Pending`, the
*stand-in*, which is told what the waiter is told for it (``RespConnection.settle``). So the order
of replies, and what is counted, have one rule, and this here knows no other case than the plain
one.

The reactor's thread only, but for :meth:`Lone.apart`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, Protocol

from conure.commands import Committed
from conure.errors import ConureError
from conure.resp.failures import error_reply
from conure.resp.replies import NULL, OK
from conure.resp.session import Session
from conure.resp.waiters import LONG, Client, Gets, Pending, Puts
from conure.service.backend import Found

__all__ = ["Lone", "LoneGets", "LonePuts", "Member"]

_OF_MANY = -1  # in the place of a connection's descriptor


class Member(Client, Protocol):
    """What a lone command asks of its connection."""

    @property
    def lone(self) -> Lone | None:
        """Who answers its command, while that is a lone one."""

    @property
    def session(self) -> Session: ...

    def answer(self, reply: bytes) -> None:
        """Send the reply of its lone command, which is no more."""

    def settle(self) -> Pending:
        """Make its lone command wait like any other; return what waits."""

    def observe(self, started: float, count: int) -> None:
        """Count so many commands that took from a time until now."""

    def is_slow(self, started: float) -> bool:
        """Tell whether what takes from a time until now is slow."""


class Lone(Pending):
    """The waiter of lone commands of one kind that were taken in one round: that of *member*. Its
    ``count`` is 0: who is a member counts what is under way (``RespConnection.begin_lone``)."""

    __slots__ = ("_members", "_stand_ins")

    def __init__(self, member: Member) -> None:
        super().__init__(member, 0)
        self._members: list[Member] = []
        self._stand_ins: dict[Member, Pending] = {}

    @property
    def connection(self) -> int:
        """A number of its own: no member's next command is handed over before this is answered."""
        return _OF_MANY

    def add(self, member: Member) -> None:
        """Let a connection be the next member; it is who asks, for the gate, until another is."""
        self.client = member
        self._members.append(member)
        self.missing += 1

    def take_back(self) -> None:
        """Undo :meth:`add`: the member may not ask."""
        self._members.pop()
        self.missing -= 1

    def apart(self, ahead: int) -> Pending:
        """Return the stand-in of a member, which is one no more: nobody else waits for its long
        value. Itself, in another thread than the reactor's: all behind it are looked for again, in
        that one. See ``Waiter.apart``."""
        if get_ident() != self.client.reactor.ident:
            return self
        member = self._members.pop(len(self._members) - self.missing + ahead)
        self.missing -= 1
        if member.lone is self:
            return member.settle()
        return self._stand_ins.get(member) or self._make_stand_in(member)

    def stand_in_for(self, member: Member) -> Pending:
        """Return what waits from now on in the place of a member that has no reply yet."""
        stand_in = self._stand_ins[member] = self._make_stand_in(member)
        return stand_in

    def fail(self, error: str) -> None:
        if self.missing:  # or all had their replies before a bug came up
            self._tell(1, error_reply(error), lambda stand_in, _: stand_in.fail(error))

    @abstractmethod
    def _make_stand_in(self, member: Member) -> Pending:
        """Return an ordinary waiter for one member."""

    def _next(self, count: int) -> list[Member]:
        """Return the members whose turn it is."""
        first = len(self._members) - self.missing
        members = self._members[first : first + count]
        if members[0].is_slow(self.started):  # each is to be noted, as any other that is slow
            for each in members:
                if each.lone is self:
                    each.settle()
        return members

    def _tell(self, count: int, reply: bytes, otherwise: Callable[[Pending, int], None]) -> None:
        """Tell the next members the same; their stand-ins *otherwise*, given their positions."""
        others = 0
        for position, member in enumerate(self._next(count)):
            if member.lone is self:
                member.answer(reply)
            else:
                others += self._pass_on(member, otherwise, position)
        self._told(count, others)

    def _pass_on(self, member: Member, tell: Callable[[Pending, Any], None], what: Any) -> bool:
        """Tell the stand-in of a member; return whether there is one. If not, the member has gone,
        or had its reply before a bug came up."""
        stand_in = self._stand_ins.get(member)
        if stand_in is None:
            return False
        if stand_in.missing:
            tell(stand_in, what)
        return True

    def _told(self, count: int, others: int) -> None:
        """Note that so many members are answered, of which *others* count for themselves."""
        self.missing -= count
        if count > others:
            self.client.reactor.in_flight -= count - others
            self._members[0].observe(self.started, count - others)


class LoneGets(Lone):
    """Reads of one key each."""

    __slots__ = ()

    def take_found(self, records: Sequence[Found]) -> None:
        others = 0
        reply = b""
        for member, record in zip(self._next(len(records)), records, strict=True):
            if record is None:
                reply = NULL[member.session.protocol]
            elif isinstance(record, ConureError):
                reply = error_reply(record)
            else:
                value = record.value
                size = len(value)
                if size < LONG:
                    reply = b"$%d\r\n%b\r\n" % (size, value)
                elif member.lone is self:
                    member.settle()
            if member.lone is self:
                member.answer(reply)
            else:
                others += self._pass_on(member, _find, record)
        self._told(len(records), others)

    def _make_stand_in(self, member: Member) -> Pending:
        return Gets(member, 1, member.session.protocol, self.started)


class LonePuts(Lone):
    """Plain writes of one key each, answered OK."""

    __slots__ = ()

    def take_written(self, count: int, first: int, ended: Committed) -> None:
        def tell(stand_in: Pending, position: int) -> None:
            stand_in.take_written(1, first + position, ended)

        self._tell(count, OK, tell)

    def _make_stand_in(self, member: Member) -> Pending:
        return Puts(member, 1, self.started)


def _find(stand_in: Pending, record: Found) -> None:
    stand_in.take_found((record,))
