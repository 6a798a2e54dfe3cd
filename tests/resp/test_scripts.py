"""Known scripts: what each means, and that it is the one which its library sends.

Where redis-server is installed, the texts that installed libraries bring are run by its Lua beside
what ConureDB makes of them.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha1
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conure.resp.scripts import KNOWN
from tests.lab.redisserver import EXECUTABLE, Redis, redis_server
from tests.lab.verbmachine import VerbMachine

NIL, ONE, NONE = b"$-1\r\n", b":1\r\n", b":0\r\n"


def digest_of(name: str) -> bytes:
    """Return the digest of the one script with a name, in hexadecimal."""
    (digest,) = [digest for digest, script in KNOWN.items() if script.name == name]
    return digest.hex().encode()


@pytest.fixture
def machine() -> VerbMachine:
    return VerbMachine(now=1_000_000)


def call(machine: VerbMachine, name: str, keys: list[bytes], *words: bytes) -> bytes:
    return machine.run(b"EVALSHA", digest_of(name), b"%d" % len(keys), *keys, *words)


@pytest.mark.parametrize("name", ["redis-py, release", "redlock-py, unlock", "pottery, release"])
def test_a_lock_is_released_by_its_token_alone(machine: VerbMachine, name: str) -> None:
    assert call(machine, name, [b"k"], b"token") == NONE
    machine.run(b"SET", b"k", b"token")
    assert call(machine, name, [b"k"], b"other") == NONE
    assert call(machine, name, [b"k"], b"token") == ONE
    assert machine.run(b"EXISTS", b"k") == NONE


def test_a_lock_is_extended(machine: VerbMachine) -> None:
    extend = "redis-py, extend"
    machine.run(b"SET", b"k", b"token")
    assert call(machine, extend, [b"k"], b"token", b"500", b"0") == NONE  # it never expires
    machine.run(b"SET", b"k", b"token", b"PX", b"1000")
    assert call(machine, extend, [b"k"], b"other", b"500", b"0") == NONE
    assert call(machine, extend, [b"k"], b"token", b"500", b"0") == ONE
    assert machine.run(b"PTTL", b"k") == b":1500\r\n"
    assert call(machine, extend, [b"k"], b"token", b"500", b"1") == ONE
    assert machine.run(b"PTTL", b"k") == b":500\r\n"
    assert call(machine, "pottery, acquired", [b"k"], b"token") == b":500\r\n"
    assert call(machine, "pottery, acquired", [b"k"], b"other") == NONE
    for name in ("redis-py, reacquire", "pottery, extend"):
        assert call(machine, name, [b"k"], b"other", b"700") == NONE
        assert call(machine, name, [b"k"], b"token", b"700") == ONE
        assert machine.run(b"PTTL", b"k") == b":700\r\n"
    assert call(machine, "redis-py, reacquire", [b"none"], b"token", b"700") == NONE


@pytest.mark.parametrize("release", ["redlock 4", "redlock 5"])
def test_several_locks_are_taken_together(machine: VerbMachine, release: str) -> None:
    keys = [b"a", b"b", b"c"]
    machine.run(b"SET", b"b", b"other")
    assert call(machine, f"{release}, lock", keys, b"token", b"900") == NONE
    assert machine.run(b"EXISTS", *keys) == ONE
    machine.run(b"DEL", b"b")
    assert call(machine, f"{release}, lock", keys, b"token", b"900") == b":3\r\n"
    assert machine.run(b"PTTL", b"c") == b":900\r\n"
    assert call(machine, f"{release}, extend", keys, b"token", b"800") == b":3\r\n"
    assert machine.run(b"PTTL", b"c") == b":800\r\n"
    machine.run(b"SET", b"b", b"other", b"PX", b"5")
    assert call(machine, f"{release}, extend", keys, b"token", b"700") == NONE
    assert machine.run(b"PTTL", b"a") == b":800\r\n"
    assert call(machine, f"{release}, unlock", keys, b"token") == b":2\r\n"
    assert machine.run(b"GET", b"b") == b"$5\r\nother\r\n"


def test_rate_limits(machine: VerbMachine) -> None:
    assert call(machine, "limits, hit", [b"k"], b"60", b"1") == ONE
    assert call(machine, "limits, hit", [b"k"], b"90", b"2") == b":3\r\n"
    assert machine.run(b"TTL", b"k") == b":60\r\n"

    flexible = "rate-limiter-flexible"
    assert call(machine, flexible, [b"f"], b"2", b"60") == b"*2\r\n:2\r\n:60000\r\n"
    machine.now = 1_010_000
    assert call(machine, flexible, [b"f"], b"3", b"60") == b"*2\r\n:5\r\n:50000\r\n"
    machine.run(b"SET", b"f", b"7")
    assert call(machine, flexible, [b"f"], b"1", b"60") == b"*2\r\n:8\r\n:60000\r\n"

    assert call(machine, "rate-limit-redis, get", [b"r"]) == b"*2\r\n$-1\r\n:-2\r\n"
    assert call(machine, "rate-limit-redis, hit", [b"r"], b"5000") == b"*2\r\n:1\r\n:5000\r\n"
    machine.now = 1_014_000
    assert call(machine, "rate-limit-redis, hit", [b"r"], b"5000") == b"*2\r\n:2\r\n:1000\r\n"
    assert call(machine, "rate-limit-redis, get", [b"r"]) == b"*2\r\n$1\r\n2\r\n:1000\r\n"
    machine.now = 1_015_000  # it is due, though no entry has ended it yet
    assert call(machine, "rate-limit-redis, hit", [b"r"], b"5000") == b"*2\r\n:1\r\n:5000\r\n"
    machine.run(b"SET", b"r", b"text", b"EX", b"9")
    assert call(machine, "rate-limit-redis, hit", [b"r"], b"5000").startswith(b"-ERR value is not")


def test_django_redis_adds_to_what_is_there(machine: VerbMachine) -> None:
    there, any_ = [
        digest.hex().encode() for digest, script in KNOWN.items() if script.name == "django-redis"
    ]
    assert machine.run(b"EVALSHA", there, b"1", b"k", b"5") == NIL
    assert machine.run(b"EVALSHA", any_, b"1", b"k", b"5") == b":5\r\n"
    assert machine.run(b"EVALSHA", there, b"1", b"k", b"5") == b":10\r\n"


def test_a_script_that_nobody_knows_is_refused(machine: VerbMachine) -> None:
    digest = sha1(b"return 1").hexdigest().encode()
    for words in ([b"EVAL", b"return 1", b"0"], [b"SCRIPT", b"LOAD", b"return 1"]):
        assert machine.run(*words).startswith(b"-ERR this script is not one of those that ConureDB")
    assert machine.run(b"EVALSHA", digest, b"0").startswith(b"-NOSCRIPT ")
    assert machine.run(b"EVALSHA", b"\xff", b"0").startswith(b"-NOSCRIPT ")
    known = sha1(b"return").hexdigest()
    assert machine.run(b"SCRIPT", b"LOAD", b"return") == b"$40\r\n%b\r\n" % known.encode()
    asked = [digest, known.upper().encode(), b"no digest"]
    assert machine.run(b"SCRIPT", b"EXISTS", *asked) == b"*3\r\n:0\r\n:1\r\n:0\r\n"
    assert machine.run(b"SCRIPT", b"FLUSH", b"async") == b"+OK\r\n"
    assert machine.run(b"SCRIPT", b"FLUSH", b"now").startswith(b"-ERR SCRIPT FLUSH only support")
    assert machine.run(b"SCRIPT", b"EXISTS", known.encode()) == b"*1\r\n:1\r\n"


def test_there_are_no_functions_to_flush(machine: VerbMachine) -> None:
    assert machine.run(b"FUNCTION", b"FLUSH") == b"+OK\r\n"
    assert machine.run(b"FUNCTION", b"FLUSH", b"SYNC") == b"+OK\r\n"
    text = b"-ERR FUNCTION FLUSH only supports SYNC|ASYNC option\r\n"
    assert machine.run(b"FUNCTION", b"FLUSH", b"now") == text


def test_keys_and_arguments_are_counted(machine: VerbMachine) -> None:
    release = digest_of("redis-py, release")
    assert machine.run(b"EVALSHA", release, b"2", b"k") == (
        b"-ERR Number of keys can't be greater than number of args\r\n"
    )
    assert machine.run(b"EVALSHA", release, b"-1", b"k") == (
        b"-ERR Number of keys can't be negative\r\n"
    )
    for words in ([b"0", b"token"], [b"1", b"k"]):
        assert b"takes more keys or arguments" in machine.run(b"EVALSHA", release, *words)
    machine.run(b"SET", b"k", b"v")
    hit = digest_of("limits, hit")
    assert machine.run(b"EVALSHA", hit, b"1", b"k", b"60", b"1").startswith(b"-ERR value is not")


# -- as libraries send them ----------------------------------------------------------------------

SOURCES = {
    "redis": ["lock.py"],
    "redlock": ["__init__.py"],
    "pottery": ["redlock.py"],
    "django_redis": ["client/default.py"],
}
INSTALLED = [name for name in (*SOURCES, "limits") if importlib.util.find_spec(name)]


def texts_of(library: str) -> dict[bytes, str]:
    """Return the scripts of an installed library, by digest."""
    spec = importlib.util.find_spec(library)
    assert spec is not None
    assert spec.origin is not None
    place = Path(spec.origin).parent
    if library == "limits":
        found = [(place / "resources/redis/lua_scripts/incr_expire.lua").read_text()]
    else:
        nodes = [
            node
            for name in SOURCES[library]
            for node in ast.walk(ast.parse((place / name).read_text()))
        ]
        constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
        found = [each for each in constants if isinstance(each, str) and "redis.call" in each]
    return {sha1(text.encode()).digest(): text for text in found}


@pytest.mark.skipif(not INSTALLED, reason="no library with scripts is installed")
def test_the_scripts_of_libraries_are_known() -> None:
    for library in INSTALLED:
        texts = texts_of(library)
        assert texts
        assert texts.keys() <= KNOWN.keys(), library


@pytest.fixture(scope="module", name="redis")
def _redis() -> Iterator[Redis]:
    if EXECUTABLE is None or not INSTALLED:
        pytest.skip("redis-server, or any library with scripts, is not installed")
    with redis_server() as place, closing(Redis(place)) as redis:
        yield redis


LOCKS = ("redis-py", "redlock", "pottery")
TOKENS = st.sampled_from([b"token", b"other", b"1", b"5"])
NUMBERS = st.sampled_from([b"0", b"1", b"5", b"100000", b"-3"])
# What is over within milliseconds is gone in Redis by the time it is looked at.
MILLISECONDS = st.sampled_from([b"0", b"1000000", b"100000", b"-3"])
BEFORE = st.sampled_from(
    [[b"SET", b"k", b"token"], [b"SET", b"k", b"token", b"EX", b"900"], [b"SET", b"k", b"5"],
     [b"SET", b"k", b"1", b"EX", b"900"], [b"DEL", b"k"]]
)  # fmt: skip


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_scripts_mean_what_redis_makes_of_their_texts(redis: Redis, data: st.DataObject) -> None:
    texts = texts_of(data.draw(st.sampled_from(INSTALLED)))
    digest = data.draw(st.sampled_from(sorted(texts)))
    script, text = KNOWN[digest], texts[digest].encode()
    machine = VerbMachine()
    redis.run(b"FLUSHALL")
    before = data.draw(BEFORE)
    assert machine.run(*before) == redis.run(*before)
    for _ in range(3):
        is_lock = script.name.startswith(LOCKS)
        words = [data.draw(MILLISECONDS if is_lock else NUMBERS) for _ in range(script.arguments)]
        if is_lock:
            words[0] = data.draw(TOKENS)
        command = [b"EVAL", text, b"1", b"k", *words]
        ours, theirs = machine.run(*command), redis.run(*command)
        if ours[:1] == b"-" or theirs[:1] == b"-":
            assert ours[:1] == theirs[:1], (command, ours, theirs)
            break  # a script that fails in the middle has done a part in Redis
        if script.name == "pottery, acquired":
            assert abs(int(ours[1:]) - int(theirs[1:])) < 1000
        else:
            assert ours == theirs, (command, ours, theirs)
        assert machine.run(b"GET", b"k") == redis.run(b"GET", b"k"), command
        left = [int(each.run(b"TTL", b"k")[1:]) for each in (machine, redis)]
        assert abs(left[0] - left[1]) <= 1, command
