"""The kind ``lsm``: how states of the LSM engine lie at places, and what is garbage beside them.

A place is a path; its state is the manifest there (``manifest.py``), and the files that this names
in the folder ``lsm`` beside it. All places of a directory share the folder: the state in use, and
those that are being received. A manifest that was renamed goes on naming files that were made for
its former place.

Whatever no manifest of the directory names is garbage of a crash. Who opens a place removes what
was made for it; and if there is no other manifest, all that looks like a file of an engine. The
folder is listed before the manifests are read: what another engine makes after that isn't in the
list, and what it has made before has a manifest, as an engine writes one before anything else.

For the thread that owns the directory.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable

from conure.errors import CorruptionError, ForeignDirectory, VersionTooNew
from conure.fileio import FileSystem
from conure.storage.engine import EngineOptions
from conure.storage.lsm import manifest
from conure.storage.lsm.durable import folder_of, remove_files
from conure.storage.lsm.lsmengine import LSMEngine
from conure.storage.lsm.manifest import NEW, Manifest

__all__ = ["LSMKind"]

_FILE = re.compile(r"(.+)-[0-9a-f]{16}-[0-9]+\.(?:sst|blob)")
_LOOKS = 10  # at a name that is listed and not there: it is a link that leads nowhere then


class LSMKind:
    """The LSM engine as a kind (engine.EngineKind)."""

    name = "lsm"

    def open(
        self, fs: FileSystem, place: str, options: EngineOptions, *, create: bool
    ) -> LSMEngine:
        """Open the state that the manifest at *place* names; with *create* make an empty one.

        Reads the manifest and the ends of the files, and removes garbage.
        """
        try:
            present = manifest.read(fs, place)
        except FileNotFoundError:
            if not create:
                raise
            fs.make_directory(folder_of(place))
            present = Manifest()
            manifest.write(fs, place, present)
        if fs.exists(place + NEW):
            fs.remove(place + NEW)
        fs.make_directory(folder_of(place))
        engine = LSMEngine(fs, place, present, options)
        _collect(fs, place, present)
        return engine

    def applied(self, fs: FileSystem, place: str) -> tuple[int, int]:
        """Return index and term of the state at *place*, zeros without one. Reads the manifest."""
        try:
            present = manifest.read(fs, place)
        except FileNotFoundError:
            return 0, 0
        return present.applied_index, present.term

    def sync(self, fs: FileSystem, place: str) -> None:
        """Sync the manifest, the folder and the directory; the files themselves were synced before
        a manifest named them."""
        file = fs.open(place)
        try:
            file.sync()
        finally:
            file.close()
        fs.sync_directory(folder_of(place))
        fs.sync_directory(_directory_of(place))

    def rename(self, fs: FileSystem, place: str, new: str) -> None:
        """Give the manifest another name, which a power failure may undo."""
        fs.rename(place, new)

    def put_in_place(self, fs: FileSystem, staged: str, place: str) -> None:
        """Let the manifest *staged* be the one at *place*, durably; then remove the files of the
        former one."""
        before = _names_at(fs, place)
        fs.rename(staged, place)
        fs.sync_directory(_directory_of(place))
        _remove(fs, place, before)

    def remove(self, fs: FileSystem, place: str) -> None:
        """Remove the manifest, half-made or whole, and what was made for *place* or named there."""
        before = _names_at(fs, place)
        if fs.exists(place + NEW):
            fs.remove(place + NEW)
        if fs.exists(place):
            fs.remove(place)
            fs.sync_directory(_directory_of(place))  # or it might come back without its files
        _remove(fs, place, before)


def _directory_of(place: str) -> str:
    return os.path.dirname(place) or "."


def _names_at(fs: FileSystem, place: str) -> frozenset[str]:
    """Return what the manifest at *place* names; nothing if there is none that can be read."""
    try:
        return manifest.read(fs, place).names()
    except (FileNotFoundError, CorruptionError, VersionTooNew):
        return frozenset()


def _files(fs: FileSystem, folder: str) -> list[str]:
    """Return the names in the folder that an engine has given."""
    try:
        return [name for name in fs.list(folder) if _FILE.fullmatch(name)]
    except FileNotFoundError:
        return []


def _made_for(place: str, name: str) -> bool:
    match = _FILE.fullmatch(name)
    return match is not None and match[1] == os.path.basename(place)


def _named_beside(fs: FileSystem, place: str) -> tuple[frozenset[str], int] | None:
    """Return what all manifests beside *place*, itself left out, name, and how many there are.

    None if one of them can't be read: nobody knows then.
    """
    directory = _directory_of(place)
    suffix = os.path.splitext(place)[1]
    own = os.path.basename(place)
    looks: Counter[str] = Counter()
    while True:
        named: set[str] = set()
        count = 0
        for name in fs.list(directory):
            if name == own or os.path.splitext(name)[1] != suffix or looks[name] >= _LOOKS:
                continue
            try:
                named |= manifest.read(fs, os.path.join(directory, name)).names()
            except FileNotFoundError:
                looks[name] += 1  # it has got another name since: look again
                break
            except ForeignDirectory:
                continue  # a directory
            except (CorruptionError, VersionTooNew):
                return None
            count += 1
        else:
            return frozenset(named), count


def _collect(fs: FileSystem, place: str, present: Manifest) -> None:
    """Remove what a crash has left: files for *place* that no manifest names, or all such."""
    folder = folder_of(place)
    files = _files(fs, folder)
    beside = _named_beside(fs, place)
    if beside is None:
        return
    named, others = beside
    wanted = named | present.names()
    garbage = [
        name for name in files if name not in wanted and (not others or _made_for(place, name))
    ]
    if garbage:
        fs.sync_directory(_directory_of(place))  # or an older manifest might come back
        remove_files(fs, folder, garbage)


def _remove(fs: FileSystem, place: str, before: Iterable[str]) -> None:
    """Remove files for *place*, and those of *before*, that no manifest names now."""
    folder = folder_of(place)
    files = [name for name in _files(fs, folder) if _made_for(place, name)]
    beside = _named_beside(fs, place)
    if beside is None:
        return
    remove_files(fs, folder, {*before, *files} - beside[0] - _names_at(fs, place))
