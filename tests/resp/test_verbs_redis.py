"""Data commands beside a real redis-server, reply by reply, byte by byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.redisserver import EXECUTABLE, Redis, redis_server
from tests.lab.respclient import RespClient, command, parse_all
from tests.lab.respservice import RespService
from tests.lab.verbmachine import VerbMachine

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="redis-server is not installed")

INT64 = (1 << 63) - 1
Words = list[bytes]


@pytest.fixture(scope="module", name="redis")
def _redis() -> Iterator[Redis]:
    with redis_server() as place, closing(Redis(place)) as redis:
        yield redis


KEYS = st.sampled_from([b"a", b"b", b"c", b"{d}"])
VALUES = st.one_of(
    st.sampled_from([b"", b"0", b"1", b"-7", b"10", b"007", b"3.5", b"-0", b"text", b"1e3", b" 1"]),
    st.sampled_from([b"%d" % INT64, b"%d" % (-INT64 - 1), b"%d" % (INT64 + 1), b"\0\xff\r\n"]),
    st.binary(max_size=12),
)
INTEGERS = st.one_of(
    st.integers(-12, 12).map(lambda number: b"%d" % number),
    st.sampled_from([b"%d" % INT64, b"%d" % (-INT64 - 1), b"%d" % (INT64 + 1), b"x", b"", b"+1"]),
    st.sampled_from([b"01", b"1.0", b" 1", b"-0", b"-"]),
)
FLOATS = st.one_of(
    st.floats(-1e6, 1e6).map(lambda number: repr(number).encode()),
    st.decimals(-999, 999, places=3).map(lambda number: str(number).encode()),
    st.sampled_from([b"1", b"-1.5", b"1e2", b"x", b"", b".5", b"5.", b"1 ", b"nan", b"1e-30"]),
)
# Far enough from now that nothing expires, and over.
SECONDS = st.sampled_from([b"1000", b"2000", b"1002", b"0", b"-5", b"x", b"%d" % INT64, b"9" * 17])
STAMPS = st.sampled_from([b"4000000000", b"4000009999", b"1", b"0", b"-9", b"x", b"%d" % INT64])
LIMITS = st.sampled_from([b"nx", b"XX", b"GT", b"lt", b"what"])


def milliseconds(words: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return words.map(lambda word: word + b"000" if b"0" < word < b"A" and len(word) < 12 else word)


def asking(name: str, *words: st.SearchStrategy[bytes]) -> st.SearchStrategy[Words]:
    return st.tuples(st.just(name.encode()), *words).map(list)


def some(name: str, words: st.SearchStrategy[bytes], most: int = 4) -> st.SearchStrategy[Words]:
    return st.lists(words, max_size=most).map(lambda found: [name.encode(), *found])


EXPIRY_OPTIONS = st.one_of(
    st.tuples(st.sampled_from([b"EX", b"ex"]), SECONDS),
    st.tuples(st.just(b"PX"), milliseconds(SECONDS)),
    st.tuples(st.just(b"EXAT"), STAMPS),
    st.tuples(st.just(b"pxat"), milliseconds(STAMPS)),
)
SET_OPTIONS = st.one_of(
    EXPIRY_OPTIONS,
    st.tuples(st.sampled_from([b"NX", b"xx", b"GET", b"KEEPTTL", b"what", b"EX"])),
)


def optioned(
    words: st.SearchStrategy[Words], options: st.SearchStrategy[tuple[bytes, ...]], most: int
) -> st.SearchStrategy[Words]:
    return st.builds(
        lambda words, options: [*words, *(word for option in options for word in option)],
        words,
        st.lists(options, max_size=most),
    )


LCS_OPTIONS = st.one_of(
    st.tuples(st.sampled_from([b"LEN", b"idx", b"WITHMATCHLEN", b"what"])),
    st.tuples(st.just(b"MINMATCHLEN"), INTEGERS),
)
EXPIRING = [
    optioned(asking(name, KEYS, times), LIMITS.map(lambda limit: (limit,)), 2)
    for name, times in (
        ("expire", SECONDS),
        ("pexpire", milliseconds(SECONDS)),
        ("expireat", STAMPS),
        ("pexpireat", milliseconds(STAMPS)),
    )
]
COMMANDS: st.SearchStrategy[Words] = st.one_of(
    asking("set", KEYS, VALUES),
    optioned(asking("set", KEYS, VALUES), SET_OPTIONS, 3),
    asking("get", KEYS),
    some("mget", KEYS),
    some("mset", KEYS | VALUES.filter(len)),
    some("msetnx", KEYS, 6),
    asking("setnx", KEYS, VALUES),
    asking("setex", KEYS, SECONDS, VALUES),
    asking("psetex", KEYS, milliseconds(SECONDS), VALUES),
    asking("getset", KEYS, VALUES),
    asking("getdel", KEYS),
    optioned(asking("getex", KEYS), EXPIRY_OPTIONS | st.just((b"PERSIST",)), 2),
    asking("incr", KEYS),
    asking("decr", KEYS),
    asking("incrby", KEYS, INTEGERS),
    asking("decrby", KEYS, INTEGERS),
    asking("incrbyfloat", KEYS, FLOATS),
    asking("append", KEYS, VALUES),
    asking("strlen", KEYS),
    asking("getrange", KEYS, INTEGERS, INTEGERS),
    asking("substr", KEYS, INTEGERS, INTEGERS),
    asking("setrange", KEYS, st.integers(-2, 9).map(lambda n: b"%d" % n) | st.just(b"x"), VALUES),
    optioned(asking("lcs", KEYS, KEYS), LCS_OPTIONS, 3),
    some("del", KEYS),
    some("unlink", KEYS),
    some("exists", KEYS),
    some("touch", KEYS),
    asking("type", KEYS),
    *EXPIRING,
    *[asking(name, KEYS) for name in ("ttl", "pttl", "expiretime", "pexpiretime", "persist")],
    asking("rename", KEYS, KEYS),
    asking("renamenx", KEYS, KEYS),
    optioned(
        asking("copy", KEYS, KEYS),
        st.sampled_from([(b"REPLACE",), (b"DB", b"0"), (b"db", b"x"), (b"what",)]),
        2,
    ),
)


def alike(words: Words, ours: bytes, theirs: bytes) -> bool:
    """Tell whether replies are the same, but for times that have gone on."""
    name = words[0].lower()
    if name in (b"ttl", b"pttl", b"expiretime", b"pexpiretime") and ours[:1] == theirs[:1] == b":":
        one, other = int(ours[1:]), int(theirs[1:])
        least = min(one, other)
        return one == other or (least > 0 and abs(one - other) <= (2000 if b"p" in name else 2))
    return ours == theirs


# Redis takes two sorts of numbers that ConureDB doesn't.
STRANGE = re.compile(rb"[+-]?0[xX]|nan\(", re.IGNORECASE)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(COMMANDS, min_size=1, max_size=12), st.sampled_from([2, 3]))
def test_replies_are_those_of_redis(redis: Redis, commands: list[Words], protocol: int) -> None:
    redis.run(b"FLUSHALL")
    redis.run(b"HELLO", b"%d" % protocol)
    machine = VerbMachine()
    for words in commands:
        if any(STRANGE.search(word) for word in words):
            continue
        ours, theirs = machine.run(*words, protocol=protocol), redis.run(*words)
        assert alike(words, ours, theirs), (words, ours, theirs)
    for key in (b"a", b"b", b"c", b"{d}"):
        assert machine.run(b"GET", key, protocol=protocol) == redis.run(b"GET", key)
        assert alike([b"PTTL"], machine.run(b"PTTL", key), redis.run(b"PTTL", key))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(COMMANDS, max_size=4),
    st.lists(
        COMMANDS.filter(lambda words: b"ttl" not in words[0] and b"time" not in words[0]),
        min_size=1,
        max_size=12,
    ),
)
def test_replies_in_a_transaction_are_those_of_redis(
    redis: Redis, before: list[Words], commands: list[Words]
) -> None:
    redis.run(b"FLUSHALL")
    redis.run(b"HELLO", b"2")
    machine = VerbMachine()
    for words in before:
        redis.run(*words)
        machine.run(*words)
    planned = [words for words in commands if machine.can_plan(words)]
    assert machine.run_all(planned) == redis.run_all(planned)


@pytest.fixture(scope="module", name="served")
def _served() -> Iterator[RespClient]:
    service = RespService()
    with service.client() as client:
        yield client
    service.close()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(COMMANDS, min_size=1, max_size=10), st.sampled_from([2, 3]), st.booleans())
def test_replies_of_a_server_are_those_of_redis(
    redis: Redis, served: RespClient, commands: list[Words], protocol: int, in_multi: bool
) -> None:
    """The same through a connection, with pipelines and in MULTI."""
    for each in (redis.run, served.ask):
        each(b"FLUSHALL")
        each(b"HELLO", b"%d" % protocol)
    asked = [
        words
        for words in commands
        if not any(STRANGE.search(word) for word in words)
        and not words[0].endswith((b"ttl", b"time"))  # which go on
    ]
    if in_multi:
        asked = [[b"MULTI"], *asked, [b"EXEC"]]
    served.send(b"".join(command(*words) for words in asked))
    for words in asked:
        (theirs,) = parse_all(redis.run(*words))
        assert served.read() == theirs, words
