"""Messages between transports, and connections that break."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from conure.consensus import records as records_module
from conure.consensus.messages import (
    COMMAND,
    Entry,
    Message,
    MessageType,
)
from conure.http.server import HTTPServer
from conure.peers import dialling, frames, peer, sockets
from tests.lab.transports import (
    PATIENCE,
    Net,
    Node,
    accept,
    address,
    descriptors,
    eventually,
    indexes,
    is_closed,
    message_to,
    read_frame,
    waits_for,
)


def test_messages_arrive_in_order_and_as_they_were(net: Net) -> None:
    a, b = net.pair()
    sent = [
        Message(MessageType.APPEND, "a", "b", 2, index=i, entries=[Entry(2, i + 1, COMMAND, b"x")])
        for i in range(3000)
    ]
    for message in sent:
        a.transport.send(message)
    b.send("a", 77)
    eventually(lambda: len(b.messages) == 3000 and a.messages)
    assert b.messages == sent
    assert [message.index for message in a.messages] == [77]
    assert b.admitted == [("messages", "b", a.greeting())]
    assert a.recognised == [("b", b.greeting())]
    assert a.lost == b.lost == []


def test_nothing_is_dialled_before_there_is_something_to_send(net: Net) -> None:
    a, b = net.pair()
    listener = net.listener()
    listener.settimeout(0.1)
    a.transport.set_peers({"b": b.address, "c": address(listener)})
    a.send("b")
    eventually(lambda: b.messages)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_missing_connections_are_opened_when_asked_for(net: Net) -> None:
    a, b = net.pair()
    port = net.listener().getsockname()[1]  # somebody who never answers
    a.transport.set_peers({"b": b.address, "c": f"127.0.0.1:{port}"})
    a.transport.connect(["a", "b", "c"])
    eventually(lambda: a.metric("conure_peers_connected") == 1)
    assert (a.recognised[0][0], b.messages, b.metric("conure_peers_connected")) == ("b", [], 0)
    b.transport.close()
    eventually(lambda: a.metric("conure_peers_connected") == 0)
    again = net.node("b", b.transport.port)
    lost = list(a.lost)
    eventually(
        lambda: (
            a.transport.connect(["b"])  # type: ignore[func-returns-value]
            or a.metric("conure_peers_connected") == 1
        )
    )
    assert again.messages == []
    assert a.lost == lost  # nothing was to be sent


def test_what_arrives_together_is_handed_over_together(net: Net) -> None:
    a, b = net.pair()
    gate = threading.Event()
    b.on_receive = waits_for(gate)
    a.send("b", 1)
    eventually(lambda: a.metric("conure_peers_connected") == 1)
    for i in range(2, 1002):
        a.send("b", i)
    gate.set()
    eventually(lambda: len(b.messages) == 1001)
    assert [message.index for message in b.messages] == list(range(1, 1002))
    assert len(b.rounds) < 20


def test_large_messages_pass_and_keep_their_place(net: Net) -> None:
    a, b = net.pair()
    large = os.urandom(1 << 20) * 24
    for i in range(6):
        a.send("b", i, large if i % 3 == 1 else b"small")
    eventually(lambda: len(b.messages) == 6)
    assert [message.index for message in b.messages] == list(range(6))
    assert all(
        message.entries[0].data == (large if message.index % 3 == 1 else b"small")
        for message in b.messages
    )


def test_many_threads_may_send(net: Net) -> None:
    a, b = net.pair()

    def send_many(first: int) -> None:
        for i in range(first, first + 500):
            a.send("b", i, b"data")

    threads = [threading.Thread(target=send_many, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(b.messages) == 2000)
    indexes = [message.index for message in b.messages]
    for i in range(4):
        own = [index for index in indexes if index // 1000 == i]
        assert own == list(range(1000 * i, 1000 * i + 500))


def test_a_message_to_a_stranger_is_dropped(net: Net) -> None:
    a, b = net.pair()
    a.send("nobody")
    a.send("b")
    eventually(lambda: b.messages)
    assert a.lost == []


def test_two_hosts_may_hold_their_locks_while_they_send(net: Net) -> None:
    a, b = net.pair()
    locks = {"a": threading.Lock(), "b": threading.Lock()}
    left = {"a": 300, "b": 300}

    def answer(node: Node, other: Node) -> None:
        with locks[node.id]:
            if left[node.id]:
                left[node.id] -= 1
                node.send(other.id)

    a.on_receive = lambda messages: answer(a, b)
    b.on_receive = lambda messages: answer(b, a)
    a.send("b")
    eventually(lambda: not left["b"])


def test_metrics_count_what_is_sent_received_and_dropped(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 0, b"x" * 1000)
    eventually(lambda: b.messages)
    stranger = net.admitted(b)
    stranger.sendall(frames.encode_message(Message(MessageType.HEARTBEAT, "x", "b", 1)))
    eventually(lambda: len(b.messages) == 2)
    size = len(frames.encode_message(b.messages[0]))
    assert a.metric('conure_peer_sent_bytes_total{peer="b"}') == size
    assert b.metric('conure_peer_received_bytes_total{peer="a"}') == size
    assert b.metric('conure_peer_received_bytes_total{peer="other"}') == 63
    assert a.metric("conure_peers_connected") == 1
    assert b.metric("conure_peers_connected") == 0
    assert a.metric('conure_peer_dropped_messages_total{peer="b"}') == 0


def test_a_peer_that_restarts_on_its_port_is_dialled_again(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 1)
    eventually(lambda: b.messages)
    b.transport.close()
    eventually(lambda: a.lost)  # noticed without sending
    assert a.metric("conure_peers_connected") == 0

    lost = len(a.lost)
    eventually(lambda: a.send("b", 2) or len(a.lost) > lost)  # type: ignore[func-returns-value]
    assert a.metric('conure_peer_dropped_messages_total{peer="b"}') > 0

    again = net.node("b", b.transport.port)
    eventually(lambda: a.send("b", 3) or again.messages)  # type: ignore[func-returns-value]
    assert a.metric("conure_peers_connected") == 1


def test_a_peer_that_restarts_elsewhere_is_found_there(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 1)
    eventually(lambda: b.messages)
    elsewhere = net.node("b")
    a.knows(elsewhere)
    eventually(lambda: a.send("b", 2) or elsewhere.messages)  # type: ignore[func-returns-value]
    assert {message.index for message in b.messages} == {1}


def test_an_address_that_is_put_right_is_tried_at_once(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(peer, "BACKOFF", 60.0)
    a, b = net.pair()
    a.transport.set_peers({"b": "no address"})
    a.send("b")
    eventually(lambda: a.lost)
    a.knows(b)
    a.send("b", 2)
    eventually(lambda: [message.index for message in b.messages] == [2])


def test_a_peer_that_accepts_and_closes_is_dialled_less_and_less(
    net: Net, monkeypatch: Any
) -> None:
    """What opens a connection and ends it at once, such as a proxy without a node, is no peer."""
    monkeypatch.setattr(peer, "BACKOFF", 0.02)
    monkeypatch.setattr(peer, "MAX_BACKOFF", 60.0)
    a, listener = net.node("a"), net.listener()
    a.transport.set_peers({"b": address(listener)})
    dialled = []
    for _ in range(7):
        a.transport.connect(["b"])
        accept(listener).close()
        dialled.append(time.monotonic())
        lost = len(dialled)
        eventually(lambda lost=lost: len(a.lost) >= lost)  # type: ignore[misc]
    shortest = sum(0.5 * 0.02 * 2**n for n in range(6))
    assert dialled[-1] - dialled[0] > 0.9 * shortest


def test_a_peer_that_dials_is_dialled_back_at_once(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(peer, "BACKOFF", 60.0)
    a, b = net.pair()
    b.transport.close()
    a.send("b", 1)
    eventually(lambda: a.lost)
    again = net.node("b", b.transport.port)
    a.send("b", 2)
    again.knows(a)
    again.send("a")
    eventually(lambda: [message.index for message in again.messages] == [2])


def test_a_peer_that_is_none_any_more_is_left(net: Net) -> None:
    a, b = net.pair()
    a.send("b", 1)
    eventually(lambda: b.messages)
    a.transport.set_peers({})
    a.send("b", 2)
    eventually(lambda: not any(thread.name == "peer-b" for thread in threading.enumerate()))
    assert len(b.messages) == 1
    assert a.metric("conure_peers_connected") == 0
    a.knows(b)
    a.send("b", 3)
    eventually(lambda: len(b.messages) == 2)


def test_only_trouble_that_is_new_is_logged(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    a, b = net.pair()
    b.transport.close()
    with caplog.at_level(logging.INFO, "conure.transport"):
        eventually(lambda: a.send("b") or len(a.lost) > 4)  # type: ignore[func-returns-value]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "no connection to b" in caplog.text
        again = net.node("b", b.transport.port)
        eventually(lambda: a.send("b") or again.messages)  # type: ignore[func-returns-value]
        assert f"connected to b at {again.address}" in caplog.text


def test_a_peer_that_reads_nothing_costs_a_bounded_queue(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(peer, "MAX_QUEUED_BYTES", 4 << 20)
    a, b = net.pair()
    listener = net.listener()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    a.transport.set_peers({"b": b.address, "deaf": address(listener)})
    a.send("deaf", 0)
    with accept(listener, "deaf"):
        eventually(lambda: a.metric("conure_peers_connected") == 1)
        data = b"x" * 50_000
        slowest = 0.0
        dropped = 'conure_peer_dropped_messages_total{peer="deaf"}'
        for i in range(600):
            began = time.perf_counter()
            a.send("deaf", i, data)
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 0.5
        eventually(lambda: a.lost == ["deaf"])  # once, not for each
        assert a.metric(dropped) > 100
        a.send("b", 5)
        eventually(lambda: b.messages)

        before = a.metric(dropped)
        for i in range(5000):
            a.send("deaf", i)  # small ones are bounded by their number
        assert a.metric(dropped) > before
        assert a.lost == ["deaf"]


def test_a_peer_that_reads_again_gets_what_has_waited(net: Net) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b", 0, b"first")
    with accept(listener) as sock:
        eventually(lambda: a.metric("conure_peers_connected") == 1)
        for i in range(1, 300):
            a.send("b", i, b"y" * 60_000)
        indexes = [
            frames.decode_message(records_module.encode_frame(read_frame(sock))).index
            for _ in range(300)
        ]
    assert indexes == list(range(300))


def test_silence_is_noticed(net: Net, monkeypatch: Any) -> None:
    # As of a peer whose process is stopped: its system accepts, and takes bytes up to a point.
    monkeypatch.setattr(dialling, "SILENCE", 0.3)
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.send("b", 0)
    with accept(listener):
        eventually(lambda: a.metric("conure_peers_connected") == 1)
        for i in range(200):
            a.send("b", i, b"y" * 100_000)
        eventually(lambda: "b" in a.lost)


def test_a_peer_whose_process_is_stopped_costs_nobody_else(net: Net, monkeypatch: Any) -> None:
    # Its system accepts the connection, and nobody answers the handshake.
    a, b = net.pair()
    a.send("b")
    eventually(lambda: b.messages)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 0.3)
    stopped = net.listener()
    a.transport.set_peers({"b": b.address, "stopped": address(stopped)})
    for i in range(100):
        a.send("stopped", i)
        a.send("b", i)
    eventually(lambda: len(b.messages) == 101)
    eventually(lambda: "stopped" in a.lost)  # when the handshake's time is over
    assert a.metric('conure_peer_dropped_messages_total{peer="stopped"}') >= 100


def registered(server: HTTPServer) -> int:
    return len(server.reactor.registered)


def test_a_registrar_hands_over_what_comes_in_its_own_thread(net: Net) -> None:
    server = net.reactor()
    node = net.node("a", registrar=server.reactor)
    threads: set[str] = set()
    node.on_receive = lambda _: threads.add(threading.current_thread().name)
    early = net.admitted(node)
    early.sendall(message_to(node, 0))  # it has to wait: the server doesn't run yet
    server.start()
    data = b"".join([message_to(node, index) for index in range(1, 3000)])
    for at in range(0, len(data), 9999):
        early.sendall(data[at : at + 9999])
    eventually(lambda: len(node.messages) == 3000)
    assert indexes(node) == list(range(3000))
    assert threads == {"http-reactor"}


def end_by_close(sock: socket.socket, node: Node) -> None:
    sock.close()


def end_by_reset(sock: socket.socket, node: Node) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def end_by_garbage(sock: socket.socket, node: Node) -> None:
    sock.sendall(b"\xff" * 100)


def end_by_another_name(sock: socket.socket, node: Node) -> None:
    sock.sendall(message_to(node, 666, sender="y"))


def end_by_the_host(sock: socket.socket, node: Node) -> None:
    def fail(_: Sequence[Message]) -> None:
        node.on_receive = lambda _: None
        raise RuntimeError("boom")

    node.on_receive = fail
    sock.sendall(message_to(node, 666))


ENDS = (end_by_close, end_by_reset, end_by_garbage, end_by_another_name, end_by_the_host)


@pytest.mark.parametrize("end", ENDS)
def test_a_registered_connection_that_ends_leaves_nothing(
    net: Net, end: Callable[[socket.socket, Node], None]
) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    before = descriptors()
    for index in range(3):
        sock = net.admitted(node)
        sock.sendall(message_to(node, index))
        eventually(lambda: len(node.messages) == index + 1)  # noqa: B023 - called at once
        end(sock, node)
        with contextlib.suppress(OSError):
            sock.sendall(message_to(node, 777))  # nothing after an error is handed over
        if sock.fileno() >= 0:
            assert is_closed(sock)
        sock.close()
        eventually(lambda: not registered(server) and not node.transport._acceptor._guests._guests)
    eventually(lambda: descriptors() <= before)
    assert indexes(node) == [0, 1, 2]
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")  # the server lives on
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_nothing_behind_an_error_is_handed_over_however_often_the_registrar_calls(net: Net) -> None:
    actions: list[Callable[[], None]] = []

    class ByHand:
        def register(self, descriptor: int, action: Callable[[], None]) -> None:
            actions.append(action)

        def unregister(self, descriptor: int) -> None:
            gate.wait(PATIENCE)

    gate = threading.Event()
    node = net.node("a", registrar=ByHand())
    sock = net.admitted(node)
    eventually(lambda: actions)
    actions[0]()  # without input
    sock.sendall(message_to(node, 666, sender="y"))
    inbox_ = next(iter(node.transport._acceptor._inboxes.values()))
    while not inbox_.has_ended.is_set():
        actions[0]()
    sock.sendall(message_to(node, 1))
    assert select.select([inbox_._link.descriptor], [], [], PATIENCE)[0]
    actions[0]()
    gate.set()
    assert is_closed(sock)
    assert node.messages == []


def test_the_newest_registered_connection_takes_the_place_of_the_older_one(net: Net) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    for index in range(20):  # descriptors are used again and again
        sock = net.admitted(node)
        sock.sendall(message_to(node, index))
        eventually(lambda: len(node.messages) == index + 1)  # noqa: B023 - called at once
    assert indexes(node) == list(range(20))
    eventually(lambda: registered(server) == 1)


def test_a_registrar_that_has_ended_leaves_no_thread_behind(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    before = net.admitted(node)
    before.sendall(message_to(node, 0))
    eventually(lambda: node.messages)
    server.drain(0)
    after = net.admitted(node, node_id="y")  # is greeted, and read no more
    after.sendall(message_to(node, 1, sender="y"))
    eventually(lambda: len(node.transport._acceptor._inboxes) == 2)
    node.transport.close()
    assert is_closed(before)
    assert is_closed(after)
    assert indexes(node) == [0]
    assert not node.transport._acceptor._inboxes
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_close_ends_what_a_registrar_reads(net: Net) -> None:
    server = net.reactor()
    server.start()
    node = net.node("a", registrar=server.reactor)
    sock = net.admitted(node)
    sock.sendall(message_to(node, 0)[:-1])
    eventually(lambda: node.metric('conure_peer_received_bytes_total{peer="other"}'))
    node.transport.close()
    assert is_closed(sock)
    assert not registered(server)
