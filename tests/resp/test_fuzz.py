"""Any bytes at all, cut anywhere: answered, or ended; and nobody else notices."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.respclient import RespClient, command
from tests.lab.respservice import RespService

WORDS = st.sampled_from(
    [
        *(b"GET", b"SET", b"set", b"MGET", b"DEL", b"INCR", b"PING", b"ECHO", b"3", b"2"),
        *(b"MULTI", b"EXEC", b"DISCARD", b"WATCH", b"UNWATCH", b"CLIENT", b"REPLY", b"SKIP"),
        *(b"ON", b"OFF", b"SCAN", b"0", b"COUNT", b"MATCH", b"*", b"KEYS", b"k", b"n", b"\r\n"),
        *(b"FLUSHALL", b"COMMAND", b"GETKEYS", b"RESET", b"", b"x" * 300, b"FOO"),
    ]
)
COMMANDS = st.lists(st.lists(WORDS, min_size=1, max_size=5), max_size=10)


def said(service: RespService, pieces: list[bytes]) -> bytes:
    """Return all that a connection is answered."""
    with service.client() as client:
        for piece in pieces:
            client.send(piece)
            if len(pieces) > 1:
                client.socket.setsockopt(6, 1, 1)  # each in a packet of its own
        client.socket.shutdown(1)
        return client.read_to_end()


def test_cuts_change_no_answer(service: RespService) -> None:
    with service.client() as other:

        @settings(deadline=None, max_examples=50)
        @given(COMMANDS, st.data())
        def run(commands: list[list[bytes]], data: st.DataObject) -> None:
            whole = b"".join(command(*words) for words in commands)
            cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
            pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
            found = []
            for each in ([whole], pieces):
                assert other.ask("FLUSHALL") == b"OK"
                found.append(said(service, each))
            assert found[0] == found[1]

        run()


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_end_in_answers(service: RespService, seed: int) -> None:
    chance = random.Random(seed)
    with service.client() as other:
        for _ in range(40):
            parts = []
            for _ in range(chance.randrange(1, 12)):
                kind = chance.randrange(5)
                if kind == 0:
                    parts.append(chance.randbytes(chance.randrange(40)))
                elif kind == 1:
                    parts.append(
                        b"*%d\r\n$%d\r\n" % (chance.randrange(-2, 4), chance.randrange(-2, 9))
                    )
                else:
                    words = [chance.choice([b"GET", b"SET", b"k", b"PING", b"MULTI", b"EXEC"])]
                    words += [b"k"] * chance.randrange(3)
                    parts.append(command(*words))
            said(service, parts)
            assert other.ask("PING") == b"PONG"


def test_connections_that_come_and_go(service: RespService) -> None:
    def storm() -> None:
        for number in range(60):
            with service.client() as client:
                client.send(command("SET", "k", number) * 20 + command("GET", "k") * 20)
                if number % 3:
                    client.read()

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with service.client() as client:
        assert isinstance(client, RespClient)
        assert client.ask("GET", "k") is not None
