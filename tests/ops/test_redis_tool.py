"""tools/redis_check.py, with a suite that stands for Redis' own tests: what is told of it, and that
a failure is one. The real ones need the source of redis: CONTRIBUTING.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.process import ROOT

RUNTEST = f"""#!{sys.executable}
import socket, sys
place = sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1])
(unit,) = [word for word in sys.argv if word.startswith("unit/")]
left_out = open(sys.argv[sys.argv.index("--skipfile") + 1]).read().splitlines()
assert open("tests/here").read() == "yes"
with socket.create_connection(place) as client:
    client.sendall(b"SET ran " + unit.encode() + b"\\r\\n")
    good = client.recv(100) == b"+OK\\r\\n"
print("\\033[0;32m[ok]\\033[0m: a test" if good else "[err]: no answer")
print("[skip]: one" if "SETBIT fuzzing" in left_out else "[err]: nothing is left out")
if unit == "unit/broken":
    print("[err]: two is not three")
    print("the rest of it")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder that is to the tool what the source of redis is."""
    (tmp_path / "redis" / "tests").mkdir(parents=True)
    (tmp_path / "redis" / "tests" / "here").write_text("yes")
    (tmp_path / "redis" / "runtest").write_text(RUNTEST)
    (tmp_path / "redis" / "runtest").chmod(0o755)
    return tmp_path / "redis"


def check(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "redis_check.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_each_unit_is_told(source: Path) -> None:
    done = check(source, "type/string", "broken", "quit")
    assert done.stdout.splitlines() == [
        "ok      unit/type/string: 1 passed, 0 failed, 1 left out",
        "failed  unit/broken: 1 passed, 1 failed, 1 left out",
        "        [err]: two is not three",
        "        the rest of it",
        "ok      unit/quit: 1 passed, 0 failed, 1 left out",
    ]
    assert done.returncode == 1
    assert check(source).returncode == 0


def test_a_program_has_the_address_and_its_status_counts(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\nprint(sys.argv[1], os.environ['REDIS_SKIP'])\n"
        "sys.exit(int(sys.argv[3]))\n"
    )
    program.chmod(0o755)
    done = check(program, "7")
    assert done.stdout == f"127.0.0.1 {ROOT / 'tests/resp/redis-skip.txt'}\n"
    assert done.returncode == 7


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 1
    assert "is no source of redis" in done.stderr
