"""The data directory: who owns it, and which process holds it.

::

    data_dir/
      LOCK            held by the one process that uses the directory; says which
      identity.json   {"format": 1, "node_id": …, "cluster_id": …, "incarnation": …, "role": …,
                      "diverged": …, "checksum": …}
                      {"format": 2, …, "role": …, "engine": "lsm", "diverged": …, "checksum": …}
      formation       with which founders the cluster was formed, if it was (see below)
      conure.db       the B-tree (pager.py, btree.py), or what an LSM tree consists of
      lsm/            the files of an LSM tree
      incoming-….db   a state that another node is sending (snapshots.py)
      tls/            certificates that --tls-auto has made (trial.py)
      raft/           log segments, term and vote, snapshot metadata (raftlog.py)

1. One process a directory (flock): the second one is told who holds it.
2. A directory belongs to one node for ever. Another node's directory, or a folder that holds
   something else, is refused before anything in it is touched.
3. ``identity.json`` is the last file that making a directory writes, so a half-made directory
   is recognised and made again.
4. The *incarnation* is drawn when the directory is made and never changes. A member whose disk was
   wiped comes back with another one, and the others see that it has forgotten what it promised.
5. The role never changes: an arbiter's directory holds no data that another role could begin with.
   Nor does the engine, which is the B-tree in format 1 and the one that is named in format 2. So
   versions that know nothing of other engines read and write format 1, and refuse the rest before
   they touch anything. An arbiter's directory has format 1, whatever engine was asked for.
6. A directory whose data were found to differ from the cluster's is never served again.
7. ``checksum`` is the CRC-32, in eight hexadecimal digits, of the file without that field. The
   file is what :func:`_encoded` makes of its facts, byte for byte, so that any other byte in it is
   damage. A file with the six fields of format 1 and no checksum is of a version that had none; it
   is read as it is, and gets one when it is next written. Those versions read by name what they
   know, so they open a file with a checksum too.

8. ``formation`` is there before the log of a cluster that is formed begins, and never changes once
   the directory belongs to that cluster. The formation itself is formation.py's matter::

       offset 0   4 bytes  ``CNRF``
              4   1        version, 1
              5   4        CRC-32 of all that follows, little-endian
              9   ...      the canonical bytes of the formation

   Of the three bytes ``abc``: 43 4e 52 46  01  c2 41 24 35  61 62 63

Opened by opening.py and closed by node.py, each by one thread at start and stop; offline.py looks
at one of a node that doesn't run.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from zlib import crc32

from conure.errors import CorruptionError, DiskFull, ForeignDirectory
from conure.fileio import FileSystem, Lock

__all__ = [
    "DataDirectory",
    "Identity",
    "belongs_to_cluster",
    "engine_in",
    "read_identity",
    "write_identity",
]

FORMAT = 1
FORMAT_WITH_ENGINE = 2
_LOCK = "LOCK"
_IDENTITY = "identity.json"
_FORMATION = "formation"
_OURS = frozenset(
    {
        *(_LOCK, _IDENTITY, _IDENTITY + ".new", _FORMATION, _FORMATION + ".new"),
        *("conure.db", "lsm", "raft", "tls", "lost+found"),
    }
)
_FORMATION_HEADER = struct.Struct("<4sBI")
_FORMATION_MAGIC, _FORMATION_VERSION = b"CNRF", 1
_MAX_FORMATION = 64 << 10  # bytes
_ROLES = ("data", "arbiter")
_BTREE = "btree"  # the engine of format 1
_ENGINES = ("lsm",)  # those of format 2
_WITHOUT_CHECKSUM = {"format", "node_id", "cluster_id", "incarnation", "role", "diverged"}


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose data it is. ``cluster_id`` is empty until the node belongs to a cluster."""

    node_id: str
    cluster_id: str = ""
    incarnation: str = ""
    role: str = "data"  # or "arbiter"
    engine: str = "btree"  # or "lsm": the name of its kind (engines.py)


class DataDirectory:
    """An open, locked data directory."""

    def __init__(self, fs: FileSystem, path: str, lock: Lock, identity: Identity) -> None:
        self.fs = fs
        self.path = path
        self.identity = identity
        self._lock = lock

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        path: str,
        node_id: str,
        *,
        told_node_id: bool,
        role: str = "data",
        engine: str = "btree",
        told_engine: bool = False,
    ) -> DataDirectory:
        """Lock the directory and find out whose it is; make it if it is missing or empty.

        *node_id* names a new directory's owner. For an existing one it has to match, unless it
        is only the default (*told_node_id* false). *role* has to match always. *engine* is that of
        a new directory; an existing one's has to be the same if anybody asked for it
        (*told_engine*). For an arbiter neither counts.

        Raises DirectoryInUse, ForeignDirectory, CorruptionError, DiskFull or DiskFailed.
        """
        fs.make_directory(path)
        identity_path = os.path.join(path, _IDENTITY)
        if not fs.exists(identity_path):
            strangers = sorted(set(fs.list(path)) - _OURS)
            if strangers:
                raise ForeignDirectory(
                    f"{path} holds {strangers[0]!r} and no ConureDB data; "
                    "name an empty or new directory as data_dir"
                )
        holder = f"process {os.getpid()} on {socket.gethostname()} (node {node_id})"
        lock = fs.lock(os.path.join(path, _LOCK), holder)
        try:
            if fs.exists(identity_path):
                # A killed process may have left a new name to the page cache: the identity's or,
                # after a snapshot was installed, the tree's. What is acted on has to last.
                fs.sync_directory(path)
                identity, diverged = read_identity(fs, identity_path)
                _refuse_if_unfit(
                    path,
                    identity,
                    diverged,
                    node_id=node_id if told_node_id else "",
                    role=role,
                    engine=engine if told_engine else "",
                )
                return cls(fs, path, lock, identity)
            kind = engine if role == "data" else _BTREE
            identity = Identity(node_id, "", uuid.uuid4().hex, role, kind)
            directory = cls(fs, path, lock, identity)
            if directory._holds_data():
                raise CorruptionError(
                    identity_path, 0, "the file is missing though there is data beside it"
                )
            fs.make_directory(directory.raft_path)
            directory._write_identity(directory.identity)
        except BaseException:
            lock.release()
            raise
        return directory

    @property
    def database_path(self) -> str:
        return os.path.join(self.path, "conure.db")

    @property
    def raft_path(self) -> str:
        return os.path.join(self.path, "raft")

    def begin_cluster(self) -> None:
        """Give a directory that belongs to no cluster yet one of its own; durable on return."""
        self.join_cluster(uuid.uuid4().hex)

    def join_cluster(self, cluster_id: str) -> None:
        """Give a directory that belongs to no cluster yet to this one, for ever.

        Durable on return. Raises DiskFull or DiskFailed.
        """
        assert cluster_id
        assert not self.identity.cluster_id
        self._write_identity(replace(self.identity, cluster_id=cluster_id))

    def mark_diverged(self, why: str) -> None:
        """Note that the data differ from the cluster's: opening is refused from now on.

        Durable on return. Raises DiskFull or DiskFailed.
        """
        self._write_identity(self.identity, why)

    def keep_formation(self, formation: bytes) -> None:
        """Keep with which founders a cluster is about to be formed; durable on return.

        Raises DiskFull or DiskFailed.
        """
        content = _formation_header(formation) + formation
        self._replace(_FORMATION, lambda path: _write(self.fs, path, content))

    def formation(self) -> bytes:
        """Return what was kept last, b"" if nothing ever was. Raises CorruptionError."""
        path = os.path.join(self.path, _FORMATION)
        if not self.fs.exists(path):
            return b""
        file = self.fs.open(path, read_only=True)
        try:
            content = file.pread(_MAX_FORMATION, 0)
        finally:
            file.close()
        formation = content[_FORMATION_HEADER.size :]
        if content[: _FORMATION_HEADER.size] != _formation_header(formation):
            raise CorruptionError(path, 0, "its version or checksum isn't that of what it says")
        return formation

    def close(self) -> None:
        """Let another process have the directory."""
        self._lock.release()

    def _holds_data(self) -> bool:
        fs = self.fs
        folders = (self.raft_path, os.path.join(self.path, "lsm"))
        return fs.exists(self.database_path) or any(
            fs.exists(folder) and fs.list(folder) for folder in folders
        )

    def _write_identity(self, identity: Identity, diverged: str = "") -> None:
        self._replace(_IDENTITY, lambda path: write_identity(self.fs, path, identity, diverged))
        self.identity = identity

    def _replace(self, name: str, write: Callable[[str], None]) -> None:
        """Put what *write* writes to a path in place of a file; its name is durable on return."""
        path = os.path.join(self.path, name)
        try:
            write(path + ".new")
        except DiskFull:
            if self.fs.exists(path + ".new"):
                self.fs.remove(path + ".new")
            raise
        self.fs.rename(path + ".new", path)
        self.fs.sync_directory(self.path)


def _refuse_if_unfit(
    path: str, identity: Identity, diverged: str, *, node_id: str, role: str, engine: str
) -> None:
    """Raise ForeignDirectory if this is not the directory to start with; a *node_id* or *engine*
    of "" fits any."""
    if node_id not in ("", identity.node_id):
        raise ForeignDirectory(
            f"{path} belongs to node {identity.node_id!r}, not to {node_id!r}; "
            "every node needs a data_dir of its own"
        )
    if role != identity.role:
        raise ForeignDirectory(
            f"{path} was made for the role {identity.role!r}, not {role!r}, and a role never "
            f"changes; remove node {identity.node_id!r} from its cluster, "
            "empty the directory and let it join again"
        )
    if engine not in ("", identity.engine) and role == "data":
        raise ForeignDirectory(
            f"{path} was made for the engine {identity.engine!r}, not {engine!r}, and a directory "
            f"keeps its engine; start it without --engine, or take a backup of it and restore "
            f"that with --engine={engine} into another directory"
        )
    if diverged:
        raise ForeignDirectory(
            f"the data in {path} differ from the cluster's: {diverged}; "
            f"remove node {identity.node_id!r} from the cluster, "
            "empty the directory and let it join again"
        )


def write_identity(fs: FileSystem, path: str, identity: Identity, diverged: str = "") -> None:
    """Write a file of that name for :func:`read_identity`; its directory is left to be synced.

    Raises DiskFull or DiskFailed.
    """
    own = asdict(identity)
    if identity.engine == _BTREE:
        del own["engine"]
    version = FORMAT if identity.engine == _BTREE else FORMAT_WITH_ENGINE
    _write(fs, path, _encoded({"format": version, **own, "diverged": diverged}))


def read_identity(fs: FileSystem, path: str) -> tuple[Identity, str]:
    """Return whose directory it is, and how its data differ from the cluster's, "" if they don't.

    Raises CorruptionError or ForeignDirectory.
    """
    file = fs.open(path, read_only=True)
    try:
        content = file.pread(64 << 10, 0)
    finally:
        file.close()
    try:
        facts = json.loads(content)
        _refuse_if_damaged(path, content, facts)
        if facts["format"] not in (FORMAT, FORMAT_WITH_ENGINE):
            raise ForeignDirectory(
                f"{path} has format {facts['format']!r}, this version reads the formats {FORMAT} "
                f"and {FORMAT_WITH_ENGINE}; use the version that wrote it or a newer one"
            )
        has_engine = facts["format"] == FORMAT_WITH_ENGINE
        names = [field.name for field in fields(Identity)]
        texts = [facts[name] for name in names if has_engine or name != "engine"]
        diverged = facts["diverged"]
        if "checksum" not in facts and (has_engine or facts.keys() != _WITHOUT_CHECKSUM):
            raise CorruptionError(path, 0, "it has no checksum, but not the fields of that time")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptionError(path, 0, f"not a ConureDB identity ({error!r})") from error
    if not all(isinstance(text, str) for text in (*texts, diverged)):
        raise CorruptionError(path, 0, "a fact that has to be a string is none")
    identity = Identity(*texts)
    if not identity.node_id or not identity.incarnation or identity.role not in _ROLES:
        raise CorruptionError(path, 0, "it names no node, no incarnation or no known role")
    if has_engine and (identity.engine not in _ENGINES or identity.role != "data"):
        raise ForeignDirectory(
            f"{path} names the engine {identity.engine!r}, which this version doesn't know; "
            "use the version that wrote it or a newer one"
        )
    return identity, diverged


def engine_in(fs: FileSystem, path: str) -> str:
    """Return which engine the data directory *path* has, "" if there is none yet or it can't be
    told; who opens it then hears why. Nothing is locked. Raises DiskFailed."""
    identity_path = os.path.join(path, _IDENTITY)
    try:
        return read_identity(fs, identity_path)[0].engine
    except (FileNotFoundError, CorruptionError, ForeignDirectory):
        return ""


def belongs_to_cluster(fs: FileSystem, path: str) -> bool:
    """Tell whether the data directory *path* is of a cluster, or may be of one; False if there is
    none yet. Nothing is locked. Raises DiskFailed."""
    try:
        identity, _ = read_identity(fs, os.path.join(path, _IDENTITY))
    except FileNotFoundError:
        return False
    except (CorruptionError, ForeignDirectory):
        return True  # who opens it hears why it can't be told
    return bool(identity.cluster_id) or fs.exists(os.path.join(path, _FORMATION))


def _formation_header(formation: bytes) -> bytes:
    return _FORMATION_HEADER.pack(_FORMATION_MAGIC, _FORMATION_VERSION, crc32(formation))


def _write(fs: FileSystem, path: str, content: bytes) -> None:
    """Let a file have this content; durable on return, but for its name."""
    file = fs.open(path, create=True)
    try:
        file.truncate(0)
        file.pwrite(content, 0)
        file.sync()
    finally:
        file.close()


def _encoded(facts: Mapping[str, Any]) -> bytes:
    """Return the file that says so: the facts in their order, and their checksum."""
    checksum = f"{crc32(json.dumps(facts, indent=2).encode()):08x}"
    return json.dumps({**facts, "checksum": checksum}, indent=2).encode() + b"\n"


def _refuse_if_damaged(path: str, content: bytes, facts: Mapping[str, Any]) -> None:
    """Raise CorruptionError if a file with a checksum isn't what was written."""
    if "checksum" in facts:
        others = {name: fact for name, fact in facts.items() if name != "checksum"}
        if content != _encoded(others):
            raise CorruptionError(path, 0, "its checksum doesn't match what it says")
