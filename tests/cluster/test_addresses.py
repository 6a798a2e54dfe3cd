"""Which address of a node counts: what the configuration says, or what the node has said itself."""

from __future__ import annotations

from conure.cluster.addresses import LINGER, MAX_STRANGERS, AddressBook
from conure.consensus.members import Configuration, Server
from conure.peers.protocol import Greeting


def book(*servers: Server) -> AddressBook:
    made = AddressBook("n1")
    made.adopt(Configuration((Server("n1", "n1:1"), *servers)), 0.0)
    return made


def configuration(*servers: Server) -> Configuration:
    return Configuration((Server("n1", "n1:1"), *servers))


def greeting(node_id: str, address: str, http_address: str = "", incarnation: str = "") -> Greeting:
    return Greeting(node_id, "c", incarnation, "data", address, http_address)


def test_a_member_that_moved_is_written_to_where_it_says_it_is() -> None:
    known = book(Server("n2", "a:1"))
    assert known.addresses() == {"n2": "a:1"}
    assert known.meet(greeting("n2", "b:1"))
    assert not known.meet(greeting("n2", "b:1"))
    assert known.addresses() == {"n2": "b:1"}


def test_the_configuration_overrules_what_a_member_said_before_it_moved() -> None:
    known = book(Server("n2", "a:1", "http://a"))
    known.meet(greeting("n2", "a:1", "http://a"))
    known.adopt(configuration(Server("n2", "b:1", "http://b")), 1.0)
    assert known.addresses() == {"n2": "b:1"}
    assert list(known.greetings()) == []


def test_an_old_http_address_does_not_come_back() -> None:
    known = book(Server("n2", "a:1", "http://old"))
    known.meet(greeting("n2", "a:1", "http://old"))
    known.adopt(configuration(Server("n2", "a:1", "http://new")), 1.0)
    assert list(known.greetings()) == []


def test_a_member_that_moved_twice_is_not_looked_for_where_it_was_in_between() -> None:
    known = book(Server("n2", "a:1"))
    known.meet(greeting("n2", "c:1"))
    known.adopt(configuration(Server("n2", "b:1")), 1.0)  # the log lags behind
    assert known.addresses() == {"n2": "c:1"}
    known.adopt(configuration(Server("n2", "c:1")), 2.0)
    assert known.addresses() == {"n2": "c:1"}


def test_a_removed_member_is_written_to_for_a_moment() -> None:
    known = book(Server("n2", "a:1"))
    known.meet(greeting("n2", "b:1"))
    known.adopt(configuration(), 1.0)
    assert known.addresses() == {"n2": "b:1"}
    assert not known.forget(1.0 + LINGER / 2)
    assert known.forget(1.0 + LINGER)
    assert known.addresses() == {}


def test_a_member_that_comes_back_at_once_is_another_one() -> None:
    known = book(Server("n2", "a:1", incarnation="1"))
    known.meet(greeting("n2", "a:1", incarnation="1"))
    known.adopt(configuration(), 1.0)
    known.adopt(configuration(Server("n2", "b:1", incarnation="2")), 1.1)
    assert known.addresses() == {"n2": "b:1"}
    assert list(known.greetings()) == []
    assert not known.forget(5.0)
    assert known.addresses() == {"n2": "b:1"}


def test_who_is_nowhere_is_looked_for_at_every_place_it_had() -> None:
    """A log that is replayed removes a member and adds it again at a place it has long left."""
    known = book(Server("n2", "a:1"))
    known.meet(greeting("n2", "b:1"))
    assert known.look_elsewhere("n2")
    assert known.addresses() == {"n2": "a:1"}
    assert known.look_elsewhere("n2")
    assert known.addresses() == {"n2": "b:1"}
    known.adopt(configuration(), 1.0)
    known.adopt(configuration(Server("n2", "a:1")), 1.0)
    assert known.addresses() == {"n2": "a:1"}
    assert list(known.greetings()) == []
    assert known.look_elsewhere("n2")
    assert known.addresses() == {"n2": "b:1"}
    known.meet(greeting("n2", "c:1"))
    assert known.addresses() == {"n2": "c:1"}


def test_who_was_removed_and_speaks_is_answered_where_it_was() -> None:
    """Its connection is older than the removal, and it may be a member again."""
    known = book(Server("n2", "a:1"))
    known.meet(greeting("n2", "b:1"))
    assert not known.hear("n2")
    known.adopt(configuration(), 1.0)
    assert known.forget(1.0 + LINGER)
    assert known.addresses() == {}
    assert known.hear("n2")
    assert known.addresses() == {"n2": "b:1"}
    assert not known.hear("n2")
    assert not known.hear("n9")


def test_a_node_with_one_place_is_looked_for_there() -> None:
    known = book(Server("n2", "a:1"))
    assert not known.look_elsewhere("n2")
    known.meet(greeting("n2", "a:1"))
    assert not known.look_elsewhere("n2")
    assert not known.look_elsewhere("n9")
    assert known.addresses() == {"n2": "a:1"}


def test_strangers_are_bounded_and_the_latest_is_known() -> None:
    known = book(Server("n2", "a:1"))
    known.meet(greeting("n2", "b:1"))
    for number in range(MAX_STRANGERS + 5):
        assert known.meet(greeting(f"s{number}", f"s{number}:1"))
    addresses = known.addresses()
    assert len(addresses) == 1 + MAX_STRANGERS
    assert addresses["n2"] == "b:1"
    assert f"s{MAX_STRANGERS + 4}" in addresses
    assert "s0" not in addresses
