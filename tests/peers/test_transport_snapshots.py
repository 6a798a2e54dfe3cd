"""Snapshots between transports, and how a transport ends."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from conure.consensus import records as records_module
from conure.consensus.messages import (
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
)
from conure.errors import ConureError, StorageError, Unavailable
from conure.metrics import Registry
from conure.peers import frames, sockets, transfer
from conure.peers.protocol import Greeting
from conure.peers.transport import Transport
from tests.lab.transports import (
    Net,
    Node,
    Staged,
    State,
    accept,
    address,
    eventually,
    frame,
    header_fields,
    is_closed,
    probe,
    read_json,
    waits_for,
)


def assert_complete(staged: Staged, state: State) -> None:
    assert staged.events[-1] == "finish"
    assert [row[0] for row in staged.records] == [b"%08d" % i for i in range(state.header.records)]
    assert {row[1:] for row in staged.records} <= {(state.value, 1, 2, 3, 0)}


@pytest.mark.parametrize("records", [0, 1, 1000])
def test_a_snapshot_arrives(net: Net, records: int) -> None:
    a, b = net.pair()
    state = State("b", records)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", 70)]
    assert state.closed == 1
    (staged,) = b.staged
    assert staged.events == ["resume", "finish"]
    assert staged.header == state.header._replace(message=staged.header.message)
    assert staged.header.message.snapshot == SnapshotMeta(70, 2, b"members")
    assert_complete(staged, state)
    sent = a.metric('conure_peer_sent_bytes_total{peer="b"}')
    assert sent == b.metric('conure_peer_received_bytes_total{peer="a"}')
    assert sent >= records * 100


def test_a_large_value_is_a_large_chunk(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 2, value=os.urandom(1 << 20) * 24)
    state.per_chunk = 1
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert_complete(b.staged[0], state)


def test_a_snapshot_that_is_not_needed_is_as_good_as_sent(net: Net) -> None:
    a, b = net.pair()
    b.snapshot_needed = False
    state = State("b", 100)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert (state.chunks_made, state.closed) == (0, 1)


def test_a_snapshot_that_is_refused_is_not_tried_again(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = net.pair()

    def begin(header: SnapshotHeader) -> None:
        raise StorageError("the disk is full")

    b.begin_snapshot = begin  # type: ignore[method-assign]
    state = State("b", 100)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert len([kind for kind, _, _ in b.admitted if kind == "snapshot"]) == 1
    assert "given up: the disk is full" in caplog.text


def test_an_altered_chunk_ends_the_transfer_at_once(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = net.pair()

    class Altered(State):
        def make(self, rows: list[tuple[bytes, bytes, int, int, int, int]]) -> bytes:
            return super().make(rows[::-1] if self.chunks_made == 3 else rows)

    # So much that the answer has to come amid the sending, and to survive what is unread.
    state = Altered("b", 4000, value=b"v" * 10_000)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert state.closed == 1
    assert "b was given up: the keys are not in order" in caplog.text
    assert len(b.staged) == 1
    assert b.staged[0].events == ["resume"]


def test_a_snapshot_with_too_few_records_is_refused_at_its_end(net: Net) -> None:
    a, b = net.pair()

    class Short(State):
        def chunks(self, after: bytes) -> Iterator[bytes]:
            yield from list(super().chunks(after))[:-1]

    a.transport.send_snapshot(Short("b", 100))
    eventually(lambda: a.sent == [("b", None)])
    assert b.staged[0].events == ["resume", "finish"]


def test_a_state_that_can_not_be_read_ends_the_transfer(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 100)

    def fail(n: int) -> None:
        raise StorageError("page 7 is damaged")

    state.before_chunk = fail
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", None)])
    assert state.closed == 1
    eventually(lambda: b.staged[0].events == ["resume", "interrupted"])


def test_a_transfer_that_breaks_off_goes_on_where_it_was(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 6_000)  # 600 chunks
    breaks = range(30, 600, 60)
    assert len(breaks) > transfer.RESUMPTIONS  # but each gets further than the one before

    def cut(n: int) -> None:
        if n in breaks:  # a newer connection of the same node ends the older one
            eventually(lambda: len(b.staged[0].records) > 10 * (n - 30))
            net.admitted(b, "snapshot", "a")

    state.before_chunk = cut
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    (staged,) = b.staged
    assert_complete(staged, state)
    assert staged.events.count("interrupted") == len(breaks)
    assert staged.events.count("resume") == len(breaks) + 1
    assert state.chunks_made < 1200


def test_a_transfer_outlives_a_restart_of_the_receiver(net: Net) -> None:
    a, b = net.pair()
    state = State("b", 2000)
    again: list[Node] = []

    def restart(n: int) -> None:
        if n == 100:
            b.transport.close()
            again.append(net.node("b", b.transport.port))

    state.before_chunk = restart
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert "interrupted" in b.staged[0].events
    assert_complete(again[0].staged[0], state)


def test_a_receiver_that_is_gone_is_given_up(net: Net) -> None:
    a, b = net.pair()
    b.transport.close()
    state = State("b", 100)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent)
    assert a.sent == [("b", None)]
    assert state.closed == 1


def test_a_transfer_without_progress_is_given_up(net: Net) -> None:
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.transport.send_snapshot(State("b", 100))
    for _ in range(1 + transfer.RESUMPTIONS):
        assert a.sent == []
        with accept(listener) as sock:
            assert read_json(sock)["records"] == 100
            sock.sendall(frame({"after": ""}))
    eventually(lambda: a.sent == [("b", None)])


@pytest.mark.parametrize("answer", [{"after": 7}, {"after": "*"}, {}, {"done": True}, [1]])
def test_an_answer_that_is_none_breaks_the_transfer_off(
    net: Net, answer: object, monkeypatch: Any
) -> None:
    monkeypatch.setattr(transfer, "RESUMPTIONS", 0)
    a = net.node("a")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.transport.send_snapshot(State("b", 100))
    with accept(listener) as sock:
        read_json(sock)
        sock.sendall(frame(answer))
        eventually(lambda: a.sent == [("b", None)])


def test_silence_of_either_side_ends_a_transfer(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "PROGRESS_TIME", 0.1)
    monkeypatch.setattr(transfer, "RESUMPTIONS", 0)
    a, b = net.node("a"), net.node("b")
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    a.transport.send_snapshot(State("b", 100))
    with accept(listener):
        eventually(lambda: a.sent == [("b", None)])

    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(State("b", 100, sender="x"))))
    assert read_json(sock) == {"after": ""}
    eventually(lambda: b.staged[0].events == ["resume", "interrupted"])


def test_the_end_of_a_transfer_may_take_longer_than_its_parts(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "PROGRESS_TIME", 0.2)
    monkeypatch.setattr(transfer, "RESUMPTIONS", 0)
    a, b = net.pair()
    monkeypatch.setattr(Staged, "finish", lambda staged: time.sleep(0.4))
    a.transport.send_snapshot(State("b", 10))
    eventually(lambda: a.sent)
    assert a.sent == [("b", 70)]
    assert len(b.staged) == 1


def test_one_snapshot_at_a_time_for_a_node(net: Net) -> None:
    a, b = net.pair()
    gate = threading.Event()
    first, second, third = State("b", 100), State("b", 100), State("b", 100)
    first.before_chunk = waits_for(gate)
    a.transport.send_snapshot(first)
    eventually(lambda: b.staged)
    a.transport.send_snapshot(second)
    eventually(lambda: a.sent == [("b", None)])
    assert (second.closed, second.chunks_made) == (1, 0)
    gate.set()
    eventually(lambda: a.sent == [("b", None), ("b", 70)])
    a.transport.send_snapshot(third)
    eventually(lambda: a.sent[2:] == [("b", 70)])


def test_no_snapshot_for_a_stranger_nor_for_one_who_has_left(net: Net) -> None:
    a, b = net.pair()
    a.transport.send_snapshot(State("nobody", 1))
    eventually(lambda: a.sent == [("nobody", None)])
    state = State("b", 10_000)
    state.before_chunk = lambda n: a.transport.set_peers({}) if n == 50 else None
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent[1:] == [("b", None)])
    assert state.chunks_made < 60
    eventually(lambda: b.staged[0].events == ["resume", "interrupted"])


def test_a_transfer_rests_as_long_as_it_works(net: Net) -> None:
    a, _ = net.pair()
    state = State("b", 100)

    def work(n: int) -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass

    state.before_chunk = work
    began = time.monotonic()
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", 70)])
    assert time.monotonic() - began > 2 * 10 * 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"message": ...},
        {"message": "*"},
        {"message": b64encode(b"junk").decode()},
        {
            "message": b64encode(
                frames.encode_message(Message(MessageType.VOTE, "x", "b", 1))
            ).decode()
        },
        {"digest": -1},
        {"digest": "1"},
        {"records": 1 << 64},
        {"records": True},
        {"id": 5},
    ],
)
def test_a_malformed_announcement_ends_the_connection(net: Net, changes: dict[str, Any]) -> None:
    b = net.node("b")
    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(State("b", 1, sender="x"), **changes)))
    assert is_closed(sock)
    assert b.staged == []


@pytest.mark.parametrize(("sender", "to"), [("a", "b"), ("x", "c")])
def test_a_snapshot_with_another_name_than_admitted_is_not_begun(
    net: Net, sender: str, to: str
) -> None:
    b = net.node("b")
    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(State(to, 1, sender=sender))))
    assert is_closed(sock)
    assert b.staged == []


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 4, 0) + b"abcd",  # fails its checksum
        struct.pack(">II", records_module.MAX_FRAME_BYTES + 1, 0),
        frame({"chunks": 1}),  # says that a chunk is missing
        records_module.encode_frame(b"{"),
        b"",
    ],
)
def test_a_stream_that_is_damaged_on_its_way_is_only_interrupted(net: Net, data: bytes) -> None:
    b = net.node("b")
    state = State("b", 10, sender="x")
    with net.admitted(b, "snapshot") as sock:
        sock.sendall(frame(header_fields(state)))
        assert read_json(sock) == {"after": ""}
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)
        eventually(lambda: b.staged[0].events == ["resume", "interrupted"])

    sock = net.admitted(b, "snapshot")
    sock.sendall(frame(header_fields(state)))
    assert read_json(sock) == {"after": ""}
    sock.sendall(
        b"".join(map(records_module.encode_frame, state.chunks(b""))) + frame({"chunks": 1})
    )
    assert read_json(sock) == {"done": True}
    assert_complete(b.staged[0], state)


def test_close_ends_whatever_is_going_on(net: Net, monkeypatch: Any) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 60.0)
    monkeypatch.setattr(transfer, "RESUMPTION_PAUSE", 60.0)
    monkeypatch.setattr(sockets, "CONNECT_TIME", 0.4)
    a, b = net.pair()
    full = net.listener(backlog=0)  # with one that waits in it, further ones can't connect
    net.stack.enter_context(socket.create_connection(full.getsockname()))
    silent, deaf, idle = net.listener(), net.listener(), net.listener()
    nowhere = address(idle)
    idle.close()
    a.transport.set_peers(
        {
            "b": b.address,
            "full": address(full),
            "silent": address(silent),
            "deaf": address(deaf),
            "nowhere": nowhere,
        }
    )
    a.send("full")
    a.send("silent")
    a.send("deaf")
    found: list[Greeting | ConureError] = []
    a.transport.probe(address(silent), "z", found.append)
    big, stuck, broken = (State(to, 5000, value=b"v" * 10_000) for to in ("deaf", "b", "nowhere"))
    b.before_add = lambda: time.sleep(0.2)
    a.transport.send_snapshot(stuck)
    a.transport.send_snapshot(broken)
    with accept(deaf, "deaf"), net.admitted(a, "snapshot", "x") as sender:
        a.transport.send_snapshot(big)
        sender.sendall(frame(header_fields(State("a", 10, sender="x"))))
        with accept(deaf, "deaf") as second:
            read_json(second)
            second.sendall(frame({"after": ""}))
            for i in range(200):
                a.send("deaf", i, b"z" * 100_000)
            eventually(lambda: a.staged and b.staged and big.chunks_made > 20)
            began = time.monotonic()
            a.transport.close()
            assert time.monotonic() - began < 1.5
    assert sorted(a.sent) == [("b", None), ("deaf", None), ("nowhere", None)]
    assert [state.closed for state in (big, stuck, broken)] == [1, 1, 1]
    assert a.staged[0].events == ["resume", "interrupted"]
    (error,) = found
    assert isinstance(error, Unavailable)


def test_what_is_asked_of_a_closed_transport_fails_quietly(net: Net) -> None:
    a, b = net.pair()
    a.send("b")
    eventually(lambda: b.messages)
    a.transport.close()
    a.transport.close()
    told = len(a.lost)
    a.send("b")
    a.knows(b)
    a.send("b")
    state = State("b", 1)
    a.transport.send_snapshot(state)
    eventually(lambda: a.sent == [("b", None)])
    assert state.closed == 1
    assert isinstance(probe(a, b.address, "b"), Unavailable)
    assert len(a.lost) == told
    assert len(b.messages) == 1


def test_a_transport_that_never_began_can_be_closed() -> None:
    Transport(("127.0.0.1", 0), Registry()).close()


def test_the_host_is_not_called_after_close(net: Net) -> None:
    a, b = net.pair()
    calls = 0
    for i in range(2000):
        a.send("b", i)
    b.transport.close()
    calls = len(b.rounds)
    for i in range(100):
        a.send("b", i)
    eventually(lambda: a.lost)
    assert len(b.rounds) == calls
