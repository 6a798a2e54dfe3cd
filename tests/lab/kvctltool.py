"""kvctl in the test's own process, and servers for it that say what no server should."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from conure.ops import kvctl

__all__ = ["HELLO", "Kvctl", "Said", "ScriptedServer"]

HELLO = b"%2\r\n$5\r\nproto\r\n:3\r\n$16\r\nconuredb_version\r\n$5\r\n0.0.0\r\n"
"""How a server answers that speaks RESP3."""


class Said(NamedTuple):
    """What came of a command line."""

    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


class Kvctl:
    """Carries out command lines; *target* are options that each of them has."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], *target: str) -> None:
        self._capture = capture
        self._target = target

    def at(self, *target: str) -> Kvctl:
        """Return one whose command lines have these options."""
        return Kvctl(self._capture, *target)

    def __call__(self, *words: str | bytes, **environ: str) -> Said:
        self._capture.readouterr()
        argv = [*self._target, *map(os.fsdecode, words)]
        status = kvctl.main(argv, environ)
        out, err = self._capture.readouterr()
        return Said(status, out, err.decode())

    def fails(self, *words: str | bytes, status: int = 1, **environ: str) -> str:
        """Return the one line that a command line fails with."""
        said = self(*words, **environ)
        assert (said.status, said.out) == (status, b""), said
        assert said.err.startswith("kvctl: ")
        assert said.err.count("\n") == 1, said.err
        return said.err.rstrip()


class ScriptedServer:
    """Accepts one client after the other. Each command that comes is answered by the next of
    *replies*; after the last one the connection is closed, or kept without a word with *stays*."""

    def __init__(self, replies: Sequence[bytes], *, stays: bool = False) -> None:
        self.received: list[bytes] = []
        self._replies = replies
        self._stays = stays
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._ended.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            with client:
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        for reply in self._replies:
            data = client.recv(1 << 16)
            if not data:
                return
            self.received.append(data)
            try:
                client.sendall(reply)
            except OSError:  # it has heard enough
                return
        if self._stays:
            client.settimeout(0.05)
            while not self._ended.is_set():
                try:
                    if not client.recv(1 << 16):
                        return
                except TimeoutError:
                    continue
