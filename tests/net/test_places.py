"""places: how many connections a client may have."""

from __future__ import annotations

import pytest

from conure.net.places import Places


def fill(places: Places, address: str) -> int:
    """Take all the places that there are for an address; return how many."""
    count = 0
    while places.take(address) is not None:
        count += 1
    return count


@pytest.mark.parametrize(
    ("most", "reserve", "here", "elsewhere"),
    [
        (1, 1, 1, 1),
        (2, 1, 1, 1),
        (3, 1, 2, 2),
        (100, 50, 50, 50),
        (128, 64, 64, 64),
        (1000, 64, 936, 936),
        (2000, 64, 1936, 1024),
        (10_000, 64, 9936, 1024),
        (20_000, 64, 19_936, 2000),
    ],
)
def test_shares(most: int, reserve: int, here: int, elsewhere: int) -> None:
    assert Places(most).reserve == reserve
    assert fill(Places(most), "127.0.0.1") == here
    assert fill(Places(most), "::1") == here
    assert fill(Places(most), "192.0.2.1") == elsewhere
    assert fill(Places(most, ["192.0.2.0/24"]), "192.0.2.1") == here
    assert fill(Places(most, ["192.0.2.0/24"]), "192.0.3.1") == elsewhere


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::ffff:0:1"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)
def test_addresses_of_one_client(one: str, other: str) -> None:
    places = Places(4000)
    assert fill(places, one) == 1024
    assert places.take(other) is None


@pytest.mark.parametrize(
    ("one", "other"), [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1")]
)
def test_addresses_of_two_clients(one: str, other: str) -> None:
    places = Places(4000)
    assert fill(places, one) == 1024
    assert fill(places, other) == 1024


def test_all_clients_together_leave_the_reserve() -> None:
    places = Places(4000)
    taken = sum(fill(places, f"192.0.2.{number}") for number in range(10))
    assert taken == 4000 - 64
    assert places.take("127.0.0.1") is None


def test_a_place_can_be_taken_again() -> None:
    places = Places(200)
    clients = [places.take(f"192.0.2.{number % 7}") for number in range(136)]
    assert places.take("192.0.2.1") is None
    for client in clients:
        assert client is not None
        places.give_back(client)
    assert places._taken == {}
    assert fill(places, "::ffff:127.0.0.1") == 136
