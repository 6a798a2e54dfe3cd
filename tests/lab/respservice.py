"""RESP on a server of its own, over a backend that does as the test says (httpservice.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conure.errors import ConureError
from conure.metrics import Registry
from conure.net.listener import Listener, bind
from conure.net.rates import Rates
from conure.net.reactor import Bounds, Reactor
from conure.protection import OPEN, Door
from conure.resp.assembly import Resp
from conure.resp.audience import Audience
from conure.resp.limits import Limits
from conure.service.gate import AllowAll, Gate
from conure.service.limits import Limits as RequestLimits
from conure.service.requests import Requests
from conure.service.watchers import Watchers
from tests.lab.httpservice import FakeBackend
from tests.lab.respclient import RespClient
from tests.lab.visitors import ELSEWHERE, visit

__all__ = ["LocalMessenger", "RespService"]


class LocalMessenger:
    """Messages of a node that is alone. ``error`` is what it answers instead; ``is_held``: nobody
    is told that messages are heard until :meth:`go_on`."""

    def __init__(self) -> None:
        self.error: ConureError | None = None
        self.is_held = False
        self.held: list[Callable[..., None]] = []
        self.listening = False
        self.published: list[tuple[bytes, bytes]] = []
        self.audience: Audience | None = None

    def attach(self, audience: Audience) -> None:
        self.audience = audience

    def publish(self, channel: bytes, message: bytes, reply: Callable[..., None]) -> None:
        if self.error is None:
            self.published.append((channel, message))
            if self.listening and self.audience is not None:
                self.audience.deliver([(channel, message)])
        reply(self.error)

    def listen(self, ready: Callable[..., None]) -> None:
        self.held.append(ready)
        if not self.is_held:
            self.go_on()

    def go_on(self) -> None:
        """Tell those who listen that they do, or why not."""
        self.listening = self.error is None
        held, self.held = self.held, []
        for ready in held:
            ready(self.error)

    def rest(self) -> None:
        self.listening = False


class RespService:
    """A listener of RESP, its reactor, and the service behind it."""

    def __init__(
        self,
        backend: FakeBackend | None = None,
        *,
        limits: Limits | None = None,
        bounds: Bounds | None = None,
        value_bytes: int = 1 << 20,
        gate: Gate | None = None,
        door: Door = OPEN,
        rates: Rates | None = None,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.status: dict[str, Any] = {"node_id": "n1", "member": True, "is_leader": True}
        self.registry = Registry()
        self.failures: list[BaseException] = []
        self.reactor = Reactor(bounds or Bounds(), self.failures.append, "resp")
        self.history = self.backend.history
        watchers: Watchers[Any] = Watchers(self.history, Registry())
        self.messenger = LocalMessenger()
        of_records = RequestLimits(value_bytes=value_bytes, range_items=1000)
        self.requests = Requests(
            self.backend, gate or AllowAll(), watchers, of_records, max_workers=2
        )
        self.resp = Resp(
            self.reactor,
            self.requests,
            of_records,
            limits or Limits(),
            lambda: self.status,
            self.registry,
            self.messenger,
            self.history,
            door,
            rates,
        )
        bound = bind(("127.0.0.1", 0))
        self.listener = Listener(bound, self.reactor, self.resp.front, self.failures.append, "resp")
        self.reactor.start()
        self.listener.start()
        self.port = self.listener.port

    def client(self) -> RespClient:
        """Return a new connection."""
        return RespClient(self.port)

    def visitor(self, address: str = ELSEWHERE) -> RespClient:
        """Return a new connection that the listener takes for one from *address*."""
        return RespClient.on(visit(self.listener, address))

    def close(self) -> None:
        """Stop; nothing may be left, and nothing have failed."""
        self.listener.stop()
        drained = self.reactor.drain(5)
        assert not self.failures
        assert drained
        assert (self.reactor.in_flight, self.reactor.leaving, self.reactor.arriving) == (0, 0, 0)
