"""Handshakes, acceptors that are none, probes."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import select
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conure.consensus import records as records_module
from conure.consensus.messages import (
    COMMAND,
    Entry,
    Message,
    MessageType,
)
from conure.errors import ConureError, Refused, Unavailable
from conure.metrics import Registry
from conure.peers import accepting, dialling, frames, guests, inbox, news, sockets
from conure.peers.protocol import Greeting
from conure.peers.transport import Transport
from tests.lab.transports import (
    CLUSTER,
    PATIENCE,
    Net,
    Node,
    State,
    accept,
    address,
    eventually,
    frame,
    header_fields,
    hello,
    indexes,
    is_closed,
    message_to,
    probe,
    read_frame,
    read_json,
    waits_for,
)


def test_a_node_of_another_cluster_is_refused_until_it_is_right(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = net.pair()
    b.cluster = "another"
    with caplog.at_level(logging.INFO, "conure.transport"):
        eventually(lambda: a.send("b") or len(a.lost) > 3)  # type: ignore[func-returns-value]
        assert b.messages == []
        refusals = [r.getMessage() for r in caplog.records if "another cluster" in r.getMessage()]
        assert len(refusals) == 2  # one by each of the two
        assert b.metric("conure_peer_refused_connections_total") > 2
    b.cluster = CLUSTER
    eventually(lambda: a.send("b") or b.messages)  # type: ignore[func-returns-value]


def test_the_wrong_node_at_an_address_gets_nothing(net: Net) -> None:
    a, c = net.node("a"), net.node("c")
    a.transport.set_peers({"b": c.address})
    c.admit = lambda kind, to, peer, known_as: None  # type: ignore[method-assign]
    eventually(lambda: a.send("b") or len(a.lost) > 2)  # type: ignore[func-returns-value]
    assert c.messages == []
    assert a.recognised[0] == ("b", c.greeting())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"protocol": 2}, "versions of the protocol"),
        ({"protocol": None}, "versions of the protocol"),
        ({"cluster_id": "other"}, "another cluster"),
        ({"to": "z"}, "not z"),
    ],
)
def test_refusals_say_why(net: Net, changes: dict[str, Any], why: str) -> None:
    b = net.node("b")
    sock = net.dial(b)
    sock.sendall(frame(hello(b, **changes)))
    answer = read_json(sock)
    assert answer["protocol"] == 1
    assert why in answer["refused"]
    assert is_closed(sock)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
        bytes(200),
        struct.pack(">II", 8193, 0),
        struct.pack(">II", 2**32 - 1, 0),
        struct.pack(">II", 20, 0) + bytes(20),
        records_module.encode_frame(b"no json"),
        records_module.encode_frame(b"[" * 8000),
        records_module.encode_frame(b'{"protocol":' + b"9" * 5000 + b"}"),
        frame([1, 2]),
        frame({"protocol": 1}),
    ],
)
def test_a_stranger_is_left_without_a_word(net: Net, data: bytes) -> None:
    a, b = net.pair()
    sock = net.dial(b)
    sock.sendall(data)
    assert is_closed(sock)
    a.send("b")
    eventually(lambda: b.messages)


@pytest.mark.parametrize("field", ["kind", "to", "node_id", "cluster_id", "http_address"])
def test_a_field_that_is_no_proper_text_ends_the_handshake(net: Net, field: str) -> None:
    b = net.node("b")
    for value in (..., None, 7, "line\nend", "\ud800", "x" * 513, ["a"]):
        sock = net.dial(b)
        sock.sendall(frame(hello(b, **{field: value})))
        assert is_closed(sock), value
    assert b.admitted == []


@pytest.mark.parametrize("field", ["node_id", "incarnation"])
def test_who_says_not_which_node_it_is_gets_no_further(net: Net, field: str) -> None:
    """A message's sender is known by what was said here: by nothing, it could be anybody."""
    b = net.node("b")
    for value in ("", "x" * 256, "\u20ac" * 86):
        sock = net.dial(b)
        sock.sendall(frame(hello(b, **{field: value})))
        assert is_closed(sock), value
    assert b.admitted == []
    sock = net.dial(b)
    sock.sendall(frame(hello(b, **{field: "x" * 255})))
    assert read_json(sock)["node_id"] == "b"


def test_a_node_that_dials_says_what_it_takes_the_other_one_for(net: Net) -> None:
    a, b = net.pair()
    a.send("b")
    eventually(lambda: b.messages)
    assert b.taken_for == ["i-b"]
    assert b.messages[0].incarnation == "i-a"  # by the handshake: it doesn't travel
    probe(a, b.address, "b")
    found: list[object] = []
    a.transport.probe(b.address, "b", found.append, "i-other")
    eventually(lambda: found)
    assert b.taken_for == ["i-b", "", "i-other"]
    net.admitted(b)  # as a node of an earlier release would
    assert b.taken_for[-1] == ""
    sock = net.dial(b)
    sock.sendall(frame(hello(b, known_as=7)))
    assert is_closed(sock)


def test_the_bytes_of_a_message_do_not_say_whose_it_is(net: Net) -> None:
    b = net.node("b")
    sock = net.admitted(b)
    message = Message(MessageType.APPEND, "x", "b", 1, incarnation="forged")
    sock.sendall(frames.encode_message(message))
    eventually(lambda: b.messages)
    assert b.messages[0].incarnation == "i-x"


@pytest.mark.parametrize("is_registered", [False, True])
def test_connections_are_closed_when_their_other_end_is_believed_no_more(
    net: Net, caplog: pytest.LogCaptureFixture, is_registered: bool
) -> None:
    a = net.node("a")
    server = net.reactor() if is_registered else None
    if server is not None:
        server.start()
    b = net.node("b", registrar=server.reactor if server else None)
    a.knows(b)
    b.knows(a)
    a.send("b")
    b.send("a")
    eventually(lambda: b.messages and a.messages)
    asked: list[tuple[str, str]] = []

    def believes(peer: Greeting, known_as: str) -> bool:
        asked.append((peer.node_id, known_as))
        return a.cluster == CLUSTER

    b.transport.judge(believes, lambda peer: peer.node_id == "a")
    assert asked == [("a", "i-b")]
    a.send("b", 1)
    eventually(lambda: len(b.messages) == 2)
    assert (a.lost, b.lost) == ([], [])  # nothing was closed
    a.cluster = "another"
    with caplog.at_level(logging.INFO, "conure.transport"):
        b.transport.judge(believes, lambda peer: True)
        eventually(lambda: a.lost)
        eventually(lambda: "closed the connection of a" in caplog.text)
    a.send("b", 2)
    eventually(lambda: len(a.lost) > 1)
    assert len(b.messages) == 2
    b.send("a", 3)
    eventually(lambda: len(a.messages) == 2)  # the other one is as it was

    with caplog.at_level(logging.INFO, "conure.transport"):
        b.transport.judge(lambda peer, known_as: True, lambda peer: False)
        eventually(lambda: b.lost)
    assert "lost the connection to a: it isn't who belongs to the cluster" in caplog.text


def test_what_has_arrived_by_a_connection_that_is_closed_is_not_handed_over(net: Net) -> None:
    b = net.node("b")
    began, gate = threading.Event(), threading.Event()

    def receive(messages: Sequence[Message]) -> None:
        began.set()
        assert gate.wait(PATIENCE)

    b.on_receive = receive
    sock = net.admitted(b)
    sock.sendall(message_to(b, 1))
    assert began.wait(PATIENCE)
    inbox_ = next(iter(b.transport._acceptor._inboxes.values()))
    sock.sendall(message_to(b, 2))
    assert select.select([inbox_._link.descriptor], [], [], PATIENCE)[0]
    b.transport.judge(lambda peer, known_as: False, lambda peer: True)
    gate.set()
    assert is_closed(sock)
    eventually(lambda: not b.transport._acceptor._callers)
    assert [message.index for message in b.messages] == [1]


def test_a_snapshot_of_who_is_believed_no_more_is_cut_off(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 1000)

    def judge(chunk: int) -> None:
        if chunk == 3:
            b.cluster = "another"
            b.transport.judge(lambda peer, known_as: False, lambda peer: True)

    state.before_chunk = judge
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert "finish" not in b.staged[0].events


def test_who_is_refused_is_told_no_more_than_is_meant_for_it(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    b = net.node("b")

    def admit(*_: object) -> None:
        raise Refused("b of cluster c1 doesn't know x", "it doesn't know who asks")

    b.admit = admit  # type: ignore[method-assign,assignment]
    for kind in ("messages", "snapshot", "probe"):
        sock = net.dial(b)
        sock.sendall(frame(hello(b, kind=kind)))
        assert read_json(sock) == {"protocol": 1, "refused": "it doesn't know who asks"}
        assert is_closed(sock)
    assert "b of cluster c1 doesn't know x" in caplog.text


def test_a_slow_handshake_is_ended_however_slow(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.2)
    b = net.node("b")
    silent, slow = net.dial(b), net.dial(b)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for byte in frame(hello(b)):
            slow.sendall(bytes([byte]))
            time.sleep(0.02)
    assert 0.1 < time.monotonic() - began < 2  # all of it would take longer than that
    assert is_closed(slow)
    assert is_closed(silent)
    assert b.admitted == []


def test_a_plain_visit_leaves_no_trace(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    b = net.node("b")
    with caplog.at_level(logging.INFO, "conure.transport"):
        net.dial(b).close()  # as a load balancer's check does
        sock = net.dial(b)
        sock.sendall(bytes(100))
        assert is_closed(sock)
    assert len(caplog.records) == 1


def test_strangers_cannot_fill_the_log(
    net: Net, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(news, "_MOST", 3)
    b = net.node("b")

    def visit(size: int) -> None:
        sock = net.dial(b)
        sock.sendall(struct.pack(">II", 1 << 20 | size, 0))  # each time there is another reason
        assert is_closed(sock)

    for size in range(10):
        visit(size)
    assert len(caplog.records) == 3
    monkeypatch.setattr(b.transport._acceptor._refusals, "_seconds", 0.0)
    visit(10)
    assert len(caplog.records) == 4


def test_strangers_cannot_keep_a_peer_out(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(guests, "MAX_INCOMING", 5)
    monkeypatch.setattr(guests, "MAX_STRANGERS", 2)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 60.0)
    b = net.node("b")
    peer = net.admitted(b)
    strangers = [net.dial(b) for _ in range(20)]
    a = net.node("a")
    a.knows(b)
    eventually(lambda: a.send("b") or b.messages)  # type: ignore[func-returns-value]
    assert sum(thread.name == "peer-in" for thread in threading.enumerate()) <= 8
    assert is_closed(strangers[0])
    message = Message(MessageType.HEARTBEAT, "x", "b", 1, index=4, entries=[])
    peer.sendall(frames.encode_message(message))  # the admitted one was spared
    eventually(lambda: message in b.messages)


def test_who_is_believed_but_no_member_takes_no_members_place(net: Net) -> None:
    """As a node that is behind, or of no cluster, has to believe anybody of that cluster."""
    b = net.node("b")
    b.members = "a"
    strangers = [
        net.admitted(b, node_id=f"s{number}") for number in range(2 * guests.MAX_STRANGERS)
    ]
    a = net.node("a")
    a.knows(b)
    eventually(lambda: a.send("b") or b.messages)  # type: ignore[func-returns-value]
    assert is_closed(strangers[0])
    strangers[-1].sendall(message_to(b, 5, sender=f"s{len(strangers) - 1}"))
    eventually(lambda: 5 in indexes(b))
    assert len(list(b.transport._acceptor._guests.sockets())) <= guests.MAX_STRANGERS + 1


@pytest.mark.parametrize("is_registered", [False, True])
def test_what_arrives_and_is_not_complete_is_bounded_over_all_connections(
    net: Net, monkeypatch: Any, is_registered: bool
) -> None:
    monkeypatch.setattr(guests, "MAX_ARRIVING", 4 << 20)
    for module in (guests, inbox):
        monkeypatch.setattr(module, "SMALL_FRAME", 64 << 10)
    server = net.reactor() if is_registered else None
    if server is not None:
        server.start()
    b = net.node("b", registrar=server.reactor if server else None)
    b.members = "a"
    begun = struct.pack(">II", 2 << 20, 0) + bytes(1 << 20)
    socks = []
    for number in range(8):
        socks.append(net.admitted(b, node_id=f"s{number}"))
        with contextlib.suppress(OSError):  # it may be ended amid it
            socks[-1].sendall(begun)
        eventually(
            lambda: b.transport._acceptor._guests.arriving
        )  # the first has the room before others ask
    for sock in socks[1:]:
        assert is_closed(sock)
    a = net.node("a")
    a.knows(b)
    large = bytes(3 << 20)
    a.send("b", data=large)  # and is sent once: no part of it was given up
    eventually(lambda: b.messages)
    assert b.messages[0].entries[0].data == large
    assert is_closed(socks[0])  # which had to make room


@pytest.mark.parametrize("is_registered", [False, True])
def test_a_frame_that_does_not_go_on_ends_its_connection(
    net: Net, monkeypatch: Any, is_registered: bool
) -> None:
    monkeypatch.setattr(guests, "FRAME_TIME", 0.2)
    monkeypatch.setattr(guests, "SLOWEST", 100)
    monkeypatch.setattr(accepting, "_LOOK", 0.02)
    server = net.reactor() if is_registered else None
    if server is not None:
        server.start()
    b = net.node("b", registrar=server.reactor if server else None)
    idle, drips, slow = [net.admitted(b, node_id=node_id) for node_id in "xyz"]
    message = frames.encode_message(
        Message(
            MessageType.APPEND, "z", "b", 1, index=7, entries=[Entry(1, 8, COMMAND, b"z" * 600)]
        )
    )
    drips.settimeout(0.01)
    ended = False
    for at in range(
        0, len(message), 20
    ):  # ten times as fast as has to be, on a loaded machine, too
        slow.sendall(message[at : at + 20])
        with contextlib.suppress(TimeoutError, ConnectionError):
            if not ended:
                drips.sendall(message[at // 20 : at // 20 + 1])  # half as fast
            ended = ended or drips.recv(1) == b""
        time.sleep(0.005)
    drips.settimeout(PATIENCE)
    assert ended or is_closed(drips)
    eventually(lambda: b.messages)
    assert b.messages[0].index == 7
    idle.sendall(message_to(b, 3))  # nothing had begun there
    eventually(lambda: len(b.messages) == 2)


def test_what_announces_a_snapshot_goes_on_or_its_connection_ends(
    net: Net, monkeypatch: Any
) -> None:
    monkeypatch.setattr(guests, "FRAME_TIME", 0.2)
    monkeypatch.setattr(guests, "SLOWEST", 1000)
    b = net.node("b")
    sock = net.admitted(b, kind="snapshot")
    sock.settimeout(0.01)
    announcement, sent, ended = frame(header_fields(State("b", 1, sender="x"))), 0, False
    with contextlib.suppress(ConnectionError):
        while not ended and sent < 100:
            sock.sendall(announcement[sent : sent + 1])
            sent += 1
            with contextlib.suppress(TimeoutError):
                ended = sock.recv(1) == b""
    assert sent < 100 < len(announcement)


def test_json_is_bounded_in_its_parts_before_it_is_parsed(net: Net, monkeypatch: Any) -> None:
    b = net.node("b")
    parsed: list[bytes] = []
    monkeypatch.setattr(json, "loads", parsed.append)
    for bomb in (b"[" * 4000, b"[{}" + b",{}" * 2000 + b"]", b'{"a":' * 1000, b"[1" + b",1" * 3900):
        sock = net.dial(b)
        sock.sendall(records_module.encode_frame(bomb))
        assert is_closed(sock)
    assert not parsed


def test_the_end_of_a_snapshot_is_bounded_as_well(net: Net) -> None:
    """It looks like a chunk, which may be large, and is JSON."""
    b = net.node("b")
    sock = net.admitted(b, kind="snapshot")
    sock.sendall(frame(header_fields(State("b", 1, sender="x"))))
    assert read_json(sock) == {"after": ""}
    sock.sendall(records_module.encode_frame(b'{"chunks": 0, "more": "' + b"x" * (1 << 20) + b'"}'))
    eventually(lambda: b.staged[0].events[-1] == "interrupted")


def test_only_so_many_connections_of_a_node_wait(net: Net, monkeypatch: Any) -> None:
    """Whoever has the name of a member has no more than a few of its places."""
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 5.0)
    b = net.node("b")
    gate, entered = threading.Event(), threading.Event()

    def wait(_: Sequence[Message]) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    b.on_receive = wait
    net.admitted(b).sendall(message_to(b, 1))
    assert entered.wait(PATIENCE)
    waiting = []
    for _ in range(accepting.MAX_WAITING):
        waiting.append(net.dial(b))
        waiting[-1].sendall(frame(hello(b)))
        eventually(lambda: b.transport._acceptor._places["messages", "x"].users == len(waiting) + 1)
    more = net.dial(b)
    more.sendall(frame(hello(b)))
    assert "too many connections wait" in read_json(more)["refused"]
    gate.set()


def test_the_newest_connection_of_a_node_takes_over_in_order(net: Net) -> None:
    b = net.node("b")
    gate = threading.Event()
    b.on_receive = waits_for(gate)
    old = net.admitted(b)
    old.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=1)))
    new = net.dial(b)
    new.sendall(frame(hello(b)))
    assert is_closed(old)
    gate.set()
    assert read_json(new)["node_id"] == "b"
    new.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=2)))
    eventually(lambda: [message.index for message in b.messages] == [1, 2])


def test_a_node_that_takes_long_admits_no_further_connection(net: Net, monkeypatch: Any) -> None:
    b = net.node("b")
    gate = threading.Event()
    b.on_receive = waits_for(gate)
    old = net.admitted(b)
    old.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=1)))
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.2)
    for _ in range(2):  # one that was refused doesn't make room for the next one
        new = net.dial(b)
        new.sendall(frame(hello(b)))
        assert "earlier connection" in read_json(new)["refused"]
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", PATIENCE)
    gate.set()
    newest = net.admitted(b)
    newest.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1, index=2)))
    eventually(lambda: [message.index for message in b.messages] == [1, 2])


@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.HEARTBEAT, "a", "b", 1),  # another sender than was admitted
        Message(MessageType.HEARTBEAT, "x", "c", 1),  # not for this node
    ],
)
def test_a_message_with_another_name_than_admitted_is_not_handed_over(
    net: Net, message: Message, caplog: pytest.LogCaptureFixture
) -> None:
    b = net.node("b")
    sock = net.admitted(b)
    own = frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1))
    sock.sendall(own)
    eventually(lambda: len(b.messages) == 1)
    sock.sendall(own + frames.encode_message(message))
    assert is_closed(sock)
    assert len(b.messages) == 1
    assert "a message from" in caplog.text


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.binary(min_size=1, max_size=100).map(records_module.encode_frame),
            st.builds(
                lambda n, tail: struct.pack(">II", n, 0) + tail,
                st.integers(0, 2**32 - 1),
                st.binary(max_size=20),
            ),
            st.tuples(st.integers(0, 70), st.integers(0, 255)).map(
                lambda change: bytes(
                    change[1] if i == change[0] else byte
                    for i, byte in enumerate(
                        frames.encode_message(Message(MessageType.VOTE, "x", "b", 1))
                    )
                )
            ),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_no_bytes_harm(net: Net, pieces: list[bytes], admitted: bool) -> None:
    if not hasattr(net, "target"):
        net.target = net.node("b")  # type: ignore[attr-defined]
    b: Node = net.target  # type: ignore[attr-defined]
    sock = net.dial(b)
    if admitted:
        sock.sendall(frame(hello(b)))
        read_json(sock)
    for piece in pieces:
        with contextlib.suppress(ConnectionError):
            sock.sendall(piece)
    sock.close()
    b.rounds.clear()
    good = Message(MessageType.HEARTBEAT, "y", "b", 1, index=9, entries=[])
    with net.admitted(b, node_id="y") as peer:
        peer.sendall(frames.encode_message(good))
        eventually(lambda: good in b.messages)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no node answers"),
        (struct.pack(">II", 1 << 20, 0), "no node answers"),
        (records_module.encode_frame(b"what?"), "no node answers"),
        (frame({"protocol": 1, "node_id": "b"}), "no node answers"),
        (frame({"protocol": 9}), "versions of the protocol"),
        (frame({"refused": "go\naway" + "!" * 5000}), "go.away!!!"),
        (b"", "no node answers"),
    ],
)
def test_an_answer_that_is_none_is_trouble_and_no_connection(
    net: Net, answer: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b")
    sock, _ = listener.accept()
    with sock:
        read_json(sock)
        sock.sendall(answer)
    eventually(lambda: a.lost)
    assert re.search(why, caplog.text)
    assert max(len(record.getMessage()) for record in caplog.records) < 700


def test_an_acceptor_that_talks_is_left(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b")
    with accept(listener) as sock, caplog.at_level(logging.INFO, "conure.transport"):
        read_frame(sock)
        sock.sendall(b"?")
        assert is_closed(sock)
        eventually(lambda: "it answered a message" in caplog.text)


def test_a_probe_tells_who_is_there(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    assert probe(a, b.address, "b") == b.greeting()
    assert b.admitted == [("probe", "b", a.greeting())]
    assert a.recognised == []  # that is for whoever asked
    assert str(probe(a, b.address, "c")) == "this is b and not c"


def test_a_probe_of_an_address_where_no_node_is(net: Net) -> None:
    a, b = net.node("a"), net.node("b")
    b.transport.close()
    for where in (
        b.address,
        "nonsense",
        ":80",
        "127.0.0.1:",
        "127.0.0.1:99999",
        "\0:1",
        "x" * 80 + ":1",
    ):
        found = probe(a, where, "b")
        assert isinstance(found, Unavailable), where
        assert "can't be reached" in str(found)


def test_only_so_many_probes_at_a_time(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.3)
    a, b = net.node("a"), net.node("b")
    silent = net.listener(backlog=20)
    found: list[Greeting | ConureError] = []
    for _ in range(dialling.MAX_PROBES):
        a.transport.probe(address(silent), "b", found.append)
    assert found == []
    assert "try again" in str(probe(a, b.address, "b"))
    eventually(lambda: len(found) == dialling.MAX_PROBES)
    assert all(isinstance(error, Unavailable) for error in found)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", PATIENCE)
    assert probe(a, b.address, "b") == b.greeting()


def test_both_internet_protocols(net: Net) -> None:
    a = net.node("a")
    for host, where in (
        ("", "127.0.0.1"),
        ("", "[::1]"),
        ("[::1]", "[::1]"),
        ("localhost", "localhost"),
    ):
        b = net.node("b", 0, host)
        assert probe(a, f"{where}:{b.transport.port}", "b") == b.greeting()
    with pytest.raises(OSError, match="in use"):
        Transport(("", b.transport.port), Registry())
