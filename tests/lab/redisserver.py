"""A real redis-server beside which data commands are tried, where one is installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.lab.process import wait_until

__all__ = ["Redis", "redis_server"]

EXECUTABLE = shutil.which("redis-server")


class Redis:
    """A connection that returns replies as they stand on the wire."""

    def __init__(self, place: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(place)
        except OSError:
            self._socket.close()
            raise
        self._input = self._socket.makefile("rb")

    def close(self) -> None:
        self._input.close()
        self._socket.close()

    def run(self, *words: bytes) -> bytes:
        """Send a command and return its reply."""
        parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(parts))
        return self._reply()

    def run_all(self, commands: list[list[bytes]]) -> bytes:
        """Do commands in MULTI and return the reply of EXEC."""
        self.run(b"MULTI")
        for words in commands:
            self.run(*words)
        return self.run(b"EXEC")

    def _reply(self) -> bytes:
        line = self._input.readline()
        kind, count = line[:1], line[1:-2]
        if kind in b"$=" and count != b"-1":
            return line + self._input.read(int(count) + 2)
        if kind in b"*%~>" and count != b"-1":
            parts = int(count) * (2 if kind == b"%" else 1)
            return line + b"".join(self._reply() for _ in range(parts))
        return line


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a server for a while, in a directory of its own; yields where it is reached."""
    assert EXECUTABLE is not None
    with tempfile.TemporaryDirectory() as directory:
        place = f"{directory}/redis.sock"
        options = ["--port", "0", "--unixsocket", place, "--save", "", "--dir", directory]
        process = subprocess.Popen([EXECUTABLE, *options], stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: _answers(place))
            yield place
        finally:
            process.terminate()
            process.wait()


def _answers(place: str) -> bool:
    try:
        with closing(Redis(place)) as redis:
            return redis.run(b"PING") == b"+PONG\r\n"
    except OSError:
        return False
