"""What ``make cluster`` runs: it starts a cluster, tells where it is, and stops all of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import fetch, free_port, wait_until
from tests.lab.process import ROOT

TOOL = ROOT / "tools" / "cluster.py"
ROW = re.compile(r"^  (node\d)  (https?://\S+) .* (\d+)(  leader)?$")
HINT = re.compile(r"^  [a-z ]+: +(\w.*)$")


class Tool:
    """The tool as a process, with what it has said so far."""

    def __init__(self, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TOOL), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.text or self.process.poll() is not None)
        assert words in self.text, self.text

    def nodes(self) -> dict[str, tuple[str, int]]:
        """The table it has printed: URL and process of each node."""
        found = [ROW.match(line) for line in self.lines]
        return {row[1]: (row[2], int(row[3])) for row in found if row}

    def hints(self) -> list[str]:
        """The commands it suggests."""
        return [hint[1] for line in self.lines if (hint := HINT.match(line))]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        status = self.process.wait(30)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))


@contextlib.contextmanager
def tool(*flags: str) -> Iterator[Tool]:
    """The tool, stopped at the end of the block, and by force if it has to be."""
    process = Tool(*flags)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.terminate()
        try:
            process.end()
        except subprocess.TimeoutExpired:
            for _, pid in process.nodes().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.process.kill()
            raise


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_served(url: str) -> bool:
    """Read what the first hint has written; redirects lead to a dead leader for a moment."""
    try:
        return fetch("GET", f"{url}/kv?key=hello", follow=True).body == b"world"
    except ConnectionRefusedError:
        return False


def some_port() -> int:
    """A port around which others are probably free as well: the system gives none of them away."""
    return 20_000 + free_port("127.0.0.1") % 10_000


def base_port() -> str:
    return f"--base-port={some_port()}"


def listener() -> socket.socket:
    while True:
        with contextlib.suppress(OSError):  # taken already
            return socket.create_server(("127.0.0.1", some_port()))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_cluster_starts_shows_itself_and_is_found_again(tmp_path: Path) -> None:
    with tool(base_port(), f"--data={tmp_path}") as first:
        first.wait_for("Ctrl-C")
        nodes = first.nodes()
        assert sorted(nodes) == ["node1", "node2", "node3"]
        put, get, kill = first.hints()
        assert subprocess.run(put, shell=True, capture_output=True, check=True).stdout == b"OK\n"
        assert subprocess.run(get, shell=True, capture_output=True, check=True).stdout == b"world"
        subprocess.run(kill, shell=True, check=True)
        first.wait_for("node1 has ended; bring it back with:")
        url, _ = nodes["node2"]
        wait_until(lambda: is_served(url))
        assert first.stop(signal.SIGINT) == 0
        assert "node2  |" in first.text
        assert not any(is_alive(pid) for _, pid in nodes.values())
    with tool(base_port(), f"--data={tmp_path}") as second:
        second.wait_for("Ctrl-C")
        assert {name: url for name, (url, _) in second.nodes().items()} == {
            name: url for name, (url, _) in nodes.items()
        }
        assert is_served(url)
        assert second.stop() == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_cluster_by_tls_with_a_secret(tmp_path: Path) -> None:
    with tool(base_port(), f"--data={tmp_path}", "--nodes=2", "--tls", "--secret") as started:
        started.wait_for("Ctrl-C")
        assert all(url.startswith("https://127.0.0.1:") for url, _ in started.nodes().values())
        put, get, _ = started.hints()
        assert subprocess.run(put, shell=True, capture_output=True, check=True).stdout == b"OK\n"
        assert subprocess.run(get, shell=True, capture_output=True, check=True).stdout == b"world"
        secret = tmp_path / "cluster.secret"
        assert secret.stat().st_mode & 0o777 == 0o600
        assert len(secret.read_text()) == 65
        assert started.stop() == 0


def test_ports_that_are_taken_are_skipped() -> None:
    with listener() as taken:
        port = taken.getsockname()[1]
        with tool("--nodes=1", f"--base-port={port}") as alone:
            alone.wait_for("Ctrl-C")
            [(url, pid)] = alone.nodes().values()
            assert int(url.rpartition(":")[2]) > port
            assert alone.stop() == 0
        assert not is_alive(pid)


def test_a_node_that_ends_at_its_start_is_named_with_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "node2").write_text("not a directory")
    with tool(base_port(), f"--data={tmp_path}") as failed:
        assert failed.end() == 1
        *_, last = failed.lines
        assert last.startswith("cluster| node2 has ended at its start: conuredb: data_dir")
        assert "Traceback" not in failed.text


@pytest.mark.parametrize("flags", [["--nodes=0"], ["--base-port=80"], ["--what"]])
def test_wrong_usage(flags: list[str]) -> None:
    with tool(*flags) as refused:
        assert refused.end() == 2
        assert "usage:" in refused.text
