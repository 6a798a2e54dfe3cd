"""A real server process for tests: started on ports of the system's choice, ended by its id."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from conure.storage.engines import BTREE
from tests.lab import engines, forkserver, tlstunnel

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0


class Answer(NamedTuple):
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class ServerProcess:
    """``conuredb.py`` on *data_dir*, listening on a port of its own.

    *wrapper* is put before the command (``strace …``), *environ* added to the environment;
    *script* is run in place of ``conuredb.py``. The process is a fork of one that has imported
    the server (forkserver.py), unless it takes a new interpreter: for a wrapper, for variables
    that aren't the server's own, and if it has to be *fresh* because its start is what is tested.
    A new directory gets the engine of the present test, unless a flag names one (engines.py).
    With *tls* it serves by TLS, and ``port``, like all that the functions here return, leads there
    for clients that speak plain text (tlstunnel.py).
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        wrapper: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        script: Path = ROOT / "conuredb.py",
        fresh: bool = False,
        tls: bool = False,
    ) -> None:
        self._has_tls = tls
        self._tunnels: dict[int, tlstunnel.Tunnel] = {}
        flags += tlstunnel.flags() if tls else ()
        added = environ or {}
        clean = {name: value for name, value in os.environ.items() if "CONURE_" not in name}
        engine = engines.current()
        is_told = engine != BTREE and script.parent == ROOT and not has_identity(data_dir)
        command = [
            str(script),
            f"--data-dir={data_dir}",
            "--http-addr=127.0.0.1:0",
            "--raft-addr=127.0.0.1:0",
            *([f"--engine={engine}"] if is_told else []),
            *flags,
        ]
        self.process: subprocess.Popen[bytes] | forkserver.Child
        fresh |= script.parent != ROOT  # of another release: the helper's modules are of this one
        if fresh or wrapper or not all(name.startswith("CONURE_") for name in added):
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, *command],
                stderr=subprocess.PIPE,
                cwd=ROOT,
                env={**clean, **added},
                start_new_session=True,
            )
        else:
            self.process = forkserver.spawn(command, cwd=ROOT, env={**clean, **added})
        self.port = self.own_port = 0
        self.log: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def wait_until_listening(self) -> ServerProcess:
        """Return once the server accepts connections; fail with its log if it ends before."""
        assert self._listening.wait(START_SECONDS), self.text
        assert self.port, f"the server ended with status {self.process.wait()}:\n{self.text}"
        return self

    def lead_to(self, port: int) -> int:
        """Return where a client that speaks plain text gets to a port of the server."""
        if not self._has_tls:
            return port
        if port not in self._tunnels:
            self._tunnels[port] = tlstunnel.Tunnel(port)
        return self._tunnels[port].port

    @property
    def text(self) -> str:
        return "\n".join(self.log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def own_url(self) -> str:
        """What the server says that its address is."""
        return f"{'https' if self._has_tls else 'http'}://127.0.0.1:{self.own_port}"

    def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20.0,
    ) -> Answer:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())

    def put(self, key: bytes | str, value: bytes) -> Answer:
        return self.request("PUT", "/kv?" + urlencode({"key": key}), value)

    def get(self, key: bytes | str, **parameters: str) -> Answer:
        return self.request("GET", "/kv?" + urlencode({"key": key, **parameters}))

    def processor_seconds(self) -> float:
        """Return the processor time that the process has used, by all of its threads."""
        return time.clock_gettime(~self.process.pid << 3 | 2)  # its clock, as Linux numbers them

    def workers(self) -> dict[int, str]:
        """Return where the LSM engine's worker processes import from, by their ids."""
        return {
            pid: words[-2]
            for pid, words in command_lines().items()
            if words[-1] == str(self.process.pid) and "conure.storage.lsm.worker" in words[-3]
        }

    def metric(self, name: str) -> float:
        """Return one of the figures at /metrics."""
        found = re.search(
            rf"(?m)^{re.escape(name)} (\S+)$", self.request("GET", "/metrics").body.decode()
        )
        assert found, name
        return float(found[1])

    def kill(self) -> None:
        """End the process as a power cut would end it, and wait until it is gone."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or not begun its session yet
            self.process.send_signal(signal.SIGKILL)
        self._collect()

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Ask the process to stop; return its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = START_SECONDS) -> int:
        """Return the exit status of a process that ends by itself."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end:\n{self.text}") from None
        self._collect()
        return status

    def _collect(self) -> None:
        for tunnel in self._tunnels.values():
            tunnel.close()
        self.process.wait(START_SECONDS)
        self._reader.join(START_SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())
            if not self.port and (
                found := re.search(r"listens on https?://\S+:(\d+)", self.log[-1])
            ):
                self.own_port = int(found[1])
                self.port = self.lead_to(self.own_port)
                self._listening.set()
        self._listening.set()


def has_identity(data_dir: Path) -> bool:
    """Tell whether a directory belongs to somebody, and so has its engine."""
    return (data_dir / "identity.json").exists()


@contextlib.contextmanager
def running(data_dir: Path, *flags: str, **options: object) -> Iterator[ServerProcess]:
    """A server that listens, and is gone at the end of the block."""
    server = ServerProcess(data_dir, *flags, **options)  # type: ignore[arg-type]
    try:
        yield server.wait_until_listening()
    finally:
        server.kill()


def command_lines() -> dict[int, list[str]]:
    """Return the words of each process that runs and has three at least, by its id (Linux)."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends meanwhile
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if len(words) >= 3:
                found[int(place.name)] = words
    return found


def resp_port(server: ServerProcess) -> int:
    """Return where a server speaks RESP; its log tells that."""
    return server.lead_to(own_port(server, "RESP"))


def rest_port(server: ServerProcess) -> int:
    """Return where a server speaks REST; its log tells that."""
    return server.lead_to(own_port(server, "REST"))


def own_port(server: ServerProcess, front: str) -> int:
    """Return where a server says that it speaks RESP or REST."""
    pattern = re.compile(rf"{front} is served at \S+:(\d+)$")
    wait_until(lambda: any(pattern.search(line) for line in server.log))
    return next(int(found[1]) for line in server.log if (found := pattern.search(line)))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return once the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(0.005)
