"""What nodes ask each other that are to form a cluster: shapes, strangers, any bytes at all."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conure.consensus.members import Configuration, Server
from conure.errors import ConureError, Refused, Unavailable, WireError
from conure.peers.forming import (
    MAX_SHOWN,
    Question,
    Shown,
    check_question,
    check_shown,
    encode_question,
    encode_shown,
)
from conure.values import MAX_FOUNDERS
from tests.lab.transports import Net, Node, address, eventually, frame, is_closed, read_json

QUESTION = Question("a", "i-a", "0" * 64)
FORMATION = Configuration(
    (Server("a", "a:1", "http://a:2", incarnation="x"), Server("b", "b:1", incarnation="y")), 2
)
SHOWN = Shown("b", "i-b", "data", 2, "", "http://b:1", 8081, ("a:7001", "[::1]:7001"))


def ask(node: Node, place: str) -> Shown | ConureError:
    found: list[Shown | ConureError] = []
    node.transport.ask(place, QUESTION, found.append)
    eventually(lambda: found)
    return found[0]


# -- shapes --------------------------------------------------------------------------------------


def test_what_is_said_is_read_as_it_was_said() -> None:
    for question in (QUESTION, replace(QUESTION, digest="")):
        assert check_question(encode_question(question)) == question
    member = replace(SHOWN, cluster_id="c", formation=FORMATION, leader_http="http://b:1")
    for shown in (SHOWN, replace(SHOWN, digest="f" * 64, peers=()), member):
        assert check_shown(json.loads(json.dumps(encode_shown(shown)))) == shown


def test_the_largest_answer_fits() -> None:
    servers = [
        Server(f"{n:0128}", f"{n:0253}:7001", f"http://{n:0253}:8081", incarnation=f"{n:032}")
        for n in range(MAX_FOUNDERS)
    ]
    peers = tuple(server.raft_address for server in servers)  # it has not met itself yet
    shown = replace(SHOWN, peers=peers, formation=Configuration(tuple(servers)), cluster_id="c")
    assert len(json.dumps(encode_shown(shown))) < MAX_SHOWN
    assert check_shown(encode_shown(shown)) == shown


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
        {"quorum_size": 1},
        {"quorum_size": -1},
        {"quorum_size": True},
        {"quorum_size": 1001},
        {"raft_address": ":7001"},
        {"raft_address": "nowhere"},
        {"http_address": "ftp://x"},
        {"http_port": 65536},
        {"peers": "a:1"},
        {"peers": [":1"]},
        {"peers": [["a:1"]]},
        {"peers": ["a:1"] * (MAX_FOUNDERS + 1)},
        {"digest": "0" * 63},
        {"digest": "G" * 64},
        {"cluster_id": "\x00"},
        {"formation": None},
        {"formation": "%"},
        {"formation": b64encode(b"\x01").decode()},
        {"formation": b64encode(FORMATION.encode()[:-1]).decode()},
        {"formation": b64encode(b"\x09" + FORMATION.encode()[1:]).decode()},
        {"formation": b64encode(Configuration(FORMATION.servers[:1]).encode()).decode()},
        {"leader_http": "x"},
    ],
)
def test_what_no_node_says_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        check_shown({**encode_shown(SHOWN), **changes})
    for name in changes.keys() & encode_question(QUESTION).keys():
        with pytest.raises(WireError):
            check_question({**encode_question(QUESTION), name: changes[name]})


@pytest.mark.parametrize("name", sorted(encode_shown(SHOWN).keys() - {"https"}))
def test_nothing_may_be_missing(name: str) -> None:
    fields = encode_shown(SHOWN)
    del fields[name]
    with pytest.raises((WireError, Refused)):
        check_shown(fields)


def test_a_release_without_tls_says_nothing_of_it() -> None:
    fields = encode_shown(SHOWN)
    del fields["https"]
    assert check_shown(fields) == SHOWN
    assert check_shown({**fields, "https": True}).https


@pytest.mark.parametrize("name", ["protocol", "forming"])
def test_another_version_is_told_so(name: str) -> None:
    with pytest.raises(Refused, match="run the same version"):
        check_question({**encode_question(QUESTION), name: 2})
    with pytest.raises(Refused, match="run the same version"):
        check_shown({**encode_shown(SHOWN), name: 2})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(encode_shown(SHOWN))), anything)
def test_any_value_is_read_or_refused(name: str, value: object) -> None:
    try:
        shown = check_shown({**encode_shown(SHOWN), name: value})
    except (WireError, Refused):
        return
    assert check_shown(encode_shown(shown)) == shown


# -- on the wire ---------------------------------------------------------------------------------


def test_a_node_shows_itself_to_one_that_asks(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    assert ask(a, b.address) == b.shown
    assert b.questions == [QUESTION]
    assert not b.admitted  # it is no connection for anything else


def test_who_does_not_answer_is_told_of(net: Net) -> None:
    a = net.node("a")
    closed = net.node("b")
    place = closed.address
    closed.transport.close()
    found = ask(a, place)
    assert isinstance(found, Unavailable)
    assert "can't be reached" in str(found)
    assert isinstance(ask(a, "nowhere.invalid:1"), Unavailable)


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x00" * 8, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 64, frame([]), frame({})],
)
def test_who_answers_otherwise_is_no_node(net: Net, answer: bytes) -> None:
    a, listener = net.node("a"), net.listener()
    found: list[Shown | ConureError] = []
    a.transport.ask(address(listener), QUESTION, found.append)
    sock, _ = listener.accept()
    with sock:
        assert read_json(sock) == encode_question(QUESTION)
        sock.sendall(answer)
    eventually(lambda: found)
    assert isinstance(found[0], Unavailable | Refused)


def test_an_answer_that_is_too_long_is_not_read(net: Net) -> None:
    a, listener = net.node("a"), net.listener()
    found: list[Shown | ConureError] = []
    a.transport.ask(address(listener), QUESTION, found.append)
    sock, _ = listener.accept()
    with sock:
        sock.sendall(frame({"x": "y" * MAX_SHOWN})[:100])
        eventually(lambda: found)
    assert isinstance(found[0], Unavailable)


def test_a_refusal_is_told(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = net.node("a"), net.node("b")

    def refuse(_: Question) -> Shown:
        raise Refused("n7 has to go", "not now")

    monkeypatch.setattr(b, "asked", refuse)
    found = ask(a, b.address)
    assert isinstance(found, Refused)
    assert str(found) == "not now"


def test_a_silent_peer_ends_the_question_and_so_does_a_stop(net: Net) -> None:
    a, listener = net.node("a"), net.listener()
    found: list[Shown | ConureError] = []
    for _ in range(2):
        a.transport.ask(address(listener), QUESTION, found.append)
    eventually(lambda: len(found) == 2)
    a.transport.ask(address(listener), QUESTION, found.append)
    a.transport.close()
    assert len(found) == 3
    assert all(isinstance(each, Unavailable) for each in found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(sorted(encode_question(QUESTION))), anything)
def test_hostile_questions_harm_nothing(net: Net, name: str, value: object) -> None:
    b = net.node("b")
    sock = net.dial(b)
    sock.sendall(frame({**encode_question(QUESTION), name: value}))
    try:
        answer = read_json(sock)
    except (EOFError, ConnectionError):
        pass
    else:
        assert "refused" in answer or check_shown(answer) == b.shown
        assert is_closed(sock)
    sock.close()
    b.transport.close()
