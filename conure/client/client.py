"""The Python client: speaks to any server of a cluster, finds the leader, keeps connections.

    from client import Client, Op, when

    with Client(["http://10.0.0.5:8081", "http://10.0.0.6:8081"]) as db:
        revision = db.put("greeting", "hello")
        assert db.get("greeting") == b"hello"
        db.put("greeting", "good day", if_revision=revision)
        db.txn(compare=[when("stock", exists=True)], success=[Op.increment("stock", -1)])
        with db.lock("jobs/1", ttl=15) as token:
            ...
        for event in db.watch(prefix="config/"):
            print(event.key, event.value)

What it repeats on its own, within the time limit, and what it never does:

========================================= ================= ================= ==================
what happened                             reads             plain writes      writes with a key
========================================= ================= ================= ==================
no byte of the request was sent           repeated          repeated          repeated
307, the leader is elsewhere              followed          followed          followed
503, 429, nothing was changed             repeated          repeated          repeated
the connection was lost after sending     repeated          OutcomeUnknown    repeated
502, 504, or no answer in time            repeated          OutcomeUnknown    repeated
500 and any other 5xx                     the error         OutcomeUnknown    repeated
4xx, 501, 507                             the error         the error         the error
========================================= ================= ================= ==================

The *key* is an ``Idempotency-Key``: the cluster remembers for some minutes what became of it, and
gives the same answer to a repetition, after a change of leader too. All writes carry one that are
transactions for the server in any case: conditional ones, those with a time to live, increments,
batches, transactions and the like. A plain ``put`` or ``delete`` of a key does with
``exactly_once=True`` only: it is then a transaction with an outcome to be remembered, of which a
server carries out about a quarter as many a second, and a lone one takes about 0.3 ms longer.

1. A write without a key whose outcome isn't known is never sent again: the first one may have been
   committed, and a second one would undo what somebody else wrote in between. Only the caller can
   tell whether repeating it is harmless. One with a key is OutcomeUnknown at the end of the time
   limit, if it was sent and never answered.
2. Every server that was named is asked in turn, beginning with the last known leader. Before a
   server is asked a second time the client waits, longer each time, and not in step with others;
   after a 429 as long as the server has asked for.
3. Redirects are followed to ``http`` addresses only, and only their host and port are used.
4. A resting connection is looked at before it is used again. One that the server has closed is
   dropped then, while no byte is on its way.
5. What is streamed (``items``, ``watch``, ``backup``) has a connection of its own meanwhile. The
   time limit is for its beginning; then it may last, as long as something comes every 15 s.

Threads: any number may share a client. Connections rest in a pool; a request takes one out, or
opens one if there is none, and puts it back, so there are as many as there were requests at one
time. The lock guards the pool and the watches, and is never held during input or output.
Each :class:`Session`, and so each lock, has a thread that renews it.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
import contextlib
import hashlib
import json
import os
import random
import re
import select
import socket
import tempfile
import threading
import time
import uuid
import weakref
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, TypeAlias
from urllib.parse import quote

from conure.errors import (
    BadRequest,
    Compacted,
    ConfigError,
    Conflict,
    ConureError,
    DiskFull,
    KeyNotFound,
    KeyReused,
    MemberNotFound,
    NotFound,
    NotImplementedHere,
    OutcomeUnknown,
    PayloadTooLarge,
    PreconditionFailed,
    RequestError,
    TargetTooLong,
    TooManyRequests,
    Unavailable,
)

__all__ = [
    "DEFAULT_SERVER",
    "DEFAULT_TIMEOUT",
    "DEFAULT_TTL",
    "Client",
    "Event",
    "Items",
    "Lock",
    "LockHeld",
    "LockLost",
    "Op",
    "Page",
    "Record",
    "Session",
    "TxnResult",
    "Watch",
    "when",
]

DEFAULT_SERVER = "http://127.0.0.1:8081"
DEFAULT_TIMEOUT = 5.0
DEFAULT_TTL = 15.0
"""Seconds that a session or lock outlives its holder."""

Text: TypeAlias = str | bytes | bytearray | memoryview
"""Bytes, or text that is sent as UTF-8. Anything else as a key or value is a TypeError."""

_CONNECT_TIME = 1.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds
_SILENCE = 15.0  # seconds without a byte of a stream; a watch hears something every 5 s
_LONG_POLL = 20.0  # seconds that a lock waits at a time
_BATCH_RECORDS, _BATCH_BYTES = 500, 512 << 10
_PART_KEYS = 10_000  # of a deletion in parts; a server may make them smaller
_READ_BYTES = 64 << 10
_BACKUP_MAGIC, _BACKUP_TRAILER = b"CONUREBK", 44  # backup.py has the format
_NOT_A_SERVER = "this is not what a ConureDB server answers; check the server's address"
_NO_SESSION = "there is no such session"
_URL = re.compile(
    r"http://(\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?)"
    r"(?::(\d{1,5}))?([/?][^\s]*)?",
    re.ASCII,
)
_ERRORS: dict[int, Callable[[str], ConureError]] = {
    400: BadRequest,
    409: Conflict,
    413: PayloadTooLarge,
    414: TargetTooLong,
    501: NotImplementedHere,
    507: DiskFull,
}


class LockHeld(Conflict):
    """Another one held the lock for as long as was waited for it."""

    title = "lock held"


class LockLost(ConureError):
    """The lock's session ended while the lock was in use: somebody else may have got it since.

    What was done under it may have met with what the other one did, unless fencing tokens were
    checked.
    """

    title = "lock lost"


class Record(NamedTuple):
    """A key and what is stored under it.

    *value* is b"" where it wasn't asked for; *ttl* in seconds, None: for ever. *session* and
    *fencing_token* say who holds the key, if anybody does; only ``Client.record`` asks for them.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    ttl: float | None = None
    session: str | None = None
    fencing_token: int | None = None


class Event(NamedTuple):
    """A change of a key: *kind* is put, delete or expire; *value* is None if it is gone.

    *previous* is the value before, of a watch that asked for it: None if there was no key, or if it
    isn't known.
    """

    revision: int
    kind: str
    key: bytes
    value: bytes | None
    version: int
    previous: bytes | None = None


class Page(NamedTuple):
    """What a range in a transaction has found; *more*: its limit cut it short."""

    items: list[Record]
    more: bool


class TxnResult(NamedTuple):
    """How a transaction ended: which branch was taken, and what each of its operations did.

    A deletion has the number of keys, a range a :class:`Page`, anything else the record it found
    or left, None if there is none; its value is only there where it was read.
    """

    succeeded: bool
    revision: int
    results: list[Record | Page | int | None]


# -- transactions ----------------------------------------------------------------------------------

Json: TypeAlias = dict[str, Any]


def when(
    key: Text,
    relation: str = "=",
    *,
    value: Text | None = None,
    version: int | None = None,
    create_revision: int | None = None,
    mod_revision: int | None = None,
    exists: bool | None = None,
) -> Json:
    """Return a comparison for ``Client.txn``: of one thing, to which *key*'s has that *relation*.

    *relation* is ``=``, ``!=``, ``<`` or ``>``: ``when("k", ">", version=3)``.
    """
    compare = _texts(key, value)
    for name, operand in (
        ("version", version),
        ("create_revision", create_revision),
        ("mod_revision", mod_revision),
        ("exists", exists),
    ):
        if operand is not None:
            compare[name] = operand
    if relation != "=":
        compare["relation"] = relation
    return compare


class Op:
    """The operations of ``Client.txn``, as the JSON that ``POST /txn`` takes."""

    @staticmethod
    def put(key: Text, value: Text, *, ttl: float | None = None, keep_ttl: bool = False) -> Json:
        """Set a key; *ttl* in seconds."""
        body = _texts(key, _bytes(value, "value"))
        if ttl is not None:
            body["ttl"] = _milliseconds(ttl)
        if keep_ttl:
            body["keepttl"] = True
        return {"put": body}

    @staticmethod
    def get(key: Text) -> Json:
        """Read a key."""
        return {"get": _texts(key)}

    @staticmethod
    def delete(key: Text) -> Json:
        """Remove a key, if it is there."""
        return {"delete": _texts(key)}

    @staticmethod
    def delete_prefix(prefix: str) -> Json:
        """Remove all keys that begin with *prefix*."""
        return {"delete": {"prefix": _bytes(prefix, "prefix").decode()}}

    @staticmethod
    def range(
        prefix: str, *, limit: int = 100, reverse: bool = False, keys_only: bool = False
    ) -> Json:
        """Read the first keys that begin with *prefix*, or with *reverse* the last ones."""
        text = _bytes(prefix, "prefix").decode()
        return {"range": {"prefix": text, "limit": limit, "reverse": reverse, "keys": keys_only}}

    @staticmethod
    def increment(key: Text, by: int = 1) -> Json:
        """Add to a number; what it comes to is told by a ``get`` behind it."""
        return {"incr": {**_texts(key), "by": _whole(by, "by")}}

    @staticmethod
    def touch(key: Text, ttl: float) -> Json:
        """Let a key expire in *ttl* seconds, 0: never."""
        return {"touch": {**_texts(key), "ttl": _milliseconds(ttl)}}


# -- the client ------------------------------------------------------------------------------------


class _Closing:
    """Something that a ``with`` block closes."""

    def close(self) -> None:
        """End it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The block's own error says more than what became of its end.
        with contextlib.suppress(*([ConureError] if error is not None else [])):
            self.close()


class Client(_Closing):
    """A connection to a cluster. *timeout*, in seconds, bounds each call with all its retries.

    *servers* are base URLs. Keys and values are bytes, or text that is sent as UTF-8. With
    *exactly_once* plain puts and deletes are repeated safely, too, at a price that the head of
    this module tells. Every method may be called from any thread and raises a
    :class:`~errors.ConureError`: ``Unavailable`` if nobody could answer in time (and nothing was
    changed), ``OutcomeUnknown`` for a write that may or may not have happened, or what the server
    said. *timeout* has to be shorter than the servers' ``idempotency_window``.

    Raises ConfigError for a server that is no base URL.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        exactly_once: bool = False,
    ) -> None:
        named = [servers] if isinstance(servers, str) else list(servers)
        if not named:
            raise ConfigError("server", "none given", f"name one, such as {DEFAULT_SERVER}")
        self._servers = [_base_url(server) for server in named]
        self._timeout = timeout
        self._exactly_once = exactly_once
        self._leader = self._nearest = self._servers[0]
        self._lock = threading.Lock()
        self._resting: dict[str, list[_Connection]] = {}
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._closed = False

    @property
    def leader(self) -> str:
        """The base URL of the server that is asked first for what only a leader does."""
        return self._leader

    # -- keys --------------------------------------------------------------------------------------

    def put(
        self,
        key: Text,
        value: Text,
        *,
        ttl: float | None = None,
        keep_ttl: bool = False,
        if_revision: int | None = None,
        acquire: str | None = None,
        release: str | None = None,
    ) -> int:
        """Store *value* under *key* and return the revision of that.

        The key expires *ttl* seconds later, or never; with *keep_ttl* when it would have. With
        *if_revision* nothing is done but PreconditionFailed raised, which has the revision as
        ``current``, unless that is the key's ``mod_revision``; 0: unless the key doesn't exist.
        *acquire* and *release* name a session that is to hold the key, or to let go of it; Conflict
        is raised if another one holds it.
        """
        plain = target = _kv(key)
        if ttl is not None:
            target += f"&ttl={_milliseconds(ttl)}"
        if keep_ttl:
            target += "&keepttl=true"
        if if_revision is not None:
            target += f"&cas={_whole(if_revision, 'if_revision')}"
        if acquire is not None:
            target += "&acquire=" + _quoted(acquire, "acquire")
        if release is not None:
            target += "&release=" + _quoted(release, "release")
        body = _bytes(value, "value")
        return self._write("PUT", target, body, is_plain=target == plain).revision

    def get(self, key: Text, stale: bool = False, max_stale: float | None = None) -> bytes | None:
        """Return the value of *key*, or None.

        The read is linearizable; with *stale* it is what the server that is asked knows, which
        may be old, but needs neither a leader nor a quorum. *max_stale* goes with *stale*: only
        servers that heard the leader within so many seconds may answer.
        """
        target = _kv(key) + "&stale=true" * stale
        if max_stale is not None:
            target += f"&max_stale={_milliseconds(max_stale, 'max_stale')}"
        request = _Request("GET", target, is_read=True, any_server=stale)
        try:
            return self._call(request).body
        except KeyNotFound:
            return None

    def record(self, key: Text) -> Record | None:
        """Return *key*'s value with its revisions, time to live and holder, or None."""
        try:
            return _record(self._read_object(_kv(key) + "&meta=true", any_server=False))
        except KeyNotFound:
            return None

    def delete(self, key: Text, *, if_revision: int | None = None) -> int:
        """Remove *key*, whether it exists or not, and return the revision of that.

        *if_revision* is that of ``put``.
        """
        target = _kv(key)
        if if_revision is not None:
            target += f"&cas={_whole(if_revision, 'if_revision')}"
        return self._write("DELETE", target, is_plain=if_revision is None).revision

    def increment(self, key: Text, by: int = 1, *, ttl: float | None = None) -> int:
        """Add to the decimal number under *key*, 0 if there is none, and return the sum.

        A key that isn't there expires *ttl* seconds after this, or never; one that is keeps its
        time. Raises Conflict if the value is no number of 64 bits, or the sum would not be.
        """
        target = f"{_kv(key, '/kv/incr')}&by={_whole(by, 'by')}"
        if ttl is not None:
            target += f"&ttl={_milliseconds(ttl)}"
        answer = self._write("POST", target)
        with _understanding:
            return int(answer.body)

    def touch(self, key: Text, ttl: float) -> bool:
        """Let *key* expire in *ttl* seconds, 0: never; False if it doesn't exist."""
        try:
            self._write("POST", f"{_kv(key, '/kv/touch')}&ttl={_milliseconds(ttl)}")
        except KeyNotFound:
            return False
        return True

    def items(
        self,
        prefix: Text | None = None,
        *,
        start: Text | None = None,
        end: Text | None = None,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
    ) -> Items:
        """Return an iterator over the records of a range, in the order of their keys.

        The range is that of all keys that begin with *prefix*, or of those from *start* up to but
        not including *end*. All of it is as of one revision, which the iterator has as
        ``revision``, and it needs little memory, however much there is. It is streamed while it is
        read: a pause of 30 s in reading may end it. What breaks off raises Unavailable.
        """
        target = _range("/kv", prefix, start, end)
        if limit is not None:
            target += f"&limit={_whole(limit, 'limit')}"
        target += "&reverse=true" * reverse + "&keys=true" * keys_only
        headers = {"Accept": "application/x-ndjson"}
        request = _Request("GET", target, is_read=True, headers=headers, is_stream=True)
        return Items(self, self._call(request))

    def count(self, prefix: Text = "") -> int:
        """Return how many keys begin with *prefix*."""
        shown = self._read_object(_range("/kv/count", prefix), any_server=False)
        with _understanding:
            return int(shown["count"])

    def delete_prefix(self, prefix: Text) -> int:
        """Remove all keys that begin with *prefix*, and return how many.

        It is one change, at one revision, unless there are more keys than the servers delete at
        once (5,000, or ``max_range_items`` if that is less). Then they go in parts, each of them
        one change, until there are none; when this raises, those of the parts before are gone.
        """
        target = f"/kv?prefix={_quoted(prefix, 'prefix')}"  # None would be all there are
        with contextlib.suppress(PayloadTooLarge):
            answer = self._write("DELETE", target)
            with _understanding:
                return int(_object(answer.body)["deleted"])
        deleted = 0
        while True:
            shown = _object(self._write("DELETE", f"{target}&limit={_PART_KEYS}").body)
            with _understanding:
                deleted += int(shown["deleted"])
                if not shown["more"]:
                    return deleted

    def txn(
        self,
        compare: Iterable[Mapping[str, Any]] = (),
        success: Iterable[Mapping[str, Any]] = (),
        failure: Iterable[Mapping[str, Any]] = (),
    ) -> TxnResult:
        """Do *success* if all of *compare* hold, else *failure*; all or nothing, at one revision.

        Comparisons are made by :func:`when`, operations by :class:`Op`.
        """
        shown = self.transact(
            {"compare": list(compare), "success": list(success), "failure": list(failure)}
        )
        with _understanding:
            results = [_txn_result(each) for each in shown["results"]]
            return TxnResult(bool(shown["succeeded"]), int(shown["revision"]), results)

    def transact(self, transaction: Mapping[str, Any]) -> Json:
        """Carry out a transaction that is JSON already, as ``POST /txn`` takes and answers it."""
        return _object(self._write("POST", "/txn", json.dumps(transaction).encode()).body)

    def load(
        self,
        records: Iterable[tuple[Text, Text | None] | tuple[Text, Text | None, float | None]],
    ) -> int:
        """Store many records and return how many: pairs of key and value, or with a *ttl* third.

        A value None deletes its key. They are written in order, in batches of up to 500, each of
        them whole or not at all. When one fails, those before it are written.
        """
        written = 0
        for count, body in _batches(records):
            self._write("POST", "/kv/batch", body)
            written += count
        return written

    def watch(
        self,
        key: Text | None = None,
        *,
        prefix: Text | None = None,
        start_revision: int = 0,
        prev: bool = False,
    ) -> Watch:
        """Return an iterator over the changes of a key, of all with a prefix, or of everything.

        It begins at *start_revision*, or with what happens from now on. Events come once each and
        in order, whatever becomes of connections, servers and leaders in the meantime: see
        :class:`Watch`. With *prev* they have the value ``previous`` to them, where the server knows
        it: it keeps that since it was first asked for. Raises Compacted if what happened since
        *start_revision* isn't known any more, Unavailable if nobody can be watched.
        """
        if key is not None and prefix is not None:
            raise BadRequest("a watch is of one key, or of all keys with a prefix")
        target = _kv(key, "/watch") if key is not None else _range("/watch", prefix)
        if start_revision:
            target += f"&from={_whole(start_revision, 'start_revision')}"
        if prev:
            target += "&prev=true"
        watch = Watch(self, target)
        with self._lock:
            self._watches.add(watch)
        return watch

    def backup(
        self, file: str | os.PathLike[str] | BinaryIO, progress: Callable[[int], None] | None = None
    ) -> int:
        """Write a backup of everything to a path or an open file; return its revision.

        ``conuredb.py restore`` makes a cluster of it. A path gets the whole backup, on disk, or
        stays as it was; what was written to an open file is no backup when this raises. *progress*
        is told now and then how many bytes there are.

        Raises Unavailable if it breaks off, ConureError if it came altered, and OSError.
        """
        request = _Request("GET", "/backup", is_read=True, any_server=True, is_stream=True)
        answer = self._call(request)
        tell = progress or _tell_nobody
        if not isinstance(file, str | os.PathLike):
            _save_backup(answer.stream, file, tell)
            return answer.revision
        path = os.path.abspath(file)
        handle, unfinished = tempfile.mkstemp(
            ".part", os.path.basename(path), os.path.dirname(path)
        )
        try:
            with open(handle, "wb") as output:
                _save_backup(answer.stream, output, tell)
                output.flush()
                os.fsync(handle)
            os.replace(unfinished, path)
        except BaseException:
            os.unlink(unfinished)
            raise
        finally:
            answer.stream.close()
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return answer.revision

    # -- sessions and locks ------------------------------------------------------------------------

    def session(
        self, ttl: float = DEFAULT_TTL, *, name: str = "", behavior: str = "release"
    ) -> Session:
        """Begin a session that is renewed until it is closed, or lost.

        It ends *ttl* seconds after its last renewal. What it holds at its end is let go, or with
        *behavior* ``delete`` removed.
        """
        return Session(self, ttl, name, behavior)

    def lock(self, name: Text, ttl: float = DEFAULT_TTL, timeout: float | None = None) -> Lock:
        """Return a lock: ``with client.lock("jobs/1") as token:`` waits for it and holds it.

        *token* grows from holder to holder: let what the lock protects refuse what comes with a
        smaller one. *name* is a key that nobody uses for anything else; it exists as long as the
        lock is held, with the holder's machine and process as its value. If the holder vanishes,
        the lock is free *ttl* seconds later. *timeout*, in seconds, bounds the wait.
        """
        return Lock(self, _bytes(name, "name"), ttl, timeout)

    def open_session(self, ttl: float, *, name: str = "", behavior: str = "release") -> str:
        """Begin a session that the caller renews, and return its ID."""
        target = f"/session?ttl={_milliseconds(ttl)}&behavior={_quoted(behavior, 'behavior')}"
        if name:
            target += "&name=" + _quoted(name, "name")
        # One that nobody learned of does no harm, and ends by itself.
        answer = self._call(_Request("POST", target, repeatable=True))
        with _understanding:
            return str(_object(answer.body)["id"])

    def renew_session(self, session: str, timeout: float | None = None) -> None:
        """Let a session's time begin anew. Raises NotFound if it has ended.

        *timeout* in place of the client's, if it is shorter.
        """
        seconds = min(self._timeout, self._timeout if timeout is None else timeout)
        self._call(_Request("PUT", _session(session), repeatable=True, timeout=seconds))

    def session_info(self, session: str) -> Json:
        """Return what is known of a session. Raises NotFound if it has ended."""
        return self._read_object(_session(session), any_server=False)

    def end_session(self, session: str) -> None:
        """End a session. Raises NotFound if it has ended."""
        self._write("DELETE", _session(session))

    # -- the cluster -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the first server that answers says of itself (``GET /status``)."""
        return self._read_object("/status")

    def raft_config(self) -> dict[str, Any]:
        """Return the members of the cluster (``GET /raft/config``)."""
        return self._read_object("/raft/config")

    def raft_stats(self) -> dict[str, Any]:
        """Return the state of consensus at the first server that answers (``GET /raft/stats``)."""
        return self._read_object("/raft/stats")

    def join(
        self,
        node_id: str,
        raft_address: str,
        http_address: str = "",
        *,
        voter: bool = True,
        role: str = "",
    ) -> None:
        """Make a node a member: *raft_address* is host:port, *http_address* a base URL.

        What is left empty is what the node says of itself.
        """
        facts: dict[str, Any] = {"ID": node_id, "RaftAddr": raft_address}
        if http_address:
            facts["HTTPAddr"] = http_address
        if not voter:
            facts["NonVoter"] = True
        if role:
            facts["Role"] = role
        self._call(_Request("POST", "/join", json.dumps(facts).encode()))

    def remove(self, node_id: str, *, force: bool = False) -> None:
        """End a node's membership. Raises MemberNotFound for an ID nobody has.

        Raises Conflict if too few of the voters that would be left answer at this moment; *force*
        insists.
        """
        facts: dict[str, Any] = {"ID": node_id}
        if force:
            facts["Force"] = True
        self._call(_Request("POST", "/remove", json.dumps(facts).encode()))

    def hand_over(self, node_id: str = "") -> None:
        """Let another voter lead: the one named, or whoever is most up to date."""
        facts = {"ID": node_id} if node_id else {}
        self._call(_Request("POST", "/leader", json.dumps(facts).encode()))

    def close(self) -> None:
        """End the watches, and close the connections that rest.

        Those in use are closed when their call ends.
        """
        with self._lock:
            self._closed = True
            resting, self._resting = self._resting, {}
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        for connections in resting.values():
            for connection in connections:
                connection.close()

    # -- one call ----------------------------------------------------------------------------------

    def _read_object(self, target: str, *, any_server: bool = True) -> Json:
        return _object(
            self._call(_Request("GET", target, is_read=True, any_server=any_server)).body
        )

    def _write(
        self, method: str, target: str, body: bytes | None = None, *, is_plain: bool = False
    ) -> _Answer:
        """Carry out a write, with an Idempotency-Key unless it is a plain one."""
        if is_plain and not self._exactly_once:
            return self._call(_Request(method, target, body))
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return self._call(_Request(method, target, body, headers=key, repeatable=True))

    def _call(self, request: _Request, server: str = "") -> _Answer:
        """Return the answer 200, after as many attempts as are safe and in time.

        *server* is asked first, or whoever is best.
        """
        seconds = self._timeout if request.timeout is None else request.timeout
        call = _Call(request, seconds + request.wait)
        server = server or (self._nearest if request.any_server else self._leader)
        while True:
            call.begin_attempt(server)
            try:
                answer = self._exchange(server, request, call.deadline)
            except _ConnectionFailed as failure:
                call.take_failure(f"{server}: {failure}", failure)
                server = self._after(server, request)
                continue
            if answer.status == 200:
                self._remember(server, request)
                return answer
            if answer.status == 307:
                leader = _redirected(answer.field("Location"))
                call.problem = f"{server} redirects to {answer.field('Location') or 'nowhere'}"
                server = leader or self._after(server, request)
                continue
            error = _error(answer, request)
            call.take_error(error)
            # Nobody else can take the load off a leader.
            if request.any_server or not isinstance(error, TooManyRequests):
                server = self._after(server, request)

    def _after(self, server: str, request: _Request) -> str:
        """Return whom to ask after *server* has failed; a leader that failed is forgotten."""
        following = self._next(server)
        self._remember(following, request)
        return following

    def _next(self, server: str) -> str:
        position = self._servers.index(server) + 1 if server in self._servers else 0
        return self._servers[position % len(self._servers)]

    def _remember(self, server: str, request: _Request) -> None:
        if request.any_server:
            self._nearest = server
        else:
            self._leader = server

    # -- one exchange on one connection ------------------------------------------------------------

    def _exchange(self, server: str, request: _Request, deadline: float) -> _Answer:
        connection = self._take(server)
        # A server that hangs must leave time to ask another one, as long as that is allowed.
        alone = len(self._servers) == 1 and server == self._servers[0]
        left = _left(deadline)
        share = left if alone else request.wait + max(left - request.wait, 0.0) / 2
        # Behind one address there may be several servers: the next attempt meets another one.
        connection.limit(min(share, _CONNECT_TIME))
        try:
            connection.open()
            connection.limit(share if request.is_read or request.repeatable else _left(deadline))
            answer = connection.exchange(request)
        except (OSError, HTTPException) as error:
            connection.close()
            raise _ConnectionFailed(_describe(error), connection.was_sent) from error
        except BaseException:  # such as KeyboardInterrupt: the answer is still to come
            connection.close()
            raise
        if answer.opened is not None:
            pass  # whoever reads it closes it
        elif answer.status == 503:
            connection.close()
        else:
            self._put_back(server, connection)
        return answer

    def _take(self, server: str) -> _Connection:
        while True:
            with self._lock:
                resting = self._resting.get(server)
                if not resting:
                    break
                connection = resting.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return _Connection(server)

    def _put_back(self, server: str, connection: _Connection) -> None:
        if connection.sock is None:  # the server asked for it to be closed
            return
        with self._lock:
            if not self._closed:
                self._resting.setdefault(server, []).append(connection)
                return
        connection.close()


# -- what lasts ------------------------------------------------------------------------------------


class Items(_Closing):
    """Records as of ``revision``, in the order of their keys; see ``Client.items``.

    An iterator, for one thread; ``close`` ends it early.
    """

    def __init__(self, client: Client, answer: _Answer) -> None:
        self.revision = answer.revision
        self._client = client
        self._server = answer.server
        self._stream = answer.stream
        self._lines = _pieces(self._stream, b"\n")

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        try:
            return _record(_object(next(self._lines)))
        except StopIteration:
            connection = self._stream.let_go()
            if connection is not None:
                self._client._put_back(self._server, connection)
            raise
        except _ConnectionFailed as failure:
            self.close()
            raise Unavailable(
                f"the list broke off ({failure}); read again from where it did, or all of it"
            ) from failure

    def close(self) -> None:
        """End it, however much is left."""
        self._lines.close()
        self._stream.close()


class Watch(_Closing):
    """The changes of a range of keys, from one revision on; an iterator of :class:`Event`.

    When its connection is lost, or nothing is heard for 15 s, it goes on behind the last event at
    the next server that can be reached, however long that takes: no event is lost, and none comes
    twice. It ends when it, or its client, is closed. A server forgets old events, and a new one
    has none; if none that was named has those that come next, Compacted is raised, which has
    the ``oldest`` revision there is: read the keys again, and watch from there.

    One thread iterates; any may ``close``.
    """

    def __init__(self, client: Client, target: str) -> None:
        self._client = client
        self._target = target
        self._server = client._nearest  # the one that is watched, or is to be asked next
        self._position = ""  # the id of the last event, or of the last progress
        self._lock = threading.Lock()  # guards the next two
        self._stream: _Stream | None = None
        self._is_reading = True
        self._closed = threading.Event()
        self._frames = self._connect()
        # Where it begins is told at once. After that it can go on from there, at any server.
        while not self._position:
            self._take_frame()
        self._is_reading = False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._lock:
            self._is_reading = True
        try:
            while not self._closed.is_set():
                event = self._take_frame()
                if event is not None:
                    return event
        except BaseException:
            self._closed.set()
            raise
        finally:
            with self._lock:
                self._is_reading = False
                if self._closed.is_set():
                    self._drop()
        raise StopIteration

    def close(self) -> None:
        """End the watch; calling it again does nothing. Any thread."""
        with self._lock:
            self._closed.set()
            if not self._is_reading:
                self._drop()
            elif self._stream is not None:
                self._stream.cut()  # whoever reads it drops it

    def _take_frame(self) -> Event | None:
        """Wait for what comes next, on this connection or another; None if it is no event."""
        try:
            kind, position, data = _frame(next(self._frames))
        except (_ConnectionFailed, StopIteration):
            self._go_on()
            return None
        if kind == "end":  # whoever is asked next says more, if there is more to say
            self._go_on()
            return None
        self._position = position
        return None if kind == "progress" else _event(kind, data)

    def _go_on(self) -> None:
        """Connect to the next server; try until it works, or the watch is closed."""
        with self._lock:
            self._drop()
        self._server = self._client._next(self._server)
        pause = _FIRST_PAUSE
        while not self._closed.is_set():
            try:
                self._frames = self._connect()
            except Unavailable:
                self._closed.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                return

    def _connect(self) -> Iterator[bytes]:
        """Begin, or go on. Raises Unavailable, and Compacted if no server has what comes next."""
        headers = {"Accept": "text/event-stream"}
        if self._position:
            headers["Last-Event-ID"] = self._position
        request = _Request(
            "GET", self._target, is_read=True, any_server=True, headers=headers, is_stream=True
        )
        oldest: Compacted | None = None
        for _ in self._client._servers:
            try:
                answer = self._client._call(request, self._server)
            except Compacted as error:
                oldest = min(oldest or error, error, key=lambda each: each.oldest)
                self._server = self._client._next(self._server)
                continue
            self._server = answer.server
            with self._lock:
                self._stream = answer.stream
                if self._closed.is_set():
                    self._stream.cut()
            return _pieces(answer.stream, b"\n\n")
        assert oldest is not None
        raise oldest

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class Session(_Closing):
    """A session that a thread renews until it is closed; see ``Client.session``.

    ``id`` is what ``Client.put`` takes to acquire keys. Any thread may call anything.
    """

    def __init__(self, client: Client, ttl: float, name: str, behavior: str) -> None:
        self.ttl = ttl
        self._client = client
        begun = time.monotonic()
        self.id = client.open_session(ttl, name=name, behavior=behavior)
        self._until = begun + ttl  # by the servers' time it lasts a little longer
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="conure-session", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the session has ended, or could not be renewed in time and may have."""
        return time.monotonic() >= self._until

    def acquire(self, key: Text, value: Text = b"", *, if_revision: int | None = None) -> int:
        """Hold *key*, set its value, and return the fencing token.

        Raises Conflict if another session holds it, NotFound if this one has ended, and
        PreconditionFailed.
        """
        target = f"{_kv(key)}&acquire={_quoted(self.id, 'session')}"
        if if_revision is not None:
            target += f"&cas={_whole(if_revision, 'if_revision')}"
        answer = self._client._write("PUT", target, _bytes(value, "value"))
        with _understanding:
            return int(answer.field("X-Conure-Fencing-Token"))

    def release(self, key: Text, value: Text | None = None) -> None:
        """Let go of *key*, and set its value unless that is None.

        Raises Conflict if it isn't held.
        """
        target = f"{_kv(key)}&release={_quoted(self.id, 'session')}"
        self._client._write("PUT", target, None if value is None else _bytes(value, "value"))

    def close(self) -> None:
        """End the session. Raises NotFound if it has ended by itself."""
        self._ended.set()
        self._thread.join()
        self._until = 0.0
        self._client.end_session(self.id)

    def _renew(self) -> None:
        pause = self.ttl / 3
        while not self._ended.wait(pause):
            begun = time.monotonic()
            if begun >= self._until:
                return
            try:
                self._client.renew_session(self.id, timeout=self._until - begun)
            except RequestError:  # it is no more
                self._until = 0.0
                return
            except ConureError:
                pause = self.ttl / 20
            else:
                self._until = begun + self.ttl
                pause = self.ttl / 3


class Lock:
    """A lock for a ``with`` block; see ``Client.lock``. For one thread, again and again.

    Those who wait are woken when it is let go, and whoever comes first gets it.
    """

    def __init__(self, client: Client, name: bytes, ttl: float, timeout: float | None) -> None:
        self._client = client
        self._name = name
        self._ttl = ttl
        self._timeout = timeout
        self._session: Session | None = None

    @property
    def lost(self) -> bool:
        """Whether it is not held, or may have been lost since."""
        return self._session is None or self._session.lost

    def acquire(self) -> int:
        """Wait for the lock and return its fencing token.

        Raises LockHeld after *timeout*, Conflict if the name is that of a key in other use, and
        Unavailable if the cluster can't be reached.
        """
        if self._session is not None:
            raise RuntimeError("the lock is held already")
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        holder = f"{socket.gethostname()}:{os.getpid()}"
        while True:
            session = self._client.session(self._ttl, name=holder, behavior="delete")
            try:
                token = self._wait(session, holder, deadline)
            except NotFound:  # it was lost while it waited
                continue
            except BaseException:
                with contextlib.suppress(ConureError):  # it ends by itself
                    session.close()
                raise
            self._session = session
            return token

    def release(self) -> None:
        """Let go of it. Raises LockLost, and Unavailable if it will only end by itself."""
        session, self._session = self._session, None
        if session is None:
            raise RuntimeError("the lock is not held")
        try:
            session.close()
        except NotFound as error:
            raise LockLost(
                f"the lock {_shown(self._name)} was lost while it was in use; "
                "another one may have held it since"
            ) from error

    def __enter__(self) -> int:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The block's own error says more than what became of the lock.
        with contextlib.suppress(*([ConureError] if error is not None else [])):
            self.release()

    def _wait(self, session: Session, holder: str, deadline: float | None) -> int:
        while True:
            try:
                # It must not exist: the key of a lock goes with it, and other data must not.
                return session.acquire(self._name, holder, if_revision=0)
            except PreconditionFailed:
                self._wait_for_end(deadline)
            except Conflict:  # it is held, and somebody has deleted its key
                self._check_time(deadline)
                time.sleep(random.uniform(0.2, 0.4))

    def _wait_for_end(self, deadline: float | None) -> None:
        """Wait until the key doesn't exist."""
        target = _kv(self._name) + "&meta=true"
        index = None
        while True:
            seconds = 0.0
            if index is not None:
                left = _LONG_POLL if deadline is None else _left(deadline)
                seconds = min(left, _LONG_POLL)
            wait = "" if index is None else f"&index={index}&wait={_milliseconds(seconds)}"
            try:
                answer = self._client._call(
                    _Request("GET", target + wait, is_read=True, wait=seconds)
                )
            except KeyNotFound:
                return
            if "session" not in _object(answer.body):
                raise Conflict(
                    f"the key {_shown(self._name)} exists and no session holds it; "
                    "a lock needs a name of its own"
                )
            index = answer.revision
            self._check_time(deadline)

    def _check_time(self, deadline: float | None) -> None:
        if deadline is not None and not _left(deadline):
            raise LockHeld(
                f"another one holds the lock {_shown(self._name)} (waited {self._timeout:g} s)"
            )


# -- the parts of a call ---------------------------------------------------------------------------


class _Request(NamedTuple):
    method: str
    target: str
    body: bytes | None = None
    is_read: bool = False
    any_server: bool = False  # not only the leader can answer
    headers: Mapping[str, str] | None = None
    repeatable: bool = False  # a write that may be sent again even if it may have been done
    is_stream: bool = False
    wait: float = 0.0  # seconds that the server is asked to wait
    timeout: float | None = None  # the client's if None


@dataclass(slots=True)
class _Answer:
    server: str
    status: int
    headers: Message
    body: bytes = b""
    opened: _Stream | None = None

    @property
    def stream(self) -> _Stream:
        assert self.opened is not None
        return self.opened

    @property
    def revision(self) -> int:
        """The revision that the answer is about. Raises ConureError."""
        with _understanding:
            return int(self.field("X-Conure-Index"))

    def field(self, name: str) -> str:
        return self.headers.get(name) or ""


class _Call:
    """The attempts at one request: how long there is, and what came of them so far."""

    def __init__(self, request: _Request, seconds: float) -> None:
        self._request = request
        self._seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.problem = ""
        self._kind: type[Unavailable] = Unavailable
        self._is_unsure = False  # an attempt may have done it
        self._asked: set[str] = set()
        self._pause = _FIRST_PAUSE
        self._least_pause = 0.0

    def begin_attempt(self, server: str) -> None:
        """Wait, if this one was asked before. Raises what is the case when the time is over."""
        if server in self._asked:
            pause = max(self._pause * random.uniform(0.5, 1.0), self._least_pause)
            time.sleep(min(pause, _left(self.deadline)))
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._least_pause = 0.0
            self._asked.clear()
        self._asked.add(server)
        if self.problem and not _left(self.deadline):
            problem = f"{self.problem} (gave up after {self._seconds:g} s)"
            raise _unknown(problem) if self._is_unsure else self._kind(problem)

    def take_failure(self, problem: str, failure: _ConnectionFailed) -> None:
        """Take note of a lost connection. Raises OutcomeUnknown if that is the end."""
        self.problem = problem
        self._kind = Unavailable
        if failure.was_sent and not self._request.is_read:
            if not self._request.repeatable:
                raise _unknown(problem) from failure
            self._is_unsure = True

    def take_error(self, error: ConureError) -> None:
        """Take note of an error that was answered; raise it if it is the end."""
        if isinstance(error, OutcomeUnknown) and self._request.repeatable:
            self._is_unsure = True
        elif self._is_unsure and isinstance(error, DiskFull | NotImplementedHere):
            raise _unknown(str(error)) from error  # that is true of this attempt only
        elif not isinstance(error, Unavailable):
            raise error
        self.problem = str(error)
        self._kind = Unavailable
        if isinstance(error, TooManyRequests):
            self._kind = TooManyRequests
            self._least_pause = error.retry_after


class _ConnectionFailed(Exception):
    def __init__(self, why: str, was_sent: bool) -> None:
        super().__init__(why)
        self.was_sent = was_sent


class _Socket(socket.socket):
    """Waits for input up to one moment, in however many pieces it comes."""

    deadline = 0.0

    def recv_into(self, *args: Any, **named: Any) -> int:
        left = _left(self.deadline)
        if not left:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*args, **named)


class _Connection(HTTPConnection):
    """A connection that knows whether any byte of the current request has left."""

    was_sent = False
    sock: Any  # None, or a _Socket
    _parts: list[bytes]

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("http://").rpartition(":")
        super().__init__(host.strip("[]"), int(port))
        self._server = server

    def limit(self, seconds: float) -> None:
        """Let connecting, sending and the whole of an answer take so long from now."""
        self.timeout = max(seconds, 0.001)
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
            self.sock.deadline = time.monotonic() + self.timeout

    def connect(self) -> None:
        super().connect()
        plain = self.sock
        self.sock = _Socket(plain.family, plain.type, plain.proto, plain.detach())

    def open(self) -> None:
        self.was_sent = False
        if self.sock is None:
            self.connect()  # sets TCP_NODELAY

    def is_quiet(self) -> bool:
        """Whether the resting connection is open and nothing has come in unasked."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def exchange(self, request: _Request) -> _Answer:
        self._parts = []
        self.request(request.method, request.target, request.body, request.headers or {})
        data = b"".join(self._parts)  # the server meets head and body in one round
        try:
            count = self.sock.send(data)  # if this fails the kernel has taken nothing
            self.was_sent = True
            self.sock.sendall(memoryview(data)[count:])
        except (BrokenPipeError, ConnectionResetError):
            # A server may refuse a body while it is being sent; its reason can still be read.
            if not self.was_sent:
                raise
        connected = self.sock
        response = self.getresponse()
        answer = _Answer(self._server, response.status, response.headers)
        if request.is_stream and response.status == 200:
            answer.opened = _Stream(self, connected, response)
        else:
            answer.body = response.read()
        return answer

    def send(self, data: Any) -> None:
        """Take what the base class would send; ``exchange`` sends it at once."""
        self._parts.append(data)


class _Stream:
    """The body of an answer, as it comes. For one thread, but for ``cut``."""

    def __init__(self, connection: _Connection, connected: _Socket, response: HTTPResponse) -> None:
        self._connection: _Connection | None = connection
        self._socket = connected
        self._response = response

    def read(self) -> bytes:
        """Return what has come, at least a byte; b"" at the end. Raises _ConnectionFailed."""
        self._socket.deadline = time.monotonic() + _SILENCE
        try:
            return self._response.read1(_READ_BYTES)
        except (OSError, HTTPException) as error:
            raise _ConnectionFailed(_describe(error), was_sent=True) from error

    def cut(self) -> None:
        """Let whoever reads come to an end. Any thread."""
        with contextlib.suppress(OSError):  # the other side has gone
            self._socket.shutdown(socket.SHUT_RDWR)

    def let_go(self) -> _Connection | None:
        """Return the connection for another request, once and only if all was read."""
        if not self._response.isclosed():
            return None
        connection, self._connection = self._connection, None
        return connection

    def close(self) -> None:
        self._response.close()
        if self._connection is not None:
            self._connection.close()

    def __del__(self) -> None:
        self.close()  # an iterator that was dropped half-way


# -- words and numbers -----------------------------------------------------------------------------


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)


def _bytes(text: Text, argument: str) -> bytes:
    """Return the bytes of a key or value. Raises TypeError, which names the argument."""
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"{argument} has to be str or bytes, not {type(text).__name__}")


def _whole(number: int, argument: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{argument} has to be int, not {type(number).__name__}")
    return number


def _quoted(text: Text, argument: str) -> str:
    return quote(_bytes(text, argument), safe="")


def _shown(text: bytes) -> str:
    return repr(text.decode(errors="backslashreplace"))


def _milliseconds(seconds: float, argument: str = "ttl") -> str:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{argument} has to be a number of seconds, not {type(seconds).__name__}")
    return f"{round(seconds * 1000)}ms"


def _kv(key: Text, path: str = "/kv") -> str:
    return f"{path}?key={_quoted(key, 'key')}"


def _session(session: str) -> str:
    return "/session?id=" + _quoted(session, "session")


def _range(
    path: str, prefix: Text | None, start: Text | None = None, end: Text | None = None
) -> str:
    if start is None and end is None and prefix is None:
        prefix = ""
    given = (("prefix", prefix, "prefix"), ("from", start, "start"), ("to", end, "end"))
    query = [
        f"{name}={_quoted(text, argument)}" for name, text, argument in given if text is not None
    ]
    return f"{path}?{'&'.join(query)}"


def _texts(key: Text, value: Text | None = None) -> Json:
    """Return key and value as fields of an object; in base64 if one of them isn't UTF-8."""
    named = {"key": _bytes(key, "key")}
    if value is not None:
        named["value"] = _bytes(value, "value")
    try:
        return {name: text.decode() for name, text in named.items()}
    except UnicodeDecodeError:
        coded: Json = {name: b64encode(text).decode() for name, text in named.items()}
        return {**coded, "encoding": "base64"}


def _batches(
    records: Iterable[tuple[Text, Text | None] | tuple[Text, Text | None, float | None]],
) -> Iterator[tuple[int, bytes]]:
    """Yield batches for ``POST /kv/batch``; no key is twice in one, as an atomic batch has it."""
    lines: list[bytes] = []
    keys: set[str] = set()
    size = 0
    for key, value, *more in records:
        record = _texts(key, value)
        if value is None:
            record["delete"] = True
        elif more and more[0] is not None:
            record["ttl"] = _milliseconds(more[0])
        line = json.dumps(record).encode() + b"\n"
        name = ("" if "encoding" not in record else "=") + record["key"]
        if lines and (
            len(lines) == _BATCH_RECORDS or size + len(line) > _BATCH_BYTES or name in keys
        ):
            yield len(lines), b"".join(lines)
            lines.clear()
            keys.clear()
            size = 0
        lines.append(line)
        keys.add(name)
        size += len(line)
    if lines:
        yield len(lines), b"".join(lines)


class _Understanding:
    """Raises ConureError for an answer that isn't what was to be expected."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
            raise ConureError(_NOT_A_SERVER) from error


_understanding = _Understanding()  # one for all: it has no state


def _object(body: bytes) -> Json:
    with _understanding:
        value = json.loads(body)
    if not isinstance(value, dict):
        raise ConureError(_NOT_A_SERVER)
    return value


def _record(shown: Mapping[str, Any]) -> Record:
    with _understanding:
        key, value = _from_texts(shown)
        return Record(
            key,
            value or b"",
            shown["create_revision"],
            shown["mod_revision"],
            shown["version"],
            shown.get("ttl"),
            shown.get("session"),
            shown.get("fencing_token"),
        )


def _event(kind: str, data: Mapping[str, Any]) -> Event:
    with _understanding:
        key, value = _from_texts(data)
        previous = _from_text(data, "prev")
        return Event(data["revision"], kind, key, value, data["version"], previous)


def _from_texts(shown: Mapping[str, Any]) -> tuple[bytes, bytes | None]:
    key = _from_text(shown, "key")
    if key is None:
        raise KeyError("key")
    return key, _from_text(shown, "value")


def _from_text(shown: Mapping[str, Any], name: str) -> bytes | None:
    """Return the bytes that a field stands for, None if it isn't there or is null."""
    text = shown.get(name)
    if text is None:
        return None
    decoded: bytes = b64decode(text) if shown.get("encoding") == "base64" else text.encode()
    return decoded


def _txn_result(shown: Any) -> Record | Page | int | None:
    if shown is None:
        return None
    if "items" in shown:
        return Page([_record(each) for each in shown["items"]], shown["more"])
    return int(shown["deleted"]) if "deleted" in shown else _record(shown)


def _pieces(stream: _Stream, separator: bytes) -> Generator[bytes, None, None]:
    """Yield what is before each *separator*. Raises _ConnectionFailed."""
    buffer = bytearray()
    for piece in iter(stream.read, b""):
        looked = max(len(buffer) - len(separator), 0)
        buffer += piece
        if buffer.find(separator, looked) >= 0:
            *whole, rest = bytes(buffer).split(separator)
            yield from whole
            buffer = bytearray(rest)


def _frame(frame: bytes) -> tuple[str, str, Json]:
    """Return kind, id and data of a server-sent event."""
    with _understanding:
        fields = dict(line.partition(": ")[::2] for line in frame.decode().split("\n"))
        return fields["event"], fields.get("id", ""), _object(fields["data"].encode())


def _save_backup(stream: _Stream, output: BinaryIO, tell: Callable[[int], None]) -> None:
    """Write a backup to a file. Raises Unavailable or ConureError if it isn't whole."""
    digest = hashlib.sha256()
    size = 0
    tail = b""  # what may be the trailer
    try:
        for piece in iter(stream.read, b""):
            output.write(piece)
            size += len(piece)
            tell(size)
            tail += piece
            digest.update(tail[:-_BACKUP_TRAILER])
            tail = tail[-_BACKUP_TRAILER:]
    except _ConnectionFailed as failure:
        raise Unavailable(f"the backup broke off after {size:,} bytes ({failure})") from failure
    digest.update(tail[:-32])
    if len(tail) < _BACKUP_TRAILER or any(tail[:4]) or digest.digest() != tail[-32:]:
        raise ConureError("the backup is not what the server has sent; take another one")


def _tell_nobody(_: int) -> None:
    pass


# -- servers ---------------------------------------------------------------------------------------


def _base_url(server: str) -> str:
    match = _URL.fullmatch(server)
    if match is None or match[3] not in (None, "/") or not 0 < int(match[2] or 80) < 65536:
        raise ConfigError("server", repr(server), f"no base URL; write it like {DEFAULT_SERVER}")
    return f"http://{match[1]}:{match[2] or 80}"


def _redirected(location: str) -> str | None:
    """Return the server a redirect names, or None for one that can't be trusted or followed."""
    match = _URL.fullmatch(location)
    try:
        return _base_url(location.removesuffix(match[3] or "")) if match else None
    except ConfigError:
        return None


# -- errors ----------------------------------------------------------------------------------------


def _describe(error: OSError | HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _unknown(problem: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"{problem}; the write may or may not have been carried out")


def _error(answer: _Answer, request: _Request) -> ConureError:
    """Return the exception for an answer that is neither success nor redirect."""
    status = answer.status
    line = answer.body[:1000].decode(errors="replace").strip().partition("\n")[0]
    message = line or f"the server answered {status} and no reason"
    if 400 <= status < 500:
        return _refusal(answer, request, message)
    if status in _ERRORS:
        return _ERRORS[status](message)
    if status == 503 or (status in (502, 504) and request.is_read):
        return Unavailable(message)
    if status >= 500 and not request.is_read:
        return OutcomeUnknown(message)
    return ConureError(message if status >= 500 else _NOT_A_SERVER)


def _not_found(message: str, request: _Request) -> ConureError:
    if request.target.startswith("/kv") and message == "key not found":
        return KeyNotFound()
    if message.startswith(_NO_SESSION):
        return NotFound(message)
    return MemberNotFound(message) if request.method == "POST" else RequestError(_NOT_A_SERVER)


def _refusal(answer: _Answer, request: _Request, message: str) -> ConureError:
    status = answer.status  # no match, no assignment in an expression: see oldpython.py
    oldest = re.search(r"\brevision (\d+)", message) if status == 410 else None
    if oldest:
        return Compacted(int(oldest[1]))
    if status == 404:
        return _not_found(message, request)
    if status == 412:
        revision = answer.field("ETag").strip('"')
        return PreconditionFailed(int(revision) if revision.isdecimal() else 0)
    if status == 422:
        return KeyReused()
    if status == 429:
        seconds = answer.field("Retry-After")
        return TooManyRequests(message, int(seconds) if seconds.isdecimal() else 1)
    return _ERRORS.get(status, RequestError)(message)
