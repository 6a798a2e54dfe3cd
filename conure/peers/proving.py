"""How the two ends of a connection prove that they belong together, before they say anything else.

Whoever dials says by its first byte how it goes about that::

    43 44 42 01   the cluster secret (security/secret.py draws the rest)
    16 03         TLS: both ends show a certificate of the CA that they share
    00 00         nothing: a frame of the handshake (protocol.py), which is shorter than 8 KiB

:class:`PeerSecurity` says which of these this node has, and what it asks of others: with ``open``
nobody proves anything, with ``offer`` who can does and others are let in, ``require`` lets nobody
in without. Both a secret and a certificate may be there; either will do. Whoever dials tries them
one after the other, each on a connection of its own (dialling.py): first the certificate, which
tells which node it is of, then the secret, then nothing.

Whoever has not proved itself is told nothing but a nonce, or what TLS says (P1), and a certificate
proves the nodes that it names and no other one (P2; docs/architecture.md, "Proof").

The file waits, within the deadline that it is given, in the thread that dials or was dialled.
"""

from __future__ import annotations

import secrets as random
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Final

from conure.errors import WireError
from conure.net.link import Link, PlainLink
from conure.net.tlslink import HandshakeFailed, TlsLink
from conure.peers import sockets
from conure.peers.sealedlink import SealedLink
from conure.security.secret import (
    ACCEPTOR,
    DIALLER,
    HELLO_BYTES,
    NONCE_BYTES,
    PROOF_BYTES,
    VERSION,
    Nonces,
    prove,
    seals_of,
    who_proved,
)

__all__ = [
    "CERTIFICATE",
    "OFFER",
    "OPEN",
    "REQUIRE",
    "SECRET",
    "UNPROVED",
    "PeerSecurity",
    "check_name",
]

OPEN: Final = "open"
OFFER: Final = "offer"
REQUIRE: Final = "require"
"""What a node asks of others: ``--peer-auth``."""

CERTIFICATE: Final = "certificate"
SECRET: Final = "secret"  # noqa: S105 - a word and no password
UNPROVED: Final = ""
"""How the other end of a connection has proved itself: ``Link.proof``."""

_FIRST_OF_TLS = b"\x16"
_REMEDY = "give both nodes the same --cluster-secret-file, or certificates by --peer-tls-cert"


@dataclass(frozen=True, slots=True)
class PeerSecurity:
    """What this node has to prove itself by, and what it asks of others.

    *secrets* returns those that count now, the first one for dialling; none: there is no secret.
    *client* and *server* return the context for a connection that is dialled and for one that is
    accepted; both ask for the other end's certificate. All three may be called by any thread.

    *takes_anybody* says that where nobody proves anything, nodes of other machines, too, may ask to
    be added (joins.py): protected mode is off.
    """

    mode: str = OPEN
    secrets: Callable[[], Sequence[bytes]] = tuple
    client: Callable[[], ssl.SSLContext] | None = None
    server: Callable[[], ssl.SSLContext] | None = None
    takes_anybody: bool = False

    @property
    def ways(self) -> tuple[str, ...]:
        """How this node proves itself when it dials, in the order of trying."""
        ways = []
        if self.mode != OPEN and self.client is not None:
            ways.append(CERTIFICATE)
        if self.mode != OPEN and self.secrets():
            ways.append(SECRET)
        if self.mode != REQUIRE:
            ways.append(UNPROVED)
        return tuple(ways)

    def dial(self, sock: socket.socket, way: str, deadline: float) -> Link:
        """Prove this node over a connection that it has opened, and have the other end do so.

        Returns the link to speak over. *deadline* is by ``monotonic``. Raises OSError, and
        WireError for an end that proves nothing.
        """
        if way == CERTIFICATE:
            assert self.client is not None
            return _shake_hands(sock, self.client(), deadline, server_side=False)
        if way == SECRET:
            return _dial_by_secret(PlainLink(sock), self.secrets()[0], deadline)
        return PlainLink(sock)

    def accept(self, sock: socket.socket, deadline: float) -> Link:
        """Have the other end of a connection prove itself, which that one has opened, if it has to,
        and prove this node to it. Returns, and raises, as :meth:`dial` does."""
        first = _look_at_first(sock, deadline)
        if first == _FIRST_OF_TLS and self.mode != OPEN and self.server is not None:
            return _shake_hands(sock, self.server(), deadline, server_side=True)
        if first == VERSION[:1] and self.mode != OPEN and self.secrets():
            return _accept_by_secret(PlainLink(sock), self.secrets(), deadline)
        if first == _FIRST_OF_TLS:
            raise WireError(f"it speaks TLS and this node has {self._lack('--peer-tls-cert')}")
        if first == VERSION[:1]:
            lack = self._lack("--cluster-secret-file")
            raise WireError(f"it proves itself by a cluster secret and this node has {lack}")
        if self.mode == REQUIRE:  # (P1)
            raise WireError(f"it proves nothing, and --peer-auth is require here: {_REMEDY}")
        return PlainLink(sock)

    def lets_apply(self, link: Link, sock: socket.socket) -> bool:
        """Tell whether who is at the other end may ask to be added: whoever has proved itself (P4).

        Who is added is sent all records. So where some can prove themselves and others needn't, the
        others may not; and where nobody can, only who is on this machine, unless all are let in.
        """
        if link.proof:
            return True
        return self.mode == OPEN and (self.takes_anybody or sockets.is_of_this_machine(sock))

    def _lack(self, flag: str) -> str:
        if self.mode == OPEN:
            return f"--peer-auth=open: start this one with {flag} and --peer-auth=offer"
        return f"none: start this one with {flag}, too"


def check_name(link: Link, node_id: str) -> None:
    """Raise WireError if a certificate has proved another node than the one that it says it is."""
    if link.proof == CERTIFICATE and node_id not in link.names:  # (P2)
        names = ", ".join(sorted(link.names)) or "nobody"
        raise WireError(
            f"it says that it is {node_id[:255]}, and its certificate names {names[:500]}: a node "
            "needs one with its node ID as a DNS name"
        )


# -- private -------------------------------------------------------------------------------------


def _look_at_first(sock: socket.socket, deadline: float) -> bytes:
    """Return the first byte that has come, and leave it where it is."""
    link = PlainLink(sock)
    sockets.await_event(link, select.POLLIN, deadline)
    first = sock.recv(1, socket.MSG_PEEK)
    if not first:
        raise ConnectionResetError("the other side closed it without a word")
    return first


def _shake_hands(
    sock: socket.socket, context: ssl.SSLContext, deadline: float, *, server_side: bool
) -> Link:
    link = TlsLink(sock, context, server_side=server_side, deadline=_by_counter(deadline))
    while True:
        try:
            link.handshake()
            break
        except BlockingIOError:
            sockets.await_event(link, select.POLLIN, deadline)
        except HandshakeFailed as error:
            raise WireError(f"TLS came to nothing: {error}") from error
    if link.proof != CERTIFICATE:
        raise WireError("it has shown no certificate")
    return link


def _by_counter(deadline: float) -> float:
    """Return a moment of ``monotonic`` as one of ``perf_counter``."""
    return perf_counter() + deadline - monotonic()


def _dial_by_secret(link: Link, secret: bytes, deadline: float) -> Link:
    mine = random.token_bytes(NONCE_BYTES)
    sockets.send_all(link, VERSION + mine, deadline)
    theirs = _expect(
        link,
        HELLO_BYTES,
        deadline,
        "it knows nothing of a cluster secret: has it none, --peer-auth=open, or an older release?",
    )
    nonces = Nonces(mine, _nonce_of(theirs))
    sockets.send_all(link, prove(secret, DIALLER, nonces), deadline)
    shown = _expect(
        link,
        PROOF_BYTES,
        deadline,
        "it does not accept this node's cluster secret: the first line of the file here has to be "
        "one of the lines there",
    )
    if who_proved([secret], ACCEPTOR, nonces, shown) is None:
        raise WireError("it does not prove that it has this node's cluster secret")
    sending, receiving = seals_of(secret, nonces)
    return SealedLink(link, sending, receiving)


def _accept_by_secret(link: Link, secrets: Sequence[bytes], deadline: float) -> Link:
    theirs = _nonce_of(sockets.read_exactly(link, HELLO_BYTES, deadline))
    nonces = Nonces(theirs, random.token_bytes(NONCE_BYTES))
    sockets.send_all(link, VERSION + nonces.acceptor, deadline)
    shown = sockets.read_exactly(link, PROOF_BYTES, deadline)
    secret = who_proved(secrets, DIALLER, nonces, shown)
    if secret is None:  # (P1)
        raise WireError(
            "it has another cluster secret: the first line of its file has to be one of the lines "
            "here, unless it is a stranger"
        )
    sockets.send_all(link, prove(secret, ACCEPTOR, nonces), deadline)
    receiving, sending = seals_of(secret, nonces)
    return SealedLink(link, sending, receiving)


def _nonce_of(hello: bytes) -> bytes:
    if not hello.startswith(VERSION):
        raise WireError("it begins as a proof by the cluster secret does, and goes on otherwise")
    return hello[len(VERSION) :]


def _expect(link: Link, size: int, deadline: float, why_closed: str) -> bytes:
    """Read so many bytes of a proof; *why_closed* is what it means if none comes."""
    try:
        return sockets.read_exactly(link, size, deadline)
    except ConnectionError as error:
        raise WireError(why_closed) from error
