"""What may happen to the server's process at any moment: a signal, a lack of open files."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from config import load
from conuredb import Process
from tests.process import ROOT, running, wait_until


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
    broken = "import httpserver\ndef drain(*_): raise RuntimeError('a bug of ours')\n"
    script = altered(tmp_path, broken + "httpserver.HTTPServer.drain = drain")
    with running(tmp_path / "data", script=script) as server:
        assert server.put("k", b"v").status == 200
        assert server.terminate() == 1
        assert "a bug of ours" in server.text
    with running(tmp_path / "data") as server:
        assert server.get("k").body == b"v"
