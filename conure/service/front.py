"""What the service and a front ask of each other: who waits, and who answers.

A *front* speaks one protocol with clients. It hands each request over to its desk (requests.py)
as a *waiter*, in the reactor thread, and is told what came of it: in slices, so that a round of
thousands costs a few calls. The service never looks into an answer, a protocol or a socket.
Protocols only: nothing here runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from conure.commands import Committed
from conure.errors import ConureError
from conure.service.backend import Found
from conure.service.freshness import Contact
from conure.service.gate import Caller

__all__ = ["FrontEnd", "Waiter", "WaiterT"]


class Waiter(Protocol):
    """A request that waits for its answer. It can be a key of a dict, by identity."""

    @property
    def connection(self) -> int:
        """A number that the waiters of one connection share, as long as it is open."""

    @property
    def is_answered(self) -> bool:
        """Whether it has its answer, if not all of that."""

    @property
    def room(self) -> int:
        """How many bytes of long answers may still be given before clients have read some (H5)."""

    def go_on(self, steps: Iterator[object], *, alone: bool = False) -> None:
        """Have the reactor carry on *steps*, in turns with all else, until they end.

        A step takes a millisecond at most; one that yields True ends the turn, and the round is
        ended before the next. With *alone*, in the reactor's thread only, what the client sends
        after this request waits for its answer. Any thread. Raises Unavailable, with *alone*.
        """

    def apart(self, ahead: int) -> Self:
        """Return who is given, from now on, one of its answers that takes longer than the others:
        the one behind *ahead* of those that are still to come. Itself, unless it stands for
        requests of several connections. The reactor's thread, or whoever confirms a read."""

    def wait(self) -> None:
        """Declare that the answer comes when something happens, which may take its time. The
        reactor's thread only. Raises TooManyRequests."""

    def on_leave(self, action: Callable[[], None]) -> None:
        """Have *action* called once when nothing more will come from the client of a request that
        waits; now, if that is so already. Any thread."""


WaiterT = TypeVar("WaiterT", bound=Waiter)
_WaiterT_contra = TypeVar("_WaiterT_contra", bound=Waiter, contravariant=True)


class FrontEnd(Protocol[_WaiterT_contra]):
    """Who answers the waiters of one protocol. Any thread; nothing here raises or blocks."""

    def caller_of(self, waiter: _WaiterT_contra) -> Caller:
        """Return who asks. Called only where there is a gate that doesn't let everybody pass."""

    def written(
        self,
        waiters: Sequence[_WaiterT_contra],
        answers: Mapping[int, Any],
        start: int,
        stop: int,
        ended: Committed | ConureError,
    ) -> None:
        """Answer the waiters *start* to *stop*, whose commands are committed and applied, or why
        they aren't: all of a batch at once or parts of it, each once and in any order.

        The command of the waiter at position *i* has the revision ``ended.first + i``. *answers*
        has, by position, what came with the command (see ``Desk.write``), if anything did.
        """

    def found(
        self,
        waiters: Sequence[_WaiterT_contra],
        records: Sequence[Found],
        index: int,
        contact: Contact | None,
    ) -> None:
        """Answer reads of single keys, given what was found as of revision *index*; *contact* of
        stale reads."""

    def failed(
        self, waiter: _WaiterT_contra, error: ConureError, contact: Contact | None = None
    ) -> None:
        """Answer a waiter with an error, or refer it to the leader; *contact* of a stale read."""

    def broken(self, waiter: _WaiterT_contra, how: str = "") -> None:
        """Tell a waiter, where an exception is being handled, that a bug kept it from its answer;
        and the log *how*, unless that is empty, because somebody else does."""
