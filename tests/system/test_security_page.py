"""docs/security.md carried out: its commands as they stand, in their order, and what they print.

The three nodes of the page are processes in one folder, with free ports in the place of those that
the page names. The table of steps is carried out on a cluster that begins with nothing locked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Member, free_port, wait_until
from tests.lab.process import ROOT
from tests.test_docs import FENCE, commands, rows, section

PAGE = ROOT / "docs" / "security.md"
TOOLS = ("bash", "curl", "openssl")
PORT = re.compile(r"(?<=:)[789]0[089]\d\b")
ASKING = ("curl ", "openssl s_client ", "conuresh.py", "kvctl")
"""What is repeated until it prints what the page shows: it asks servers, which take their time."""

STEPS = 4

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"it needs {', '.join(TOOLS)}"
)


class Node:
    """A server that a line of the page starts."""

    def __init__(self, command: str, home: Path, environ: dict[str, str]) -> None:
        self.command, self._home, self._environ = command, home, environ
        self.name = re.findall(r"--node-id=(\w+)", command)[0]
        self.log = home / f"log-{self.name}"
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec {self.command}"], cwd=self._home, env=self._environ,
                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def length(self) -> int:
        """How much it has said."""
        return len(self.log.read_text())

    def wait_until_said(self, pattern: str, since: int = 0) -> None:
        """Return once the log has what a pattern matches, from some place on."""
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.log.read_text()[since:]):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{pattern}\n{self.log.read_text()}"
            time.sleep(0.02)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


class Tour:
    """Carries out the commands of the page in a folder that looks like a clone."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ports: dict[str, str] = {}
        self.nodes: list[Node] = []
        for each in ("conuredb.py", "conuresh.py", "conure", "httpapi.py"):
            (home / each).symlink_to(ROOT / each)
        clean = {name: text for name, text in os.environ.items() if "CONURE_" not in name}
        self._environ = clean | {
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "PYTHONPATH": "",
        }

    def run(self, command: str, shown: str) -> None:
        here = PORT.sub(lambda found: self._port(found[0]), command)
        if command.startswith("python3 conuredb.py"):
            self.nodes.append(Node(here.replace("\\\n", " ").strip(), self._home, self._environ))
            return
        for node in self.nodes:
            node.wait_until_said("listens on https://")
        if not any(word in command for word in ASKING):
            before = [node.length for node in self.nodes]
            assert self._output(here) == shown, command
            self._wait_until_read(command, before)
            return
        deadline = time.monotonic() + 30
        while (printed := self._output(here, must_work=False)) != shown:
            assert time.monotonic() < deadline, f"{command}\n{printed!r} instead of {shown!r}"
            time.sleep(0.05)

    def join(self) -> None:
        """Start one more node, which asks a member to add it over the Raft port."""
        [raft, seed] = [self._port("7004"), self._port("7001")]
        command = (
            "python3 conuredb.py --config=locked.yaml --node-id=node4 --data-dir=./data/node4 "
            f"--raft-addr=127.0.0.1:{raft} --http-addr=127.0.0.1:0 --join=127.0.0.1:{seed}"
        )
        self.nodes.append(Node(command, self._home, self._environ))
        self.nodes[-1].wait_until_said(r"leader node[1-3]\n")

    def _wait_until_read(self, command: str, before: list[int]) -> None:
        """Return once all nodes have read the file that a command has changed, if it is theirs."""
        changed = re.findall(r"(?:>>? ?|mv \S+ |cp \S+ |-out )(keys/[\w.]+)(?=\n|$)", command)
        file = changed[-1] if changed else ""
        if file not in ("keys/secret", "keys/ca.crt", "keys/server.crt"):
            return
        for node, length in zip(self.nodes, before, strict=True):
            node.wait_until_said(f"read again: .*{file}", length)

    def _output(self, command: str, *, must_work: bool = True) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self._home, env=self._environ, timeout=60, check=False,
            capture_output=True,
        )  # fmt: skip
        assert not must_work or done.returncode == 0, (command, done.stderr)
        return done.stdout.decode()

    def _port(self, named: str) -> str:
        while named not in self._ports:
            ours = str(free_port("127.0.0.1"))
            if ours not in self._ports.values():
                self._ports[named] = ours
        return self._ports[named]


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    made = Tour(tmp_path)
    yield made
    for node in made.nodes:
        if node.process.poll() is None:
            node.stop()


def test_every_command_does_what_the_page_says(tour: Tour, tmp_path: Path) -> None:
    page = PAGE.read_text()
    [settings] = [block for kind, block in FENCE.findall(page) if kind == "yaml"]
    (tmp_path / "locked.yaml").write_text(settings)
    steps = commands(page.partition("\n### From open to a secret")[0])
    assert len(steps) > 15
    for command, shown in steps:
        tour.run(command, shown)
    assert len(tour.nodes) == 3
    for node in tour.nodes:  # by the new secret and the new certificates alone
        assert node.stop() == 0
    lengths = [node.length for node in tour.nodes]
    for node in tour.nodes:
        node.start()
    for node, length in zip(tour.nodes, lengths, strict=True):
        node.wait_until_said(r"leader node\d", length)
    tour.join()
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "keys").iterdir()}
    assert [name for name, mode in modes.items() if mode & 0o077 and "crt" not in name] == []
    assert "traceback" not in "".join(node.log.read_text().lower() for node in tour.nodes)


def test_the_steps_from_open_to_certificates_and_back(tmp_path: Path) -> None:
    """One node after the other, amid writes that go on. All of the way back, with other faults, is
    tests/system/test_peer_auth.py's."""
    (tmp_path / "keys").mkdir(mode=0o700)
    text = section(PAGE, "### From open to a secret to certificates, and back")
    for command, _ in commands(text):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "keys" / "secret").write_text("s" * 32)
    steps = [
        shlex.split(" ".join(re.findall("`(.*)`", flags)).replace("=keys/", f"={tmp_path}/keys/"))
        for _, flags, _, _ in rows(text)
    ]
    assert len(steps) == STEPS + 1
    with Cluster(tmp_path) as cluster:
        cluster.start(3)
        with writing(cluster) as written:
            for flags in (*steps[1:], steps[-2]):
                for member in cluster.members:
                    restart(cluster, member, flags)
        for key in written[:: max(1, len(written) // 50)]:
            assert cluster.leader().get(key).body == b"v"
        assert cluster.leader().get(written[-1]).body == b"v"


def restart(cluster: Cluster, member: Member, flags: list[str]) -> None:
    """Start a node again with the flags of a step; return when it follows or leads once more."""
    member.terminate()
    own = [flag.replace("node.", f"{member.name}.") for flag in flags]
    member.start(*own)
    wait_until(lambda: member.status().get("leader_id") in {m.name for m in cluster.members})
    cluster.leader()
    wait_until(lambda: member.request("GET", "/readyz").status == 200)


@contextlib.contextmanager
def writing(cluster: Cluster) -> Iterator[list[str]]:
    """Put one key after the other through whoever answers; yield those that were acknowledged."""
    written: list[str] = []
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            for member in cluster.running:
                with contextlib.suppress(OSError):
                    if member.put(f"key-{number}", b"v").status == 200:
                        written.append(f"key-{number}")
                        break
            time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        done.set()
        thread.join()
    assert written
