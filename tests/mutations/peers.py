"""Faults between nodes: handshakes, connections, queues, streams of snapshots."""

from __future__ import annotations

from tests.mutations.mutation import TRANSPORT_TESTS, Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "who is refused reads the log",
        "conure/peers/protocol.py",
        "error.told if isinstance(error, Refused) else str(error)",
        "str(error)",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "a message says itself whose it is",
        "conure/peers/inbox.py",
        "message.incarnation = self._peer.incarnation",
        "message.incarnation = message.incarnation or self._peer.node_id",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "who has dialled is not judged again",
        "conure/peers/accepting.py",
        "if not believes(item[1].greeting, item[1].known_as)",
        "if not believes(item[1].greeting, item[1].known_as) and False",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "what has arrived by a closed connection is handed over",
        "conure/peers/accepting.py",
        "inbox.has_ended.set()  # what has arrived",
        "pass  # what has arrived",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "who says not which node it is may speak",
        "conure/peers/protocol.py",
        "        if not 0 < len(said[name].encode()) <= MAX_NODE_ID_BYTES:\n",
        "        if len(said[name].encode()) > MAX_NODE_ID_BYTES:\n",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "strangers take members' places",
        "conure/peers/guests.py",
        "if strangers and (is_full or len(strangers) >= MAX_STRANGERS):",
        "if strangers and is_full:",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "the oldest stranger has to go, whoever opens many",
        "conure/peers/guests.py",
        "if crowd[item[1].source] == most)",
        "if most)",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "strangers' frames take all the room",
        "conure/peers/guests.py",
        "fits = of_strangers + size <= MAX_ARRIVING // 2 + SMALL_FRAME",
        "fits = of_strangers + size <= MAX_ARRIVING + SMALL_FRAME",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a member's frame waits for strangers'",
        "conure/peers/guests.py",
        "                if taken + size > MAX_ARRIVING + SMALL_FRAME:\n",
        "                if taken < 0:\n",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a frame takes no room until it is complete",
        "conure/peers/inbox.py",
        "if self._needed != before and max(self._needed, before) > SMALL_FRAME:",
        "if self._needed != before and max(self._needed, before) < 0:",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a frame that has begun may take for ever",
        "conure/peers/inbox.py",
        "if received and is_stalled(monotonic() - self._begun, received):",
        "if received and is_stalled(0.0, received):",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a connection where nothing has begun is ended for its rest",
        "conure/peers/inbox.py",
        "            if not self._buffer:\n                self._begun = monotonic()\n",
        "",
        TRANSPORT_TESTS,
    ),
    Mutation(
        "a message of a later version is read as one of this",
        "conure/peers/frames.py",
        "if frame[FRAME_HEADER_BYTES] != _VERSION:",
        "if not frame[FRAME_HEADER_BYTES]:",
        ("tests/test_wire.py",),
    ),
    Mutation(
        "every connection resets the pause between dials",
        "conure/peers/peer.py",
        "        self._connected_at = monotonic()\n",
        "        self._connected_at = monotonic()\n        self._backoff = BACKOFF\n",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "JSON of strangers may have any number of parts",
        "conure/peers/sockets.py",
        "> _MAX_PARTS:",
        "> 1 << 30:",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "what announces a snapshot may take for ever",
        "conure/peers/sockets.py",
        "read_exactly(sock, size, deadline, must_go_on=True)",
        "read_exactly(sock, size, deadline)",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "who answers in the place of another is spoken to",
        "conure/peers/dialling.py",
        "                self._host.recognise(node_id, greeting)\n",
        "",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "a snapshot gives up however far each attempt gets",
        "conure/peers/transfer.py",
        "self._arrived, self._failures = after, 0",
        "self._arrived = after",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "the end is waited for by nobody",
        "conure/peers/threads.py",
        "            thread.join(max(deadline - monotonic(), 0.0))\n",
        "            thread.join(0.0)\n",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
    Mutation(
        "any name makes a counter of its own",
        "conure/peers/transport.py",
        'node_id if node_id in self._peers else "other"',
        "node_id",
        (
            "tests/peers/test_transport_messages.py",
            "tests/peers/test_transport_handshakes.py",
            "tests/peers/test_transport_snapshots.py",
        ),
    ),
]
