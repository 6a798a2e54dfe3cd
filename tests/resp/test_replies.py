"""replies.py: each kind of reply in both protocols, read back by a reader of its own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.resp.replies import RESP2, RESP3, Replies, double_text
from tests.lab.respclient import ErrorReply, Push, Verbatim, parse_all

BOTH = pytest.mark.parametrize("protocol", [RESP2, RESP3])


@BOTH
def test_what_is_the_same_in_both(protocol: int) -> None:
    replies = Replies(protocol)
    replies.ok()
    replies.simple(b"PONG")
    replies.integer(-7)
    replies.integer(1023)
    replies.integer(1024)
    replies.bulk(b"a\r\nb")
    replies.bulk(b"")
    replies.array_of(2)
    replies.bulks([b"x", None])
    assert parse_all(replies.take()) == [
        *(b"OK", b"PONG", -7, 1023, 1024),
        *(b"a\r\nb", b"", [b"x", None]),
    ]
    assert replies.take() == b""


def test_golden_bytes_of_resp2() -> None:
    replies = Replies(RESP2)
    replies.map_of(2)
    replies.set_of(3)
    replies.push(1)
    replies.null()
    replies.null_array()
    replies.double(1.5)
    replies.boolean(True)
    replies.big_number(1 << 70)
    replies.verbatim(b"text")
    assert replies.take() == (
        b"*4\r\n*3\r\n*1\r\n$-1\r\n*-1\r\n$3\r\n1.5\r\n:1\r\n"
        b"$22\r\n1180591620717411303424\r\n$4\r\ntext\r\n"
    )


def test_golden_bytes_of_resp3() -> None:
    replies = Replies(RESP3)
    replies.map_of(2)
    replies.set_of(3)
    replies.push(1)
    replies.null()
    replies.null_array()
    replies.double(1.5)
    replies.boolean(False)
    replies.big_number(1 << 70)
    replies.verbatim(b"text")
    assert replies.take() == (
        b"%2\r\n~3\r\n>1\r\n_\r\n_\r\n,1.5\r\n#f\r\n(1180591620717411303424\r\n=8\r\ntxt:text\r\n"
    )


def test_containers_are_read_back() -> None:
    replies = Replies(RESP3)
    replies.push(2)
    replies.bulk(b"message")
    replies.map_of(1)
    replies.verbatim(b"t", b"mkd")
    replies.set_of(1)
    replies.boolean(True)
    (push,) = parse_all(replies.take())
    assert push == Push([b"message", {Verbatim(b"t"): {True}}])


@BOTH
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_an_error_is_one_line(protocol: int, text: str) -> None:
    replies = Replies(protocol)
    replies.error(f"ERR {text}")
    data = replies.take()
    assert data.count(b"\n") == data.count(b"\r") == 1
    (error,) = parse_all(data)
    assert error == ErrorReply(f"ERR {text}".replace("\r", " ").replace("\n", " "))


@given(st.floats())
def test_a_double_is_read_back_as_it_was(number: float) -> None:
    replies = Replies(RESP3)
    replies.double(number)
    (found,) = parse_all(replies.take())
    assert found == number or (math.isnan(found) and math.isnan(number))


def test_doubles_look_like_those_of_redis() -> None:
    for number, text in (
        *((3.0, b"3"), (-0.0, b"-0"), (0.1, b"0.1"), (1e30, b"1e+30")),
        *((math.inf, b"inf"), (-math.inf, b"-inf"), (math.nan, b"nan")),
    ):
        assert double_text(number) == text
