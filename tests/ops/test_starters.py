"""What ``make build`` writes: bin/server and bin/kvctl, started from anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conure import VERSION
from tests.lab.process import ROOT, resp_port, running, wait_until

CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CONURE_"))
}
UNMADE = {name: value for name, value in CLEAN.items() if not name.startswith("MAKE")}
"""As if no make had started the tests."""

ELSEWHERE = ("sh", "-c", 'cd / && shift && exec "$@"', "sh")
"""Starts what stands behind a Python, by its own first line and in another directory."""

OWN = ("--api-addr=127.0.0.1:0", "-tcp-addr=127.0.0.1:0", "-metrics-addr", "127.0.0.1:0")


@pytest.fixture(scope="module")
def bin_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("starters") / "bin"
    make = [sys.executable, str(ROOT / "tools" / "starters.py"), f"--to={place}"]
    subprocess.run(make, cwd="/", check=True)
    return place


def run(
    *words: object, cwd: Path, stdin: bytes = b"", **environ: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        list(map(str, words)), input=stdin, capture_output=True, check=False, timeout=60, cwd=cwd,
        env={**CLEAN, **environ},
    )  # fmt: skip


def test_the_server_has_the_profile_and_ends_by_signals(bin_: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data, *OWN, script=bin_ / "server", wrapper=ELSEWHERE) as server:
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        status = json.loads(server.request("GET", "/status").body)
        assert (status["engine"], status["node_id"]) == ("lsm", "node1")
        assert resp_port(server)
        assert server.terminate(signal.SIGTERM) == 0
    assert run(bin_ / "server", "check", data, cwd=tmp_path).returncode == 0


def test_its_exit_status_is_the_server_s(bin_: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(bin_ / "server", "-nonsense", cwd=tmp_path).returncode == 2
    assert run(bin_ / "server", "check", tmp_path / "nothing", cwd=tmp_path).returncode == 1
    said = run(bin_ / "server", "--version", cwd=tmp_path)
    assert (said.returncode, said.stdout.split()[:2]) == (0, [b"ConureDB", VERSION.encode()])
    assert b"-http-addr :8080" in run(bin_ / "server", "-h", cwd=tmp_path).stdout


def test_words_with_spaces_stay_whole(bin_: Path, tmp_path: Path) -> None:
    said = run(bin_ / "server", "-data-dir", "", "-node-id", "a  b", cwd=tmp_path)
    assert said.returncode == 2
    assert b"'a  b'" in said.stderr


def test_the_environment_may_name_another_profile(bin_: Path, tmp_path: Path) -> None:
    flags = ("-http-addr=:1", "-api-addr=:2")
    said = run(bin_ / "server", *flags, cwd=tmp_path, CONURE_PROFILE="")
    assert b"flag --http-addr says it, too" in said.stderr, "both are the API's without a profile"


def test_a_link_will_do_and_a_python_on_the_path(bin_: Path, tmp_path: Path) -> None:
    link = tmp_path / "kv server"
    link.symlink_to(bin_ / "server")
    assert run(link, "--version", cwd=tmp_path).returncode == 0
    text = (bin_ / "server").read_text().replace("/.venv/bin/python", "/.no-venv/bin/python")
    alone = tmp_path / "alone"
    alone.write_text(text)
    alone.chmod(0o755)
    stand_in = tmp_path / "python3"
    stand_in.write_text('#!/bin/sh\necho "$CONURE_PROFILE $*"\nexit 7\n')
    stand_in.chmod(0o755)
    said = run(alone, "a", cwd=tmp_path, PATH=f"{tmp_path}:{CLEAN['PATH']}")
    assert (said.returncode, said.stdout) == (7, f"kvstore {ROOT}/conuredb.py a\n".encode())


def test_kvctl_talks_to_the_server(bin_: Path, tmp_path: Path) -> None:
    (tmp_path / "conure").mkdir()  # what stands in the working directory is nobody's business
    (tmp_path / "conure" / "__init__.py").write_text("raise RuntimeError('this is another one')")
    with running(tmp_path / "data", *OWN, script=bin_ / "server", wrapper=ELSEWHERE) as server:
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        address = f"--addr=127.0.0.1:{resp_port(server)}"
        put = run(bin_ / "kvctl", address, "put", "k", "-", cwd=tmp_path, stdin=b"from a pipe")
        assert put.returncode == 0, put.stderr
        got = run(bin_ / "kvctl", address, "get", "k", cwd=tmp_path)
        assert (got.returncode, got.stdout.strip()) == (0, b"from a pipe")
        assert run(bin_ / "kvctl", address, "get", "nothing", cwd=tmp_path).returncode == 1
        assert run(bin_ / "kvctl", address, "fetch", cwd=tmp_path).returncode == 2


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_builds_and_cleans_what_git_ignores() -> None:
    def plan(target: str) -> str:
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env=UNMADE, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert plan("build") == "python3 tools/starters.py\n"
    assert re.search(r"^rm -rf .* bin ", plan("clean"), re.MULTILINE)
    assert "bin/" in (ROOT / ".gitignore").read_text().splitlines()
