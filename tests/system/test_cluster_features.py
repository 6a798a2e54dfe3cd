"""Real clusters whose leader is killed under clients that count once, and clients that watch."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.lab.cluster import CLIENT_SECONDS, Cluster, Member, fetch, wait_until
from tests.lab.process import Answer

CLIENTS = 4


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as empty:
        yield empty.start(3)


class Clients:
    """Threads that send requests of their own making, each until it is answered.

    *make* is given a number that is used once and returns method and target. Every request has
    an Idempotency-Key, so sending it again is safe, wherever and however often.
    """

    def __init__(self, cluster: Cluster, make: Callable[[int], tuple[str, str]]) -> None:
        self.answers: dict[int, Answer] = {}
        self.attempts = 0
        self._cluster = cluster
        self._make = make
        self._numbers = itertools.count()
        self._done = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def wait_for_answers(self, count: int) -> None:
        """Return once *count* more have been answered than by now."""
        wanted = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= wanted or bool(self._errors))
        assert not self._errors, self._errors

    def _run(self) -> None:
        try:
            while not self._done.wait(0.002):
                self._insist(next(self._numbers))
        except BaseException as error:  # noqa: BLE001  # shown by whoever waits for this thread
            self._errors.append(error)

    def _insist(self, number: int) -> None:
        method, target = self._make(number)
        headers = {"Idempotency-Key": f"request-{number}"}
        answers: list[Answer] = []

        def is_answered() -> bool:
            self.attempts += 1
            url = random.choice(self._cluster.running).url + target
            with contextlib.suppress(OSError, http.client.HTTPException):
                timeout = CLIENT_SECONDS
                answer = fetch(method, url, headers=headers, timeout=timeout, follow=True)
                assert answer.status in (200, 307, 503, 504), answer
                if answer.status == 200:
                    answers.append(answer)
            return bool(answers)

        wait_until(is_answered)
        self.answers[number] = answers[0]


class Watcher:
    """A client that watches a prefix from a revision on, and goes on when it is cut off.

    It begins with the member of its *number* and takes the next one each time.
    """

    def __init__(self, cluster: Cluster, number: int, prefix: str, start: int) -> None:
        self.events: list[tuple[int, str, str]] = []  # revision, key and value
        self.connections = 0
        self._cluster = cluster
        self._number = number
        self._target = f"/watch?prefix={prefix}"
        self._start = start
        self._last_id = ""
        self._is_over = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def _run(self) -> None:
        for number in itertools.count(self._number):
            if self._is_over:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._watch(self._cluster.members[number % len(self._cluster.members)])

    def _watch(self, member: Member) -> None:
        """Read until the connection ends, as it does when its server is killed."""
        address = member.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=1.0)
        with contextlib.closing(connection):
            if self._last_id:
                connection.request("GET", self._target, headers={"Last-Event-ID": self._last_id})
            else:
                connection.request("GET", f"{self._target}&from={self._start}")
            response = connection.getresponse()
            if response.status != 200:  # 410: it was started again, and has no history
                return
            self.connections += 1
            event: dict[str, str] = {}
            while not self._is_over and (line := response.readline()):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    event[name] = value
                    continue
                if event["event"] == "put":
                    data = json.loads(event["data"])
                    self.events.append((data["revision"], data["key"], data["value"]))
                self._last_id = event.get("id", self._last_id)
                event = {}


def test_a_counter_is_exact_though_leaders_are_killed(cluster: Cluster) -> None:
    with Clients(cluster, lambda _: ("POST", "/kv/incr?key=hits&by=1")) as clients:
        clients.wait_for_answers(50)
        for _ in range(2):
            leader = cluster.leader()
            leader.kill()
            clients.wait_for_answers(50)
            leader.start()
            clients.wait_for_answers(20)
    numbers = sorted(int(answer.body) for answer in clients.answers.values())
    assert numbers == list(range(1, len(numbers) + 1))  # nothing counted twice, nothing lost
    assert clients.attempts > len(numbers)
    assert int(cluster.leader().get("hits").body) == len(numbers)
    cluster.wait_until_equal()


def test_watchers_miss_nothing_while_the_leader_is_killed(cluster: Cluster) -> None:
    first = int(cluster.leader().put("w", b"first").headers["x-conure-index"])
    with contextlib.ExitStack() as watching:
        watchers = [
            watching.enter_context(Watcher(cluster, number, "w", first)) for number in range(3)
        ]
        wait_until(lambda: all(watcher.events for watcher in watchers))
        with Clients(cluster, lambda n: ("PUT", f"/kv?key=w{n % 5}&value={n}")) as clients:
            clients.wait_for_answers(50)
            leader = cluster.leader()
            leader.kill()
            clients.wait_for_answers(50)
            leader.start()
            clients.wait_for_answers(20)
        written = {
            (int(answer.headers["x-conure-index"]), f"w{number % 5}", str(number))
            for number, answer in clients.answers.items()
        }
        expected = [(first, "w", "first"), *sorted(written)]
        wait_until(lambda: all(len(watcher.events) >= len(expected) for watcher in watchers))
    assert [watcher.events for watcher in watchers] == [expected] * 3
    assert sum(watcher.connections for watcher in watchers) > 3  # one was cut off
