"""client.py and conuresh.py against a real server: keys, ranges, watches, locks, backups."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import conuresh
from conure.client import Client, Event, LockHeld, Op, Page, Record, TxnResult, when
from conure.client.connections import Connection
from conure.errors import BadRequest, Compacted, Conflict, NotFound, PreconditionFailed
from tests.lab import forkserver
from tests.lab.cluster import Cluster
from tests.lab.process import ROOT, ServerProcess, running, wait_until


@pytest.fixture(name="server", scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("features"), "--bootstrap") as server:
        yield server


@pytest.fixture(name="db")
def _db(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url, timeout=20) as db:
        db.delete_prefix("")
        yield db


# -- one key ---------------------------------------------------------------------------------------


def test_revisions_and_conditions(db: Client) -> None:
    first = db.put("k", "v", if_revision=0)
    second = db.put("k", "w", if_revision=first)
    assert second > first
    assert db.record("k") == Record(b"k", b"w", first, second, 2)
    for write in (
        lambda: db.put("k", "x", if_revision=first),
        lambda: db.put("k", "x", if_revision=0),
        lambda: db.delete("k", if_revision=first),
    ):
        with pytest.raises(PreconditionFailed) as unmet:
            write()
        assert unmet.value.current == second
    assert db.delete("k", if_revision=second) > second
    assert db.record("k") is None
    with pytest.raises(PreconditionFailed, match="does not exist"):
        db.put("k", "x", if_revision=second)


def test_keys_expire(db: Client) -> None:
    with db.watch("k") as watch:
        db.put("k", "v", ttl=60)
        record = db.record("k")
        assert record is not None
        assert record.ttl is not None
        assert 50 < record.ttl <= 60
        db.put("k", "w", keep_ttl=True)
        assert db.touch("k", 0.1)
        assert [next(watch).kind for _ in range(3)] == ["put", "put", "expire"]
    assert db.get("k") is None
    assert not db.touch("k", 60)
    db.put("k", "v", ttl=60)
    db.put("k", "v")
    record = db.record("k")
    assert record is not None
    assert record.ttl is None, "a plain put is for ever"
    db.touch("k", 60)
    db.touch("k", 0)
    assert db.record("k") == record, "no new revision, and for ever again"


def test_counters(db: Client) -> None:
    assert [db.increment("n"), db.increment("n", 41), db.increment("n", -50)] == [1, 42, -8]
    assert db.get("n") == b"-8"
    db.put("n", "many")
    with pytest.raises(Conflict, match="no whole number"):
        db.increment("n")


def test_an_answer_that_is_lost_is_asked_for_again_and_not_done_again(
    db: Client, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Connection.exchange
    lost: list[str] = []

    def lose(connection: Any, request: Any) -> Any:
        answer = exchange(connection, request)
        if len(lost) < 2:
            lost.append(request.target)
            raise ConnectionResetError
        return answer

    monkeypatch.setattr("conure.client.connections.Connection.exchange", lose)
    assert db.increment("n") == 1
    lost.clear()
    db.put("c", "v", if_revision=0)
    lost.clear()
    assert db.load([("a", "1"), ("b", "2")]) == 2
    lost.clear()
    assert db.txn(success=[Op.increment("n"), Op.get("c")]).succeeded
    lost.clear()
    assert db.delete_prefix("c") == 1
    lost.clear()
    with Client(server.url, exactly_once=True) as careful:
        careful.put("k", "v")
    assert len(lost) == 2
    assert db.get("n") == b"2"
    for key in ("a", "k"):
        record = db.record(key)
        assert record is not None
        assert record.version == 1


# -- many keys -------------------------------------------------------------------------------------


def test_items_of_a_range(db: Client) -> None:
    keys = [f"p/{n}" for n in range(5)]
    assert db.load((key, key.upper()) for key in ["o", *keys, "q"]) == 7
    revision = db.put("p/0", "new")
    with db.items("p/") as items:
        assert items.revision == revision
        found = list(items)
    assert [(item.key.decode(), item.value) for item in found] == [
        (key, b"new" if key == "p/0" else key.upper().encode()) for key in keys
    ]
    assert (found[0].mod_revision, found[0].version, found[1].version) == (revision, 2, 1)

    def names(**asked: Any) -> list[str]:
        return [item.key.decode() for item in db.items(**asked)]

    assert names() == ["o", *keys, "q"]
    assert names(prefix="p/", limit=2) == keys[:2]
    assert names(prefix="p/", limit=2, reverse=True) == keys[:2:-1]
    assert names(start="p/3") == ["p/3", "p/4", "q"]
    assert names(end="p/1") == ["o", "p/0"]
    assert names(start="p/1", end="p/3") == ["p/1", "p/2"]
    assert [item.value for item in db.items("p/", keys_only=True)] == [b""] * 5
    assert (db.count(), db.count("p/"), db.count("x")) == (7, 5, 0)
    assert db.delete_prefix("p/") == 5
    assert names() == ["o", "q"]
    with pytest.raises(BadRequest):
        db.items("p/", start="p/")


def test_items_show_one_revision_however_long_they_take(db: Client) -> None:
    value = "x" * 4000
    assert db.load((f"{n:05}", value) for n in range(6000)) == 6000
    items = db.items()
    first = next(items)
    db.delete_prefix("")
    db.put("late", "v")
    rest = list(items)
    assert [first.key, *(item.key for item in rest)] == [f"{n:05}".encode() for n in range(6000)]
    assert all(item.value == value.encode() for item in rest)
    assert db.count() == 1


def test_a_list_may_be_left_half_way(db: Client) -> None:
    db.load((f"{n:05}", "x" * 1000) for n in range(3000))
    for _ in range(20):  # more than a server makes at a time
        items = db.items()
        next(items)
        items.close()
        assert list(items) == []
        next(db.items())


def test_load_takes_bytes_deletions_and_times_to_live(db: Client) -> None:
    db.put("gone", "v")
    records: list[Any] = [
        (b"\xff", b"\x00\xfe"), ("text", "hällo"), ("empty", ""), ("short", "v", 60.0),
        ("gone", None), ("text", "again"), ("text", "and again"),
    ]  # fmt: skip
    assert db.load(records) == 7
    found = {item.key: item for item in db.items()}
    assert found.keys() == {b"\xff", b"text", b"empty", b"short"}
    assert found[b"\xff"].value == b"\x00\xfe"
    assert (found[b"text"].value, found[b"text"].version) == (b"and again", 3)
    assert found[b"short"].ttl is not None
    assert db.load([]) == 0


def test_transactions(db: Client) -> None:
    stock = db.put("stock", "1")
    order: dict[str, list[dict[str, Any]]] = {
        "compare": [when("stock", value="1"), when("order", exists=False)],
        "success": [
            Op.put("order", "mine", ttl=60), Op.increment("stock", -1), Op.get("stock"),
            Op.delete("nothing"), Op.get("nothing"), Op.range("o", limit=1),
        ],
        "failure": [Op.get("order"), Op.touch("order", 60), Op.delete_prefix("x")],
    }  # fmt: skip
    done = db.txn(**order)
    assert done.succeeded
    assert done.revision > stock
    put, _, read, deleted, missing, page = done.results
    assert isinstance(put, Record)
    assert put.mod_revision == done.revision
    assert isinstance(read, Record)
    assert read.value == b"0"
    assert (deleted, missing) == (0, None)
    assert isinstance(page, Page)
    assert [item.key for item in page.items] == [b"order"]
    again = db.txn(**order)
    assert not again.succeeded
    assert isinstance(again.results[0], Record)
    assert again.results[0].value == b"mine"
    assert again.results[2] == 0
    none = db.txn([when("stock", "<", version=2)], success=[Op.delete("stock")])
    assert none == TxnResult(False, none.revision, [])
    assert db.txn([when(b"\xff", "!=", value=b"\xfe")], [Op.put(b"\xff", "v")]).succeeded
    with pytest.raises(BadRequest, match="twice"):
        db.txn(success=[Op.put("a", "1"), Op.put("a", "2")])


# -- watches ---------------------------------------------------------------------------------------


def test_list_then_watch_misses_nothing(db: Client) -> None:
    db.put("p/1", "a")
    items = db.items("p/")
    assert [item.key for item in items] == [b"p/1"]
    second = db.put("p/2", "b")
    db.put("elsewhere", "x")
    with db.watch(prefix="p/", start_revision=items.revision + 1) as watch:
        third = db.put("p/1", b"\xff")
        txn = db.txn(success=[Op.put("p/3", "c"), Op.delete("p/1")]).revision
        assert [next(watch) for _ in range(4)] == [
            Event(second, "put", b"p/2", b"b", 1),
            Event(third, "put", b"p/1", b"\xff", 2),
            Event(txn, "put", b"p/3", b"c", 1),
            Event(txn, "delete", b"p/1", None, 0),
        ]


def test_a_watch_survives_its_connections(db: Client) -> None:
    with db.watch(prefix="") as watch:
        for n in range(40):
            db.txn(success=[Op.put("a", str(n)), Op.put("b", str(n))])
            if n % 7 == 3:
                assert watch._stream is not None
                watch._stream.cut()
        seen = [next(watch) for _ in range(80)]
    assert [(event.key, event.value) for event in seen] == [
        (key, str(n).encode()) for n in range(40) for key in (b"a", b"b")
    ]


def test_a_watch_survives_its_server(tmp_path: Path) -> None:
    with running(tmp_path, "--bootstrap") as server:
        db = Client(server.url, timeout=20)
        watch = db.watch("k")
        db.put("k", "1")
        assert next(watch).value == b"1"
        port = server.port
        assert server.terminate() == 0
    with running(tmp_path, f"--http-addr=127.0.0.1:{port}"):
        db.put("k", "2")
        assert next(watch).value == b"2"
        db.close()
        assert list(watch) == []


def test_history_that_is_gone(tmp_path: Path) -> None:
    with (
        running(tmp_path, "--bootstrap", "--watch-history-bytes=1MiB") as server,
        Client(server.url, timeout=20) as db,
    ):
        for _ in range(40):
            db.put("k", "x" * 100_000)
        with pytest.raises(Compacted) as lost:
            db.watch("k", start_revision=1)
        assert lost.value.oldest > 1
        with db.watch("k", start_revision=lost.value.oldest) as watch:
            assert next(watch).revision == lost.value.oldest


def test_a_cluster_that_loses_its_leader(tmp_path: Path) -> None:
    """Nothing is done twice, no event is lost, and a lock is kept."""
    with Cluster(tmp_path) as cluster:
        cluster.start(3)
        leader = cluster.leader()
        servers = [leader.url, *(member.url for member in cluster.followers())]
        with (
            Client(servers, timeout=30) as db,
            db.watch("n") as watch,
            db.lock("jobs/1", ttl=30) as token,
        ):
            sums = []
            for n in range(60):
                if n == 20:
                    threading.Timer(0.005, leader.kill).start()
                sums.append(db.increment("n"))
            assert sums == list(range(1, 61))
            seen = [next(watch) for _ in sums]
            assert [event.value for event in seen] == [str(n).encode() for n in sums]
            record = db.record("jobs/1")
            assert record is not None
            assert record.fencing_token == token


# -- sessions and locks ----------------------------------------------------------------------------


def test_sessions_hold_keys_until_they_end(db: Client) -> None:
    with db.session(20, name="me") as one, db.session(20, behavior="delete") as two:
        token = one.acquire("k", "one")
        assert one.acquire("k", "still one") == token
        record = db.record("k")
        assert record is not None
        assert (record.session, record.fencing_token) == (one.id, token)
        with pytest.raises(Conflict, match="another session"):
            two.acquire("k")
        with pytest.raises(Conflict):
            two.release("k")
        one.release("k", "free")
        assert two.acquire("k", "two") > token
        info = db.session_info(one.id)
        assert (info["name"], info["behavior"], info["ttl"]) == ("me", "release", 20)
        db.put("other", "v", acquire=one.id)
    assert one.lost
    assert db.get("k") is None, "it went with the session"
    assert db.get("other") == b"v"
    with pytest.raises(NotFound, match="no such session"):
        db.renew_session(one.id)


def test_a_session_is_renewed_and_knows_when_it_has_ended(db: Client) -> None:
    session = db.session(0.6)
    time.sleep(1)
    assert not session.lost
    assert db.session_info(session.id)["left"] > 0
    db.end_session(session.id)
    wait_until(lambda: session.lost)
    with pytest.raises(NotFound):
        session.close()


def test_a_lock_is_held_by_one_at_a_time(db: Client, server: ServerProcess) -> None:
    inside: list[int] = []
    most: list[int] = []
    tokens: list[int] = []

    def work() -> None:
        with Client(server.url, timeout=20) as own:
            for _ in range(3):
                with own.lock("jobs/1") as token:
                    inside.append(token)
                    most.append(len(inside))
                    tokens.append(token)
                    time.sleep(0.005)
                    inside.remove(token)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12
    assert tokens == sorted(set(tokens))
    assert db.get("jobs/1") is None


def test_whoever_waits_for_a_lock_is_woken(db: Client, server: ServerProcess) -> None:
    lock = db.lock("jobs/1")
    first = lock.acquire()
    with pytest.raises(LockHeld, match=r"'jobs/1' \(waited 0\.2 s\)"):
        db.lock("jobs/1", timeout=0.2).acquire()
    taken: list[tuple[int, float]] = []

    def wait() -> None:
        with db.lock("jobs/1", timeout=30) as token:
            taken.append((token, time.monotonic()))

    def waits() -> bool:
        return b"conure_long_polls 1" in server.request("GET", "/metrics").body

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(waits)
    released = time.monotonic()
    lock.release()
    thread.join()
    ((token, when_taken),) = taken
    assert token > first
    assert when_taken - released < 3


def test_a_lock_of_one_who_vanished_is_free_after_its_time(db: Client) -> None:
    gone = db.open_session(0.5, behavior="delete")
    db.put("jobs/1", "gone", acquire=gone)
    with db.lock("jobs/1", timeout=20) as token:
        assert token > 0


def test_a_lock_whose_key_was_deleted_is_held_all_the_same(
    db: Client, server: ServerProcess
) -> None:
    lock = db.lock("jobs/1")
    first = lock.acquire()
    db.delete("jobs/1")
    with pytest.raises(LockHeld, match=r"'jobs/1' \(waited 0\.1 s\)"):
        db.lock("jobs/1", timeout=0.1).acquire()
    assert not lock.lost
    tokens: list[int] = []

    def wait() -> None:
        with Client(server.url, timeout=20) as own, own.lock("jobs/1", timeout=30) as token:
            tokens.append(token)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)  # it finds the key missing, and the lock held
    assert tokens == []
    lock.release()
    thread.join()
    assert tokens > [first]
    assert db.record("jobs/1") is None
    with db.lock("jobs/1", timeout=20):
        pass


def test_a_lock_does_not_touch_other_data(db: Client) -> None:
    db.put("data", "precious")
    with pytest.raises(Conflict, match="'data' exists and no session holds it"):
        db.lock("data").acquire()
    assert db.get("data") == b"precious"


# -- backups ---------------------------------------------------------------------------------------


def test_a_backup_can_be_restored(db: Client, tmp_path: Path) -> None:
    db.load((f"{n:05}", "v" * 500) for n in range(2000))
    told: list[int] = []
    revision = db.backup(tmp_path / "b", told.append)
    assert revision >= db.put("later", "v") - 1
    content = (tmp_path / "b").read_bytes()
    assert len(content) == told[-1]
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0, "nobody else's business"
    output = BytesIO()
    db.backup(output)
    assert output.getvalue()[:8] == content[:8]
    restored = forkserver.run(
        [ROOT / "conuredb.py", "restore", tmp_path / "b", f"--data-dir={tmp_path / 'd'}"]
    )
    assert restored.returncode == 0, restored.stderr
    with running(tmp_path / "d") as server, Client(server.url, timeout=20) as other:
        assert other.count() == 2000


# -- the shell -------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="run")
def _run(db: Client, server: ServerProcess) -> Run:
    def run(*args: str, stdin: str = "") -> tuple[int, str, str]:
        command = [str(ROOT / "conuresh.py"), f"--server={server.url}", *args]
        result = forkserver.run(command, input=stdin.encode())
        return result.returncode, result.stdout.decode(), result.stderr.decode()

    return run


def test_shell_keys(run: Run, db: Client) -> None:
    script = """
put k v --ttl 1m
info k
put k w --if-revision=1
put k w --if-revision 0
put k x --keep-ttl
touch k 1h
touch k 0s
incr n
incr n -3
delete n --if-revision 1
count
list
list --keys --reverse --limit 1
delete --prefix n
touch n 1s
put -- --ttl -
get --ttl
"""
    code, out, err = run(stdin=script)
    assert code == 1
    assert '"ttl": 59.' in out
    assert out.startswith('OK\n{\n  "key": "k",\n  "value": "v",\n')
    assert out.partition("}\n")[2].split("\n") == [
        "OK", "OK", "OK", "1", "-2", "2", "k\tx", "n\t-2", "n", "1", "OK", "-", ""
    ]  # fmt: skip
    assert [line.partition(",")[0] for line in err.splitlines()] == [
        "the condition does not hold", "the condition does not hold",
        "the condition does not hold", "key not found",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["put", "k", "v", "--ttl", "5"], "--ttl=5: write it like 5s"),
        (["put", "k", "v", "--ttl"], "--ttl needs a value"),
        (["put", "k", "v", "--keep-ttl=yes"], "--keep-ttl takes no value"),
        (["put", "k", "v", "--limit=1"], "usage: put <key> <value> [--ttl 30s]"),
        (["incr", "k", "x"], "by=x: it has to be a whole number"),
        (["delete", "k", "--prefix", "k"], "usage: delete <key>"),
        (["delete", "--prefix", "k", "--if-revision", "3"], "--if-revision is about one key"),
        (["session", "open", "x"], "usage: session open"),
        (["lock", "x"], "usage: lock <name> [--ttl 30s] [--wait 10s] -- <command...>"),
    ],
)
def test_shell_usage(args: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conuresh.main(args, {}) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"conuresh: {told}")


def test_shell_lists_can_be_loaded(run: Run, db: Client, tmp_path: Path) -> None:
    db.put(b"a\n\t\xff", b"\x00\xfe")
    db.put("b", "two\nlines", ttl=60)
    assert run("list")[1] == "a\\n\\t\\xff\t\\x00\\xfe\nb\ttwo\\nlines\n"
    _, listed, _ = run("list", "--json")
    before = [(item.key, item.value) for item in db.items()]
    db.delete_prefix("")
    assert run("load", "-", stdin=listed + "\n") == (0, "2\n", "")
    assert [(item.key, item.value) for item in db.items()] == before
    (tmp_path / "f").write_text('{"key": "b", "delete": true}\n{"key": "c", "value": "v"}\n')
    assert run("load", str(tmp_path / "f")) == (0, "2\n", "")
    assert db.count() == 2
    code, _, err = run("load", "-", stdin='{"key": "k", "value": "v"}\n{"key": "k"}\n')
    assert code == 1
    assert "line 2 is no record" in err
    assert run("load", str(tmp_path / "none"))[2].startswith(f"conuresh: {tmp_path / 'none'}: No ")


def test_shell_transactions(run: Run, tmp_path: Path) -> None:
    text = json.dumps({
        "compare": [when("k", exists=False)], "success": [Op.put("k", "v")],
        "failure": [Op.get("k")],
    })  # fmt: skip
    (tmp_path / "t").write_text(text)
    code, out, _ = run("txn", stdin=text)
    assert code == 0
    assert json.loads(out)["succeeded"]
    code, out, _ = run("txn", str(tmp_path / "t"))
    assert code == 1
    assert json.loads(out)["results"][0]["value"] == "v"
    assert "not JSON" in run("txn", stdin="{")[2]
    assert run(stdin="txn")[0] == 2, "standard input is the script"


@contextlib.contextmanager
def start_shell(server: ServerProcess, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that is gone at the end of the block, and whatever it has started.

    SIGINT means something to it, even if these tests run in a background where it is ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "conuresh.py"), f"--server={server.url}", *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_shell_watch_ends_with_ctrl_c(db: Client, server: ServerProcess) -> None:
    begin = db.put("p/1", "a\nb")
    with start_shell(server, "watch", "--prefix", "p/", "--from", str(begin)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"put\t%d\tp/1\ta\\nb\n" % begin
        gone = db.delete("p/1")
        assert process.stdout.readline() == b"delete\t%d\tp/1\n" % gone
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    with start_shell(server, "watch", "p/1", "--from", str(begin), "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {
            "event": "put", "revision": begin, "key": "p/1", "value": "a\nb", "version": 1,
        }  # fmt: skip


def test_shell_lock(run: Run, db: Client, server: ServerProcess) -> None:
    told = "import os; print(os.environ['CONURE_FENCING_TOKEN']); raise SystemExit(7)"
    code, out, _ = run("lock", "jobs/1", "--", sys.executable, "-c", told)
    assert code == 7
    assert int(out) > 0
    assert run("lock", "jobs/1", "--", "/no/such/command")[0] == 1
    with db.lock("jobs/1"):
        code, _, err = run("lock", "jobs/1", "--wait=100ms", "--", "true")
        assert code == 1
        assert "another one holds the lock" in err
    assert run("lock", "jobs/1", "--", "true") == (0, "", "")


def test_shell_ends_the_command_of_a_lock_that_is_lost(db: Client, server: ServerProcess) -> None:
    with start_shell(server, "lock", "jobs/1", "--ttl=600ms", "--", "sleep", "60") as process:
        wait_until(lambda: db.record("jobs/1") is not None)
        record = db.record("jobs/1")
        assert record is not None
        assert record.session is not None
        db.end_session(record.session)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert b"the lock is lost; ending sleep" in process.stderr.read()


def test_shell_that_is_ended_lets_go_of_its_lock(db: Client, server: ServerProcess) -> None:
    with start_shell(server, "lock", "jobs/1", "--", "sleep", "60") as process:
        wait_until(lambda: db.record("jobs/1") is not None)
        time.sleep(0.1)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert db.record("jobs/1") is None


def test_shell_sessions(run: Run) -> None:
    code, out, _ = run("session", "open", "--ttl", "1m", "--name", "me", "--behavior=delete")
    assert code == 0
    session = out.strip()
    assert json.loads(run("session", "show", session)[1])["name"] == "me"
    assert run("put", "k", "v", "--acquire", session) == (0, "OK\n", "")
    assert json.loads(run("info", "k")[1])["session"] == session
    assert run("put", "k", "w", "--release", session) == (0, "OK\n", "")
    assert run("session", "renew", session) == (0, "OK\n", "")
    assert run("session", "end", session) == (0, "OK\n", "")
    code, _, err = run("session", "show", session)
    assert code == 1
    assert "there is no such session" in err


def test_shell_backup(run: Run, db: Client, tmp_path: Path) -> None:
    db.put("k", "v")
    code, out, _ = run("backup", str(tmp_path / "b"))
    assert code == 0
    assert out.startswith("OK, as of revision ")
    assert os.listdir(tmp_path) == ["b"]
    assert run("backup", str(tmp_path / "no" / "b"))[0] == 1


# -- ranges that are larger than what goes at once -------------------------------------------------


def test_a_prefix_of_any_size_is_removed(tmp_path: Path) -> None:
    with (
        running(tmp_path, "--bootstrap", "--max-range-items=7") as server,
        Client(server.url) as db,
    ):
        for count in (0, 1, 7, 8, 14, 40):
            db.load((f"p/{n}", "v") for n in range(count))
            db.put("q", "stays")
            assert db.delete_prefix("p/") == count
            assert [record.key for record in db.items()] == [b"q"]
        db.load((f"p/{n}", "v") for n in range(20))
        assert shell(server, "delete", "--prefix", "p/") == (0, b"20\n")
        assert db.count() == 1
        begin = db.put("p/1", "v")
        db.load((f"p/{n}", "v") for n in range(2, 9))
        db.delete_prefix("p/")
        revisions = [event.revision for event in events_of(db, begin) if event.kind == "delete"]
        assert len(revisions) == 8
        assert len(set(revisions)) == 2  # two parts, each at one revision


def shell(server: ServerProcess, *args: str) -> tuple[int, bytes]:
    """Run the shell with a command; return its exit status and output."""
    with start_shell(server, *args) as process:
        output, _ = process.communicate(timeout=30)
    return process.returncode, output


def events_of(db: Client, begin: int) -> list[Event]:
    """Return what has happened from a revision until now."""
    last = db.put("z", "end")
    events: list[Event] = []
    with db.watch(start_revision=begin) as watch:
        for event in watch:
            if event.revision == last:
                break
            events.append(event)
    return events


def test_a_counter_that_begins_with_a_time_to_live(db: Client, server: ServerProcess) -> None:
    assert db.increment("n", 3, ttl=3600) == 3
    record = db.record("n")
    assert record is not None
    assert 3590 < (record.ttl or 0) <= 3600
    assert db.increment("n", ttl=60) == 4
    record = db.record("n")
    assert record is not None
    assert (record.ttl or 0) > 3500  # it keeps its time
    assert shell(server, "incr", "m", "5", "--ttl", "1h") == (0, b"5\n")
    record = db.record("m")
    assert record is not None
    assert 3590 < (record.ttl or 0) <= 3600


# -- arguments of a wrong type ---------------------------------------------------------------------

WRONG: list[Any] = [None, 5, 1.5, True, {"a": 1}, ["a"], [b"a"], object(), ("a",)]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: type(wrong).__name__)
def test_what_is_neither_text_nor_bytes_is_refused_by_name(db: Client, wrong: Any) -> None:
    """Before anything is sent: a value that was made up of it would be a silent loss."""
    begin = db.put("k", "v")
    session = db.open_session(60)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("key", lambda: db.put(wrong, "v")),
        ("value", lambda: db.put("k", wrong)),
        ("value", lambda: db.put("k", wrong, ttl=60)),
        ("key", lambda: db.get(wrong)),
        ("key", lambda: db.record(wrong)),
        ("key", lambda: db.delete(wrong)),
        ("key", lambda: db.increment(wrong)),
        ("key", lambda: db.touch(wrong, 5)),
        ("prefix", lambda: db.delete_prefix(wrong)),
        ("name", lambda: db.lock(wrong)),
        ("key", lambda: db.load([(wrong, "v")])),
        ("key", lambda: Op.put(wrong, "v")),
        ("value", lambda: Op.put("k", wrong)),
        ("key", lambda: Op.get(wrong)),
        ("key", lambda: Op.delete(wrong)),
        ("prefix", lambda: Op.delete_prefix(wrong)),
        ("prefix", lambda: Op.range(wrong)),
        ("key", lambda: Op.increment(wrong)),
        ("key", lambda: Op.touch(wrong, 5)),
        ("key", lambda: when(wrong, exists=True)),
        ("session", lambda: db.renew_session(wrong)),
    ]
    if wrong is not None:  # which means something here
        calls += [
            ("prefix", lambda: db.items(wrong)),
            ("start", lambda: db.items(start=wrong)),
            ("end", lambda: db.items(end=wrong)),
            ("prefix", lambda: db.count(wrong)),
            ("key", lambda: db.watch(wrong)),
            ("prefix", lambda: db.watch(prefix=wrong)),
            ("value", lambda: db.load([("k", wrong)])),
            ("value", lambda: when("k", value=wrong)),
            ("acquire", lambda: db.put("k", "v", acquire=wrong)),
            ("release", lambda: db.put("k", "v", release=wrong)),
        ]
    for argument, call in calls:
        with pytest.raises(TypeError, match=rf"^{argument} has to be str or bytes, not "):
            call()
    db.end_session(session)
    assert events_of(db, begin + 1) == []
    assert db.get("k") == b"v"


@pytest.mark.parametrize("wrong", [None, "5", 1.5, True, b"5", [5]], ids=repr)
def test_what_is_no_number_is_refused_by_name(db: Client, wrong: Any) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("by", lambda: db.increment("n", wrong)),
        ("by", lambda: Op.increment("n", wrong)),
    ]
    if wrong is not None:
        calls += [
            ("if_revision", lambda: db.put("k", "v", if_revision=wrong)),
            ("if_revision", lambda: db.delete("k", if_revision=wrong)),
            ("limit", lambda: db.items(limit=wrong)),
            ("start_revision", lambda: db.watch(start_revision=wrong)),
        ]
    for argument, call in calls:
        with pytest.raises(TypeError, match=rf"^{argument} has to be int, not "):
            call()
    if wrong not in (None, 1.5):
        with pytest.raises(TypeError, match=r"^ttl has to be a number of seconds, not "):
            db.put("k", "v", ttl=wrong)
    assert db.count() == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_is_a_key_and_a_value(
    db: Client, kind: Callable[[bytes], Any]
) -> None:
    db.put(kind(b"k\xff"), kind(b"v\xff"))
    assert db.get(kind(b"k\xff")) == b"v\xff"
    db.txn(success=[Op.put(kind(b"l"), kind(b"\xfe"))])
    assert db.get("l") == b"\xfe"
    assert db.load([(kind(b"m"), kind(b"w"))]) == 1
    assert db.delete_prefix(kind(b"")) == 3


# -- the value before ------------------------------------------------------------------------------


def test_a_watch_may_have_the_values_before(tmp_path: Path) -> None:
    with running(tmp_path, "--bootstrap") as server, Client(server.url, timeout=20) as db:
        begin = db.put("k", "unknown")
        db.put("k", "1")
        with db.watch("k", start_revision=begin, prev=True) as watch, db.watch("k") as plain:
            assert [next(watch)[1:] for _ in range(2)] == [
                ("put", b"k", b"unknown", 1, None),  # nobody had asked for it by then
                ("put", b"k", b"1", 2, None),
            ]
            db.put("k", "2")
            db.put("k", b"\xff", ttl=3600)
            db.delete("k")
            db.put("k", "new")
            assert [next(watch)[2:] for _ in range(4)] == [
                (b"k", b"2", 3, b"1"),
                (b"k", b"\xff", 4, b"2"),
                (b"k", None, 0, b"\xff"),
                (b"k", b"new", 1, None),
            ]
            assert [next(plain).previous for _ in range(4)] == [None] * 4
        last = db.put("k", "end")
        with db.watch("k", start_revision=last, prev=True) as watch:
            assert next(watch).previous == b"new"
        with start_shell(
            server, "watch", "k", "--prev", "--json", "--from", str(last)
        ) as process:  # fmt: skip
            assert process.stdout is not None
            shown = json.loads(process.stdout.readline())
            assert (shown["value"], shown["prev"]) == ("end", "new")
            process.terminate()
        status, _ = shell(server, "watch", "k", "--prev")
        assert status == 2
        assert server.request("GET", "/watch?key=k&prev=perhaps").status == 400
