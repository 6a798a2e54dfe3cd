"""kvctl and a server: every command, over RESP 2 and 3, and servers that misbehave."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conure.errors import DiskFull, NotLeader, OutcomeUnknown
from conure.ops import kvserver, respclient
from conure.resp.limits import Limits
from tests.lab.kvctltool import HELLO, Kvctl, ScriptedServer
from tests.lab.process import ROOT, resp_port, running, wait_until
from tests.lab.respclient import RespClient
from tests.lab.respservice import RespService

BINARY = b"\xff\x00", b"\xfe\n"


@pytest.fixture(name="service")
def _service() -> Iterator[RespService]:
    service = RespService()
    service.status |= {"leader_id": "n1", "applied_index": 7}
    yield service
    service.close()


@pytest.fixture(name="kvctl")
def _kvctl(capsysbinary: pytest.CaptureFixture[bytes], service: RespService) -> Kvctl:
    return Kvctl(capsysbinary, f"--addr=127.0.0.1:{service.port}")


def objects(out: bytes) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


# -- one key ---------------------------------------------------------------------------------------


def test_put_get_delete(kvctl: Kvctl, service: RespService) -> None:
    assert kvctl("put", "mykey", "my value") == (0, b"OK\n", "")
    assert service.backend.values == {b"mykey": b"my value"}
    assert kvctl("get", "mykey") == (0, b"my value", "")
    assert kvctl("get", "mykey", "--json").out == b'{"key": "mykey", "value": "my value"}\n'
    assert kvctl("put", "other", "", "--json").out == b'{"ok": true}\n'
    assert kvctl("delete", "mykey", "nothing", "other") == (0, b"2\n", "")
    assert kvctl("delete", "mykey", "--json") == (0, b'{"deleted": 0}\n', "")
    assert service.backend.values == {}
    assert kvctl.fails("get", "mykey") == "kvctl: key not found"
    assert kvctl.fails("get", "mykey", "--json") == "kvctl: key not found"


def test_any_bytes_come_and_go_unchanged(
    kvctl: Kvctl, service: RespService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 2000 + b"\n"
    (tmp_path / "value").write_bytes(content)
    with open(tmp_path / "value") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert kvctl("put", BINARY[0], "-").status == 0
    assert service.backend.values == {BINARY[0]: content}
    assert kvctl("get", BINARY[0]).out == content
    assert kvctl("put", BINARY[0], BINARY[1]).status == 0
    (found,) = objects(kvctl("get", BINARY[0], "--json").out)
    assert found["encoding"] == "base64"
    assert tuple(base64.b64decode(found[name]) for name in ("key", "value")) == BINARY


def test_a_value_that_no_server_stores_is_not_sent(
    kvctl: Kvctl, service: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvserver, "MAX_VALUE_BYTES", 1 << 20)
    assert "more than 1 MiB" in kvctl.fails("put", "k", "x" * ((1 << 20) + 1))
    assert service.backend.batches == []


def test_a_key_that_expires(kvctl: Kvctl, service: RespService) -> None:
    assert kvctl("put", "k", "v", "--ttl=1h30m").status == 0
    assert kvctl("ttl", "k").out == b"1h30m\n"
    assert objects(kvctl("ttl", "k", "--json").out) == [{"key": "k", "ttl": 5400.0}]
    assert objects(kvctl("get", "k", "--json").out) == [{"key": "k", "value": "v", "ttl": 5400.0}]
    assert kvctl("put", "k", "v").status == 0
    assert kvctl("ttl", "k").out == b"never\n"
    assert objects(kvctl("ttl", "k", "--json").out) == [{"key": "k", "ttl": None}]
    assert kvctl.fails("ttl", "nothing") == "kvctl: key not found"
    assert kvctl("put", "k", "v", "--ttl=0.2ms").status == 0  # the shortest there is
    assert kvctl("ttl", "k").out == b"1ms\n"


def test_a_terminal_is_spared_what_it_could_take_for_a_command(
    kvctl: Kvctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kvctl("put", "k", "a\x1b[2J\n\tb\xe9").status == 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert kvctl("get", "k").out.decode() == "a\\x1b[2J\n\tb\xe9\n"


# -- many keys -------------------------------------------------------------------------------------


@pytest.fixture(name="many")
def _many(service: RespService) -> list[str]:
    """Keys of more pages than two, in their order."""
    keys = [f"user:{number:04}" for number in range(1203)]
    others = {b"a*b": b"1", b"a*c": b"2", b"axb": b"3", BINARY[0]: BINARY[1], b"[x]?\\": b"4"}
    service.backend.values = others | {key.encode(): b"v " + key.encode() for key in keys}
    return keys


def test_scan(kvctl: Kvctl, many: list[str]) -> None:
    assert kvctl("scan").lines == ["[x]?\\", "a*b", "a*c", "axb", *many, "\\xff\\x00"]
    assert kvctl("scan", "user:").lines == many
    assert kvctl("scan", "user:", "--limit=2").lines == many[:2]
    assert kvctl("scan", "user:", "--limit=700").lines == many[:700]
    assert kvctl("scan", "a*").lines == ["a*b", "a*c"]  # no pattern
    assert kvctl("scan", "[x]?\\").lines == ["[x]?\\"]
    assert kvctl("scan", "nobody") == (0, b"", "")
    assert kvctl("scan", "a*", "--values").out == b"a*b\t1\na*c\t2\n"
    assert kvctl("scan", "user:", "--values").lines == [f"{key}\tv {key}" for key in many]
    first, last = objects(kvctl("scan", "--json").out)[:: len(many) + 4]
    assert first == {"key": "[x]?\\"}
    assert last == {"key": base64.b64encode(BINARY[0]).decode(), "encoding": "base64"}
    assert objects(kvctl("scan", "a*", "--json", "--values").out)[0] == {"key": "a*b", "value": "1"}


def test_dump_is_what_the_shell_loads(kvctl: Kvctl, service: RespService, many: list[str]) -> None:
    kvctl("put", "brief", "v", "--ttl=1h")
    found = objects(kvctl("dump").out)
    assert [each["key"] for each in found[3:5]] == ["axb", "brief"]
    assert found[4] == {"key": "brief", "value": "v", "ttl": 3600.0}
    assert [each["value"] for each in found[5:-1]] == [f"v {key}" for key in many]
    assert [each["key"] for each in objects(kvctl("dump", "user:12").out)] == many[1200:]


def test_a_key_that_comes_twice_is_shown_once(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A server that has forgotten a cursor goes on from before its place."""
    page = b"*2\r\n$1\r\n%d\r\n*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\n%b\r\n"
    server = ScriptedServer([HELLO, page % (7, b"c"), page % (0, b"d")])
    try:
        assert Kvctl(capsysbinary, f"--addr={server.address}")("scan").lines == [*"abcd"]
    finally:
        server.close()


def test_pages_that_lead_nowhere_end(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    server = ScriptedServer([HELLO, *[b"*2\r\n$1\r\n7\r\n*1\r\n$1\r\na\r\n"] * 200])
    try:
        said = Kvctl(capsysbinary, f"--addr={server.address}")("scan")
        assert (said.status, said.out) == (1, b"a\n")
        assert "answers SCAN by something else" in said.err
    finally:
        server.close()


def test_a_key_that_goes_meanwhile_is_left_out(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    page = b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"
    server = ScriptedServer([HELLO, page, b"_\r\n:-2\r\n$1\r\nv\r\n:-1\r\n"])
    try:
        said = Kvctl(capsysbinary, f"--addr={server.address}")("dump")
        assert objects(said.out) == [{"key": "b", "value": "v"}]
    finally:
        server.close()


# -- the server itself -----------------------------------------------------------------------------


def test_stats(kvctl: Kvctl) -> None:
    said = kvctl("stats")
    assert said.lines[0] == "# server"
    text = said.out.decode()
    assert re.search(r"^conuredb_version +\d", text, re.MULTILINE)
    assert re.search(r"^used_memory +[\d.]+ MiB \([\d,]+\)$", text, re.MULTILINE)
    (sections,) = objects(kvctl("stats", "--json").out)
    assert sections["replication"]["conuredb_leader_id"] == "n1"
    assert sections["clients"]["connected_clients"] == 1


def test_check(kvctl: Kvctl, service: RespService) -> None:
    said = kvctl("check")
    assert (said.status, said.err) == (0, "")
    shown = [re.sub(r" +\d+\.\d ms|-  +", " <ms>", line) for line in said.lines]
    assert shown[0].startswith("answers  ok <ms>  node n1, ConureDB ")
    assert shown[0].endswith(", RESP3")
    assert shown[1:] == [
        "leader   ok <ms>  n1, this node",
        "read     ok <ms>  linearizable, of a key that isn't there",
        "write     <ms>not tried; --write does",
    ]
    assert service.backend.batches == []

    (found,) = objects(kvctl("check", "--write", "--json").out)
    assert found["ok"]
    assert [each["check"] for each in found["checks"]] == ["answers", "leader", "read", "write"]
    assert all(each["ok"] and each["ms"] >= 0 for each in found["checks"])
    assert re.fullmatch(
        "kvctl:check:[0-9a-f]{16} stored, read and deleted", found["checks"][-1]["found"]
    )
    assert len(service.backend.batches) == 2
    assert service.backend.values == {}


def test_check_finds_what_is_wrong(kvctl: Kvctl, service: RespService) -> None:
    service.status |= {"leader_id": "", "is_leader": False}
    service.backend.error = DiskFull("the disk is full")
    said = kvctl("check", "--write")
    assert said.status == 1
    assert [line.split()[:2] for line in said.lines] == [
        ["answers", "ok"], ["leader", "FAILED"], ["read", "FAILED"], ["write", "FAILED"],
    ]  # fmt: skip
    assert "none is known; see whether a majority of the voters runs" in said.lines[1]
    assert "the disk is full (free some space on the leader's disk)" in said.lines[3]
    assert re.fullmatch(
        r"kvctl: 127.0.0.1:\d+ is not in order: leader, read, write\n", said.err
    )  # fmt: skip
    (found,) = objects(kvctl("check", "--json").out)
    assert [each["ok"] for each in found["checks"]] == [True, False, False, None]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compact"], "frees what is old by itself; --data-dir=DIR compacts a stopped node's"),
        (["tables"], "--data-dir=DIR shows those of a stopped node"),
        (["scan", "--reverse"], "with --data-dir both ways are"),
    ],
)
def test_what_a_server_is_not_asked(
    capsysbinary: pytest.CaptureFixture[bytes], words: list[str], told: str
) -> None:
    assert told in Kvctl(capsysbinary, "--addr=127.0.0.1:1").fails(*words)


# -- errors ----------------------------------------------------------------------------------------


def test_refusals_are_one_line_with_a_remedy(kvctl: Kvctl, service: RespService) -> None:
    assert re.search(r"127.0.0.1:\d+ answers: .*key", kvctl.fails("put", "", "v"))
    service.backend.error = NotLeader()
    assert "CLUSTERDOWN no leader is known" in kvctl.fails("put", "k", "v")
    assert "(nothing has happened; start a majority" in kvctl.fails("put", "k", "v")
    service.backend.error = OutcomeUnknown("it took too long")
    assert "UNKNOWN the write may or may not have happened" in kvctl.fails("delete", "k")


def test_nobody_there(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    told = Kvctl(capsysbinary, "--addr=127.0.0.1:1").fails("get", "k")
    assert "can't connect to 127.0.0.1 port 1: connection refused; name a running server" in told


def test_the_http_port_is_told_apart(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    server = ScriptedServer([b"HTTP/1.1 400 Bad Request\r\n\r\n"])
    try:
        told = Kvctl(capsysbinary, f"--addr={server.address}").fails("get", "k")
        assert "it speaks HTTP; name the address of RESP (--resp-addr) by --addr" in told
    finally:
        server.close()


@pytest.mark.parametrize(
    ("replies", "words", "told"),
    [
        ([b"garbage\r\n"], ["get", "k"], "sent what is no RESP: a reply begins with b'garbage'"),
        ([HELLO, b"$5\r\nab"], ["get", "k"], "has closed the connection"),
        ([HELLO], ["put", "k", "v"], "may or may not have been carried out: read before you"),
        ([HELLO, b"$5\r\nab"], ["delete", "k"], "may or may not have been carried out"),
        ([HELLO, b"?\r\n"], ["put", "k", "v"], "may or may not have been carried out"),
        ([HELLO, b"$99999999999\r\n"], ["get", "k"], "which no server can store"),
        ([HELLO, b":1\r\n"], ["scan"], "answers SCAN by something else than what that returns"),
        ([HELLO, b"*2\r\n$1\r\n0\r\n*1\r\n:5\r\n"], ["scan"], "answers SCAN by something else"),
        ([HELLO, b":1\r\n"], ["get", "k"], "answers GET by something else"),
        ([HELLO, b":1\r\n:1\r\n"], ["get", "k", "--json"], "answers GET and PTTL by something"),
        ([HELLO, b"+no\r\n"], ["put", "k", "v"], "answers SET by something else"),
        ([HELLO, b"+OK\r\n"], ["delete", "k"], "answers DEL by something else"),
        ([HELLO, b"_\r\n"], ["ttl", "k"], "answers PTTL by something else"),
        ([HELLO, b"*2\r\n*0\r\n*0\r\n"], ["watch"], "answers CONFIG GET by something else"),
        ([HELLO, b"_\r\n"], ["watch"], "answers CONFIG GET by something else"),
        ([HELLO, b"-ERR \x1b[2J\r\n"], ["get", "k"], r"answers: \x1b[2J"),
        ([b"-NOAUTH no\r\n"], ["get", "k"], "NOAUTH no (this kvctl sends no password)"),
    ],
)
def test_hostile_servers(
    capsysbinary: pytest.CaptureFixture[bytes], replies: list[bytes], words: list[str], told: str
) -> None:
    server = ScriptedServer(replies)
    try:
        assert told in Kvctl(capsysbinary, f"--addr={server.address}").fails(*words)
    finally:
        server.close()


def test_a_server_that_never_answers(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    for replies, words in (
        ([], ["get", "k"]),
        ([HELLO], ["get", "k"]),
        ([HELLO], ["put", "k", "v"]),
    ):
        server = ScriptedServer(replies, stays=True)
        try:
            kvctl = Kvctl(capsysbinary, f"--addr={server.address}", "--timeout=100ms")
            assert "has not answered within 0.1 s" in kvctl.fails(*words)
        finally:
            server.close()


def test_a_write_that_is_interrupted(
    kvctl: Kvctl, service: RespService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(respclient.RespClient, "ask", interrupted)
    for words in (["put", "k", "v"], ["delete", "k"]):
        assert kvctl(*words) == (
            128 + signal.SIGINT, b"",
            "kvctl: interrupted; the write may or may not have been carried out\n",
        )  # fmt: skip
    assert kvctl("get", "k") == (128 + signal.SIGINT, b"", "")


def test_an_old_redis(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """One that knows no HELLO speaks RESP2, and its pages have no order."""
    unknown = b"-ERR unknown command 'HELLO'\r\n"
    pages = [b"*2\r\n$1\r\n5\r\n*1\r\n$1\r\nz\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n"]
    server = ScriptedServer([unknown, *pages])
    try:
        assert Kvctl(capsysbinary, f"--addr={server.address}")("scan").lines == ["z", "a"]
    finally:
        server.close()


# -- watch -----------------------------------------------------------------------------------------


# Heeds Ctrl-C though the tests' own process was told to ignore it, as those in the background are.
_WATCH = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from conure.ops.kvctl import main; sys.exit(main(sys.argv[1:], {}))"
)


class Watching:
    """A kvctl that watches, as a process; what it says comes from a pipe."""

    def __init__(self, port: int, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WATCH, f"--addr=127.0.0.1:{port}", "watch", *words],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def line(self) -> bytes:
        """Return the next event."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> tuple[int, str]:
        """Interrupt it; return status and complaints."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Return status and complaints of one that ends by itself."""
        _, told = self.process.communicate(timeout=20)
        return self.process.returncode, told.decode()


def patterns(client: RespClient) -> int:
    return int(client.ask("PUBSUB", "NUMPAT"))


def test_watch(service: RespService) -> None:
    service.backend.values = {b"a*1": b"v"}
    with service.client() as client:
        watching = Watching(service.port, "a*")
        wait_until(lambda: patterns(client) == 1)
        assert client.ask("CONFIG", "GET", "notify-keyspace-events") == [
            b"notify-keyspace-events", b"g$xK",
        ]  # fmt: skip
        for words in (("SET", "a*2", "v"), ("SET", "ab", "v"), ("DEL", "a*1"), ("SET", b"a*\n", 1)):
            client.ask(*words)
        lines = [watching.line() for _ in range(3)]
        assert lines == [b"set\ta*2\n", b"del\ta*1\n", b"set\ta*\\n\n"]
        status, told = watching.end()
        assert status == 0  # that is how it ends
        assert re.fullmatch(r"kvctl: \S+ notifies of keys from now on, until it .*\n", told)
        wait_until(lambda: patterns(client) == 0)

        again = Watching(service.port, "--json")
        wait_until(lambda: patterns(client) == 1)
        client.ask("SET", BINARY[0], "v")
        assert json.loads(again.line()) == {
            "event": "set", "key": base64.b64encode(BINARY[0]).decode(), "encoding": "base64",
        }  # fmt: skip
        assert again.end() == (0, "")  # nothing had to be set any more
        wait_until(lambda: patterns(client) == 0)


def test_watch_keeps_what_others_want_to_be_told(service: RespService) -> None:
    with service.client() as client:
        assert client.ask("CONFIG", "SET", "notify-keyspace-events", "EA") == b"OK"
        watching = Watching(service.port)
        wait_until(lambda: patterns(client) == 1)
        assert client.ask("CONFIG", "GET", "notify-keyspace-events")[1] == b"AKE"
        assert watching.end()[0] == 0


def test_a_watch_that_may_have_missed_something_says_so(service: RespService) -> None:
    with service.client() as client:
        watching = Watching(service.port)
        wait_until(lambda: patterns(client) == 1)
        assert client.ask("CLIENT", "KILL", "TYPE", "pubsub") == 1
        status, told = watching.wait()
        assert status == 1
        assert "has closed the connection; events may have been missed, so read the keys" in told


def test_a_watch_asks_whether_the_server_is_there(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvserver, "_IDLE", 0.05)
    settings = b"%1\r\n$22\r\nnotify-keyspace-events\r\n$2\r\nKA\r\n"
    subscribed = b">3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n"
    event = b">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$16\r\n__keyspace@0__:k\r\n$3\r\nset\r\n"
    server = ScriptedServer([HELLO, settings, subscribed, b"+PONG\r\n", event], stays=True)
    try:
        said = Kvctl(capsysbinary, f"--addr={server.address}", "--timeout=100ms")("watch")
        assert said.status == 1
        assert said.out == b"set\tk\n"
        assert "is silent; events may have been missed" in said.err
        assert server.received[3:5] == [b"*1\r\n$4\r\nPING\r\n"] * 2
    finally:
        server.close()


def test_a_watch_that_is_refused(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    settings = b"*2\r\n$22\r\nnotify-keyspace-events\r\n$2\r\nAK\r\n"
    server = ScriptedServer([HELLO, settings, b"-CLUSTERDOWN no leader is known\r\n"])
    try:
        told = Kvctl(capsysbinary, f"--addr={server.address}").fails("watch")
        assert "CLUSTERDOWN no leader is known (nothing has happened; start a majority" in told
    finally:
        server.close()


# -- real servers ----------------------------------------------------------------------------------


def test_a_real_server(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    with running(tmp_path / "data", "--bootstrap", "--resp-addr=127.0.0.1:0") as server:
        kvctl = Kvctl(capsysbinary, f"--addr=127.0.0.1:{resp_port(server)}")
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        assert kvctl("put", "mykey", "myvalue").out == b"OK\n"
        assert kvctl("get", "mykey").out == b"myvalue"
        assert server.get("mykey").body == b"myvalue"
        assert kvctl("scan").lines == ["mykey"]
        assert kvctl("check", "--write").status == 0
        assert kvctl("delete", "mykey").out == b"1\n"
        assert kvctl("scan").lines == []
        told = kvctl.at(f"--addr=127.0.0.1:{server.port}").fails("get", "k")
        assert "it speaks HTTP" in told


def test_values_up_to_the_limit_and_beyond(
    kvctl: Kvctl, service: RespService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The service takes up to 1 MiB, and closes while more is still on its way."""
    for size, status in ((1 << 20, 0), (3 << 20, 1), (Limits().max_command_bytes + (1 << 20), 1)):
        (tmp_path / "value").write_bytes(b"x" * size)
        with open(tmp_path / "value") as file:
            monkeypatch.setattr(sys, "stdin", file)
            said = kvctl("put", "k", "-")
        assert said.status == status, said
        assert said.err.count("\n") == status
    assert len(kvctl("get", "k").out) == 1 << 20


def test_a_closed_pipe_ends_a_scan_quietly(service: RespService, many: list[str]) -> None:
    command = f"{sys.executable} -m conure.ops.kvctl --addr=127.0.0.1:{service.port} scan --values"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "[x]?\\\t4"
    assert done.stdout.splitlines()[1] in ("0", "1")
    assert done.stderr == ""
