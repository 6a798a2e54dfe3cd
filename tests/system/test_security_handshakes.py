"""Handshakes that fail, one by one: both ends say what docs/security.md says that they say."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from conure.client import Client
from conure.errors import ConureError
from tests.lab.certificates import Authority, Certificate
from tests.lab.cluster import free_port
from tests.lab.process import ROOT, ServerProcess, running, wait_until
from tests.test_docs import rows, section

PAGE = ROOT / "docs" / "security.md"


class Shown(NamedTuple):
    """What both sides of a handshake show and believe; "" stands for nothing."""

    server: Certificate
    client: Certificate | None
    client_believes: Path
    server_believes: Path


class Cas:
    """Two CAs, and what the first one signs when all is well."""

    def __init__(self, place: Path) -> None:
        self.ours, self.others = Authority(place / "ours"), Authority(place / "others")
        self.fine = Shown(
            self.ours.issue("127.0.0.1"),
            self.ours.issue("alice"),
            self.ours.root,
            self.ours.root,
        )


WRONG: dict[str, Callable[[Cas], Shown]] = {
    "the client shows no certificate": lambda c: c.fine._replace(client=None),
    "another CA signed the client's": lambda c: c.fine._replace(client=c.others.issue("alice")),
    "the client's has expired": lambda c: c.fine._replace(client=c.ours.expired("alice")),
    "the client's is not valid yet": lambda c: c.fine._replace(client=c.ours.not_yet_valid("al")),
    "the client doesn't know the CA": lambda c: c.fine._replace(client_believes=c.others.root),
    "the server is asked by another name": lambda c: c.fine._replace(
        server=c.ours.issue("db1.example.com")
    ),
    "the server's has expired": lambda c: c.fine._replace(server=c.ours.expired("127.0.0.1")),
}


PLAIN_CLIENT, PLAIN_SERVER = "the client speaks plain text", "the server speaks plain text"


@pytest.fixture(scope="module")
def cas(tmp_path_factory: pytest.TempPathFactory) -> Cas:
    return Cas(tmp_path_factory.mktemp("cas"))


@contextlib.contextmanager
def serving(place: Path, shown: Shown) -> Iterator[ServerProcess]:
    flags = [
        f"--tls-cert={shown.server.cert}",
        f"--tls-key={shown.server.key}",
        f"--tls-client-ca={shown.server_believes}",
    ]
    with running(place, "--bootstrap", *flags) as server:
        yield server


def client_of(server: ServerProcess, shown: Shown) -> Client:
    mine = shown.client
    return Client(
        f"https://127.0.0.1:{server.port}",
        2.0,
        ca=str(shown.client_believes),
        cert=str(mine.cert) if mine else "",
        key=str(mine.key) if mine else "",
    )


def words(what: str) -> tuple[str, str]:
    """Return what the page says that client and node say."""
    [(_, client, log)] = [row for row in rows(section(PAGE, "### Of clients")) if row[0] == what]
    return client, log


def is_said(shown: str, said: str) -> bool:
    """Whether what the page shows is said; ``…`` stands for anything."""
    pieces = [re.escape(piece) for piece in shown.strip("`").split("…")]
    return re.search(".*".join(pieces), said) is not None


def test_the_table_has_each_of_them() -> None:
    table = [row[0] for row in rows(section(PAGE, "### Of clients"))]
    assert table == [*WRONG, PLAIN_CLIENT, PLAIN_SERVER]


@pytest.mark.parametrize("what", WRONG)
def test_both_ends_say_what_is_wrong(what: str, cas: Cas, tmp_path: Path) -> None:
    client, log = words(what)
    shown = WRONG[what](cas)
    with serving(tmp_path, shown) as server, client_of(server, shown) as asking:
        with pytest.raises(ConureError) as caught:
            asking.get("k")
        assert is_said(client, str(caught.value)), str(caught.value)
        wait_until(lambda: is_said(log, server.text), 5)


def test_plain_text_on_either_side_is_told_of(cas: Cas, tmp_path: Path) -> None:
    client, log = words(PLAIN_CLIENT)
    with serving(tmp_path / "locked", cas.fine) as server:
        assert is_said(client, server.request("GET", "/kv?key=k").body.decode())
        wait_until(lambda: is_said(log, server.text), 5)
    client, log = words(PLAIN_SERVER)
    assert not log
    with (
        running(tmp_path / "open", "--bootstrap") as server,
        client_of(server, cas.fine) as asking,
    ):
        with pytest.raises(ConureError) as caught:
            asking.get("k")
        assert is_said(client, str(caught.value)), str(caught.value)


# -- nodes -----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """The flags of a node that dials another one, and of that one."""

    dialler: list[str]
    dialled: list[str]


class Proofs:
    """What nodes may prove themselves by."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.ours, self.others = Authority(place / "ours"), Authority(place / "others")

    def secret(self, text: str) -> list[str]:
        file = self._place / text
        file.write_text(text.ljust(32, "."))
        file.chmod(0o600)
        return [f"--cluster-secret-file={file}"]

    def certificate(self, name: str, *, by: Authority | None = None) -> list[str]:
        issued = (by or self.ours).issue(name)
        return [
            f"--peer-tls-cert={issued.cert}",
            f"--peer-tls-key={issued.key}",
            f"--peer-tls-ca={self.ours.root}",
        ]


NODES: dict[str, Callable[[Proofs], Pair]] = {
    "they have different secrets": lambda p: Pair(p.secret("one"), p.secret("other")),
    "who is dialled has no secret": lambda p: Pair(p.secret("one"), []),
    "who dials has no secret": lambda p: Pair([], p.secret("one")),
    "another CA signed the certificate of who dials": lambda p: Pair(
        p.certificate("node1", by=p.others), p.certificate("node2")
    ),
    "another CA signed the certificate of who is dialled": lambda p: Pair(
        p.certificate("node1"), p.certificate("node2", by=p.others)
    ),
    "who dials has another node's certificate": lambda p: Pair(
        p.certificate("node3"), p.certificate("node2")
    ),
    "who is dialled has another node's certificate": lambda p: Pair(
        p.certificate("node1"), p.certificate("node3")
    ),
    "who is dialled has a secret only": lambda p: Pair(p.certificate("node1"), p.secret("one")),
}


def test_the_table_of_nodes_has_each_of_them() -> None:
    assert [row[0] for row in rows(section(PAGE, "### Of nodes"))] == list(NODES)


@pytest.mark.parametrize("what", NODES)
def test_both_nodes_say_what_is_wrong(what: str, tmp_path: Path) -> None:
    [(_, dials, is_dialled)] = [r for r in rows(section(PAGE, "### Of nodes")) if r[0] == what]
    flags = NODES[what](Proofs(tmp_path))
    port = free_port("127.0.0.1")
    waiting = [f"--raft-addr=127.0.0.1:{port}", "--node-id=node2", *flags.dialled]
    with (
        running(tmp_path / "1", "--bootstrap", "--node-id=node1", *flags.dialler) as one,
        running(tmp_path / "2", *waiting) as two,
    ):
        wait_until(lambda: one.request("GET", "/readyz").status == 200)
        facts = json.dumps({"ID": "node2", "RaftAddr": f"127.0.0.1:{port}"}).encode()
        answer = one.request("POST", "/join", facts, {"Content-Type": "application/json"})
        assert answer.status == 409
        assert is_said(dials, answer.body.decode()), answer.body
        wait_until(lambda: not is_dialled or is_said(is_dialled, two.text), 5)
