"""The replicated state machine: commands in log order in, records out.

Every node applies the same entries in the same order and so holds the same records, byte for
byte (R7). Nothing here reads a clock, draws a random number or depends on the order of a
dictionary; what a command needs to know of its time or origin stands in the command.

1. ``apply`` takes each index once and in order. The applied index is stored with the data in
   one checkpoint, so that a restart applies exactly the entries behind it again.
2. ``apply`` changes memory only. The log is the write-ahead log; a :class:`Checkpoint` brings
   the engine's state to disk beside further writes, and lets the log be cut up to its index.
3. A command this version does not know ends the node (CorruptionError, or VersionTooNew where a
   later release reads it): skipping it would make replicas differ. The newest version of all that
   was applied is part of the state, so that who can't read it is known however the log was cut.
4. The *digest* is a CRC-32 that runs over all commands and what each of them did. It is stored
   with every checkpoint and snapshot, so two nodes that have applied the same index and tell
   different digests hold different records, and R7 is broken on one of them.
5. A transaction is judged as a whole by the state before it, then done (commands.py): it happens
   or is refused, never by half.
6. Nothing expires by itself. What is due is there until an operation ends it (commands.Expire),
   whose time is that of the state's own ``clock``; this never goes back, whatever the times of
   transactions do. So what was once seen expired stays so.
7. Each record with an expiry has exactly one entry in an index by expiry, and no entry is there
   without its record. Whatever is due is found without looking at anything else.
8. A session holds a key by two entries, ``l`` and ``h``, that come and go together; both end with
   the session. The key's record knows nothing of it: anybody may change that.
9. A transaction that asks for much takes several turns. In between everybody is shown the state
   before it, which is the present one until it writes and pinned from then on (lengthy.py), nothing
   else is applied, and no checkpoint begins: it is seen whole or not at all.

The first byte of a key in the engine tells what the record is. Numbers have 8 bytes, big-endian:

========================== =====================================================================
``c``                      clock in milliseconds, number of records with prefixes but ``k``, ``c``
``e`` expiry key           nothing: the user's *key* expires then
``h`` n session key        nothing: the *session*, of n bytes (n has 1 byte), holds the user's key
``i`` key                  length of the fingerprint (1 byte), fingerprint, encoded outcome of the
                           transaction with this idempotency key
``j`` expiry key           nothing: the outcome under this idempotency key is forgotten then
``k`` key                  a user's record
``l`` key                  fencing token, session that holds the user's key
``s`` session              ttl in milliseconds, 1 if it deletes what it holds else 0 (1 byte), name
``t`` expiry session       nothing: the session ends then
``v``                      the newest format version of all commands (1 byte), once that isn't 1
========================== =====================================================================

When a record of ``i``, ``k`` or ``s`` expires stands in the record itself (engine.Record).

Everything on :class:`Store` belongs to whoever holds the node's lock. What a :class:`Checkpoint`
offers is the checkpoint thread's, and a :class:`PinnedState` that of the thread that sends it;
both call it without that lock.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import merge
from itertools import chain, islice, repeat, takewhile
from math import inf
from struct import Struct
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast
from zlib import crc32

from conure import errors
from conure.commands import (
    MAX_KEY_BYTES,
    READ_BYTES,
    Acquire,
    Compare,
    Delete,
    DeleteRange,
    EndSession,
    EventKind,
    Expire,
    Get,
    Increment,
    Item,
    OpenSession,
    Operation,
    Outcome,
    Put,
    Range,
    Refusal,
    Relation,
    Release,
    RenewSession,
    Result,
    Target,
    Touch,
    Transaction,
    prefix_end,
)
from conure.consensus.messages import COMMAND, CONFIG, Entry, SnapshotMeta
from conure.errors import CorruptionError, ProtocolViolation, VersionTooNew
from conure.state import codec
from conure.state.dueindex import DueIndex
from conure.state.holdings import Holdings
from conure.state.lengthy import Before, UnderWay
from conure.state.stepping import LAST_TIME, PIECE, Heading, carry_out
from conure.steps import REWRITTEN, WRITTEN
from conure.storage.engine import Checkpoint as EngineCheckpoint
from conure.storage.engine import (
    EngineStats,
    Reader,
    Record,
    StorageEngine,
)

__all__ = [
    "LAST_TIME",
    "MARK_EVERY",
    "Census",
    "Change",
    "Checkpoint",
    "Holder",
    "Inspection",
    "PinnedState",
    "Session",
    "Store",
]

MARK_EVERY = 1024
"""The digest is remembered at each index that is a multiple of this."""

_MARKS = 64  # how many of these are kept
_COUNT_STEP = 4096  # keys counted at a time
_APPLIED_AT_ONCE = 256  # plain writes, in a millisecond or two
_NOTED_AT_ONCE = 512  # events of an entry that takes turns
_WRITTEN_AT_ONCE = 16  # records, in some tenths of a millisecond
_BYTES_OF_RECORD = 16 << 10  # take as long to be written as one more record
_READ_AT_ONCE = 256  # records of a range
_READ_BYTES_AT_ONCE = 256 << 10
_KEYS_AT_ONCE = 1024
_CLOCK, _HELD, _ANSWER, _USER, _LOCK, _SESSION = b"c", b"h", b"i", b"k", b"l", b"s"
_VERSION = b"v"
_BEHIND_USERS = b"l"
_EXPIRING_KEYS, _FORGETTING, _ENDING_SESSIONS = _INDEXES = b"e", b"j", b"t"
_INDEX_OF = {_USER: _EXPIRING_KEYS, _ANSWER: _FORGETTING, _SESSION: _ENDING_SESSIONS}
_OWN_KINDS = (_CLOCK, _HELD, _ANSWER, _LOCK, _SESSION, _VERSION, *_INDEXES)
_NEVER = 1 << 63
_LOOK_SECONDS = 0.004  # for which a tick looks for the first entry of an index
_MOST_PAUSES = 10  # of 2,000 deleted keys each, in what is deleted at a time
_NUMBER_BITS = 62  # of a revision or a version: what no state gets beyond
_STATE = Struct(">QQ")
_SESSION_HEAD = Struct(">Q?")
_NUMBER = re.compile(rb"-?[0-9]{1,19}")
_LONGEST_NUMBER = 20  # bytes
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_RELATIONS = (operator.eq, operator.ne, operator.lt, operator.gt)  # by commands.Relation
_NO_OUTCOMES: Mapping[int, Outcome] = MappingProxyType({})
_behind_kind = operator.itemgetter(slice(1, None))  # time and name of what expires
_is_no_pause: Callable[[object], bool] = partial(operator.is_not, None)

_T = TypeVar("_T")
_Turns: TypeAlias = Generator[None, None, _T]
_Sealed: TypeAlias = tuple[Outcome, int]  # and the CRC of its bytes

Change: TypeAlias = (
    tuple[int, int, bytes, bytes, int] | tuple[int, int, bytes, bytes, int, bytes | None]
)
"""The fields of a commands.Event, in a plain tuple: there is one for every put. The sixth, if it is
there, is the value before, None if there was no key.

The kind is a plain number, too. The collector of garbage lets go of tuples of such things; of an
enumeration's it would look at every one again and again, and that takes 0.1 s with a full window.
"""


class Session(NamedTuple):
    """A session: it ends *ttl* milliseconds after its last renewal, which is at *expiry*."""

    id: bytes
    ttl: int
    deletes: bool
    name: bytes
    expiry: int


class Holder(NamedTuple):
    """The session that holds a key, and the fencing token it got: the revision of that."""

    session: bytes
    token: int


class Census(NamedTuple):
    """How many records of which kind a state has; together they are all of the engine's.

    *records* are the users'. *bookkeeping* are the entries by which the state machine finds what
    expires and what a session holds, and its clock.
    """

    records: int
    sessions: int
    locks: int
    outcomes: int
    bookkeeping: int

    @classmethod
    def of(cls, counts: Mapping[bytes, int]) -> Census:
        """Sort the numbers of records by the first byte of their keys."""
        users, sessions, locks, outcomes = [
            counts.get(kind, 0) for kind in (_USER, _SESSION, _LOCK, _ANSWER)
        ]
        others = sum(counts.values()) - users - sessions - locks - outcomes
        return cls(users, sessions, locks, outcomes, others)

    def describe_own(self) -> str:
        """Say what there is besides users' records, "" if there is nothing."""
        shown = zip(self._fields[1:], self[1:], strict=True)
        return ", ".join(f"{count:,} {_named(name, count)}" for name, count in shown if count)


@dataclass(frozen=True, slots=True)
class PinnedState:
    """The state as of one index, to be read while writes go on. Close it when done.

    One thread at a time; none needs the node's lock.
    """

    meta: SnapshotMeta
    digest: int
    reader: Reader

    @property
    def index(self) -> int:
        """The last entry that it covers, and so its newest revision."""
        return self.meta.index

    def close(self) -> None:
        """Let go of the state; what is read of it from then on is a StorageError."""
        self.reader.close()

    def get(self, key: bytes) -> Record | None:
        """Return the record of a user's key, or None."""
        return self.reader.get(_USER + key)

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over users' keys and records, start <= key < end, in the order of the keys."""
        for key, record in self.reader.items(*_bounds(start, end), reverse=reverse):
            yield key[1:], record

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over users' keys, start <= key < end, in their order; reads no values."""
        for key in self.reader.keys(*_bounds(start, end), reverse=reverse):
            yield key[1:]

    def items_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate like :meth:`items`, with None in between where that takes a while."""
        for row in self.reader.items_in_turns(*_bounds(start, end), reverse=reverse):
            yield None if row is None else (row[0][1:], row[1])

    def keys_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate like :meth:`keys`, likewise."""
        for key in self.reader.keys_in_turns(*_bounds(start, end), reverse=reverse):
            yield None if key is None else key[1:]

    def key_after(self, count: int, start: bytes = b"", end: bytes | None = None) -> bytes | None:
        """Return the users' key after the first *count* of a range, or after fewer, one at least,
        where going through them takes long; None if there are no more."""
        found = pauses = 0
        for key in self.reader.keys_in_turns(*_bounds(start, end)):
            if key is None:
                pauses += found > 0
            elif found == count or pauses >= _MOST_PAUSES:
                return key[1:]
            else:
                found += 1
        return None

    def count(self, start: bytes = b"", end: bytes | None = None) -> Iterator[int]:
        """Count users' keys, start <= key < end: yield how many there are so far, then more.

        Each step takes a millisecond or two; the last number is the answer.
        """
        keys = chain(self.reader.keys_in_turns(*_bounds(start, end)), (b"",))  # which is no key
        total = 0
        while True:
            step = list(takewhile(_is_no_pause, islice(keys, _COUNT_STEP)))
            if step[-1:] == [b""]:
                yield total + len(step) - 1
                return
            total += len(step)
            yield total


class Inspection:
    """Looks at the records of a state that another node sends, in the order of their keys.

    What no state machine makes is refused before it can become this node's state, where it would
    end the node, and again at each start. *speaks* is the newest version that this node reads.
    """

    def __init__(self, speaks: int) -> None:
        self._speaks = speaks
        # Sums of hashes that nobody outside can foresee: of what the indexes have to hold, less
        # what they do hold (7, 8).
        self._expiring = 0
        self._locks = 0
        self._own = self._counted = 0  # the state's own records: said to be there, and seen

    def look(self, rows: Sequence[tuple[bytes, bytes, int, int, int, int]]) -> None:
        """Look at records: key, value, create revision, mod revision, version and expiry each.

        Raises ProtocolViolation, and VersionTooNew for a state that a later release made.
        """
        for key, value, create, mod, version, expiry in rows:
            if not 0 < create <= mod or not version or (mod | version) >> _NUMBER_BITS:
                raise ProtocolViolation(f"a record of impossible revisions {create} and {mod}")
            if key[:1] != _USER:
                self._look_at_own(key, value)
            elif not 1 < len(key) <= 1 + MAX_KEY_BYTES:
                raise ProtocolViolation(f"a record with a key of {len(key) - 1} bytes")
            if expiry:
                index = _INDEX_OF.get(key[:1])
                if index is None or expiry > LAST_TIME:
                    raise ProtocolViolation(f"a record that can't expire at {expiry}")
                self._expiring += hash(index + expiry.to_bytes(8, "big") + key[1:])

    def finish(self) -> None:
        """Say whether what was seen is a whole state. Raises ProtocolViolation."""
        if self._expiring or self._locks:
            raise ProtocolViolation("a state whose records and indexes contradict each other")
        if self._own != self._counted:
            raise ProtocolViolation(
                f"a state that counts {self._own} records of its own and has {self._counted}"
            )

    def _look_at_own(self, key: bytes, value: bytes) -> None:
        kind = key[:1]
        size = len(value)
        self._counted += kind != _CLOCK
        if kind in _INDEXES:
            is_sound = len(key) >= 9 and not size
            self._expiring -= hash(key)
        elif kind == _HELD:
            is_sound = len(key) >= 2 and len(key) - 2 >= key[1] and not size
            self._locks -= hash(key)
        elif kind == _LOCK:
            is_name = 1 < len(key) <= 1 + MAX_KEY_BYTES
            is_token = not int.from_bytes(value[:8], "big") >> _NUMBER_BITS
            is_sound = is_name and is_token and 8 <= size <= 8 + 255
            self._locks += hash(_held(value[8:]) + key[1:]) if is_sound else 0
        elif kind == _ANSWER:
            is_name = 1 < len(key) <= 1 + 255
            is_sound = is_name and size > 0 and _is_outcome(value[1 + value[0] :])
        elif kind == _SESSION:
            is_sound = len(key) <= 1 + 255 and size >= _SESSION_HEAD.size
        elif key == _VERSION:
            is_sound = size == 1 and value[0] > 1
            if is_sound and value[0] > self._speaks:
                raise VersionTooNew("the state", value[0], self._speaks)
        else:
            is_sound = key == _CLOCK and size == _STATE.size
            clock, self._own = _STATE.unpack(value) if is_sound else (0, 0)
            is_sound &= clock <= LAST_TIME
        if not is_sound:
            raise ProtocolViolation(f"a record {key[:20]!r} that no state holds")


class Checkpoint:
    """A consistent state on its way to disk, begun by :meth:`Store.begin_checkpoint`."""

    def __init__(self, checkpoint: EngineCheckpoint, meta: SnapshotMeta) -> None:
        self._checkpoint = checkpoint
        self.meta = meta

    def step(self, seconds: float) -> bool:
        """Write for about *seconds*; tell whether all is written."""
        return self._checkpoint.step(seconds)

    def finish(self) -> None:
        """Make the state durable; the log may be cut at :attr:`meta` after it (S2)."""
        self._checkpoint.finish()

    def abort(self) -> None:
        """Give up, after DiskFull: nothing on disk has changed, the next checkpoint does it."""
        self._checkpoint.abort()


class _Shown(Protocol):
    """What the records that users are shown are read from."""

    def get(self, key: bytes) -> Record | None: ...

    def heading(self, key: bytes) -> tuple[Record, int] | None: ...


class Store:
    """The state machine over a storage engine, which nobody else writes to.

    *configuration* is the encoded membership as of the engine's applied index, kept here because
    it changes with the same entries that change the data. ``digest`` and ``clock``, in
    milliseconds since the Unix epoch, are as of the applied index. *keeps_events* says whether
    changes are noted down for :meth:`take_events`, and :meth:`keep_previous` whether the values
    before are, too. Neither changes the state.

    *speaks* is the newest version that this node reads. Raises VersionTooNew for a state that
    needs more.
    """

    engine: StorageEngine
    applied_index: int
    applied_term: int
    digest: int
    clock: int
    configuration: bytes
    _events: list[Change]
    _outcomes: dict[int, Outcome] | None  # of the entries that are being applied
    _saved: bytes  # the record of the clock, b"" before there is one
    _own: int  # records of sessions, locks and outcomes: all but users' and the clock's
    _dues: DueIndex  # what expires next
    _holdings: Holdings  # how many keys sessions hold
    _newest: bytes  # the newest version of a command that was applied, as its first byte
    _room: int  # bytes that the present transaction may still read
    _previous_room: int  # bytes of values before that its events may still have
    _shown: _Shown  # the engine, or the state before an entry that is under way
    _before_it: Before | None  # that state
    _under_way: UnderWay | None  # such an entry, between two turns
    _may_rest: bool  # whether the present entry has written nothing yet, or what was is shown
    _noted: list[Change]  # its events so far

    def __init__(
        self,
        engine: StorageEngine,
        configuration: bytes,
        speaks: int = codec.SPEAKS,
        *,
        keeps_events: bool = False,
    ) -> None:
        self._keeps_events = keeps_events
        self._keeps_previous = False
        self._speaks = speaks
        self._marks: dict[int, int] = {}
        self._become(engine, configuration)

    def apply(
        self, entries: Sequence[Entry], is_over: Callable[[], bool] = lambda: False
    ) -> Mapping[int, Outcome]:
        """Apply committed entries, which follow the applied index, until *is_over* says so.

        It is asked after each transaction, after some hundred plain writes and, some tenths of a
        millisecond apart, amid what takes long (9); ``applied_index`` tells how far this got, which
        may be nowhere: the next call, with the same entry first, goes on amid that. Where it stops
        makes no difference to the state. Returns how the transactions that are done ended, by their
        indexes.

        Raises CorruptionError for a command that can't be read, VersionTooNew for one that a
        later release reads, and what the engine raises; the node ends then, since it can neither
        skip the entry nor go on without it.
        """
        assert entries[0].index == self.applied_index + 1
        self._outcomes = None
        start = 0
        while start < len(entries):
            first = entries[start].index
            # The digest has to be remembered at each mark.
            stop = start + min(_APPLIED_AT_ONCE, -first % MARK_EVERY + 1)
            last = self._apply(entries[start:stop], is_over)
            if last is None:
                break
            start += last.index - first + 1
            self.applied_index, self.applied_term = last.index, last.term
            if last.index % MARK_EVERY == 0:
                self._marks[last.index] = self.digest
                self._marks.pop(last.index - _MARKS * MARK_EVERY, None)
            if self.is_amid or is_over():
                break
        return self._outcomes or _NO_OUTCOMES

    @property
    def is_amid(self) -> bool:
        """Whether the entry behind the applied index is half done (9), or failed amid it: no
        checkpoint may begin."""
        return self._under_way is not None or self._before_it is not None

    def keep_previous(self, keeps_previous: bool) -> None:
        """Say whether events have the values before, too: of the changes of one entry up to
        READ_BYTES of them."""
        self._keeps_previous = keeps_previous

    def take_events(self) -> list[Change]:
        """Return what :meth:`apply` has changed since the last call, in the order of the log.

        Nothing unless *keeps_events*, and nothing of an installed state.
        """
        events, self._events = self._events, []
        return events

    @property
    def meta(self) -> SnapshotMeta:
        """What the state covers: the applied index, its term, the members as of it."""
        return SnapshotMeta(self.applied_index, self.applied_term, self.configuration)

    def skip_to(self, meta: SnapshotMeta) -> None:
        """Pass over all that a snapshot covers, as an arbiter does, which keeps no records."""
        self.applied_index, self.applied_term = meta.index, meta.term
        self.configuration = meta.configuration

    def skip(self, entries: Sequence[Entry]) -> None:
        """Pass over committed entries, as an arbiter does: it keeps who the members are."""
        for entry in entries:
            if entry.kind == CONFIG:
                self.configuration = entry.data
        self.applied_index = entries[-1].index
        self.applied_term = entries[-1].term

    def get(self, key: bytes) -> Record | None:
        """Return the record of a user key as of the applied index, or None."""
        return self._shown.get(_USER + key)

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the record of a user key without its value, and the length of that."""
        return self._shown.heading(_USER + key)

    @property
    def records(self) -> int:
        """How many keys users have."""
        if self._before_it is not None:
            return self._before_it.records
        return len(self.engine) - self._own - bool(self._saved)

    def census(self) -> Census:
        """Count the records by kind; takes as long as it takes to read all but the users' keys."""
        own = {
            kind: sum(1 for _ in self.engine.keys(kind, prefix_end(kind))) for kind in _OWN_KINDS
        }
        return Census.of({**own, _USER: len(self.engine) - sum(own.values())})

    def next_due(self) -> int | None:
        """Return when the next record or session expires, in milliseconds since the Unix epoch.

        None if none ever does, or if it takes longer to find out: then it is to be asked again.
        Takes no time, that of three reads if something was changed, or some milliseconds.
        """
        time = self._dues.first_time(_LOOK_SECONDS)
        return time or None

    @property
    def version(self) -> int:
        """The newest format version of all commands that made this state."""
        return self._newest[0]

    def session(self, session_id: bytes) -> Session | None:
        """Return the session with an ID, or None."""
        return _session(session_id, self._shown.get(_SESSION + session_id))

    def holder(self, key: bytes) -> Holder | None:
        """Return who holds a user's key, whether or not that has a record; None if nobody."""
        return _holder(self._shown.get(_LOCK + key))

    def holdings(self, session_id: bytes, key: bytes) -> int | None:
        """Count the keys that a session holds; 0 if *key* is one of them, or there is no such
        session. None if it takes longer: then it is to be asked again. Takes some milliseconds at
        most."""
        held, heading = _held(session_id), self._shown.heading
        if heading(held + key) is not None or heading(_SESSION + session_id) is None:
            return 0
        return self._holdings.count(held)

    def has_counted(self, session_id: bytes, key: bytes) -> bool:
        """Tell whether :meth:`holdings` answers at once."""
        held, heading = _held(session_id), self._shown.heading
        if self._holdings.knows(held) or heading(held + key) is not None:
            return True
        return heading(_SESSION + session_id) is None

    def digest_at(self, index: int) -> int | None:
        """Return the digest as of an index: the applied one, or a recent multiple of MARK_EVERY.

        None if it isn't known: of any other index, of one before the last start or snapshot.
        """
        return self.digest if index == self.applied_index else self._marks.get(index)

    def last_mark(self) -> tuple[int, int]:
        """Return the newest multiple of MARK_EVERY whose digest is known, and the digest.

        (0, 0) if none was applied since the start or the last snapshot.
        """
        return next(reversed(self._marks.items()), (0, 0))

    @property
    def checkpointed_index(self) -> int:
        """The applied index of the last durable checkpoint. Any thread."""
        return self.engine.applied_index

    @property
    def unwritten_bytes(self) -> int:
        """About how much memory changes take that no checkpoint has written. Any thread."""
        return self.engine.unwritten_bytes

    def maintain(self, seconds: float) -> bool:
        """Let the engine do for about *seconds* what it has put off; tell whether there is more.

        Raises CorruptionError.
        """
        return self.engine.maintain(seconds)

    def compact(self, seconds: float) -> bool:
        """Let the engine merge for about *seconds*; tell whether to call again soon.

        Without the node's lock. Raises CorruptionError and DiskFailed.
        """
        return self.engine.compact(seconds)

    @property
    def pressure(self) -> float:
        """How far merging is behind the writes, 0.0 to 1.0. Any thread."""
        return self.engine.pressure

    def stats(self) -> EngineStats:
        """Return the engine's figures. Any thread."""
        return self.engine.stats()

    def close(self) -> None:
        """Close the engine; what no checkpoint has made durable is dropped."""
        self._show_all()
        self._close_looks()
        self.engine.close()

    def begin_checkpoint(self) -> Checkpoint:
        """Freeze the state as of the applied index; writes go on beside it."""
        assert not self.is_amid, "a checkpoint would have half of an entry"
        self._dues.let_go_of_old()
        self._holdings.let_go_of_old()
        meta = self.meta
        return Checkpoint(self.engine.begin_checkpoint(meta.index, meta.term, self.digest), meta)

    def snapshot(self) -> PinnedState:
        """Pin the state as of the applied index for another thread; takes constant time."""
        before = self._before_it
        reader = self.engine.snapshot() if before is None else before.share()
        return PinnedState(self.meta, self.digest, reader)

    def replace(self, engine: StorageEngine, meta: SnapshotMeta) -> None:
        """Go on with the state of an installed snapshot, and close the engine used so far.

        Who reads a pinned state of that one reads it to its end.
        """
        assert (engine.applied_index, engine.applied_term) == (meta.index, meta.term)
        self._show_all()
        self._close_looks()
        self.engine.close()
        self._become(engine, meta.configuration)

    # -- private ---------------------------------------------------------------------------------

    def _close_looks(self) -> None:
        """Let go of what was pinned to look for something by and by."""
        self._dues.close()
        self._holdings.close()

    def _become(self, engine: StorageEngine, configuration: bytes) -> None:
        self.engine = self._shown = engine
        self._before_it = self._under_way = None
        self.applied_index = engine.applied_index
        self.applied_term = engine.applied_term
        self.digest = engine.applied_digest
        self.configuration = configuration
        self._marks.clear()
        self._events = []
        state = engine.get(_CLOCK)
        self._saved = state.value if state else b""
        self.clock, self._own = _STATE.unpack(self._saved) if state else (0, 0)
        self._dues = DueIndex(engine, _INDEXES)
        self._holdings = Holdings(engine)
        self._noted = []
        self._may_rest = True
        record = engine.get(_VERSION)
        self._newest = record.value if record else b"\1"
        if self.version > self._speaks:
            raise VersionTooNew("the state", self.version, self._speaks)

    def _apply(  # noqa: C901 - every write comes through here, and calls cost time
        self, entries: Sequence[Entry], is_over: Callable[[], bool]
    ) -> Entry | None:
        """Apply entries, up to the first transaction after which, or amid which, *is_over*; return
        the last one that is done, if there is one."""
        put, delete, outdated = self.engine.put, self.engine.delete, self.engine.outdated
        decode, put_op, delete_op = codec.decode_command, codec.OP_PUT, codec.OP_DELETE
        was_put, was_deleted = EventKind.PUT.value, EventKind.DELETE.value
        note = self._events.append if self._keeps_events else None
        looks_back = self._looks_back and self._under_way is None
        before: tuple[()] | tuple[bytes | None] = ()
        digest, newest = self.digest, self._newest
        must_stop = False
        last = None
        for entry in entries:
            kind = entry.kind
            if kind == COMMAND:
                data = entry.data
                index = entry.index
                if data[:1] > newest:
                    newest = self._raise_version(data, index)
                try:
                    op, key, value = decode(data)
                    if looks_back:
                        before = self._before_entry(op, key)
                    if op == put_op:
                        done = put(_USER + key, value, index)
                        if note:  # a tuple that is put together of others takes longer
                            note(
                                (index, was_put, key, value, done, *before)
                                if before
                                else (index, was_put, key, value, done)
                            )
                    elif op == delete_op:
                        done = delete(_USER + key)
                        if note and done:
                            note((index, was_deleted, key, b"", 0, *before))
                    else:
                        answer = self._transact(op, data, index, is_over)
                        if answer is None:  # the rest takes turns (9)
                            break
                        done = answer
                        looks_back = self._looks_back
                        must_stop = is_over()
                except errors.WireError as error:
                    raise CorruptionError("raft log", index, str(error)) from error
                digest = crc32(data, digest ^ done)
                if outdated:
                    self._tidy()
                    self._save(index)
                if must_stop:
                    last = entry
                    break
            elif kind == CONFIG:
                self.configuration = entry.data
            last = entry
        self.digest = digest
        return last

    def _raise_version(self, data: bytes, index: int) -> bytes:
        """Take note that the state depends on a command of a newer format from now on."""
        newest = data[:1]
        if newest[0] > self._speaks:
            raise VersionTooNew(f"entry {index} of the log", newest[0], self._speaks)
        if codec.is_lengthy(data):  # that, too, belongs to the entry
            self._show_before()
        self._set(_VERSION, newest, index)
        self._save(index)
        self._newest = newest
        return newest

    # -- private: transactions -------------------------------------------------------------------

    def _transact(
        self, op: int, data: bytes, revision: int, is_over: Callable[[], bool]
    ) -> int | None:
        """Carry a transaction out, keep its outcome for the caller, and return the CRC of that.

        None if *is_over* amid one that takes turns (9): the next call goes on with it.
        """
        under_way = self._under_way  # it is until its end: who asks whether this is over may look
        if under_way is not None:
            assert under_way.revision == revision
            rest = under_way.rest
        elif op == codec.OP_TRANSACTION:
            self._may_rest = True
            rest = self._decide(codec.decode_transaction(data), revision)
        elif not self._looks_back and (writes := codec.decode_writes(data)) is not None:
            outcome = self._set_all(writes, revision)
            return self._conclude(outcome, crc32(codec.encode_outcome(outcome)), revision)
        else:
            self._may_rest = codec.is_lengthy(data)
            if self._may_rest:
                self._show_before()
            rest = self._carry_out(codec.Opened(data), revision)
        try:
            while True:
                next(rest)
                if self._may_rest and is_over():
                    self._under_way = UnderWay(revision, rest)
                    return None
        except StopIteration as ended:
            self._under_way = None
            outcome, crc = ended.value
            return self._conclude(outcome, crc, revision)

    def _conclude(self, outcome: Outcome, crc: int, revision: int) -> int:
        self._save(revision)
        self._show_all()
        if self._noted:
            self._events += self._noted
            self._noted = []
        if self._outcomes is None:
            self._outcomes = {}
        self._outcomes[revision] = outcome
        return crc

    def _show_before(self) -> None:
        """From now on, show the state as it is, whatever an entry does to it (9)."""
        if self._before_it is None:
            self._before_it = before = Before(self.engine.snapshot(), self.records)
            self._shown = before.hold
            self._may_rest = True

    def _begin_writing(self, weight: float) -> None:
        """Take note that the present entry writes from now on, so many records or what takes as
        long; if that is much, show the state before it."""
        if weight > _WRITTEN_AT_ONCE:
            assert self._may_rest, "what it has written already would be shown"
            self._show_before()
        elif self._before_it is None:
            self._may_rest = False

    def _show_all(self) -> None:
        """Show what there is, again: an entry is done, or nobody goes on with it."""
        if self._before_it is not None:
            self._before_it.end()
            self._before_it = None
            self._shown = self.engine

    def _begin(self, transaction: Transaction | codec.Opened, revision: int) -> Outcome | None:
        """Set the clock, and return the outcome of a transaction that was carried out before."""
        self.clock = self._later(transaction.time)
        key = transaction.idempotency_key
        known = self.engine.get(_ANSWER + key) if key else None
        return _repeated(known.value, transaction.fingerprint, revision) if known else None

    def _seal(
        self, transaction: Transaction | codec.Opened, outcome: Outcome, revision: int
    ) -> _Turns[_Sealed]:
        """Keep the outcome of a transaction with an idempotency key; return it with its CRC."""
        key, fingerprint = transaction.idempotency_key, transaction.fingerprint
        parts = [bytes((len(fingerprint),)), fingerprint]
        crc = 0
        for number, part in enumerate(codec.outcome_in_parts(outcome)):
            if number:
                yield
            crc = crc32(part, crc)
            if key:
                parts.append(part)
        if key:
            self._begin_writing(1)
            self._set(_ANSWER + key, b"".join(parts), revision, self._after(transaction.window))
        return outcome, crc

    def _carry_out(self, opened: codec.Opened, revision: int) -> _Turns[_Sealed]:
        """Do the steps of a sequential transaction one after the other (stepping.py), or none, and
        yield where something else may have its turn."""
        known = self._begin(opened, revision)
        if known is not None:
            return (yield from _with_crc(known))
        unmet: Compare | None = None
        for number, compare in enumerate(opened.compares()):
            if number and not number % PIECE:
                yield
            if unmet is None and not self._holds(compare):
                unmet = compare
        if unmet is None:
            self._previous_room = READ_BYTES
            records = _Users(self, revision)
            done, changed = yield from carry_out(
                records, opened.steps(), opened.longest, notes=self._keeps_events
            )
            note = self._noted.append
            for number, (kind, key, value, version, before) in enumerate(changed, 1):
                note((revision, kind, key, value, version, *before))
                if not number % _NOTED_AT_ONCE:
                    yield
            outcome = Outcome(revision, True, done=done, time=self.clock)
        else:
            opened.check_steps(MAX_KEY_BYTES)
            current = self._revision_of(unmet.key)
            outcome = Outcome(revision, False, current=current, time=self.clock)
        return (yield from self._seal(opened, outcome, revision))

    def _set_all(self, writes: codec.Writes, revision: int) -> Outcome:
        """Do a sequential transaction that sets keys, each of them once: the same as
        :meth:`_carry_out`, in one pass."""
        time, keys, values = writes
        self.clock = self._later(time)
        put = self.engine.put
        versions = [
            put(_USER + key, value, revision) for key, value in zip(keys, values, strict=True)
        ]
        if self.engine.outdated:
            self._tidy()
        if self._keeps_events:
            kinds = repeat(EventKind.PUT.value)
            self._events += zip(repeat(revision), kinds, keys, values, versions)
        done = tuple([WRITTEN if version == 1 else REWRITTEN for version in versions])
        return Outcome(revision, True, done=done, time=self.clock)

    def _revision_of(self, key: bytes) -> int:
        heading = self._heading(key)
        return heading[0].mod_revision if heading else 0

    def _size_of(self, key: bytes) -> int:
        """Return how many bytes the value of a user's key has, 0 without one."""
        heading = self._heading(key)
        return heading[1] if heading else 0

    def _heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the same as :meth:`heading`, as what is being applied has left it."""
        return self.engine.heading(_USER + key)

    def _decide(self, transaction: Transaction, revision: int) -> _Turns[_Sealed]:
        """Choose a branch and do it, or refuse all of it; yield where something else may have its
        turn."""
        known = self._begin(transaction, revision)
        if known is not None:
            return (yield from _with_crc(known))
        outcome = yield from self._judge_and_do(transaction, revision)
        return (yield from self._seal(transaction, outcome, revision))

    def _judge_and_do(self, transaction: Transaction, revision: int) -> _Turns[Outcome]:
        unmet: Compare | None = None
        for number, compare in enumerate(transaction.compares, 1):
            if not self._holds(compare):
                unmet = compare
                break
            if not number % PIECE:
                yield
        branch = transaction.success if unmet is None else transaction.failure
        gathered: list[bytes] | None = None  # the keys that the first operation removes
        for number, operation in enumerate(branch):
            if type(operation) is DeleteRange and operation.limit:
                keys = yield from self._keys_of(operation)
                refusal = _too_many(keys, operation)
                gathered = gathered if number else keys
            else:
                refusal = self._judge(operation)
            if refusal:
                refused_key = getattr(operation, "key", b"")  # a range and a session have none
                return Outcome(revision, False, (), refusal, refused_key)
            if number % PIECE == PIECE - 1:
                yield
        current = 0 if unmet is None else self._revision_of(unmet.key)
        results = yield from self._do(branch, gathered, revision)
        return Outcome(revision, unmet is None, results, current=current)

    def _do(
        self, branch: Sequence[Operation], gathered: list[bytes] | None, revision: int
    ) -> _Turns[tuple[Result, ...]]:
        """Do all operations; the first one removes what was *gathered*, if it was."""
        self._room = READ_BYTES
        self._previous_room = READ_BYTES
        weight = _weight_of(branch, self._size_of)
        if weight:
            self._begin_writing(weight)
        results: list[Result] = []
        for operation in branch:
            # One that an operation before it has made impossible does nothing: two of them wrote
            # the same, which whoever proposes transactions doesn't let happen.
            kind = type(operation)
            if results and (yield from self._is_refused(operation)):
                results.append(Result())
            elif kind is DeleteRange:
                if results or gathered is None:
                    gathered = yield from self._keys_of(
                        cast("DeleteRange", operation), judges=False
                    )
                results.append((yield from self._delete_all(gathered, revision)))
            elif kind in _LONG_STEPS:
                results.append((yield from _LONG_STEPS[kind](self, operation, revision)))
            else:
                results.append(_STEPS[kind](self, operation, revision))
            yield
        return tuple(results)

    def _is_refused(self, operation: Operation) -> _Turns[bool]:
        """Tell whether an operation can't be done in the present state."""
        if type(operation) is DeleteRange:
            if not operation.limit:
                return False
            keys = yield from self._keys_of(operation)
            return bool(_too_many(keys, operation))
        return bool(self._judge(operation))

    def _keys_of(self, operation: DeleteRange, *, judges: bool = True) -> _Turns[list[bytes]]:
        """Return the keys that an operation removes, or one more than it may if it only *judges*
        that."""
        most = _one_more(operation.limit) if judges else sys.maxsize
        bounds = _bounds(operation.start, operation.end)
        return (yield from _taken(self.engine.scan_keys(*bounds), most))

    def _holds(self, compare: Compare) -> bool:
        found: bytes | int = 0
        if compare.target is Target.VALUE:
            most = len(cast("bytes", compare.operand)) + 1  # bytes of it that decide
            value = self.engine.beginning(_USER + compare.key, most)
            if value is None:
                return compare.relation is Relation.NOT_EQUAL
            found = value
        elif (heading := self._heading(compare.key)) is not None:
            found = getattr(heading[0], _FIELDS[compare.target])
        return bool(_RELATIONS[compare.relation](found, compare.operand))

    def _judge(self, operation: Operation) -> Refusal:
        """Tell why an operation can't be done in the present state, if it can't; of a range
        :meth:`_keys_of` tells."""
        match operation:
            case Increment():
                return _sum(self._digits(operation.key), operation.by)[0]
            case Touch(key) if self._heading(key) is None:
                return Refusal.KEY_NOT_FOUND
            case RenewSession(session) | EndSession(session) | Acquire(_, session, _) if (
                self.engine.get(_SESSION + session) is None
            ):
                return Refusal.SESSION_NOT_FOUND
            case Acquire(key, session):
                holder = self._holder(key)
                if holder is not None and holder.session != session:
                    return Refusal.HELD_BY_ANOTHER
            case Release(key, session):
                holder = self._holder(key)
                if holder is None or holder.session != session:
                    return Refusal.NOT_THE_HOLDER
        return Refusal.NONE

    # -- private: operations, each of which can be done --------------------------------------------

    def _put(self, operation: Put, revision: int) -> Result:
        key, value, ttl, keep_ttl = operation
        expiry = self._after(ttl) if ttl else 0
        if keep_ttl:
            expiry = self._expiry(key)
        return Result(items=self._write(key, value, revision, expiry))

    def _delete(self, operation: Delete, revision: int) -> Result:
        return Result(int(self._remove(operation.key, revision, EventKind.DELETE)))

    def _delete_all(self, keys: list[bytes], revision: int) -> _Turns[Result]:
        self._begin_writing(len(keys))
        for number, key in enumerate(keys, 1):
            self._remove(key[1:], revision, EventKind.DELETE)
            if not number % _WRITTEN_AT_ONCE:
                yield
        return Result(len(keys))

    def _get(self, operation: Get, _: int) -> Result:
        key = operation.key
        if self._room <= 0:
            heading = self._heading(key)
            return Result(1, True, (Item(key, None, *heading[0][1:]),)) if heading else Result()
        record = self.engine.get(_USER + key)
        if record is None:
            return Result()
        self._room -= len(record.value)
        return Result(1, items=(Item(key, *record),))

    def _range(self, operation: Range, _: int) -> _Turns[Result]:
        start, end, limit, reverse, keys_only = operation
        items: list[Item] = []
        more = False
        rest_at, rest_below = _READ_AT_ONCE, self._room - _READ_BYTES_AT_ONCE
        for row in self._rows(*_bounds(start, end), reverse, keys_only):
            if row is None:
                yield
                continue
            more = len(items) == limit or self._room <= 0
            if more:
                break
            key, (record, size) = row
            items.append(Item(key[1:], None if keys_only else record.value, *record[1:]))
            # A value that is left out counts, too: every release does it like that (R7).
            self._room -= len(key) + size
            if len(items) == rest_at or self._room < rest_below:
                rest_at = len(items) + _READ_AT_ONCE
                rest_below = self._room - _READ_BYTES_AT_ONCE
                yield
        return Result(len(items), more, tuple(items))

    def _rows(
        self, start: bytes, end: bytes | None, reverse: bool, keys_only: bool
    ) -> Iterator[tuple[bytes, tuple[Record, int]] | None]:
        """Iterate over keys, records and the lengths of their values, which may be left out; None
        is a pause."""
        if keys_only:
            return self.engine.scan_headings(start, end, reverse=reverse)
        scan = self.engine.scan(start, end, reverse=reverse)
        return (row and (row[0], (row[1], len(row[1].value))) for row in scan)

    def _increment(self, operation: Increment, revision: int) -> Result:
        key, by = operation
        _, total = _sum(self._digits(key), by)
        items = self._write(key, b"%d" % total, revision, self._expiry(key))
        return Result(items=items, number=total)

    def _digits(self, key: bytes) -> bytes | None:
        """Return the value of a key as far as it takes to see whether it is a number."""
        return self.engine.beginning(_USER + key, _LONGEST_NUMBER + 1)

    def _expiry(self, key: bytes) -> int:
        heading = self._heading(key)
        return heading[0].expiry if heading else 0

    def _touch(self, operation: Touch, revision: int) -> Result:
        key, ttl = operation
        record = self._set_expiry(key, self._after(ttl) if ttl else 0, revision)
        return Result(1, items=(Item(key, None, *record[1:]),))

    def _set_expiry(self, key: bytes, expiry: int, revision: int) -> Record:
        record = self.engine.touch(_USER + key, expiry)
        assert record is not None
        self._put_in_index(_USER + key, expiry, revision)
        return record

    def _acquire(self, operation: Acquire, revision: int) -> Result:
        key, session, value = operation
        holder = self._holder(key)
        token = holder.token if holder else revision
        if holder is None:
            self._set(_LOCK + key, token.to_bytes(8, "big") + session, revision)
            self._set(_held(session) + key, b"", revision)
            self._holdings.add(_held(session), 1)
        if value is not None:
            return Result(items=self._write(key, value, revision, 0), number=token)
        heading = self._heading(key)
        items = (Item(key, None, *heading[0][1:]),) if heading else ()
        return Result(items=items, number=token)

    def _release(self, operation: Release, revision: int) -> Result:
        key, session, value = operation
        self._drop(_LOCK + key)
        self._drop(_held(session) + key)
        self._holdings.add(_held(session), -1)
        return Result(items=() if value is None else self._write(key, value, revision, 0))

    def _open_session(self, operation: OpenSession, revision: int) -> Result:
        session, ttl, deletes, name = operation
        value = _SESSION_HEAD.pack(ttl, deletes) + name
        self._set(_SESSION + session, value, revision, self._after(ttl))
        return Result()

    def _renew_session(self, operation: RenewSession, revision: int) -> Result:
        session = self._session(operation.session)
        return self._open_session(OpenSession(*session[:4]), revision)

    def _end_session(self, operation: EndSession, revision: int) -> _Turns[Result]:
        count = yield from self._end(operation.session, revision, EventKind.DELETE)
        return Result(count)

    def _expire(self, operation: Expire, revision: int) -> _Turns[Result]:
        until = (self.clock + 1).to_bytes(8, "big")
        most = _one_more(operation.limit)
        indexes = []
        for kind in _INDEXES:
            entries = self.engine.scan_keys(self._dues.front(kind), kind + until)
            indexes.append((yield from _taken(entries, most)))
            self._dues.note_first(kind, indexes[-1][0] if indexes[-1] else None, kind + until)
        due = [*islice(merge(*indexes, key=_behind_kind), most)]
        has_sessions = any(key[:1] == _ENDING_SESSIONS for key in due)
        self._begin_writing(inf if has_sessions else len(due))
        ended, left = 0, operation.limit
        for key in due:
            if left <= 0:
                break
            left -= 1
            index, name = key[:1], key[9:]
            if index == _EXPIRING_KEYS:
                self._remove(name, revision, EventKind.EXPIRE)
            elif index == _ENDING_SESSIONS:
                left -= yield from self._end(name, revision, EventKind.EXPIRE)
            else:
                self._drop(_ANSWER + name)
                self._tidy()
            ended += 1
            if not ended % _WRITTEN_AT_ONCE:
                yield
        return Result(ended, ended < len(due))

    def _end(self, session_id: bytes, revision: int, kind: EventKind) -> _Turns[int]:
        """End a session and return how many keys it has held; they go as *kind*, if at all."""
        session = self._session(session_id)
        held = _held(session_id)
        keys = yield from _taken(self.engine.scan_keys(held, prefix_end(held)), sys.maxsize)
        self._begin_writing(2 * len(keys))
        for number, key in enumerate(keys, 1):
            name = key[len(held) :]
            self._drop(_LOCK + name)
            self._drop(key)
            if session.deletes:
                self._remove(name, revision, kind)
            if not number % _WRITTEN_AT_ONCE:
                yield
        self._drop(_SESSION + session_id)
        self._holdings.forget(held)
        self._tidy()
        return len(keys)

    def _session(self, session_id: bytes) -> Session:
        """Return a session that is there, as what is being applied has left it."""
        session = _session(session_id, self.engine.get(_SESSION + session_id))
        assert session is not None
        return session

    def _holder(self, key: bytes) -> Holder | None:
        """Return the same as :meth:`holder`, likewise."""
        return _holder(self.engine.get(_LOCK + key))

    # -- private: records, and the index of those that expire --------------------------------------

    def _write(self, key: bytes, value: bytes, revision: int, expiry: int) -> tuple[Item]:
        """Set a user's key."""
        before = self._before(key)
        self._set(_USER + key, value, revision, expiry)
        heading = self._heading(key)
        assert heading is not None
        record, _ = heading
        if self._keeps_events:
            change = (revision, EventKind.PUT.value, key, value, record.version, *before)
            self._noted.append(change)
        return (Item(key, None, *record[1:]),)

    def _remove(self, key: bytes, revision: int, kind: EventKind) -> bool:
        """Remove a user's key and tell whether it was there."""
        before = self._before(key)
        if not self.engine.delete(_USER + key):
            return False
        if self._keeps_events:
            self._noted.append((revision, kind.value, key, b"", 0, *before))
        self._tidy()
        return True

    @property
    def _looks_back(self) -> bool:
        """Whether events have the values before."""
        return self._keeps_events and self._keeps_previous

    def _before(self, key: bytes) -> tuple[()] | tuple[bytes | None]:
        """Return the value that a user's key has, for the event of its change; or nothing, if that
        isn't wanted, would be too much of one entry, or can't be read."""
        if not self._looks_back or self._previous_room <= 0:
            return ()
        try:
            record = self.engine.get(_USER + key)
        except CorruptionError:  # a page that nothing but this needs
            return ()
        if record is None:
            return (None,)
        self._previous_room -= len(record.value)
        return (record.value,)

    def _before_entry(self, op: int, key: bytes) -> tuple[()] | tuple[bytes | None]:
        """Return the same for the one key of a plain command; a transaction looks by itself."""
        self._previous_room = READ_BYTES
        return self._before(key) if op in (codec.OP_PUT, codec.OP_DELETE) else ()

    def _set(self, key: bytes, value: bytes, revision: int, expiry: int = 0) -> None:
        """Set a record of any kind, and its entry in the index."""
        version = self.engine.put(key, value, revision, expiry)
        if version == 1 and key[:1] != _USER:
            self._own += 1
        self._put_in_index(key, expiry, revision)

    def _drop(self, key: bytes) -> None:
        """Remove one of the state machine's own records, if it is there."""
        self._own -= self.engine.delete(key)

    def _put_in_index(self, key: bytes, expiry: int, revision: int) -> None:
        """Let the index have a record's expiry, if it has one, and no other."""
        if expiry:
            self._index(key, expiry, revision)
        self._tidy()

    def _index(self, key: bytes, expiry: int, revision: int) -> None:
        entry = _INDEX_OF[key[:1]] + expiry.to_bytes(8, "big") + key[1:]
        self._own += self.engine.put(entry, b"", revision) == 1
        self._dues.put(entry)

    def _tidy(self) -> None:
        """Drop the index entries of records that are gone or expire at another time now."""
        outdated = self.engine.outdated
        while outdated:
            key, expiry = outdated.pop()
            record = self.engine.get(key)
            if record is None or record.expiry != expiry:
                entry = _INDEX_OF[key[:1]] + expiry.to_bytes(8, "big") + key[1:]
                self._drop(entry)
                self._dues.drop(entry)

    def _save(self, revision: int) -> None:
        """Bring clock and count into the engine, if they have changed."""
        state = _STATE.pack(self.clock, self._own)
        if state != self._saved:
            self.engine.put(_CLOCK, state, revision)
            self._saved = state

    def _later(self, time: int) -> int:
        """Return the clock once an entry says the *time*; the clock never goes back."""
        return max(self.clock, min(time, LAST_TIME))

    def _after(self, ttl: int) -> int:
        """Return the time so many milliseconds from now; never 0, which stands for no time."""
        return max(1, min(self.clock + ttl, LAST_TIME))


class _Users:
    """Users' records as the steps of one entry change them; a friend of :class:`Store`."""

    __slots__ = ("_engine", "_outdated", "_revision", "_store", "clock")

    def __init__(self, store: Store, revision: int) -> None:
        self._store = store
        self._engine = store.engine
        self._outdated = store.engine.outdated
        self._revision = revision
        self.clock = store.clock

    def get(self, key: bytes) -> Record | None:
        return self._engine.get(_USER + key)

    def heading(self, key: bytes) -> Heading | None:
        found = self._engine.heading(_USER + key)
        return Heading(found[1], found[0].expiry) if found else None

    def beginning(self, key: bytes, most: int) -> bytes | None:
        return self._engine.beginning(_USER + key, most)

    def put(self, key: bytes, value: bytes, expiry: int) -> int:
        version = self._engine.put(_USER + key, value, self._revision, expiry)
        if expiry or self._outdated:
            self._store._put_in_index(_USER + key, expiry, self._revision)
        return version

    def delete(self, key: bytes) -> bool:
        was_there = self._engine.delete(_USER + key)
        if self._outdated:
            self._store._tidy()
        return was_there

    def touch(self, key: bytes, expiry: int) -> None:
        self._store._set_expiry(key, expiry, self._revision)

    def before(self, key: bytes) -> tuple[()] | tuple[bytes | None]:
        store = self._store
        return store._before(key) if store._keeps_previous else ()


_FIELDS = ("value", "version", "create_revision", "mod_revision")  # by commands.Target
_STEPS: dict[type, Callable[[Store, Any, int], Result]] = {
    Put: Store._put,
    Delete: Store._delete,
    Get: Store._get,
    Increment: Store._increment,
    Touch: Store._touch,
    Acquire: Store._acquire,
    Release: Store._release,
    OpenSession: Store._open_session,
    RenewSession: Store._renew_session,
}
_READING = {Get, Range}
_OF_MANY = {DeleteRange, Range, EndSession, Expire}  # no one knows of how many records
_LONG_STEPS: dict[type, Callable[[Store, Any, int], _Turns[Result]]] = {
    Range: Store._range,
    EndSession: Store._end_session,
    Expire: Store._expire,
}


def _is_outcome(data: bytes) -> bool:
    try:
        codec.decode_outcome(data)
    except errors.WireError:
        return False
    return True


def _bounds(start: bytes, end: bytes | None) -> tuple[bytes, bytes]:
    """Return where users' keys from *start* to *end* stand in the engine."""
    return _USER + start, _BEHIND_USERS if end is None else _USER + end


def _named(kind: str, count: int) -> str:
    """Return the name of a field of Census as it stands after a number."""
    return kind.removesuffix("s") if count == 1 else kind


def _held(session_id: bytes) -> bytes:
    """Return what all entries of what a session holds begin with."""
    return _HELD + bytes((len(session_id),)) + session_id


def _sum(value: bytes | None, by: int) -> tuple[Refusal, int]:
    """Return the sum of a key's number and another, or why there is none."""
    if value is None:
        value = b"0"
    if not _NUMBER.fullmatch(value) or not _LEAST <= int(value) <= _MOST:
        return Refusal.NOT_A_NUMBER, 0
    total = int(value) + by
    return Refusal.NONE if _LEAST <= total <= _MOST else Refusal.NUMBER_TOO_LARGE, total


def _taken(keys: Iterator[bytes | None], most: int) -> _Turns[list[bytes]]:
    """Return the first *most* keys of a scan, and yield where that takes a while."""
    rest = chain(keys, (b"",))  # which is no key
    taken: list[bytes] = []
    while len(taken) < most:
        some = [*takewhile(_is_no_pause, islice(rest, min(_KEYS_AT_ONCE, most - len(taken))))]
        taken += filter(None, some)
        if some[-1:] == [b""]:
            break
        yield
    return taken


def _with_crc(outcome: Outcome) -> _Turns[_Sealed]:
    """Return an outcome that was kept before with the CRC of its bytes."""
    crc = 0
    for part in codec.outcome_in_parts(outcome):
        crc = crc32(part, crc)
        yield
    return outcome, crc


def _too_many(keys: Sequence[bytes], operation: DeleteRange) -> Refusal:
    return Refusal.TOO_MANY_KEYS if len(keys) > operation.limit else Refusal.NONE


def _weight_of(branch: Sequence[Operation], size_of: Callable[[bytes], int]) -> float:
    """Return how much a branch writes, in records or what takes as long; 0: nothing, or it is a
    lone operation that finds out itself. *size_of* tells how long a key's value is, which is
    written again with another expiry."""
    kinds = {type(each) for each in branch}
    if kinds <= _READING:
        return 0.0
    is_lone = len(branch) == 1
    if not kinds.isdisjoint(_OF_MANY):
        return 0.0 if is_lone else inf
    if is_lone:
        return 1.0
    size = sum([len(getattr(each, "value", None) or b"") for each in branch])
    size += sum([size_of(each.key) for each in branch if type(each) is Touch])
    return len(branch) + size / _BYTES_OF_RECORD


def _one_more(limit: int) -> int:
    return min(limit, sys.maxsize - 1) + 1


def _session(session_id: bytes, record: Record | None) -> Session | None:
    if record is None:
        return None
    ttl, deletes = _SESSION_HEAD.unpack_from(record.value)
    return Session(session_id, ttl, deletes, record.value[_SESSION_HEAD.size :], record.expiry)


def _holder(record: Record | None) -> Holder | None:
    if record is None:
        return None
    return Holder(record.value[8:], int.from_bytes(record.value[:8], "big"))


def _repeated(answer: bytes, fingerprint: bytes, revision: int) -> Outcome:
    """Return the outcome of a transaction whose idempotency key is known."""
    at = 1 + answer[0]
    if answer[1:at] != fingerprint:
        return Outcome(revision, False, refusal=Refusal.KEY_REUSED)
    return codec.decode_outcome(answer[at:])._replace(repeated=True)
