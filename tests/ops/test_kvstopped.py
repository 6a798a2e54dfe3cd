"""kvctl and the directory of a stopped node: what it shows and refuses; nothing changes."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conure.commands import Put, Transaction
from conure.fileio import OsFileSystem
from conure.ops import kvstopped
from conure.storage.datadir import read_identity, write_identity
from conure.storage.engines import LSM
from tests.cluster.test_node import started, write
from tests.lab import engines
from tests.lab.answers import outcomes_of
from tests.lab.engines import of_the_btree
from tests.lab.kvctltool import Kvctl
from tests.lab.process import ROOT, running, wait_until
from tests.ops.test_offline import contents, flip

BINARY = b"\xff\x00", b"\xfe\n"
LONG = bytes(range(256)) * 40
DATABASE = "conure.db"
pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """The directory of a node that was stopped in order: 40 records and their tombstones."""
    path = tmp_path / "data"
    with started(OsFileSystem(), data_dir=str(path), page_size=1024) as node:
        for number in range(38):
            assert write(node, (b"key%02d" % number, b"value %d" % number)) == [None]
        assert write(node, BINARY, (b"large", LONG), (b"gone", b"x")) == [None] * 3
        node._upkeep.checkpoint(0.0)
        assert write(node, (b"gone", None)) == [None]
    return path


@pytest.fixture(name="kvctl")
def _kvctl(data: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Kvctl:
    return Kvctl(capsysbinary, f"--data-dir={data}")


@pytest.fixture(name="bare")
def _bare(capsysbinary: pytest.CaptureFixture[bytes]) -> Kvctl:
    return Kvctl(capsysbinary)


def objects(out: bytes) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


# -- records ---------------------------------------------------------------------------------------


def test_records_are_read_and_nothing_is_changed(kvctl: Kvctl, data: Path) -> None:
    before = contents(data)
    assert kvctl("get", "key07") == (0, b"value 7", "")
    assert kvctl("get", "large").out == LONG
    assert kvctl("ttl", "key07").out == b"never\n"
    (record,) = objects(kvctl("get", "key07", "--json").out)
    revision = record["mod_revision"]
    assert record == {
        "key": "key07", "value": "value 7", "create_revision": revision,
        "mod_revision": revision, "version": 1,
    }  # fmt: skip
    (record,) = objects(kvctl("get", BINARY[0], "--json").out)
    assert record["encoding"] == "base64"
    assert base64.b64decode(record["value"]) == BINARY[1]
    for name in ("nothing", "gone"):
        for command in ("get", "ttl"):
            assert kvctl.fails(command, name) == "kvctl: key not found"
    for command in ("scan", "stats", "check", "tables", "dump"):
        assert kvctl(command).status == 0
    assert contents(data) == before


def test_scan(kvctl: Kvctl) -> None:
    keys = [f"key{number:02}" for number in range(38)]
    assert kvctl("scan").lines == [*keys, "large", "\\xff\\x00"]
    assert kvctl("scan", "--reverse", "--limit=3").lines == ["\\xff\\x00", "large", "key37"]
    assert kvctl("scan", "key3", "--values", "--limit=2").lines == [
        "key30\tvalue 30", "key31\tvalue 31",
    ]  # fmt: skip
    assert objects(kvctl("scan", "--json", "--reverse", "--limit=2").out) == [
        {"key": base64.b64encode(BINARY[0]).decode(), "encoding": "base64"}, {"key": "large"},
    ]  # fmt: skip
    (found,) = objects(kvctl("scan", "key00", "--json", "--values").out)
    assert (found["value"], found["version"]) == ("value 0", 1)
    assert kvctl("scan", "nobody") == (0, b"", "")


def test_dump_is_that_of_conuredb(
    kvctl: Kvctl, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = kvctl("dump").out
    assert len(lines.splitlines()) == 40
    done = subprocess.run(
        [sys.executable, "conuredb.py", "dump", str(data)],
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    assert lines == done.stdout
    assert len(kvctl("dump", "key0").out.splitlines()) == 10
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert objects(kvctl("dump").out) == objects(lines)


def test_when_a_key_expires(tmp_path: Path, bare: Kvctl, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "expiring"
    with started(OsFileSystem(), data_dir=str(path)) as node:
        now = time.time_ns() // 1_000_000
        put = Transaction((), (Put(b"k", b"v", ttl=3_600_000),), time=now)
        outcomes = outcomes_of(node.write, [put])
        wait_until(lambda: outcomes == [None])
    kvctl = bare.at(f"--data-dir={path}")
    (found,) = objects(kvctl("ttl", "k", "--json").out)
    expiry = found["expiry"]
    assert 0 < found["ttl"] <= 3600
    assert now + 3_600_000 <= expiry
    monkeypatch.setattr(time, "time_ns", lambda: (expiry - 90_000) * 1_000_000)
    assert kvctl("ttl", "k").out == b"1m30s\n"
    monkeypatch.setattr(time, "time_ns", lambda: (expiry + 5000) * 1_000_000)
    assert kvctl("ttl", "k").out == b"due since 5s: it goes as soon as a leader has it\n"


def test_what_the_log_alone_has_is_said(tmp_path: Path, bare: Kvctl) -> None:
    """Of a node that was killed."""
    with running(tmp_path / "data", "--bootstrap") as server:
        for number in range(5):
            assert server.put(f"k{number}", b"v").status == 200
        server.kill()
    kvctl = bare.at(f"--data-dir={tmp_path / 'data'}")
    for words in (["scan"], ["dump"], ["get", "k0"]):
        assert re.search(
            r"kvctl: these are the records as of entry 0; \d+ entries that follow are in the log "
            "only: start the node and stop it",
            kvctl(*words).err,
        )


# -- the whole of it -------------------------------------------------------------------------------


def test_stats(kvctl: Kvctl, data: Path) -> None:
    (facts,) = objects(kvctl("stats", "--json").out)
    assert (facts["node_id"], facts["engine"], facts["records"]) == ("n1", engines.current(), 40)
    shown = dict(line.split(maxsplit=1) for line in kvctl("stats").lines if len(line.split()) > 1)
    assert shown["records"] == "40"
    assert re.fullmatch(r"[\d.]+ [KM]iB \([\d,]+\)", shown["file_bytes"])
    assert shown.keys() == {name for name, fact in facts.items() if fact != ""}


def test_check(kvctl: Kvctl, data: Path) -> None:
    said = kvctl("check")
    assert (said.status, said.err) == (0, "")
    assert said.lines[0].startswith(f"{data}: node n1 (data) of cluster ")
    assert said.lines[-1] == "all in order"
    (found,) = objects(kvctl("check", "--json").out)
    assert found == {"ok": True, "found": said.lines[:-1], "faults": []}


def test_a_flipped_byte_is_found_and_named(kvctl: Kvctl, data: Path) -> None:
    (path,) = [each for each in (data / DATABASE, *data.glob("lsm/*.sst"))
               if b"value 30" in each.read_bytes()]  # fmt: skip
    for found in re.finditer(b"value 30", path.read_bytes()):  # some in pages that are free
        flip(path, found.start())
    before = contents(data)
    said = kvctl("check")
    assert said.status == 1
    assert re.fullmatch(rf"kvctl: {re.escape(str(path))} is corrupt at byte \d+: .*\n", said.err)
    assert "in order" not in said.out.decode()
    (found,) = objects(kvctl("check", "--json").out)
    assert not found["ok"]
    assert found["faults"] == [said.err[len("kvctl: ") : -1]]
    for words in (["dump"], ["compact"]):
        assert f"{path} is corrupt at byte" in kvctl(*words).err
    assert contents(data) == before


def test_any_damage_is_harmless_or_one_line(
    data: Path, tmp_path: Path, bare: Kvctl, engine: str
) -> None:
    """Whatever file it is in, nothing else is said, and nothing is changed."""
    rng = random.Random(f"damage {engine}")
    found = 0
    for number in range(25):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(data, copy, ignore=shutil.ignore_patterns("LOCK"))
        path = rng.choice(sorted(each for each in copy.rglob("*") if each.is_file()))
        content = path.read_bytes()
        at = rng.randrange(max(1, len(content)))
        changed = bytes([content[at] ^ 1 << rng.randrange(8)]) if content else b"x"
        path.write_bytes(
            rng.choice([content[:at], content[:at] + changed + content[at + 1 :], content + b"x"])
        )
        if not number % 5:
            path.unlink()
        before = contents(copy)
        for words in (["check"], ["tables"], ["get", "key01"], ["dump"]):
            said = bare(f"--data-dir={copy}", *words)
            assert said.status in (0, 1)
            if said.status:
                assert all(line.startswith("kvctl: ") for line in said.err.splitlines())
                assert str(copy) in said.err
                found += 1
            assert contents(copy) == before
    assert found > 10


def test_compact(kvctl: Kvctl, data: Path) -> None:
    lines = kvctl("dump").out
    said = kvctl("compact")
    assert (said.status, said.err) == (0, "")
    assert re.fullmatch(
        rf"{re.escape(str(data))}: 40 records, [\d.]+ KiB before, [\d.]+ KiB after.*\n",
        said.out.decode(),
    )
    assert kvctl("dump").out == lines
    assert kvctl("check").status == 0
    (facts,) = objects(kvctl("compact", "--json").out)
    assert facts["before"] == facts["after"]
    assert facts["records"] == 40


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [LSM], indirect=True)
@pytest.mark.skipif(engines.TOLD not in ("", LSM), reason="it is about the other engine")
def test_tables_of_an_lsm_tree(kvctl: Kvctl, data: Path) -> None:
    said = kvctl("tables")
    assert (said.status, said.err) == (0, "")
    text = re.sub(r"conure\.db-[0-9a-f]{16}-\d+(\.\w+) +", r"<drawn>\1 ", said.out.decode())
    assert re.sub(r"(file|long values) +size", r"\1 size", text) == (
        "level  file size  records  tombstones  first key  last key\n"
        "    0  <drawn>.sst 151 B        1           1  gone       gone\n"
        "    0  <drawn>.sst 1.9 KiB       41           0  gone       \\xff\\x00\n"
        "\n"
        "long values size    in use\n"
        "<drawn>.blob 10.0 KiB  10.0 KiB\n"
        "\n"
        "2 tables, 2.0 KiB; 1 file of long values, 10.0 KiB; 40 records, the store's own included, "
        "as of entry 44\n"
    )
    (facts,) = objects(kvctl("tables", "--json").out)
    assert (facts["engine"], facts["records"], facts["scan_marks"]) == ("lsm", 40, 0)
    newest, oldest = facts["tables"]
    assert (newest["level"], newest["records"], newest["tombstones"]) == (0, 1, 1)
    assert (newest["first_key"], newest["last_key"]) == ("kgone", "kgone")
    assert oldest["encoding"] == "base64"
    assert base64.b64decode(oldest["last_key"]) == b"k" + BINARY[0]
    for each in facts["tables"]:
        assert each["bytes"] == (data / "lsm" / each["file"]).stat().st_size
    (blob,) = facts["long_values"]
    assert blob["bytes"] == (data / "lsm" / blob["file"]).stat().st_size
    assert 0 < blob["used_bytes"] <= blob["bytes"]
    newest_file = data / "lsm" / newest["file"]
    newest_file.unlink()
    assert "a file that the manifest names is missing" in kvctl.fails("tables")


@of_the_btree
def test_tables_of_a_tree_are_its_figures(kvctl: Kvctl, data: Path) -> None:
    (facts,) = objects(kvctl("tables", "--json").out)
    assert (facts["engine"], facts["page_size"]) == ("btree", 1024)
    assert facts["file_bytes"] == (data / DATABASE).stat().st_size
    shown = dict(line.split(maxsplit=1) for line in kvctl("tables").lines)
    assert shown["page_size"] == "1.0 KiB (1,024)"
    assert shown.keys() == facts.keys()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["put", "k", "v"], "would be none in the log, .*; start the node and put it there"),
        (["delete", "k"], "would be none in the log, .*; start the node and delete it there"),
        (["watch"], "nothing happens in the directory of a stopped node; start it"),
        (["check", "--write"], "nothing is written into a stopped directory"),
    ],
)
def test_no_write_goes_around_the_log(
    kvctl: Kvctl, data: Path, words: list[str], told: str
) -> None:
    before = contents(data)
    (data / "LOCK").unlink()
    assert re.search(told, kvctl.fails(*words))
    assert contents(data) == before
    assert not (data / "LOCK").exists()  # it wasn't even opened


COMMANDS = (["get", "k"], ["ttl", "k"], ["scan"], ["stats"], ["check"], ["compact"], ["tables"],
            ["dump"])  # fmt: skip


def test_a_running_node_is_left_alone(tmp_path: Path, bare: Kvctl) -> None:
    with running(tmp_path / "data", "--bootstrap") as server:
        for words in COMMANDS:
            told = bare.fails(f"--data-dir={tmp_path / 'data'}", *words)
            assert re.search(
                rf"is in use by process {server.process.pid} on .* \(node node1\); stop that", told
            )


@of_the_btree
def test_no_data_directory_is_touched_or_made(tmp_path: Path, bare: Kvctl) -> None:
    for words in COMMANDS:
        for place in (tmp_path, tmp_path / "missing"):
            assert "is no data directory" in bare.fails(f"--data-dir={place}", *words)
    assert list(tmp_path.iterdir()) == []


def test_what_a_newer_version_has_written_is_refused(kvctl: Kvctl, data: Path) -> None:
    """A format of the directory, of the engine's file, and of the state in it."""
    before = contents(data)
    identity = data / "identity.json"
    facts = json.loads(identity.read_text())
    del facts["checksum"]
    identity.write_text(json.dumps({**facts, "format": 9}))
    touched = contents(data)
    for words in COMMANDS:
        assert "has format 9, this version reads the formats 1 and 2" in kvctl.fails(*words)
    assert contents(data) == touched
    identity.write_bytes(before["identity.json"])
    assert contents(data) == before


@pytest.mark.parametrize("engine", [LSM], indirect=True)
@pytest.mark.skipif(engines.TOLD not in ("", LSM), reason="it is about the other engine")
def test_a_manifest_of_a_newer_version_is_refused(kvctl: Kvctl, data: Path) -> None:
    from zlib import crc32

    path = data / DATABASE
    body = bytearray(path.read_bytes()[:-4])
    body[8] = 9
    path.write_bytes(body + crc32(body).to_bytes(4, "little"))
    before = contents(data)
    for words in COMMANDS:
        said = kvctl(*words)
        assert said.status == 1
        assert "is of format version 9, and this node reads up to 1; run a release" in said.err
        assert said.err.count("\n") == 1
    assert contents(data) == before


@of_the_btree
def test_an_arbiter_has_no_records(tmp_path: Path, bare: Kvctl) -> None:
    path = tmp_path / "arbiter"
    with started(OsFileSystem(), data_dir=str(path), role="arbiter", bootstrap=False):
        pass
    kvctl = bare.at(f"--data-dir={path}")
    for words in COMMANDS:
        if words in (["stats"], ["check"]):
            assert kvctl(*words).status == 0
        else:
            assert "keeps no records; name a data node's" in kvctl.fails(*words)


@of_the_btree
def test_data_that_differ_from_the_clusters_are_shown_with_a_word(kvctl: Kvctl, data: Path) -> None:
    fs, path = OsFileSystem(), str(data / "identity.json")
    write_identity(fs, path, read_identity(fs, path)[0], "at entry 7")
    said = kvctl("get", "key07")
    assert (said.status, said.out) == (0, b"value 7")
    assert said.err == "kvctl: the data here differ from the cluster's: at entry 7\n"
    assert "are left as they are" in kvctl.fails("compact")


# -- how it ends -----------------------------------------------------------------------------------


@of_the_btree
def test_ctrl_c_leaves_the_directory_free(
    kvctl: Kvctl, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kvstopped, "examine", interrupted)
    before = contents(data)
    assert kvctl("check") == (130, b"", "")
    monkeypatch.undo()
    assert kvctl("check").status == 0
    assert contents(data) == before


@of_the_btree
def test_who_has_seen_enough_ends_a_dump_quietly(data: Path) -> None:
    with started(OsFileSystem(), data_dir=str(data)) as node:
        for number in range(20):
            write(node, (b"more%d" % number, bytes(100_000)))
    command = f"{sys.executable} -m conure.ops.kvctl --data-dir={data} dump"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    first, status = done.stdout.splitlines()
    assert json.loads(first)["key"] == "key00"
    assert status == "1"
    assert done.stderr == ""


def test_a_pipe_in_place_of_a_file_is_not_waited_for(data: Path, kvctl: Kvctl) -> None:
    pipe = data / "conure.db"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    for command in ("stats", "check", "tables"):
        said = kvctl(command)
        if engines.current() != LSM:
            assert said.status == 1
            assert "is no file but a pipe" in said.err
