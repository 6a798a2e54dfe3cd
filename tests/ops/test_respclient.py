"""The client of RESP that kvctl has: what it reads, and what a hostile server gets through it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.errors import OutcomeUnknown
from conure.ops import respclient
from conure.ops.respclient import (
    MAX_BULK,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_LINE,
    ErrorReply,
    Garbled,
    NoAnswer,
    Push,
    Reply,
    RespClient,
    dial,
)
from tests.lab.kvctltool import HELLO, ScriptedServer
from tests.lab.respclient import parse_all


class FakeStream:
    """Gives pieces of bytes, each when it is asked, and then nothing, or never anything."""

    def __init__(self, pieces: Sequence[bytes] | Iterator[bytes], *, ends: bool = True) -> None:
        self._pieces = iter(pieces)
        self._ends = ends
        self.sent = b""
        self.waits: list[float | None] = []
        self.received = 0

    def settimeout(self, value: float | None, /) -> None:
        self.waits.append(value)

    def send(self, data: memoryview, /) -> int:
        some = bytes(data[:1000])
        self.sent += some
        return len(some)

    def recv(self, size: int, /) -> bytes:
        piece = next(self._pieces, b"")
        if not piece and not self._ends:
            raise TimeoutError
        assert len(piece) <= size
        self.received += len(piece)
        return piece

    def close(self) -> None:
        self.waits.append(None)


def client_of(*pieces: bytes, ends: bool = True) -> RespClient:
    return RespClient(FakeStream(pieces, ends=ends), "server", 5.0)


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"+OK\r\n", b"OK"),
        (b":-5\r\n", -5),
        (b",1.5\r\n", 1.5),
        (b"#t\r\n", True),
        (b"#f\r\n", False),
        (b"_\r\n", None),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"$0\r\n\r\n", b""),
        (b"$4\r\na\r\nb\r\n", b"a\r\nb"),
        (b"=7\r\ntxt:a:b\r\n", b"a:b"),
        (b"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n", [1, [b"x"]]),
        (b"%1\r\n+a\r\n:1\r\n", {b"a": 1}),
        (b"~1\r\n+a\r\n", [b"a"]),
    ],
)
def test_replies(data: bytes, reply: Reply) -> None:
    for pieces in ([data], [bytes([byte]) for byte in data]):
        assert client_of(*pieces).ask(b"X") == reply


_values = st.recursive(
    st.none() | st.integers(-(10**18), 10**18) | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


def _sent(value: object) -> bytes:
    match value:
        case None:
            return b"_\r\n"
        case int():
            return b":%d\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(_sent, value))
    raise AssertionError(value)


def _depth(value: object) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@given(_values, st.integers(1, 7))
def test_replies_come_in_any_pieces(value: object, size: int) -> None:
    data = _sent(value)
    client = client_of(*(data[at : at + size] for at in range(0, len(data), size)))
    if _depth(value) > MAX_DEPTH:
        with pytest.raises(Garbled):
            client.ask(b"X")
    else:
        assert client.ask(b"X") == value
        assert parse_all(data) == [value]


@given(st.binary(max_size=60))
def test_any_bytes_are_a_reply_or_an_error_of_ours(data: bytes) -> None:
    client = client_of(data) if data else client_of()
    try:
        client.ask(b"X")
    except (ErrorReply, Garbled, NoAnswer):
        return


def test_commands_are_sent_whole_and_as_they_are() -> None:
    stream = FakeStream([b"+OK\r\n"])
    value = bytes(range(256)) * 300
    assert RespClient(stream, "server", 5.0).ask(b"SET", b"k", value) == b"OK"
    assert stream.sent == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%b\r\n" % (len(value), value)


def test_errors_are_raised_or_among_the_replies() -> None:
    with pytest.raises(ErrorReply, match=r"^OOM the disk is full$") as caught:
        client_of(b"-OOM the disk is full\r\n").ask(b"SET", b"k", b"v")
    assert caught.value.code == "OOM"
    first, second = client_of(b"-ERR no\r\n:1\r\n").ask_each([[b"A"], [b"B"]])
    assert isinstance(first, ErrorReply)
    assert second == 1


def test_messages_come_between_replies() -> None:
    client = client_of(b">2\r\n+a\r\n+b\r\n:1\r\n", b">1\r\n+c\r\n", ends=False)
    assert client.ask(b"X") == 1
    message = client.message(5.0)
    assert isinstance(message, Push)
    assert message == [b"c"]
    with pytest.raises(TimeoutError):
        client.message(5.0)


# -- the greeting ----------------------------------------------------------------------------------


def test_the_greeting_agrees_on_a_version() -> None:
    client = client_of(HELLO)
    client.greet()
    assert (client.protocol, client.greeting[b"conuredb_version"]) == (3, b"0.0.0")
    for old in (b"-ERR unknown command 'HELLO'\r\n", b"-NOPROTO unsupported protocol version\r\n"):
        client = client_of(old)
        client.greet()
        assert (client.protocol, client.greeting) == (2, {})
    with pytest.raises(ErrorReply, match="NOAUTH"):
        client_of(b"-NOAUTH Authentication required.\r\n").greet()
    with pytest.raises(Garbled, match="something else than a map"):
        client_of(b":1\r\n").greet()


# -- hostile servers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", r"speaks HTTP; .* \(--resp-addr\) by --addr"),
        (b"\x15\x03\x01\r\n", "a reply begins with"),
        (b"\r\n", "a reply begins with"),
        (b":1x\r\n", "no number"),
        (b":\r\n", "no number"),
        (b":" + b"9" * 30 + b"\r\n", "no number"),
        (b"$" + b"9" * 12 + b"\r\n", "999,999,999,999 bytes, which no server can store"),
        (b"$%d\r\n" % (MAX_BULK + 1), "which no server can store"),
        (b"$1\r\nabc", "doesn't end where it should"),
        (b"*%d\r\n" % (MAX_ITEMS + 1), "more than 100,000 parts"),
        (b"%%%d\r\n" % (MAX_ITEMS // 2 + 1), "more than 100,000 parts"),
        (b"*1\r\n" * (MAX_DEPTH + 1), "within too many others"),
        (b"*2\r\n*60000\r\n" + b"_\r\n" * 60000 + b"*60000\r\n", "more than 100,000 parts"),
        (b"%1\r\n*0\r\n:1\r\n", "a map has a list among its keys"),
        (b",nonsense\r\n", "no number"),
        (b"#x\r\n", "a reply begins with"),
    ],
)
def test_what_is_no_reply_is_refused(data: bytes, why: str) -> None:
    pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    with pytest.raises(Garbled, match=f"^server sent what is no RESP: .*{why}"):
        client_of(*pieces, ends=False).ask(b"X")


def test_a_line_without_end_is_bounded() -> None:
    stream = FakeStream(iter(lambda: b"+" * 5000, b""))
    with pytest.raises(Garbled, match="a line doesn't end"):
        RespClient(stream, "server", 5.0).ask(b"X")
    assert stream.received < MAX_LINE + 10_000


def test_a_reply_of_many_long_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respclient, "MAX_REPLY", 100_000)
    value = b"$50000\r\n" + bytes(50_000) + b"\r\n"
    stream = FakeStream([b"*1000\r\n", *[value] * 1000])
    with pytest.raises(Garbled, match="a reply of more than 100,000 bytes"):
        RespClient(stream, "server", 5.0).ask(b"X")
    assert stream.received < 200_000


def test_nothing_is_allotted_for_a_length_that_is_only_claimed() -> None:
    client = client_of(b"$%d\r\n" % MAX_BULK, b"some", ends=False)
    with pytest.raises(NoAnswer, match="server has not answered within 5 s"):
        client.ask(b"X")
    assert len(client._buffer) < 100


@pytest.mark.parametrize("pieces", [[], [b"+O"], [b"$5\r\nab"], [b"*2\r\n:1\r\n"]])
def test_silence_and_an_end_in_the_middle(pieces: list[bytes]) -> None:
    with pytest.raises(NoAnswer, match="has not answered within 5 s"):
        client_of(*pieces, ends=False).ask(b"X")
    with pytest.raises(NoAnswer, match="has closed the connection"):
        client_of(*pieces).ask(b"X")
    for ends in (True, False):
        with pytest.raises(OutcomeUnknown, match="may or may not have been carried out"):
            client_of(*pieces, ends=ends).write(b"SET", b"k", b"v")


def test_single_bytes_renew_no_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def trickle() -> Iterator[bytes]:
        nonlocal now
        yield b"$100000\r\n"
        while True:
            now += 1.0
            yield b"x"

    monkeypatch.setattr(respclient, "monotonic", lambda: now)
    stream = FakeStream(trickle())
    with pytest.raises(NoAnswer, match="has not answered within 5 s"):
        RespClient(stream, "server", 5.0).ask(b"X")
    assert stream.received < 20


def test_messages_before_a_reply_renew_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def messages(seconds: float, each: bytes) -> Iterator[bytes]:
        nonlocal now
        for _ in range(30):
            now += seconds
            yield each

    monkeypatch.setattr(respclient, "monotonic", lambda: now)
    stream = FakeStream(messages(1.0, b">1\r\n+x\r\n"))
    with pytest.raises(NoAnswer, match="has not answered within 5 s"):
        RespClient(stream, "server", 5.0).ask(b"X")
    assert stream.received < 100
    stream = FakeStream(messages(0.0, b">1\r\n+x\r\n" * 5_000))
    with pytest.raises(Garbled, match="parts"):
        RespClient(stream, "server", 5.0).ask(b"X")


def test_a_long_value_may_take_longer_than_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def slowly() -> Iterator[bytes]:
        nonlocal now
        yield b"$655360\r\n"
        for _ in range(20):
            now += 1.0
            yield bytes(32768)
        yield b"\r\n"

    monkeypatch.setattr(respclient, "monotonic", lambda: now)
    assert RespClient(FakeStream(slowly()), "server", 5.0).ask(b"X") == bytes(655_360)


def test_what_is_said_before_the_end_counts_more_than_the_end() -> None:
    """A server that refuses a long value closes while it is still being sent."""

    class Closing(FakeStream):
        def send(self, data: memoryview, /) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(ErrorReply, match="too long"):
        RespClient(Closing([b"-ERR too long\r\n"]), "server", 5.0).ask(b"SET", b"k", b"v")
    with pytest.raises(NoAnswer, match=r"has closed the connection \(Broken pipe\)"):
        RespClient(Closing([]), "server", 5.0).ask(b"SET", b"k", b"v")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(NoAnswer, match=rf"can't connect to 127.0.0.1 port {port}: .*refused; name"):
        dial("127.0.0.1", port, 1.0)
    with pytest.raises(NoAnswer, match="can't connect to no such host"):
        dial("no such host", port, 1.0)


def test_a_real_server_that_never_answers_is_left() -> None:
    server = ScriptedServer([], stays=True)
    try:
        host, port = server.address.split(":")
        begun = time.monotonic()
        with RespClient(dial(host, int(port), 1.0), "server", 0.1) as client:  # noqa: SIM117
            with pytest.raises(NoAnswer, match=r"has not answered within 0\.1 s"):
                client.greet()
        assert time.monotonic() - begun < 5
    finally:
        server.close()
