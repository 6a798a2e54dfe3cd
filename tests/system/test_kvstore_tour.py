"""docs/kvstore.md carried out: its commands as they stand, and what they print.

Each machine of the page is a folder here, with ports of its own in the place of those that the page
names; a variable gives them where a command leaves a port out.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from conure.config import load
from conure.profiles import KVSTORE
from tests.lab.cluster import free_port
from tests.lab.process import ROOT, wait_until
from tests.test_docs import FENCE, commands, rows, section

PAGE = ROOT / "docs" / "kvstore.md"
TOOLS = ("bash", "curl", "make")

DEFAULTS = {
    "CONURE_HTTP_ADDR": "8080",
    "CONURE_TCP_ADDR": "9090",
    "CONURE_METRICS_ADDR": "2112",
    "CONURE_API_ADDR": "8081",
    "CONURE_REPLICATION_ADDR": "7001",
}
"""The ports of who says nothing of them."""

PORT = re.compile(r"(?:(?:(localhost|node\d))?:|(?<=-p ))(\d{4,5})\b")
VARIES = (
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>"),
    (r"[0-9a-f]{32}", "<cluster>"),
    (r'"ttl": [\d.]+', '"ttl": <seconds>'),
    (r'"revision": \d+', '"revision": <number>'),  # elections have one, too
    (r"(kvstore_memtable_size_bytes) \d+", r"\1 <bytes>"),
)


class Machine:
    """One of the page's machines: a folder, ports, and the server that was started there."""

    def __init__(self, home: Path, clone: Path) -> None:
        self._ports: dict[str, str] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self.home = home
        self.log = home / "log"
        home.mkdir()
        (home / "bin").symlink_to(clone / "bin")

    def port(self, named: str) -> str:
        """Return the port in the place of one that the page names."""
        if named not in self._ports:
            while (port := str(free_port("127.0.0.1"))) in self._ports.values():
                pass  # the system may offer one again that nobody has bound yet
            self._ports[named] = port
        return self._ports[named]

    def run(self, command: str) -> str:
        """Run a command; return what it prints."""
        done = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self.home, env=self.environ(), timeout=60, check=False,
        )  # fmt: skip
        return self.as_on_the_page(done.stdout.decode())

    def start(self, command: str) -> None:
        """Start a server."""
        with open(self.log, "wb") as log:
            self._server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], stderr=log, cwd=self.home, env=self.environ(),
                start_new_session=True,
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Return once the server has answered that it can serve."""
        assert self._server is not None
        url = f"http://127.0.0.1:{self.port('8081')}/readyz"
        deadline = time.monotonic() + 30
        while True:
            assert self._server.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def said(self) -> str:
        """Return what the server has logged."""
        return self.as_on_the_page(self.log.read_text())

    def as_on_the_page(self, text: str) -> str:
        for named, ours in self._ports.items():
            text = text.replace(f":{ours}", f":{named}")
        return text

    def stop(self) -> int | None:
        """End the server in order; return its exit status."""
        if self._server is None:
            return None
        self._server.send_signal(signal.SIGTERM)
        try:
            return self._server.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait(30)

    def environ(self) -> dict[str, str]:
        """Return the variables of its processes: none of ours, or of a make that runs the tests."""
        environ = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHON" and not re.match("CONURE_|MAKE|MFLAGS", name)
        }
        environ |= {name: f"127.0.0.1:{self.port(port)}" for name, port in DEFAULTS.items()}
        environ["KVCTL_ADDR"] = f"127.0.0.1:{self.port('9090')}"
        environ["PATH"] = f"{os.path.dirname(sys.executable)}:{environ['PATH']}"
        return environ


class Tour:
    """Carries out the commands of the page, each on the machine that it names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clone = folder / "clone"
        self._clone.mkdir()
        for each in ROOT.iterdir():
            if each.name not in ("bin", "build", "data", "tools", ".git", ".venv"):
                (self._clone / each.name).symlink_to(each)
        shutil.copytree(ROOT / "tools", self._clone / "tools")  # or `make build` writes to ours
        self.machines: dict[str, Machine] = {}
        self._started: list[Machine] = []

    def run(self, command: str, shown: str) -> None:
        where = re.search(r"# on (node\d)\n$", command)
        machine = self._machine(where[1] if where else "localhost")
        here = PORT.sub(partial(self._here, machine), command)
        if command.startswith("./bin/server"):
            machine.start(here)
            self._started.append(machine)
            if shown:
                machine.wait_until_ready()
                wait_until(lambda: set(normalised(shown)) <= set(normalised(machine.said())))
            return
        for each in self._started:
            each.wait_until_ready()
        if command.startswith("make "):
            done = subprocess.run(
                command.split(),
                cwd=self._clone,
                env=machine.environ(),
                stdout=subprocess.PIPE,
                check=True,
            )
            assert done.stdout.decode() == shown
            return
        if command.startswith("redis-cli"):
            if shutil.which("redis-cli") is None:
                return
            here = here.replace("redis-cli", "redis-cli --no-raw", 1)  # as at a terminal
        printed = machine.run(here)
        assert normalised(printed) == normalised(shown), command

    def close(self) -> None:
        statuses = [machine.stop() for machine in self.machines.values()]
        assert set(statuses) <= {0, None}

    def _machine(self, name: str) -> Machine:
        if name not in self.machines:
            self.machines[name] = Machine(self._folder / name, self._clone)
        return self.machines[name]

    def _here(self, here: Machine, found: re.Match[str]) -> str:
        """Return an address of the page as it is on this machine."""
        name, port = found.groups()
        machine = here if name in (None, "localhost") else self._machine(name)
        if found[0] == port:
            return machine.port(port)
        return f"{'127.0.0.1' if name else ''}:{machine.port(port)}"


def normalised(text: str) -> list[str]:
    for pattern, instead in VARIES:
        text = re.sub(pattern, instead, text)
    return [line.rstrip() for line in text.splitlines()]


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    made = Tour(tmp_path)
    yield made
    made.close()


@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"it needs {', '.join(TOOLS)}")
def test_the_tour_prints_what_it_says(tour: Tour) -> None:
    steps = commands(PAGE.read_text())
    assert len(steps) > 15
    for command, shown in steps:
        tour.run(command, shown)
    assert set(tour.machines) == {"localhost", "node1", "node2"}


def test_a_second_node_on_one_machine_shares_no_port() -> None:
    (line,) = [block for kind, block in FENCE.findall(PAGE.read_text()) if not kind]
    program, *flags = line.split()
    assert program == "./bin/server"
    config = load(flags, {"CONURE_PROFILE": "kvstore"})
    first = load([], {"CONURE_PROFILE": "kvstore"})
    for name in ("http_addr", "rest_addr", "resp_addr", "metrics_addr", "raft_addr"):
        ours = {getattr(config, each).port for each in ("http_addr", "rest_addr", "resp_addr")}
        assert getattr(first, name).port not in ours
    assert config.data_dir != first.data_dir


def test_the_table_of_flags_is_what_they_set() -> None:
    config = load([], {"CONURE_PROFILE": "kvstore"})
    table = rows(section(PAGE, "## Flags"))
    assert len(table) >= 10
    for flag, default, _ in table:
        name = flag.strip("`").lstrip("-").replace("-", "_")
        name = KVSTORE.meanings.get(name, name)
        name = {
            "tcp_addr": "resp_addr",
            "api_addr": "http_addr",
            "replication_addr": "raft_addr",
        }.get(name, name)
        text = default.strip("`")
        argv = [f"{flag.strip('`')}={text}"]
        assert getattr(load(argv, {"CONURE_PROFILE": "kvstore"}), name) == getattr(config, name)
