"""A load of gets and sets in one mix over RESP, which redis-benchmark doesn't send.

All keys exist and all values are alike in length, so the bytes of an answer are known before it
comes: the client compares lengths and looks for errors, and has little else to do. It runs in the
calling thread, and one core of it is what both servers of a comparison are measured with.
"""

from __future__ import annotations

import random
import selectors
import socket
import time
from collections.abc import Sequence

from bench.loads import Outcome
from bench.report import quantile
from bench.workspace import BenchError

__all__ = ["MIX_KEYS", "command", "fill", "key_of", "mixed"]

MIX_KEYS = 100_000

_VALUE = b"v" * 25
_SET_ANSWER = b"+OK\r\n"
_GET_ANSWER = b"$%d\r\n%b\r\n" % (len(_VALUE), _VALUE)
_GROUPS = 2_000  # that are rendered, and sent over and over
_PATIENCE = 10.0  # seconds without any answer after which a server counts as hung


class _Group:
    """Commands that are sent together, and how many bytes answer them."""

    def __init__(self, chance: random.Random, depth: int, writes: float) -> None:
        sent, self.answer = [], 0
        for _ in range(depth):
            key = key_of(chance.randrange(MIX_KEYS))
            if chance.random() < writes:
                sent.append(command(b"SET", key, _VALUE))
                self.answer += len(_SET_ANSWER)
            else:
                sent.append(command(b"GET", key))
                self.answer += len(_GET_ANSWER)
        self.bytes = b"".join(sent)


class _Client:
    """A connection with one group under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.missing = 0  # bytes
        self.sent_at = 0.0

    def send(self, group: _Group) -> None:
        self.missing = group.answer
        self.sent_at = time.perf_counter()
        self.socket.sendall(group.bytes)

    def receive(self) -> bool:
        """Read once; return whether the group is answered. Raises BenchError for an error."""
        data = self.socket.recv(1 << 16)
        self.missing -= len(data)
        if not data or b"-" in data or self.missing < 0:
            raise BenchError(f"a mixed load over RESP met an error: {data[:200]!r}")
        return self.missing == 0


def command(*words: bytes) -> bytes:
    """Return a command as clients send it."""
    parts = (b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return b"*%d\r\n" % len(words) + b"".join(parts)


def fill(port: int) -> None:
    """Set every key of the mix. Raises BenchError."""
    client = _Client(port)
    try:
        for first in range(0, MIX_KEYS, 1_000):
            keys = [key_of(n) for n in range(first, min(MIX_KEYS, first + 1_000))]
            client.missing = len(keys) * len(_SET_ANSWER)
            client.socket.sendall(b"".join(command(b"SET", key, _VALUE) for key in keys))
            while not client.receive():
                pass
    finally:
        client.socket.close()


def mixed(port: int, connections: int, depth: int, seconds: float, writes: float) -> Outcome:
    """Send a share of *writes* among gets, *depth* commands at a time on each connection.

    Latencies are those of a group of commands. Raises BenchError.
    """
    chance = random.Random(connections)
    groups = [_Group(chance, depth, writes) for _ in range(_GROUPS)]
    clients: list[_Client] = []
    try:
        clients.extend(_Client(port) for _ in range(connections))
        times, elapsed = _exchange(clients, groups, seconds)
    finally:
        for client in clients:
            client.socket.close()
    percentiles = [1e3 * quantile(times, q) for q in (0.5, 0.99, 0.999)]
    return Outcome(len(times) * depth / elapsed, *percentiles)


def _exchange(
    clients: Sequence[_Client], groups: Sequence[_Group], seconds: float
) -> tuple[list[float], float]:
    """Keep a group under way on each connection for so long; return the times, and how long."""
    times: list[float] = []
    turn = 0
    with selectors.DefaultSelector() as selector:
        began = time.perf_counter()
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(groups[turn % _GROUPS])
            turn += 1
        while selector.get_map():
            ready = selector.select(_PATIENCE)
            if not ready:
                raise BenchError(f"no answer within {_PATIENCE:.0f} s")
            for key, _ in ready:
                client = key.data
                if not client.receive():
                    continue
                now = time.perf_counter()
                times.append(now - client.sent_at)
                if now - began < seconds:
                    client.send(groups[turn % _GROUPS])
                    turn += 1
                else:
                    selector.unregister(client.socket)
    return times, time.perf_counter() - began


def key_of(n: int) -> bytes:
    """Return the name that redis-benchmark gives key *n*."""
    return b"key:%012d" % n
