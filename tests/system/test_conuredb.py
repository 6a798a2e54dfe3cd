"""The main module's own parts: exit status, log lines, limits of the process."""

from __future__ import annotations

import errno
import io
import json
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import conuredb
from conure.config import load
from conure.metrics import Registry
from conure.net.reactor import Reactor
from conuredb import MAX_OPEN_FILES, JSONFormatter, TextFormatter, main, raise_file_limit
from httpapi import MetricsAPI
from tests.lab.process import ROOT, running, wait_until


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, as it was before at the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--http-addr=nowhere"], 2, "http_addr (flag --http-addr)"),
        (["--http-addr=192.0.2.1:1"], 2, "http_addr (flag --http-addr): can't listen on"),
    ],
)
def test_exit_status_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], status: int, words: str
) -> None:
    assert main([f"--data-dir={tmp_path / 'data'}", *flags]) == status
    line = capsys.readouterr().err
    assert line.startswith("conuredb: ")
    assert words in line
    assert line.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize(("left", "setting"), [(0, "http_addr"), (1, "metrics_addr")])
def test_who_has_no_files_left_to_serve_with_begins_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    left: int,
    setting: str,
) -> None:
    made: list[Reactor] = []

    def make(*arguments: Any) -> Reactor:
        if len(made) == left:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(Reactor(*arguments))
        return made[-1]

    monkeypatch.setattr(conuredb, "Reactor", make)
    addresses = [f"--{name}-addr=127.0.0.1:0" for name in ("http", "metrics", "raft")]
    assert main([f"--data-dir={tmp_path / 'data'}", "--log-level=error", *addresses]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"conuredb: {setting} (flag ")
    assert "Too many open files" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "data").exists()
    assert all(reactor.epoll.closed for reactor in made)


def record(message: str, *arguments: object, error: bool = False) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ValueError("a reason")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord("conure.x", logging.WARNING, "f.py", 1, message, arguments, info)
    made.created, made.msecs = 0.25, 250.0
    return made


def test_text_lines() -> None:
    line = TextFormatter().format(record("%d things", 3))
    assert line == "1970-01-01T00:00:00.250Z WARNING  conure.x: 3 things"
    first, *rest = TextFormatter().format(record("oops", error=True)).splitlines()
    assert first.endswith("conure.x: oops")
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == "  ValueError: a reason"
    assert all(text.startswith("  ") for text in rest)


def test_json_lines() -> None:
    line = JSONFormatter().format(record('a "quoted"\nschlüssel %s', "\0"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "logger": "conure.x",
        "message": 'a "quoted"\nschlüssel \0',
    }
    with_traceback = json.loads(JSONFormatter().format(record("oops", error=True)))
    assert with_traceback["traceback"].endswith("ValueError: a reason")


def test_logging_goes_to_standard_error(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    conuredb.set_up_logging("warning", "json")
    root_logger.info("unseen")
    root_logger.warning("seen")
    assert json.loads(stream.getvalue())["message"] == "seen"


def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unlimited = resource.RLIM_INFINITY
    for soft, hard, expected in (
        (1024, 4096, (4096, 4096)),
        (1024, 1 << 20, (MAX_OPEN_FILES, 1 << 20)),
        (1024, unlimited, (MAX_OPEN_FILES, unlimited)),
        (4096, 4096, None),
        (1 << 20, 1 << 20, None),
        (unlimited, unlimited, None),
    ):
        asked: list[tuple[int, int]] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _, facts=(soft, hard): facts)
        monkeypatch.setattr(resource, "setrlimit", lambda _, facts, to=asked: to.append(facts))
        raise_file_limit()
        assert asked == ([] if expected is None else [expected])


CRASHING = """
import sys, conuredb
from conure.cluster import node
def broken(self):
    raise RuntimeError("a bug of ours")
node.Node.{method} = broken
sys.exit(conuredb.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("method", ["_keep_time", "housekeep"])
def test_a_thread_that_ends_ends_the_process(tmp_path: Path, method: str) -> None:
    """A node that half works is worse than one that is gone: somebody restarts it."""
    script = tmp_path / "broken.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                      + CRASHING.format(method=method))  # fmt: skip
    with running(tmp_path / "data", script=script) as server:
        assert server.wait() == 1
        assert "a bug of ours" in server.text
        assert "Traceback" in server.text


def test_a_process_under_load_still_stops_in_order(tmp_path: Path) -> None:
    with running(tmp_path, "--checkpoint-entries=10") as server:
        for number in range(50):
            assert server.put(f"k{number}", b"v").status == 200
        wait_until(lambda: b"conure_checkpoint_duration_seconds_count 0" not in server.request(
            "GET", "/metrics").body)  # fmt: skip
        assert server.terminate() == 0
    with running(tmp_path) as server:
        assert all(server.get(f"k{number}").body == b"v" for number in range(50))


# -- the data directory ----------------------------------------------------------------------------


def test_no_file_of_the_data_can_be_read_by_the_world(tmp_path: Path) -> None:
    """Whatever the umask of whoever starts it."""
    script = tmp_path / "open.py"
    script.write_text(
        f"import os, sys\nos.umask(0)\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import conuredb\nsys.exit(conuredb.main(sys.argv[1:]))\n"
    )
    data = tmp_path / "new" / "data"
    with running(
        data, "--checkpoint-entries=3", "--log-segment-bytes=64KiB", script=script
    ) as node:
        for number in range(20):
            assert node.put(f"k{number}", bytes(20_000)).status == 200
        wait_until(lambda: len(list((data / "raft").iterdir())) > 3)
        assert node.terminate() == 0
    made = [data, *data.rglob("*")]
    assert {"LOCK", "identity.json", "conure.db", "raft", "snapshot"} <= {p.name for p in made}
    loose = {str(path): oct(path.stat().st_mode) for path in made if path.stat().st_mode & 0o027}
    assert not loose


@pytest.mark.parametrize(
    ("mode", "words"), [(0o700, ""), (0o770, "by its group"), (0o777, "by everybody")]
)
def test_a_data_directory_that_others_may_write_is_worth_a_line(
    tmp_path: Path, mode: int, words: str
) -> None:
    data = tmp_path / "data dir"
    data.mkdir()
    data.chmod(mode)
    with running(data) as server:
        lines = [line for line in server.log if "may be written" in line]
    if not words:
        assert lines == []
        return
    (line,) = lines
    assert " WARNING " in line
    assert words in line
    assert line.endswith(f"chmod go-w '{data}'")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("file", "file is a file"),
        ("file/below", "file is a file"),
        ("link", "link is a symbolic link that leads nowhere"),
        ("circle/below", "circle is a symbolic link that leads nowhere"),
        ("x" * 300, "ame too long"),
        ("/proc/1/data", "data_dir has to be a directory"),
        ("/dev/null", "/dev/null is a file"),
    ],
)
def test_a_data_directory_that_cannot_be_one_is_a_setting_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, words: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    done = start_and_end(f"--data-dir={tmp_path / where}")
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("conuredb: data_dir (flag --data-dir): ")
    assert words in line
    assert "Traceback" not in done.stderr


def start_and_end(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run a server that ends by itself, on ports of its own."""
    addresses = ["--http-addr=127.0.0.1:0", "--raft-addr=127.0.0.1:0"]
    return subprocess.run(
        [sys.executable, str(ROOT / "conuredb.py"), *addresses, *flags],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip


def test_who_may_ask_is_as_the_settings_say() -> None:
    argv = ["--http-addr=127.0.0.1:0", "--metrics-addr=127.0.0.1:0", "--max-connections=5000"]
    argv += ["--allowed-hosts=db.example", "--trusted-proxies=192.0.2.0/24"]
    argv += ["--raft-advertise=in.example:7001", "--seeds=http://seed.example:8081"]
    config = load(argv, {})
    process = conuredb.Process(config)
    process._bind_addresses()
    process._serve_clients(MetricsAPI(Registry()))
    servers = process._servers
    try:
        for server in servers:
            front = server.front
            for host in ("db.example", "in.example", "seed.example", socket.gethostname()):
                assert host in front.access.names
            assert "evil.example" not in front.access.names
            assert "moved.example" not in front.access.names
            assert front.places.share == 1024
            assert front.places._client("192.0.2.7") == ""
            assert front.places._client("192.0.3.7") == "192.0.3.7"
        assert servers[0].front.access.probes == {"/livez", "/readyz"}
        assert "/openapi.json" in servers[0].front.access.public
        assert servers[1].front.access.probes == {"/metrics"}
        assert not servers[1].front.access.public
        node = type("Known", (), {"names": lambda _: ("http://moved.example:8081", "raft:7001")})
        process._node = node()
        assert "moved.example" in servers[0].front.access.names
    finally:
        for server in servers:
            server.drain(0)
