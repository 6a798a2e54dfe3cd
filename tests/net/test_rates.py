"""rates: how much one client may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.net.rates import Rates, Visitor


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def visitor(rates: Rates, address: str = "192.0.2.7", principal: str = "") -> Visitor:
    return rates.visitor(address, lambda: principal)


def asked(who: Visitor, count: int, size: int = 1) -> int:
    """Ask so often, one by one; return how often that was allowed."""
    return sum(who.take(1, size) for _ in range(count))


def test_a_seconds_worth_may_come_at_once_and_then_the_rate() -> None:
    clock = Clock()
    rates = Rates(10, clock=clock)
    who = visitor(rates)
    assert asked(who, 25) == 10
    assert rates.refused == 15
    for _ in range(3):
        clock.now += 0.5
        assert asked(who, 25) == 5
    clock.now += 3600
    assert asked(who, 25) == 10


def test_of_many_at_once_the_first_are_allowed() -> None:
    clock = Clock()
    who = visitor(Rates(10, clock=clock))
    assert who.take(7, 0) == 7
    assert who.take(7, 0) == 3
    assert who.take(7, 0) == 0
    clock.now += 1
    assert who.take(70, 0) == 10


def test_a_large_request_is_allowed_and_owed_for() -> None:
    clock = Clock()
    who = visitor(Rates(0, 1000, clock=clock))
    assert who.take(1, 16_000) == 1
    why, seconds = who.refusal()
    assert seconds == 16
    assert "1000 of them a second" in why
    assert "in 16 s" in why
    clock.now += 15
    assert who.take(1, 1) == 0
    clock.now += 1
    assert who.take(1, 1) == 1


def test_bytes_may_be_counted_as_they_come() -> None:
    clock = Clock()
    who = visitor(Rates(0, 1000, clock=clock))
    assert who.take(1, 10) == 1
    who.owe(2990)
    assert who.take(1, 0) == 0
    clock.now += 2.1
    assert who.take(1, 0) == 1


def test_a_wait_is_whole_seconds_after_which_one_may_ask() -> None:
    clock = Clock()
    who = visitor(Rates(3, clock=clock))
    assert asked(who, 9) == 3
    assert who.refusal()[1] == 1
    clock.now += 1
    assert who.take(1, 0) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_a_client_is_an_address_or_a_network(one: str, other: str, same: bool) -> None:
    rates = Rates(5, clock=Clock())
    assert asked(visitor(rates, one), 5) == 5
    assert asked(visitor(rates, other), 5) == (0 if same else 5)


def test_this_machine_and_proxies_are_not_counted_by_address() -> None:
    rates = Rates(1, 1, ["198.51.100.0/24"], clock=Clock())
    for address in ("127.0.0.1", "::1", "198.51.100.9"):
        assert asked(visitor(rates, address), 100, 1000) == 100
    assert rates.clients == rates.refused == 0


def test_a_certificates_name_is_counted_wherever_it_comes_from() -> None:
    rates = Rates(5, clock=Clock())
    assert asked(visitor(rates, "127.0.0.1", "alice"), 3) == 3
    assert asked(visitor(rates, "192.0.2.7", "alice"), 5) == 2
    assert asked(visitor(rates, "127.0.0.1", "bob"), 5) == 5
    assert asked(visitor(rates, "192.0.2.7", "192.0.2.8"), 5) == 5
    assert asked(visitor(rates, "192.0.2.8"), 5) == 5, "a name is no address"


def test_a_handshake_may_end_after_the_connection_was_made() -> None:
    rates = Rates(2, clock=Clock())
    names = [""]
    who = rates.visitor("192.0.2.7", lambda: names[0])
    assert asked(who, 5) == 2
    names[0] = "alice"
    assert asked(who, 5) == 2


def test_only_so_many_clients_are_remembered() -> None:
    clock = Clock()
    rates = Rates(2, clock=clock, most_clients=100)
    busy = visitor(rates, "198.51.100.1")
    assert asked(busy, 5) == 2
    for number in range(1000):
        assert asked(visitor(rates, f"10.0.{number >> 8}.{number & 255}"), 1) == 1
        assert busy.take(1, 0) == 0, "who asks is not forgotten"
    assert rates.clients == 100


@given(
    st.integers(1, 20),
    st.integers(0, 500),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40), st.integers(0, 300)), max_size=40),
)
def test_nobody_gets_more_than_its_rate_for_long(
    requests: int, size: int, steps: list[tuple[float, int, int]]
) -> None:
    clock = Clock()
    rates = Rates(requests, size, clock=clock)
    who = visitor(rates)
    got = taken = asked_for = largest = 0
    begun = clock.now
    for pause, count, length in steps:
        clock.now += pause
        allowed = who.take(count, length)
        assert 0 <= allowed <= count
        asked_for += count
        got += allowed
        if allowed:
            taken += length
            largest = max(largest, length)
        elapsed = clock.now - begun
        assert got < requests * (elapsed + 1) + 1 + 1e-6
        if size:
            assert taken <= size * (elapsed + 1) + largest + 1e-6
        if not allowed:
            why, seconds = who.refusal()
            assert seconds >= 1
            assert f"{requests} requests" in why
    assert rates.refused == asked_for - got
    clock.now += rates.wait("192.0.2.7")
    assert who.take(1, 0) == 1
