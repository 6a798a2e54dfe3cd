"""The client itself: one method for each thing that can be asked of a cluster.

Each method makes of its arguments what the server takes, lets calls.py ask, and makes of the answer
what the caller gets. What lasts longer than a call is an object of its own: ranges.py, watches.py,
locks.py. Nothing is decided here about servers, repetitions and time; the head of the package says
what is promised about them. Any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from conure.client import backups, locks
from conure.client.calls import DEFAULT_SERVER, Calls
from conure.client.connections import Request
from conure.client.locks import Lock, Session
from conure.client.model import (
    Closing,
    Record,
    TxnResult,
    to_object,
    to_record,
    to_result,
    understanding,
)
from conure.client.ranges import Items
from conure.client.texts import (
    Json,
    Text,
    batches,
    key_target,
    milliseconds,
    quoted,
    range_target,
    session_target,
    to_bytes,
    to_whole,
)
from conure.client.watches import Watch
from conure.clienttls import ClientTls
from conure.errors import BadRequest, KeyNotFound, PayloadTooLarge

__all__ = ["DEFAULT_TIMEOUT", "DEFAULT_TTL", "Client"]

DEFAULT_TIMEOUT = 5.0
"""Seconds for a call with all its retries."""

DEFAULT_TTL = 15.0
"""Seconds that a session or lock outlives its holder."""

_PART_KEYS = 10_000  # of a deletion in parts; a server may make them smaller


class Client(Closing):
    """A connection to a cluster. *timeout*, in seconds, bounds each call with all its retries.

    *servers* are base URLs. Keys and values are bytes, or text that is sent as UTF-8. With
    *exactly_once* plain puts and deletes are repeated safely, too, at a price that the head of
    this package tells. Every method may be called from any thread and raises a
    :class:`~conure.errors.ConureError`: ``Unavailable`` if nobody could answer in time (and nothing
    was changed), ``OutcomeUnknown`` for a write that may or may not have happened, or what the
    server said. *timeout* has to be shorter than the servers' ``idempotency_window``.

    Servers of https have to prove who they are: by a CA of the file *ca*, or one of the system's,
    and by the name in their URL, or by *tls_name*. *cert* and *key* are files with what this client
    proves itself by where it is asked to; *key* may be in the file *cert*. What is renewed in these
    files is used from the next connection on. ``Untrusted`` is the Unavailable of certificates, and
    is raised without a second attempt.

    Raises ConfigError for a server that is no base URL, and for a file that can't be used.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        exactly_once: bool = False,
        ca: str = "",
        cert: str = "",
        key: str = "",
        tls_name: str = "",
    ) -> None:
        named = [servers] if isinstance(servers, str) else list(servers)
        tls = partial(ClientTls, ca, cert, key, name=tls_name)
        self._calls = Calls(named, timeout, exactly_once=exactly_once, tls=tls)
        if ca or cert or key:  # a file that can't be used is told of at once
            self._calls.trust()
        self._lock = threading.Lock()  # guards the watches
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    @property
    def leader(self) -> str:
        """The base URL of the server that is asked first for what only a leader does."""
        return self._calls.leader

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
        plain = target = key_target(key)
        if ttl is not None:
            target += f"&ttl={milliseconds(ttl)}"
        if keep_ttl:
            target += "&keepttl=true"
        if if_revision is not None:
            target += f"&cas={to_whole(if_revision, 'if_revision')}"
        if acquire is not None:
            target += "&acquire=" + quoted(acquire, "acquire")
        if release is not None:
            target += "&release=" + quoted(release, "release")
        body = to_bytes(value, "value")
        return self._calls.write("PUT", target, body, is_plain=target == plain).revision

    def get(self, key: Text, stale: bool = False, max_stale: float | None = None) -> bytes | None:
        """Return the value of *key*, or None.

        The read is linearizable; with *stale* it is what the server that is asked knows, which
        may be old, but needs neither a leader nor a quorum. *max_stale* goes with *stale*: only
        servers that heard the leader within so many seconds may answer.
        """
        target = key_target(key) + "&stale=true" * stale
        if max_stale is not None:
            target += f"&max_stale={milliseconds(max_stale, 'max_stale')}"
        request = Request("GET", target, is_read=True, any_server=stale)
        try:
            return self._calls.call(request).body
        except KeyNotFound:
            return None

    def record(self, key: Text) -> Record | None:
        """Return *key*'s value with its revisions, time to live and holder, or None."""
        try:
            return to_record(
                self._calls.read_object(key_target(key) + "&meta=true", any_server=False)
            )
        except KeyNotFound:
            return None

    def delete(self, key: Text, *, if_revision: int | None = None) -> int:
        """Remove *key*, whether it exists or not, and return the revision of that.

        *if_revision* is that of ``put``.
        """
        target = key_target(key)
        if if_revision is not None:
            target += f"&cas={to_whole(if_revision, 'if_revision')}"
        return self._calls.write("DELETE", target, is_plain=if_revision is None).revision

    def increment(self, key: Text, by: int = 1, *, ttl: float | None = None) -> int:
        """Add to the decimal number under *key*, 0 if there is none, and return the sum.

        A key that isn't there expires *ttl* seconds after this, or never; one that is keeps its
        time. Raises Conflict if the value is no number of 64 bits, or the sum would not be.
        """
        target = f"{key_target(key, '/kv/incr')}&by={to_whole(by, 'by')}"
        if ttl is not None:
            target += f"&ttl={milliseconds(ttl)}"
        answer = self._calls.write("POST", target)
        with understanding:
            return int(answer.body)

    def touch(self, key: Text, ttl: float) -> bool:
        """Let *key* expire in *ttl* seconds, 0: never; False if it doesn't exist."""
        try:
            self._calls.write("POST", f"{key_target(key, '/kv/touch')}&ttl={milliseconds(ttl)}")
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
        target = range_target("/kv", prefix, start, end)
        if limit is not None:
            target += f"&limit={to_whole(limit, 'limit')}"
        target += "&reverse=true" * reverse + "&keys=true" * keys_only
        headers = {"Accept": "application/x-ndjson"}
        request = Request("GET", target, is_read=True, headers=headers, is_stream=True)
        return Items(self._calls, self._calls.call(request))

    def count(self, prefix: Text = "") -> int:
        """Return how many keys begin with *prefix*."""
        shown = self._calls.read_object(range_target("/kv/count", prefix), any_server=False)
        with understanding:
            return int(shown["count"])

    def delete_prefix(self, prefix: Text) -> int:
        """Remove all keys that begin with *prefix*, and return how many.

        It is one change, at one revision, unless there are more keys than the servers delete at
        once (5,000, or ``max_range_items`` if that is less). Then they go in parts, each of them
        one change, until there are none; when this raises, those of the parts before are gone.
        """
        target = f"/kv?prefix={quoted(prefix, 'prefix')}"  # None would be all there are
        with contextlib.suppress(PayloadTooLarge):
            answer = self._calls.write("DELETE", target)
            with understanding:
                return int(to_object(answer.body)["deleted"])
        deleted = 0
        while True:
            shown = to_object(self._calls.write("DELETE", f"{target}&limit={_PART_KEYS}").body)
            with understanding:
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
        with understanding:
            results = [to_result(each) for each in shown["results"]]
            return TxnResult(bool(shown["succeeded"]), int(shown["revision"]), results)

    def transact(self, transaction: Mapping[str, Any]) -> Json:
        """Carry out a transaction that is JSON already, as ``POST /txn`` takes and answers it."""
        return to_object(self._calls.write("POST", "/txn", json.dumps(transaction).encode()).body)

    def load(
        self,
        records: Iterable[tuple[Text, Text | None] | tuple[Text, Text | None, float | None]],
    ) -> int:
        """Store many records and return how many: pairs of key and value, or with a *ttl* third.

        A value None deletes its key. They are written in order, in batches of up to 500, each of
        them whole or not at all. When one fails, those before it are written.
        """
        written = 0
        for count, body in batches(records):
            self._calls.write("POST", "/kv/batch", body)
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
        target = key_target(key, "/watch") if key is not None else range_target("/watch", prefix)
        if start_revision:
            target += f"&from={to_whole(start_revision, 'start_revision')}"
        if prev:
            target += "&prev=true"
        watch = Watch(self._calls, target)
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
        request = Request("GET", "/backup", is_read=True, any_server=True, is_stream=True)
        answer = self._calls.call(request)
        tell = progress or _tell_nobody
        if isinstance(file, str | os.PathLike):
            backups.save_as(answer.stream, os.path.abspath(file), tell)
        else:
            backups.save(answer.stream, file, tell)
        return answer.revision

    # -- sessions and locks ------------------------------------------------------------------------

    def session(
        self, ttl: float = DEFAULT_TTL, *, name: str = "", behavior: str = "release"
    ) -> Session:
        """Begin a session that is renewed until it is closed, or lost.

        It ends *ttl* seconds after its last renewal. What it holds at its end is let go, or with
        *behavior* ``delete`` removed.
        """
        return Session(self._calls, ttl, name, behavior)

    def lock(self, name: Text, ttl: float = DEFAULT_TTL, timeout: float | None = None) -> Lock:
        """Return a lock: ``with client.lock("jobs/1") as token:`` waits for it and holds it.

        *token* grows from holder to holder: let what the lock protects refuse what comes with a
        smaller one. *name* is a key that nobody uses for anything else; it exists as long as the
        lock is held, with the holder's machine and process as its value. If the holder vanishes,
        the lock is free *ttl* seconds later. *timeout*, in seconds, bounds the wait.
        """
        return Lock(self._calls, to_bytes(name, "name"), ttl, timeout)

    def open_session(self, ttl: float, *, name: str = "", behavior: str = "release") -> str:
        """Begin a session that the caller renews, and return its ID."""
        return locks.open_session(self._calls, ttl, name=name, behavior=behavior)

    def renew_session(self, session: str, timeout: float | None = None) -> None:
        """Let a session's time begin anew. Raises NotFound if it has ended.

        *timeout* in place of the client's, if it is shorter.
        """
        locks.renew_session(self._calls, session, timeout)

    def session_info(self, session: str) -> Json:
        """Return what is known of a session. Raises NotFound if it has ended."""
        return self._calls.read_object(session_target(session), any_server=False)

    def end_session(self, session: str) -> None:
        """End a session. Raises NotFound if it has ended."""
        locks.end_session(self._calls, session)

    # -- the cluster -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the first server that answers says of itself (``GET /status``)."""
        return self._calls.read_object("/status")

    def raft_config(self) -> dict[str, Any]:
        """Return the members of the cluster (``GET /raft/config``)."""
        return self._calls.read_object("/raft/config")

    def raft_stats(self) -> dict[str, Any]:
        """Return the state of consensus at the first server that answers (``GET /raft/stats``)."""
        return self._calls.read_object("/raft/stats")

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
        self._calls.call(Request("POST", "/join", json.dumps(facts).encode()))

    def remove(self, node_id: str, *, force: bool = False) -> None:
        """End a node's membership. Raises MemberNotFound for an ID nobody has.

        Raises Conflict if too few of the voters that would be left answer at this moment; *force*
        insists.
        """
        facts: dict[str, Any] = {"ID": node_id}
        if force:
            facts["Force"] = True
        self._calls.call(Request("POST", "/remove", json.dumps(facts).encode()))

    def hand_over(self, node_id: str = "") -> None:
        """Let another voter lead: the one named, or whoever is most up to date."""
        facts = {"ID": node_id} if node_id else {}
        self._calls.call(Request("POST", "/leader", json.dumps(facts).encode()))

    def close(self) -> None:
        """End the watches, and close the connections that rest.

        Those in use are closed when their call ends.
        """
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        self._calls.close()


def _tell_nobody(_: int) -> None:
    pass
