"""Connections that aren't simply served: those from other machines in protected mode, and those of
clients whose requests are counted.

Which kind a connection is says the front when it is accepted, so that nothing of this is asked
about a request of any other. What they refuse is refused before anything is done for it: a body
that is still to come isn't read. Reactor thread only, once they are adopted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from conure.http.connection import Front, HTTPConnection
from conure.http.grammar import READS, ChunkedBody, Refusal, SizedBody
from conure.http.request import Request
from conure.net.link import Link
from conure.net.rates import Visitor
from conure.net.reactor import Reactor

__all__ = ["BarredConnection", "CountedConnection"]

_TOO_MANY: Final = 429


class BarredConnection(HTTPConnection):
    """A connection that the door bars: what is answered to anybody is answered; all else is a 403,
    and the connection ends with that (H8)."""

    __slots__ = ()

    def _hand_over(
        self, request: Request, more: bool, handle: Callable[[Request], None] | None = None
    ) -> None:
        is_for_all = request.method in READS and request.path in self.front.door.always
        if not is_for_all or request.body:
            raise self._refusal(request)
        super()._hand_over(request, more, handle)

    def _begin_body(self, request: Request, moved_on: bool) -> None:  # noqa: ARG002
        raise self._refusal(request)

    def _refusal(self, request: Request) -> Refusal:
        refusal = Refusal(403, self.front.door.why, request.headers)
        refusal.method, refusal.request_id = request.method, request.id
        return refusal


class CountedConnection(HTTPConnection):
    """A connection of a client that may ask so often and no oftener: *visitor* says whether it may
    now. Probes aren't counted."""

    __slots__ = ("allowed", "visitor")

    def __init__(
        self, reactor: Reactor, front: Front, link: Link, peer: Any, place: str, visitor: Visitor
    ) -> None:
        super().__init__(reactor, front, link, peer, place)
        self.visitor = visitor
        self.allowed: Request | None = None  # its body is still to come

    def refuse(self, refusal: Refusal) -> None:
        """Refuse as ever; that counts as well."""
        self.visitor.take(1, 0)
        super().refuse(refusal)

    def _hand_over(
        self, request: Request, more: bool, handle: Callable[[Request], None] | None = None
    ) -> None:
        if request is self.allowed:
            self.allowed = None
        elif handle is None and not self._may_ask(request, len(request.body)):
            handle = self._refuse_rate
        super()._hand_over(request, more, handle)

    def _begin_body(self, request: Request, moved_on: bool) -> None:
        if not self._may_ask(request, request.head.length):
            self._answer_early(request, self._refuse_rate)
            return
        self.allowed = request
        super()._begin_body(request, moved_on)

    def _feed(self, body: SizedBody | ChunkedBody, data: bytes, position: int) -> int:
        before = len(body.content)
        try:
            return super()._feed(body, data, position)
        finally:
            if isinstance(body, ChunkedBody):  # the length of any other is counted already
                self.visitor.owe(len(body.content) - before)

    def _may_ask(self, request: Request, length: int) -> bool:
        """Tell whether a request with a body of so many bytes may be made, and count it."""
        if request.method in READS and request.path in self.front.probes:
            return True
        target = request.target
        head = len(request.method) + len(target.octets) + len(target.query) + request.head.size
        return self.visitor.take(1, head + length) > 0

    def _refuse_rate(self, request: Request) -> None:
        why, seconds = self.visitor.refusal()
        self.front.count_refusal(_TOO_MANY)
        request.fail(_TOO_MANY, why, [("Retry-After", str(seconds))])
