"""A server without any HTTP: real nodes, the reactor, the service, and a protocol of lines."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from conure.cluster.node import Node
from conure.cluster.options import NodeOptions
from conure.fileio import OsFileSystem
from conure.metrics import Registry
from conure.net.listener import Listener, bind
from conure.net.reactor import Bounds, Reactor
from conure.peers.transport import Transport
from conure.service.gate import AllowAll
from conure.service.limits import Limits
from conure.service.requests import Requests
from conure.service.watchers import Watchers
from conure.state.history import History
from tests.lab.lineserver import LineServer
from tests.lab.process import ROOT, wait_until


class Member:
    """A node with a line protocol at its only port for clients."""

    def __init__(self, stack: ExitStack, directory: Path, name: str, *, founds: bool) -> None:
        registry = Registry()
        bound = bind(("127.0.0.1", 0))
        self.port = bound.getsockname()[1]
        transport = Transport(("127.0.0.1", 0), registry)
        reactor = Reactor(Bounds(), self._fail, "lines")
        options = NodeOptions(
            node_id=name,
            told_node_id=True,
            data_dir=str(directory / name),
            raft_address=f"127.0.0.1:{transport.port}",
            http_address=f"http://127.0.0.1:{self.port}",
            bootstrap=founds,
            version="9.9",
        )
        history = History()
        self.node = Node.open(
            options,
            OsFileSystem(),
            transport,
            registry,
            lambda: pytest.fail("the node has ended"),
            history,
            call_later=reactor.call_later,
        )
        watchers: Watchers[object] = Watchers(history, registry)  # type: ignore[type-var]
        limits = Limits(value_bytes=1 << 20, range_items=1000)
        requests = Requests(self.node, AllowAll(), watchers, limits, max_workers=1)
        reactor.at_round_end(requests.end_round)
        listener = Listener(bound, reactor, LineServer(reactor, requests), self._fail, "lines")
        transport.start(self.node, reactor)
        self.node.start()
        listener.start()
        stack.callback(self.node.stop)
        stack.callback(transport.close)
        stack.callback(reactor.drain, 5)
        stack.callback(listener.stop)
        self.raft_address = options.raft_address

    def ask(self, *lines: str) -> list[str]:
        """Say lines at once and return the answers."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as client:
            client.sendall("".join(f"{line}\n" for line in lines).encode())
            with client.makefile("r") as answers:
                return [answers.readline().rstrip("\n") for _ in lines]

    def _fail(self, error: BaseException) -> None:
        raise AssertionError(error)


@contextmanager
def members(directory: Path, *names: str) -> Iterator[list[Member]]:
    with ExitStack() as stack:
        yield [Member(stack, directory, name, founds=name == names[0]) for name in names]


def test_put_get_and_scan_without_http(tmp_path: Path) -> None:
    with members(tmp_path, "n1") as (alone,):
        wait_until(lambda: alone.node.status()["is_leader"])
        answers = alone.ask("PUT a 1", "PUT b 2")
        first = int(answers[0].removeprefix("OK "))
        assert answers[1] == f"OK {first + 1}"
        assert alone.ask("GET a", "GET nothing", "SCAN ", "SAY hello") == [
            "VALUE 1",
            "NONE",
            "ITEMS a=1 b=2",
            "ERROR there is no 'SAY hello'",
        ]


def test_a_follower_refers_without_http(tmp_path: Path) -> None:
    with members(tmp_path, "n1", "n2") as (leader, follower):
        wait_until(lambda: leader.node.status()["is_leader"])
        done: list[object] = []
        leader.node.join("n2", follower.raft_address, "", voter=False, role="", reply=done.append)
        wait_until(lambda: bool(done))
        assert done == [None]
        assert leader.ask("PUT k v")[0].startswith("OK ")
        wait_until(lambda: follower.node.status()["leader"] == leader.raft_address)
        there = f"NOTLEADER http://127.0.0.1:{leader.port}"
        assert follower.ask("PUT k w", "GET k") == [there, there]
        assert leader.ask("GET k") == ["VALUE v"]


def test_no_module_of_http_is_needed() -> None:
    code = (
        "import sys, conure.net.listener, conure.service.requests, conure.cluster.node;"
        "print(*[m for m in sys.modules if m.startswith('conure.http') or m == 'httpapi'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
