"""Records written anew: all of them or none, whatever ends it, and in smaller files."""

from __future__ import annotations

import itertools
import shutil
from contextlib import closing
from pathlib import Path

import pytest

import conuredb
from conure.errors import DiskFailed, DiskFull
from conure.fileio import OsFileSystem
from conure.ops.compacting import compact
from conure.state.snapshots import staged_places
from conure.storage.engine import EngineKind, EngineOptions, Record
from conure.storage.engines import KINDS, kind_named
from tests.cluster.test_node import started, write
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash
from tests.ops.test_offline import contents, flip

HOME, DATABASE = "/data", "/data/conure.db"
SMALL = EngineOptions(page_size=256, cache_bytes=1 << 16, memtable_bytes=2000, long_value=200)
MODES: tuple[CrashMode, ...] = ("dropped", "kept", "torn", "random")


@pytest.fixture(name="kind", params=sorted(KINDS))
def _kind(request: pytest.FixtureRequest) -> EngineKind:
    return kind_named(request.param)


def ignore(doing: str, done: int, total: int) -> None:
    """Take no note of progress."""


def filled(kind: EngineKind) -> tuple[CrashFileSystem, dict[bytes, Record]]:
    """Return a disk with records of which most were overwritten or removed, and what is left."""
    fs = CrashFileSystem()
    fs.make_directory(HOME)
    fs.sync_directory("/")
    with closing(kind.open(fs, DATABASE, SMALL, create=True)) as engine:
        for index in range(1, 5):
            for number in range(60):
                engine.put(b"%03d" % (number * 7 % 60), bytes([index]) * (50 + number), index)
            engine.put(b"long", bytes([index]) * 900, index)
            engine.checkpoint(index, 2, index * 11)
        for number in range(0, 60, 2):
            engine.delete(b"%03d" % number)
        engine.checkpoint(9, 3, 77)
        return fs, dict(engine.items())


def found(fs: CrashFileSystem, kind: EngineKind) -> dict[bytes, Record]:
    """Return what a start finds, which has to be in order and as of the same entry."""
    with closing(kind.open(fs, DATABASE, SMALL, create=False)) as engine:
        assert (engine.applied_index, engine.applied_term, engine.applied_digest) == (9, 3, 77)
        assert engine.check().records == len(engine)
        return dict(engine.items())


def test_what_nothing_needs_is_gone_and_all_else_is_there(kind: EngineKind) -> None:
    fs, model = filled(kind)
    seen: list[tuple[str, int, int]] = []
    compacted = compact(fs, HOME, kind, SMALL, lambda *facts: seen.append(facts))
    assert compacted.after < compacted.before
    assert compacted.records == len(model) == 31
    assert seen[-1] == ("compacting", 31, 31)
    assert found(fs, kind) == model
    assert staged_places(fs, HOME) == []
    again = compact(fs, HOME, kind, SMALL, ignore)
    assert again.after == again.before
    assert found(fs, kind) == model
    assert staged_places(fs, HOME) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_crash_at_any_sync_loses_nothing(kind: EngineKind, mode: CrashMode) -> None:
    for count in itertools.count(1):
        fs, model = filled(kind)
        fs.crash_at_sync = count
        try:
            compact(fs, HOME, kind, SMALL, ignore)
        except SimulatedCrash:
            after = fs.after_crash(mode)
            assert found(after, kind) == model
            compact(after, HOME, kind, SMALL, ignore)  # whatever is left beside it
            assert found(after, kind) == model
            assert staged_places(after, HOME) == []
        else:
            assert count > 2
            break


def test_a_full_disk_costs_nothing(kind: EngineKind) -> None:
    fs, model = filled(kind)
    used = fs.used_bytes()
    for room in (0, 1024, 3072):
        fs.set_capacity(used + room)
        with pytest.raises(DiskFull):
            compact(fs, HOME, kind, SMALL, ignore)
        assert fs.used_bytes() <= used
        assert found(fs, kind) == model
    fs.set_capacity(None)
    assert compact(fs, HOME, kind, SMALL, ignore).records == len(model)


def test_a_disk_that_fails_costs_nothing(kind: EngineKind) -> None:
    for at in itertools.count(1, 7):
        fs, model = filled(kind)
        fs.fail_call(at)
        try:
            compact(fs, HOME, kind, SMALL, ignore)
        except DiskFailed:
            assert found(fs.after_crash("kept"), kind) == model
        else:
            break


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(name="data", params=sorted(KINDS))
def _data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The directory of a node that was stopped in order, after most of its records had gone."""
    path = tmp_path / "data"
    facts = {"data_dir": str(path), "page_size": 1024, "engine": request.param}
    with started(OsFileSystem(), **facts) as node:
        for number in range(300):
            write(node, (b"key%03d" % number, bytes(500)))
        node._upkeep.checkpoint(0.0)
        for number in range(290):
            write(node, (b"key%03d" % number, None))
    return path


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = conuredb.main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_tells_sizes_and_keeps_the_records(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(["dump", str(data)], capsys)
    log = {name: text for name, text in contents(data).items() if name.startswith("raft/")}
    status, out, err = run(["compact", str(data)], capsys)
    assert (status, err) == (0, "")
    before, after = sizes(out)
    assert after < before
    assert out.startswith(f"{data}: 10 records, ")
    assert run(["dump", str(data)], capsys) == whole
    assert run(["check", "--quiet", str(data)], capsys) == (0, "", "")
    assert {name: text for name, text in contents(data).items() if name.startswith("raft/")} == log
    status, out, err = run(["compact", str(data)], capsys)
    assert (status, err) == (0, "")
    assert out.endswith("nothing to be saved\n")
    assert run(["compact", "--quiet", str(data)], capsys) == (0, "", "")


def sizes(out: str) -> tuple[int, int]:
    before, after = out.split(" records, ")[1].split(" bytes before, ")
    return int(before.replace(",", "")), int(after.split(" after")[0].replace(",", ""))


def test_a_damaged_directory_is_left_as_it_is(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = max(data.glob("raft/*.log"))
    flip(segment, 20)
    before = contents(data)
    status, out, err = run(["compact", str(data)], capsys)
    assert (status, out) == (1, "")
    assert str(segment) in err
    assert contents(data) == before
    flip(segment, 20)
    database = data / "conure.db"
    shutil.copy(database, data.parent / "kept")
    database.write_bytes(bytes(database.stat().st_size))
    before = contents(data)
    status, out, err = run(["compact", str(data)], capsys)
    assert (status, out) == (1, "")
    assert "conure.db" in err
    assert contents(data) == before


def test_a_directory_in_use_or_of_an_arbiter_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(OsFileSystem(), data_dir=str(tmp_path / "used")):
        status, out, err = run(["compact", str(tmp_path / "used")], capsys)
        assert (status, out) == (1, "")
        assert "is in use by process" in err
    with started(OsFileSystem(), data_dir=str(tmp_path / "a"), role="arbiter", bootstrap=False):
        pass
    status, out, err = run(["compact", str(tmp_path / "a")], capsys)
    assert (status, out) == (1, "")
    assert "arbiter" in err
