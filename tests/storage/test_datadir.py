"""Whose a data directory is, and what is refused before anything in it is touched."""

from __future__ import annotations

import json
from zlib import crc32

import pytest

from conure.errors import CorruptionError, DirectoryInUse, DiskFailed, DiskFull, ForeignDirectory
from conure.storage.datadir import DataDirectory, Identity, engine_in, read_identity, write_identity
from tests.lab.crashfs import CrashFileSystem, CrashMode, SimulatedCrash

MODES: tuple[CrashMode, ...] = ("dropped", "kept", "torn", "random", "random")


def open_directory(
    fs: CrashFileSystem, node_id: str = "n1", *, told: bool = True, role: str = "data"
) -> DataDirectory:
    return DataDirectory.open(fs, "/data", node_id, told_node_id=told, role=role)


def write(fs: CrashFileSystem, path: str, content: bytes) -> None:
    file = fs.open(path, create=True)
    file.truncate(0)
    file.pwrite(content, 0)
    file.close()


def test_a_new_directory_belongs_to_who_made_it() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    identity = directory.identity
    assert identity == Identity("n1", "", identity.incarnation, "data")
    assert fs.list("/data") == ["LOCK", "identity.json", "raft"]
    assert directory.database_path == "/data/conure.db"
    assert directory.raft_path == "/data/raft"
    directory.close()
    assert open_directory(fs).identity == identity


def test_each_directory_has_an_incarnation_of_its_own() -> None:
    """Rule 4: a wiped disk comes back as another one, a restart or a cluster changes nothing."""
    fs = CrashFileSystem()
    directory = open_directory(fs)
    incarnation = directory.identity.incarnation
    assert len(incarnation) == 32
    assert int(incarnation, 16)
    directory.begin_cluster()
    assert open_directory(fs.after_crash("dropped")).identity.incarnation == incarnation
    assert open_directory(CrashFileSystem()).identity.incarnation != incarnation


def test_a_cluster_begins_once_and_for_ever() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    directory.begin_cluster()
    cluster = directory.identity.cluster_id
    assert len(cluster) == 32
    after = fs.after_crash("dropped")  # it was durable when begin_cluster returned
    assert open_directory(after).identity == directory.identity
    with pytest.raises(AssertionError):
        directory.begin_cluster()
    other = open_directory(CrashFileSystem())
    other.begin_cluster()
    assert other.identity.cluster_id != cluster


def test_a_node_joins_one_cluster_for_ever() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    directory.join_cluster("c" * 32)
    assert directory.identity.cluster_id == "c" * 32
    assert open_directory(fs.after_crash("dropped")).identity == directory.identity
    for cluster_id in ("d" * 32, "c" * 32):
        with pytest.raises(AssertionError):
            directory.join_cluster(cluster_id)


@pytest.mark.parametrize(("made", "asked"), [("data", "arbiter"), ("arbiter", "data")])
def test_a_role_never_changes(made: str, asked: str) -> None:
    fs = CrashFileSystem()
    open_directory(fs, role=made).close()
    with pytest.raises(ForeignDirectory, match=rf"role '{made}', not '{asked}'.*join again"):
        open_directory(fs, role=asked)
    assert open_directory(fs, role=made).identity.role == made  # and the lock was let go


def test_what_has_diverged_is_never_served_again() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    directory.begin_cluster()
    directory.mark_diverged("another digest than n2 at index 7")
    directory.close()
    for each in (fs, fs.after_crash("dropped")):
        with pytest.raises(ForeignDirectory, match=r"n2 at index 7; remove node 'n1'.*join again"):
            open_directory(each)


def test_the_second_process_is_told_who_has_it() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    with pytest.raises(DirectoryInUse, match=r"process \d+ on .*node n1"):
        open_directory(fs)
    directory.close()
    open_directory(fs).close()


def test_another_node_is_refused_and_a_default_name_gives_way() -> None:
    fs = CrashFileSystem()
    open_directory(fs).close()
    before = fs.contents("/data/identity.json")
    with pytest.raises(ForeignDirectory, match="'n1', not to 'n2'"):
        open_directory(fs, "n2")
    assert fs.contents("/data/identity.json") == before
    assert open_directory(fs, "node1", told=False).identity.node_id == "n1"


def test_a_formation_without_an_identity_is_no_strangers_file() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    directory.keep_formation(b"abc")
    directory.close()
    fs.remove("/data/identity.json")
    write(fs, "/data/conure.db", b"records")
    with pytest.raises(CorruptionError, match="the file is missing though there is data"):
        open_directory(fs)


@pytest.mark.parametrize("stranger", ["thesis.tex", ".hidden", "identity.json.bak"])
def test_strangers_are_left_alone(stranger: str) -> None:
    fs = CrashFileSystem()
    fs.make_directory("/data")
    write(fs, f"/data/{stranger}", b"years of work")
    with pytest.raises(ForeignDirectory, match=r"holds '.*' and no ConureDB data"):
        open_directory(fs)
    assert fs.list("/data") == [stranger]
    assert fs.contents(f"/data/{stranger}") == b"years of work"


def test_the_root_of_a_file_system_may_be_used() -> None:
    fs = CrashFileSystem()
    fs.make_directory("/data/lost+found")
    open_directory(fs)


@pytest.mark.parametrize("name", ["conure.db", "raft/00000000000000000001.log"])
def test_data_without_an_identity_is_damage(name: str) -> None:
    fs = CrashFileSystem()
    fs.make_directory("/data/raft")
    write(fs, f"/data/{name}", b"something")
    with pytest.raises(CorruptionError, match=r"identity\.json.*missing"):
        open_directory(fs)
    assert not fs.exists("/data/identity.json")


def identity_file(**facts: object) -> bytes:
    sound = {"node_id": "n1", "cluster_id": "", "incarnation": "1f", "role": "data"}
    return json.dumps({"format": 1, **sound, "diverged": "", **facts}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"n1"',
        b"\xff\xfe",
        b"{}",
        b'{"format": 1, "node_id": "n1", "cluster_id": ""}',
        identity_file(node_id=""),
        identity_file(node_id=5),
        identity_file(cluster_id=None),
        identity_file(incarnation=""),
        identity_file(incarnation=[]),
        identity_file(role="judge"),
        identity_file(role=None),
        identity_file(diverged=True),
        b"[" * 100_000,
        bytes(200),
    ],
    ids=lambda content: repr(content[:30]),
)
def test_an_unreadable_identity_is_damage(content: bytes) -> None:
    fs = CrashFileSystem()
    open_directory(fs).close()
    write(fs, "/data/identity.json", content)
    with pytest.raises(CorruptionError, match=r"identity\.json"):
        open_directory(fs)
    write(fs, "/data/identity.json", identity_file())
    open_directory(fs)  # the lock was let go


def test_a_newer_format_is_left_to_newer_versions() -> None:
    fs = CrashFileSystem()
    open_directory(fs).close()
    write(fs, "/data/identity.json", b'{"format": 3, "whatever": "it says"}')
    with pytest.raises(ForeignDirectory, match="format 3"):
        open_directory(fs)


# -- the engine ----------------------------------------------------------------------------------


def opened_with(fs: CrashFileSystem, engine: str = "", role: str = "data") -> Identity:
    """Open the directory, asking for an engine or, "", for none; return whose it is."""
    directory = DataDirectory.open(
        fs, "/data", "n1", told_node_id=True, role=role,
        engine=engine or "btree", told_engine=bool(engine),
    )  # fmt: skip
    directory.close()
    return directory.identity


def test_a_directory_of_the_btree_has_the_file_that_it_always_had() -> None:
    for engine in ("", "btree"):
        fs = CrashFileSystem()
        identity = opened_with(fs, engine)
        facts = json.loads(fs.contents("/data/identity.json"))
        assert list(facts.items())[:-1] == [
            ("format", 1), ("node_id", "n1"), ("cluster_id", ""),
            ("incarnation", identity.incarnation), ("role", "data"), ("diverged", ""),
        ]  # fmt: skip


def test_another_engine_is_named_in_a_file_that_older_versions_refuse() -> None:
    fs = CrashFileSystem()
    identity = opened_with(fs, "lsm")
    assert identity.engine == "lsm"
    facts = json.loads(fs.contents("/data/identity.json"))
    assert (facts["format"], facts["engine"]) == (2, "lsm")
    assert list(facts) == [
        "format", "node_id", "cluster_id", "incarnation", "role", "engine", "diverged", "checksum",
    ]  # fmt: skip
    assert opened_with(fs) == opened_with(fs, "lsm") == identity  # who asks for none gets its own
    directory = open_directory(fs)
    directory.begin_cluster()
    assert directory.identity.engine == "lsm"
    directory.close()
    assert read_identity(fs, "/data/identity.json")[0] == directory.identity


@pytest.mark.parametrize(("made", "asked"), [("btree", "lsm"), ("lsm", "btree")])
def test_a_directory_keeps_its_engine(made: str, asked: str) -> None:
    fs = CrashFileSystem()
    opened_with(fs, made)
    before = fs.contents("/data/identity.json")
    with pytest.raises(ForeignDirectory, match=f"the engine '{made}', not '{asked}'.* backup"):
        opened_with(fs, asked)
    assert fs.contents("/data/identity.json") == before
    assert opened_with(fs, made).engine == made


def test_an_arbiter_has_no_engine_whatever_is_asked_for() -> None:
    fs = CrashFileSystem()
    identity = opened_with(fs, "lsm", "arbiter")
    assert json.loads(fs.contents("/data/identity.json"))["format"] == 1
    assert opened_with(fs, "btree", "arbiter") == opened_with(fs, "lsm", "arbiter") == identity


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"engine": "btree"}, ForeignDirectory),  # it has format 1
        ({"engine": "newer"}, ForeignDirectory),
        ({"engine": 7}, CorruptionError),
        ({"engine": None}, CorruptionError),
        ({"role": "arbiter"}, ForeignDirectory),
        ({"format": 1}, CorruptionError),
    ],
)
def test_an_engine_that_nobody_knows_is_refused(
    changes: dict[str, object], error: type[Exception]
) -> None:
    fs = CrashFileSystem()
    opened_with(fs, "lsm")
    facts = json.loads(fs.contents("/data/identity.json")) | changes
    if "format" in changes:
        del facts["checksum"]
    write(fs, "/data/identity.json", with_checksum(facts))
    with pytest.raises(error):
        opened_with(fs)


def with_checksum(facts: dict[str, object]) -> bytes:
    """Return the file that says so, with the checksum that belongs to it if it has any."""
    if "checksum" in facts:
        del facts["checksum"]
        facts["checksum"] = f"{crc32(json.dumps(facts, indent=2).encode()):08x}"
    return json.dumps(facts, indent=2).encode() + b"\n"


def test_an_engine_can_be_told_before_a_directory_is_opened() -> None:
    fs = CrashFileSystem()
    assert engine_in(fs, "/data") == ""
    opened_with(fs, "lsm")
    assert engine_in(fs, "/data") == "lsm"
    write(fs, "/data/identity.json", b"nonsense")
    assert engine_in(fs, "/data") == ""


def test_files_of_tables_without_an_identity_are_data() -> None:
    fs = CrashFileSystem()
    opened_with(fs, "lsm")
    fs.make_directory("/data/lsm")
    write(fs, "/data/lsm/conure.db-0-1.sst", b"whatever it is")
    fs.remove("/data/identity.json")
    with pytest.raises(CorruptionError, match="missing"):
        opened_with(fs, "lsm")


def test_a_directory_is_made_whole_or_made_again() -> None:
    """Crash at every sync of a first start: the next one finds n1's directory or makes it."""
    crashes = 0
    while True:
        fs = CrashFileSystem(seed=crashes)
        fs.crash_at_sync = crashes + 1
        cluster = ""
        try:
            directory = open_directory(fs)
            directory.begin_cluster()
            cluster = directory.identity.cluster_id
        except SimulatedCrash:
            crashes += 1
        for mode in MODES:
            again = open_directory(fs.after_crash(mode))
            assert again.identity.node_id == "n1"
            assert cluster in ("", again.identity.cluster_id)
        if cluster:
            break
    assert crashes >= 4


def test_what_a_killed_process_left_unsynced_is_synced_before_it_is_believed() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    fs.crash_at_sync = 2  # the file's sync is the first, its name's the second
    with pytest.raises(SimulatedCrash):
        directory.join_cluster("c1")
    fs.restart_process()
    assert open_directory(fs).identity.cluster_id == "c1"
    assert open_directory(fs.after_crash("dropped")).identity.cluster_id == "c1"


@pytest.mark.parametrize("kind", ["io", "full"])
def test_a_failing_disk_is_told_and_the_next_start_goes_on(kind: str) -> None:
    call = 1
    while True:
        fs = CrashFileSystem()
        fs.fail_call(call, "io" if kind == "io" else "full")
        try:
            open_directory(fs)
        except (DiskFailed, DiskFull):
            fs.restart_process()
            assert open_directory(fs).identity.node_id == "n1"
        else:
            if fs.failure_is_due:
                break
            assert kind == "full"  # to say in the lock file who holds it is a courtesy
        call += 1
    assert call > 5


# -- the file that says so -------------------------------------------------------------------------

WITHOUT_CHECKSUM = b"""{
  "format": 1,
  "node_id": "n1",
  "cluster_id": "c1",
  "incarnation": "1f",
  "role": "data",
  "diverged": ""
}
"""

WITH_CHECKSUM = b"""{
  "format": 1,
  "node_id": "n1",
  "cluster_id": "c1",
  "incarnation": "1f",
  "role": "data",
  "diverged": "",
  "checksum": "6689b22e"
}
"""

N1 = Identity("n1", "c1", "1f", "data")


def read(content: bytes) -> tuple[Identity, str]:
    fs = CrashFileSystem()
    fs.make_directory("/data")
    write(fs, "/data/identity.json", content)
    return read_identity(fs, "/data/identity.json")


def test_golden_bytes() -> None:
    fs = CrashFileSystem()
    fs.make_directory("/data")
    write_identity(fs, "/data/identity.json", N1)
    assert fs.contents("/data/identity.json") == WITH_CHECKSUM
    assert read(WITH_CHECKSUM) == read(WITHOUT_CHECKSUM) == (N1, "")


def test_versions_before_the_checksum_read_the_same_facts() -> None:
    """They look up by name what they know, in what JSON makes of the file."""
    old, new = json.loads(WITHOUT_CHECKSUM), json.loads(WITH_CHECKSUM)
    assert {name: new[name] for name in old} == old


def test_a_file_without_a_checksum_gets_one_at_its_next_change() -> None:
    fs = CrashFileSystem()
    open_directory(fs).close()
    write(fs, "/data/identity.json", identity_file())
    directory = open_directory(fs)
    assert fs.contents("/data/identity.json") == identity_file()
    directory.begin_cluster()
    assert b'"checksum": "' in fs.contents("/data/identity.json")
    directory.close()
    assert open_directory(fs).identity == directory.identity


def test_any_other_byte_is_damage() -> None:
    for position in range(len(WITH_CHECKSUM)):
        for bit in range(8):
            damaged = bytearray(WITH_CHECKSUM)
            damaged[position] ^= 1 << bit
            with pytest.raises(CorruptionError, match=r"^/data/identity\.json is corrupt"):
                read(bytes(damaged))


@pytest.mark.parametrize("length", range(0, len(WITH_CHECKSUM), 7))
def test_a_file_that_ends_early_or_late_is_damage(length: int) -> None:
    for damaged in (WITH_CHECKSUM[:length], WITH_CHECKSUM + WITH_CHECKSUM[:length] + b"\n"):
        with pytest.raises(CorruptionError, match=r"identity\.json"):
            read(damaged)


# -- with whom a cluster was formed --------------------------------------------------------------


KEPT = bytes.fromhex("434e5246 01 c2412435 616263")


def test_a_formation_is_kept() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    assert directory.formation() == b""
    directory.keep_formation(b"abc")
    assert fs.contents("/data/formation") == KEPT
    directory.close()
    fs = fs.after_crash("dropped")
    directory = open_directory(fs)
    assert directory.formation() == b"abc"
    directory.keep_formation(b"another")  # nothing came of the first one
    assert directory.formation() == b"another"
    assert not fs.exists("/data/formation.new")


def test_a_formation_that_finds_no_room_leaves_the_one_before() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    directory.keep_formation(b"abc")
    fs.set_capacity(fs.used_bytes())
    with pytest.raises(DiskFull):
        directory.keep_formation(b"x" * 5000)
    assert directory.formation() == b"abc"
    assert not fs.exists("/data/formation.new")


def test_any_other_byte_of_a_formation_is_damage() -> None:
    fs = CrashFileSystem()
    directory = open_directory(fs)
    directory.keep_formation(b"abc")
    for position in range(len(KEPT)):
        damaged = bytearray(KEPT)
        damaged[position] ^= 1
        write(fs, "/data/formation", bytes(damaged))
        with pytest.raises(CorruptionError, match=r"^/data/formation is corrupt"):
            directory.formation()
    for length in range(len(KEPT)):
        write(fs, "/data/formation", KEPT[:length])
        with pytest.raises(CorruptionError):
            directory.formation()
