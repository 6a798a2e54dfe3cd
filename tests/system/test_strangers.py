"""Strangers at the Raft port of a locked cluster: they reach nothing, and nobody waits for them.

They have everything but the key: all IDs, the cluster's ID, the incarnations of all directories,
all addresses, and what members have said on the wire before. Each attack on the Raft port is made
with the secret as well, where it works: it is a stranger's lack of it that stops it.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from conure.consensus import records
from conure.consensus.members import Configuration, Server
from conure.consensus.messages import COMMAND, CONFIG, Entry, Message, MessageType
from conure.errors import ConureError
from conure.net.link import Link
from conure.peers import frames, sockets
from conure.peers.proving import CERTIFICATE, REQUIRE, SECRET, UNPROVED, PeerSecurity
from conure.state import codec
from tests.lab.certificates import Authority, Certificate, client_context
from tests.lab.cluster import Cluster, Member, wait_until
from tests.lab.strangers import HELLO_BY_SECRET, OPEN_FRAME, PLAIN_HTTP, PLAIN_RESP, say_raw

THE_SECRET = b"of these three nodes and of nobody else, 0123456789"
KINDS = ("messages", "snapshot", "calls", "probe", "forming", "join", "")
SECONDS = 10.0


# -- by secret -------------------------------------------------------------------------------------


class Locked(NamedTuple):
    """Three nodes with a secret, one of them stopped for good: somebody may be in its place."""

    cluster: Cluster
    dead: Member
    secret: Path


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    place = tmp_path_factory.mktemp("locked")
    secret = place / "secret"
    secret.write_bytes(THE_SECRET + b"\n")
    secret.chmod(0o600)
    with Cluster(place, f"--cluster-secret-file={secret}", "--log-level=debug") as cluster:
        cluster.start(3)
        assert cluster.leader().put("k", b"v").status == 200
        cluster.wait_until_equal()
        dead = cluster.followers()[0]
        dead.terminate()
        yield Locked(cluster, dead, secret)


def identity(member: Member) -> dict[str, Any]:
    facts = json.loads((member.data / "identity.json").read_text())
    assert isinstance(facts, dict)
    return facts


def greeting_of(member: Member, to: Member, kind: str) -> dict[str, Any]:
    """Return what a member would say of itself to another one."""
    facts = identity(member)
    return {
        "protocol": 1,
        "kind": kind,
        "to": to.name,
        "node_id": facts["node_id"],
        "cluster_id": facts["cluster_id"],
        "incarnation": facts["incarnation"],
        "role": "data",
        "raft_address": member.raft_address,
        "http_address": member.url,
        "known_as": identity(to)["incarnation"],
    }


def dial(host: str, port: int, security: PeerSecurity, way: str) -> Link:
    sock = socket.create_connection((host, port), SECONDS)
    sock.setblocking(False)
    try:
        return security.dial(sock, way, monotonic() + SECONDS)
    except BaseException:
        sock.close()
        raise


def ask(link: Link, facts: dict[str, Any], *messages: Message) -> bytes:
    """Say hello and send messages, whatever comes back; return all that does, up to a pause."""
    deadline = monotonic() + SECONDS
    heard = b""
    with contextlib.suppress(OSError):
        sockets.send_all(link, records.encode_frame(json.dumps(facts).encode()), deadline)
        for message in messages:
            sockets.send_all(link, frames.encode_message(message), deadline)
    while monotonic() < deadline:
        try:
            piece = link.receive(1 << 16)
        except BlockingIOError:
            poll = select.poll()
            poll.register(link.descriptor, select.POLLIN)
            if not poll.poll(500):
                break
            continue
        except OSError:
            break
        if not piece:
            break
        heard += piece
    link.close()
    return heard


def attacks(term: int, index: int, liar: str, target: str) -> dict[str, Message]:
    """What a stranger may try, all of it by messages that are well made."""
    servers = (Server(liar, "127.0.0.1:1", "http://evil.example"),)
    forge = partial(Message, MessageType.APPEND, liar, target, term + 7, index, term, index + 1)
    command = Entry(term + 7, index + 1, COMMAND, codec.encode_put(b"k", b"forged"))
    config = Entry(term + 7, index + 1, CONFIG, Configuration(servers).encode())
    return {
        "depose": Message(MessageType.HEARTBEAT, liar, target, term + 7),
        "forge": forge(entries=[command]),
        "members": forge(entries=[config]),
        "vote": Message(MessageType.VOTE, liar, target, term + 7, index + 9, term + 6, force=True),
        "hand over": Message(MessageType.TIMEOUT_NOW, liar, target, term),
        "the last term": Message(MessageType.HEARTBEAT, liar, target, (1 << 64) - 1),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_everything_but_the_secret_hears_nothing(locked: Locked, kind: str) -> None:
    cluster, dead, _ = locked
    for member in cluster.running:
        assert ask_open(member, greeting_of(dead, member, kind)) == b""


def ask_open(member: Member, facts: dict[str, Any], *messages: Message) -> bytes:
    return ask(dial(member.host, member.raft_port, PeerSecurity(), UNPROVED), facts, *messages)


def test_what_it_says_changes_nothing(locked: Locked) -> None:
    cluster, dead, _ = locked
    leader = cluster.leader()
    before = leader.status()
    for member in cluster.running:
        tried = attacks(before["term"], leader.applied(), dead.name, member.name)
        for message in tried.values():
            assert ask_open(member, greeting_of(dead, member, "messages"), message) == b""
    after = leader.status()
    assert (after["term"], after["is_leader"]) == (before["term"], True)
    assert leader.get("k").body == b"v"
    assert leader.voters() == {member.name for member in cluster.members}


def test_another_secret_is_none(locked: Locked) -> None:
    cluster, dead, _ = locked
    wrong = PeerSecurity(REQUIRE, lambda: [THE_SECRET[:-1] + b"8"])
    for member in cluster.running:
        with pytest.raises(ConureError, match="secret"):
            dial(member.host, member.raft_port, wrong, SECRET)
        wait_until(lambda: "it has another cluster secret" in member.text)  # noqa: B023 - at once
    assert dead.name not in {member.name for member in cluster.running}


class Recorder:
    """A proxy that remembers what went each way."""

    def __init__(self, host: str, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = host, port
        self.port = self._listener.getsockname()[1]
        self.sent, self.heard = bytearray(), bytearray()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with (
            self._listener,
            self._listener.accept()[0] as one,
            socket.create_connection(self._target, SECONDS) as other,
        ):
            ends = {one: (other, self.sent), other: (one, self.heard)}
            while True:
                for ready in select.select(list(ends), [], [], SECONDS)[0]:
                    to, kept = ends[ready]
                    try:
                        data = ready.recv(1 << 16)
                    except OSError:
                        data = b""
                    if not data:
                        return
                    kept += data
                    to.sendall(data)

    def close(self) -> None:
        self._thread.join(2 * SECONDS)


def test_what_was_recorded_is_worth_nothing(locked: Locked) -> None:
    """With the secret all of it is answered; the same bytes again are not."""
    cluster, dead, _ = locked
    leader = cluster.leader()
    recorder = Recorder(leader.host, leader.raft_port)
    ours = PeerSecurity(REQUIRE, lambda: [THE_SECRET])
    link = dial("127.0.0.1", recorder.port, ours, SECRET)
    answer = ask(link, greeting_of(dead, leader, "probe"))
    recorder.close()
    assert json.loads(answer[records.FRAME_HEADER_BYTES :])["node_id"] == leader.name
    assert THE_SECRET not in recorder.sent + recorder.heard
    for replayed in (recorder.sent, recorder.sent[:68], recorder.heard, recorder.sent[68:]):
        heard = say_raw(leader.host, leader.raft_port, bytes(replayed))
        assert heard in (b"", heard[:36])  # a nonce of its own, at most
        assert heard[:4] in (b"", b"CDB\x01")
        assert heard[4:36] != bytes(recorder.heard[4:36]) or not heard


def test_half_a_proof_holds_no_place_of_a_member(locked: Locked) -> None:
    """The places of members are kept, however many strangers begin to prove something."""
    cluster, dead, _ = locked
    with contextlib.ExitStack() as stack:
        for member in cluster.running:
            for _ in range(100):
                sock = stack.enter_context(
                    socket.create_connection((member.host, member.raft_port), SECONDS)
                )
                with contextlib.suppress(OSError):
                    sock.sendall(HELLO_BY_SECRET)
        dead.start()
        wait_until(lambda: dead.status().get("leader_id") == cluster.leader().name)
        assert dead.put("while-besieged", b"v").status == 200
    dead.terminate()


# -- certificates between nodes --------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("nodes-ca"))


@pytest.fixture(scope="module")
def certified(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[tuple[Cluster, Member, dict[str, Certificate]]]:
    certificates = {f"node{n}": authority.issue(f"node{n}") for n in (1, 2, 3)}
    with Cluster(tmp_path_factory.mktemp("certified")) as cluster:
        for each in certificates.values():
            cluster.add(*peer_flags(each))
        cluster.start(3)
        dead = cluster.followers()[0]
        dead.terminate()
        yield cluster, dead, certificates


def peer_flags(certificate: Certificate) -> tuple[str, ...]:
    return (
        f"--peer-tls-cert={certificate.cert}",
        f"--peer-tls-key={certificate.key}",
        f"--peer-tls-ca={certificate.ca}",
    )


def by(certificate: Certificate, believed: Path) -> PeerSecurity:
    """Return how somebody with a certificate dials, who doesn't look at names."""
    context = client_context(believed, certificate)
    context.check_hostname = False
    return PeerSecurity(REQUIRE, tuple, lambda: context, lambda: context)


def test_a_members_certificate_is_good_for_that_member_only(
    certified: tuple[Cluster, Member, dict[str, Certificate]],
) -> None:
    cluster, dead, certificates = certified
    leader = cluster.leader()
    port = leader.host, leader.raft_port
    asking = by(certificates[dead.name], certificates[dead.name].ca)
    answer = ask(dial(*port, asking, CERTIFICATE), greeting_of(dead, leader, "probe"))
    assert json.loads(answer[records.FRAME_HEADER_BYTES :])["node_id"] == leader.name
    other = next(member for member in cluster.running if member is not leader)
    for kind in KINDS:
        facts = greeting_of(other, leader, kind)
        heard = ask(dial(*port, asking, CERTIFICATE), facts)
        assert leader.name.encode() not in heard
        assert identity(leader)["incarnation"].encode() not in heard


def test_a_clients_certificate_is_none_of_a_nodes(
    certified: tuple[Cluster, Member, dict[str, Certificate]], tmp_path: Path
) -> None:
    """Also where it bears a node's name, since another CA signed it."""
    cluster, dead, certificates = certified
    leader = cluster.leader()
    for name in ("alice", dead.name):
        clients = Authority(tmp_path / name).issue(name)
        asking = by(clients, certificates[dead.name].ca)
        with contextlib.suppress(OSError, ConureError):
            link = dial(leader.host, leader.raft_port, asking, CERTIFICATE)
            assert ask(link, greeting_of(dead, leader, "probe")) == b""


def test_nothing_else_is_spoken_there(
    certified: tuple[Cluster, Member, dict[str, Certificate]],
) -> None:
    cluster, dead, _ = certified
    leader = cluster.leader()
    facts = greeting_of(dead, leader, "probe")
    assert ask_open(leader, facts) == b""
    for data in (PLAIN_HTTP, PLAIN_RESP, HELLO_BY_SECRET, OPEN_FRAME):
        assert say_raw(leader.host, leader.raft_port, data) == b""
    assert leader.put("k", b"w").status == 200
