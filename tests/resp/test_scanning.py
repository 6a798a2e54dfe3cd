"""scanning.py and globs.py: all keys, however many there are."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import BadRequest
from conure.resp.globs import MAX_PATTERN_BYTES, Glob
from conure.resp.scanning import Cursors
from tests.lab.respclient import ErrorReply, RespClient
from tests.lab.respservice import RespService


def scanned(client: RespClient, *options: str | int) -> list[bytes]:
    """Return what a whole scan finds."""
    cursor: bytes = b"0"
    found: list[bytes] = []
    for _ in range(1000):
        cursor, keys = client.ask("SCAN", cursor, *options)
        assert int(cursor) < 1 << 53
        found += keys
        if cursor == b"0":
            return found
    raise AssertionError("without end")


def test_a_scan_finds_each_key_once(service: RespService, client: RespClient) -> None:
    keys = [b"user:%d" % n for n in range(500)] + [b"\xff\xff\xff\xff\xff", b"a"]
    service.backend.values = dict.fromkeys(keys, b"v")
    assert scanned(client) == sorted(keys)
    assert scanned(client, "COUNT", 7, "MATCH", "user:1?") == [
        b"user:%d" % n for n in range(10, 20)
    ]
    assert scanned(client, "COUNT", 100_000) == sorted(keys)
    assert scanned(client, "TYPE", "string", "MATCH", "a") == [b"a"]
    assert scanned(client, "TYPE", "hash") == []
    assert service.backend.open_states == 0


def test_a_foreign_cursor_leaves_nothing_out(service: RespService, client: RespClient) -> None:
    keys = [b"user:%03d" % n for n in range(50)]
    service.backend.values = dict.fromkeys(keys, b"v")
    cursor, found = client.ask("SCAN", 0, "COUNT", 20)
    with RespService(service.backend).client() as elsewhere:
        rest: list[bytes] = []
        while cursor != b"0":
            cursor, more = elsewhere.ask("SCAN", cursor, "COUNT", 20)
            rest += more
    assert {*found, *rest} == set(keys)
    assert scanned(client, "MATCH", "nothing*") == []
    for cursor in (b"1", b"9007199254740991", b"9223372036854775807", b"18446744073709551615"):
        reply = client.ask("SCAN", cursor)
        assert reply[0] == b"0" or len(reply[1]) == 10


def test_keys_that_come_and_go_hide_no_other(service: RespService, client: RespClient) -> None:
    chance = random.Random(3)
    stay = {b"s%03d" % chance.randrange(1000) for _ in range(100)}
    service.backend.values = dict.fromkeys(stay, b"v")
    cursor: bytes = b"0"
    found: set[bytes] = set()
    while True:
        cursor, keys = client.ask("SCAN", cursor, "COUNT", 5)
        found |= set(keys)
        if cursor == b"0":
            break
        name = b"s%03d" % chance.randrange(1000)
        if name not in stay:
            client.ask("SET", name, "v")
        client.ask("DEL", b"s%03d" % chance.choice(range(1000)) + b"x")
    assert stay <= found


def test_cursors_are_kept_in_bounded_memory() -> None:
    cursors = Cursors()
    first = cursors.give(b"abcdefgh")
    assert cursors.start_of(first) == b"abcdefgh\0"
    given = {cursors.give(b"abcdefgh") for _ in range(10_000)}
    assert len(given) == 10_000
    assert cursors.start_of(first) == b"abcd"
    assert cursors.start_of(cursors.give(b"a")) == b"a\0"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("SCAN", "x"), "ERR invalid cursor"),
        (("SCAN", "-1"), "ERR invalid cursor"),
        (("SCAN", "18446744073709551616"), "ERR invalid cursor"),
        (("SCAN", "0", "COUNT"), "ERR syntax error"),
        (("SCAN", "0", "COUNT", "x"), "ERR value is not an integer or out of range"),
        (("SCAN", "0", "COUNT", "0"), "ERR syntax error"),
        (("SCAN", "0", "FOO", "x"), "ERR syntax error"),
        (("KEYS", "x" * 2000), "ERR the pattern has 2,000 bytes; the limit is 1,024"),
        (("FLUSHALL", "x"), "ERR syntax error"),
    ],
)
def test_what_is_refused(client: RespClient, words: tuple[str, ...], text: str) -> None:
    assert client.ask(*words) == ErrorReply(text)


def test_keys_and_counts(service: RespService, client: RespClient) -> None:
    assert client.ask("RANDOMKEY") is None
    assert client.ask("DBSIZE") == 0
    keys = [b"user:%d" % n for n in range(3000)]
    service.backend.values = dict.fromkeys(keys, b"v")
    assert client.ask("DBSIZE") == 3000
    assert client.ask("KEYS", "*") == sorted(keys)
    assert client.ask("KEYS", "user:1*9") == sorted(
        k for k in keys if k[5:6] == b"1" and k[-1:] == b"9" and len(k) > 6
    )
    assert client.ask("KEYS", "user:7") == [b"user:7"]
    assert len({client.ask("RANDOMKEY") for _ in range(50)}) > 5
    assert service.backend.open_states == 0


def test_each_of_a_few_keys_comes_up_at_random(service: RespService, client: RespClient) -> None:
    service.backend.values = {b"bar": b"v", b"foo": b"v", b"fop": b"v"}
    assert {client.ask("RANDOMKEY") for _ in range(200)} == {b"bar", b"foo", b"fop"}


def test_flushall_removes_all_in_parts(service: RespService, client: RespClient) -> None:
    service.backend.values = {b"k%d" % n: b"v" for n in range(3500)}
    client.send(b"FLUSHALL\r\nDBSIZE\r\nSET k v\r\nFLUSHDB ASYNC\r\nGET k\r\n")
    assert [client.read() for _ in range(5)] == [b"OK", 0, b"OK", b"OK", None]
    assert service.backend.values == {}
    assert len(service.backend.batches) > 3


GLOBS = st.lists(
    st.sampled_from([b"a", b"b", b"*", b"?", b"[ab]", b"[^a]", b"[a-c]", b"\\*", b"[", b"]", b"-"]),
    max_size=6,
).map(b"".join)


def matches(pattern: bytes, key: bytes) -> bool:  # noqa: C901
    """Match as the C of Redis does, step by step."""
    p = k = 0
    while p < len(pattern) and k < len(key):
        byte = pattern[p : p + 1]
        if byte == b"*":
            while pattern[p + 1 : p + 2] == b"*":
                p += 1
            if p + 1 == len(pattern):
                return True
            return any(matches(pattern[p + 1 :], key[at:]) for at in range(k, len(key) + 1))
        if byte == b"[":
            p += 1
            inverted = pattern[p : p + 1] == b"^"
            p += inverted
            found = False
            while p < len(pattern) and pattern[p : p + 1] != b"]":
                if pattern[p : p + 1] == b"\\" and len(pattern) - p >= 2:
                    p += 1
                    found |= pattern[p] == key[k]
                elif len(pattern) - p >= 3 and pattern[p + 1 : p + 2] == b"-":
                    low, high = sorted((pattern[p], pattern[p + 2]))
                    p += 2
                    found |= low <= key[k] <= high
                else:
                    found |= pattern[p] == key[k]
                p += 1
            if found == inverted:
                return False
        elif byte != b"?":
            if byte == b"\\" and len(pattern) - p >= 2:
                p += 1
            if pattern[p] != key[k]:
                return False
        p += 1
        k += 1
    while k == len(key) and pattern[p : p + 1] == b"*":
        p += 1
    return p >= len(pattern) and k == len(key)


@settings(deadline=None, max_examples=1000)
@given(GLOBS, st.lists(st.sampled_from(b"abc*]-["), max_size=6).map(bytes))
def test_a_pattern_matches_as_in_redis(pattern: bytes, key: bytes) -> None:
    assert Glob(pattern).matches(key) == matches(pattern, key)


def test_no_pattern_takes_long() -> None:
    key = b"a" * 1000 + b"b"
    begun = time.thread_time()
    assert not Glob(b"*a" * 500 + b"*c").matches(key)
    assert Glob(b"*a" * 500 + b"*b").matches(key)
    assert not Glob(b"*" + b"a?" * 400 + b"*x").matches(key)
    assert time.thread_time() - begun < 1.0
    with pytest.raises(BadRequest, match="1,024"):
        Glob(b"x" * (MAX_PATTERN_BYTES + 1))
