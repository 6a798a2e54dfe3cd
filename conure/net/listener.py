"""An address on which clients are accepted, and the thread that does so.

:func:`bind` takes an address, before anything else is begun. A :class:`Listener` accepts there, and
hands each connection to a reactor together with the front end that is to speak with it. Several
listeners may share a reactor. It never reads or writes what clients send; where connections have to
be turned away, the front end does it (places.py counts).

Accepting runs in the thread of :meth:`Listener.serve_forever`, which is the listener's own after
:meth:`Listener.start`. ``connections_accepted`` may be read from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable
from socketserver import BaseRequestHandler, BaseServer, TCPServer
from time import sleep
from typing import Any

from conure.net.link import Link, PlainLink
from conure.net.reactor import FrontEnd, Reactor
from conure.net.sockets import keep_alive, no_delay

__all__ = ["BoundServer", "Listener", "MakeLink", "bind", "plain"]

MakeLink = Callable[[socket.socket, Any], Link]
"""Makes a link of an accepted socket, which is non-blocking, and the client's address."""

_ACCEPT_PAUSE = 0.1  # seconds without accepting when the process has no file descriptor left
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BACKLOG = 4096  # connections that the system accepts for us, until somebody takes them


def bind(address: tuple[str, int], backlog: int = _BACKLOG) -> socket.socket:
    """Return a socket that listens on an address; up to *backlog* clients wait to be accepted.

    An empty host means every address, IPv6 and IPv4. Nobody else can bind the port meanwhile, but
    who came before has left it at once. Raises OSError where the address can't be bound.
    """
    host, port = address
    if not host and socket.has_dualstack_ipv6():
        host = "::"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
        bound.listen(backlog)
        bound.setblocking(False)  # who is gone before accepting must not stop the thread
    except BaseException:
        bound.close()
        raise
    return bound


def plain(accepted: socket.socket, peer: Any) -> Link:  # noqa: ARG001
    """Make a link that encrypts nothing; see :data:`MakeLink`."""
    return PlainLink(accepted)


class BoundServer(TCPServer):
    """A server of the standard library on a socket that is *bound*, and its own from then on."""

    def __init__(self, bound: socket.socket) -> None:
        self.socket = bound  # TCPServer's own would be another one
        BaseServer.__init__(self, bound.getsockname(), BaseRequestHandler)


class Listener(BoundServer):
    """Accepts on a *bound* socket for *reactor* and *front*, which the reactor knows already.

    The socket is the listener's from then on. *on_fatal* is told, in the accepting thread, when
    that ended by an exception. *name* is what its thread and its log are called. *make_link* makes
    links of what is accepted, in that thread.
    """

    def __init__(
        self,
        bound: socket.socket,
        reactor: Reactor,
        front: FrontEnd,
        on_fatal: Callable[[BaseException], None],
        name: str,
        make_link: MakeLink | None = None,
    ) -> None:
        self.reactor = reactor
        self.connections_accepted = 0
        self._front = front
        self._on_fatal = on_fatal
        self._name = name
        self._make_link = make_link or plain
        self.log = logging.getLogger(f"conure.{name}")
        self._accepting = False
        self._out_of_descriptors = False
        keep_alive(bound)  # a connection that sends nothing would not notice a dead machine
        super().__init__(bound)

    @property
    def port(self) -> int:
        """The port that is bound: the one asked for, or the system's choice for 0."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Serve in threads of the listener's and the reactor's own; returns at once."""
        self._accepting = True
        name = f"{self._name}-accept"
        threading.Thread(target=self._accept_forever, name=name, daemon=True).start()

    def serve_forever(self, poll_interval: float = 0.1) -> None:
        """Serve, accepting in this thread, until another thread calls :meth:`stop`."""
        self._accepting = True
        self.reactor.start()
        super().serve_forever(poll_interval)

    def stop(self) -> None:
        """Accept nothing more, but for what the system has accepted for us by now.

        Not from the thread of :meth:`serve_forever`. The reactor goes on.
        """
        if self._accepting:
            self.shutdown()
            self._take_backlog()
        self.server_close()

    # -- what socketserver calls; the accepting thread ------------------------------------------

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            accepted = self.socket.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                if not self._out_of_descriptors:
                    self.log.warning("can't accept connections for now: %s", error.strerror)
                self._out_of_descriptors = True
                sleep(_ACCEPT_PAUSE)  # the backlog stays readable: don't spin on it
            raise
        self._out_of_descriptors = False
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections_accepted += 1
        request.setblocking(False)
        no_delay(request)
        self.reactor.adopt(self._front, self._make_link(request, client_address), client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        self.log.warning("a connection was lost before its first request", exc_info=True)

    # -- private --------------------------------------------------------------------------------

    def _take_backlog(self) -> None:
        """Hand over what the system has accepted for us: that is in flight."""
        with contextlib.suppress(OSError):  # nobody is left
            for _ in range(_BACKLOG):
                accepted, address = self.get_request()
                try:
                    self.process_request(accepted, address)
                except (OSError, ValueError):  # ValueError: the reactor has ended
                    self.handle_error(accepted, address)
                    accepted.close()

    def _accept_forever(self) -> None:
        try:
            self.serve_forever()
        except BaseException as error:
            self.log.critical("the accepting thread ended", exc_info=True)
            self._on_fatal(error)
