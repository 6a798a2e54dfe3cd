#!/usr/bin/env python3
"""A cluster on this machine, to try things with: what ``make cluster`` runs.

Starts a few nodes of this checkout as processes on the loopback interface, waits until all are
voters, and prints where they are and what to try. Their logs appear on standard error, each line
after its node's name. Ctrl-C or SIGTERM stops all of them.

Without ``--data`` everything is in a temporary directory and gone at the end. With ``--data`` the
next start in the same directory finds the cluster as it was left: ``cluster.json`` there keeps
the ports, because a cluster whose nodes have all moved at once can't find itself again.

With ``--tls`` the first node makes a CA and a certificate (``--tls-auto``), and all of them serve
by it. With ``--secret`` they know each other by a secret that is made here.

Exit status: 0 after Ctrl-C or SIGTERM, 1 if the cluster could not be started.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import secrets
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HTTP_PORT = 8081
RAFT_BELOW = 1080
"""How far a node's Raft port is below its HTTP port: 8081 goes with 7001, as in the README."""

START_SECONDS = 60.0
STOP_SECONDS = 10.0
COLOURS = (36, 33, 32, 35, 34, 31)


class StartError(Exception):
    """The cluster can't be started; str() is why, and what to do."""


class Node:
    """One server process and the thread that passes its log on; *ca* is what it is checked by if
    it serves by TLS."""

    def __init__(self, name: str, http_port: int, data: Path, ca: Path | None = None) -> None:
        self.name = name
        self.ca = ca
        self.http_port = http_port
        self.raft_port = http_port - RAFT_BELOW
        self.data = data
        self.command: list[str] = []
        self.process: subprocess.Popen[bytes]
        self.last_line = ""
        self._reader: threading.Thread

    @property
    def url(self) -> str:
        """The base URL of the node's HTTP API."""
        return f"{'https' if self.ca else 'http'}://127.0.0.1:{self.http_port}"

    def start(self, *flags: str) -> None:
        """Start the process; its log goes to standard error from now on."""
        self.command = [
            sys.executable,
            str(ROOT / "conuredb.py"),
            f"--node-id={self.name}",
            f"--data-dir={self.data}",
            f"--raft-addr=127.0.0.1:{self.raft_port}",
            f"--http-addr=127.0.0.1:{self.http_port}",
            *flags,
        ]
        # In a session of its own: Ctrl-C is for this program, which stops the nodes in order.
        self.process = subprocess.Popen(  # noqa: S603
            self.command, stderr=subprocess.PIPE, start_new_session=True
        )
        self._reader = threading.Thread(target=self._pass_on_log)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def ask(self, path: str) -> dict[str, Any]:
        """Return what the node answers as JSON; empty if it doesn't answer."""
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(contextlib.closing(self._connection()))
                connection.request("GET", path)
                facts = json.load(connection.getresponse())
            except (OSError, http.client.HTTPException, ValueError):
                return {}
        return facts if isinstance(facts, dict) else {}

    def _connection(self) -> http.client.HTTPConnection:
        if self.ca is None:
            return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=2)
        context = ssl.create_default_context(cafile=str(self.ca))  # there once it was made
        return http.client.HTTPSConnection("127.0.0.1", self.http_port, timeout=2, context=context)

    def finish(self, deadline: float) -> None:
        """Wait for the end of a process that was told to stop; kill it at *deadline*."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            note(f"{self.name} has not stopped within {STOP_SECONDS:.0f} s and is killed")
            self.process.kill()
            self.process.wait()
        self._reader.join()

    def _pass_on_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.last_line = line.decode(errors="replace").rstrip()
                print(f"{prefix(self.name)} {self.last_line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a cluster until it is told to stop; return the exit status."""
    options = parse(argv)
    events: SimpleQueue[str] = SimpleQueue()

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        events.put(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        with home(options.data) as directory, started(options, directory) as nodes:
            if wait_for_voters(nodes, events):
                print(introduction(nodes), flush=True)
                watch(nodes, events)
            note("stopping")
    except StartError as error:
        note(str(error))
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Start a cluster on this machine.")
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="how many (default: 3)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep everything there")
    parser.add_argument(
        "--base-port",
        type=int,
        default=HTTP_PORT,
        metavar="PORT",
        help=f"the first HTTP port (default: {HTTP_PORT}); Raft ports are {RAFT_BELOW} below; "
        "ports that are taken are skipped",
    )
    parser.add_argument("--tls", action="store_true", help="serve by TLS, with a CA of its own")
    parser.add_argument("--secret", action="store_true", help="let nodes know each other by one")
    options = parser.parse_args(argv)
    if not 1 <= options.nodes <= 9:
        parser.error(f"--nodes is {options.nodes}; it has to be 1 to 9")
    if not RAFT_BELOW < options.base_port < 65536:
        parser.error(f"--base-port is {options.base_port}; it has to be over {RAFT_BELOW}")
    return options


@contextlib.contextmanager
def home(data: Path | None) -> Iterator[Path]:
    """The directory of the cluster; a temporary one is removed at the end."""
    if data is not None:
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"{data} can't be made: {error.strerror}") from error
        yield data
    else:
        with tempfile.TemporaryDirectory(prefix="conuredb-") as directory:
            yield Path(directory)


@contextlib.contextmanager
def started(options: argparse.Namespace, directory: Path) -> Iterator[list[Node]]:
    """The processes, ended at the end of the block."""
    ports = choose_ports(directory / "cluster.json", options.nodes, options.base_port)
    tls = directory / next(iter(ports)) / "tls" if options.tls else None
    ca = tls / "ca.pem" if tls else None
    nodes = [Node(name, port, directory / name, ca) for name, port in ports.items()]
    shared = [secret_in(directory / "cluster.secret")] if options.secret else []
    running: list[Node] = []
    try:
        for node in nodes:
            # A member of a cluster does not look at either flag again.
            first = "--bootstrap" if node is nodes[0] else f"--join={nodes[0].url}"
            node.start(first, *shared, *tls_flags(tls, is_first=node is nodes[0]))
            running.append(node)
            if tls and node is nodes[0]:
                wait_for_tls(node)
        yield nodes
    finally:
        for node in running:
            if node.is_running:
                node.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for node in running:
            node.finish(deadline)


def tls_flags(tls: Path | None, *, is_first: bool) -> list[str]:
    """Return what the first node makes its certificates by, or the others find them by."""
    if tls is None:
        return []
    files = [f"--tls-cert={tls / 'server.pem'}", f"--tls-key={tls / 'server.key'}"]
    return ["--tls-auto"] if is_first else [*files, f"--tls-ca={tls / 'ca.pem'}"]


def wait_for_tls(node: Node) -> None:
    """Return once the first node answers by TLS, so that all it has made is there."""
    deadline = time.monotonic() + START_SECONDS
    while not node.ask("/status"):
        if not node.is_running or time.monotonic() > deadline:
            node.finish(0.0)
            raise StartError(f"{node.name} doesn't answer by TLS: {node.last_line}")
        time.sleep(0.05)


def secret_in(file: Path) -> str:
    """Return the flag for a file with a secret, which is made if it isn't there."""
    if not file.exists():
        with open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as made:
            made.write(secrets.token_hex(32) + "\n")
    return f"--cluster-secret-file={file}"


def choose_ports(file: Path, count: int, first: int) -> dict[str, int]:
    """Return the HTTP port of each node: those of the last time, and free ones for new nodes."""
    known: dict[str, int] = {}
    if file.exists():
        try:
            known = {str(name): int(port) for name, port in json.loads(file.read_text()).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise StartError(f"{file} is unreadable ({error}); restore or remove it") from error
        for name, port in known.items():
            if not is_free(port):
                raise StartError(
                    f"{name} was at port {port} (and {port - RAFT_BELOW}), which is taken now; "
                    "stop whatever uses it"
                )
    ports = dict(known)
    candidates = (port for port in range(first, 65536) if port not in known.values())
    for number in range(len(ports) + 1, count + 1):
        free = next((port for port in candidates if is_free(port)), None)
        if free is None:
            raise StartError(f"there is no free port from {first} on; choose another --base-port")
        ports[f"node{number}"] = free
    file.write_text(json.dumps(ports) + "\n")
    return ports


def is_free(port: int) -> bool:
    """Whether both ports of a node can be listened on."""
    for number in (port, port - RAFT_BELOW):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                return False
    return True


def wait_for_voters(nodes: Sequence[Node], events: SimpleQueue[str]) -> bool:
    """Return True once all nodes are voters, False if a signal came before; or StartError."""
    deadline = time.monotonic() + START_SECONDS
    names = {node.name for node in nodes}
    while time.monotonic() < deadline:
        with contextlib.suppress(Empty):
            events.get(timeout=0.1)
            return False
        for node in nodes:
            if not node.is_running:
                node.finish(0.0)
                raise StartError(f"{node.name} has ended at its start: {node.last_line}")
        leader = find_leader(nodes)
        if leader is not None:
            servers = leader.ask("/raft/config").get("servers", [])
            if names <= {each["id"] for each in servers if each["suffrage"] == "voter"}:
                return True
    raise StartError(f"the nodes have not become a cluster within {START_SECONDS:.0f} s")


def find_leader(nodes: Sequence[Node]) -> Node | None:
    """Return the node that leads now, if one does."""
    return next((n for n in nodes if n.is_running and n.ask("/status").get("is_leader")), None)


def watch(nodes: Sequence[Node], events: SimpleQueue[str]) -> None:
    """Return when a signal comes or no node is left; tell of each node that ends before."""
    gone: set[str] = set()
    while len(gone) < len(nodes):
        with contextlib.suppress(Empty):
            events.get(timeout=0.2)
            return
        for node in nodes:
            if node.name not in gone and not node.is_running:
                gone.add(node.name)
                note(f"{node.name} has ended; bring it back with:\n  {shlex.join(node.command)}")
    note("no node is left")


def introduction(nodes: Sequence[Node]) -> str:
    """Return what a user sees once the cluster is up."""
    leader = find_leader(nodes) or nodes[0]
    follower = next((node for node in nodes if node is not leader), leader)
    rows = [
        f"  {node.name}  {node.url:<22}  127.0.0.1:{node.raft_port:<5}  {node.process.pid:>7}"
        + ("  leader" if node is leader else "")
        for node in nodes
    ]
    curl = f"curl --cacert {shlex.quote(str(leader.ca))}" if leader.ca else "curl"
    tries = [
        ("write", f"{curl} -L -X PUT '{leader.url}/kv?key=hello&value=world'"),
        ("read at a follower", f"{curl} -L '{follower.url}/kv?key=hello'"),
        ("kill the leader", f"kill -9 {leader.process.pid}"),
    ]
    return "\n".join(
        [
            "",
            f"  {'node':<5}  {'HTTP':<22}  {'Raft':<15}  {'process':>7}",
            *rows,
            "",
            *(f"  {what + ':':<20} {how}" for what, how in tries),
            "",
            "  Ctrl-C stops all nodes.",
            "",
        ]
    )


def note(text: str) -> None:
    """Say something in between the nodes' logs."""
    print(f"{prefix('cluster')} {text}", file=sys.stderr, flush=True)


def prefix(name: str) -> str:
    """Return a name as it stands before a line of log; in colour on a terminal."""
    text = f"{name:<7}|"
    if not sys.stderr.isatty() or "NO_COLOR" in os.environ:
        return text
    number = int(name.removeprefix("node")) if name.startswith("node") else 0
    return f"\x1b[{COLOURS[number % len(COLOURS)]}m{text}\x1b[0m"


if __name__ == "__main__":
    sys.exit(main())
