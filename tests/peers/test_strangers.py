"""A stranger at the Raft port of a real cluster: what it hears, and what comes of what it says.

One that knows nothing, one that has read ``/status`` (which shows IDs and the cluster's ID), and
one that knows the incarnation of a member's data directory: that is a member's secret for as long
as the port has no keys, and SECURITY.md says what can be done with it.
"""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conure.consensus import records
from conure.consensus.members import Configuration, Server
from conure.consensus.messages import COMMAND, CONFIG, Entry, Message, MessageType
from conure.peers import frames
from conure.state import codec
from tests.lab.cluster import Cluster, Member, wait_until

KINDS = ("messages", "snapshot", "probe")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("strangers")) as empty:
        empty.start(3)
        yield empty


def identity(member: Member) -> dict[str, Any]:
    facts = json.loads(Path(member.data, "identity.json").read_text())
    assert isinstance(facts, dict)
    return facts


def say(member: Member, message: Message | None = None, **hello: Any) -> dict[str, Any]:
    """Shake hands, send a message whatever the answer is, and return the answer."""
    facts = {
        "protocol": 1, "kind": "messages", "to": "", "node_id": "evil", "cluster_id": "",
        "incarnation": "e" * 32, "role": "data", "raft_address": "127.0.0.1:1", "http_address": "",
        "known_as": "",
    }  # fmt: skip
    host, _, port = member.raft_address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(records.encode_frame(json.dumps(facts | hello).encode()))
        stream = sock.makefile("rb")
        header = stream.read(records.FRAME_HEADER_BYTES)
        answer = json.loads(stream.read(records.frame_length(header)))
        assert isinstance(answer, dict)
        if message is not None:
            try:
                sock.sendall(frames.encode_message(message))
                sock.shutdown(socket.SHUT_WR)
                assert stream.read(1) == b""
            except OSError:
                pass  # it was refused
        return answer


def names_of(cluster: Cluster) -> set[str]:
    """All that a refusal must not tell."""
    found = set()
    for member in cluster.members:
        facts = identity(member)
        found |= {facts["node_id"], facts["cluster_id"], facts["incarnation"]}
        found |= {member.raft_address, member.url}
    return found - {""}


def assert_refused(cluster: Cluster, answer: dict[str, Any]) -> None:
    assert sorted(answer) == ["protocol", "refused"]
    assert not [name for name in names_of(cluster) if name in answer["refused"]]


def test_who_knows_nothing_learns_nothing(cluster: Cluster) -> None:
    heard = set()
    guesses = ("", "?", cluster.members[0].name)
    for member, kind, to in itertools.product(cluster.members, KINDS, guesses):
        for cluster_id in ("", "0" * 32):
            answer = say(member, kind=kind, to=to, cluster_id=cluster_id)
            assert_refused(cluster, answer)
            heard.add(answer["refused"])
    assert len(heard) == 1  # whatever it guesses


def test_who_has_read_status_gets_no_further(cluster: Cluster) -> None:
    """It may take the name of anybody, too: what it lacks is the incarnation."""
    names = [member.name for member in cluster.members]
    for member, kind in itertools.product(cluster.members, KINDS):
        status = member.status()
        shown = json.dumps(status).encode() + member.request("GET", "/raft/config").body
        assert identity(member)["incarnation"].encode() not in shown
        for node_id in ("evil", *names):
            answer = say(
                member, kind=kind, to=member.name, node_id=node_id, cluster_id=status["cluster_id"]
            )
            assert_refused(cluster, answer)


@pytest.mark.parametrize("what", ["depose", "forge", "members", "vote", "hand over"])
def test_what_a_stranger_says_changes_nothing(cluster: Cluster, what: str) -> None:
    leader = cluster.leader()
    assert leader.put("k", b"v").status == 200
    cluster.wait_until_equal()
    before = leader.status()
    term, index = before["term"], leader.applied()
    for member in cluster.members:
        servers = (Server("evil", "127.0.0.1:1", "http://evil.example"),)
        message = {
            "depose": Message(MessageType.HEARTBEAT, "evil", member.name, term + 7),
            "forge": Message(
                MessageType.APPEND, "evil", member.name, term + 7, index, term, index + 1,
                entries=[Entry(term + 7, index + 1, COMMAND, codec.encode_put(b"k", b"forged"))],
            ),
            "members": Message(
                MessageType.APPEND, "evil", member.name, term + 7, index, term, index + 1,
                entries=[Entry(term + 7, index + 1, CONFIG, Configuration(servers).encode())],
            ),
            "vote": Message(
                MessageType.VOTE, "evil", member.name, term + 7, index + 9, term + 6, force=True
            ),
            "hand over": Message(MessageType.TIMEOUT_NOW, "evil", member.name, term),
        }[what]  # fmt: skip
        answer = say(member, message, to=member.name, cluster_id=before["cluster_id"])
        assert_refused(cluster, answer)
    time.sleep(0.2)  # nothing to wait for: nothing is to happen
    assert leader.status()["term"] == term
    assert leader.get("k").body == b"v"
    assert leader.voters() == {member.name for member in cluster.members}


def test_a_member_is_who_has_its_directory(cluster: Cluster) -> None:
    """Before the port has keys: nothing else is asked for, and this is all that it takes."""
    leader, other = cluster.leader(), cluster.followers()[0]
    facts = {"to": leader.name, "cluster_id": leader.status()["cluster_id"], "kind": "probe"}
    facts |= {"node_id": other.name, "raft_address": other.raft_address, "http_address": other.url}
    assert_refused(cluster, say(leader, **facts))
    answer = say(leader, **facts, incarnation=identity(other)["incarnation"])
    assert answer["node_id"] == leader.name


def test_a_node_that_waits_to_be_joined_answers_any_cluster_by_its_name(cluster: Cluster) -> None:
    leader = cluster.leader()
    waiting = cluster.add()
    waiting.start()
    try:
        assert_refused(cluster, say(waiting, kind="probe", to=waiting.name))
        assert_refused(cluster, say(waiting, kind="probe", to="?", cluster_id="0" * 32))
        answer = say(waiting, kind="probe", to=waiting.name, cluster_id="0" * 32)
        assert answer["incarnation"] == identity(waiting)["incarnation"]
        vote = Message(MessageType.VOTE, "evil", waiting.name, 9, 9, 9, force=True)
        say(waiting, vote, to=waiting.name, cluster_id="0" * 32)
        assert waiting.status()["cluster_id"] == ""
        facts = {"ID": waiting.name, "RaftAddr": waiting.raft_address}
        assert leader.post("/join", facts).status == 200
        wait_until(lambda: waiting.status()["member"])
        assert_refused(cluster, say(waiting, kind="probe", to=waiting.name, cluster_id="0" * 32))
    finally:
        leader.post("/remove", {"ID": waiting.name})
