"""Clusters of real server processes for tests, and clients that put load on them.

:class:`Cluster` starts members, lets them join, and ends every process by its id. Each process of
the tests has a loopback address of its own (127.x.y.n for member n), on which ports are taken
from the system: they stay free for a member that restarts. :class:`Workload` writes and reads
through any member while faults happen, and keeps the history for the check of linearizability.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from tests.lab import engines
from tests.lab.linearizability import DELETE, GET, PUT, Operation, check_history
from tests.lab.netns import Lab
from tests.lab.process import ROOT, Answer, ServerProcess, has_identity
from tests.lab.respclient import ErrorReply, RespClient, command

__all__ = [
    "FORGOTTEN",
    "UNDONE",
    "Cluster",
    "Member",
    "RespVisitor",
    "Workload",
    "fetch",
    "free_port",
    "free_ports",
    "wait_until",
]

MAX_REDIRECTS = 5
POLL = 0.02  # seconds between two looks at what is waited for: the servers need the processors
PAUSE = 0.003  # seconds between the requests of one client of a workload
CLIENT_SECONDS = 3.0  # how long a client of a workload waits for an answer


def fetch(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = 20.0,
    follow: bool = False,
) -> Answer:
    """Send one request on a connection of its own; *follow* redirects as ``curl -L`` does."""
    for _ in range(MAX_REDIRECTS):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
        with contextlib.closing(connection):
            target = parts.path + ("?" + parts.query if parts.query else "")
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, fields, response.read())
        if not (follow and answer.status == 307):
            break
        url = answer.headers["location"]
    return answer


class Member:
    """One node of a cluster: its directory, its addresses, and its process while it runs."""

    def __init__(
        self,
        name: str,
        data: Path,
        host: str,
        flags: Sequence[str] = (),
        *,
        wrapper: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        ports: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.data = data
        self.host = host
        self.flags = list(flags)
        self.wrapper = wrapper
        self.environ = environ
        self.script = ROOT / "conuredb.py"  # that of another release may be run instead
        self.engine = engines.drawn(name)
        self._has_its_own_ports = ports is not None
        self.http_port, self.raft_port = ports or free_ports(host)
        self.process: ServerProcess | None = None
        self.is_paused = False
        self._past: list[str] = []  # the log of the processes before this one

    def __repr__(self) -> str:
        return f"<{self.name} at {self.url}>"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def raft_address(self) -> str:
        return f"{self.host}:{self.raft_port}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.process.poll() is None

    @property
    def is_listening(self) -> bool:
        return self.is_running and self.process is not None and self.process.port > 0

    @property
    def text(self) -> str:
        """The log of the process that runs, or ran last."""
        return self.process.text if self.process else ""

    @property
    def whole_text(self) -> str:
        """The log of all its processes."""
        return "\n".join([*self._past, self.text])

    @property
    def resp_port(self) -> int:
        """Where the process that runs speaks RESP; 0: nowhere yet."""
        return self._port_of("RESP")

    @property
    def rest_port(self) -> int:
        """Where the process that runs speaks REST; 0: nowhere yet."""
        return self._port_of("REST")

    def _port_of(self, protocol: str) -> int:
        found = re.search(rf"{protocol} is served at \S+:(\d+)$", self.text, re.MULTILINE)
        return int(found[1]) if found else 0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.process.pid

    # -- the process -----------------------------------------------------------------------------

    def _engine(self) -> list[str]:
        """Return the flag for the engine of a directory that this release's server makes."""
        is_new = self.script.parent == ROOT and not has_identity(self.data)
        return [f"--engine={self.engine}"] if is_new else []

    def launch(self, *flags: str) -> Member:
        """Start the process and don't wait for it; *flags* hold for this start only."""
        assert not self.is_running
        if self.process is not None:
            self._past += [*self.process.log, "-- started again"]
        self.process = ServerProcess(
            self.data,
            f"--node-id={self.name}",
            f"--raft-addr={self.raft_address}",
            f"--http-addr={self.host}:{self.http_port}",
            *self._engine(),
            *self.flags,
            *flags,
            wrapper=self.wrapper,
            environ=self.environ,
            script=self.script,
        )
        return self

    def start(self, *flags: str) -> Member:
        """Start the process and return once it listens."""
        self.launch(*flags).wait_until_listening()
        return self

    def wait_until_listening(self) -> None:
        assert self.process is not None
        self.process.wait_until_listening()

    def move(self) -> None:
        """Take other ports for the next start."""
        if self._has_its_own_ports:
            self.http_port, self.raft_port = self.http_port + 1, self.raft_port + 1
        else:
            self.http_port, self.raft_port = free_ports(self.host)

    def wipe(self) -> None:
        """Lose the disk."""
        assert not self.is_running
        shutil.rmtree(self.data)

    def kill(self) -> None:
        assert self.process is not None
        self.is_paused = False
        self.process.kill()

    def terminate(self) -> int:
        assert self.process is not None
        return self.process.terminate()

    def pause(self) -> None:
        """Stop the process in the middle of whatever it does (SIGSTOP)."""
        self.is_paused = True
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.is_paused = False

    # -- requests --------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 20.0,
        follow: bool = False,
    ) -> Answer:
        url = self.url + target
        return fetch(method, url, body, headers, timeout=timeout, follow=follow)

    def put(self, key: str, value: bytes, *, follow: bool = True) -> Answer:
        return self.request("PUT", f"/kv?key={quote(key)}", value, follow=follow)

    def get(self, key: str, *, follow: bool = True, stale: bool = False) -> Answer:
        suffix = "&stale=true" if stale else ""
        return self.request("GET", f"/kv?key={quote(key)}{suffix}", follow=follow)

    def delete(self, key: str, *, follow: bool = True) -> Answer:
        return self.request("DELETE", f"/kv?key={quote(key)}", follow=follow)

    def post(self, path: str, facts: Mapping[str, Any], *, follow: bool = True) -> Answer:
        headers = {"Content-Type": "application/json"}
        return self.request("POST", path, json.dumps(facts).encode(), headers, follow=follow)

    def json(self, path: str, timeout: float = 20.0) -> dict[str, Any]:
        answer = self.request("GET", path, timeout=timeout)
        assert answer.status == 200, answer
        facts = json.loads(answer.body)
        assert isinstance(facts, dict)
        return facts

    def status(self) -> dict[str, Any]:
        """``/status``; empty if there is no answer just now."""
        if not self.is_running or self.is_paused:
            return {}
        try:
            return self.json("/status", timeout=2.0)
        except (OSError, http.client.HTTPException):
            return {}

    def stats(self) -> dict[str, Any]:
        return self.json("/raft/stats")

    def applied(self) -> int:
        return int(self.status().get("applied_index", -1))

    def servers(self) -> dict[str, dict[str, Any]]:
        """The members as this node knows them, by ID."""
        return {server["id"]: server for server in self.json("/raft/config")["servers"]}

    def voters(self) -> set[str]:
        """The IDs of the voters as this node knows them."""
        servers = self.servers().items()
        return {name for name, server in servers if server["suffrage"] == "voter"}


class Cluster:
    """Members under *directory*, each started with *flags*. Leaving the block ends all of them.

    In a *lab* member n is a process on host n; otherwise all are on the loopback interface. If
    the block is left by an exception, all logs are printed, or written to files under *logs*. With
    *resp* all members speak RESP, and with *rest* REST, each start on a new port.
    """

    def __init__(
        self,
        directory: Path,
        *flags: str,
        lab: Lab | None = None,
        logs: Path | None = None,
        resp: bool = False,
        rest: bool = False,
    ) -> None:
        self.members: list[Member] = []
        self._directory = directory
        # On other machines nobody would be served, and no cluster be made, without it. Whoever is
        # to try that gives the flag again.
        self.flags = flags if lab is None else ("--protected-mode=false", *flags)
        self._lab = lab
        self._logs = logs
        self._fronts = [name for name, asked in (("resp", resp), ("rest", rest)) if asked]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for member in self.members:
            if member.process is not None:
                member.kill()
            if kind is not None and self._logs is not None:
                (self._logs / f"{member.name}.log").write_text(member.whole_text)
            elif kind is not None:
                print(f"-- the log of {member.name} ({member.url}, {member.raft_address})")
                print(member.whole_text)

    def __getitem__(self, number: int) -> Member:
        """Member ``node<number>``, from 1."""
        return self.members[number - 1]

    @property
    def running(self) -> list[Member]:
        """The members that could answer now."""
        return [member for member in self.members if member.is_running and not member.is_paused]

    def add(
        self,
        *flags: str,
        wrapper: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Member:
        """Make the next member; it is not started."""
        number = len(self.members) + 1
        if self._lab is not None:
            host, ports = self._lab.address(number), (8081, 7001)
            wrapper = [*self._lab.wrapper(number), *wrapper]
        else:
            process = os.getpid()
            host, ports = f"127.{1 + (process >> 8) % 254}.{process % 256}.{number}", None
        name = f"node{number}"
        member = Member(
            name,
            self._directory / name,
            host,
            (*self.flags, *[f"--{front}-addr={host}:0" for front in self._fronts], *flags),
            wrapper=wrapper,
            environ=environ,
            ports=ports,
        )
        self.members.append(member)
        return member

    def start(self, count: int = 3) -> Cluster:
        """Start *count* new members as one cluster of voters."""
        while len(self.members) < count:
            self.add()
        first, *others = self.members
        first.launch("--bootstrap")
        for member in others:
            member.launch(f"--join={first.url}")
        for member in self.members:
            member.wait_until_listening()
        self.wait_until_voters(count)
        return self

    # -- what the cluster says of itself -----------------------------------------------------------

    def leader(self, among: Iterable[Member] | None = None) -> Member:
        """Return the leader that most voters follow; wait for it. Only *among* are asked."""
        asked = list(self.members if among is None else among)
        found: list[Member] = []

        def is_agreed() -> bool:
            statuses = {member: member.status() for member in asked}
            for member, status in statuses.items():
                if status.get("is_leader"):
                    following = {
                        m.name for m, s in statuses.items() if s.get("leader_id") == member.name
                    }
                    voters = member.voters()
                    if 2 * len(voters & following) > len(voters):
                        found[:] = [member]
                        return True
            return False

        wait_until(is_agreed)
        return found[0]

    def followers(self) -> list[Member]:
        leader = self.leader()
        return [member for member in self.running if member is not leader]

    def suffrage(self) -> dict[str, str]:
        """Who is a voter and who is not, as the leader knows it."""
        return {name: server["suffrage"] for name, server in self.leader().servers().items()}

    def wait_until_voters(self, count: int) -> None:
        """Return once the cluster has exactly *count* members, all of them voters."""
        wait_until(lambda: list(self.suffrage().values()) == ["voter"] * count)

    def wait_until_equal(self, members: Iterable[Member] | None = None) -> int:
        """Return once all of *members* (default: all that run) have applied the same."""
        chosen = list(self.running if members is None else members)
        applied: set[int] = set()

        def are_equal() -> bool:
            applied.clear()
            applied.update(member.applied() for member in chosen)
            return len(applied) == 1 and -1 not in applied

        wait_until(are_equal)
        return applied.pop()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return once the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        time.sleep(POLL)


def free_port(host: str) -> int:
    """A port of *host* that nobody listens on."""
    return free_ports(host)[0]


def free_ports(host: str) -> tuple[int, int]:
    """Two ports of *host* that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        one.bind((host, 0))
        other.bind((host, 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


class Workload:
    """Clients that write and read a few keys through any member, and note what they saw: so many
    *clients* over HTTP, *rest_clients* by paths, and *resp_clients* over RESP, each with a
    connection to each member, on which it sometimes sends several commands at once.

    Leaving the block ends the clients. :meth:`check` then reads every key once more and checks
    the whole history: what was acknowledged is there, no read went back in time, and no term had
    two leaders.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        clients: int = 4,
        resp_clients: int = 0,
        rest_clients: int = 0,
        keys: int = 4,
        prefix: bytes = b"w",
    ) -> None:
        self._cluster = cluster
        self._keys = [b"%b%d" % (prefix, number) for number in range(keys)]
        self._clock = itertools.count(1)  # moments: no two are the same
        self._errors: list[BaseException] = []
        self._done = threading.Event()
        self.history: list[Operation] = []
        self.acknowledged_at: list[float] = []  # monotonic times of acknowledged writes
        self.leaders: dict[int, set[str]] = {}  # of each term, by ID
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._act, number))
            for number in range(clients)
        ]
        self._threads += [
            threading.Thread(target=self._guarded, args=(self._act_over_resp, number))
            for number in range(clients, clients + resp_clients)
        ]
        self._threads += [
            threading.Thread(target=self._guarded, args=(self._act, number, True))
            for number in range(clients + resp_clients, clients + resp_clients + rest_clients)
        ]
        self._threads.append(threading.Thread(target=self._guarded, args=(self._observe,)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def wait_for_writes(self, count: int) -> None:
        """Return once *count* more writes have been acknowledged than by now."""
        wanted = len(self.acknowledged_at) + count
        wait_until(lambda: len(self.acknowledged_at) >= wanted or bool(self._errors))
        assert not self._errors, self._errors

    def longest_gap(self, since: float) -> float:
        """The longest time without an acknowledged write, in seconds, from *since* on."""
        times = [since, *sorted(at for at in self.acknowledged_at if at > since)]
        return max(late - early for early, late in itertools.pairwise(times))

    def check(self) -> None:
        """See that the history is linearizable and that no term had two leaders."""
        assert self._done.is_set()
        assert not self._errors, self._errors
        for key in self._keys:
            wait_until(functools.partial(self._read, len(self._threads), key))
        for term, names in self.leaders.items():
            assert len(names) == 1, f"two leaders in term {term}: {names}"
        check_history(self.history)

    # -- the clients -----------------------------------------------------------------------------

    def _guarded(self, action: Callable[..., None], *arguments: int) -> None:
        try:
            action(*arguments)
        except BaseException as error:  # noqa: BLE001  # shown by whoever waits for this thread
            self._errors.append(error)

    def _act(self, client: int, by_path: bool = False) -> None:
        choice = random.Random(client)
        number = 0
        while not self._done.wait(PAUSE):
            number += 1
            key = choice.choice(self._keys)
            action = choice.randrange(10)
            if action < 5:
                self._write(client, PUT, key, b"%d.%d" % (client, number), by_path)
            elif action == 5:
                self._write(client, DELETE, key, None, by_path)
            else:
                self._read(client, key, by_path)

    def _act_over_resp(self, client: int) -> None:
        with RespVisitor(self._cluster) as visitor:
            choice = random.Random(client)
            number = 0
            while not self._done.wait(PAUSE):
                calls = []
                for _ in range(choice.choice([1, 1, 1, 5])):
                    number += 1
                    kind = choice.choice([PUT] * 5 + [DELETE] + [GET] * 4)
                    value = b"%d.%d" % (client, number) if kind == PUT else None
                    calls.append((kind, choice.choice(self._keys), value))
                self._call_over_resp(client, visitor, calls)

    def _call_over_resp(
        self, client: int, visitor: RespVisitor, calls: list[tuple[str, bytes, bytes | None]]
    ) -> None:
        words = {PUT: b"SET", DELETE: b"DEL", GET: b"GET"}
        asked = [tuple(filter(None, (words[kind], key, value))) for kind, key, value in calls]
        # A pipeline's calls are open all at once, which only widens what is allowed; to keep its
        # order would take calls of one client that overlap and are ordered.
        invoked = [next(self._clock) for _ in calls]
        for (kind, key, value), moment, reply in zip(
            calls, invoked, visitor.ask(asked), strict=True
        ):
            if reply is FORGOTTEN:
                if kind != GET:
                    self.history.append(Operation(client, kind, key, value, moment, None))
            elif reply is not UNDONE:
                returned = next(self._clock)
                found = reply if kind == GET else value
                self.history.append(Operation(client, kind, key, found, moment, returned))
                if kind != GET:
                    self.acknowledged_at.append(time.monotonic())

    def _observe(self) -> None:
        while not self._done.wait(0.03):
            for member in self._cluster.running:
                status = member.status()
                if status.get("is_leader"):
                    self.leaders.setdefault(status["term"], set()).add(status["node_id"])

    def _write(
        self, client: int, kind: str, key: bytes, value: bytes | None, by_path: bool
    ) -> None:
        invoked = next(self._clock)
        try:
            answer = self._ask(kind, key, value, by_path)
        except Forgotten:
            self.history.append(Operation(client, kind, key, value, invoked, None))
            return
        if answer is not None:
            returned = next(self._clock)
            self.acknowledged_at.append(time.monotonic())
            self.history.append(Operation(client, kind, key, value, invoked, returned))

    def _read(self, client: int, key: bytes, by_path: bool = False) -> bool:
        invoked = next(self._clock)
        try:
            answer = self._ask(GET, key, None, by_path)
        except Forgotten:
            return False
        if answer is None:
            return False
        value = answer.body if answer.status == 200 else None
        returned = next(self._clock)
        self.history.append(Operation(client, GET, key, value, invoked, returned))
        return True

    def _ask(self, kind: str, key: bytes, value: bytes | None, by_path: bool) -> Answer | None:
        """Return the answer; None if nothing was done; raise Forgotten if that isn't known."""
        able = [each for each in self._cluster.running if each.rest_port or not by_path]
        if not able:
            return None
        member = random.choice(able)
        url = f"{member.url}/kv?key={key.decode()}"
        if by_path:
            url = f"http://{member.host}:{member.rest_port}/{key.decode()}"
        fields = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
        try:
            answer = fetch(
                kind.upper(),
                url,
                value,
                fields if by_path else None,
                timeout=CLIENT_SECONDS,
                follow=not by_path,
            )
        except ConnectionRefusedError:
            return None
        except (OSError, http.client.HTTPException) as error:
            raise Forgotten from error
        if answer.status == 200 or (answer.status == 404 and (kind == GET or by_path)):
            return answer
        assert answer.status in ((503, 504, 507) if by_path else (307, 503, 504, 507)), answer
        if answer.status == 504:
            raise Forgotten
        return None


UNDONE, FORGOTTEN = object(), object()
"""In the place of a reply: nothing was done; it isn't known whether anything was."""


class RespVisitor:
    """A client of RESP with a connection to each member of a cluster that it has asked. Not for
    several threads."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._clients: dict[tuple[str, int], RespClient] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close all connections."""
        while self._clients:
            self._clients.popitem()[1].close()

    def ask(
        self,
        commands: Sequence[tuple[bytes, ...]],
        member: Member | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Any]:
        """Return the replies of a pipeline to a member, any one if none is named. *progress* is
        told how many have come."""
        able = [each for each in self._cluster.running if each.resp_port]
        if member is None and able:
            member = random.choice(able)
        if member is None:
            return [UNDONE] * len(commands)
        place = (member.host, member.resp_port)
        replies: list[Any] = []
        try:
            if place not in self._clients:
                self._clients[place] = RespClient(place[1], place[0], timeout=CLIENT_SECONDS)
        except OSError:
            return [UNDONE] * len(commands)
        client = self._clients[place]
        try:
            client.send(b"".join(command(*words) for words in commands))
            for _ in commands:
                replies.append(_understood(client.read()))
                progress(len(replies))
        except (OSError, EOFError):
            self._clients.pop(place).close()
        return replies + [FORGOTTEN] * (len(commands) - len(replies))


def _understood(reply: Any) -> Any:
    """Return a reply, or what an error tells of what was done. Others are failures."""
    if not isinstance(reply, ErrorReply):
        return reply
    code = str(reply).partition(" ")[0]
    if code == "UNKNOWN":
        return FORGOTTEN
    if "has not said yet what it reads" in str(reply):  # a member, since the leader was started
        return UNDONE
    assert code in ("CLUSTERDOWN", "OOM", "TRYAGAIN", "LOADING"), reply
    return UNDONE


class Forgotten(Exception):
    """No answer came, or one that leaves open what was done."""
