"""Clusters of processes whose nodes prove themselves: made, and changed step by step under load."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from conure.consensus.records import encode_frame
from tests.lab.certificates import Authority
from tests.lab.cluster import Cluster, Member, wait_until
from tests.lab.history import archived

BEFORE = "5680f35e8a13fa79b4f737760c7c84063d934208"
"""The last commit whose nodes prove nothing to each other."""

OLD, NEW = "old-" + "0" * 40, "new-" + "1" * 40

PAUSE = 6.0  # seconds without an acknowledged write that count as a lost quorum


class Proofs:
    """What the nodes of a cluster are given, as flags."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._authority = Authority(place / "ca")
        self._certificates = {
            name: self._authority.issue(name) for name in ("node1", "node2", "node3", "node4")
        }

    def secret(self, *secrets: str) -> str:
        path = self._place / "-".join(secret[:3] for secret in secrets)
        path.touch(mode=0o600)
        path.write_text("\n".join(secrets))
        return f"--cluster-secret-file={path}"

    def tls(self, name: str) -> list[str]:
        found = self._certificates[name]
        return [
            f"--peer-tls-cert={found.cert}",
            f"--peer-tls-key={found.key}",
            f"--peer-tls-ca={found.ca}",
        ]


class Writer:
    """Writes one key after the other through whoever takes it, and knows what was acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.written = 0
        self.longest_pause = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def wait(self, more: int = 20) -> None:
        """Wait until so many more writes were acknowledged."""
        goal = self.written + more
        wait_until(lambda: self.written >= goal)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopping.is_set():
            for member in self._cluster.running:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    key, value = f"k{self.written}", b"%d" % self.written
                    if member.is_listening and member.put(key, value).status == 200:
                        now = time.monotonic()
                        self.longest_pause = max(self.longest_pause, now - last)
                        last = now
                        self.written += 1
                        break
            else:
                self._stopping.wait(0.02)

    def check(self) -> None:
        """Everything that was acknowledged is there."""
        leader = self._cluster.leader()
        for number in range(self.written):
            assert leader.get(f"k{number}").body == b"%d" % number


def proofs_at(member: Member) -> set[str]:
    """How all that a node is connected to have proved themselves."""
    page = member.request("GET", "/metrics").body.decode()
    return set(re.findall(r'^conure_peer_proof\{.*proof="(\w+)"\} 1$', page, re.MULTILINE))


def roll(cluster: Cluster, writer: Writer, flags: Callable[[str], list[str]]) -> None:
    """Restart one node after the other with other flags, and see that writes go on."""
    for member in cluster.members:
        assert member.terminate() == 0
        member.start(*flags(member.name))
        wait_until(lambda: member.request("GET", "/readyz").status == 200)  # noqa: B023
        writer.wait()


@pytest.fixture
def proofs(tmp_path: Path) -> Proofs:
    return Proofs(tmp_path)


def test_from_open_to_certificates_and_back_under_load(tmp_path: Path, proofs: Proofs) -> None:
    secret = proofs.secret(OLD)
    steps: list[tuple[Callable[[str], list[str]], set[str]]] = [
        (lambda _: [secret, "--peer-auth=offer"], {"secret"}),
        (lambda _: [secret], {"secret"}),
        (lambda name: [secret, *proofs.tls(name)], {"certificate"}),
        (proofs.tls, {"certificate"}),
        (lambda name: [secret, *proofs.tls(name)], {"certificate"}),
        (lambda _: [secret, "--peer-auth=offer"], {"secret"}),
        (lambda _: [], {"open"}),
    ]
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start(3)
        with Writer(cluster) as writer:
            writer.wait()
            for flags, expected in steps:
                roll(cluster, writer, flags)
                wait_until(lambda: proofs_at(cluster.leader()) == expected)  # noqa: B023
        assert writer.longest_pause < PAUSE
        writer.check()
        cluster.wait_until_equal()


def test_a_secret_is_changed_without_a_restart(tmp_path: Path, proofs: Proofs) -> None:
    path = tmp_path / "secret"

    def write(*secrets: str) -> None:
        path.touch(mode=0o600)
        path.write_text("\n".join(secrets))
        for member in cluster.members:
            count = read_again.setdefault(member.name, 0) + 1
            wait_until(lambda: member.text.count("read again: ") >= count)  # noqa: B023
            read_again[member.name] = count

    read_again: dict[str, int] = {}
    with Cluster(tmp_path / "cluster", f"--cluster-secret-file={path}") as cluster:
        path.touch(mode=0o600)
        path.write_text(OLD)
        cluster.start(3)
        with Writer(cluster) as writer:
            writer.wait()
            for secrets in ((OLD, NEW), (NEW, OLD), (NEW,)):
                write(*secrets)
                writer.wait()
            cluster.leader().kill()  # all connections are made anew
            writer.wait()
        writer.check()
        assert proofs_at(cluster.leader()) == {"secret"}
        text = "".join(member.whole_text for member in cluster.members)
        assert OLD not in text
        assert NEW not in text


@pytest.mark.parametrize("kind", ["secret", "certificate"])
def test_a_cluster_is_formed_by_nodes_that_prove_themselves(
    tmp_path: Path, proofs: Proofs, kind: str
) -> None:
    """Questions of who forms, calls of followers, messages: all of them proved."""
    secret = proofs.secret(OLD)
    with Cluster(tmp_path / "cluster") as cluster:
        members = [cluster.add("--follower-mode=forward") for _ in range(3)]
        for member in members:
            others = ",".join(each.raft_address for each in members if each is not member)
            proof = [secret] if kind == "secret" else proofs.tls(member.name)
            member.flags += [f"--peers={others}", *proof]
            member.launch()
        for member in members:
            member.wait_until_listening()
        cluster.wait_until_voters(3)
        for number in range(50):
            follower = cluster.followers()[number % 2]
            assert follower.put(f"k{number}", b"v" * 1000, follow=False).status == 200
        wait_until(lambda: proofs_at(cluster.leader()) == {kind})
        cluster.wait_until_equal()


def test_the_release_before_lives_with_offer_and_not_with_require(
    tmp_path: Path, proofs: Proofs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = archived(BEFORE, tmp_path_factory.mktemp("before"))
    secret = proofs.secret(OLD)
    with Cluster(tmp_path / "cluster") as cluster:
        old = [cluster.add() for _ in range(3)][2]
        old.script = before
        cluster.start(3)
        with Writer(cluster) as writer:
            writer.wait()
            for member in cluster.members[:2]:
                assert member.terminate() == 0
                member.start(secret, "--peer-auth=offer")
                wait_until(lambda: member.request("GET", "/readyz").status == 200)  # noqa: B023
                writer.wait()
            cluster.wait_until_voters(3)
            assert any("node3 (127" in m.text and "has proved nothing" in m.text
                       for m in cluster.members[:2])  # fmt: skip
            for member in cluster.members[:2]:
                assert member.terminate() == 0
                member.start(secret)
                writer.wait()
            # With proofs required the old one is out, and the two others go on without it.
            wait_until(lambda: any("it proves nothing, and --peer-auth is require" in m.text
                                   for m in cluster.members[:2]))  # fmt: skip
            writer.wait()
            old.terminate()
            old.script = cluster[1].script
            old.start(secret)
            wait_until(lambda: old.request("GET", "/readyz").status == 200)
        writer.check()
        cluster.wait_until_equal()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    place = tmp_path_factory.mktemp("locked")
    with Cluster(place / "cluster", Proofs(place).secret(OLD)) as cluster:
        cluster.start(3)
        yield cluster


@pytest.mark.parametrize("kind", ["messages", "snapshot", "calls", "probe", "forming", "join"])
def test_a_stranger_who_knows_all_of_a_member_but_the_secret_gets_nowhere(
    locked: Cluster, kind: str
) -> None:
    target, member = locked[1], locked[2]
    mine = json.loads(Path(member.data, "identity.json").read_text())
    theirs = json.loads(Path(target.data, "identity.json").read_text())
    said = {
        "protocol": 1, "kind": kind, "to": theirs["node_id"], "node_id": mine["node_id"],
        "cluster_id": mine["cluster_id"], "incarnation": mine["incarnation"], "role": "data",
        "raft_address": member.raft_address, "http_address": member.url,
        "known_as": theirs["incarnation"], "forming": 1, "join": 1, "digest": "",
    }  # fmt: skip
    before = target.status()
    with socket.create_connection((target.host, target.raft_port), 10) as sock:
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            sock.sendall(encode_frame(json.dumps(said).encode()))
            while piece := sock.recv(1000):
                heard += piece
    assert heard == b""
    wait_until(lambda: "it proves nothing, and --peer-auth is require here" in target.text)
    assert target.status()["term"] == before["term"]
    assert locked.leader().put("k", b"v").status == 200
