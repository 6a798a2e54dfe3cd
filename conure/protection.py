"""Protected mode: who is of this machine, whom a port lets in, and the words for all others.

While nobody has to prove who they are, whoever reaches a port could read, write and take over
everything. So nobody but this machine does, until somebody has said what is wanted instead:

=========== ==================================== =============================================
port        is for this machine alone while      what others hear
=========== ==================================== =============================================
of clients  not every client has to prove who    HTTP: 403, but for probes; RESP: ``-DENIED``
            it is, by a certificate
of nodes    nodes prove nothing to each other    the connection is closed; ``/join``, ``--join``
            (``peer_auth`` is ``open``)          and ``--peers`` say why
=========== ==================================== =============================================

A connection is of this machine if it comes from a loopback address, or from the very address that
it was made to. That is judged once for each connection, by what the system says of its ends, and by
nothing that is sent. A proxy on this machine is of this machine, whoever asks it.

Which fronts have a :class:`Door`, and what opens it, decides whoever composes them. The rule for
nodes stands in ``conure/cluster/border.py``. Any thread may call anything; a door's
:meth:`Door.bars` is called by one accepting thread at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import inf
from time import monotonic
from typing import Final

from conure.values import host_of

__all__ = ["NODES_REMEDIES", "OPEN", "Door", "clients_remedies", "is_elsewhere", "is_same_machine"]

NODES_REMEDIES: Final = (
    "give all nodes one secret (--cluster-secret-file=FILE), or certificates (--peer-tls-cert, "
    "--peer-tls-key, --peer-tls-ca), or let whoever reaches their ports do everything "
    "(--protected-mode=false)"
)
"""What lets nodes of several machines be one cluster."""

_TOLD_AGAIN = 60.0  # seconds between two lines of the log about clients that are barred

log = logging.getLogger("conure.doors")


def clients_remedies(listening: str) -> str:
    """Return what lets clients in, of a front that *listening* (a flag) has on this machine."""
    return (
        "ask clients for certificates (--tls-cert, --tls-key, --tls-client-ca), serve this machine "
        f"alone ({listening}), or let whoever reaches the port do everything "
        "(--protected-mode=false)"
    )


@lru_cache(1024)
def is_same_machine(peer: str, local: str) -> bool:
    """Tell whether a connection that *peer* has made to *local*, both IP addresses as sockets have
    them, comes from this machine."""
    ip = _ip(peer)
    return ip.is_loopback or ip == _ip(local)


def is_elsewhere(address: str) -> bool:
    """Tell whether an address (``host:port`` or a base URL) may be of another machine.

    Only what it says is looked at: no host but loopback is known to be here.
    """
    host = host_of(address)
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        ip = ip_address(host.strip("[]"))
    except ValueError:
        return True
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    return not ip.is_loopback


class Door:
    """Whom a front answers, by where a connection comes from.

    *front* is what the front is called in the log, and *listening* the flag by which it serves this
    machine alone. *always* are the paths that are answered to anybody. *is_ours* judges the two
    ends of a connection.
    """

    def __init__(
        self,
        front: str,
        listening: str,
        always: frozenset[str] = frozenset(),
        *,
        is_closed: bool = True,
        is_ours: Callable[[str, str], bool] = is_same_machine,
    ) -> None:
        self.is_closed = is_closed
        self.always = always
        self.why = (
            "protected mode: this server asks nobody who they are, so it answers its own machine "
            f"alone; to be asked from others, {clients_remedies(listening)}"
        )
        """One line for who is barred."""
        self._front = front
        self._is_ours = is_ours
        self._barred = 0  # since the log was told
        self._told_at = -inf

    def bars(self, peer: str, local: Callable[[], str]) -> bool:
        """Tell whether a connection from *peer* isn't to be served; *local* returns the address
        that it was made to, and raises OSError if it is gone."""
        if not self.is_closed:
            return False
        try:
            if self._is_ours(peer, local()):
                return False
        except OSError:
            return True  # it has gone, wherever it came from
        self._note(peer)
        return True

    def _note(self, peer: str) -> None:
        """Tell in the log of who was barred, now and then: anybody may come again and again."""
        self._barred += 1
        now = monotonic()
        if now - self._told_at >= _TOLD_AGAIN:
            log.warning(
                "%s refused %d connections of other machines, the last from %s (protected mode)",
                *(self._front, self._barred, peer),
            )
            self._barred, self._told_at = 0, now


OPEN: Final = Door("", "", is_closed=False)
"""A door that bars nobody."""


def _ip(address: str) -> IPv4Address | IPv6Address:
    ip = ip_address(address)
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip
