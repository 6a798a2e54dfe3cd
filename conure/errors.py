"""The exceptions of ConureDB: one small tree in which every error knows its remedy.

Two kinds of failure are kept apart. A bug of ours is an ``assert``. Everything that comes from
outside (a request, a file, a disk, a peer, a setting) is one of the exceptions below, and each
of them knows three things:

========== ===========================================================================
``status`` the HTTP status a client is answered with
``title``  what kind of error it is, the same words every time (RFC 9457's ``title``)
``str()``  one line: what is wrong, where, and what to do about it
========== ===========================================================================

Any thread may raise and read them; nothing here has state of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "BadRequest",
    "Compacted",
    "ConfigError",
    "Conflict",
    "ConureError",
    "CorruptionError",
    "DirectoryInUse",
    "DiskFailed",
    "DiskFull",
    "Diverged",
    "Exhausted",
    "Forbidden",
    "ForeignDirectory",
    "JobLost",
    "KeyNotFound",
    "KeyReused",
    "MemberNotFound",
    "MethodNotAllowed",
    "NotFound",
    "NotImplementedHere",
    "NotLeader",
    "NotRead",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "PreconditionFailed",
    "ProtocolViolation",
    "Refused",
    "RequestError",
    "StorageError",
    "TargetTooLong",
    "TooManyHeld",
    "TooManyRequests",
    "Unavailable",
    "Untrusted",
    "VersionTooNew",
    "WireError",
]


class ConureError(Exception):
    """The root: catch it to catch everything ConureDB reports about the outside world."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "internal error"


# -- starting up ---------------------------------------------------------------------------------


class ConfigError(ConureError):
    """A setting that can't be used. The process ends with exit status 2.

    ``setting`` is its name, ``source`` where the value came from (``flag --http-addr``,
    ``environment CONURE_HTTP_ADDR``, ``conure.yaml line 4``), ``why`` what is wrong and what
    would be right.
    """

    title = "bad configuration"

    def __init__(self, setting: str, source: str, why: str) -> None:
        super().__init__(f"{setting} ({source}): {why}")
        self.setting = setting
        self.source = source
        self.why = why


# -- disk ----------------------------------------------------------------------------------------


class StorageError(ConureError):
    """Anything that goes wrong between this process and its data directory."""

    status = 503
    title = "storage error"


class CorruptionError(StorageError):
    """Bytes on disk that fail their check. They are never returned as data (S3).

    ``file`` names the file, ``offset`` is the byte offset of the page or record, ``why`` says
    which check failed.
    """

    status = 500
    title = "corrupt data"

    def __init__(self, file: str, offset: int, why: str) -> None:
        super().__init__(
            f"{file} is corrupt at byte {offset}: {why}; "
            "restore this node from a backup or let it rejoin the cluster with an empty directory"
        )
        self.file = file
        self.offset = offset
        self.why = why


class DiskFull(StorageError):
    """There is no space left for a write. Nothing was written; the write may be tried again."""

    status = 507
    title = "disk full"


class DiskFailed(StorageError):
    """A read, write or sync failed for good. The file takes no further writes (S6)."""

    title = "disk failed"


class Exhausted(DiskFailed):
    """A file can't be opened or mapped for now: descriptors or memory have run out.

    Nothing was done, and it may be tried again; who can't wait takes it for what it is a kind of.
    """

    title = "descriptors or memory exhausted"


class JobLost(StorageError):
    """Work of a storage engine beside its writes came to nothing; it may be done again.

    That says nothing of the disk or the data. Nothing was changed by it.
    """

    title = "work was lost"


class Diverged(StorageError):
    """This replica applied what the others did and holds something else (R7)."""

    title = "replica differs"

    def __init__(self, node_id: str, index: int) -> None:
        super().__init__(
            f"the state of node {node_id} at index {index} is not that of the other replicas: a "
            f"broken machine or a bug; remove {node_id} from the cluster, empty its data "
            "directory and let it join again"
        )


class VersionTooNew(StorageError):
    """Something in the log or the state is of a format that this release doesn't read.

    It can't be skipped (R7), and nothing is damaged: a later release reads it.
    """

    status = 500
    title = "newer format"

    def __init__(self, what: str, found: int, known: int) -> None:
        super().__init__(
            f"{what} is of format version {found}, and this node reads up to {known}; "
            f"run a release of ConureDB that speaks version {found} here"
        )
        self.found = found


class DirectoryInUse(StorageError):
    """Another process holds the lock of this data directory."""

    title = "data directory in use"


class ForeignDirectory(StorageError):
    """The data directory holds something that isn't this node's, or can't be used as one."""

    title = "not a data directory of this node"


# -- requests ------------------------------------------------------------------------------------


class RequestError(ConureError):
    """A request that can't be carried out as it was put; the client has to change it."""

    status = 400
    title = "bad request"


class BadRequest(RequestError):
    """A malformed request, or one with a missing or unusable parameter."""


class Forbidden(RequestError):
    """Whoever asks may not do that; nothing has changed."""

    status = 403
    title = "forbidden"


class KeyNotFound(RequestError):
    """The key has no value."""

    status = 404
    title = "key not found"

    def __init__(self, message: str = "key not found") -> None:
        super().__init__(message)


class NotFound(RequestError):
    """There is nothing at this path."""

    status = 404
    title = "not found"


class MethodNotAllowed(RequestError):
    """The path exists and the method is not one of its own; ``allowed`` lists those."""

    status = 405
    title = "method not allowed"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not possible here; use {' or '.join(allowed)}")
        self.allowed = tuple(allowed)


class MemberNotFound(RequestError):
    """No member of the cluster has this ID."""

    status = 404
    title = "no such member"


class Conflict(RequestError):
    """The request contradicts the state of the cluster and was refused; nothing changed."""

    status = 409
    title = "conflict"


class TooManyHeld(Conflict):
    """A session that is to hold a key holds as many others as one may; nothing changed."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"the session holds {most:,} keys, which end with it in one change: "
            "release some, or begin another session"
        )


class Compacted(RequestError):
    """Events are asked for that are no longer kept; ``oldest`` is the first revision that is."""

    status = 410
    title = "history lost"

    def __init__(self, oldest: int) -> None:
        super().__init__(
            f"events are kept from revision {oldest} on; read the keys again and watch from there"
        )
        self.oldest = oldest


class PreconditionFailed(RequestError):
    """A condition of a write did not hold; *current* is the key's revision, 0: there is none."""

    status = 412
    title = "precondition failed"

    def __init__(self, current: int) -> None:
        found = f"the key's revision is {current}" if current else "the key does not exist"
        super().__init__(f"the condition does not hold, {found}; nothing was changed")
        self.current = current


class KeyReused(RequestError):
    """An Idempotency-Key came again with another request."""

    status = 422
    title = "idempotency key reused"

    def __init__(self) -> None:
        super().__init__(
            "this Idempotency-Key was used for another request; take a new one for each write"
        )


class PayloadTooLarge(RequestError):
    """A value or body over the limit; nothing was stored."""

    status = 413
    title = "payload too large"


class TargetTooLong(RequestError):
    """A request target, or the key in it, over the limit; nothing was stored."""

    status = 414
    title = "request target too long"


class UnsupportedMediaType(RequestError):
    """A body that is coded in a way that isn't undone here; nothing was stored."""

    status = 415
    title = "unsupported media type"


class NotImplementedHere(ConureError):
    """The request is well formed and this version can't carry it out."""

    status = 501
    title = "not implemented"


# -- cluster -------------------------------------------------------------------------------------


class Unavailable(ConureError):
    """The request can't be served now and changed nothing; it may be tried again.

    ``retry_after`` is in seconds, for the ``Retry-After`` header.
    """

    status = 503
    title = "unavailable"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Untrusted(Unavailable):
    """Nobody who was named could prove who they are, or took this side's proof: nothing was asked.

    Waiting doesn't help, unless for a certificate that is renewed.
    """

    title = "not trusted"


class NotRead(Unavailable):
    """A value that was not read, since too much has been by then: of one round, or for clients
    that have not taken it yet."""

    def __init__(self) -> None:
        super().__init__("too much waits to be read by clients; try again shortly")


class TooManyRequests(Unavailable):
    """As many requests or streams as this server takes at a time are under way already."""

    status = 429
    title = "too many requests"


class NotLeader(Unavailable):
    """Only the leader can serve this. Empty strings mean that no leader is known.

    ``leader`` is the leader's Raft address, ``leader_id`` its node ID and ``leader_http`` the
    base URL of its HTTP API.
    """

    title = "not the leader"

    def __init__(self, leader: str = "", leader_id: str = "", leader_http: str = "") -> None:
        super().__init__(
            f"this node is not the leader; ask {leader_http or leader}"
            if leader
            else "no leader is known; try again shortly, and see /status and /raft/config"
        )
        self.leader = leader
        self.leader_id = leader_id
        self.leader_http = leader_http


class ProtocolViolation(ConureError):
    """A peer sent what no correct peer sends. The message is dropped; nothing has changed."""

    title = "protocol violation"


class OutcomeUnknown(ConureError):
    """A write was proposed and its fate isn't known: it may or may not have been committed."""

    status = 504
    title = "outcome unknown"


class WireError(ConureError):
    """Bytes that no encoder of this version made. Says which part and why."""

    title = "malformed bytes"


class Refused(ConureError):
    """One of two nodes refused to talk to the other; ``str()`` is the reason, with all names, for
    this node's own log. *told* is what the other one hears of it, the same if it is empty."""

    status: ClassVar[int] = 409
    title: ClassVar[str] = "refused by a node"

    def __init__(self, why: str, told: str = "") -> None:
        super().__init__(why)
        self.told = told or why
