"""Who the members of a cluster are, and that as bytes.

A :class:`Configuration` is a value; any thread may use it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from conure.errors import (
    CorruptionError,
    VersionTooNew,
)
from conure.values import MAX_QUORUM_SIZE

__all__ = [
    "SIZED",
    "Configuration",
    "Outlook",
    "Server",
]

SIZED = 3
"""What a node has to speak to read a configuration with a quorum size: see codec.SPEAKS."""


@dataclass(frozen=True, slots=True)
class Server:
    """A member of a configuration.

    ================ =======================================================================
    ``http_address`` the base URL of its HTTP API, or ""
    ``suffrage``     "voter"; "nonvoter": a learner, which counts in no quorum; "staging": a
                     learner that its leader makes a voter once it has caught up
    ``role``         "data" or "arbiter" (see the head of this file); never changes
    ``incarnation``  which life of the data directory this is, or "" while it isn't known
    ================ =======================================================================
    """

    id: str
    raft_address: str
    http_address: str = ""
    suffrage: str = "voter"
    role: str = "data"
    incarnation: str = ""


_SUFFRAGES = ("voter", "nonvoter", "staging")
_ROLES = ("data", "arbiter")
_HEADER = struct.Struct("<BH")  # version, number of servers
_SIZE = struct.Struct("<H")  # version 2: the quorum size
_SERVER = struct.Struct("<BBHHHH")  # suffrage, role, lengths of the four texts
_VERSION, _SIZED_VERSION = 1, 2


@dataclass(frozen=True)
class Configuration:
    """Who the members are, and how many of them have to hold an entry. Immutable; equal members
    make equal bytes.

    The encoding (little-endian), servers sorted by id:

    ====== ====== =================================================================
    offset bytes
    ====== ====== =================================================================
    0      1      version, 1; 2 with a quorum size
    1      2      number of servers n
    3      2      version 2 only: the quorum size, 2 to 1,000
    3, 5   ...    n times: suffrage (0 voter, 1 nonvoter, 2 staging), role (0 data,
                  1 arbiter), u16 lengths of id, raft address, http address and
                  incarnation, then these four in UTF-8
    ====== ====== =================================================================

    A voter "a" at "a:1" alone, its other texts empty, with a quorum size of 3::

        02 01 00  03 00  00 00 01 00 03 00 00 00 00 00  61 61 3a 31

    No servers at all encode to ``b""``: a node that was neither bootstrapped nor joined.
    """

    servers: tuple[Server, ...] = ()
    quorum_size: int = 0
    """How many data voters are to hold an entry before it is committed; 0: a majority of the voters
    is enough (R11)."""
    voters: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The ids that count in elections and commits."""
    quorum: int = field(init=False, repr=False, compare=False)
    """How many voters are a majority."""
    data_voters: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The ids of the voters that hold data."""
    copies: int = field(init=False, repr=False, compare=False)
    """How many data voters the quorum size asks for, of those that there are; 0 without one."""
    _by_id: dict[str, Server] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the way past frozen
        put(self, "servers", tuple(sorted(self.servers, key=lambda server: server.id)))
        put(self, "voters", tuple(s.id for s in self.servers if s.suffrage == "voter"))
        put(self, "quorum", len(self.voters) // 2 + 1)
        put(self, "_by_id", {server.id: server for server in self.servers})
        put(self, "data_voters", tuple(filter(self.may_lead, self.voters)))
        put(self, "copies", min(self.quorum_size, len(self.data_voters)))
        assert self.quorum_size == 0 or 2 <= self.quorum_size <= MAX_QUORUM_SIZE
        assert len(self._by_id) == len(self.servers), "two servers with one id"

    def get(self, node_id: str) -> Server | None:
        """Return the server with this id, or None."""
        return self._by_id.get(node_id)

    def may_lead(self, node_id: str) -> bool:
        """Return whether the node is a voter that holds data."""
        server = self.get(node_id)
        return server is not None and server.suffrage == "voter" and server.role == "data"

    @property
    def majority_copies(self) -> int:
        """How many data voters hold at least what a majority of the voters holds: a majority may
        have every arbiter in it, and an arbiter holds nothing that no data voter does."""
        arbiters = len(self.voters) - len(self.data_voters)
        return max(1, self.quorum - arbiters)

    @property
    def speaks(self) -> int:
        """What a node has to speak to read the encoding: see codec.SPEAKS."""
        return SIZED if self.quorum_size else 1

    def with_server(self, server: Server) -> Configuration:
        """Return this configuration with the server added, or put in place of its id."""
        return Configuration((*self._others(server.id), server), self.quorum_size)

    def without(self, node_id: str) -> Configuration:
        """Return this configuration without the server of that id.

        The quorum size is lowered to the data voters that are left if one of them goes, and is none
        where one is left: what that one alone commits is on its disk anyhow.
        """
        rest = Configuration(self._others(node_id), self.quorum_size)
        left = len(rest.data_voters)
        if left == len(self.data_voters) or left >= self.quorum_size:
            return rest
        return rest.sized(left if left > 1 else 0)

    def sized(self, quorum_size: int) -> Configuration:
        """Return this configuration with another quorum size, 0 for none."""
        return Configuration(self.servers, quorum_size)

    def encode(self) -> bytes:
        """Return the bytes that a CONFIG entry and a snapshot's metadata hold."""
        if not self.servers:
            return b""
        parts = [_HEADER.pack(self._version, len(self.servers))]
        if self.quorum_size:
            parts.append(_SIZE.pack(self.quorum_size))
        for server in self.servers:
            named = (server.id, server.raft_address, server.http_address, server.incarnation)
            texts = [text.encode() for text in named]
            suffrage, role = _SUFFRAGES.index(server.suffrage), _ROLES.index(server.role)
            parts += [_SERVER.pack(suffrage, role, *map(len, texts)), *texts]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """Read what :meth:`encode` wrote; anything else is a CorruptionError, or VersionTooNew."""
        if not data:
            return cls()
        if data[0] > _SIZED_VERSION:
            raise VersionTooNew("a configuration", data[0], _SIZED_VERSION)
        if data[0] < _VERSION:
            raise CorruptionError("a configuration", 0, f"version {data[0]}, not {_VERSION}")
        servers: list[Server] = []
        offset, quorum_size = _HEADER.size, 0
        try:
            version, count = _HEADER.unpack_from(data)
            if version == _SIZED_VERSION:
                (quorum_size,) = _SIZE.unpack_from(data, offset)
                offset += _SIZE.size
                if not 2 <= quorum_size <= MAX_QUORUM_SIZE:
                    raise ValueError(f"a quorum size of {quorum_size}")
            for _ in range(count):
                suffrage, role, *sizes = _SERVER.unpack_from(data, offset)
                offset += _SERVER.size
                texts = []
                for size in sizes:
                    texts.append(data[offset : offset + size].decode())
                    offset += size
                node_id, raft_address, http_address, incarnation = texts
                servers.append(
                    Server(
                        node_id,
                        raft_address,
                        http_address,
                        _SUFFRAGES[suffrage],
                        _ROLES[role],
                        incarnation,
                    )
                )
        except (ValueError, IndexError, struct.error) as error:
            raise CorruptionError("a configuration", offset, str(error)) from None
        ids = [server.id for server in servers]
        if offset != len(data) or not ids or "" in ids or ids != sorted(set(ids)):
            raise CorruptionError("a configuration", offset, "it isn't in canonical form")
        return cls(tuple(servers), quorum_size)

    @property
    def _version(self) -> int:
        return _SIZED_VERSION if self.quorum_size else _VERSION

    def _others(self, node_id: str) -> tuple[Server, ...]:
        return tuple(server for server in self.servers if server.id != node_id)


class Outlook(NamedTuple):
    """What a leader expects of a configuration: does it commit, and what may still fail?

    ``voters`` and ``quorum``: how many there are and have to answer; ``active``: how many have
    answered within an election time-out. ``copies``: how many of them have to be data voters, and
    ``active_data``: how many of these have answered; 0 both without a quorum size.
    """

    voters: int
    quorum: int
    active: int
    copies: int = 0
    active_data: int = 0

    @property
    def commits(self) -> bool:
        """Whether those that answer can commit anything (R3, R11)."""
        return self.active >= self.quorum and self.active_data >= self.copies

    @property
    def tolerates(self) -> int:
        """How many more voters may fail, whichever they are, until nothing is committed any more.
        Those that don't answer count as failed."""
        spare = self.active - self.quorum
        if self.copies:
            spare = min(spare, self.active_data - self.copies)
        return max(0, spare)
