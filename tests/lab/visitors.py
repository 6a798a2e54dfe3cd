"""Clients that a listener takes for others: their connections are made on loopback, and handed over
as if another address had made them."""

from __future__ import annotations

import socket

from conure.net.listener import Listener

__all__ = ["ELSEWHERE", "never_ours", "visit"]

ELSEWHERE = "192.0.2.7"
"""An address that no machine has (RFC 5737)."""


def visit(listener: Listener, address: str = ELSEWHERE, port: int = 4711) -> socket.socket:
    """Return a client's socket that the listener has accepted as one from *address*."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname()[:2], timeout=20)
        ours, _ = server.accept()
    listener.process_request(ours, (address, port))
    return client


def never_ours(peer: str, local: str) -> bool:
    """Judge as a machine would on which nobody is."""
    return False
