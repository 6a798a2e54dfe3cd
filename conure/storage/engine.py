"""The seam of storage engines: what the state machine and its neighbours ask of one, and of a kind.

An engine is an ordered map from keys to records. What is written to it changes memory only; a
checkpoint makes the present state durable as a whole, with the index and term of the last entry
that it covers. What came after the last checkpoint is lost in a crash, and the log has it.

Whoever uses an engine knows these protocols and no engine. One is found by its name in
``engines.py``. Nothing here reads, writes or decides anything.

Threads: there is one writer at a time, in the caller's lock, and "under the caller's lock" below
means that lock. "Any thread" needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from conure.fileio import FileSystem

__all__ = [
    "DATABASE",
    "STAGED",
    "SUFFIX",
    "CheckReport",
    "Checkpoint",
    "EngineKind",
    "EngineOptions",
    "EngineStats",
    "Figure",
    "Loader",
    "Reader",
    "Record",
    "StorageEngine",
]

DATABASE: Final = "conure.db"
"""The name of the place at which a data directory's state lies."""

STAGED: Final = "incoming-"
"""How the names of all other places begin."""

SUFFIX: Final = ".db"
"""How the names of all places end."""


class Record(NamedTuple):
    """A value and its history.

    Revisions are log indexes: *create_revision* of the write that made the key, *mod_revision* of
    the last one; *version* counts the writes since the key was made. *expiry* is in milliseconds
    since the Unix epoch, 0 for never; the engine keeps it and leaves its meaning to the caller.
    """

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    expiry: int = 0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is opened; sizes are in bytes. Each kind heeds what is about it.

    *page_size* counts only when the files are made. *cache_bytes* bounds what is kept in memory of
    what is on disk. *memtable_bytes* of changes make an engine with a memtable want a checkpoint,
    values from *long_value* on lie apart from their records, and tables are made of about
    *table_bytes*. *mapped* says whether files are read through maps, and *workers* whether what
    takes long may be done by other processes.
    """

    page_size: int = 4096
    cache_bytes: int = 64 << 20
    memtable_bytes: int = 10_000_000
    long_value: int = 4096
    table_bytes: int = 16 << 20
    mapped: bool = True
    workers: bool = False


class Figure(NamedTuple):
    """A figure that one kind of engine has and others don't, as it is shown wherever figures are.

    *name* is the one in ``stats DIR``, *metric* the one in the metrics; it isn't shown where that
    is empty. A counter grows as long as the engine is open. Several figures of one metric differ
    in the value of their *label*, a name and a value, such as ("level", "0").
    """

    name: str
    metric: str
    help: str
    value: float
    is_counter: bool = False
    label: tuple[str, str] | None = None


@dataclass(slots=True)
class EngineStats:
    """Figures that every engine has; sizes are in bytes. Cheap to take, whatever the number of
    records. A kind that has more to tell adds fields of its own, and shows them as *figures*.

    A *page* is what the engine reads, checks and caches in one piece. *free_bytes* are those of
    *file_bytes* that no record needs; *depth* is in how many places, one after the other, it looks
    for a key; *readers* are the states that are pinned.
    """

    page_size: int
    file_bytes: int
    free_bytes: int
    depth: int
    records: int
    readers: int

    def figures(self) -> Sequence[Figure]:
        """Return the kind's own figures: the same names and metrics whenever it is asked."""
        return ()


@dataclass(slots=True)
class CheckReport:
    """What :meth:`StorageEngine.check` counted.

    *kinds* tells how many of the pages are of which kind, in the order in which they are shown;
    people know the whole as *whole* and its pages as *parts*. *used_bytes* is what records and the
    ways to them take, long values apart.
    """

    whole: str
    parts: str
    records: int = 0
    pages: int = 0
    depth: int = 0
    used_bytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


class Reader(Protocol):
    """A pinned state, which no later write changes. Any thread, until :meth:`close`.

    What is read of it afterwards is a StorageError. Reading raises CorruptionError and DiskFailed.
    """

    def __len__(self) -> int: ...

    def get(self, key: bytes) -> Record | None:
        """Return the record that *key* had, or None."""

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over keys and records, start <= key < end, in the order of the keys."""

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone, which is cheaper."""

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the record of *key* without its value, and how many bytes that has.

        Nothing of a long value is read.
        """

    def items_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate like :meth:`items` for who must not be kept from other things: None comes in
        between where many deleted keys are gone through, a millisecond or two apart."""

    def keys_in_turns(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate like :meth:`keys`, likewise."""

    def close(self) -> None:
        """Let go of the state; calling it again does nothing."""


class Checkpoint(Protocol):
    """A state on its way to the disk. One thread, without the caller's lock; writes go on beside.

    Call :meth:`step` until it returns True and then :meth:`finish`; or :meth:`abort`.
    """

    def step(self, seconds: float) -> bool:
        """Write for about *seconds*; return whether all is written. Raises DiskFull, DiskFailed."""

    def finish(self) -> None:
        """Make it the durable state, atomically: after a crash there is this one or the one before.

        The ``applied`` figures of the engine are those of this checkpoint from then on. Raises
        DiskFull, then :meth:`abort` is due, and DiskFailed.
        """

    def abort(self) -> None:
        """Give it up. The last checkpoint stays the durable state, the next one writes what this
        one did not. After :meth:`finish`, or a second time, it does nothing."""


class Loader(Protocol):
    """Fills an empty engine with sorted items. One thread at a time, without the caller's lock.

    Memory stays bounded. After an error, or to give up, :meth:`abort`.
    """

    def add(self, items: Iterable[tuple[bytes, Record]]) -> None:
        """Take items whose keys ascend, over all calls.

        Raises ValueError if they don't or are too long, DiskFull and DiskFailed.
        """

    def finish(self) -> int:
        """Make the items the content, all at once, and return how many there are.

        They become durable with the next checkpoint. Raises DiskFull and DiskFailed.
        """

    def abort(self) -> None:
        """Leave the engine empty, as it was. After :meth:`finish` it does nothing."""


class StorageEngine(Protocol):
    """An ordered map from keys to records, as the state machine uses it.

    Everything but ``stats`` and ``close`` is for the holder of the caller's lock, and what reads
    or writes raises CorruptionError and DiskFailed. An engine never expires a record by itself.
    """

    @property
    def applied_index(self) -> int:
        """The index that the last durable checkpoint was given; 0 before the first. Any thread."""

    @property
    def applied_term(self) -> int:
        """The term that it was given. Any thread."""

    @property
    def applied_digest(self) -> int:
        """The digest that it was given. Any thread."""

    @property
    def max_key_bytes(self) -> int:
        """The length of the longest key it takes; the shortest has one byte."""

    @property
    def outdated(self) -> list[tuple[bytes, int]]:
        """Each key whose record with an expiry was changed or removed, and that expiry, for a
        caller that keeps an index of them. It is always the same list; whoever reads it empties
        it."""

    @property
    def unwritten_bytes(self) -> int:
        """About how much memory changes take that no checkpoint has written. Any thread."""

    def __len__(self) -> int: ...

    def get(self, key: bytes) -> Record | None:
        """Return the record of *key*, or None."""

    def heading(self, key: bytes) -> tuple[Record, int] | None:
        """Return the record of *key* without its value, and how many bytes that has.

        Nothing of a long value is read.
        """

    def beginning(self, key: bytes, most: int) -> bytes | None:
        """Return the first *most* bytes of the value of *key*; None if there is no record.

        No more of a long value is read than it takes.
        """

    def put(self, key: bytes, value: bytes, revision: int, expiry: int = 0) -> int:
        """Set *key*: a new record of version 1, or the next version of the one there is.

        Returns the version. Raises ValueError if key or value are too long.
        """

    def delete(self, key: bytes) -> bool:
        """Remove *key* and return whether it was there."""

    def touch(self, key: bytes, expiry: int) -> Record | None:
        """Set the expiry of *key* and nothing else; return the record, or None if there is none."""

    def scan(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record] | None]:
        """Iterate over keys and records, start <= key < end, in the order of the keys; None comes
        in between where many deleted keys are gone through, a millisecond or two apart.

        Until the iterator is used up or dropped nothing may be written, and no checkpoint begun;
        all else may come between two of its steps, the lock let go. For a few records it is the
        cheapest. What was gone through until it is dropped need not be once more, mostly.
        """

    def scan_headings(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, tuple[Record, int]] | None]:
        """Iterate like :meth:`scan` over keys and what :meth:`heading` returns of them."""

    def scan_keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes | None]:
        """Iterate like :meth:`scan` over the keys alone."""

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Record]]:
        """Iterate over the state of the moment of the call, whatever is written meanwhile.

        Any one thread may use the iterator; exhausting or dropping it lets go of the state.
        """

    def keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys alone, otherwise like :meth:`items`."""

    def snapshot(self) -> Reader:
        """Pin the present state for reading in any thread, in constant time. Close it."""

    def begin_checkpoint(self, index: int, term: int, digest: int = 0) -> Checkpoint:
        """Freeze the present state for writing, in about a millisecond; one at a time.

        It may take longer if :meth:`maintain` has work left.
        """

    def checkpoint(self, index: int, term: int, digest: int = 0) -> None:
        """Make the present state durable in one go. Raises DiskFull; it may be tried again."""

    def loader(self) -> Loader:
        """Return what fills this empty engine step by step; until its end nothing else may write.

        Raises ValueError if it isn't empty, or if a checkpoint or another load is running.
        """

    def maintain(self, seconds: float) -> bool:
        """Do for about *seconds* what was put off, and tell whether more of it is left.

        A checkpoint is best begun when nothing is left. What an engine puts off may grow by
        writes only, so that calling this often enough comes to an end.
        """

    def compact(self, seconds: float) -> bool:
        """Merge what is on disk for about *seconds*, or see how far others are that do it, and
        tell whether it has to be called again, soon, for the sake of what is to be merged now.

        Without the caller's lock, in the thread that makes checkpoints, also between two steps of
        one; never beside an installation. It returns early where others do the work. What it makes
        becomes durable by itself. A full disk costs nothing but time; raises CorruptionError and
        DiskFailed.
        """

    @property
    def pressure(self) -> float:
        """How far merging is behind the writes: 0.0 as long as it keeps up, then more, up to 1.0
        where checkpoints had better wait for it, and writers with them. Any thread, cheap."""

    def stats(self) -> EngineStats:
        """Return the engine's figures. Any thread."""

    def check(self) -> CheckReport:
        """Prove that everything on disk and in memory is in order, and return what was counted.

        Without a running checkpoint. Raises CorruptionError.
        """

    def close(self) -> None:
        """Close the files; what no checkpoint has made durable is dropped. Any thread.

        Pinned states can be read to their end, and a checkpoint that is running may end. What was
        being merged is given up, and nobody waits for it.
        """


class EngineKind(Protocol):
    """A kind of engine: how its states lie on the disk. For the thread that owns the directory.

    A state lies at a *place*: a path at which there is a file, named :data:`DATABASE`, or as
    :data:`STAGED` and :data:`SUFFIX` say. Files of other names are none of ours. Whatever else a
    kind makes for it beside it has a name that begins with that path, or lies in the folder
    ``lsm`` next to it, in a file whose name begins with the place's own and a dash; a state that
    was renamed may go on using what was made for its former place. So states at places that don't
    begin with one another never meet. All places of a directory have one kind. Raises DiskFull and
    DiskFailed.
    """

    @property
    def name(self) -> str:
        """By this it is chosen."""

    def open(
        self,
        fs: FileSystem,
        place: str,
        options: EngineOptions,
        *,
        create: bool,
        like: StorageEngine | None = None,
    ) -> StorageEngine:
        """Open the last durable state at *place*; with *create*, an empty one if there is none.

        A new one is there whole or not at all. *like* is an engine of this kind, closed or not,
        that has had the same state at a place of the same directory: with it this takes some
        milliseconds, whatever the number of files, and what is garbage goes by and by, in
        ``compact``. Raises FileNotFoundError, ForeignDirectory and CorruptionError.
        """

    def applied(self, fs: FileSystem, place: str) -> tuple[int, int]:
        """Return index and term of the durable state at *place*, zeros if there is none.

        Raises like :meth:`open`.
        """

    def remains(self, fs: FileSystem, place: str) -> str:
        """Return the path of a file that shows that there was a state at *place*, the one of the
        directory, and is no more; "" if there is one, or nothing shows that there ever was."""

    def sync(self, fs: FileSystem, place: str) -> None:
        """Make the state at *place* outlast a power failure, whoever has written it."""

    def rename(self, fs: FileSystem, place: str, new: str) -> None:
        """Let the state be at *new*, another place, where there is none, for this process.

        A power failure may undo that; the state is whole at one of the two then.
        """

    def put_in_place(
        self, fs: FileSystem, staged: str, place: str, *, removes: bool = True
    ) -> None:
        """Let the state at *staged* be the one at *place*, instead of the one there.

        It is atomic, and durable on return: as long as a crash would leave the former one at
        *place*, it leaves the new one whole at *staged*. Who has the former one open can go on
        reading it. Without *removes* its files stay until somebody opens the place.
        """

    def remove(self, fs: FileSystem, place: str) -> None:
        """Remove what there is at *place*, half-made or whole, if anything is."""
