"""A stream sealed by the cluster secret: what comes is what was sent, or the connection ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.net.link import Link, PlainLink
from conure.peers.sealedlink import SealedLink
from conure.security.secret import MAX_PAYLOAD, RECORD_BYTES, Nonces, seals_of

SECRET, NONCES = b"s" * 32, Nonces(b"d" * 32, b"a" * 32)


class Wire:
    """A link whose other end is the test: it takes *room* bytes, and brings what is in *coming*."""

    descriptor = 7
    pending = stalled = False
    principal = proof = ""
    names: frozenset[str] = frozenset()
    deadline = float("inf")

    def __init__(self, coming: bytes = b"", *, ends: bool = False) -> None:
        self.sent = bytearray()
        self.room = 1 << 30
        self.coming = bytearray(coming)
        self.ends = ends
        self.piece = 1 << 20
        self.is_shut = self.is_closed = False

    def local_address(self) -> str:
        raise AssertionError

    def receive(self, size: int) -> bytes:
        space = bytearray(size)
        return bytes(space[: self.receive_into(space)])

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        data = self.coming[: min(len(buffer), self.piece)]
        if not (data or self.ends):
            raise BlockingIOError
        del self.coming[: len(data)]
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes | memoryview) -> int:
        taken = data[: self.room]
        if not taken:
            raise BlockingIOError
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def send_pieces(self, pieces: object) -> int:
        raise NotImplementedError

    def flush(self) -> None: ...

    def shut(self) -> None:
        self.is_shut = True

    def reset_on_close(self, *, resets: bool) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def dialler(wire: Link) -> SealedLink:
    sending, receiving = seals_of(SECRET, NONCES)
    return SealedLink(wire, sending, receiving)


def acceptor(wire: Link) -> SealedLink:
    receiving, sending = seals_of(SECRET, NONCES)
    return SealedLink(wire, sending, receiving)


def send_all(link: SealedLink, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[link.send(view) :]


def sealed(*pieces: bytes, ends: bool = True) -> bytes:
    """Return what a dialler's stream is that sends these pieces."""
    wire = Wire()
    link = dialler(wire)
    for piece in pieces:
        send_all(link, piece)
    if ends:
        link.shut()
    return bytes(wire.sent)


def read_all(stream: bytes, size: int = 1 << 20, piece: int = 1 << 20) -> tuple[bytes, bool]:
    """Return what an acceptor is handed of a stream, and whether that ended in order."""
    wire = Wire(stream, ends=True)
    wire.piece = piece
    link = acceptor(wire)
    got = bytearray()
    while True:
        try:
            data = link.receive(size)
        except BlockingIOError:
            continue
        except ConnectionError:
            for _ in range(2):  # nothing comes after an error, and nothing goes
                with pytest.raises(ConnectionError):
                    link.receive(1)
            with pytest.raises(ConnectionError):
                link.send(b"x")
            return bytes(got), False
        if not data:
            assert link.receive(1) == b""
            return bytes(got), True
        got += data


PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
SIZES = st.integers(1, 50)


@settings(deadline=None)
@given(PIECES, SIZES, SIZES)
def test_what_is_sent_comes_in_any_pieces(pieces: list[bytes], size: int, piece: int) -> None:
    assert read_all(sealed(*pieces), size, piece) == (b"".join(pieces), True)


@settings(deadline=None)
@given(PIECES, st.data())
def test_any_byte_that_is_changed_ends_it(pieces: list[bytes], data: st.DataObject) -> None:
    stream = bytearray(sealed(*pieces))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    got, ended = read_all(bytes(stream), piece=data.draw(SIZES))
    assert not ended
    assert b"".join(pieces).startswith(got)
    # Nothing of the record that was changed, nor of a later one.
    ends = [0]
    for each in pieces:
        ends.append(ends[-1] + len(each) + RECORD_BYTES)
    before = max(i for i, end in enumerate(ends) if end <= at)
    assert len(got) <= len(b"".join(pieces[:before]))


@settings(deadline=None)
@given(PIECES, st.data())
def test_any_cut_ends_it(pieces: list[bytes], data: st.DataObject) -> None:
    stream = sealed(*pieces)
    cut = data.draw(st.integers(0, len(stream) - 1))
    got, ended = read_all(stream[:cut], piece=data.draw(SIZES))
    assert not ended
    assert b"".join(pieces).startswith(got)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6), st.data())
def test_no_record_comes_twice_or_in_another_place(
    pieces: list[bytes], data: st.DataObject
) -> None:
    wire = Wire()
    link = dialler(wire)
    records = []
    for piece in pieces:
        link.send(piece)
        records.append(bytes(wire.sent))
        wire.sent.clear()
    order = data.draw(
        st.lists(st.sampled_from(range(len(records))), max_size=8).filter(
            lambda order: order != list(range(len(order)))
        )
    )
    right = next(i for i, number in enumerate(order) if number != i)
    got, ended = read_all(b"".join([records[number] for number in order]), piece=1)
    assert not ended
    assert b"".join(pieces[:right]).startswith(got)


@settings(deadline=None)
@given(PIECES)
def test_what_comes_back_to_its_sender_ends_it(pieces: list[bytes]) -> None:
    link = dialler(Wire(sealed(*pieces), ends=True))
    with pytest.raises(ConnectionAbortedError, match="altered"):
        link.receive(100)


def test_what_comes_after_the_end_is_an_error() -> None:
    stream = sealed(b"a")
    for more in (b"x", stream, sealed(b"b", ends=False)):
        assert read_all(stream + more)[1] is False


def test_a_record_that_is_too_long_ends_it_before_it_has_come() -> None:
    wire = Wire((MAX_PAYLOAD + 1).to_bytes(4, "big"))
    with pytest.raises(ConnectionAbortedError, match="altered"):
        acceptor(wire).receive(1)


def test_a_record_in_parts_is_handed_over_as_a_whole() -> None:
    stream = sealed(b"hello", ends=False)
    wire = Wire()
    link = acceptor(wire)
    for byte in stream[:-1]:
        wire.coming.append(byte)
        with pytest.raises(BlockingIOError):
            link.receive(10)
        assert not link.pending
    wire.coming.append(stream[-1])
    assert link.receive(2) == b"he"
    assert link.pending
    buffer = bytearray(10)
    assert link.receive_into(buffer) == 3
    assert buffer[:3] == b"llo"
    assert not link.pending


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 2 * MAX_PAYLOAD), min_size=1, max_size=3),
    st.lists(st.integers(0, 100_000), max_size=20),
)
def test_bytes_count_as_sent_when_they_have_left(sizes: list[int], rooms: list[int]) -> None:
    """Whatever room there is from time to time, and offered again from where it said."""
    wire = Wire()
    link = dialler(wire)
    data = b"".join([bytes([i % 251]) * size for i, size in enumerate(sizes)])
    view = memoryview(data)
    for room in [*rooms, *[1 << 20] * 7]:
        wire.room = room
        try:
            taken = link.send(view)
        except BlockingIOError:
            taken = 0
        else:
            assert taken or not view
        view = view[taken:]
        # What was reported has left as a whole, sealed.
        got, _ = read_all(bytes(wire.sent))
        assert len(got) >= len(data) - len(view)
    assert not view
    assert read_all(bytes(wire.sent))[0] == data


def test_the_end_waits_for_what_has_not_left() -> None:
    wire = Wire()
    link = dialler(wire)
    wire.room = 10
    with pytest.raises(BlockingIOError):
        link.send(b"x" * 100)
    wire.room = 0
    with pytest.raises(BlockingIOError):
        link.shut()
    assert not wire.is_shut
    link.close()
    assert wire.is_closed
    assert read_all(bytes(wire.sent)) == (b"", False)


def test_nothing_is_sent_after_the_end() -> None:
    wire = Wire()
    link = dialler(wire)
    link.send_pieces([b"a", memoryview(b"b")])
    link.close()
    assert wire.is_shut
    with pytest.raises(BrokenPipeError):
        link.send(b"c")
    assert read_all(bytes(wire.sent)) == (b"ab", True)


@contextmanager
def pair() -> Iterator[tuple[SealedLink, SealedLink]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield dialler(PlainLink(one)), acceptor(PlainLink(other))


def test_both_ends_speak_over_a_socket() -> None:
    with pair() as (one, other):
        assert (one.proof, one.principal, one.names) == ("secret", "", frozenset())
        one.send(b"question")
        assert other.receive(100) == b"question"
        other.send(b"answer")
        assert one.receive(100) == b"answer"
        other.close()
        assert one.receive(100) == b""
