"""Loads of servers, and how they are compared (bench/resp_load.py, server_turns.py and others)."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from bench import node_part, pairs_command, resp_load
from bench.engine_part import BURSTS
from bench.loads import Outcome
from bench.plan import FULL
from bench.records import Keyspace, random_puts
from bench.server_turns import Contestant, bursts_in_turns, rates
from bench.servers import PROGRAM, Redis
from bench.workspace import BenchError, Workspace
from tests.bench.places import is_stopped, wait_until, workspace_in


def test_a_server_stands_still_but_for_its_bursts(tmp_path: Path) -> None:
    order = []

    with workspace_in(tmp_path) as workspace:
        process = workspace.start("sleeper", ["sleep", "60"])

        def burst(name: str) -> Outcome:
            if name == "still":
                assert not is_stopped(process.pid)
            else:
                wait_until(partial(is_stopped, process.pid))
            order.append(name)
            return Outcome(float(len(order)), 0.0, 0.0)

        contestants = [
            Contestant("still", partial(burst, "still"), process),
            Contestant("other", partial(burst, "other")),
        ]
        found = bursts_in_turns(contestants, 3)
        wait_until(lambda: not is_stopped(process.pid))
    assert order == ["still", "other", "other", "still", "still", "other"]
    assert rates(found["still"]) == [1, 4, 5]


def test_a_command_in_resp() -> None:
    assert resp_load.command(b"SET", b"k", b"") == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n"


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")
def test_a_mix_over_resp(tmp_path: Path) -> None:
    with workspace_in(tmp_path) as workspace:
        redis = Redis(workspace)
        resp_load.fill(redis.port)
        assert redis.command("DBSIZE") == f":{resp_load.MIX_KEYS}"
        outcome = resp_load.mixed(redis.port, 4, 8, 0.1, 0.5)
        assert outcome.rate > 0
        assert 0 < outcome.p50 <= outcome.p99
        assert redis.command("DBSIZE") == f":{resp_load.MIX_KEYS}"
        redis.stop()


@contextmanager
def _answering(answer: bytes) -> Iterator[int]:
    """Serve connections that are answered with the same bytes, whatever they ask."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("answer", [b"-ERR no\r\n", b"+OK\r\n+OK\r\n+OK\r\n", b""])
def test_a_mix_notices_errors_and_wrong_answers(answer: bytes) -> None:
    with _answering(answer) as port, pytest.raises(BenchError, match="error"):
        resp_load.mixed(port, 1, 1, 0.1, 1.0)


def test_puts_at_random_are_of_records_that_exist() -> None:
    keys = {Keyspace.key(n) for n in range(10)}
    for put in random_puts(10, 3, 50):
        assert put.split()[1].decode().removeprefix("/kv?key=") in keys
        assert put.endswith(tuple(Keyspace.value(n, 3).encode() for n in range(10)))


def test_nodes_are_named_with_checkout_and_flags() -> None:
    read = pairs_command.node_spec
    assert read("node") == ("node", "", ())
    assert read("leader@../old:--engine=lsm,--x=1") == (
        "leader",
        "../old",
        ["--engine=lsm", "--x=1"],
    )
    assert read("redis") is None


def test_what_can_not_be_compared_is_refused() -> None:
    for words in (["put", "lsm", "sqlite3"], ["get", "node", "redis"], ["load", "node", "node"]):
        with pytest.raises(BenchError):
            pairs_command.main(words)


def test_a_burst_has_one_length_however_many_pairs() -> None:
    few = FULL.with_pairs(5)
    assert few.pairs == 5
    assert few.gets / few.pairs == FULL.gets / FULL.pairs
    assert BURSTS.keys() >= set(pairs_command.SETTLED)


def test_a_checkout_without_workers_differs_by_that_alone(tmp_path: Path) -> None:
    with workspace_in(tmp_path) as workspace:
        checkout = node_part.without_workers(workspace)
        here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        before = Path(here, PROGRAM).read_text()
        after = Path(checkout, PROGRAM).read_text()
        assert after != before
        assert after.replace("workers=False", "workers=True") == before
        assert os.path.samefile(Path(checkout, "conure"), Path(here, "conure"))
    assert Path(here, "conure").is_dir()


def test_a_program_that_fails_is_told_of(tmp_path: Path) -> None:
    with workspace_in(tmp_path) as workspace:
        assert workspace.run(["echo", "hello"], 10) == "hello\n"
        with pytest.raises(BenchError, match="status 1"):
            workspace.begin(["false"])(10)
        talker = workspace.converse("mute", ["false"])
        with pytest.raises(BenchError, match="has ended"):
            talker.receive()
    with pytest.raises(BenchError, match="a sync costs nothing"):
        Workspace("/dev/shm")
