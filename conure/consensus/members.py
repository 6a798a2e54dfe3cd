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

__all__ = [
    "Configuration",
    "Outlook",
    "Server",
]


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
_SERVER = struct.Struct("<BBHHHH")  # suffrage, role, lengths of the four texts
_VERSION = 1


@dataclass(frozen=True)
class Configuration:
    """Who the members are. Immutable; equal members make equal bytes.

    The encoding (little-endian), servers sorted by id:

    ====== ====== =================================================================
    offset bytes
    ====== ====== =================================================================
    0      1      version, 1
    1      2      number of servers n
    3      ...    n times: suffrage (0 voter, 1 nonvoter, 2 staging), role (0 data,
                  1 arbiter), u16 lengths of id, raft address, http address and
                  incarnation, then these four in UTF-8
    ====== ====== =================================================================

    No servers at all encode to ``b""``: a node that was neither bootstrapped nor joined.
    """

    servers: tuple[Server, ...] = ()
    voters: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The ids that count in elections and commits."""
    quorum: int = field(init=False, repr=False, compare=False)
    """How many voters are a majority."""
    _by_id: dict[str, Server] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the way past frozen
        put(self, "servers", tuple(sorted(self.servers, key=lambda server: server.id)))
        put(self, "voters", tuple(s.id for s in self.servers if s.suffrage == "voter"))
        put(self, "quorum", len(self.voters) // 2 + 1)
        put(self, "_by_id", {server.id: server for server in self.servers})
        assert len(self._by_id) == len(self.servers), "two servers with one id"

    def get(self, node_id: str) -> Server | None:
        """Return the server with this id, or None."""
        return self._by_id.get(node_id)

    def may_lead(self, node_id: str) -> bool:
        """Return whether the node is a voter that holds data."""
        server = self.get(node_id)
        return server is not None and server.suffrage == "voter" and server.role == "data"

    def with_server(self, server: Server) -> Configuration:
        """Return this configuration with the server added, or put in place of its id."""
        return Configuration((*self.without(server.id).servers, server))

    def without(self, node_id: str) -> Configuration:
        """Return this configuration without the server of that id."""
        return Configuration(tuple(server for server in self.servers if server.id != node_id))

    def encode(self) -> bytes:
        """Return the bytes that a CONFIG entry and a snapshot's metadata hold."""
        if not self.servers:
            return b""
        parts = [_HEADER.pack(_VERSION, len(self.servers))]
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
        if data[0] > _VERSION:
            raise VersionTooNew("a configuration", data[0], _VERSION)
        if data[0] != _VERSION:
            raise CorruptionError("a configuration", 0, f"version {data[0]}, not {_VERSION}")
        servers: list[Server] = []
        offset = _HEADER.size
        try:
            _, count = _HEADER.unpack_from(data)
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
        return cls(tuple(servers))


class Outlook(NamedTuple):
    """What a leader expects of a configuration: does it commit, and what may still fail?

    ``voters`` and ``quorum``: how many there are and have to answer; ``active``: how many have
    answered within an election time-out.
    """

    voters: int
    quorum: int
    active: int

    @property
    def tolerates(self) -> int:
        """How many more voters may fail, with those that don't answer counted as failed."""
        return max(0, self.active - self.quorum)
