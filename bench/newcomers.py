"""Clients that connect by TLS at a steady pace, ask one thing each and leave: others' neighbours.

``python -m bench.newcomers PORT RATE SECONDS`` runs in a process of its own, so that its handshakes
take the time of none of the clients that are measured. It prints how many were answered, and ends
with 1 if one was not.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from bench.keys import UNVERIFIED

__all__ = ["come"]

_THREADS = 8  # a newcomer that waits for its answer delays no other
_PATIENCE = 30.0  # seconds for one of them
_REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def come(port: int, rate: float, seconds: float) -> int:
    """Let newcomers come; return how many were answered. Raises OSError for one that was not."""
    total = round(rate * seconds)
    begin = time.perf_counter()
    lock = threading.Lock()
    next_one, answered = 0, 0
    failures: list[OSError] = []

    def serve() -> None:
        nonlocal next_one, answered
        while True:
            with lock:
                number, next_one = next_one, next_one + 1
            if number >= total or failures:
                return
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            try:
                _visit(port)
            except OSError as error:
                failures.append(error)
                return
            with lock:
                answered += 1

    threads = [threading.Thread(target=serve) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answered


def _visit(port: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as plain,
        UNVERIFIED.wrap_socket(plain) as connection,
    ):
        connection.sendall(_REQUEST)
        answer = connection.recv(1 << 12)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ConnectionAbortedError(f"a newcomer was answered {answer[:80]!r}")


def main() -> int:
    port, rate, seconds = sys.argv[1:]
    try:
        print(come(int(port), float(rate), float(seconds)))
    except OSError as error:
        print(f"a newcomer was not served: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
