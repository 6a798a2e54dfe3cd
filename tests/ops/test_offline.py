"""The commands for a stopped node: what they tell and refuse, and that they change nothing."""

from __future__ import annotations

import base64
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import conuredb
from conure.cluster.opening import configuration_at
from conure.commands import Acquire, Increment, OpenSession, Operation, Put, Transaction
from conure.consensus.messages import Entry, EntryKind
from conure.consensus.raftlog import RaftLog
from conure.consensus.records import encode_record
from conure.fileio import OsFileSystem
from conure.ops import offline, progress
from conure.state.backup import UNFINISHED, Backup, Facts
from conure.state.codec import encode_transaction
from conure.state.machine import Store
from conure.storage.datadir import read_identity, write_identity
from conure.storage.engines import BTREE, LSM, kind_named
from tests.cluster.test_node import started, write
from tests.lab import forkserver
from tests.lab.engines import current, of_the_btree, open_engine
from tests.lab.process import ROOT, running

BINARY = b"\xff\x00", b"\xfe\n"
DATABASE = "conure.db"
pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """The directory of a node that was stopped in order: 40 records, one of them large."""
    path = tmp_path / "data"
    with started(OsFileSystem(), data_dir=str(path), page_size=1024) as node:
        for i in range(38):
            assert write(node, (b"key%02d" % i, b"value %d" % i)) == [None]
        assert write(node, BINARY, (b"large", b"x" * 5000)) == [None, None]
    return path


@pytest.fixture(name="crashed")
def _crashed(tmp_path: Path) -> Path:
    """The directory of a node that was killed: ten records of 30 are in its log alone."""
    path = tmp_path / "crashed"
    facts = {"data_dir": str(tmp_path / "alive"), "log_segment_bytes": 1 << 16}
    with started(OsFileSystem(), **facts) as node:
        for i in range(30):
            assert write(node, (b"key%02d" % i, b"value %d" % i)) == [None]
            if i == 19:
                node._upkeep.checkpoint(0.0)
        ignored = shutil.ignore_patterns("*.tmp", "*.old")  # made and removed beside all this
        shutil.copytree(tmp_path / "alive", path, ignore=ignored)
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """Return the bytes of every file but the lock's."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "LOCK"
    }


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def backup_of(data: Path, file: Path) -> Backup:
    """Write a backup of a stopped node, as a server would send it."""
    fs = OsFileSystem()
    raft_log = RaftLog.open(fs, str(data / "raft"))
    tree = open_engine(fs, str(data / DATABASE), create=False)
    store = Store(tree, configuration_at(raft_log, tree.applied_index))
    backup = Backup(store.snapshot(), Facts("0ld", "node0", 1_795_378_244_799))
    file.write_bytes(b"".join(backup.chunks()))
    backup.close()
    tree.close()
    raft_log.close()
    return backup


# -- check ---------------------------------------------------------------------------------------


def test_a_directory_in_order(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(data)
    assert conuredb.main(["check", str(data)]) == 0
    out, err = capsys.readouterr()
    first, log, tree, last = out.splitlines()
    assert re.fullmatch(rf"{data}: node n1 \(data\) of cluster [0-9a-f]{{32}}", first)
    assert re.fullmatch(r"log: .* in \d+ segments?, term 2, vote n1", log)
    assert re.match(
        r"(tree|tables): 40 records as of entry \d+ of term 2, \d+ (pages|blocks) \(", tree
    )
    assert last == "all in order"
    assert err == ""
    assert contents(data) == before
    assert conuredb.main(["check", "--quiet", str(data)]) == 0
    assert capsys.readouterr() == ("", "")


def test_any_damage_is_found_or_harmless(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A free page may hold anything; else a record that changed would be seen by a dump."""
    assert conuredb.main(["dump", str(data)]) == 0
    whole = capsys.readouterr().out
    rng = random.Random(7)
    found = 0
    for _ in range(60):
        path = rng.choice([data / DATABASE, max(data.glob("raft/*.log"))])
        offset = rng.randrange(path.stat().st_size)
        flip(path, offset)
        status = conuredb.main(["check", "--quiet", str(data)])
        found += status
        if not status:
            capsys.readouterr()
            assert conuredb.main(["dump", str(data)]) == 0
            assert capsys.readouterr().out == whole
        flip(path, offset)
    assert found > 10


def test_what_a_crash_leaves_is_in_order(crashed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A torn record at the end of the log is what the next start cuts off."""
    fs = OsFileSystem()
    raft_log = RaftLog.open(fs, str(crashed / "raft"))
    segment = raft_log._segments[-1]
    entry = Entry(raft_log.last_term, raft_log.last_index + 1, EntryKind.COMMAND, bytes(2000))
    record = encode_record([entry], segment.salt, 0)
    raft_log.close()
    with open(segment.path, "r+b") as file:
        file.seek(segment.end)
        file.write(record[: 512 - segment.end % 512])  # the sectors after it did not arrive
    before = contents(crashed)
    assert conuredb.main(["check", str(crashed)]) == 0
    assert contents(crashed) == before
    out = capsys.readouterr().out
    assert "entries " in out
    assert re.search("^(tree|tables): 20 records", out, re.MULTILINE)


def test_what_a_start_would_make_is_not_missed(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The room that the log keeps in reserve; the next start makes it again."""
    for path in data.glob("raft/*.reserve"):
        path.unlink()
    before = contents(data)
    assert conuredb.main(["check", str(data)]) == 0
    assert conuredb.main(["dump", str(data)]) == 0
    assert capsys.readouterr().err == ""
    assert contents(data) == before


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "page": (lambda data: flip(data / DATABASE, 3 * 1024 + 50), f"{DATABASE} is corrupt at byte 3"),
    "tree gone": (lambda data: (data / DATABASE).unlink(), f"{DATABASE} is corrupt .* missing"),
    "record": (
        lambda data: flip(max(data.glob("raft/*.log")), 64 + 44),
        r"\.log is corrupt at byte",
    ),
    "log gone": (lambda data: shutil.rmtree(data / "raft"), "snapshot is corrupt .* missing"),
    "vote": (lambda data: flip(data / "raft/state", 20), "state is corrupt at byte 0"),
    "identity": (lambda data: flip(data / "identity.json", 0), r"identity\.json is corrupt"),
    "formation": (lambda data: (data / "formation").write_bytes(b"CNRF"), "formation is corrupt"),
    "founders": (
        lambda data: (data / "formation").write_bytes(bytes.fromhex("434e524601c2412435616263")),
        "format version 97",
    ),
}


@of_the_btree
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(data: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    do, why = DAMAGES[damage]
    do(data)
    before = contents(data)
    assert conuredb.main(["check", str(data)]) == 1
    out, err = capsys.readouterr()
    assert "in order" not in out
    assert re.search(why, err)
    assert err.startswith("conuredb: ")
    assert err.count("\n") == 1
    assert contents(data) == before


def test_a_byte_of_any_file_with_records_is_found_and_named(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files of the LSM engine are read from end to end; the tree has free pages."""
    if current() == BTREE:
        return
    files = [data / DATABASE, *data.glob("lsm/*")]
    assert {path.suffix for path in files} == {".db", ".sst", ".blob"}
    rng = random.Random(11)
    for path in files:
        size = path.stat().st_size
        for offset in (0, size - 1, *(rng.randrange(size) for _ in range(8))):
            flip(path, offset)
            before = contents(data)
            assert conuredb.main(["check", str(data)]) == 1
            out, err = capsys.readouterr()
            assert "in order" not in out
            (line,) = err.splitlines()
            assert re.match(rf"conuredb: \S*/{path.name} is corrupt at byte \d+: ", line)
            assert contents(data) == before
            flip(path, offset)
    assert conuredb.main(["check", str(data)]) == 0


@of_the_btree
def test_every_part_is_checked_whatever_ails_the_others(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(data / DATABASE, 3 * 1024 + 50)
    flip(data / "raft/state", 20)
    fs, path = OsFileSystem(), str(data / "identity.json")
    write_identity(fs, path, read_identity(fs, path)[0], "at entry 7")
    assert conuredb.main(["check", "--quiet", str(data)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    faults = err.splitlines()
    assert len(faults) == 3
    assert "differ from the cluster's: at entry 7" in faults[0]
    assert "state is corrupt" in faults[1]
    assert f"{DATABASE} is corrupt" in faults[2]


@of_the_btree
def test_a_tree_of_another_time_is_noticed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(OsFileSystem(), data_dir=str(tmp_path / "other")) as node:
        for _ in range(100):
            write(node, (b"k", b"v"))
    shutil.copy(tmp_path / "other" / DATABASE, data / DATABASE)
    assert conuredb.main(["check", str(data)]) == 1
    assert "the log ends at" in capsys.readouterr().err


def test_an_installation_that_was_interrupted_is_seen_as_the_next_start_sees_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, new = tmp_path / "b.backup", tmp_path / "new"
    backup_of(data, file)
    assert conuredb.main(["restore", str(file), f"--data-dir={new}", "--quiet"]) == 0
    (new / DATABASE).rename(new / "incoming-0.db")
    before = contents(new)
    assert conuredb.main(["check", str(new)]) == 0
    assert re.search("^(tree|tables): 40 records", capsys.readouterr().out, re.MULTILINE)
    assert conuredb.main(["dump", str(new)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 40
    assert contents(new) == before


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "stats", "dump"])
def test_a_running_node_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with started(OsFileSystem(), data_dir=str(tmp_path / "alive")):
        assert conuredb.main([command, str(tmp_path / "alive")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"is in use by process \d+ on .* \(node n1\); stop that process", err)


@pytest.mark.parametrize("command", ["check", "stats", "dump"])
def test_no_data_directory_is_touched_or_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert conuredb.main([command, str(tmp_path)]) == 1
    assert conuredb.main([command, str(tmp_path / "missing")]) == 1
    assert "is no data directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / UNFINISHED).write_text("{}")
    assert conuredb.main([command, str(tmp_path)]) == 1
    assert "restore" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["check"], "check (command line): the following arguments are required: DIR"),
        (["check", "a", "b"], "check (command line): unrecognized arguments: b"),
        (["dump", "a", "--pre=x"], "dump (command line): unrecognized arguments: --pre=x"),
        (["restore"], "restore (command line): the following arguments are required: FILE"),
        (["restore", "/nowhere/b"], "FILE (command line): there is no file /nowhere/b"),
        (["restore", "b", "--bootstrap"], "unrecognized arguments: --bootstrap"),
        (["restore", "b", "--node-id=no/de"], "node_id (flag --node-id): 'no/de' is no node ID"),
        (["undo", "b"], "undo (command line): not expected here"),
    ],
)
def test_a_command_line_that_can_not_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("CONURE_DATA_DIR", str(tmp_path / "new"))
    assert conuredb.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", offline.COMMANDS)
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        conuredb.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: conuredb.py {command} " in capsys.readouterr().out


# -- stats and dump ------------------------------------------------------------------------------


def test_stats(data: Path, crashed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conuredb.main(["stats", str(data), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["node_id"], facts["role"], facts["vote"]) == ("n1", "data", "n1")
    assert (facts["records"], facts["engine"]) == (40, current())
    assert facts["applied_index"] == facts["log_last_index"] > 40
    tables = [path.stat().st_size for path in data.glob("lsm/*.sst")]
    values = [path.stat().st_size for path in data.glob("lsm/*.blob")]
    if current() == BTREE:
        assert facts["page_size"] == 1024
        assert facts["file_bytes"] == (data / DATABASE).stat().st_size
    else:
        assert facts["file_bytes"] == sum(tables) + sum(values)
        assert (facts["tables_level_0"], facts["table_bytes_level_0"]) == (1, sum(tables))
        assert facts["blob_bytes"] == sum(values)
        assert facts["blob_dead_bytes"] < 20  # the file's head
    assert conuredb.main(["stats", str(data)]) == 0
    text = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()
                if len(line.split()) > 1)  # fmt: skip
    assert text == {name: str(value) for name, value in facts.items() if value != ""}

    assert conuredb.main(["stats", str(crashed), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["records"], facts["log_last_index"] - facts["applied_index"]) == (20, 10)


def test_dump(data: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert conuredb.main(["dump", str(data)]) == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert len(lines) == 40
    assert [line["key"] for line in lines[:2]] == ["key00", "key01"]
    first, *_, large, binary = lines
    assert first == {
        "key": "key00",
        "value": "value 0",
        "create_revision": first["mod_revision"],
        "mod_revision": first["mod_revision"],
        "version": 1,
    }
    assert (large["key"], len(large["value"])) == ("large", 5000)
    assert binary["encoding"] == "base64"
    assert tuple(base64.b64decode(binary[name]) for name in ("key", "value")) == BINARY
    for prefix, count in (("key0", 10), ("", 40), ("key\x7f", 0), ("\udcff", 1), ("large", 1)):
        assert conuredb.main(["dump", f"--prefix={prefix}", str(data)]) == 0
        assert len(capfdbinary.readouterr().out.splitlines()) == count


def test_dump_shows_users_records_and_their_expiry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, new = tmp_path / "b.backup", tmp_path / "new"
    tree = open_engine(OsFileSystem(), str(tmp_path / "tree.db"))
    store = Store(tree, b"")
    operations = (Put(b"a", b"1"), Put(b"b", b"2", ttl=5000), OpenSession(b"s1", 9000, False, b""))
    entry = Entry(1, 1, EntryKind.COMMAND, encode_transaction(
        Transaction((), operations, time=1_800_000_000_000)
    ))  # fmt: skip
    store.apply([entry])
    backup = Backup(store.snapshot(), Facts("0ld", "node0", 0))
    file.write_bytes(b"".join(backup.chunks()))
    assert conuredb.main(["restore", str(file), f"--data-dir={new}", "--quiet"]) == 0
    assert conuredb.main(["dump", str(new)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["key"], line.get("expiry")) for line in lines] == [
        ("a", None),
        ("b", 1_800_000_005_000),
    ]
    assert conuredb.main(["stats", "--json", str(new)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["records"] == 2 < facts["tree_records"]
    backup.close()


def test_all_commands_tell_one_number_of_records_and_name_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """restore, check, stats and dump of the same state; and the server that counts it."""
    file, new = tmp_path / "b.backup", tmp_path / "new"
    tree = open_engine(OsFileSystem(), str(tmp_path / "tree.db"))
    store = Store(tree, b"")
    first: tuple[Operation, ...] = (
        *[Put(b"k%d" % number, b"1", ttl=3_600_000 * (number % 2)) for number in range(6)],
        OpenSession(b"s" * 32, 3_600_000, False, b""),
        OpenSession(b"t" * 32, 3_600_000, False, b""),
    )
    second = (
        Acquire(b"k0", b"s" * 32, None),
        Acquire(b"free", b"s" * 32, None),
        Acquire(b"k1", b"t" * 32, None),
        Increment(b"n", 1),
    )
    now = round(time.time() * 1000)
    once = Transaction((), second, (), now, b"once", b"f", 3_600_000)
    for index, each in enumerate([Transaction((), first, time=now), once], 1):
        store.apply([Entry(1, index, EntryKind.COMMAND, encode_transaction(each))])
    assert (store.records, len(tree)) == (7, 23)
    backup = Backup(store.snapshot(), Facts("0ld", "node0", 0))
    file.write_bytes(b"".join(backup.chunks()))
    backup.close()

    others = "beside them 2 sessions, 3 locks, 1 outcome, 10 bookkeeping"
    assert conuredb.main(["restore", str(file), f"--data-dir={new}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("restored 7 records as of revision 2, ")
    assert said[1] == others
    assert conuredb.main(["check", str(new)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tree: 7 records as of entry 2 ") for line in said)
    assert others in said
    assert conuredb.main(["dump", str(new)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert conuredb.main(["stats", "--json", str(new)]) == 0
    facts = json.loads(capsys.readouterr().out)
    kinds = [facts[name] for name in ("records", "sessions", "locks", "outcomes", "bookkeeping")]
    assert kinds == [7, 2, 3, 1, 10]
    assert facts["tree_records"] == sum(kinds)
    with running(new) as server:
        assert json.loads(server.request("GET", "/kv/count").body)["count"] == 7
        assert b"\nconure_db_records 7\n" in server.request("GET", "/metrics").body
        assert re.search(r"is leader at index \d+, 7 records", server.text)


def test_dump_says_what_it_can_not_have(crashed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conuredb.main(["dump", str(crashed)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 20
    assert "10 entries that follow are in the log only" in err


def test_an_arbiter_has_no_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "arbiter"
    with started(OsFileSystem(), data_dir=str(path), role="arbiter", bootstrap=False):
        pass
    assert conuredb.main(["check", str(path)]) == 0
    assert "node n1 (arbiter) of no cluster" in capsys.readouterr().out
    assert conuredb.main(["stats", "--json", str(path)]) == 0
    assert "records" not in json.loads(capsys.readouterr().out)
    assert conuredb.main(["dump", str(path)]) == 1
    assert "keeps no records" in capsys.readouterr().err


def test_who_has_seen_enough_ends_a_dump_quietly(data: Path, tmp_path: Path) -> None:
    with started(OsFileSystem(), data_dir=str(data)) as node:
        for i in range(20):
            write(node, (b"more%d" % i, bytes(100_000)))
    command = f"{shlex.quote(sys.executable)} conuredb.py dump {shlex.quote(str(data))}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert json.loads(done.stdout)["key"] == "key00"
    assert (done.returncode, done.stderr) == (0, b"")


# -- progress ------------------------------------------------------------------------------------


def test_progress_on_a_terminal_is_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "TERMINAL_INTERVAL", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert conuredb.main(["check", str(data)]) == 0
    err = capsys.readouterr().err
    assert "\n" not in err
    assert err.endswith("\r\x1b[K")
    shown = [int(percent) for percent in re.findall(r"\rreading: (\d+) %\x1b\[K", err)]
    assert shown == sorted(shown)
    assert shown[0] < 50
    assert 90 <= shown[-1] <= 100
    assert conuredb.main(["check", "--quiet", str(data)]) == 0
    assert capsys.readouterr().err == ""


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line = progress.ProgressLine(quiet=False)
    for _ in range(250):
        now += 0.1
        line("restoring", round(now) - 100, 50)
    line.end()
    assert capsys.readouterr().err == "restoring: 20 %\nrestoring: 40 %\n"


# -- restore -------------------------------------------------------------------------------------


def test_restore_says_what_it_has_made(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, new = tmp_path / "b.backup", tmp_path / "new"
    index = backup_of(data, file).header.index
    assert conuredb.main(["restore", str(file), f"--data-dir={new}", "--node-id=n7"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, second, third = out.splitlines()
    assert first == (
        f"restored 40 records as of revision {index}, "
        "taken 2026-11-22T20:10:44Z from node node0 of cluster 0ld"
    )
    cluster = json.loads((new / "identity.json").read_text())["cluster_id"]
    assert second == f"{new} belongs to node n7 of the new cluster {cluster}; start it with"
    assert third == f"  python3 conuredb.py --data-dir={new}"
    assert conuredb.main(["restore", str(file), f"--data-dir={new}"]) == 1
    assert "new or empty" in capsys.readouterr().err
    assert conuredb.main(["check", str(new), "--quiet"]) == 0


def test_restore_takes_the_settings_of_the_server(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, new = tmp_path / "b.backup", tmp_path / "new"
    backup_of(data, file)
    monkeypatch.setenv("CONURE_DATA_DIR", str(new))
    monkeypatch.setenv("CONURE_PAGE_SIZE", "8KiB")
    monkeypatch.setenv("CONURE_ROLE", "arbiter")
    assert conuredb.main(["restore", str(file)]) == 2
    assert "an arbiter keeps none" in capsys.readouterr().err
    assert not new.exists()
    monkeypatch.delenv("CONURE_ROLE")
    assert conuredb.main(["restore", "--quiet", str(file)]) == 0
    assert capsys.readouterr() == ("", "")
    assert conuredb.main(["stats", "--json", str(new)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["node_id"], facts["page_size"]) == ("node1", 8192)


def test_restore_heeds_a_profile_and_what_it_calls_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, object]] = []

    def seen(*_: object, **facts: object) -> None:
        made.append(facts)
        raise KeyboardInterrupt

    monkeypatch.setattr(offline, "restore", seen)
    flags = ("--http-addr=10.0.0.1:1", "--api-addr=10.0.0.2:2", "--replication-addr=10.0.0.3:3")
    words = ["restore", "b", f"--data-dir={tmp_path}", *flags]
    assert conuredb.main([*words, "--profile=kvstore"]) == 1
    assert conuredb.main(words) == 2
    assert [(each["http_address"], each["raft_address"]) for each in made] == [
        ("http://10.0.0.2:2", "10.0.0.3:3")
    ]
    assert made[0]["kind"] is kind_named(LSM)


def test_an_interrupted_restore_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(offline, "restore", interrupted)
    assert conuredb.main(["restore", "b", f"--data-dir={tmp_path}"]) == 1
    assert "it can be run again" in capsys.readouterr().err


def test_a_restored_node_serves(tmp_path: Path) -> None:
    """Through real processes: old data, larger revisions, no flag but the directory."""
    old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "b.backup"
    with running(old) as server:
        for i in range(10):
            assert server.put(f"k{i}", b"v%d" % i).status == 200
        assert server.put("k0", b"again").status == 200
        assert server.request("DELETE", "/kv?key=k1").status == 200
        cluster = json.loads(server.request("GET", "/status").body)["cluster_id"]
        assert server.terminate() == 0
    header = backup_of(old, file).header
    done = forkserver.run([ROOT / "conuredb.py", "restore", file, f"--data-dir={new}"], timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")
    with running(new) as server:
        assert server.get("k0").body == b"again"
        assert server.get("k1").status == 404
        assert server.get("k9").body == b"v9"
        assert server.put("k1", b"new").status == 200
        status = json.loads(server.request("GET", "/status").body)
        assert status["is_leader"]
        assert status["applied_index"] > header.index
        assert status["term"] > header.term
        assert status["cluster_id"] not in ("", cluster)
        busy = forkserver.run([ROOT / "conuredb.py", "check", new], timeout=30)
        assert busy.returncode == 1
        assert f"process {server.process.pid} on" in busy.stderr.decode()
        server.kill()
