"""The routes on a server of their own, over a backend that does as the test says."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from sys import maxsize
from typing import Any

from btree import BTree
from conure.commands import Committed, Sequential, Transaction
from conure.consensus.messages import Entry, EntryKind
from conure.errors import ConureError, CorruptionError, NotLeader, NotRead
from conure.http.counts import RequestMetrics
from conure.http.limits import Limits
from conure.http.origins import Access
from conure.http.rest import Rest
from conure.http.server import HTTPServer
from conure.http.stream import Stream, broadcast
from conure.metrics import Registry
from conure.service.backend import Command, Reply, State, WriteReply
from conure.service.gate import AllowAll, Gate
from conure.service.limits import Limits as RequestLimits
from conure.service.requests import Requests
from conure.service.watchers import Watchers
from conure.state import codec
from conure.state.history import History
from conure.state.machine import Session, Store
from conure.storage.engine import Record
from httpapi import API, PROBES, PUBLIC, SHORT_BODIES, Backend, Check
from tests.lab.crashfs import CrashFileSystem
from tests.lab.process import Answer

__all__ = ["FakeBackend", "Service", "routes"]


class FakeBackend:
    """A store without consensus around it, which notes every call.

    ``error`` is what it answers instead, ``damaged`` a key that can't be read, ``now`` the time.
    """

    def __init__(self) -> None:
        self.store = Store(BTree.open(CrashFileSystem(), "/db"), b"", keeps_events=True)
        self.history = History()
        self.now = 1_000_000
        self.batches: list[list[Command]] = []
        self.kept: list[int | None] = []  # how many commands of each batch are not passed on
        self.confirmations = 0
        self.passed_on = 0  # confirmations that may be passed on
        self.changes: list[tuple[str, Mapping[str, Any]]] = []  # that were passed on
        self.found: Mapping[str, Any] | ConureError = {}  # what came of them
        self.reads: list[list[bytes]] = []
        self.contact: float | None = 0.0
        self.joins: list[dict[str, object]] = []
        self.removed: list[tuple[str, bool]] = []
        self.handed_over: list[str] = []
        self.resized: list[int] = []
        self.note = ""  # on a removal
        self.previews: list[tuple[object, ...]] = []
        self.error: ConureError | None = None
        self.damaged = b""
        self.checks: list[Check] = [("process", True, "ok"), ("leader", True, "n1")]
        self.open_states = 0

    @property
    def values(self) -> dict[bytes, bytes]:
        """What is stored."""
        with closing(self.store.snapshot()) as state:
            return {key: record.value for key, record in state.items()}

    @values.setter
    def values(self, values: dict[bytes, bytes]) -> None:
        self.apply(list(values.items()))

    def apply(self, commands: Sequence[Command]) -> Committed:
        """Do as a node does whose writes are committed at once."""
        first = self.store.applied_index + 1
        entries = [
            Entry(1, index, EntryKind.COMMAND, self._encode(command))
            for index, command in enumerate(commands, first)
        ]
        self.store.keep_previous(self.history.wants_previous)
        outcomes = self.store.apply(entries)
        self.history.extend(self.store.take_events(), self.store.applied_index)
        return Committed(first, outcomes)

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        self.batches.append(list(commands))
        self.kept.append(kept)
        reply(0, len(commands), self.error or self.apply(commands))

    def confirm_read(
        self,
        reply: Reply,
        requests: int = 1,
        *,
        passes_on: bool = False,
        kept: Reply | None = None,
        kept_requests: int = 0,
    ) -> None:
        self.confirmations += 1
        self.passed_on += passes_on
        assert requests > 0
        assert (kept is None) == (kept_requests == 0)
        if kept is not None:
            kept(self.error)
        reply(self.error)

    def get_all(
        self, keys: Sequence[bytes], most: int = maxsize, longest: int = 0
    ) -> tuple[int, list[Record | ConureError | None]]:
        found: list[Record | ConureError | None] = []
        for key in keys:
            heading = self.store.heading(key)
            if most <= 0 and heading is not None and heading[1] > longest:
                found.append(NotRead())
                continue
            record = self._get(key)
            found.append(record)
            most -= len(record.value) if isinstance(record, Record) else 0
        self.reads.append(list(keys))
        return self.store.applied_index, found

    def look(self, key: bytes) -> tuple[int, Record | ConureError | None, tuple[bytes, int] | None]:
        self.reads.append([key])
        return self.store.applied_index, self._get(key), self.store.holder(key)

    def session(self, session: bytes) -> tuple[int, Session | None]:
        return self.store.applied_index, self.store.session(session)

    def holdings(self, session: bytes, key: bytes) -> int:
        count = self.store.holdings(session, key)
        assert count is not None
        return count

    def key_count(self) -> int:
        return self.store.records

    def check_watchable(self) -> None:
        if self.error is not None:
            raise self.error

    def pin(self) -> State:
        if self.error is not None:
            raise self.error
        return _Counted(self)

    def time(self) -> int:
        return self.now

    def backup(self) -> tuple[int, Any]:
        if self.error is not None:
            raise self.error
        return self.store.applied_index, _FakeBackup()

    def last_contact(self) -> float | None:
        return self.contact

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str,
        *,
        voter: bool,
        role: str,
        reply: Reply,
        incarnation: str,
    ) -> None:
        self.joins.append(
            {"id": node_id, "raft": raft_address, "http": http_address, "voter": voter,
             "role": role, "incarnation": incarnation}
        )  # fmt: skip
        reply(self.error)

    def remove(
        self, node_id: str, *, force: bool, reply: Reply, note: Callable[[str], None]
    ) -> None:
        self.removed.append((node_id, force))
        if self.error is None and self.note:
            note(self.note)
        reply(self.error)

    def resize(self, quorum_size: int, reply: Reply) -> None:
        self.resized.append(quorum_size)
        reply(self.error)

    def referral(self) -> NotLeader | None:
        return self.error if isinstance(self.error, NotLeader) else None

    def hand_over(self, node_id: str, reply: Reply) -> None:
        self.handed_over.append(node_id)
        reply(self.error)

    def pass_on(
        self,
        change: str,
        facts: Mapping[str, Any],
        reply: Callable[[Mapping[str, Any] | ConureError], None],
    ) -> None:
        self.changes.append((change, facts))
        reply(self.found)

    def preview_join(self, node_id: str, *, voter: bool, role: str) -> dict[str, Any]:
        self.previews.append(("join", node_id, voter, role))
        return self._preview()

    def preview_remove(self, node_id: str) -> dict[str, Any]:
        self.previews.append(("remove", node_id))
        return self._preview()

    def preview_resize(self, quorum_size: int) -> dict[str, Any]:
        self.previews.append(("resize", quorum_size))
        return self._preview()

    def _get(self, key: bytes) -> Record | ConureError | None:
        if key == self.damaged:
            return CorruptionError("conure.db", 4096, "a page fails its checksum")
        return self.store.get(key)

    def _encode(self, command: Command) -> bytes:
        if isinstance(command, Transaction):
            return codec.encode_transaction(command._replace(time=self.now))
        if isinstance(command, Sequential):
            return codec.encode_sequential(command._replace(time=self.now))
        if isinstance(command, bytes):
            return codec.stamp(command, self.now)
        key, value = command
        return codec.encode_delete(key) if value is None else codec.encode_put(key, value)

    def _preview(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"allowed": True, "reason": "", "warning": "", "voters": 3, "quorum": 2, "active": 3,
                "tolerates": 1}  # fmt: skip

    def status(self) -> dict[str, Any]:
        return {"node_id": "n1"}

    def members(self) -> dict[str, Any]:
        return {"leader": "", "servers": []}

    def raft_stats(self) -> dict[str, str]:
        return {"term": "7"}

    def liveness(self) -> Check:
        return self.checks[0]

    def readiness(self) -> list[Check]:
        return self.checks


class _Counted:
    """A pinned state that is missed while it is open."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self._state = backend.store.snapshot()
        self.index, self.items, self.keys, self.count, self.key_after = (
            self._state.index, self._state.items, self._state.keys, self._state.count,
            self._state.key_after,
        )  # fmt: skip
        self.items_in_turns = self._state.items_in_turns
        self.keys_in_turns = self._state.keys_in_turns
        backend.open_states += 1

    def close(self) -> None:
        self._state.close()
        self._backend.open_states -= 1


class _FakeBackup:
    def chunks(self) -> Iterator[bytes]:
        yield from (b"one, ", b"two")

    def close(self) -> None:
        pass


def routes() -> Mapping[str, Collection[str]]:
    """Return the methods of each path that is answered."""
    registry, limits = Registry(), RequestLimits(value_bytes=1, range_items=1)
    backend, watchers = FakeBackend(), Watchers[Stream](History(), registry)
    requests = Requests(backend, AllowAll(), watchers, limits, max_workers=1)
    metrics = RequestMetrics(registry)
    return API(backend, requests, registry, metrics, limits, version="")._routes


class Service:
    """A server with the routes over a backend; and with *rest*, one more that serves REST, in the
    same reactor."""

    def __init__(
        self,
        backend: Backend,
        *,
        value_bytes: int = 1000,
        range_items: int = 1000,
        max_scans: int = 4,
        history: History | None = None,
        forward: bool = False,
        gate: Gate | None = None,
        registry: Registry | None = None,
        rest: bool = False,
    ) -> None:
        self.backend = backend
        self.registry = registry or Registry()
        of_records = RequestLimits(value_bytes=value_bytes, range_items=range_items)
        self.watchers: Watchers[Stream] = Watchers(
            history or History(),
            self.registry,
            broadcast=self._broadcast,
            is_full=self._is_full,
        )
        self.requests = Requests(
            backend, gate or AllowAll(), self.watchers, of_records, max_workers=max_scans
        )
        metrics = RequestMetrics(self.registry)
        self.api = API(
            backend,
            self.requests,
            self.registry,
            metrics,
            of_records,
            forward=forward,
            version="9.9",
        )
        limits = Limits(max_body_bytes=16 << 20, max_body_bytes_at=SHORT_BODIES)
        access = Access(public=PUBLIC, probes=PROBES)
        self.server = HTTPServer(("127.0.0.1", 0), self.api, limits, access=access)
        self.rest: HTTPServer | None = None
        if rest:
            self.rest = HTTPServer(
                ("127.0.0.1", 0),
                Rest(backend, self.requests, metrics, of_records),
                Limits(max_body_bytes=16 << 20),
                reactor=self.server.reactor,
                name="rest",
            )
            self.rest.start()
        self.watchers.start()
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"

    def _broadcast(self, streams: Collection[Stream], data: bytes) -> None:
        broadcast(self.server.reactor, streams, data)

    def _is_full(self) -> bool:
        return self.server.reactor.is_full()

    def close(self) -> None:
        """Stop; no request may be left."""
        self.watchers.stop()
        if self.rest is not None:
            self.rest.stop()
        assert self.server.drain(5)

    def request(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        return self._ask(self.server, method, target, body, headers)

    def ask_rest(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        """Send a request to REST; header names have _ for -."""
        assert self.rest is not None
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._ask(self.rest, method, target, body, fields)

    @staticmethod
    def _ask(
        server: HTTPServer,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> Answer:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, fields, response.read())
        connection.close()
        return answer

    def converse(self, data: bytes, answers: int) -> bytes:
        """Send bytes in one go and return as many answers as are asked for."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(data)
            received = b""
            while received.count(b"HTTP/1.1 ") < answers or not received.endswith(b"\n"):
                part = connection.recv(65536)
                assert part, received
                received += part
            return received
