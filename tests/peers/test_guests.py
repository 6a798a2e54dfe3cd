"""Who may have an incoming connection, and how much of what arrives: members first."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from conure.consensus.records import FRAME_HEADER_BYTES, MAX_FRAME_BYTES
from conure.errors import WireError
from conure.peers import guests
from conure.peers.guests import Guests, is_stalled

LARGEST = FRAME_HEADER_BYTES + MAX_FRAME_BYTES


class House:
    """Guests with sockets that are never used."""

    def __init__(self) -> None:
        self.guests = Guests()
        self.members: set[socket.socket] = set()
        self.made: list[socket.socket] = []

    def enter(self, source: str = "10.0.0.1") -> tuple[socket.socket, bool, socket.socket | None]:
        sock = socket.socket()
        self.made.append(sock)
        has_room, ended = self.guests.enter(sock, source)
        return sock, has_room, ended

    def member(self, source: str = "10.0.0.1") -> socket.socket:
        sock, has_room, ended = self.enter(source)
        assert has_room
        self.leave(ended)
        self.members.add(sock)
        self.guests.recognise(sock, lambda: sock in self.members)
        return sock

    def stranger(self, source: str = "10.6.6.6") -> socket.socket:
        sock, has_room, ended = self.enter(source)
        assert has_room
        self.leave(ended)
        self.guests.recognise(sock, lambda: False)
        return sock

    def leave(self, sock: socket.socket | None) -> None:
        if sock is not None:
            self.guests.leave(sock)

    @property
    def held(self) -> int:
        return sum(guest.arriving for guest in self.guests._guests.values())


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    for sock in house.made:
        sock.close()


def test_strangers_have_a_quarter_and_push_out_their_own(house: House) -> None:
    members = [house.member(f"10.0.0.{n}") for n in range(8)]
    lone = house.stranger("10.1.1.1")
    first = house.stranger()
    others = [house.stranger() for _ in range(guests.MAX_STRANGERS - 2)]
    for expected in (first, *others):  # whoever opens many, loses the oldest of them
        sock, has_room, ended = house.enter("10.6.6.6")
        assert (has_room, ended) == (True, expected)
        house.leave(expected)
        house.guests.recognise(sock, lambda: False)
    _, has_room, ended = house.enter("10.2.2.2")
    assert has_room
    assert ended not in {lone, *members}


def test_members_get_every_other_place(house: House) -> None:
    for _ in range(guests.MAX_STRANGERS):
        house.stranger()
    for number in range(guests.MAX_INCOMING):
        house.member(f"10.0.0.{number}")
    assert len(house.members) == len(list(house.guests.sockets())) == guests.MAX_INCOMING
    sock, has_room, ended = house.enter()
    assert (has_room, ended) == (False, None)
    assert sock not in house.guests.sockets()


def test_who_was_a_member_is_a_stranger_at_once(house: House) -> None:
    former = house.member()
    for _ in range(guests.MAX_STRANGERS - 1):
        house.stranger("10.0.0.1")
    house.members.clear()
    assert house.enter()[1:] == (True, former)


def test_connections_that_do_not_end_are_bounded_too(house: House) -> None:
    """A thread may take long to notice, for instance while it waits for the node."""
    count = 0
    for _ in range(1000):
        count += house.enter()[1]
    assert count == len(list(house.guests.sockets())) <= 2 * guests.MAX_STRANGERS + 1


def test_a_largest_frame_of_a_member_gets_through_whatever_strangers_hold(house: House) -> None:
    strangers = [house.stranger() for _ in range(4)]
    assert house.guests.expect(strangers[0], LARGEST) == []
    for stranger in strangers[1:]:
        with pytest.raises(WireError, match="too much else arrives"):
            house.guests.expect(stranger, LARGEST)
    leader, other = house.member(), house.member()
    assert house.guests.expect(leader, LARGEST) == []
    assert house.guests.expect(other, LARGEST) == [strangers[0]]
    with pytest.raises(WireError):
        house.guests.expect(house.member(), LARGEST)
    assert house.guests.expect(leader, 0) == []  # it has come
    assert house.guests.expect(leader, LARGEST) == []


def test_small_frames_need_no_room(house: House) -> None:
    full = [house.member() for _ in range(2)]
    for sock in full:
        house.guests.expect(sock, LARGEST)
    for sock in (house.stranger(), house.member()):
        assert house.guests.expect(sock, guests.SMALL_FRAME) == []


def test_what_arrives_is_bounded_whoever_sends(house: House) -> None:
    rng = random.Random(3)
    known = [house.stranger() for _ in range(10)] + [house.member() for _ in range(10)]
    bound = guests.MAX_ARRIVING + guests.SMALL_FRAME
    for _ in range(5000):
        sock = rng.choice(known)
        size = rng.choice([0, 9, guests.SMALL_FRAME + 1, LARGEST // 3, LARGEST])
        try:
            ended = house.guests.expect(sock, size)
        except WireError:
            ended = []
        assert sock not in ended
        assert not house.members & set(ended)
        assert house.held <= bound
        strangers = [house.guests._guests[s] for s in known if s not in house.members]
        by_strangers = sum(guest.arriving for guest in strangers)
        assert by_strangers <= bound / 2 + guests.SMALL_FRAME


def test_a_connection_that_has_left_holds_nothing(house: House) -> None:
    sock = house.member()
    house.guests.expect(sock, LARGEST)
    house.guests.leave(sock)
    assert house.held == 0
    assert house.guests.expect(sock, LARGEST) == []
    house.guests.recognise(sock, lambda: True)
    assert house.held == 0


def test_a_frame_earns_time_by_going_on() -> None:
    assert not is_stalled(guests.FRAME_TIME, 0)
    assert is_stalled(guests.FRAME_TIME + 0.1, 1)
    assert not is_stalled(guests.FRAME_TIME + 60, 61 * guests.SLOWEST)
