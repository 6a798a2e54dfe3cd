"""The data directory: who owns it, and which process holds it.

::

    data_dir/
      LOCK            held by the one process that uses the directory; says which
      identity.json   {"format": 1, "node_id": …, "cluster_id": …}
      conure.db       the B-tree (pager.py, btree.py)
      raft/           log segments, term and vote, snapshot metadata (raftlog.py)

1. One process a directory (flock): the second one is told who holds it.
2. A directory belongs to one node for ever. Another node's directory, or a folder that holds
   something else, is refused before anything in it is touched.
3. ``identity.json`` is the last file that making a directory writes, so a half-made directory
   is recognised and made again.

Used by node.py, by one thread at start and stop.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import dataclass

from errors import CorruptionError, ForeignDirectory
from fileio import FileSystem, Lock

__all__ = ["DataDirectory", "Identity"]

FORMAT = 1
_LOCK = "LOCK"
_IDENTITY = "identity.json"
_OURS = frozenset({_LOCK, _IDENTITY, _IDENTITY + ".new", "conure.db", "raft", "lost+found"})


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose data it is. ``cluster_id`` is empty until the node belongs to a cluster."""

    node_id: str
    cluster_id: str = ""


class DataDirectory:
    """An open, locked data directory."""

    def __init__(self, fs: FileSystem, path: str, lock: Lock, identity: Identity) -> None:
        self.fs = fs
        self.path = path
        self.identity = identity
        self._lock = lock

    @classmethod
    def open(cls, fs: FileSystem, path: str, node_id: str, *, told_node_id: bool) -> DataDirectory:
        """Lock the directory and find out whose it is; make it if it is missing or empty.

        *node_id* names a new directory's owner. For an existing one it has to match, unless it
        is only the default (*told_node_id* false).

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
                identity = _read_identity(fs, identity_path)
                if told_node_id and identity.node_id != node_id:
                    raise ForeignDirectory(
                        f"{path} belongs to node {identity.node_id!r}, not to {node_id!r}; "
                        "every node needs a data_dir of its own"
                    )
                return cls(fs, path, lock, identity)
            directory = cls(fs, path, lock, Identity(node_id))
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
        assert not self.identity.cluster_id
        self._write_identity(Identity(self.identity.node_id, uuid.uuid4().hex))

    def close(self) -> None:
        """Let another process have the directory."""
        self._lock.release()

    def _holds_data(self) -> bool:
        fs, raft = self.fs, self.raft_path
        return fs.exists(self.database_path) or (fs.exists(raft) and bool(fs.list(raft)))

    def _write_identity(self, identity: Identity) -> None:
        path = os.path.join(self.path, _IDENTITY)
        facts = {
            "format": FORMAT,
            "node_id": identity.node_id,
            "cluster_id": identity.cluster_id,
        }
        file = self.fs.open(path + ".new", create=True)
        try:
            file.truncate(0)
            file.pwrite(json.dumps(facts, indent=2).encode() + b"\n", 0)
            file.sync()
        finally:
            file.close()
        self.fs.rename(path + ".new", path)
        self.fs.sync_directory(self.path)
        self.identity = identity


def _read_identity(fs: FileSystem, path: str) -> Identity:
    file = fs.open(path, read_only=True)
    try:
        content = file.pread(64 << 10, 0)
    finally:
        file.close()
    try:
        facts = json.loads(content)
        version, node_id, cluster_id = facts["format"], facts["node_id"], facts["cluster_id"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptionError(path, 0, f"not a ConureDB identity ({error!r})") from error
    if version != FORMAT:
        raise ForeignDirectory(
            f"{path} has format {version!r}, this version reads format {FORMAT}; "
            "use the version that wrote it or a newer one"
        )
    if not isinstance(node_id, str) or not isinstance(cluster_id, str) or not node_id:
        raise CorruptionError(path, 0, "node_id and cluster_id have to be strings")
    return Identity(node_id, cluster_id)
