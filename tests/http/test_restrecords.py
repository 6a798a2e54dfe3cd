"""The JSON of REST: at once and in steps it is the same, and what json reads in it is what was
stored; and bodies that are read quickly are read as all others are."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from time import thread_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conure.errors import BadRequest, PayloadTooLarge
from conure.http.head import RequestTarget
from conure.http.jsonsteps import all_of
from conure.http.request import Body
from conure.http.restrecords import render_error, show, show_in_steps
from conure.http.restrequests import Named, named_by, read_short, read_value
from conure.service.limits import Limits

LIMITS = Limits(value_bytes=200_000, range_items=10)


class Asked:
    """As much of a request as names a key."""

    def __init__(self, key: bytes) -> None:
        self.target = RequestTarget(b"/" + key, b"")

    def parameters(self) -> dict[bytes, bytes]:
        return {}


def named(key: bytes) -> Named:
    return named_by(Asked(key))  # type: ignore[arg-type]


def joined(body: Body) -> bytes:
    assert len(body) == sum(map(len, body.pieces))
    return b"".join(body.pieces)


def stored(shown: bytes) -> tuple[bytes, bytes]:
    """Return the key and the value that JSON shows."""
    found = json.loads(shown)
    assert found.keys() <= {"key", "value", "encoding", "ttl"}
    if "encoding" not in found:
        return found["key"].encode(), found["value"].encode()
    assert found["encoding"] == "base64"
    return b64decode(found["key"], validate=True), b64decode(found["value"], validate=True)


KEYS = st.binary(min_size=1, max_size=20) | st.text(min_size=1, max_size=9).map(str.encode)
VALUES = st.binary(max_size=60) | st.text(max_size=60).map(str.encode)


@given(key=KEYS, value=VALUES, ttl=st.none() | st.integers(0, 10**14).map(lambda n: n / 1000))
@example(key=b"k", value='"\\\u2028\u0000'.encode(), ttl=0.0)
@example(key=b"k", value=b"\xff", ttl=None)
@example(key=b"\xff", value=b"v", ttl=None)
def test_what_is_shown_is_what_is_stored(key: bytes, value: bytes, ttl: float | None) -> None:
    shown = show(named(key), value, ttl)
    assert stored(shown) == (key, value)
    assert json.loads(shown).get("ttl") == ttl
    assert shown.endswith(b"}\n")
    assert shown.isascii()
    try:
        (key + b"\0" + value).decode()
        is_text = True
    except UnicodeDecodeError:
        is_text = False
    assert ("encoding" in json.loads(shown)) is not is_text
    assert joined(all_of(show_in_steps(named(key), value, ttl))) == shown


@pytest.mark.parametrize("filling", ["a", "é", "键", "𝄞", "\x01", "\\"])
@pytest.mark.parametrize("end", [b"", b"\xff", b"\xe9"])
def test_long_values_are_shown_in_short_steps(filling: str, end: bytes) -> None:
    for before in range(4):  # a character stands across the slices
        value = b"x" * before + filling.encode() * (150_000 // len(filling.encode())) + end
        steps = show_in_steps(named(b"k"), value, 1.5)
        count = 0
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                body = stop.value
                break
            count += 1
        assert count >= 4
        assert max(map(len, body.pieces)) <= 300_000
        assert joined(body) == show(named(b"k"), value, 1.5)


def test_an_error_is_an_object() -> None:
    assert render_error(404, "key not found", None, None) == (
        b'{"error": "key not found"}\n',
        "application/json",
    )
    body, _ = render_error(500, "a\n  line, \udcff and é", "text/plain", "bug")
    assert json.loads(body) == {"error": "a line, \\udcff and é"}


# -- bodies of puts --------------------------------------------------------------------------------


def slowly(body: bytes) -> tuple[bytes, int]:
    return all_of(read_value(body, LIMITS))


SPACES = st.text(st.sampled_from(" \t\r\n"), max_size=2)
NEARLY = st.lists(
    st.sampled_from(
        ['"', "\\", "{", "}", ":", ",", "v", "value", "a", "é", "\x01", " ", "'", "\\u"]
    ),
    max_size=8,
).map("".join)


@given(spaces=st.tuples(*[SPACES] * 6), value=st.text(max_size=20))
def test_a_plain_body_is_read_quickly(spaces: tuple[str, ...], value: str) -> None:
    text = json.dumps(value, ensure_ascii=False)
    one, two, three, four, five, six = spaces
    body = f'{one}{{{two}"value"{three}:{four}{text}{five}}}{six}'.encode()
    found = read_short(body, LIMITS)
    assert slowly(body) == (value.encode(), 0)
    assert found in (None, value.encode())
    assert found is not None or text[1:-1] != value


@given(body=st.tuples(NEARLY, NEARLY).map(lambda two: f'{two[0]}{{"value": "{two[1]}"}}'.encode())
       | st.binary(max_size=30).map(lambda inside: b'{"value": "%b"}' % inside))  # fmt: skip
def test_what_is_read_quickly_means_the_same(body: bytes) -> None:
    found = read_short(body, LIMITS)
    if found is not None:
        assert (found, 0) == slowly(body)


@pytest.mark.parametrize(
    ("body", "value", "ttl"),
    [
        (b'{"value": "v"}', b"v", 0),
        (b'{"value": ""}', b"", 0),
        (b'\xef\xbb\xbf{"value": "v"}', b"v", 0),
        (b'{"ttl": 3600, "value": "v"}', b"v", 3_600_000),
        (b'{"value": "v", "ttl": 0.5}', b"v", 500),
        (b'{"value": "v", "ttl": "1h"}', b"v", 3_600_000),
        (b'{"value": "v", "ttl": "90"}', b"v", 90_000),
        (b'{"value": "/wA=", "encoding": "base64"}', b"\xff\0", 0),
        (b'{"value": "", "encoding": "base64"}', b"", 0),
        ('{"value": "é\\u00e9\\n\\ud834\\udd1e"}'.encode(), "éé\n𝄞".encode(), 0),
    ],
)
def test_what_a_body_says(body: bytes, value: bytes, ttl: int) -> None:
    assert slowly(body) == (value, ttl)
    spaced = body[:-1] + b" " * (20 << 10) + b"}"  # so long that it is read in steps
    assert read_short(spaced, LIMITS) is None
    assert slowly(spaced) == (value, ttl)


REFUSED = [
    pytest.param(body, id=body.decode(errors="replace")[:40] or "nothing")
    for body in (
        b"", b" ", b"v", b'"v"', b"1", b"null", b"[]", b'["value"]', b'[{"value": "v"}]',
        b"{}", b'{"ttl": 1}', b'{"value": 1}', b'{"value": null}', b'{"value": true}',
        b'{"value": ["v"]}', b'{"value": {"v": 1}}', b'{"Value": "v"}',
        b'{"value": "v", "key": "k"}', b'{"value": "v", "keepttl": true}', b'{"value": "v", "": 1}',
        b'{"value": "v", "value": "v"}', b'{"value": "v", "ttl": 1, "ttl": 1}',
        b'{"value": "v",}', b'{"value": "v"', b'{"value": "v"}}', b'{"value": "v"} {}',
        b'{"value": "v"}\0', b"{'value': 'v'}", b"{value: v}", b'{value: "v"}', b'{"value": v}',
        b'{"value" "v"}', b'{"value": "v" "ttl": 1}', b'{"value": "v"; "ttl": 1}',
        b'{"value": "v"} // said', b'/* */{"value": "v"}', b'{"value": "a\nb"}',
        b'{"value": "\x01"}', b'{"value": "\\x41"}', b'{"value": "\\ud834"}', b'{"value": "\xff"}',
        b'{"value": "v", "ttl": null}', b'{"value": "v", "ttl": true}',
        b'{"value": "v", "ttl": []}',
        b'{"value": "v", "ttl": NaN}', b'{"value": "v", "ttl": Infinity}',
        b'{"value": "v", "ttl": 0}', b'{"value": "v", "ttl": -1}', b'{"value": "v", "ttl": 1e99}',
        b'{"value": "v", "ttl": "soon"}', b'{"value": "v", "ttl": ""}',
        b'{"value": "v", "ttl": 01}',
        b'{"value": "v", "ttl": +1}', b'{"value": "v", "ttl": 0x1}', b'{"value": "v", "ttl": 1.}',
        b'{"value": "v", "encoding": null}', b'{"value": "v", "encoding": "hex"}',
        b'{"value": "v", "encoding": "base64"}', b'{"value": "/wA", "encoding": "base64"}',
        b'{"value": "/wA= ", "encoding": "base64"}', b'{"value": "_wA=", "encoding": "base64"}',
        '{"value": "v"}'.encode("utf-16"), '\N{NO-BREAK SPACE}{"value": "v"}'.encode(),
        b"[" * 3000, b'{"value":' * 2000, b'{"value": "v", "ttl": 1' + b"0" * 5000 + b"}",
    )
]  # fmt: skip


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_no_such_object_is_refused_with_the_way_out(body: bytes) -> None:
    assert read_short(body, LIMITS) is None
    with pytest.raises(BadRequest, match="Content-Type: application/octet-stream"):
        slowly(body)


@given(st.dictionaries(st.sampled_from(["value", "ttl", "encoding", "key", "x"]),
                       st.none() | st.booleans() | st.integers() | st.floats()
                       | st.text(max_size=4) | st.sampled_from(["base64", "1h", "/wA="])
                       | st.lists(st.none(), max_size=1),
                       max_size=4))  # fmt: skip
def test_an_object_is_read_or_refused_by_its_types(fields: dict[str, object]) -> None:
    body = json.dumps(fields).encode()
    try:
        value, ttl = slowly(body)
    except BadRequest:
        return
    assert fields.keys() <= {"value", "ttl", "encoding"}
    text = fields["value"]
    assert isinstance(text, str)
    assert value == (b64decode(text) if "encoding" in fields else text.encode())
    assert (ttl > 0) is ("ttl" in fields)


@given(end=st.binary(max_size=64), at=st.integers(0, 140_000),
       wrong=st.sampled_from(["", "=", "==", " ", "-", "é", "A"]))  # fmt: skip
@settings(max_examples=30, deadline=None)
@example(end=b"", at=65_534, wrong="==")
def test_long_base64_is_judged_as_a_whole(end: bytes, at: int, wrong: str) -> None:
    coded = b64encode(bytes(range(256)) * 384 + end).decode()
    coded = coded[:at] + wrong + coded[at + len(wrong) :]
    body = json.dumps({"value": coded, "encoding": "base64"}).encode()
    try:
        meant = b64decode(coded, validate=True)
    except ValueError:
        with pytest.raises(BadRequest, match="base64"):
            slowly(body)
    else:
        assert slowly(body) == (meant, 0)


@pytest.mark.parametrize("size", [200_000, 200_001])
def test_the_largest_value(size: int) -> None:
    for text, value in ((b"v" * size, b"v" * size), (b"\\u0041" * size, b"A" * size)):
        body = b'{"value": "%b"}' % text
        if size == LIMITS.value_bytes:
            assert slowly(body) == (value, 0)
        else:
            with pytest.raises(PayloadTooLarge):
                slowly(body)
    small = Limits(value_bytes=3, range_items=10)
    assert read_short(b'{"value": "123"}', small) == b"123"
    with pytest.raises(PayloadTooLarge):
        read_short(b'{"value": "1234"}', small)


def test_a_long_body_is_read_in_short_steps() -> None:
    body = b'{"value": "' + b"\\u00e9" * (2 << 20) + b'"}'
    steps = read_value(body, Limits(value_bytes=16 << 20, range_items=10))
    longest, count = 0.0, 0
    while True:
        begun = thread_time()
        try:
            next(steps)
        except StopIteration:
            break
        longest, count = max(longest, thread_time() - begun), count + 1
    assert count > 50
    assert longest < 0.02
