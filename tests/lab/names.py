"""A name server for tests, whose names are learned, known without an address, and forgotten.

As the DNS of an orchestrator does it while pods come up: a name is unknown at first (NXDOMAIN),
then there is something of it but no address (no answers), then it has one. A whole zone may be
silent as well, as while a name server restarts. It answers questions for IPv4 addresses, by UDP.

Questions and answers are those of RFC 1035: a header of six 16-bit numbers (id, flags, counts of
questions, answers, authorities, additional records), then the question: labels, each behind its
length, up to an empty one, then type and class. ::

    12 34 81 80 00 01 00 01 00 00 00 00   04 'node' 00 00 01 00 01   c0 0c 00 01 00 01 …
    id    flags one question, one answer  node. A IN                 the name again, A IN, its TTL,
                                                                     4, the address
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Names", "resolved_by", "serving_names"]

HEADER = struct.Struct(">6H")
ANSWER, NO_SUCH_NAME = 0x8180, 0x8183
A, IN = 1, 1


class Names:
    """What a name server knows. Any thread may change it."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}  # by name; "": there is one, and it has none
        self.is_silent = False
        self.asked: set[str] = set()

    def answer(self, question: bytes) -> bytes | None:
        """Return the answer to a question, None for none."""
        number, _, _, _, _, _ = HEADER.unpack_from(question)
        labels, place = [], HEADER.size
        while length := question[place]:
            labels.append(question[place + 1 : place + 1 + length].decode())
            place += 1 + length
        (kind,) = struct.unpack_from(">H", question, place + 1)
        asked = question[HEADER.size : place + 5]
        name = ".".join(labels).lower()
        self.asked.add(name)
        if self.is_silent:
            return None
        if name not in self.addresses:
            return HEADER.pack(number, NO_SUCH_NAME, 1, 0, 0, 0) + asked
        address = self.addresses[name] if kind == A else ""
        count = 1 if address else 0
        record = b""
        if address:
            # The name is the question's, at offset 12. Kept by nobody: its time to live is 0.
            record = struct.pack(">HHHIH", 0xC00C, A, IN, 0, 4) + socket.inet_aton(address)
        return HEADER.pack(number, ANSWER, 1, count, 0, 0) + asked + record


@contextlib.contextmanager
def serving_names(host: str) -> Iterator[Names]:
    """A name server at port 53 of *host*, which belongs to the calling thread's network."""
    names = Names()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((host, 53))
        thread = threading.Thread(target=_serve, args=(listening, names), name="names")
        thread.start()
        try:
            yield names
        finally:
            listening.sendto(b"", listening.getsockname())
            thread.join()


def resolved_by(host: str, folder: Path) -> list[str]:
    """What to put before a command that is to ask the name server at *host* and no file of names.

    *folder* takes the files that say so. Needs root.
    """
    resolver, hosts = folder / "resolv.conf", folder / "hosts"
    resolver.write_text(f"nameserver {host}\noptions timeout:1 attempts:1\n")
    hosts.write_text("127.0.0.1 localhost\n")
    mounts = f"mount --bind {resolver} /etc/resolv.conf && mount --bind {hosts} /etc/hosts"
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


def _serve(listening: socket.socket, names: Names) -> None:
    while True:
        question, client = listening.recvfrom(512)
        if not question:
            return
        answer = names.answer(question)
        if answer is not None:
            listening.sendto(answer, client)
