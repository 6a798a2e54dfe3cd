"""What becomes of a value when a follower redirects: by our own clients and by other people's."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator

import pytest
import requests
import urllib3

import conuresh
from conure.client import Client
from conure.errors import NotLeader
from tests.lab.httpservice import FakeBackend, Service


@pytest.fixture(name="leader")
def _leader() -> Iterator[Service]:
    leader = Service(FakeBackend(), value_bytes=1 << 20)
    leader.backend.values = {b"k": b"kept"}  # type: ignore[attr-defined]
    yield leader
    leader.close()


@pytest.fixture(name="follower")
def _follower(leader: Service) -> Iterator[Service]:
    backend = FakeBackend()
    backend.error = NotLeader("10.0.0.9:7001", "n9", leader.url)
    follower = Service(backend, value_bytes=1 << 20)
    yield follower
    follower.close()


def stored(leader: Service) -> bytes:
    backend = leader.backend
    assert isinstance(backend, FakeBackend)
    return backend.values[b"k"]


def pieces(count: int = 3, pause: float = 0.0) -> Iterator[bytes]:
    """A value that can be sent once."""
    for _ in range(count):
        time.sleep(pause)
        yield b"x" * 10_000


def put(url: str, data: object, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy of this machine's
        return session.put(url, data=data, headers=headers, timeout=10)  # type: ignore[arg-type]


def refused(answer: bytes) -> bool:
    return answer == b"send value= or a body; Content-Length: 0 stores an empty value\n"


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_requests_with_a_stream_is_told_that_it_is_spent(
    leader: Service, follower: Service, pause: float
) -> None:
    answer = put(f"{follower.url}/kv?key=k", pieces(pause=pause))
    assert [before.status_code for before in answer.history] == [307]
    assert answer.status_code == 400
    assert refused(answer.content)
    assert stored(leader) == b"kept"
    answer = put(f"{leader.url}/kv?key=k", pieces(pause=pause))
    assert answer.status_code == 200
    assert stored(leader) == b"x" * 30_000


def test_urllib3_with_a_stream_is_told_that_it_is_spent(leader: Service, follower: Service) -> None:
    with urllib3.PoolManager() as pool:
        answer = pool.request("PUT", f"{follower.url}/kv?key=k", body=pieces(), timeout=10)
        assert answer.status == 400
        assert refused(answer.data)
        assert stored(leader) == b"kept"
        # Without redirects it sees the answer of the follower itself, however much it has sent.
        answer = pool.request(
            "PUT", f"{follower.url}/kv?key=k", body=pieces(300), timeout=10, redirect=False
        )
        assert answer.status == 307
        assert answer.headers["Location"] == f"{leader.url}/kv?key=k"


@pytest.mark.parametrize("value", [b"value", b"", b"y" * 500_000])
def test_bodies_that_can_be_sent_again_arrive(
    leader: Service, follower: Service, value: bytes
) -> None:
    target = f"{follower.url}/kv?key=k"
    assert put(target, value).status_code == 200
    assert stored(leader) == value
    answer = put(target, io.BytesIO(value + b"1"), Expect="100-continue")
    assert answer.status_code == 200
    assert stored(leader) == value + b"1"
    with urllib3.PoolManager() as pool:
        assert pool.request("PUT", target, body=value + b"2", timeout=10).status == 200
    assert stored(leader) == value + b"2"


@pytest.mark.parametrize("value", [b"value", b"", b"\0\xff" * 100_000])
def test_our_client_and_shell_follow(leader: Service, follower: Service, value: bytes) -> None:
    with Client([follower.url]) as client:
        client.put("k", value)
        assert stored(leader) == value
        client.put("k", b"", ttl=60)
        assert stored(leader) == b""
    assert conuresh.main([f"--server={follower.url}", "put", "k", "by the shell"], {}) == 0
    assert stored(leader) == b"by the shell"
    assert conuresh.main([f"--server={follower.url}", "put", "k", ""], {}) == 0
    assert stored(leader) == b""


def test_the_answer_can_be_read_after_all_of_a_long_body(
    leader: Service, follower: Service
) -> None:
    """By a client that doesn't look for an answer before it has sent everything: no reset."""
    with socket.create_connection(("127.0.0.1", follower.server.port), timeout=10) as client:
        client.sendall(b"PUT /kv?key=k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            client.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 307 ")
    assert leader.url.encode() in answer
    assert stored(leader) == b"kept"
