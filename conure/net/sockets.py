"""Options of TCP sockets, for whoever has some. Any thread. All functions raise OSError.

Nothing is sent or received here.
"""

from __future__ import annotations

import socket
import struct

__all__ = ["KEEPALIVE", "keep_alive", "no_delay", "reset_on_close"]

KEEPALIVE = 30
"""Seconds of silence after which the system asks whether the other side is still there."""

_RESET, _NO_RESET = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)  # SO_LINGER


def keep_alive(sock: socket.socket) -> None:
    """Have the system notice that the other machine is gone; what is accepted inherits that."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE)


def no_delay(sock: socket.socket) -> None:
    """Have small pieces sent at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def reset_on_close(sock: socket.socket, *, resets: bool) -> None:
    """Say whether a close resets the connection, so that the other side sees no regular end."""
    option = _RESET if resets else _NO_RESET
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
