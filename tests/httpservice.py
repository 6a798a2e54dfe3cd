"""The routes on a server of their own, over a backend that does as the test says."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from http.client import HTTPConnection
from typing import Any

from errors import ConureError, CorruptionError
from httpapi import API, Backend, Check, Command, Reply, WriteReply
from httpserver import HTTPServer
from metrics import Registry
from tests.process import Answer

__all__ = ["FakeBackend", "Service"]


class FakeBackend:
    """Keeps values in a dict and notes every call; ``error`` is what it answers instead."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.batches: list[list[Command]] = []
        self.confirmations = 0
        self.reads: list[list[bytes]] = []
        self.contact: float | None = 0.0
        self.joins: list[dict[str, object]] = []
        self.removed: list[tuple[str, bool]] = []
        self.handed_over: list[str] = []
        self.previews: list[tuple[object, ...]] = []
        self.error: ConureError | None = None
        self.damaged = b""
        self.checks: list[Check] = [("process", True, "ok"), ("leader", True, "n1")]

    def write(self, commands: Sequence[Command], reply: WriteReply) -> None:
        self.batches.append(list(commands))
        if self.error is None:
            for key, value in commands:
                if value is None:
                    self.values.pop(key, None)
                else:
                    self.values[key] = value
        reply(0, len(commands), self.error)

    def confirm_read(self, reply: Reply) -> None:
        self.confirmations += 1
        reply(self.error)

    def get_all(self, keys: Sequence[bytes]) -> list[bytes | ConureError | None]:
        self.reads.append(list(keys))
        damage = CorruptionError("conure.db", 4096, "a page fails its checksum")
        return [damage if key == self.damaged else self.values.get(key) for key in keys]

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
    ) -> None:
        self.joins.append(
            {"id": node_id, "raft": raft_address, "http": http_address, "voter": voter,
             "role": role}
        )  # fmt: skip
        reply(self.error)

    def remove(self, node_id: str, *, force: bool, reply: Reply) -> None:
        self.removed.append((node_id, force))
        reply(self.error)

    def hand_over(self, node_id: str, reply: Reply) -> None:
        self.handed_over.append(node_id)
        reply(self.error)

    def preview_join(self, node_id: str, *, voter: bool, role: str) -> dict[str, Any]:
        self.previews.append(("join", node_id, voter, role))
        return self._preview()

    def preview_remove(self, node_id: str) -> dict[str, Any]:
        self.previews.append(("remove", node_id))
        return self._preview()

    def _preview(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"allowed": True, "reason": "", "voters": 3, "quorum": 2, "active": 3,
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


class Service:
    """A server with the routes over a backend."""

    def __init__(self, backend: Backend, max_value_bytes: int = 1000) -> None:
        self.registry = Registry()
        api = API(self.registry, max_value_bytes=max_value_bytes, version="9.9")
        api.backend = backend
        self.api = api
        self.server = HTTPServer(("127.0.0.1", 0), api)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"

    def request(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        connection.request(method, target, body, headers)
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
