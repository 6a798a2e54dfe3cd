"""What the part about locked doors is made of: keys, clients by TLS, and what is judged by them."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path

import pytest

from bench import newcomers
from bench.keys import UNVERIFIED, Keys, make_keys
from bench.loads import RedisLoad
from bench.pipeline import paced
from bench.servers import Redis, Request, ask
from bench.workspace import BenchError
from tests.bench.places import workspace_in

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    with workspace_in(tmp_path_factory.mktemp("keys")) as workspace:
        yield make_keys(workspace)


@contextmanager
def answering(keys: Keys) -> Iterator[int]:
    """Serve by TLS; every request is answered with ``ok``, several that come at once, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.certificate, keys.key)

    def serve(plain: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
            while data := connection.recv(1 << 16):
                connection.sendall(ANSWER * data.count(b"\r\n\r\n"))

    def accept() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            thread = threading.Thread(target=serve, args=[connection])
            thread.start()
            threads.append(thread)

    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))
    accepting = threading.Thread(target=accept)
    accepting.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    accepting.join()
    for thread in threads:
        thread.join(10)


def test_the_certificate_is_believed_by_its_ca_and_the_keys_are_private(keys: Keys) -> None:
    context = ssl.create_default_context(cafile=keys.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with (
        answering(keys) as port,
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="node2") as connection,
    ):
        assert connection.version() == "TLSv1.3"
    assert len(Path(keys.secret).read_text().strip()) >= 32
    for path in (keys.key, keys.secret):
        assert not os.stat(path).st_mode & 0o077


def test_newcomers_are_counted_and_one_that_is_not_served_is_told(keys: Keys) -> None:
    with answering(keys) as port:
        assert newcomers.come(port, 200.0, 0.1) == 20
        assert ask(port, Request("GET", "/"), tls=True) == (200, b"ok")
    with pytest.raises(OSError, match="refused"):
        newcomers.come(port, 200.0, 0.1)


def test_a_pace_is_kept_over_tls(keys: Keys) -> None:
    with answering(keys) as port:
        delays = paced(port, repeat(b"GET / HTTP/1.1\r\n\r\n"), 200.0, 0.2, tls=True)
    assert len(delays) == 40


@pytest.mark.skipif(not shutil.which("redis-benchmark"), reason="needs redis")
def test_redis_is_measured_over_tls(tmp_path: Path, keys: Keys) -> None:
    with workspace_in(tmp_path) as workspace:
        try:
            redis = Redis(workspace, keys)
        except BenchError as error:
            pytest.skip(f"redis without TLS: {error}")
        load = RedisLoad(workspace, redis.port, "SET", 2, 10, tls=True)
        load.calibrate()
        assert load.run(0.1).rate > 0
        assert int(redis.command("DBSIZE")[1:]) > 0
        with pytest.raises(BenchError), workspace_in(tmp_path) as other:
            RedisLoad(other, redis.port, "SET", 2, 10).calibrate()
        redis.stop()


def test_no_certificate_is_needed_to_ask() -> None:
    assert UNVERIFIED.verify_mode == ssl.CERT_NONE
