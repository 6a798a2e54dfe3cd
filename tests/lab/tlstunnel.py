"""A way into a server that speaks TLS for clients that don't: bytes go through, and so do ends.

What comes out of a :class:`Tunnel` is what the server has said, to the byte, an orderly end as one
and a broken connection as a broken one. So a test that talks plain text can be held against a
server with TLS as it is.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import tempfile
import threading
from contextlib import suppress
from functools import cache
from math import inf
from pathlib import Path

from conure.net.sockets import no_delay, reset_on_close
from conure.net.tlslink import TlsLink
from conure.storage.engines import LSM
from tests.lab.certificates import Authority, Certificate, client_context

__all__ = ["Tunnel", "flags", "over_tls", "shared_certificate"]

_SIZE = 64 << 10


def over_tls(engine: str = "") -> bool:
    """Tell whether a test that is held against both is to serve by TLS: each engine has one of the
    two, so that both come up; TEST_TLS, 1 or 0, says so for all."""
    told = os.environ.get("TEST_TLS")
    return told == "1" if told else engine == LSM


@cache
def shared_certificate() -> Certificate:
    """Return a certificate of localhost that this process' servers may all show."""
    return Authority(Path(tempfile.mkdtemp(prefix="conure-ca-"))).issue("localhost", "127.0.0.1")


def flags() -> tuple[str, ...]:
    """Return what has a server speak TLS by that certificate."""
    made = shared_certificate()
    return f"--tls-cert={made.cert}", f"--tls-key={made.key}"


class Tunnel:
    """Listens on a *port* of its own until :meth:`close`, and leads to *target* on this machine."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._context = client_context(shared_certificate().ca)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more; who is connected goes on until one of its ends ends."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            reset_on_close(client, resets=True)
            client.close()
            return
        _Pair(client, server, self._context).run()


class _Pair:
    """A client and its connection to the server. One thread."""

    def __init__(
        self, client: socket.socket, server: socket.socket, context: ssl.SSLContext
    ) -> None:
        for each in (client, server):
            each.setblocking(False)
            with suppress(OSError):  # it has gone already
                no_delay(each)
        self.client = client
        self.link = TlsLink(server, context, server_side=False, deadline=inf, hostname="localhost")
        self.up = self.down = b""  # what is on its way to the server, and from it
        self.client_ended = self.server_ended = False

    def run(self) -> None:
        try:
            self._shake()
            while not (self.client_ended and self.server_ended and not (self.up or self.down)):
                self._wait()
                self._go_up()
                self._go_down()
        except OSError:
            with suppress(OSError):
                reset_on_close(self.client, resets=True)
                self.link.reset_on_close(resets=True)
        finally:
            self.client.close()
            self.link.close()

    def _shake(self) -> None:
        while True:
            try:
                self.link.handshake()
            except BlockingIOError:
                wants = select.POLLIN | (select.POLLOUT if self.link.stalled else 0)
                poll = select.poll()
                poll.register(self.link.descriptor, wants)
                poll.poll()
            else:
                return

    def _wait(self) -> None:
        if self.link.pending and not (self.down or self.server_ended):
            return
        poll = select.poll()
        reads_client = not (self.up or self.client_ended)
        reads_server = not (self.down or self.server_ended)
        poll.register(
            self.client,
            (select.POLLIN if reads_client else 0) | (select.POLLOUT if self.down else 0),
        )
        writes = self.up or self.link.stalled
        poll.register(
            self.link.descriptor,
            (select.POLLIN if reads_server else 0) | (select.POLLOUT if writes else 0),
        )
        for descriptor, event in poll.poll():
            broken = event & (select.POLLERR | select.POLLHUP)
            if broken and descriptor == self.client.fileno() and not reads_client:
                raise ConnectionResetError

    def _go_up(self) -> None:
        if not (self.up or self.client_ended):
            with suppress(BlockingIOError):
                self.up = self.client.recv(_SIZE)
                if not self.up:
                    self.client_ended = True
                    self.link.shut()
        if self.up:
            with suppress(BlockingIOError):
                self.up = self.up[self.link.send(self.up) :]

    def _go_down(self) -> None:
        if not (self.down or self.server_ended):
            with suppress(BlockingIOError):
                self.down = self.link.receive(_SIZE)
                if not self.down:
                    self.server_ended = True
                    self.client.shutdown(socket.SHUT_WR)
        if self.down:
            with suppress(BlockingIOError):
                self.down = self.down[self.client.send(self.down) :]
