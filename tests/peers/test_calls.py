"""Calls between transports: answers, order, losses, bounds, and peers that lie."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure import errors
from conure.consensus.records import FRAME_HEADER_BYTES, encode_frame
from conure.errors import (
    Compacted,
    ConureError,
    CorruptionError,
    NotLeader,
    OutcomeUnknown,
    PreconditionFailed,
    Refused,
    Unavailable,
    VersionTooNew,
    WireError,
)
from conure.peers import answering, calling, line
from conure.peers.calls import (
    MAX_CALL_BYTES,
    MAX_COMMANDS,
    Answer,
    AnswerKind,
    Call,
    CallKind,
    decode_answer,
    decode_call,
    decode_commands,
    decode_error,
    decode_facts,
    decode_index,
    decode_outcomes,
    encode_answer,
    encode_call,
    encode_commands,
    encode_error,
    encode_facts,
    encode_index,
    encode_outcomes,
)
from tests.lab.transports import Net, Node, accept, address, eventually, is_closed, read_frame

CONFIRM = Call(CallKind.CONFIRM, 2, encode_index(7))
YES = Answer(AnswerKind.CONFIRMED, 2, encode_index(9))


class Told:
    """What came of calls."""

    def __init__(self, node: Node, to: str = "b") -> None:
        self._node = node
        self._to = to
        self.ends: list[list[Answer | ConureError]] = []

    def ask(self, call: Call = CONFIRM, seconds: float = 20.0) -> list[Answer | ConureError]:
        end: list[Answer | ConureError] = []
        self.ends.append(end)
        assert self._node.transport.call(self._to, call, end.append, seconds)
        return end


def never(_: Answer | ConureError) -> None:
    pytest.fail("nothing was asked")


def answer_at_once(node: Node) -> None:
    node.on_call = lambda call, answer: answer(YES._replace(body=call.body))


def dialled(net: Net, a: Node, node_id: str = "b") -> tuple[socket.socket, Told]:
    """Have a call of *a* in the hands of a listener that plays node b."""
    listener = net.listener()
    a.transport.set_peers({node_id: address(listener)})
    told = Told(a, node_id)
    told.ask()
    return net.stack.enter_context(accept(listener, node_id)), told


# -- over sockets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("has_reactor", [False, True])
def test_calls_are_answered_in_any_order_and_by_any_thread(net: Net, has_reactor: bool) -> None:
    if has_reactor:
        servers = [net.reactor() for _ in range(2)]
        for server in servers:
            server.start()
        a, b = (
            net.node(name, registrar=each.reactor) for name, each in zip("ab", servers, strict=True)
        )
        a.knows(b)
        b.knows(a)
    else:
        a, b = net.pair()
    told = Told(a)
    for n in range(20):
        told.ask(CONFIRM._replace(body=encode_index(n)))
    eventually(lambda: len(b.called_by) == 20)
    assert [decode_index(call.body) for _, call, _ in b.called_by] == [*range(20)]
    assert {peer for peer, _, _ in b.called_by} == {a.greeting()}
    for _, call, answer in reversed(b.called_by):
        threading.Thread(target=answer, args=(YES._replace(body=call.body),)).start()
    eventually(lambda: all(told.ends))
    assert [decode_index(end[0].body) for end in told.ends] == [*range(20)]  # type: ignore[union-attr]
    assert b.admitted == [("calls", "b", a.greeting())]
    assert a.metric('conure_peer_sent_bytes_total{peer="b"}') > 20 * 28
    assert b.metric('conure_peer_sent_bytes_total{peer="a"}') > 20 * 36


def test_a_call_and_its_answer_may_be_long_and_come_in_parts(net: Net) -> None:
    a, b = net.pair()
    body = encode_commands([b"c" * (8 << 20)])
    outcomes = encode_outcomes(5, [(0, b"o" * (5 << 20))])

    def answer(call: Call, give: Callable[[Answer], None]) -> None:
        assert call.body == body
        for part in range(4):
            give(Answer(AnswerKind.COMMITTED, 2, outcomes, part, part + 1, part == 3))

    b.on_call = answer
    end = Told(a).ask(Call(CallKind.WRITE, 2, body))
    eventually(lambda: len(end) == 4)
    assert all(isinstance(each, Answer) and each.body == outcomes for each in end)


def test_who_can_not_be_reached_was_sent_nothing(net: Net) -> None:
    a = net.node("a")
    assert not a.transport.call("b", CONFIRM, never, 5.0)
    listener = net.listener()
    a.transport.set_peers({"b": address(listener)})
    listener.close()
    end = Told(a).ask()
    eventually(lambda: bool(end))
    assert isinstance(end[0], Unavailable)


def test_a_node_without_file_descriptors_for_a_while_asks_again_later(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = net.pair()
    answer_at_once(b)
    told = Told(a)
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> int:
            raise OSError(errno.EMFILE, "too many open files")

        patch.setattr("os.eventfd", refuse)
        end = told.ask()
        eventually(lambda: bool(end))
        assert type(end[0]) is Unavailable
        assert "too many open files" in str(end[0]).lower()
    end = told.ask()
    eventually(lambda: bool(end))
    assert isinstance(end[0], Answer)


def test_who_refuses_was_sent_nothing(net: Net) -> None:
    a, b = net.pair()
    b.cluster = "another"
    end = Told(a).ask()
    eventually(lambda: bool(end))
    assert isinstance(end[0], Unavailable)
    b.cluster = a.cluster
    answer_at_once(b)
    end = Told(a).ask()
    eventually(lambda: bool(end))
    assert isinstance(end[0], Answer)


def test_a_call_whose_answer_is_lost_is_unknown_and_the_next_one_is_dialled_for(net: Net) -> None:
    a = net.node("a")
    sock, told = dialled(net, a)
    assert decode_call(read_frame(sock)) == (1, CONFIRM)
    sock.close()
    eventually(lambda: bool(told.ends[0]))
    assert isinstance(told.ends[0][0], OutcomeUnknown)
    b = net.node("b")
    answer_at_once(b)
    a.knows(b)
    end = told.ask()
    eventually(lambda: bool(end))
    assert isinstance(end[0], Answer)


@pytest.mark.parametrize(
    "frames",
    [
        [encode_answer(2, YES)],  # to what was not asked
        [encode_answer(1, YES), encode_answer(1, YES)],
        [encode_answer(1, YES)[:-1] + b"?"],
        [encode_frame(b"nonsense")],
        [b"\xff" * 40],
    ],
)
def test_an_answer_that_none_can_be_ends_the_connection(net: Net, frames: list[bytes]) -> None:
    a = net.node("a")
    sock, told = dialled(net, a)
    read_frame(sock)
    sock.sendall(b"".join(frames))
    eventually(lambda: is_closed(sock))
    eventually(lambda: bool(told.ends[0]))
    is_answered = len(frames) == 2
    assert isinstance(told.ends[0][0], Answer if is_answered else OutcomeUnknown)
    assert len(told.ends[0]) == 1


@pytest.mark.parametrize("is_last", [True, False])
def test_an_answer_that_whoever_asked_refuses_ends_the_connection(net: Net, is_last: bool) -> None:
    a = net.node("a")
    sock, told = dialled(net, a)
    ends: list[Answer | ConureError] = []

    def reply(answer: Answer | ConureError) -> None:
        ends.append(answer)
        if isinstance(answer, Answer):
            raise WireError("no such answer")

    read_frame(sock)
    assert a.transport.call("b", CONFIRM, reply, 5.0)
    read_frame(sock)
    told.ask()
    read_frame(sock)
    part = YES._replace(is_last=is_last)
    sock.sendall(encode_answer(2, part))
    eventually(lambda: all(told.ends))  # in their order
    assert isinstance(told.ends[0][0], OutcomeUnknown)
    assert ends == [part]
    assert is_closed(sock)


def test_who_does_not_answer_in_time_loses_the_connection(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_LOOK", 0.01)
    a = net.node("a")
    sock, told = dialled(net, a)
    end = told.ask(seconds=0.0)
    eventually(lambda: all(told.ends))
    read_frame(sock)
    assert "no answer in time" in str(end[0])
    assert isinstance(end[0], OutcomeUnknown)


def test_calls_are_bounded_in_number(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "MAX_CALLS", 3)
    a, b = net.pair()
    told = Told(a)
    for _ in range(3):
        told.ask()
    assert not a.transport.call("b", CONFIRM, never, 5.0)
    eventually(lambda: len(b.called_by) == 3)
    b.called_by[1][2](YES)
    eventually(lambda: bool(told.ends[1]))
    end = told.ask()
    eventually(lambda: len(b.called_by) == 4)
    assert not end


def test_who_is_no_peer_any_more_is_asked_nothing(net: Net) -> None:
    a, b = net.pair()
    told = Told(a)
    end = told.ask()
    eventually(lambda: bool(b.called_by))
    a.transport.set_peers({})
    eventually(lambda: bool(end))
    assert isinstance(end[0], OutcomeUnknown)
    assert not a.transport.call("b", CONFIRM, never, 5.0)
    b.called_by[0][2](YES)  # to nobody
    c = net.node("b")
    answer_at_once(c)
    a.knows(c)
    end = told.ask()
    eventually(lambda: bool(end))
    assert end == [YES._replace(body=CONFIRM.body)]


def test_who_has_moved_is_asked_where_it_is(net: Net) -> None:
    a, b = net.pair()
    told = Told(a)
    end = told.ask()
    eventually(lambda: bool(b.called_by))
    moved = net.node("b")
    answer_at_once(moved)
    a.knows(moved)
    eventually(lambda: bool(end))
    assert isinstance(end[0], OutcomeUnknown)
    end = told.ask()
    eventually(lambda: bool(end))
    assert isinstance(end[0], Answer)


def test_a_connection_that_is_not_believed_any_more_ends_at_either_end(net: Net) -> None:
    a, b = net.pair()
    for judge in (a, b):
        end = Told(a).ask()
        eventually(lambda: bool(b.called_by))
        judge.transport.judge(lambda _, __: False, lambda _: False)
        eventually(lambda: bool(end))  # noqa: B023
        assert isinstance(end[0], OutcomeUnknown)
        b.called_by.clear()


def test_closing_answers_all_that_wait(net: Net) -> None:
    a, b = net.pair()
    told = Told(a)
    told.ask()
    eventually(lambda: bool(b.called_by))
    silent = net.listener()
    a.transport.set_peers({"b": b.address, "c": address(silent)})
    waiting = Told(a, "c").ask()
    a.transport.close()
    eventually(lambda: bool(told.ends[0] and waiting))
    assert isinstance(told.ends[0][0], OutcomeUnknown)
    assert isinstance(waiting[0], Unavailable)
    assert not a.transport.call("b", CONFIRM, never, 5.0)


# -- a node that lies ------------------------------------------------------------------------------


def test_more_calls_than_anybody_makes_end_the_connection(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "MAX_CALLS", 4)
    b = net.node("b")
    sock = net.admitted(b, "calls")
    sock.sendall(b"".join([encode_call(n, CONFIRM) for n in range(1, 100)]))
    eventually(lambda: is_closed(sock))
    assert len(b.called_by) == 4


def test_more_bytes_of_calls_than_anybody_sends_end_the_connection(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "MAX_ASKED_BYTES", 1000)
    b = net.node("b")
    sock = net.admitted(b, "calls")
    long = Call(CallKind.WRITE, 2, encode_commands([b"c" * 400]))
    sock.sendall(encode_call(1, long) + encode_call(2, long) + encode_call(3, long))
    eventually(lambda: is_closed(sock))
    assert len(b.called_by) == 2
    again = net.admitted(b, "calls", "c")
    for number in range(1, 5):  # one after the other they may be any number
        again.sendall(encode_call(number, long))
        eventually(lambda: len(b.called_by) == 2 + number)  # noqa: B023
        b.called_by[-1][2](YES)
        assert decode_answer(read_frame(again)) == (number, YES)


@pytest.mark.parametrize(
    "frames",
    [
        encode_call(1, CONFIRM) + encode_call(1, CONFIRM),
        encode_call(2, CONFIRM) + encode_call(1, CONFIRM),
        encode_call(1, CONFIRM) + encode_frame(b"nonsense"),
        encode_call(1, CONFIRM) + b"\xff" * 100,
    ],
)
def test_what_no_call_is_ends_the_connection(net: Net, frames: bytes) -> None:
    b = net.node("b")
    sock = net.admitted(b, "calls")
    sock.sendall(frames)
    eventually(lambda: is_closed(sock))
    assert len(b.called_by) <= 1


def test_who_does_not_read_the_answers_loses_the_connection(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "MAX_UNSENT", 1 << 20)
    b = net.node("b")
    long = Answer(AnswerKind.COMMITTED, 2, encode_outcomes(1, [(0, b"o" * (1 << 19))]))

    def answer(call: Call, give: Callable[[Answer], None]) -> None:
        for _ in range(40):
            give(long._replace(is_last=False))
        is_given.set()

    is_given = threading.Event()
    b.on_call = answer
    sock = net.admitted(b, "calls")
    sock.sendall(encode_call(1, CONFIRM))
    assert is_given.wait(10)
    taken = 0
    while piece := sock.recv(1 << 20):
        taken += len(piece)
    assert taken < 40 << 19


def test_a_frame_that_does_not_go_on_ends_the_connection(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_LOOK", 0.01)
    monkeypatch.setattr(line, "is_stalled", lambda seconds, received: seconds > 0.05)
    b = net.node("b")
    sock = net.admitted(b, "calls")
    sock.sendall(encode_call(1, CONFIRM)[:-1])
    eventually(lambda: is_closed(sock))
    assert not b.called_by


def test_the_newest_connection_for_calls_takes_the_place_of_the_older_one(net: Net) -> None:
    b = net.node("b")
    messages = net.admitted(b)
    older = net.admitted(b, "calls")
    newer = net.admitted(b, "calls")
    eventually(lambda: is_closed(older))
    newer.sendall(encode_call(1, CONFIRM))
    eventually(lambda: len(b.called_by) == 1)
    messages.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        messages.recv(1)


# -- as bytes --------------------------------------------------------------------------------------


def payload(frame: bytes) -> bytes:
    return frame[FRAME_HEADER_BYTES:]


def test_golden_bytes() -> None:
    call = bytes.fromhex("01 02 0000 0000000000000001 0000000000000002 0000000000000007")
    assert payload(encode_call(1, CONFIRM)) == call
    write = Call(CallKind.WRITE, 3, encode_commands([b"ab", b"", b"c"]))
    assert payload(encode_call(4, write)) == bytes.fromhex(
        "01 01 0000 0000000000000004 000000000000000300000003 00000002 00000000 00000001 616263"
    )
    answer = Answer(AnswerKind.COMMITTED, 3, encode_outcomes(9, [(1, b"xy")]), 1, 3, is_last=False)
    assert payload(encode_answer(4, answer)) == bytes.fromhex(
        "01 01 0000 0000000000000004 0000000000000003 00000001 00000003"
        "0000000000000009 00000001 00000001 00000002 7879"
    )
    last = Answer(AnswerKind.CHANGED, 3, encode_facts({}))
    assert (
        payload(encode_answer(4, last))
        == bytes.fromhex("01 03 0001 0000000000000004 0000000000000003 00000000 00000001") + b"{}"
    )


@given(st.binary(max_size=200) | st.binary(max_size=120).map(lambda tail: b"\1\1\0\0" + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    decoders: list[Callable[[bytes], Any]] = [
        decode_call, decode_answer, decode_commands, decode_outcomes, decode_index, decode_facts,
        decode_error,
    ]  # fmt: skip
    for decode in decoders:
        try:
            decode(data)
        except WireError:
            continue
    try:
        commands = decode_commands(data)
    except WireError:
        return
    assert encode_commands(commands) == data


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=40), st.integers(0, 1 << 63))
def test_what_was_encoded_is_read(parts: list[bytes], number: int) -> None:
    assert decode_commands(encode_commands(parts)) == parts
    outcomes = dict(enumerate(parts))
    assert decode_outcomes(encode_outcomes(number, outcomes.items())) == (number, outcomes)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(4),
        encode_commands([b"a", b"b"])[:-1],
        encode_commands([b"a", b"b"]) + b"c",
        (MAX_COMMANDS + 1).to_bytes(4, "big") + bytes(4 * (MAX_COMMANDS + 1)),
        encode_commands([bytes(MAX_CALL_BYTES), b"a", bytes(MAX_CALL_BYTES)]),
    ],
)
def test_commands_that_do_not_fill_their_body_are_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_commands(body)


EVERY_ERROR: list[ConureError] = [
    NotLeader("h:1", "n1", "http://h:2"),
    NotLeader(),
    Unavailable("later", 7),
    Compacted(12),
    CorruptionError("conure.db", 4096, "a page"),
    PreconditionFailed(5),
    Refused("all names", "no name"),
    VersionTooNew("the log", 3, 2),
    errors.ConfigError("a", "b", "c"),
    errors.Diverged("n1", 3),
    errors.KeyNotFound(),
    errors.KeyReused(),
    errors.MethodNotAllowed("PUT", ["GET"]),
    errors.NotRead(),
    errors.TooManyHeld(3),
]
EVERY_ERROR += [
    getattr(errors, name)("why")
    for name in errors.__all__
    if name not in {type(error).__name__ for error in EVERY_ERROR}
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_arrives_as_itself(error: ConureError) -> None:
    again = decode_error(encode_error(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    fields = {name: value for name, value in vars(error).items() if name != "__notes__"}
    if isinstance(error, errors.Diverged):
        fields = {}
    assert vars(again) == fields
    assert again.status == error.status


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"error": "SystemExit", "message": "x"},
        {"error": "Unavailable", "message": "x"},
        {"error": "Unavailable", "message": "x", "retry_after": "7"},
        {"error": "Unavailable", "message": "x", "retry_after": True},
        {"error": "Unavailable", "message": "x", "retry_after": 1, "status": 200},
        {"error": ["Conflict"], "message": "x"},
        {"error": "Conflict", "message": 5},
        {"error": "Conflict", "message": "x", "args": []},
        {"error": "Unavailable", "message": "x", "retry_after": -1},
        {"error": "PreconditionFailed", "message": "x", "current": 10**400},
        {"error": "MethodNotAllowed", "message": "x", "allowed": [1]},
        {"error": "MethodNotAllowed", "message": "x", "allowed": ["GET\r\nSet-Cookie: x"]},
        {"error": "Refused", "message": "x", "told": "y\n"},
        {"error": "Refused", "message": "x", "told": "y" * 5000},
    ],
)
def test_nothing_else_is_an_error(told: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        decode_error(encode_facts(told))


def test_what_an_error_says_is_one_printable_line() -> None:
    told = {"error": "Conflict", "message": "a\r\nSet-Cookie: x\x1b" + "y" * 9000}
    error = decode_error(encode_facts(told))
    assert str(error).isprintable()
    assert len(str(error)) == 4096
