"""outlet.py: what is kept for a socket that takes a part of it, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest

from conure.net.outlet import Outlet
from conure.net.reactor import IN, OUT, SENT_TOGETHER, Bounds, Reactor


class FakeLink:
    """Takes so many bytes at a time; None: as many as it is given, below 0: not now."""

    pending = False
    stalled = False
    deadline = inf
    principal = ""
    names: frozenset[str] = frozenset()
    proof = ""
    descriptor = 7

    def __init__(self) -> None:
        self.takes: int | None = None
        self.taken: list[bytes] = []

    def receive(self, size: int) -> bytes:
        raise AssertionError(size)

    def send(self, data: bytes | memoryview) -> int:
        if self.takes is not None and self.takes < 0:
            raise BlockingIOError
        self.taken.append(bytes(data[: self.takes]))
        return len(self.taken[-1])

    def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.send(b"".join(pieces))

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        raise AssertionError(len(buffer))

    def flush(self) -> None:
        raise AssertionError

    def local_address(self) -> str:
        return "127.0.0.1"

    def shut(self) -> None: ...

    def reset_on_close(self, *, resets: bool) -> None: ...

    def close(self) -> None: ...


class Sender(Outlet):
    """A connection that only sends."""

    __slots__ = ("goes_on",)

    def __init__(self, reactor: Reactor, link: FakeLink) -> None:
        super().__init__(reactor, link)
        self.goes_on = 0

    def after_send(self) -> None:
        self.goes_on += 1

    def close(self) -> None:
        self.drop_output()

    def receive(self) -> None: ...

    def check_deadlines(self) -> None: ...

    def resume(self) -> None: ...

    def feed(self) -> None: ...

    def drop(self) -> None: ...

    def close_if_idle(self) -> None: ...

    def blocked_since(self) -> float | None:
        return None


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> Reactor:
    reactor = Reactor(Bounds(max_leaving_bytes=4 << 20), lambda _: None, "test")
    monkeypatch.setattr(reactor, "change_interest", lambda _: None)
    reactor.close()
    return reactor


@pytest.mark.parametrize("size", [10, SENT_TOGETHER])
@pytest.mark.parametrize("takes", [None, -1, 1, 7, 100_000])
def test_all_bytes_leave_in_order_and_are_counted(
    reactor: Reactor, size: int, takes: int | None
) -> None:
    link = FakeLink()
    sender = Sender(reactor, link)
    pieces = [bytes([number]) * size for number in range(5)]
    sender.put(pieces[0])
    sender.put_all(pieces[1:])
    assert reactor.dirty == [sender]
    assert sender.pending == reactor.leaving == 5 * size
    link.takes = takes
    sender.send()
    sent = sum(map(len, link.taken))
    assert sender.pending == reactor.leaving == 5 * size - sent
    assert sum(map(len, sender.out)) == sender.pending
    assert sender.interest == (IN | OUT if sender.pending else IN)
    link.takes = None
    sender.send()
    assert b"".join(link.taken) == b"".join(pieces)
    assert (sender.pending, reactor.leaving, sender.out) == (0, 0, [])
    assert sender.interest == IN
    assert reactor.bytes_out == 5 * size
    assert sender.goes_on == 1 + bool(5 * size > sent)


def test_who_has_much_unsent_is_given_no_more(reactor: Reactor) -> None:
    one, other = Sender(reactor, FakeLink()), Sender(reactor, FakeLink())
    one.put(bytes(1 << 20))
    assert not one.must_send()
    one.put(b"x")
    assert one.must_send()
    assert not other.must_send()
    one.put(bytes(3 << 20))
    assert other.must_send()
    one.close()
    assert not one.must_send()
    assert not other.must_send()
    assert reactor.leaving == 0
