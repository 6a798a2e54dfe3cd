"""No secret leaves its file: all that a locked cluster and its tools print and answer is searched.

The secrets are the cluster's, the keys made of it for a connection, every private key, and, kept
from clients alone, the incarnations of the directories. Values are no secret from clients, but none
of them belongs in a log.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conure.security import secret
from tests.lab.certificates import Authority, client_context
from tests.lab.cluster import free_port, wait_until
from tests.lab.process import ROOT, ServerProcess
from tests.lab.respclient import command
from tests.lab.secretsearch import Heard, Search

VALUE = b"the value of somebody's record, not for a log"
STRANGE = (  # what is answered with errors
    ("GET", "/nowhere?key=" + "x" * 300, None),
    ("PUT", "/kv", b"v"),
    ("POST", "/txn", b"{"),
    ("POST", "/join", b'{"ID": "node9", "RaftAddr": "127.0.0.1:1"}'),
    ("POST", "/remove", b'{"ID": "node9"}'),
    ("PATCH", "/kv?key=k", b""),
)
NOTHING = re.compile(rb"\0{64,}")  # room that is made in files in advance
RESP = (
    (b"INFO",),
    (b"INFO", b"everything"),
    (b"CLIENT", b"LIST"),
    (b"CLIENT", b"INFO"),
    (b"SLOWLOG", b"GET", b"100"),
    (b"CONFIG", b"GET", b"*"),
    (b"HELLO", b"3"),
    (b"NO-SUCH-COMMAND", b"x"),
    (b"GET",),
)


class Locked:
    """Three nodes with a secret and certificates, and all that was heard of them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.text = secrets.token_hex(32).encode()
        self.secret = place / "secret"
        self.secret.write_bytes(self.text + b"\n")
        self.secret.chmod(0o600)
        authority = Authority(place / "ca")
        server, alice = authority.issue("127.0.0.1"), authority.issue("alice")
        self.alice = alice
        self.context = client_context(authority.root, alice)
        raft = [free_port("127.0.0.1") for _ in range(3)]
        self.resp = [free_port("127.0.0.1") for _ in range(3)]
        self.nodes: list[ServerProcess] = []
        for number, port in enumerate(raft, 1):
            others = ",".join(f"127.0.0.1:{each}" for each in raft if each != port)
            nodes = authority.issue(f"node{number}")
            self.nodes.append(
                ServerProcess(
                    place / f"node{number}",
                    f"--node-id=node{number}",
                    f"--raft-addr=127.0.0.1:{port}",
                    f"--peers={others}",
                    f"--resp-addr=127.0.0.1:{self.resp[number - 1]}",
                    "--log-level=debug",
                    f"--log-format={'json' if number == 1 else 'text'}",
                    "--slow-request=1ms",
                    f"--cluster-secret-file={self.secret}",
                    f"--peer-tls-cert={nodes.cert}",
                    f"--peer-tls-key={nodes.key}",
                    f"--peer-tls-ca={nodes.ca}",
                    f"--tls-cert={server.cert}",
                    f"--tls-key={server.key}",
                    f"--tls-client-ca={authority.root}",
                )
            )

    def ask(self, node: ServerProcess, method: str, target: str, body: bytes | None) -> bytes:
        """Return all of an answer, its head as well."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", node.port, timeout=20, context=self.context
        )
        with contextlib.closing(connection):
            connection.request(method, target, body)
            answer = connection.getresponse()
            head = f"{answer.status} {answer.reason}\n{answer.headers}"
            return head.encode("latin-1") + answer.read()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    made = Locked(tmp_path_factory.mktemp("secrets"))
    try:
        for node in made.nodes:
            node.wait_until_listening()
        for node in made.nodes:
            wait_until(partial_ready(made, node))
        yield made
    finally:
        for node in made.nodes:
            node.kill()


def partial_ready(made: Locked, node: ServerProcess) -> Callable[[], bool]:
    return lambda: made.ask(node, "GET", "/readyz", None).startswith(b"200")


def test_no_secret_is_printed_or_answered(locked: Locked) -> None:
    heard = list(answers(locked))
    search = Search()
    search.add("the cluster's secret", locked.text)
    search.add("the cluster's secret, read as hex", bytes.fromhex(locked.text.decode()))
    search.add_private_keys_of(locked.place)
    for node in locked.nodes:
        assert node.terminate() == 0
    for number, node in enumerate(locked.nodes, 1):
        data = locked.place / f"node{number}"
        incarnation = json.loads((data / "identity.json").read_text())["incarnation"]
        search.add(f"node{number}'s incarnation", incarnation.encode(), from_clients_only=True)
        heard.append(Heard(f"the log of node{number}", node.text.encode()))
        if number == 1:
            commands = ("stats", "check", "dump")
            heard += [Heard(name, run("conuredb.py", name, str(data))) for name in commands]
        files = [path for path in data.rglob("*") if path.is_file()]
        heard += [Heard(str(path), NOTHING.sub(b"", path.read_bytes())) for path in files]
    assert sum(len(each.data) for each in heard) > 20_000
    assert all(each.data for each in heard if each.where.startswith("the log"))
    assert search.found(heard) == []

    stored = Search()  # and no log has a value; a key it has if its request was slow
    stored.add("a value", VALUE)
    assert stored.found(each for each in heard if each.where.startswith("the log")) == []
    assert stored.found(heard)  # the search finds what is there


def answers(locked: Locked) -> Iterator[Heard]:
    """Yield what clients are answered, and what the system shows of the processes."""
    leader = next(
        node
        for node in locked.nodes
        if b'"is_leader": true' in locked.ask(node, "GET", "/status", None)
    )
    assert locked.ask(leader, "PUT", "/kv?key=k", VALUE).startswith(b"200")
    for node in locked.nodes:
        routes = locked.ask(node, "GET", "/", None)
        yield Heard("/", routes, by_clients=True)
        paths = set(re.findall(r"(?<=\s)/[\w/.]*", routes.decode()))
        assert {"/status", "/metrics", "/raft/config"} <= paths
        for path in sorted(paths - {"/watch"}):
            yield Heard(path, locked.ask(node, "GET", path, None), by_clients=True)
        for method, target, body in STRANGE:
            yield Heard(target[:20], locked.ask(node, method, target, body), by_clients=True)
        yield Heard("RESP", by_resp(locked, node), by_clients=True)
        yield from processes(node)


def by_resp(locked: Locked, node: ServerProcess) -> bytes:
    """Return the replies to all that tells something of the server or its clients."""
    port = locked.resp[locked.nodes.index(node)]
    heard = b""
    with (
        socket.create_connection(("127.0.0.1", port), 20) as sock,
        locked.context.wrap_socket(sock, server_hostname="127.0.0.1") as link,
    ):
        for words in RESP:
            link.sendall(command(*words))
        link.sendall(command(b"QUIT"))
        while piece := link.recv(1 << 16):
            heard += piece
    return heard


def processes(node: ServerProcess) -> Iterator[Heard]:
    place = Path(f"/proc/{node.process.pid}")
    for name in ("cmdline", "environ", "status", "maps", "comm"):
        yield Heard(f"/proc/PID/{name}", (place / name).read_bytes())
    names = b"\n".join((task / "comm").read_bytes() for task in (place / "task").iterdir())
    yield Heard("the names of threads", names)


def run(*argv: str) -> bytes:
    """Return what a command prints, whichever way it ends."""
    clean = {name: text for name, text in os.environ.items() if "CONURE_" not in name}
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=clean, capture_output=True, timeout=15, check=False
    )
    return done.stdout + done.stderr


def test_keys_made_of_the_secret_show_in_nothing(locked: Locked) -> None:
    """Neither by the objects that hold them, which a traceback may show."""
    nonces = secret.Nonces(secrets.token_bytes(32), secrets.token_bytes(32))
    seals = secret.seals_of(locked.text, nonces)
    prk = secret.extract(nonces.dialler + nonces.acceptor, locked.text)
    search = Search()
    search.add("the secret", locked.text)
    search.add("what keys are made of", prk)
    shown = repr(seals)
    assert search.found([Heard("repr", shown.encode())]) == []


@pytest.mark.parametrize("wrong", ["too short", "no file", "a key", "a certificate", "binary"])
def test_a_file_that_can_not_be_used_is_not_quoted(wrong: str, tmp_path: Path) -> None:
    """What stands in the wrong file may be somebody's secret, or a key."""
    certificate = Authority(tmp_path / "ca").issue("node1")
    contents = {
        "too short": secrets.token_hex(12).encode(),
        "no file": b"",
        "a key": certificate.key.read_bytes(),
        "a certificate": certificate.cert.read_bytes(),
        "binary": secrets.token_bytes(30),
    }[wrong]
    file = tmp_path / "wrong"
    if wrong != "no file":
        file.write_bytes(contents)
    search = Search()
    if wrong in ("too short", "binary"):
        search.add("what is in it", contents)
    search.add_private_keys_of(tmp_path)
    given = [
        [f"--cluster-secret-file={file}"],
        [f"--tls-cert={file}", f"--tls-key={certificate.key}"],
        [f"--tls-cert={certificate.cert}", f"--tls-key={file}"],
        [
            f"--tls-cert={certificate.cert}",
            f"--tls-key={certificate.key}",
            f"--tls-client-ca={file}",
        ],
    ]
    if wrong in ("a key", "a certificate"):
        given = given[1:]  # lines of PEM are long enough for a secret
        given = given[:1] + given[2:] if wrong == "a key" else given[1:2]
    for each in given:
        server = ServerProcess(tmp_path / "data", *each)
        assert server.wait() == 2, server.text
        assert "conuredb: " in server.text
        assert "Traceback" not in server.text
        assert search.found([Heard(str(each), server.text.encode())]) == []


@pytest.mark.parametrize("program", ["conuresh", "kvctl", "probe"])
def test_who_asks_quotes_no_file_either(program: str, tmp_path: Path) -> None:
    """A key in the place of a certificate, a secret in the place of either."""
    certificate = Authority(tmp_path / "ca").issue("alice")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(secrets.token_hex(32).encode() + b"\n")
    search = Search()
    search.add("what is in it", wrong.read_bytes().strip())
    search.add_private_keys_of(tmp_path)
    asked = {
        "conuresh": ["conuresh.py", "--server=https://127.0.0.1:1", "get", "k"],
        "kvctl": ["-m", "conure.ops.kvctl", "--tls", "--addr=127.0.0.1:1", "get", "k"],
        "probe": ["-m", "conure.ops.probe", "https://127.0.0.1:1/livez"],
    }[program]
    files = [
        [f"--ca={wrong}"],
        [f"--ca={certificate.key}"],
        [f"--cert={certificate.key}", f"--key={wrong}"],
        [f"--cert={certificate.cert}", f"--key={wrong}"],
    ]
    for each in files:
        printed = run(*asked, *each)
        assert printed.count(b"\n") == 1, printed
        assert b"Traceback" not in printed
        assert search.found([Heard(str(each), printed)]) == []
