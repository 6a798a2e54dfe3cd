"""What is durable of an engine: its manifest, and the files that exist because of it.

Each engine that is opened draws a token, which is in the name of every file that it makes, so no
name comes twice, and what a killed process still writes is never in the way::

    lsm/<name of the place>-<token, 16 hexadecimal digits>-<number>.sst or .blob

A file is removed as soon as the durable manifest doesn't name it any more, and not sooner. Who has
it mapped can go on reading it.

One thread at a time, the one that makes checkpoints; opening is for the thread that owns the
directory.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterable
from time import perf_counter
from typing import TypeVar

from conure.errors import CorruptionError
from conure.fileio import FileSystem
from conure.storage.lsm import manifest
from conure.storage.lsm.blobs import BlobFacts, BlobFile
from conure.storage.lsm.jobs import FILES_PER_JOB, remove_output
from conure.storage.lsm.manifest import Manifest
from conure.storage.lsm.marks import Mark
from conure.storage.lsm.tables import Table, TableFacts
from conure.storage.lsm.verifying import Proved, prove
from conure.storage.lsm.version import Version
from conure.storage.lsm.workers import Running

__all__ = ["FOLDER", "Durable", "folder_of", "outcome_within", "remove_files"]

_Outcome = TypeVar("_Outcome")

FOLDER = "lsm"
"""The folder beside a place for the files of all places there."""


def folder_of(place: str) -> str:
    """Return the folder in which the files of *place* lie."""
    return os.path.join(os.path.dirname(place) or ".", FOLDER)


def remove_files(fs: FileSystem, folder: str, names: Iterable[str]) -> None:
    """Remove files, of which some may be gone already, or going: what a state has been given from
    another place, who opens that place may remove as well. Raises DiskFailed."""
    for name in sorted(names):
        path = os.path.join(folder, name)
        if fs.exists(path):
            remove_output(fs, path)


class Durable:
    """The durable state at *place*, as *present* says."""

    def __init__(self, fs: FileSystem, place: str, present: Manifest, *, mapped: bool) -> None:
        self.fs = fs
        self.place = place
        self.folder = folder_of(place)
        self.stem = f"{os.path.basename(place)}-{secrets.token_hex(8)}"
        self.manifest = present
        self._mapped = mapped
        self._jobs = 0

    def next_number(self) -> int:
        """Return the first number for the files of another job."""
        self._jobs += 1
        return (self._jobs - 1) * FILES_PER_JOB

    def opened(self, present: Manifest, known: Version | None = None) -> Version:
        """Open all files that a manifest names, but for those that *known* has open. Raises
        CorruptionError and DiskFailed."""
        tables = {table.facts: table for table in known.tables()} if known else {}
        files = {file.facts: file for file in known.blobs.values()} if known else {}
        try:
            levels = [
                [tables.get(facts) or self.table(facts) for facts in level]
                for level in present.levels
            ]
            blobs = {facts.name: files.get(facts) or self.blob(facts) for facts in present.blobs}
        except FileNotFoundError as error:
            raise CorruptionError(
                self.place, 0, f"a file that the manifest names is missing: {error}"
            ) from error
        return Version(levels, blobs)

    def table(self, facts: TableFacts) -> Table:
        """Open a table. Raises CorruptionError and DiskFailed."""
        return Table.open(self.fs, self.folder, facts, mapped=self._mapped)

    def blob(self, facts: BlobFacts) -> BlobFile:
        """Open a blob file. Raises CorruptionError and DiskFailed."""
        return BlobFile.open(self.fs, self.folder, facts, mapped=self._mapped)

    def proof(self, running: Running) -> Generator[None, None, Proved]:
        """Return what proves the result of a job that is over (verifying.prove).

        Raises what ended the job.
        """
        return prove(
            self.fs,
            self.folder,
            running.job,
            running.result(),
            running.feed,
            mapped=self._mapped,
        )

    def write(
        self,
        version: Version,
        *,
        applied: tuple[int, int, int] | None = None,
        records: int = 0,
        marks: tuple[Mark, ...] = (),
    ) -> None:
        """Make *version* the durable one, and with *applied* all that a checkpoint tells.

        Its files are durable already, their names too (S2). Raises DiskFull, with nothing changed,
        and DiskFailed.
        """
        levels = tuple(tuple(table.facts for table in level) for level in version.levels)
        blobs = tuple(blob.facts for blob in version.blobs.values())
        present = self.manifest._replace(levels=levels, blobs=blobs)
        if applied is not None:
            index, term, digest = applied
            present = Manifest(index, term, digest, records, levels, blobs, marks)
        manifest.write(self.fs, self.place, present)
        self.manifest = present

    def collect(self, before: Manifest, others: Iterable[str] = ()) -> None:
        """Remove what the manifest *before* named, and *others*, unless it is named now.

        Raises DiskFailed.
        """
        remove_files(self.fs, self.folder, {*before.names(), *others} - self.manifest.names())


def outcome_within(steps: Generator[None, None, _Outcome], seconds: float) -> _Outcome | None:
    """Work for about *seconds*; return what the generator returns, None if there is more to do."""
    until = perf_counter() + seconds
    try:
        while True:
            next(steps)
            if perf_counter() >= until:
                return None
    except StopIteration as end:
        outcome: _Outcome = end.value
        return outcome
