"""answers.py: each command is told what came of it, in whichever order the parts of a batch end."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conure.commands import Committed
from conure.errors import ConureError, OutcomeUnknown, Unavailable
from conure.resp import answers
from conure.service.backend import Command, WriteReply
from tests.lab.httpservice import FakeBackend
from tests.lab.respclient import ErrorReply, RespClient, command
from tests.lab.respservice import RespService


class _Batch(NamedTuple):
    commands: Sequence[Command]
    reply: WriteReply


class OpenBackend(FakeBackend):
    """Commits nothing: the test says how each part of a batch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[_Batch] = []

    def write(
        self, commands: Sequence[Command], reply: WriteReply, kept: int | None = None
    ) -> None:
        self.open.append(_Batch(list(commands), reply))

    def take(self, count: int) -> list[_Batch]:
        """Return what is asked for once there are so many commands."""
        deadline = time.monotonic() + 20
        while sum(len(batch.commands) for batch in self.open) < count:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        batches, self.open = self.open, []
        return batches


@pytest.fixture
def backend() -> OpenBackend:
    return OpenBackend()


@pytest.fixture
def service(backend: OpenBackend) -> Iterator[RespService]:
    service = RespService(backend)
    yield service
    service.close()


def end(
    service: RespService, batch: _Batch, start: int, stop: int, error: ConureError | None
) -> None:
    service.reactor.post(batch.reply, start, stop, error or Committed(1, {}))


def test_the_later_part_of_a_pipeline_may_end_first(
    backend: OpenBackend, service: RespService, client: RespClient
) -> None:
    client.send(b"".join(command("SET", key, "v") for key in "abcd"))
    (batch,) = backend.take(4)
    end(service, batch, 2, 4, None)
    client.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(20)
    end(service, batch, 0, 2, OutcomeUnknown("cut off"))
    unknown = ErrorReply("UNKNOWN the write may or may not have happened: cut off")
    assert [client.read() for _ in range(4)] == [unknown, unknown, b"OK", b"OK"]


def test_each_command_is_told_its_own_end(backend: OpenBackend, service: RespService) -> None:
    clients = [service.client() for _ in range(4)]

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1 << 32))
    def run(counts: list[int], seed: int) -> None:
        luck = random.Random(seed)  # which batches there are isn't the same each time
        for number, count in enumerate(counts):  # one command alone is a lone one
            keys = [b"%d.%d" % (number, n) for n in range(count)]
            clients[number].send(b"".join(command("SET", key, "v") for key in keys))
        wanted: dict[bytes, object] = {}
        parts: list[tuple[_Batch, int, int]] = []
        for batch in backend.take(sum(counts)):
            size = len(batch.commands)
            bounds = [0, *(n for n in range(1, size) if luck.random() < 0.5), size]
            parts += [(batch, *each) for each in pairwise(bounds)]
        for batch, start, stop in luck.sample(parts, len(parts)):
            error = luck.choice([None, Unavailable(f"at {start}")])
            for each in batch.commands[start:stop]:
                assert isinstance(each, tuple)
                key = each[0]
                assert isinstance(key, bytes)
                wanted[key] = ErrorReply(f"TRYAGAIN at {start}") if error else b"OK"
            end(service, batch, start, stop, error)
        for number, count in enumerate(counts):
            told = [clients[number].read() for _ in range(count)]
            assert told == [wanted[b"%d.%d" % (number, n)] for n in range(count)]

    run()
    for each in clients:
        each.close()


class Looked(list[object]):
    """Counts how many of its items are looked at."""

    looks = 0

    def __getitem__(self, place: int | slice) -> object:  # type: ignore[override]
        found = super().__getitem__(place)
        self.looks += len(found) if isinstance(place, slice) else 1  # type: ignore[arg-type]
        return found


@settings(deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=40), st.integers(2, 3))
@example([1] * 400, 2)
def test_whose_answers_are_next_is_found_by_looking_at_few(runs: list[int], whose: int) -> None:
    each = [object() for _ in range(whose)]
    flat = [each[n % whose] for n, size in enumerate(runs) for _ in range(size)]
    waiters = Looked(flat)
    found, position = [], 0
    while position < len(flat):
        found.append(answers._own(waiters, position, len(flat)))  # type: ignore[arg-type]
        position += found[-1]
    assert found == runs
    assert waiters.looks <= 4 * len(flat) + 24 * len(runs)
    first = runs[0]
    assert answers._own(waiters, 0, max(1, first - 1)) == max(1, first - 1)  # type: ignore[arg-type]


def test_what_ends_twice_for_a_bug_ends_no_reactor(
    service: RespService, client: RespClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = service.backend
    assert isinstance(backend, OpenBackend)

    def write(commands: Sequence[Command], reply: WriteReply, kept: int | None = None) -> None:
        OpenBackend.write(backend, commands, reply, kept)
        raise ValueError("a bug")

    monkeypatch.setattr(backend, "write", write)
    internal = ErrorReply("ERR internal error; the log of this node has more")
    assert client.ask("SET", "k", "v") == internal
    (batch,) = backend.take(1)
    end(service, batch, 0, 1, Unavailable("late"))
    assert client.ask("PING") == b"PONG"
    assert not service.failures
