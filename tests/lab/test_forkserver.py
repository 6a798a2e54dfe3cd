"""forkserver.py: a fork of the helper is to a test what a new interpreter would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import forkserver
from tests.lab.process import ROOT, ServerProcess, wait_until

TELL = """
import json, os, signal, sys, threading
facts = {
    "argv": sys.argv[1:],
    "path": sys.path[0],
    "cwd": os.getcwd(),
    "environ": dict(os.environ),
    "leads": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "files": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:3],
    "many": len(os.listdir("/proc/self/fd")),
    "signals": [str(signal.getsignal(n)) for n in range(1, 32)],
    "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "name": __name__,
    "main": [sys.modules["__main__"].__file__, vars(sys.modules["__main__"]) is globals()],
    "threads": threading.active_count(),
    "read": sys.stdin.buffer.read().decode(),
}
print(json.dumps(facts))
sys.stderr.write("to standard error")
sys.exit(7)
"""


THREAD = """
import sys, threading, time
threading.Thread(target=lambda: (time.sleep(0.05), sys.stderr.write('late'))).start()
"""


@pytest.fixture(name="script")
def _script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_it_runs_in_what_an_exec_would_give_it(
    script: Callable[[str], Path], tmp_path: Path
) -> None:
    path = script(TELL)
    arguments = ["one", "two words", os.fsdecode(b"\xff")]
    environ = {**os.environ, "CONURE_X": "ä", "Y": os.fsdecode(b"\xfe")}
    here = forkserver.run([path, *arguments], input=b"sent", cwd=tmp_path, environ=environ)
    there = subprocess.run(
        [sys.executable, path, *arguments],
        input=b"sent", cwd=tmp_path, env=environ, capture_output=True, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert (here.returncode, here.stderr) == (there.returncode, there.stderr)
    assert here.returncode == 7
    assert json.loads(here.stdout) == json.loads(there.stdout)


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [
        ("pass", 0, b""),
        ("raise SystemExit('why')", 1, b"why\n"),
        ("raise ValueError('why')", 1, b"ValueError: why\n"),
        ("import os; os._exit(3)", 3, b""),
        ("import os; os.abort()", -signal.SIGABRT, b""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, b""),
        ("raise KeyboardInterrupt", -signal.SIGINT, b"KeyboardInterrupt\n"),
        ("import atexit, sys; atexit.register(sys.stderr.write, 'late')", 0, b"late"),
        (THREAD, 0, b"late"),
    ],
)
def test_it_ends_as_an_interpreter_ends(
    script: Callable[[str], Path], text: str, status: int, told: bytes
) -> None:
    done = forkserver.run([script(text)])
    assert done.returncode == status
    assert done.stderr.endswith(told)
    assert bool(done.stderr) == bool(told)


def test_no_two_of_them_draw_the_same_random_numbers(script: Callable[[str], Path]) -> None:
    path = script("import random, uuid; print(random.random(), uuid.uuid4())")
    drawn = {word for _ in range(4) for word in forkserver.run([path]).stdout.split()}
    assert len(drawn) == 8


def test_what_one_has_changed_the_next_one_does_not_see(script: Callable[[str], Path]) -> None:
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    change = f"{path}; from conure.cluster import node; node.Node = None"
    assert forkserver.run([script(change)]).returncode == 0
    look = f"{path}; from conure.cluster import node; node.Node.open"
    assert forkserver.run([script(look)]).returncode == 0


def test_who_does_not_end_in_time_is_killed(script: Callable[[str], Path], tmp_path: Path) -> None:
    path = script("import os, signal; open('pid', 'w').write(str(os.getpid())); signal.pause()")
    with pytest.raises(subprocess.TimeoutExpired):
        forkserver.run([path], cwd=tmp_path, timeout=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_process_stays_a_zombie_until_it_is_waited_for(script: Callable[[str], Path]) -> None:
    """Its ID is nobody else's as long as a test may send it a signal."""
    child = forkserver.spawn([script("")], cwd=ROOT, env=os.environ)
    stat = Path(f"/proc/{child.pid}/stat")
    wait_until(lambda: ") Z " in stat.read_text())
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == 0
    assert not stat.exists()
    assert child.poll() == child.wait() == 0
    assert child.stderr is not None
    child.stderr.close()


def test_nothing_is_left_behind_by_tests_that_were_killed(
    script: Callable[[str], Path], tmp_path: Path
) -> None:
    waits = script(f"""
        import os, pathlib, signal, subprocess
        subprocess.Popen(["sleep", "600"])
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
        signal.pause()
    """)
    code = (
        "import os, sys; from pathlib import Path; from tests.lab import forkserver\n"
        "child = forkserver.spawn(sys.argv[1:], cwd=Path('/'), env=os.environ)\n"
        f"while not Path({str(tmp_path / 'pid')!r}).exists(): pass\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, waits], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    session = int((tmp_path / "pid").read_text())

    def is_gone() -> bool:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone)


def test_a_server_that_has_only_just_been_started_can_be_killed(tmp_path: Path) -> None:
    """It has no session of its own yet, which could be killed as a whole."""
    for number in range(10):
        server = ServerProcess(tmp_path / str(number))
        server.kill()
        assert server.process.poll() == -signal.SIGKILL


def test_servers_are_forks_unless_only_a_new_interpreter_will_do(tmp_path: Path) -> None:
    chosen = []
    for number, options in enumerate(
        ({}, {"environ": {"CONURE_NODE_ID": "n"}}, {"environ": {"LD_PRELOAD": ""}},
         {"wrapper": ["env"]}, {"fresh": True})
    ):  # fmt: skip
        server = ServerProcess(tmp_path / str(number), **options)  # type: ignore[arg-type]
        try:
            server.wait_until_listening()
            chosen.append(isinstance(server.process, forkserver.Child))
            assert server.request("GET", "/livez").status == 200
        finally:
            server.kill()
    assert chosen == [True, True, False, False, False]
