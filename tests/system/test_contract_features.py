"""Conditions, expiry, ranges, transactions, watches, sessions: a real process and its clients.

One server is shared; each test keeps to keys of its own. docs/http-api.md is carried out as well.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lab.engines import ENGINES
from tests.lab.process import ROOT, Answer, ServerProcess, rest_port, running
from tests.lab.tlstunnel import over_tls

PAGE = ROOT / "docs" / "http-api.md"
CURL = shutil.which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    engine = f"--engine={request.param}"
    flags = ("--max-scans=2", "--max-range-items=500", "--slow-request=1ms")
    tls = over_tls(request.param)
    with running(tmp_path_factory.mktemp("features"), engine, *flags, tls=tls) as process:
        yield process


def ask(
    server: ServerProcess, method: str, target: str, body: bytes | None = None, **headers: str
) -> Answer:
    """Send a request; header names have _ for -."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    address = ("127.0.0.1", server.port)
    with closing(http.client.HTTPConnection(*address, timeout=20)) as connection:
        connection.request(method, target, body, fields)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())


def asked(server: ServerProcess, method: str, target: str, body: object = None) -> Any:
    """Send a request and return the JSON that answers it."""
    data = None if body is None else json.dumps(body).encode()
    answer = ask(server, method, target, data)
    assert answer.status == 200, answer
    return json.loads(answer.body)


def put(server: ServerProcess, key: str, value: str, more: str = "") -> int:
    """Set a key and return its revision."""
    answer = ask(server, "PUT", f"/kv?key={quote(key)}&value={quote(value)}{more}")
    assert answer.status == 200, answer
    return int(answer.headers["x-conure-index"])


def value(server: ServerProcess, key: str) -> bytes | None:
    answer = ask(server, "GET", f"/kv?key={quote(key)}")
    return answer.body if answer.status == 200 else None


def session(server: ServerProcess, more: str = "") -> str:
    return str(asked(server, "POST", f"/session?ttl=1h{more}")["id"])


class Watch:
    """A watch that is read event by event."""

    def __init__(self, server: ServerProcess, query: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET", f"/watch?{query}", headers=fields)
        self.response = self._connection.getresponse()

    def next(self) -> tuple[str, str, Any]:
        """Return the next event that is no progress: its kind, id and data."""
        while True:
            event: dict[str, str] = {}
            while line := self.response.readline().decode().rstrip("\n"):
                name, _, text = line.partition(": ")
                event[name] = text
            assert event, "the watch has ended"
            if event["event"] != "progress":
                return event["event"], event["id"], json.loads(event["data"])

    def close(self) -> None:
        self._connection.close()


# -- revisions and conditions ----------------------------------------------------------------------


def test_answers_carry_revisions(server: ServerProcess) -> None:
    first = put(server, "rev/a", "1")
    second = put(server, "rev/a", "2")
    answer = ask(server, "GET", "/kv?key=rev/a")
    assert second > first
    assert answer.headers["etag"] == f'"{second}"'
    assert answer.headers["x-conure-create-revision"] == str(first)
    assert answer.headers["x-conure-version"] == "2"
    assert int(answer.headers["x-conure-index"]) >= second
    missing = ask(server, "GET", "/kv?key=rev/none")
    assert (missing.status, missing.body) == (404, b"key not found\n")
    assert int(missing.headers["x-conure-index"]) >= second


@pytest.mark.parametrize("how", ["meta=true", "accept"])
def test_a_record_as_json(server: ServerProcess, how: str) -> None:
    key = f"json/ä {how}"
    revision = put(server, key, "ö")
    target = f"/kv?key={quote(key)}" + ("&meta=true" if how == "meta=true" else "")
    accept = "application/json" if how == "accept" else "*/*"
    answer = ask(server, "GET", target, Accept=accept)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == {
        "key": key, "value": "ö", "create_revision": revision, "mod_revision": revision,
        "version": 1,
    }  # fmt: skip


def test_what_is_no_text_is_base64(server: ServerProcess) -> None:
    ask(server, "PUT", "/kv?key=json/%FF", b"\x00\xfe")
    record = asked(server, "GET", "/kv?key=json/%FF&meta=true")
    assert record["encoding"] == "base64"
    assert base64.b64decode(record["key"]) == b"json/\xff"
    assert base64.b64decode(record["value"]) == b"\x00\xfe"


def test_if_none_match_saves_the_answer(server: ServerProcess) -> None:
    revision = put(server, "cond/etag", "1")
    for tags, status in (
        (f'"{revision}"', 304), (f'W/"{revision}"', 304), (f'"1", "{revision}"', 304), ("*", 304),
        ('"1"', 200),
    ):  # fmt: skip
        answer = ask(server, "GET", "/kv?key=cond/etag", If_None_Match=tags)
        assert (answer.status, answer.body) == (status, b"1" if status == 200 else b"")
        assert answer.headers["etag"] == f'"{revision}"'


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_conditions_decide_and_tell(server: ServerProcess, method: str) -> None:
    key = f"cond/{method}"
    there = put(server, key, "there")

    def attempt(query: str = "", **headers: str) -> Answer:
        return ask(server, method, f"/kv?key={key}{query}", b"new", **headers)

    unmet = [
        attempt("&cas=0"),
        attempt(f"&cas={there - 1}"),
        attempt(If_Match=f'"{there + 1}"'),
        attempt(If_None_Match="*"),
        attempt(If_None_Match=f'"{there}"'),
        attempt(f"&cas={there}", If_Match='"1"'),
    ]
    for answer in unmet:
        assert answer.status == 412
        assert answer.headers["etag"] == f'"{there}"'
        assert f"the key's revision is {there}" in answer.body.decode()
    assert value(server, key) == b"there"
    assert attempt(f"&cas={there}", If_Match="*").status == 200
    assert value(server, key) == (b"new" if method == "PUT" else None)


def test_conditions_on_a_key_that_is_not_there(server: ServerProcess) -> None:
    for tag in ("*", '"7"'):
        answer = ask(server, "PUT", "/kv?key=cond/none", b"v", If_Match=tag)
        assert answer.status == 412
        assert "etag" not in answer.headers
        assert b"does not exist" in answer.body
    assert ask(server, "PUT", "/kv?key=cond/none&cas=0", b"v").status == 200


def test_of_many_who_try_at_once_one_wins(server: ServerProcess) -> None:
    revision = put(server, "cond/race", "0")
    statuses: list[int] = []

    def attempt() -> None:
        answer = ask(server, "PUT", f"/kv?key=cond/race&cas={revision}", b"mine")
        statuses.append(answer.status)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [412] * 7


def test_counters(server: ServerProcess) -> None:
    target = "/kv/incr?key=count/a"
    assert ask(server, "POST", target).body == b"1\n"
    assert ask(server, "POST", target + "&by=41").body == b"42\n"
    assert ask(server, "POST", target + "&by=-50").body == b"-8\n"
    assert value(server, "count/a") == b"-8"
    most = (1 << 63) - 1
    assert ask(server, "POST", f"/kv/incr?key=count/b&by={most}").body == b"%d\n" % most
    assert ask(server, "POST", "/kv/incr?key=count/b").status == 409
    put(server, "count/word", "one")
    assert ask(server, "POST", "/kv/incr?key=count/word").status == 409
    assert value(server, "count/word") == b"one"


# -- expiry ----------------------------------------------------------------------------------------


def test_a_key_expires_and_its_watchers_see_it(server: ServerProcess) -> None:
    watch = Watch(server, "key=ttl/short")
    put(server, "ttl/short", "v", "&ttl=300ms")
    assert 0 < float(ask(server, "GET", "/kv?key=ttl/short").headers["x-conure-ttl"]) <= 0.3
    assert watch.next()[0] == "put"
    kind, _, data = watch.next()
    assert (kind, data["value"]) == ("expire", None)
    assert value(server, "ttl/short") is None
    watch.close()


def test_a_put_clears_the_time_and_keepttl_keeps_it(server: ServerProcess) -> None:
    def left() -> str | None:
        return ask(server, "GET", "/kv?key=ttl/a").headers.get("x-conure-ttl")

    put(server, "ttl/a", "1", "&ttl=1h")
    before = left()
    assert before is not None
    assert 3590 < float(before) <= 3600
    put(server, "ttl/a", "2", "&keepttl=true")
    assert left() is not None
    put(server, "ttl/a", "3")
    assert left() is None
    put(server, "ttl/a", "4", "&ttl=90")
    assert 80 < float(left() or 0) <= 90


def test_touch_changes_the_time_alone(server: ServerProcess) -> None:
    revision = put(server, "ttl/touch", "v", "&ttl=1h")
    touched = ask(server, "POST", "/kv/touch?key=ttl/touch&ttl=2h")
    assert touched.headers["etag"] == f'"{revision}"'
    assert float(touched.headers["x-conure-ttl"]) > 7000
    assert ask(server, "POST", "/kv/touch?key=ttl/touch&ttl=0").status == 200
    assert "x-conure-ttl" not in ask(server, "GET", "/kv?key=ttl/touch").headers
    assert ask(server, "POST", "/kv/touch?key=ttl/none&ttl=1h").status == 404


# -- ranges ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten(server: ServerProcess) -> ServerProcess:
    for n in range(10):
        put(server, f"range/{n}", f"value {n}")
    return server


@pytest.mark.parametrize(
    ("query", "keys", "more"),
    [
        ("prefix=range/", "0123456789", False),
        ("prefix=range/&limit=3", "012", True),
        ("prefix=range/&limit=3&after=range/2", "345", True),
        ("prefix=range/&limit=3&reverse=true", "987", True),
        ("prefix=range/&limit=3&reverse=true&after=range/7", "654", True),
        ("prefix=range/&limit=10", "0123456789", False),
        ("from=range/3&to=range/6", "345", False),
        ("from=range/3&to=range/6&reverse=1", "543", False),
        ("from=range/6&to=range/3", "", False),
        ("from=range/7&to=range0", "789", False),
        ("prefix=range/5&stale=true", "5", False),
        ("prefix=range/none", "", False),
    ],
)
def test_ranges(ten: ServerProcess, query: str, keys: str, more: bool) -> None:
    found = asked(ten, "GET", f"/kv?{query}")
    assert [item["key"] for item in found["items"]] == [f"range/{key}" for key in keys]
    assert [item["value"] for item in found["items"]] == [f"value {key}" for key in keys]
    assert found["more"] is more
    assert found.get("next") == (f"range/{keys[-1]}" if more else None)


def test_a_range_may_be_streamed(ten: ServerProcess) -> None:
    target = "/kv?prefix=range/&keys=true&reverse=true&limit=4"
    answer = ask(ten, "GET", target, Accept="application/x-ndjson")
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [line["key"] for line in lines] == [f"range/{n}" for n in (9, 8, 7, 6)]
    assert all("value" not in line for line in lines)
    assert int(answer.headers["x-conure-index"]) >= max(line["mod_revision"] for line in lines)


def test_counts_and_deletions_of_ranges(ten: ServerProcess) -> None:
    for n in range(5):
        put(ten, f"gone/{n}", "v")
    assert asked(ten, "GET", "/kv/count?prefix=gone/")["count"] == 5
    total = asked(ten, "GET", "/kv/count")["count"]
    assert asked(ten, "DELETE", "/kv?from=gone/3&to=gone/9") == {"deleted": 2}
    assert asked(ten, "DELETE", "/kv?prefix=gone/") == {"deleted": 3}
    assert asked(ten, "DELETE", "/kv?prefix=gone/") == {"deleted": 0}
    assert asked(ten, "GET", "/kv/count")["count"] == total - 5


# -- transactions and batches ----------------------------------------------------------------------


def test_a_transaction_takes_one_of_two_ways(server: ServerProcess) -> None:
    revision = put(server, "txn/a", "1")
    body = {
        "compare": [{"key": "txn/a", "mod_revision": revision}, {"key": "txn/b", "exists": False}],
        "success": [
            {"put": {"key": "txn/b", "value": "made", "ttl": "1h"}},
            {"delete": {"key": "txn/a"}},
            {"get": {"key": "txn/b"}},
            {"range": {"prefix": "txn/"}},
            {"incr": {"key": "txn/n", "by": 7}},
        ],
        "failure": [{"get": {"key": "txn/a"}}, {"get": {"key": "txn/b"}}],
    }
    done = asked(server, "POST", "/txn", body)
    assert done["succeeded"] is True
    made, deleted, got, scanned, summed = done["results"]
    assert made["mod_revision"] == summed["mod_revision"] == done["revision"]
    assert deleted == {"deleted": 1}
    assert got["value"] == "made"
    assert [item["key"] for item in scanned["items"]] == ["txn/b"]
    again = asked(server, "POST", "/txn", body)
    assert again["succeeded"] is False
    assert again["results"][0] is None
    assert again["results"][1]["value"] == "made"


def test_a_transaction_is_all_or_nothing(server: ServerProcess) -> None:
    put(server, "txn/word", "no number")
    operations = [{"put": {"key": "txn/first", "value": "v"}}, {"incr": {"key": "txn/word"}}]
    body = json.dumps({"success": operations}).encode()
    assert ask(server, "POST", "/txn", body).status == 409
    assert value(server, "txn/first") is None


def test_a_batch(server: ServerProcess) -> None:
    lines: list[dict[str, object]] = [{"key": f"batch/{n}", "value": str(n)} for n in range(1000)]
    lines += [{"key": "batch/ttl", "value": "v", "ttl": 3600}, {"key": "batch/0", "delete": True}]
    body = "\n".join(map(json.dumps, lines)).encode()
    answer = ask(server, "POST", "/kv/batch", body)
    assert answer.status == 200, answer
    assert json.loads(answer.body)["written"] == 1002
    assert asked(server, "GET", "/kv/count?prefix=batch/")["count"] == 1000
    assert "x-conure-ttl" in ask(server, "GET", "/kv?key=batch/ttl").headers
    broken = ask(server, "POST", "/kv/batch", b'{"key": "batch/x", "value": "v"}\n{"key": "y"}')
    assert (broken.status, broken.body) == (400, b"line 2: value is missing or not a string\n")
    assert value(server, "batch/x") is None


# -- watches ---------------------------------------------------------------------------------------


def test_a_watch_goes_on_where_it_was(server: ServerProcess) -> None:
    watch = Watch(server, "prefix=watch/")
    assert watch.response.headers["content-type"] == "text/event-stream"
    first = put(server, "watch/a", "1")
    put(server, "unwatched", "x")
    kind, event_id, data = watch.next()
    assert (kind, event_id) == ("put", str(first))
    assert data == {"key": "watch/a", "value": "1", "revision": first, "version": 1}
    watch.close()
    second = put(server, "watch/b", "2")
    ask(server, "DELETE", "/kv?prefix=watch/")
    watch = Watch(server, "prefix=watch/", Last_Event_ID=event_id)
    assert watch.next()[:2] == ("put", str(second))
    kind, event_id, data = watch.next()
    assert (kind, event_id, data["key"]) == ("delete", f"{second + 1}.1", "watch/a")
    watch.close()
    watch = Watch(server, "prefix=watch/", Last_Event_ID=event_id)
    kind, event_id, data = watch.next()
    assert (kind, event_id, data["key"]) == ("delete", str(second + 1), "watch/b")
    watch.close()
    watch = Watch(server, f"key=watch/b&from={second}")
    assert watch.next()[2]["value"] == "2"
    watch.close()


def test_history_that_is_gone_is_410(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir) as server:
        put(server, "a", "1")
        revision = put(server, "a", "2")
        server.terminate()  # in order: a start has nothing to replay then
    with running(data_dir) as server:
        answer = ask(server, "GET", "/watch?key=a&from=3")
        assert answer.status == 410
        oldest = int(answer.body.split()[5])
        assert oldest > revision
        watch = Watch(server, f"key=a&from={oldest}")
        put(server, "a", "3")
        assert watch.next()[2]["value"] == "3"
        watch.close()


def test_a_long_poll_waits_for_a_change(server: ServerProcess) -> None:
    before = put(server, "poll/a", "1")
    at_once = ask(server, "GET", f"/kv?key=poll/a&index={before - 1}&wait=20s")
    assert at_once.body == b"1"
    writer = threading.Timer(0.2, put, (server, "poll/a", "2"))
    writer.start()
    changed = ask(server, "GET", f"/kv?key=poll/a&index={before}&wait=20s")
    writer.join()
    assert changed.body == b"2"
    index = changed.headers["x-conure-index"]
    assert ask(server, "GET", f"/kv?key=poll/a&index={index}&wait=50ms").body == b"2"
    assert ask(server, "GET", f"/kv?key=poll/none&index={index}&wait=50ms").status == 404


# -- once, sessions, locks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", "/kv?key=once/a&value=v", b""),
        ("DELETE", "/kv?key=once/a", b""),
        ("DELETE", "/kv?prefix=once/", b""),
        ("POST", "/kv/incr?key=once/n", b""),
        ("POST", "/kv/batch", b'{"key": "once/b", "value": "v"}'),
        ("POST", "/txn", b'{"success": [{"incr": {"key": "once/n"}}]}'),
        ("POST", "/session?ttl=1h", b""),
    ],
)
def test_a_repetition_is_answered_and_changes_nothing(
    server: ServerProcess, method: str, target: str, body: bytes
) -> None:
    name = f"{method} {target}"
    first = ask(server, method, target, body, Idempotency_Key=name)
    put(server, "once/a", "another")
    second = ask(server, method, target, body, Idempotency_Key=name)
    assert first.status == second.status == 200
    assert first.headers["x-conure-index"] == second.headers["x-conure-index"]
    assert first.body in (second.body, second.body.replace(b', "repeated": true', b""))
    assert value(server, "once/a") == b"another"
    other = ask(server, method, target, body + b" ", Idempotency_Key=name)
    assert other.status == 422


def test_a_refusal_is_repeated_too(server: ServerProcess) -> None:
    put(server, "once/word", "word")
    answers = []
    for _ in range(2):
        answers.append(ask(server, "POST", "/kv/incr?key=once/word", Idempotency_Key="refused"))
        put(server, "once/word", "1")
    first, second = answers
    assert first.status == second.status == 409
    assert first.body == second.body
    assert first.headers["x-conure-index"] == second.headers["x-conure-index"]


def test_a_lock_has_one_holder_and_a_growing_token(server: ServerProcess) -> None:
    mine, yours = session(server), session(server)

    def lock(how: str, who: str) -> Answer:
        return ask(server, "PUT", f"/kv?key=lock/a&value=v&{how}={who}")

    first = lock("acquire", mine)
    token = int(first.headers["x-conure-fencing-token"])
    assert lock("acquire", mine).headers["x-conure-fencing-token"] == str(token)
    assert lock("acquire", yours).status == 409
    assert lock("release", yours).status == 409
    shown = asked(server, "GET", "/kv?key=lock/a&meta=true")
    assert (shown["session"], shown["fencing_token"]) == (mine, token)
    put(server, "lock/a", "anybody may")  # advice, not protection
    assert asked(server, "GET", "/kv?key=lock/a&meta=true")["session"] == mine
    assert lock("release", mine).status == 200
    assert int(lock("acquire", yours).headers["x-conure-fencing-token"]) > token


def test_a_session_ends_and_lets_go(server: ServerProcess) -> None:
    keeps, deletes = session(server), session(server, "&behavior=delete&name=w%C3%A4chter")
    put(server, "held/a", "v", f"&acquire={keeps}")
    put(server, "held/b", "v", f"&acquire={deletes}")
    shown = asked(server, "GET", f"/session?id={deletes}")
    assert (shown["name"], shown["behavior"], shown["ttl"]) == ("wächter", "delete", 3600.0)
    for one in (keeps, deletes):
        assert ask(server, "PUT", f"/session?id={one}").body == b"OK\n"
        assert ask(server, "DELETE", f"/session?id={one}").body == b"OK\n"
        for method in ("GET", "PUT", "DELETE"):
            assert ask(server, method, f"/session?id={one}").status == 404
        assert ask(server, "PUT", f"/kv?key=held/c&acquire={one}").status == 404
    assert value(server, "held/a") == b"v"
    assert value(server, "held/b") is None


def test_a_session_that_is_not_renewed_ends(server: ServerProcess) -> None:
    one = asked(server, "POST", "/session?ttl=200ms&behavior=delete")["id"]
    watch = Watch(server, "key=held/brief")
    put(server, "held/brief", "v", f"&acquire={one}")
    assert [watch.next()[0], watch.next()[0]] == ["put", "expire"]
    assert ask(server, "PUT", f"/session?id={one}").status == 404
    watch.close()


# -- bounds ----------------------------------------------------------------------------------------


def test_long_reads_are_bounded(server: ServerProcess) -> None:
    record = b'{"key": "bound/%d", "value": "' + b"v" * 100_000 + b'"}'
    for start in (0, 100):
        lines = b"\n".join(record % n for n in range(start, start + 100))
        assert ask(server, "POST", "/kv/batch", lines).status == 200
    readers = []
    for _ in range(2):  # ask for more than sockets hold, and read none of it
        reader = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        accept = {"Accept": "application/x-ndjson"}
        reader.request("GET", "/kv?prefix=bound/", headers=accept)
        readers.append((reader, reader.getresponse()))
    refused = ask(server, "GET", "/kv/count")
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    for reader, response in readers:
        assert response.read().count(b"\n") == 200
        reader.close()
    deadline = time.monotonic() + 10
    while ask(server, "GET", "/kv/count").status == 429:
        assert time.monotonic() < deadline


def test_request_ids_come_back_and_slow_requests_are_logged(server: ServerProcess) -> None:
    answer = ask(server, "GET", "/kv?prefix=range/", X_Request_Id="trace-me")
    assert answer.headers["x-request-id"] == "trace-me"
    one = session(server)
    ask(server, "PUT", f"/session?id={one}", X_Request_Id="slow-one")
    deadline = time.monotonic() + 10
    while "slow: " not in server.text:
        assert time.monotonic() < deadline
        ask(server, "PUT", f"/session?id={one}", X_Request_Id="slow-one")
        time.sleep(0.05)


# -- what is refused -------------------------------------------------------------------------------

TXN = '{"success": [%s]}'


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "says"),
    [
        ("GET", "/kv", "", 400, "key is missing"),
        ("GET", "/kv?key=a&prefix=b", "", 400, "no parameter 'prefix'"),
        ("GET", "/kv?prefix=a&from=b", "", 400, "without from and to"),
        ("GET", "/kv?prefix=a&limit=0", "", 400, "from 1 to"),
        ("GET", "/kv?prefix=a&limit=501", "", 400, "max_range_items"),
        ("GET", "/kv?prefix=a&limit=x", "", 400, "limit is 'x'"),
        ("GET", "/kv?prefix=a&lmit=1", "", 400, "no parameter 'lmit'"),
        ("GET", "/kv?prefix=" + "p" * 1025, "", 414, "1,024"),
        ("GET", "/kv?key=a&wait=1s", "", 400, "index"),
        ("GET", "/kv?key=a&index=1&wait=601s", "", 400, "600s"),
        ("GET", "/kv?key=a&index=-1", "", 400, "index is '-1'"),
        ("GET", "/kv?key=a&meta=yes", "", 400, "meta is 'yes'"),
        ("GET", "/kv/count?key=a", "", 400, "no parameter 'key'"),
        ("PUT", "/kv?key=a&ttl=0", "v", 400, "1 ms at least"),
        ("PUT", "/kv?key=a&ttl=-5", "v", 400, "a ttl is 1 ms at least"),
        ("PUT", "/kv?key=a&ttl=5y", "v", 400, "duration"),
        ("PUT", "/kv?key=a&ttl=4000d", "v", 400, "3650 days"),
        ("PUT", "/kv?key=a&ttl=1s&keepttl=true", "v", 400, "exclude"),
        ("PUT", "/kv?key=a&acquire=", "v", 400, "acquire is ''"),
        ("PUT", "/kv?key=a&release=x", "v", 400, "release is 'x'"),
        ("PUT", "/kv?key=a&cas=x", "v", 400, "cas is 'x'"),
        ("PUT", "/kv?key=a&tll=5s", "v", 400, "no parameter 'tll'"),
        ("DELETE", "/kv?prefix=a&cas=1", "", 400, "no parameter 'cas'"),
        ("POST", "/kv/incr?key=a&by=1.5", "", 400, "by is '1.5'"),
        ("POST", "/kv/incr?by=1", "", 400, "key is missing"),
        ("POST", "/kv/touch?key=a", "", 400, "ttl is missing"),
        ("POST", "/session", "", 400, "ttl is missing"),
        ("POST", "/session?ttl=1s&behavior=stay", "", 400, "release or delete"),
        ("POST", "/session?ttl=1s&name=" + "n" * 1025, "", 414, "1,024"),
        ("GET", "/session?id=" + "x" * 300, "", 400, "id is"),
        ("POST", "/kv/batch", "", 400, "empty"),
        ("POST", "/kv/batch", '{"key": "a", "value": "v", "tll": 1}', 400, "line 1 has no field"),
        ("POST", "/kv/batch", '{"key": "a", "value": "v", "ttl": 0}', 400, "1 ms at least"),
        ("POST", "/kv/batch", '{"key": "", "value": "v"}', 400, "line 1: the key is empty"),
        ("POST", "/kv/batch", '{"key": "a", "delete": true, "value": "v"}', 400, "no sense"),
        ("POST", "/kv/batch", "[]", 400, "line 1 has to be an object"),
        ("POST", "/kv/batch", '{"key": "%s", "value": "v"}' % ("k" * 1025), 413, "1,024"),
        ("POST", "/txn", "{", 400, "not JSON"),
        ("POST", "/txn", "{}", 400, "does nothing"),
        ("POST", "/txn", '{"succes": []}', 400, "no field 'succes'"),
        ("POST", "/txn", TXN % '{"put": {"key": "a"}}', 400, "success[0].put: value is missing"),
        ("POST", "/txn", TXN % '{"get": {"key": "a"}, "put": {}}', 400, "one of put"),
        ("POST", "/txn", TXN % '{"touch": {"key": "a"}}', 400, "ttl is missing"),
        ("POST", "/txn", TXN % '{"range": {"prefix": "a", "limit": 501}}', 400, "1 to 500"),
        ("POST", "/txn", TXN % '{"get": {"key": "a", "encoding": null}}', 400, "base64"),
        ("POST", "/txn", TXN % '{"delete": {}}', 400, "prefix, or from and to"),
        (
            "POST", "/txn", TXN % ", ".join(['{"range": {"prefix": "a"}}'] * 6), 413,
            "max_range_items",
        ),
        (
            "POST", "/txn", TXN % ", ".join(['{"get": {"key": "a"}}'] * 129), 413, "up to 128",
        ),
        (
            "POST", "/txn", TXN % '{"incr": {"key": "a"}}, {"delete": {"prefix": ""}}', 400,
            "deletes a range",
        ),
        (
            "POST", "/txn", '{"compare": [{"key": "a", "version": 1, "relation": []}]}', 400,
            "relation is a list",
        ),
        ("GET", "/watch?key=a&prefix=b", "", 400, "one key, or"),
        ("GET", "/watch?key=a&from=0", "", 400, "from is '0'"),
        ("GET", "/watch?keys=a", "", 400, "no parameter 'keys'"),
        ("GET", "/backup?full=1", "", 400, "no parameter 'full' here; there are: none"),
        ("POST", "/kv", "", 405, "use DELETE or GET or HEAD or PUT"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_and_says_why(
    server: ServerProcess, method: str, target: str, body: str, status: int, says: str
) -> None:
    answer = ask(server, method, target, body.encode())
    assert (answer.status, says in answer.body.decode()) == (status, True), answer
    assert value(server, "a") is None


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("DELETE", "/kv?prefix=refused/", b""),
        ("POST", "/kv/incr?key=refused/a", b""),
        ("POST", "/kv/touch?key=refused/a&ttl=1s", b""),
        ("POST", "/kv/batch", b'{"key": "refused/a", "value": "v"}'),
        ("POST", "/txn", b'{"success": [{"delete": {"key": "refused/a"}}]}'),
        ("POST", "/session?ttl=1s", b""),
    ],
)
def test_a_condition_that_would_not_be_looked_at_is_refused(
    server: ServerProcess, method: str, target: str, body: bytes
) -> None:
    put(server, "refused/a", "1")
    answer = ask(server, method, target, body, If_Match='"1"')
    assert answer.status == 400
    assert b"If-Match" in answer.body
    assert value(server, "refused/a") == b"1"


@pytest.mark.parametrize(
    "headers", [{"If_Match": "x"}, {"If_None_Match": '"a"'}, {"Idempotency_Key": "k" * 129}]
)
def test_bad_header_fields_are_refused(server: ServerProcess, headers: dict[str, str]) -> None:
    assert ask(server, "PUT", "/kv?key=a", b"v", **headers).status == 400


def test_an_event_id_of_another_kind_is_refused(server: ServerProcess) -> None:
    assert ask(server, "GET", "/watch?key=a", Last_Event_ID="abc").status == 400


@pytest.mark.parametrize("path", ["/backup", "/watch", "/kv?prefix=range/", "/kv/count"])
def test_head_is_get_without_the_body(server: ServerProcess, path: str) -> None:
    answer = ask(server, "HEAD", path)
    assert (answer.status, answer.body) == (200, b"")


# -- the page --------------------------------------------------------------------------------------


def console(text: str) -> list[tuple[str, str]]:
    """Return the commands of the console blocks, each with what is shown below it."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            # A command goes on while a quote is open or an & or \ ends the line.
            count = 1
            while "".join(lines[:count]).count("'") % 2 or lines[count - 1].endswith(
                ("&\n", "\\\n")
            ):
                count += 1
            found.append(("".join(lines[:count]), "".join(lines[count:])))
    return found


def normalised(output: str) -> str:
    for pattern, instead in (
        (r"event: progress\nid: .*\ndata: .*\n\n", ""),
        (r"\b[0-9a-f]{32}\b", "<id>"),
        (r"\b\d{1,4}\.\d{1,3}\b", "<seconds>"),
        (r"\d{4}-\d\d-\d\dT[\d:]{8}Z", "<time>"),
        (r"\r", ""),
    ):
        output = re.sub(pattern, instead, output)
    return output.strip()


@needs_curl
def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    steps = console(PAGE.read_text())
    assert len(steps) > 50
    environ = {
        **os.environ,
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "LC_ALL": "C",
    }
    with running(tmp_path / "data", "--bootstrap", "--rest-addr=127.0.0.1:0") as server:
        here = {
            "localhost:8080": f"127.0.0.1:{rest_port(server)}",
            "localhost:8081": f"127.0.0.1:{server.port}",
            "python3 conuredb.py": f"python3 {ROOT}/conuredb.py",
        }
        script = "".join(
            f"echo '<<{number}>>'\n{command}\nwait; echo\n"
            for number, (command, _) in enumerate(steps)
        )
        for ours, theirs in here.items():
            script = script.replace(ours, theirs)
        done = subprocess.run(
            ["bash", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environ,
            timeout=60,
            check=False,
        )
    printed = re.split(r"^<<\d+>>$", done.stdout.decode(), flags=re.MULTILINE)[1:]
    assert len(printed) == len(steps)
    for (command, shown), output in zip(steps, printed, strict=True):
        assert normalised(output) == normalised(shown), command
