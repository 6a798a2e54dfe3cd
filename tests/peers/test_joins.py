"""What a node says that asks to be added over the Raft port: shapes, strangers, any bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import Conflict, ConureError, Refused, Unavailable, WireError
from conure.peers import sockets
from conure.peers.joins import (
    MAX_JOINS,
    NO_PROOF,
    Applicant,
    check_added,
    check_applicant,
    check_taken,
    encode_added,
    encode_applicant,
    encode_taken,
)
from conure.peers.proving import OFFER, OPEN, REQUIRE, PeerSecurity
from tests.lab.transports import Net, Node, eventually, frame, is_closed, read_json

APPLICANT = Applicant("n2", "i2", "data", "10.0.0.2:7001", "http://10.0.0.2:8081")


def told(act: Callable[[], None]) -> str:
    """Return what somebody who asks is told."""
    with pytest.raises(ConureError) as caught:
        act()
    return f"{type(caught.value).__name__}: {caught.value}"


# -- shapes --------------------------------------------------------------------------------------


def test_what_is_said_is_read_as_it_was_said() -> None:
    for applicant in (APPLICANT, replace(APPLICANT, http_address="", role="arbiter")):
        said = json.loads(json.dumps(encode_applicant(applicant)))
        assert check_applicant(said) == applicant
    assert check_taken(json.loads(json.dumps(encode_taken("n1")))) == "n1"
    check_added(json.loads(json.dumps(encode_added(None))))
    said = json.loads(json.dumps(encode_added(Conflict("n2 was not added: \n no"))))
    assert told(lambda: check_added(said)) == "Refused: n2 was not added: ? no"


@pytest.mark.parametrize(
    "changes",
    [
        {"node_id": ""},
        {"node_id": "x" * 256},
        {"node_id": "a\nb"},
        {"node_id": 7},
        {"incarnation": ""},
        {"role": "king"},
        {"role": ["data"]},
        {"raft_address": ""},
        {"raft_address": "nowhere"},
        {"http_address": "ftp://x"},
        {"http_address": None},
    ],
)
def test_what_nobody_says_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        check_applicant(encode_applicant(APPLICANT) | changes)


@pytest.mark.parametrize("changes", [{"join": 2}, {"join": None}, {"protocol": 2}])
def test_another_version_is_told_what_to_do(changes: dict[str, Any]) -> None:
    for said in (encode_applicant(APPLICANT), encode_taken("n1")):
        with pytest.raises(Refused, match="name a base URL"):
            check_applicant(said | changes)
        with pytest.raises(Refused, match="name a base URL"):
            check_taken(said | changes)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["added", "why", "node_id", "join", "protocol", "role"]),
        st.none() | st.booleans() | st.integers() | st.text("a1:/\né😀\x00"),
        max_size=6,
    )
)
def test_any_answer_is_read_or_refused(said: dict[str, Any]) -> None:
    for check in (check_added, check_taken, check_applicant):
        with suppress(WireError, Refused):
            check(said)


# -- over connections ----------------------------------------------------------------------------


def test_a_member_is_asked_and_decides(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    a.transport.join(b.address, APPLICANT)
    assert [applicant for applicant, _ in b.applicants] == [APPLICANT]
    b.on_applicant = lambda reply: reply(Conflict("n2 was not added: remove it first"))
    words = told(lambda: a.transport.join(b.address, APPLICANT))
    assert words == "Refused: n2 was not added: remove it first"


def test_who_takes_long_to_decide_is_waited_for_and_can_be_given_up(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    b.on_applicant = lambda reply: None
    words: list[str] = []

    def ask() -> None:
        words.append(told(lambda: a.transport.join(b.address, APPLICANT)))

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: b.applicants)
    b.applicants.pop()[1](Unavailable("no leader is known"))
    thread.join(10)
    assert words == ["Refused: no leader is known"]
    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: b.applicants)
    a.transport.give_up_joining()
    thread.join(10)
    assert words[1].startswith("Unavailable: no node answers at")


def test_only_so_many_are_decided_on_at_a_time(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    b.on_applicant = lambda reply: None
    waiting = []
    for _ in range(MAX_JOINS):
        sock = socket.create_connection(("127.0.0.1", b.transport.port))
        sock.sendall(frame(encode_applicant(APPLICANT)))
        assert check_taken(read_json(sock)) == "b"
        waiting.append(sock)
    words = told(lambda: a.transport.join(b.address, APPLICANT))
    assert words == f"Refused: {MAX_JOINS} other nodes ask to be added; try again shortly"
    eventually(lambda: len(b.applicants) == MAX_JOINS)
    for _, reply in b.applicants:
        reply(None)
    for sock in waiting:
        assert read_json(sock) == {"added": True}
        sock.close()
    b.on_applicant = lambda reply: reply(None)
    a.transport.join(b.address, APPLICANT)


def test_a_stop_waits_for_no_decision(net: Net) -> None:
    b = net.node("b")
    b.on_applicant = lambda reply: None
    with socket.create_connection(("127.0.0.1", b.transport.port)) as sock:
        sock.sendall(frame(encode_applicant(APPLICANT)))
        assert check_taken(read_json(sock)) == "b"
        eventually(lambda: b.applicants)
        b.transport.close()
        assert is_closed(sock)
    assert not [thread for thread in threading.enumerate() if thread.name == "peer-in"]


def test_a_release_that_takes_no_such_wish_is_told_of(net: Net) -> None:
    """It ends the connection without a word."""
    a = net.node("a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            with server.accept()[0] as sock:
                sock.recv(4096)

        thread = threading.Thread(target=hang_up)
        thread.start()
        words = told(lambda: a.transport.join(f"127.0.0.1:{port}", APPLICANT))
        thread.join()
    assert "An earlier release takes no wish to be added there: name a base URL" in words


@pytest.mark.parametrize("mode", [OPEN, OFFER])
@pytest.mark.parametrize("is_here", [True, False])
@pytest.mark.parametrize("takes_anybody", [True, False])
def test_who_has_proved_nothing_is_added_where_nobody_can_and_that_is_wanted(
    net: Net, monkeypatch: pytest.MonkeyPatch, mode: str, is_here: bool, takes_anybody: bool
) -> None:
    """It would be sent all records (P4)."""
    monkeypatch.setattr(sockets, "is_of_this_machine", lambda _: is_here)
    b = net.node("b", security=PeerSecurity(mode, takes_anybody=takes_anybody))
    with socket.create_connection(("127.0.0.1", b.transport.port)) as sock:
        sock.sendall(frame(encode_applicant(APPLICANT)))
        answer = read_json(sock)
        if mode == OPEN and (is_here or takes_anybody):
            assert check_taken(answer) == "b"
            assert read_json(sock) == {"added": True}
        else:
            assert answer == {"protocol": 1, "refused": NO_PROOF}
            assert is_closed(sock)
    assert bool(b.applicants) == (mode == OPEN and (is_here or takes_anybody))
    assert b.admitted == []


def test_who_has_proved_itself_is_heard(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "is_of_this_machine", lambda _: False)
    for mode in (OFFER, REQUIRE):
        security = PeerSecurity(mode, lambda: [b"s" * 32])
        a, b = net.node("a", security=security), net.node("b", security=security)
        a.transport.join(b.address, APPLICANT)
        assert [applicant for applicant, _ in b.applicants] == [APPLICANT]
        stranger = net.node("c", security=PeerSecurity(mode, lambda: [b"x" * 32]))
        with pytest.raises(ConureError):
            stranger.transport.join(b.address, APPLICANT)
        assert len(b.applicants) == 1


def test_what_is_of_this_machine() -> None:
    class Ends:
        def __init__(self, theirs: str, mine: str) -> None:
            self.getpeername = lambda: (theirs, 1)
            self.getsockname = lambda: (mine, 2)

    def is_here(theirs: str, mine: str) -> bool:
        return sockets.is_of_this_machine(Ends(theirs, mine))  # type: ignore[arg-type]

    for ends in (("127.0.0.1", "127.0.0.1"), ("127.9.9.9", "127.0.0.1"), ("::1", "::1"),
                 ("10.0.0.5", "10.0.0.5"), ("::ffff:127.0.0.1", "::ffff:127.0.0.1")):  # fmt: skip
        assert is_here(*ends)
    for ends in (("10.0.0.6", "10.0.0.5"), ("::ffff:10.0.0.6", "::ffff:10.0.0.5"),
                 ("fe80::1%eth0", "fe80::2%eth0")):  # fmt: skip
        assert not is_here(*ends)
    sock = socket.socket()
    sock.close()
    assert not sockets.is_of_this_machine(sock)


def test_nobody_there_is_unavailable(net: Net) -> None:
    a = net.node("a")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert "can't be reached" in told(lambda: a.transport.join(f"127.0.0.1:{port}", APPLICANT))


@pytest.mark.parametrize(
    "changes", [{"node_id": ""}, {"raft_address": "x" * 600}, {"http_address": "/"}]
)
def test_nonsense_is_never_handed_over(net: Net, changes: dict[str, Any]) -> None:
    b: Node = net.node("b")
    with socket.create_connection(("127.0.0.1", b.transport.port)) as sock:
        sock.sendall(frame(encode_applicant(APPLICANT) | changes))
        assert is_closed(sock)
    assert b.applicants == []
