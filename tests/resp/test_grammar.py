"""grammar.py: commands of every shape, cut at every byte, and bytes that are none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.resp.grammar import LINE_BYTES, MAX_RUN, ProtocolError, Reader, split_line
from tests.lab.respclient import command

MOST = 1 << 20


def taken(reader: Reader) -> Iterator[list[bytes]]:
    """Take all commands that are there."""
    while (each := reader.take()) is not None:
        if isinstance(each, list):
            yield each
            continue
        assert 1 < each.size <= MAX_RUN
        assert all(len(column) == each.size for column in each.columns)
        for position in range(each.size):
            yield [each.name, *(column[position] for column in each.columns)]


def read(
    pieces: list[bytes], most: int = MOST, rests: bool = True
) -> tuple[list[list[bytes]], str]:
    """Return the commands in what is fed piece by piece, and the error that ends them."""
    reader = Reader(most)
    found: list[list[bytes]] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            found.extend(taken(reader))
            if rests:
                reader.rest()
    except ProtocolError as error:
        # What was read before it counts, too.
        return found, str(error)
    return found, ""


def read_one_by_one(data: bytes) -> tuple[list[list[bytes]], str]:
    """Return what is read if no two commands come together."""
    reader = Reader(MOST)
    found: list[list[bytes]] = []
    try:
        for position in range(len(data)):
            reader.feed(data[position : position + 1])
            found.extend(taken(reader))
    except ProtocolError as error:
        return found, str(error)
    return found, ""


WORDS = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"GET", b"SET", b"PING", b"k", b"\r\n", b"$3\r\nGET", b"*1\r\n", b"x" * 300]),
)
COMMANDS = st.lists(
    st.one_of(
        st.lists(WORDS, min_size=1, max_size=5),
        st.lists(WORDS, min_size=15, max_size=20),
        st.lists(WORDS, min_size=127, max_size=130),
        st.sampled_from([[b"GET", b"key"], [b"SET", b"key", b"value"], [b"PING"]]),
    ),
    max_size=12,
)


@given(COMMANDS)
@settings(deadline=None)
def test_commands_come_out_as_they_were(commands: list[list[bytes]]) -> None:
    data = b"".join(command(*words) for words in commands)
    assert read([data]) == (commands, "")
    assert read_one_by_one(data) == (commands, "")


PIECES = st.lists(
    st.one_of(
        st.lists(WORDS, min_size=1, max_size=5).map(lambda words: command(*words)),
        st.sampled_from(
            [
                *(
                    b"PING\r\n",
                    b"*2\r\n$3\r\nGET\r\n$2\r\nk\r\n",
                    b"*1\r\n$4\r\nPING\r\n",
                    b"*1\r\n",
                ),
                *(b"$4\r\nPI", b"NG\r\n", b"*2\r\n$3\r\nGET\r\n$1\r\nkey\r\n", b"\r\n", b"*0\r\n"),
            ]
        ),
        st.binary(max_size=20),
    ),
    max_size=6,
)


@given(PIECES)
@settings(deadline=None)
def test_a_lone_command_is_what_it_would_be_otherwise(pieces: list[bytes]) -> None:
    reader = Reader(MOST)
    found: list[list[bytes]] = []
    why = ""
    try:
        for piece in pieces:
            words = reader.take_lone(piece)
            if words is not None:
                assert reader.is_empty
                assert not reader.held
                found.append(words)
                continue
            reader.feed(piece)
            found.extend(taken(reader))
            reader.rest()
    except ProtocolError as error:
        why = str(error)
    assert (found, why) == read(pieces)


def test_common_commands_are_taken_alone() -> None:
    reader = Reader(MOST)
    many = ["MSET", *["key", "value"] * 10]
    for words in (["GET", "key"], ["SET", "key", b"x" * 8000], ["PING"], many):
        assert reader.take_lone(command(*words)) == [
            w.encode() if isinstance(w, str) else w for w in words
        ]
    assert reader.take_lone(command("GET", "k") * 2) is None
    assert reader.take_lone(command(*many) * 2) is None
    assert reader.take_lone(command(*many)[:-1]) is None
    assert reader.take_lone(command("SET", "key", b"x" * 9000)) is None


@given(COMMANDS, st.data())
@settings(deadline=None)
def test_cuts_change_nothing(commands: list[list[bytes]], data: st.DataObject) -> None:
    whole = b"".join(command(*words) for words in commands)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(pieces, rests=data.draw(st.booleans())) == (commands, "")


@pytest.mark.parametrize(
    "data",
    [
        command("GET", "k") * 3 + b"GET k\r\n" + command("SET", "k", b"\r\n") * 2 + command("PING"),
        b"PING\nPING\r\n\r\n\n*0\r\n*-1\r\n" + command("PING"),
        command("SET", "k", b"x" * 20_000) + command("GET", "k") * 2,
        command("GET", "k") * 2 + b"*2\r\n$3\r\nGET\r\n$x\r\n",
        command("GET", "k") * 2 + b"*2\r\n$3\r\nGET\r\n$2\r\nkkk\r\n",
        command("GET", "k") + b"?2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
        command("GET", "k") * 400,
        command(*["DEL"] * 40) + command(*["MGET"] * 140),
    ],
    ids=range(8),
)
def test_a_cut_at_any_byte_changes_nothing(data: bytes) -> None:
    expected = read_one_by_one(data)
    assert expected[0]
    for cut in range(0, len(data), max(1, len(data) // 500)):
        assert read([data[:cut], data[cut:]]) == expected


@given(st.binary(max_size=60), st.integers(0, 60))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_commands_or_an_error_however_they_are_cut(data: bytes, cut: int) -> None:
    assert read([data[:cut], data[cut:]]) == read([data])


SHAPES = st.lists(
    st.sampled_from(
        [b"*", b"$", b"1", b"2", b"3", b"-1", b"\r\n", b"\r", b"\n", b"GET", b"k", b"0", b'"', b" "]
    ),
    max_size=24,
).map(b"".join)


@given(SHAPES, st.integers(0, 60))
@settings(deadline=None, max_examples=500)
def test_what_looks_like_commands_is_read_alike_however_it_is_cut(data: bytes, cut: int) -> None:
    assert read([data[:cut], data[cut:]]) == read([data]) == read_one_by_one(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*3\r\n$3\r\nSET\r\nx", "expected '$', got 'x'"),
        (b"*1\r\n\xff", "expected '$', got '\\xff'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$\r\n", "invalid bulk length"),
        (b"*1\r\n$1048577\r\n", "invalid bulk length"),
        (b"*2\r\n$600000\r\n" + b"x" * 600_000 + b"\r\n$600000\r\n", "too big request, the limit"),
        (b"*1\r\n$4\r\nPINGxx", "expected a line end after a bulk"),
        (b'GET "k\r\n', "unbalanced quotes in request"),
        (b'GET "k"k\r\n', "unbalanced quotes in request"),
        (b"GET 'k\r\n", "unbalanced quotes in request"),
        (b"x" * (LINE_BYTES + 2), "too big inline request"),
        (b"*" + b"1" * (LINE_BYTES + 2), "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * (LINE_BYTES + 2), "too big bulk count string"),
    ],
)
def test_what_is_no_command_is_told_as_redis_does(data: bytes, why: str) -> None:
    found, error = read([command("PING") + data])
    assert found == [[b"PING"]]
    assert error.startswith(why)


def test_words_count_before_they_are_held() -> None:
    """A million of empty words would take 50 MB; they are refused while they take one."""
    reader = Reader(MOST)
    reader.feed(b"*1048576\r\n")
    assert reader.take() is None

    def send_all() -> None:
        for _ in range(100):
            reader.feed(b"$0\r\n\r\n" * 1000)
            assert reader.take() is None

    with pytest.raises(ProtocolError, match="too big request"):
        send_all()
    held = reader.held
    assert 0 < held < MOST + 1000


def test_what_is_held_is_told() -> None:
    reader = Reader(MOST)
    reader.feed(b"*2\r\n$3\r\nGET\r\n$1000\r\nxx")
    assert reader.take() is None
    assert 1000 < reader.held < 1200
    reader.feed(b"x" * 998 + b"\r\nPI")
    assert reader.take() == [b"GET", b"x" * 1000]
    assert reader.take() is None
    assert (reader.held, reader.unread, reader.is_empty) == (0, 2, False)
    reader.clear()
    assert reader.is_empty


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", []),
        (b"  ", []),
        (b"GET k", [b"GET", b"k"]),
        (b" GET\t k \r", [b"GET", b"k"]),
        (b'SET "a key" "\\x41\\n\\q\\xzz"', [b"SET", b"a key", b"A\nqxzz"]),
        (b"SET 'a\\'b\\n' ''", [b"SET", b"a'b\\n", b""]),
        (b'SET a"b c"', [b"SET", b"ab c"]),
        (b"ECHO \xff\xfe", [b"ECHO", b"\xff\xfe"]),
    ],
)
def test_the_words_of_a_line(line: bytes, words: list[bytes]) -> None:
    assert split_line(line) == words
