"""Nodes with either engine: what they are told, what they show, and what they send each other."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from pathlib import Path

import pytest

import conuredb
from conure.errors import CorruptionError, ForeignDirectory
from conure.fileio import OsFileSystem
from conure.state.backup import Backup, Facts
from conure.state.machine import Store
from conure.storage.engine import EngineOptions
from conure.storage.engines import BTREE, KINDS, kind_named
from tests.cluster.test_node import open_node, started, write
from tests.lab.answers import value_of
from tests.lab.crashfs import CrashFileSystem, SimulatedCrash
from tests.lab.engines import of_the_btree
from tests.lab.nodes import Lab, checkpoint, put

ENGINES = sorted(KINDS)
OTHERS = [name for name in ENGINES if name != BTREE]


def content(lab: Lab, node_id: str) -> dict[bytes, bytes]:
    return {key: record.value for key, record in lab[node_id]._store.engine.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_node_tells_which_engine_it_has(engine: str) -> None:
    fs = CrashFileSystem()
    node = open_node(fs, engine=engine, told_engine=True)
    node.recover()
    assert write(node, (b"k", b"v")) == [None]
    assert node.status()["engine"] == node.raft_stats()["engine"] == engine
    node.stop()
    again = open_node(fs)  # nobody asks for an engine: it is the directory's own
    again.recover()
    assert again.status()["engine"] == engine
    assert value_of(again, b"k") == b"v"
    again.stop()


def test_an_arbiter_has_none() -> None:
    node = open_node(CrashFileSystem(), role="arbiter", bootstrap=False, engine="lsm")
    assert node.status()["engine"] == node.raft_stats()["engine"] == ""
    node.stop()


@pytest.mark.parametrize(("made", "asked"), list(itertools.permutations(ENGINES, 2)))
def test_a_node_with_another_engine_than_its_directory_is_refused(made: str, asked: str) -> None:
    fs = CrashFileSystem()
    node = open_node(fs, engine=made, told_engine=True)
    node.recover()
    assert write(node, (b"k", b"v")) == [None]
    node.stop()
    names = {path: fs.list(path) for path in ("/data", "/data/raft")}
    with pytest.raises(ForeignDirectory, match=f"'{made}', not '{asked}'"):
        open_node(fs, engine=asked, told_engine=True)
    assert {path: fs.list(path) for path in ("/data", "/data/raft")} == names
    again = open_node(fs)
    again.recover()
    assert value_of(again, b"k") == b"v"
    again.stop()


@of_the_btree
def test_the_server_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    with started(OsFileSystem(), data_dir=str(data)) as node:
        assert write(node, (b"k", b"v")) == [None]
    before = (data / "identity.json").read_bytes()
    flags = [f"--data-dir={data}", "--engine=lsm", "--http-addr=127.0.0.1:0"]
    assert conuredb.main([*flags, "--raft-addr=127.0.0.1:0", "--node-id=n1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("conuredb: ")]
    assert "'btree', not 'lsm'" in line
    assert "restore" in line
    assert (data / "identity.json").read_bytes() == before


# -- from one to the other -------------------------------------------------------------------------


@pytest.mark.parametrize(("leader", "follower"), list(itertools.product(ENGINES, ENGINES)))
def test_members_of_any_engine_hold_the_same(leader: str, follower: str) -> None:
    """By entries and, once those are cut away, by a whole state."""
    lab = Lab()
    facts = {"checkpoint_log_bytes": 1 << 12, "memtable_bytes": 4000}
    lab.add("n1", bootstrap=True, engine=leader, **facts)
    for number in range(80):
        put(lab, b"%02d" % (number * 7 % 50), bytes([number]) * 60)
    for _ in range(2):
        checkpoint(lab["n1"])
        put(lab, b"k", b"v" * 6000)
    lab.add("n2", engine=follower, **facts)
    assert lab.join("n2") is None
    lab.tick(5)
    assert lab["n2"]._log.snapshot.index > 0  # it was sent a state
    for number in range(80):
        put(lab, b"%02d" % (number * 3 % 50), bytes([number]) * 50)
        if number % 30 == 0:
            lab["n2"].housekeep()
    lab.tick(5)
    assert content(lab, "n1") == content(lab, "n2")
    one, two = lab["n1"]._store, lab["n2"]._store
    assert (one.applied_index, one.digest) == (two.applied_index, two.digest)
    assert list(one.engine.items()) == list(two.engine.items())
    for node_id in ("n1", "n2"):
        lab[node_id]._store.engine.check()
        lab.stop(node_id)


def test_a_state_is_installed_amid_a_merge() -> None:
    """What was being merged is given up with the engine that it was for."""
    lab = Lab()
    facts = {"checkpoint_log_bytes": 1 << 12, "checkpoint_entries": 30, "memtable_bytes": 4000}
    lab.add("n1", bootstrap=True, engine="btree", **facts)
    for node_id, engine in (("n2", "lsm"), ("n3", "btree")):
        lab.add(node_id, engine=engine, **facts)
        assert lab.join(node_id) is None
    number = 0
    while not lab["n2"]._store.compact(0.0):  # until a merge has begun and isn't over
        assert number < 40
        for key in range(20):
            put(lab, b"%02d" % key, b"%d" % number * 90)
        checkpoint(lab["n2"])
        number += 1
    before = lab["n2"]._store.engine
    lab.cut.add("n2")
    for key in range(60):
        put(lab, b"%02d" % key, b"later" * 50)
        if key % 20 == 0:
            checkpoint(lab["n1"])
    lab.cut.clear()
    lab.tick_until(lambda: lab["n2"]._store.engine is not before)
    lab.tick(5)
    assert not lab.failed
    for _ in range(5):
        lab["n2"].housekeep()
        put(lab, b"k", b"v")
    lab.tick(5)
    one, two = lab["n1"]._store, lab["n2"]._store
    assert content(lab, "n1") == content(lab, "n2")
    assert (one.applied_index, one.digest) == (two.applied_index, two.digest)
    lab["n2"]._store.engine.check()
    disk = lab.disks["n2"]
    lab.stop("n2")
    with closing(kind_named("lsm").open(disk, "/data/conure.db", EngineOptions(), create=False)):
        left = [name for name in disk.list("/data/lsm") if not name.startswith("incoming-")]
    assert all(name.startswith("conure.db-") for name in left)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(ENGINES, ENGINES)))
def test_a_backup_of_one_is_restored_into_the_other(
    source: str, target: str, tmp_path: Path
) -> None:
    data, file = tmp_path / "data", tmp_path / "backup"
    with started(OsFileSystem(), data_dir=str(data), engine=source) as node:
        for number in range(50):
            write(node, (b"%02d" % number, bytes(number * 120)))
        backup = Backup(node._store.snapshot(), Facts("c", "n1", 1))
        file.write_bytes(b"".join(backup.chunks()))
        backup.close()
        records, digest = list(node._store.engine.items()), node._store.digest
    made = tmp_path / "made"
    argv = ["restore", str(file), f"--data-dir={made}", f"--engine={target}", "--quiet"]
    assert conuredb.main(argv) == 0
    facts = json.loads((made / "identity.json").read_text())
    assert facts.get("engine", BTREE) == target
    place = str(made / "conure.db")
    kind = kind_named(target)
    with closing(kind.open(OsFileSystem(), place, EngineOptions(), create=False)) as engine:
        assert list(engine.items()) == records
        assert Store(engine, b"").digest == digest
    assert conuredb.main(["check", "--quiet", str(made)]) == 0


def contents(fs: CrashFileSystem, directory: str) -> dict[str, bytes]:
    """Return the files of a data directory, but for the lock."""
    found = {}
    for folder in (directory, f"{directory}/raft", f"{directory}/lsm"):
        for name in fs.list(folder) if fs.exists(folder) else ():
            path = f"{folder}/{name}"
            if name not in ("LOCK", "raft", "lsm"):
                found[path] = fs.contents(path)
    return found


def _killed(fs: CrashFileSystem, engine: str, *, cut: bool) -> str:
    """Return the directory of a node that was killed, perhaps after a checkpoint *cut* its log."""
    node = open_node(fs, engine=engine, told_engine=True)
    node.recover()
    for number in range(20):
        assert write(node, (b"k%d" % number, b"v" * 100)) == [None]
    if cut:
        checkpoint(node)
    assert cut == (node._log.snapshot.index > 0)
    fs.restart_process()
    return node._directory.path


@pytest.mark.parametrize("engine", ENGINES)
def test_a_node_without_its_records_is_refused_and_touches_nothing(engine: str) -> None:
    fs = CrashFileSystem()
    directory = _killed(fs, engine, cut=True)
    lost = fs.contents(f"{directory}/conure.db")
    fs.remove(f"{directory}/conure.db")
    fs.open(f"{directory}/incoming-3.db", create=True).close()
    there = contents(fs, directory)
    for _ in range(2):
        with pytest.raises(CorruptionError, match=r"conure\.db is corrupt .* the file is missing"):
            open_node(fs)
        assert contents(fs, directory) == there
    fs.open(f"{directory}/conure.db", create=True).pwrite(lost, 0)
    again = open_node(fs)
    again.recover()
    assert value_of(again, b"k7") == b"v" * 100
    again.stop()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_log_that_has_everything_makes_lost_records_anew(engine: str) -> None:
    """With the LSM tree only where it has written no table: it can't tell otherwise."""
    fs = CrashFileSystem()
    directory = _killed(fs, engine, cut=False)
    for path in contents(fs, directory):
        if path.endswith("conure.db") or "/lsm/" in path:
            fs.remove(path)
    again = open_node(fs)
    again.recover()
    assert value_of(again, b"k7") == b"v" * 100
    again.stop()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_first_start_that_breaks_off_anywhere_is_begun_again(engine: str) -> None:
    at, is_over = 0, False
    while not is_over:
        at += 1
        fs = CrashFileSystem(at)
        fs.crash_at_sync = at
        try:
            node = open_node(fs, engine=engine, told_engine=True)
            node.recover()
            is_over = write(node, (b"k", b"v")) == [None]
            if is_over:
                checkpoint(node)
        except (SimulatedCrash, AssertionError):  # the node says that it has failed
            is_over = False
        for later in fs.survivors(at):
            again = open_node(later, engine=engine, told_engine=True)
            again.recover()
            assert write(again, (b"l", b"w")) == [None]
            assert value_of(again, b"k") == b"v" or not is_over
            again.stop()
    assert at > 5
