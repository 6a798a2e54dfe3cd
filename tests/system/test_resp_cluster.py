"""Clients of RESP and of HTTP together on real clusters whose leader is killed, paused and cut off:
what was answered is true, and nothing else has happened but what was left open."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cluster import (
    FORGOTTEN,
    UNDONE,
    Cluster,
    Member,
    RespVisitor,
    Workload,
    fetch,
    wait_until,
)
from tests.lab.respclient import ErrorReply, RespClient
from tests.system.test_cluster_features import Watcher

ALL_KEYS = ("all/a", "all/b", "all/c")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    flags = ("--barrier-timeout=1s", "--write-timeout=2s")
    with Cluster(tmp_path, *flags, resp=True) as empty:
        yield empty.start(3)


class Crowd:
    """Threads that do the same again and again until the end of the block; *act* is given a visitor
    and a number that is used once."""

    def __init__(
        self, cluster: Cluster, count: int, act: Callable[[RespVisitor, int], None]
    ) -> None:
        self._cluster = cluster
        self._act = act
        self._numbers = itertools.count(1)
        self._done = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def _run(self) -> None:
        try:
            with RespVisitor(self._cluster) as visitor:
                while not self._done.wait(0.002):
                    self._act(visitor, next(self._numbers))
        except BaseException as error:  # noqa: BLE001  # shown at the end of the block
            self._errors.append(error)


def kill_and_pause(cluster: Cluster, wait_for_more: Callable[[], None]) -> None:
    """Kill a leader, and then stop another one in the middle of whatever it does."""
    wait_for_more()
    leader = cluster.leader()
    leader.kill()
    wait_for_more()
    leader.start()
    leader = cluster.leader()
    leader.pause()
    wait_for_more()
    leader.resume()
    wait_for_more()


def test_both_protocols_together_are_linearizable(cluster: Cluster) -> None:
    with Workload(cluster, clients=3, resp_clients=3) as load:
        kill_and_pause(cluster, lambda: load.wait_for_writes(60))
    assert {operation.client for operation in load.history} == set(range(6))
    load.check()


def test_multi_is_atomic_to_readers_and_watchers(cluster: Cluster) -> None:
    ended: dict[str, Any] = {}  # what EXEC was answered, by the value that it set
    seen: list[list[str | None]] = []

    def write(visitor: RespVisitor, number: int) -> None:
        value = b"%d" % number
        writes = [(b"SET", key.encode(), value) for key in ALL_KEYS]
        replies = visitor.ask([(b"MULTI",), *writes, (b"EXEC",)])
        assert replies[-1] in ([b"OK"] * 3, UNDONE, FORGOTTEN), replies
        ended[str(number)] = replies[-1]

    def read(visitor: RespVisitor, number: int) -> None:
        member = cluster.running[number % len(cluster.running)]
        if number % 2:
            gets = [{"get": {"key": key}} for key in ALL_KEYS]
            answer = answered(member, "POST", "/txn", {"success": gets})
            if answer is not None:
                seen.append([each and each["value"] for each in answer["results"]])
        else:
            (values,) = visitor.ask([(b"MGET", *(key.encode() for key in ALL_KEYS))], member)
            if isinstance(values, list):
                seen.append([value and value.decode() for value in values])

    def wait_for_more() -> None:
        wanted = len(seen) + 30, acknowledged() + 30
        wait_until(lambda: (len(seen), acknowledged()) >= wanted and acknowledged() >= wanted[1])

    def acknowledged() -> int:
        return sum(isinstance(reply, list) for reply in list(ended.values()))

    with Watcher(cluster, 1, "all/", 1) as watcher:
        with Crowd(cluster, 3, write), Crowd(cluster, 2, read):
            kill_and_pause(cluster, wait_for_more)
        last = cluster.leader().get(ALL_KEYS[0]).body.decode()
        wait_until(lambda: bool(watcher.events) and watcher.events[-1][2] == last)
    assert all(len(set(values)) == 1 for values in seen)
    of_revision: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for revision, key, value in watcher.events:
        of_revision[revision].append((key, value))
    happened = set()
    for events in of_revision.values():
        assert [key for key, _ in events] == list(ALL_KEYS)
        (value,) = {value for _, value in events}
        assert value not in happened
        happened.add(value)
    assert {value for value, reply in ended.items() if isinstance(reply, list)} <= happened
    assert not {value for value, reply in ended.items() if reply is UNDONE} & happened


def answered(member: Member, method: str, path: str, facts: object) -> Any:
    """Return what an answer says; None if there is none."""
    try:
        body = json.dumps(facts).encode()
        headers = {"Content-Type": "application/json"}
        answer = fetch(method, member.url + path, body, headers, timeout=3, follow=True)
    except OSError:
        return None
    return json.loads(answer.body) if answer.status == 200 else None


def test_watched_counts_are_exact(cluster: Cluster) -> None:
    """Each adds one with WATCH, GET, MULTI and EXEC, over one connection; none is lost, and none
    counts twice."""
    counted: list[int] = []
    open_ones: list[int] = []

    def add(visitor: RespVisitor, _: int) -> None:
        member = next((each for each in cluster.running if each.resp_port), None)
        watched, found = visitor.ask([(b"WATCH", b"n"), (b"GET", b"n")], member)
        if watched != b"OK" or found in (UNDONE, FORGOTTEN):
            visitor.leave()
            return
        new = int(found or 0) + 1
        reply = visitor.ask([(b"MULTI",), (b"SET", b"n", b"%d" % new), (b"EXEC",)], member)[-1]
        if reply == [b"OK"]:
            counted.append(new)
        elif reply is FORGOTTEN:
            open_ones.append(new)
        else:
            assert reply is None or reply is UNDONE, reply

    def wait_for_more() -> None:
        wanted = len(counted) + 30
        wait_until(lambda: len(counted) >= wanted)

    with Crowd(cluster, 4, add):
        kill_and_pause(cluster, wait_for_more)
    assert len(counted) == len(set(counted))
    total = int(cluster.leader().get("n").body)
    missing = set(range(1, total + 1)) - set(counted)
    assert missing <= set(open_ones)
    assert max(counted) <= total


def test_an_orderly_stop_of_the_leader_leaves_no_write_open(cluster: Cluster) -> None:
    """Clients of the other nodes, in the middle of pipelines: each write is done or isn't."""
    leader = cluster.leader()
    others = cluster.followers()
    counted: list[int] = []

    def add(visitor: RespVisitor, number: int) -> None:
        replies = visitor.ask([(b"INCR", b"n")] * 50, others[number % 2])
        assert FORGOTTEN not in replies
        counted.extend(reply for reply in replies if reply is not UNDONE)

    def wait_for_more() -> None:
        wanted = len(counted) + 500
        wait_until(lambda: len(counted) >= wanted)

    with Crowd(cluster, 6, add):
        wait_for_more()
        assert leader.terminate() == 0
        wait_for_more()
    assert sorted(counted) == [*range(1, len(counted) + 1)]
    assert int(cluster.leader(others).get("n").body) == len(counted)


@pytest.mark.parametrize("to_leader", [True, False])
def test_a_leader_killed_in_the_middle_of_a_pipeline(cluster: Cluster, to_leader: bool) -> None:
    leader = cluster.leader()
    member = leader if to_leader else cluster.followers()[0]
    writes = [(b"SET", b"k%05d" % number, b"%d" % number) for number in range(20_000)]
    replies: list[Any] = []
    answered = 0
    begun = threading.Event()

    def count(so_far: int) -> None:
        nonlocal answered
        answered = so_far
        if so_far > 500:
            begun.set()

    def write() -> None:
        with RespVisitor(cluster) as visitor:
            replies.extend(visitor.ask(writes, member, count))

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(20)
    leader.kill()
    thread.join()
    # At the leader the rest is lost with the connection; a follower answers everything.
    assert (answered < len(writes)) == to_leader
    with RespVisitor(cluster) as visitor:
        new = cluster.leader([each for each in cluster.members if each is not leader])
        found: list[Any] = []
        for start in range(0, len(writes), 1000):
            found += visitor.ask([(b"GET", key) for _, key, _ in writes[start : start + 1000]], new)
    assert replies.count(b"OK") > 500
    for (_, _, value), reply, there in zip(writes, replies, found, strict=True):
        if reply == b"OK":
            assert there == value
        elif reply is UNDONE:
            assert there is None
        else:
            assert reply is FORGOTTEN
            assert there in (None, value)


def test_a_transaction_that_is_begun_outlives_the_leader(cluster: Cluster) -> None:
    leader = cluster.leader()
    follower = cluster.followers()[0]
    begin = [(b"WATCH", b"w"), (b"MULTI",), (b"SET", b"a", b"1")]
    begun = [b"OK", b"OK", b"QUEUED"]
    with RespVisitor(cluster) as visitor:
        for member in (leader, follower):
            assert visitor.ask(begin, member) == begun
        leader.kill()
        assert visitor.ask([(b"EXEC",)], leader)[0] in (FORGOTTEN, UNDONE)
        cluster.leader(cluster.running)
        assert visitor.ask([(b"INCR", b"a"), (b"EXEC",)], follower) == [b"QUEUED", [b"OK", 2]]
        assert visitor.ask([(b"GET", b"a")], follower) == [b"2"]


def test_a_key_expires_at_every_node(cluster: Cluster) -> None:
    """By the leader's time, whoever was asked to set it; and who listens at a follower is told."""
    leader, (one, other) = cluster.leader(), cluster.followers()
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(RespClient(member.resp_port, member.host))
            for member in (leader, one, other)
        ]
        listener = stack.enter_context(RespClient(other.resp_port, other.host))
        assert listener.ask("CONFIG", "SET", "notify-keyspace-events", "Ex") == b"OK"
        assert listener.ask("SUBSCRIBE", "__keyevent@0__:expired")[2] == 1
        assert clients[1].ask("SET", "k", "v", "PX", 300) == b"OK"
        assert clients[1].ask("SET", "stays", "v", "EX", 300) == b"OK"
        for client in clients:
            assert client.ask("PTTL", "k") <= 300  # -2 if it took that long
            assert 0 < client.ask("TTL", "stays") <= 300
        assert listener.read() == [b"message", b"__keyevent@0__:expired", b"k"]
        for client in clients:
            assert client.ask("GET", "k") is None
            assert client.ask("TTL", "k") == -2
            assert client.ask("EXISTS", "stays") == 1


def test_an_election_is_a_pause(cluster: Cluster) -> None:
    """Who asks a follower meanwhile waits; only what was under way to the old leader is unknown."""
    leader = cluster.leader()
    follower = next(member for member in cluster.members if member is not leader)
    host, port = follower.raft_address.rpartition(":")[0], follower.resp_port
    found: dict[str, list[object]] = {}
    ended = threading.Event()

    def ask(*words: str) -> None:
        replies = found[words[0]] = []
        with RespClient(port, host) as client:
            while not ended.is_set():
                replies.append(client.ask(*words))

    commands = (("SET", "k", "v"), ("GET", "k"), ("PUBLISH", "c", "m"))
    threads = [threading.Thread(target=ask, args=words) for words in commands]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(found) == 3 and all(len(each) > 5 for each in found.values()))
    leader.kill()
    before = {name: len(replies) for name, replies in found.items()}
    wait_until(lambda: all(len(found[name]) > before[name] + 5 for name in before))
    ended.set()
    for thread in threads:
        thread.join()
    for name, replies in found.items():
        errors = [str(each) for each in replies if isinstance(each, ErrorReply)]
        assert len(errors) <= (name != "GET")
        assert all(each.startswith("UNKNOWN ") for each in errors)
