"""What may happen to the server's process at any moment: a signal, a lack of open files."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from conure.config import load
from conuredb import Process
from tests.lab.process import ROOT, running, wait_until


def altered(tmp_path: Path, change: str) -> Path:
    """A script that runs the server after a change."""
    script = tmp_path / "altered.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"{change}\nimport conuredb\nsys.exit(conuredb.main(sys.argv[1:]))\n"
    )
    return script


def test_a_signal_at_any_moment_of_the_wait_is_heard() -> None:
    """A handler runs between any two lines of the main thread, whatever lock that one holds."""
    process = Process(load(["--bootstrap"], {}))
    signals = 0

    def interrupt(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal signals
        signals += 1
        process._on_signal(signal.SIGTERM, None)
        return interrupt

    def wait() -> None:
        sys.settrace(interrupt)
        process._wait_for_a_reason()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(10)
    assert signals > 1
    assert not waiting.is_alive()


def test_idle_clients_leave_the_node_the_files_it_needs(tmp_path: Path) -> None:
    limit, clients = 256, 400
    script = altered(
        tmp_path,
        f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * clients)), hard))
    data = tmp_path / "data"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            running(data, "--checkpoint-entries=3", "--log-segment-bytes=64KiB", script=script)
        )
        first = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        for _ in range(clients):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        for _ in range(20):  # log segments and checkpoints: each of them opens files
            head = b"PUT /kv?key=k HTTP/1.1\r\nHost: h\r\nContent-Length: 20000\r\n\r\n"
            first.sendall(head + bytes(20_000))
            assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert server.process.poll() is None
        wait_until(lambda: "max_connections is" in server.text)
    assert "can't go on" not in server.text


def test_a_stop_that_fails_ends_the_process_too(tmp_path: Path) -> None:
    broken = "from conure.http import server\ndef drain(*_): raise RuntimeError('a bug of ours')\n"
    script = altered(tmp_path, broken + "server.HTTPServer.drain = drain")
    with running(tmp_path / "data", script=script) as server:
        assert server.put("k", b"v").status == 200
        assert server.terminate() == 1
        assert "a bug of ours" in server.text
    with running(tmp_path / "data") as server:
        assert server.get("k").body == b"v"


def test_an_idle_node_takes_next_to_no_processor_time(tmp_path: Path) -> None:
    """Its own, which the other processes of a busy machine don't add to; and no less with clients
    that rest or watch."""
    with running(tmp_path) as server, socket.create_connection(("127.0.0.1", server.port)) as rest:
        assert server.put("k", b"v").status == 200
        rest.sendall(b"GET /watch?key=k HTTP/1.1\r\nHost: h\r\n\r\n")
        assert rest.recv(1000).startswith(b"HTTP/1.1 200 ")
        before = server.processor_seconds()
        time.sleep(2)  # the idleness itself
        assert server.processor_seconds() - before < 0.05 * 2


def test_data_is_nobody_elses_business(tmp_path: Path) -> None:
    script = altered(tmp_path, "import os; os.umask(0)")
    data = tmp_path / "data"
    with running(data, "--checkpoint-entries=3", "--log-segment-bytes=64KiB", script=script) as s:
        for number in range(20):
            assert s.put(f"k{number}", bytes(10_000)).status == 200
        assert s.terminate() == 0
    made = [data, *data.rglob("*")]
    assert {"LOCK", "conure.db", "identity.json", "raft", "state"} <= {path.name for path in made}
    assert {path: oct(path.stat().st_mode & 0o007) for path in made} == dict.fromkeys(made, "0o0")


def exchange(connection: socket.socket, data: bytes, end: bytes) -> bytes:
    """Send a request and return the answer, whose last bytes are *end*."""
    connection.sendall(data)
    answer = b""
    while not answer.endswith(end):
        part = connection.recv(1 << 20)
        assert part, answer
        answer += part
    return answer


def test_metrics_count_what_passes_the_server(tmp_path: Path) -> None:
    """Each figure beside what this test has done, and no two of them are the same by chance."""
    put = b"PUT /kv?key=k HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nvalue"
    page = b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    begin = b"GET /watch?key=k HTTP/1.1\r\nHost: h\r\n\r\n"

    def connected() -> socket.socket:
        address = ("127.0.0.1", server.port)
        return stack.enter_context(socket.create_connection(address, timeout=20))

    def figures() -> tuple[dict[str, float], int]:
        """What /metrics shows, and how long the answer was."""
        with connected() as connection:
            connection.sendall(page)
            answer = b"".join(iter(lambda: connection.recv(1 << 20), b""))
        lines = [line for line in answer.decode().splitlines() if line.startswith("conure_")]
        return {name: float(value) for name, value in map(str.split, lines)}, len(answer)

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(tmp_path, "--slow-request=1ms"))
        first, length = figures()
        assert first["conure_http_connections_accepted_total"] == 1
        assert first["conure_http_received_bytes_total"] == len(page)
        assert first["conure_http_sent_bytes_total"] == 0
        writer, nonsense, *watches = (connected() for _ in range(5))
        received = sum(len(exchange(writer, put, b"OK\n")) for _ in range(4))
        received += len(exchange(nonsense, b"nonsense\r\n\r\n", b"\n"))
        assert nonsense.recv(1) == b""
        nonsense.close()
        for watch in watches:
            exchange(watch, begin, b"\n\n\r\n")
        shown, _ = figures()
        sent = 4 * len(put) + len(b"nonsense\r\n\r\n") + 3 * len(begin) + 2 * len(page)
        assert shown["conure_http_received_bytes_total"] == sent
        assert length + received < shown["conure_http_sent_bytes_total"] < length + received + 2000
        assert shown["conure_http_connections_accepted_total"] == 7
        assert shown['conure_http_refused_total{code="400"}'] == 1
        assert shown["conure_http_requests_in_flight"] == 1
        assert shown["conure_http_streams"] == shown["conure_watches"] == 3
        assert shown["conure_http_streams_dropped_total"] == 0
        assert shown["conure_history_events"] == 4
        assert 4 * len(b"kvalue") < shown["conure_history_bytes"] < 4000
        assert shown["conure_history_floor_revision"] == 0  # nothing was forgotten yet

        def is_left_with_five() -> bool:  # the writer, the watches and the one that asks
            return figures()[0]["conure_http_connections"] == 5

        wait_until(is_left_with_five)

        def slow() -> int:
            return int(figures()[0]["conure_http_slow_requests_total"])

        while not slow():
            exchange(writer, put, b"OK\n")
            time.sleep(0.3)  # so few of them are logged one by one
        wait_until(lambda: slow() == server.text.count("slow: "))
