"""JSON in steps: what is read and written beside json itself, what is refused, and how early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conure.errors import BadRequest, ConureError, PayloadTooLarge
from conure.http import jsonsteps
from conure.http.jsonsteps import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_VALUES,
    LongText,
    Malformed,
    all_of,
    is_blank,
    read,
    write,
)

MIB = 1 << 20
REFUSED = "refused"

TEXTS = st.text(st.sampled_from('aé€😀"\\/\n\x01\ud83d\ude00u0'), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
FRAGMENTS = st.sampled_from(
    [b'"', b"\\", b"\\\\", b"\\u", b"\\uD83D", b"\\uDE00", b"\\u0041", b"\\n", b"a", b"\xc3\xa4",
     b"\xf0\x9f\x98\x80", b"\xed\xa0\xbd", b"\xff", b" ", b"\n", b"\r", b"\t", b"\x0b", b"\x00",
     b"{", b"}", b"[", b"]", b",", b":", b"-", b"0", b"12", b".5", b"e9", b"E+", b"true", b"null",
     b"NaN", b"-Infinity", b"nul", b'"a":', b'""', b"\xef\xbb\xbf"]
)  # fmt: skip


class Repeated(ValueError):
    pass


def by_json(text: bytes) -> object:
    """What json makes of a text; a name given twice is refused."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise Repeated
        return dict(pairs)

    try:
        return json.loads(text.decode().removeprefix("\ufeff"), object_pairs_hook=once)
    except ValueError:
        return REFUSED


def by_steps(text: bytes) -> object:
    try:
        return all_of(read(text))
    except (Malformed, ConureError):
        return REFUSED


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The text of a value with a few bytes changed, or none."""
    value, is_ascii = draw(VALUES), draw(st.booleans())
    indent = draw(st.none() | st.integers(0, 2))
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode(errors="surrogatepass")
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(FRAGMENTS) + text[at + draw(st.integers(0, 3)) :]
    return text


@pytest.fixture(params=[(12, 12), (13, 17), (128, 64 << 10)], scope="module")
def slices(request: pytest.FixtureRequest) -> Iterator[None]:
    """Strings and white space are cut at every place sooner or later."""
    with pytest.MonkeyPatch.context() as patch:
        first, most = request.param
        patch.setattr(jsonsteps, "_FIRST", first)
        patch.setattr(jsonsteps, "_SLICE", most)
        yield


@pytest.mark.usefixtures("slices")
@settings(max_examples=1500)
@given(mutated() | st.lists(FRAGMENTS, max_size=14).map(b"".join))
@example(b'"' + b"\\" * 30 + b'"')
@example(b'"' + b"\\" * 31 + b'"')
@example(b'"aaaaa\\ud83d\\ude00"')
@example(b'"aaaaa\\\\ud83d\\ude00"')
@example(b'"aaaa\\ud83d\\ud83d\\ude00"')
@example(b'"aaaaaaaaaa\xf0\x9f\x98\x80"')
@example(b'"aaaaaaaaaa\xf0\x9f\x98"')
@example(b"\xef\xbb\xbf[]")
@example(b"[1,]")
@example(b'{"a":1,}')
@example(b'{"a":1,"a":2}')
def test_a_text_is_read_as_json_reads_it(text: bytes) -> None:
    expected = by_json(text)
    assert repr(by_steps(text)) == repr(expected)  # which tells 1 from 1.0 from True, and NaN
    if expected is not REFUSED:
        assert b"".join(write(expected)) == json.dumps(expected).encode()


def test_the_last_of_repeated_names_counts_if_that_is_asked_for() -> None:
    assert all_of(read(b'{"a": 1, "a": 2}', repeats=True)) == {"a": 2}
    with pytest.raises(BadRequest, match="'a' is given twice"):
        all_of(read(b'{"a": 1, "a": 2}'))


def test_bounds_are_exact() -> None:
    assert len(all_of(read(b"[" + b"1," * (MAX_VALUES - 2) + b"1]"))) == MAX_VALUES - 1
    assert all_of(read(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH))
    assert all_of(read(b"1" * MAX_DIGITS)) == int("1" * MAX_DIGITS)
    assert all_of(read(b"0." + b"1" * (MAX_DIGITS - 2))) == float("0." + "1" * (MAX_DIGITS - 2))
    assert all_of(read(b'"abc"', longest=3)) == "abc"
    assert all_of(read('"äöü"'.encode(), longest=3)) == "äöü"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b"[" + b"1," * (MAX_VALUES - 1) + b"1]", PayloadTooLarge, "8,192 values and names"),
        (b"[{" + b'"b":0},{' * MAX_VALUES, PayloadTooLarge, "8,192 values and names"),
        (b"[" * (MAX_DEPTH + 1), BadRequest, "32 levels"),
        (b'{"a":' * (MAX_DEPTH + 1), BadRequest, "32 levels"),
        (b"1" * (MAX_DIGITS + 1), Malformed, "4,300 characters at byte 0"),
        (b"[0." + b"1" * MAX_DIGITS + b"]", Malformed, "4,300 characters at byte 1"),
        (b'"' + b"a" * 10_001 + b'"', PayloadTooLarge, "10,000 characters at byte 0"),
        (b'["a', Malformed, "without an end at byte 1"),
        (b"[1 2]", Malformed, "a comma or a ] is missing at byte 3"),
        (b'["\x01"]', Malformed, "Invalid control character at, in the string at byte 1"),
        (b'["\xff"]', Malformed, "invalid start byte, in the string at byte 1"),
    ],
)
def test_what_is_refused_says_why(text: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        all_of(read(text, longest=10_000))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 16 * MIB,
        b'{"a":' * 3 * MIB,
        b'{"success":[' + b"{}," * 5 * MIB,
        b"[" + b"1.5," * 4 * MIB,
        b"9" * 16 * MIB,
        b'"' + b"a" * 16 * MIB,
        b'"' + b"\\u0041" * 2 * MIB,
        b'"' + b"\\" * 16 * MIB,
    ],
    ids=["lists", "objects", "many", "numbers", "digits", "string", "escapes", "backslashes"],
)
def test_a_bomb_is_refused_after_little_of_it(text: bytes) -> None:
    """However long the text is, there are no more steps than the bounds explain."""
    steps: list[None] = []
    with pytest.raises((Malformed, ConureError)):
        steps.extend(read(text, longest=MIB))
    assert len(steps) < 400


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b"a" * MIB + b'"',
        b'"' + "ä".encode() * (MIB // 2) + b'"',
        b'"' + b"\\n" * (MIB // 2) + b'"',
        b'"' + b"\\ud83d\\ude00" * (MIB // 12) + b'"',
        b" " * MIB + b"1",
        b"1" + b"\n" * MIB,
    ],
)
def test_long_text_is_read_in_many_steps(text: bytes) -> None:
    assert all_of(read(text)) == json.loads(text)
    assert sum(1 for _ in read(text)) >= len(text) // (64 << 10) - 1


def test_many_values_are_read_in_many_steps() -> None:
    assert sum(1 for _ in read(b"[" + b"[]," * 8000 + b"[]]")) >= 8000 / 32


@pytest.mark.parametrize("text", ["\x01" * MIB, "ä" * MIB, "😀" * (MIB // 4), "a" * MIB])
def test_a_long_string_is_written_in_pieces(text: str) -> None:
    value = {"items": [{"key": "k", "value": text}, {}, [], None], "more": False, "empty": ""}
    pieces = list(write(value))
    assert max(map(len, pieces)) <= 12 * (64 << 10) + 100
    assert b"".join(pieces) == json.dumps(value).encode()


def test_many_records_are_written_in_pieces() -> None:
    value = [{"key": str(n), "value": "v", "version": n} for n in range(10_000)]
    pieces = list(write(value))
    assert len(pieces) > 300
    assert b"".join(pieces) == json.dumps(value).encode()


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=4), st.integers(0, 300), st.integers(0, 600))
def test_a_long_string_may_stay_in_parts(texts: list[str], times: int, whole: int) -> None:
    value = json.loads(json.dumps({"short": 1, "long": "".join(texts) * times}))
    found = all_of(read(json.dumps(value).encode(), whole=max(whole, 5)))
    long = found["long"]
    assert isinstance(long, LongText) == (len(value["long"]) > max(whole, 5))
    assert ("".join(long.parts) if isinstance(long, LongText) else long) == value["long"]


def test_a_name_is_never_in_parts() -> None:
    text = json.dumps({"n" * 300: 1}).encode()
    assert all_of(read(text, whole=300)) == {"n" * 300: 1}
    with pytest.raises(PayloadTooLarge, match="a name of more than 299 characters"):
        all_of(read(text, whole=299))


def test_blank_text() -> None:
    assert all_of(is_blank(b" \t\r\n" * 100_000))
    assert not all_of(is_blank(b" " * 400_000 + b"x"))
    assert sum(1 for _ in is_blank(b" " * MIB)) == 16
