"""Libraries for Redis, each as its users use it, against a real server.

A test of Python's is skipped where its library isn't installed; requirements-dev.txt has all but
pottery. Those of Node are tried if the variable ``TEST_NPM`` is set: npm installs them into a
temporary directory.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.process import resp_port, running

PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


@pytest.fixture(scope="module", params=["plain", "tls"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a server speaks RESP, by TLS or not."""
    data = tmp_path_factory.mktemp("libraries") / "data"
    tls = request.param == "tls"
    with running(data, "--bootstrap", "--resp-addr=127.0.0.1:0", tls=tls) as server:
        yield resp_port(server)


@pytest.fixture
def redis(port: int) -> Any:
    """The module redis, for an empty server."""
    module = pytest.importorskip("redis")
    with module.Redis(port=port) as client:
        client.flushall()
    return module


# -- redis-py --------------------------------------------------------------------------------------


@PROTOCOLS
def test_redis_py_values(redis: Any, port: int, protocol: int) -> None:
    with redis.Redis(port=port, protocol=protocol) as client:
        assert client.set("k", b"\xff\r\n", px=50_000, get=True) is None
        assert client.set("k", "other", nx=True) is None
        assert client.get("k") == b"\xff\r\n"
        assert 0 < client.pttl("k") <= 50_000
        assert client.getex("k", persist=True) == b"\xff\r\n"
        assert (client.ttl("k"), client.ttl("none")) == (-1, -2)
        assert client.incrbyfloat("f", 0.5) == 0.5
        assert client.mset({"a": 1, "b": 2})
        assert client.mget(["a", "none", "b"]) == [b"1", None, b"2"]
        assert client.msetnx({"a": 3, "c": 3}) is False
        assert (client.append("a", "23"), client.getrange("a", 1, -1)) == (3, b"23")
        assert client.rename("a", "d")
        assert client.copy("d", "e")
        assert (client.exists("a", "d", "e"), client.unlink("d", "e")) == (2, 2)
        assert client.type("b") == b"string"
        assert client.info("keyspace")["db0"]["keys"] == 3
        assert (client.dbsize(), set(client.scan_iter(count=1))) == (3, {b"k", b"f", b"b"})
        with pytest.raises(redis.ResponseError, match="not an integer"):
            client.incr("k")
        with pytest.raises(redis.ResponseError, match="unknown command"):
            client.lpush("l", 1)


@PROTOCOLS
def test_redis_py_pipelines(redis: Any, port: int, protocol: int) -> None:
    with redis.Redis(port=port, protocol=protocol) as client:
        for is_transaction in (True, False):
            client.flushall()
            with client.pipeline(transaction=is_transaction) as pipe:
                for number in range(1000):
                    pipe.set(f"k{number}", number)
                    pipe.get(f"k{number}")
                replies = pipe.execute()
            assert replies[::2] == [True] * 1000
            assert replies[1::2] == [b"%d" % number for number in range(1000)]
            with client.pipeline(transaction=is_transaction) as pipe:
                pipe.set("n", "x").incr("n").get("n")
                first, error, last = pipe.execute(raise_on_error=False)
            assert (first, type(error), last) == (True, redis.ResponseError, b"x")


@PROTOCOLS
def test_redis_py_watches(redis: Any, port: int, protocol: int) -> None:
    """Each of several threads adds with WATCH; no addition is lost."""

    def add(pipe: Any) -> None:
        found = int(pipe.get("n") or 0)
        pipe.multi()
        pipe.set("n", found + 1)

    def add_often() -> None:
        with redis.Redis(port=port, protocol=protocol) as client:
            for _ in range(25):
                client.transaction(add, "n")

    threads = [threading.Thread(target=add_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with redis.Redis(port=port, protocol=protocol) as client:
        assert client.get("n") == b"100"


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_messages(redis: Any, port: int, protocol: int) -> None:
    client = redis.Redis(port=port, protocol=protocol)
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("plain")
        listener.psubscribe("pl*")
        listener.ssubscribe("shard")
        for _ in range(3):
            listener.get_message(timeout=5)
        assert client.publish("plain", "of all") == 2
        assert client.spublish("shard", "of a shard") == 1
        assert client.pubsub_shardchannels() == [b"shard"]
        assert client.pubsub_shardnumsub("shard") == [(b"shard", 1)]
        found = [listener.get_message(timeout=5) for _ in range(3)]
        assert [(each["type"], each["channel"], each["data"]) for each in found] == [
            ("message", b"plain", b"of all"),
            ("pmessage", b"plain", b"of all"),
            ("smessage", b"shard", b"of a shard"),
        ]
        listener.sunsubscribe("shard")
    client.close()


def test_redis_py_locks(redis: Any, port: int) -> None:
    with redis.Redis(port=port) as client:
        one, other = client.lock("lock", timeout=20), client.lock("lock", timeout=20)
        assert one.acquire(blocking=False)
        assert not other.acquire(blocking=False)
        assert one.locked()
        assert one.owned()
        assert one.extend(20)
        assert 20_000 < client.pttl("lock") <= 40_000
        assert one.reacquire()
        assert client.pttl("lock") <= 20_000
        one.release()
        with pytest.raises(redis.exceptions.LockError):
            one.release()
        assert other.acquire(blocking_timeout=5)
        client.delete("lock")
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            other.release()


@PROTOCOLS
def test_redis_py_asyncio(redis: Any, port: int, protocol: int) -> None:
    async def use() -> None:
        async with redis.asyncio.Redis(port=port, protocol=protocol) as client:
            await asyncio.gather(*(client.incr("n") for _ in range(50)))
            assert await client.get("n") == b"50"
            async with client.pipeline(transaction=True) as pipe:
                assert await pipe.set("a", 1).incr("a").execute() == [True, 2]
            async with client.pipeline() as pipe:
                await pipe.watch("a")
                await client.set("a", 5)
                pipe.multi()
                pipe.set("a", 6)
                with pytest.raises(redis.WatchError):
                    await pipe.execute()
            async with client.lock("lock", timeout=20) as lock:
                assert await lock.extend(5)
            assert await client.get("lock") is None
            assert {key async for key in client.scan_iter()} == {b"n", b"a"}
            async with client.pubsub(ignore_subscribe_messages=True) as listener:
                await listener.subscribe("news")
                await listener.psubscribe("ne*")
                for _ in range(2):
                    assert await listener.get_message(timeout=5) is None
                assert await client.publish("news", "hello") == 2
                found = [await listener.get_message(timeout=5) for _ in range(2)]
                assert [(each["type"], each["data"]) for each in found] == [
                    ("message", b"hello"),
                    ("pmessage", b"hello"),
                ]

    asyncio.run(use())


# -- what is built on it ---------------------------------------------------------------------------


def test_django_redis(redis: Any, port: int) -> None:  # it empties the server
    pytest.importorskip("django_redis")
    place = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"redis://127.0.0.1:{port}/0"}
    django_settings = pytest.importorskip("django.conf").settings
    if django_settings.configured:
        pytest.skip("Django is configured once for each process")
    django_settings.configure(CACHES={"default": place})
    cache = pytest.importorskip("django.core.cache").cache  # it looks there
    cache.set("k", {"a": [1, 2]}, timeout=100)
    assert cache.get("k") == {"a": [1, 2]}
    assert 0 < cache.ttl("k") <= 100
    assert cache.add("k", 1) is False
    assert cache.touch("k", 50)
    cache.set_many({"a": 1, "b": 2})
    assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    assert (cache.incr("a"), cache.decr("b", 2)) == (2, 0)
    with pytest.raises(ValueError, match="not found"):
        cache.incr("c")
    assert cache.get_or_set("d", lambda: 7) == 7
    assert set(cache.keys("*")) == {"k", "a", "b", "d"}
    assert set(cache.iter_keys("[ab]")) == {"a", "b"}
    assert cache.delete_pattern("[ab]") == 2
    with cache.lock("lock", timeout=10):
        assert cache.client.get_client().exists("lock", ":1:lock") == 1
    assert cache.has_key("k")
    cache.delete_many(["k", "d"])
    cache.set("x", 1, timeout=None)
    cache.clear()
    assert cache.get("x") is None
    cache.close()


def test_flask_session(redis: Any, port: int) -> None:
    flask = pytest.importorskip("flask")
    flask_session = pytest.importorskip("flask_session")
    with redis.Redis(port=port) as client:
        app = flask.Flask(__name__)
        app.config.update(SESSION_TYPE="redis", SESSION_REDIS=client, SESSION_PERMANENT=True)
        flask_session.Session(app)

        @app.route("/count")
        def count() -> str:
            flask.session["visits"] = flask.session.get("visits", 0) + 1
            return str(flask.session["visits"])

        @app.route("/leave")
        def leave() -> str:
            flask.session.clear()
            return ""

        browser, other = app.test_client(), app.test_client()
        assert [browser.get("/count").text for _ in range(3)] == ["1", "2", "3"]
        assert other.get("/count").text == "1"
        assert len(client.keys("session:*")) == 2
        assert all(client.ttl(key) > 0 for key in client.keys("session:*"))
        browser.get("/leave")
        assert len(client.keys("session:*")) == 1
        assert browser.get("/count").text == "1"


def test_limits(redis: Any, port: int) -> None:  # it empties the server
    limits = pytest.importorskip("limits")
    storage = limits.storage.storage_from_string(f"redis://127.0.0.1:{port}")
    assert storage.check()
    limiter = limits.strategies.FixedWindowRateLimiter(storage)
    rate = limits.parse("3/hour")
    assert [limiter.hit(rate, "me") for _ in range(4)] == [True, True, True, False]
    assert not limiter.test(rate, "me")
    assert limiter.hit(rate, "you", cost=2)
    assert limiter.get_window_stats(rate, "you").remaining == 1
    limiter.clear(rate, "me")
    assert limiter.hit(rate, "me")


def test_redlock_py(redis: Any, port: int) -> None:
    redlock = pytest.importorskip("redlock")
    with redis.Redis(port=port) as client:
        manager = redlock.Redlock([{"host": "127.0.0.1", "port": port}], retry_count=1)
        lock = manager.lock("resource", 20_000)
        assert client.get("resource") == lock.key
        assert manager.lock("resource", 20_000) is False
        manager.unlock(lock)
        assert client.get("resource") is None
        assert manager.lock("resource", 20_000)


def test_pottery(redis: Any, port: int) -> None:
    pottery = pytest.importorskip("pottery")
    with redis.Redis(port=port) as client:
        lock = pottery.Redlock(key="work", masters={client}, auto_release_time=20)
        assert lock.acquire(blocking=False)
        assert 0 < lock.locked() <= 20
        lock.extend()
        lock.release()
        assert not lock.locked()


# -- Node's ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("TEST_NPM"), reason="TEST_NPM isn't set")
@pytest.mark.timeout(180)
def test_ioredis_and_node_redis(port: int, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "node_clients.mjs", tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "ioredis@6", "redis@6"]
    subprocess.run(install, cwd=tmp_path, check=True)
    command = ["node", "node_clients.mjs", str(port)]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["ioredis", "node-redis, RESP2", "node-redis, RESP3"]
