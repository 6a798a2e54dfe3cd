"""The kind ``lsm``: how states of the LSM engine lie at places, and what is garbage beside them.

A place is a path; its state is the manifest there (``manifest.py``), and the files that this names
in the folder ``lsm`` beside it. All places of a directory share the folder: the state in use, and
those that are being received. A manifest that was renamed goes on naming files that were made for
its former place.

Whatever no manifest of the directory names is garbage of a crash. Who opens a place removes what
was made for it; and if there is no other manifest, all that looks like a file of an engine. The
folder is listed before the manifests are read: what another engine makes after that isn't in the
list, and what it has made before has a manifest, as an engine writes one before anything else.

1. Only files with the names of places are looked into (engine.EngineKind). Whatever else lies
   beside them is somebody's own, and decides nothing.
2. A manifest that can't be read may name anything: nothing is removed then, which is logged and
   shown (figures.LSMStats), and taken up again by whoever opens a place next.
3. A directory that has files and no manifest at :data:`~conure.storage.engine.DATABASE` has lost
   it. No empty state takes its place, or the files would be garbage.

For the thread that owns the directory.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable

from conure.errors import CorruptionError, ForeignDirectory, VersionTooNew
from conure.fileio import FileSystem
from conure.storage.engine import DATABASE, STAGED, SUFFIX, EngineOptions, StorageEngine
from conure.storage.lsm import manifest
from conure.storage.lsm.durable import folder_of, remove_files
from conure.storage.lsm.lsmengine import LSMEngine
from conure.storage.lsm.manifest import NEW, Manifest

__all__ = ["LSMKind"]

_FILE = re.compile(r"(.+)-[0-9a-f]{16}-[0-9]+\.(?:sst|blob)")
_LOOKS = 10  # at a name that is listed and not there: it is a link that leads nowhere then

log = logging.getLogger("conure.lsm")


class LSMKind:
    """The LSM engine as a kind (engine.EngineKind)."""

    name = "lsm"

    def open(
        self,
        fs: FileSystem,
        place: str,
        options: EngineOptions,
        *,
        create: bool,
        like: StorageEngine | None = None,
    ) -> LSMEngine:
        """Open the state that the manifest at *place* names; with *create* make an empty one.

        Reads the manifest and the ends of the files, and removes garbage. What *like* has open
        isn't opened again, and garbage is left to the engine then.
        """
        try:
            present = manifest.read(fs, place)
        except FileNotFoundError:
            if not create:
                raise
            if remains := self.remains(fs, place):
                why = f"the file is missing, and with it what {remains} is for"
                raise CorruptionError(place, 0, why) from None
            fs.make_directory(folder_of(place))
            present = Manifest()
            manifest.write(fs, place, present)
        if fs.exists(place + NEW):
            fs.remove(place + NEW)
        fs.make_directory(folder_of(place))
        known = like.version if isinstance(like, LSMEngine) else None
        engine = LSMEngine(fs, place, present, options, known)
        garbage = _garbage(fs, place, present)
        if garbage:
            fs.sync_directory(_directory_of(place))  # or an older manifest might come back
        if like is None:
            remove_files(fs, folder_of(place), garbage or ())
        else:
            engine.remove_later(garbage or ())
        engine.note_collected(complete=garbage is not None)
        return engine

    def applied(self, fs: FileSystem, place: str) -> tuple[int, int]:
        """Return index and term of the state at *place*, zeros without one. Reads the manifest."""
        try:
            present = manifest.read(fs, place)
        except FileNotFoundError:
            return 0, 0
        return present.applied_index, present.term

    def remains(self, fs: FileSystem, place: str) -> str:
        """Return the path of the first file in the folder that no staged state has, if the
        directory's manifest is gone.

        At a staged place files without a manifest are garbage: it goes before they do.
        """
        if os.path.basename(place) != DATABASE or fs.exists(place):
            return ""
        folder = folder_of(place)
        files = _files(fs, folder)
        beside = _named_beside(fs, place) if files else None
        staged = frozenset() if beside is None else beside[0]
        return next((os.path.join(folder, name) for name in files if name not in staged), "")

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

    def put_in_place(
        self, fs: FileSystem, staged: str, place: str, *, removes: bool = True
    ) -> None:
        """Let the manifest *staged* be the one at *place*, durably; then remove the files of the
        former one, if wanted."""
        before = _names_at(fs, place) if removes else frozenset()
        fs.rename(staged, place)
        fs.sync_directory(_directory_of(place))
        if removes:
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


def _is_place(name: str) -> bool:
    return name == DATABASE or (name.startswith(STAGED) and name.endswith(SUFFIX))


def _named_beside(fs: FileSystem, place: str) -> tuple[frozenset[str], int] | None:
    """Return what all manifests beside *place*, itself left out, name, and how many there are.

    None if one of them can't be read, which is logged: nobody knows then.
    """
    directory = _directory_of(place)
    own = os.path.basename(place)
    looks: Counter[str] = Counter()
    while True:
        named: set[str] = set()
        count = 0
        for name in fs.list(directory):
            if name == own or not _is_place(name) or looks[name] >= _LOOKS:
                continue
            path = os.path.join(directory, name)
            try:
                named |= manifest.read(fs, path).names()
            except FileNotFoundError:
                looks[name] += 1  # it has got another name since: look again
                break
            except ForeignDirectory:
                continue  # a directory
            except (CorruptionError, VersionTooNew) as error:
                log.warning(
                    "files that nothing needs stay in %s, as %s may name them and can't be read; "
                    "move it away and start this node again: %s",
                    folder_of(place),
                    path,
                    error,
                )
                return None
            count += 1
        else:
            return frozenset(named), count


def _garbage(fs: FileSystem, place: str, present: Manifest) -> list[str] | None:
    """Return what a crash has left: files for *place* that no manifest names, or all such. None if
    that can't be said."""
    files = _files(fs, folder_of(place))
    beside = _named_beside(fs, place)
    if beside is None:
        return None
    named, others = beside
    wanted = named | present.names()
    return [name for name in files if name not in wanted and (not others or _made_for(place, name))]


def _remove(fs: FileSystem, place: str, before: Iterable[str]) -> None:
    """Remove files for *place*, and those of *before*, that no manifest names now."""
    folder = folder_of(place)
    files = [name for name in _files(fs, folder) if _made_for(place, name)]
    beside = _named_beside(fs, place)
    if beside is None:
        return
    remove_files(fs, folder, {*before, *files} - beside[0] - _names_at(fs, place))
