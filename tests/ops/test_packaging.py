"""What is made to be installed: the wheel in an environment of its own, and the archive.

No network is asked: the tools of requirements-dev.txt build the wheel, and PyYAML is the one of
this environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from conure import VERSION
from tests.lab.process import ROOT, ServerProcess, command_lines, running, wait_until
from tests.test_imports import FILES, STEP
from tests.test_oldpython import AS_AN_OLD_ONE, WORDS

MAKE = ROOT / "tools" / "packages.py"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
TRAVELLERS = {f"conure/_step/{name}.py" for name in STEP}
CODE = TRAVELLERS | {
    str(path.relative_to(ROOT)) for name, path in FILES.items() if name not in STEP
}
"""Every file of ours, where a wheel has it."""


def run(*command: str | Path, cwd: Path, status: int = 0, environ: Mapping[str, str] = {}) -> str:
    """Run a command as a user would, far from the clone; return what it says."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, check=False, timeout=90, cwd=cwd, env={**CLEAN, **environ},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_server(
    server: ServerProcess, *shell: str | Path, cwd: Path, environ: Mapping[str, str] = {}
) -> None:
    assert server.request("GET", "/livez").status == 200
    assert (
        run(*shell, f"--server={server.url}", "put", "k", "v", cwd=cwd, environ=environ) == "OK\n"
    )
    assert run(*shell, f"--server={server.url}", "get", "k", cwd=cwd, environ=environ) == "v"


def check_workers(data: Path, root: Path, script: Path, **started: Any) -> None:
    """Let the LSM engine flush and merge by processes that import from *root*; then kill all."""
    small = ("--engine=lsm", "--max-mem-size=64KiB", "--checkpoint-entries=100")
    lines = [b'{"key": "%d", "value": "%s"}' % (key, b"v" * 1000) for key in range(100)]
    with running(data, "--bootstrap", *small, script=script, **started) as server:

        def has_merged() -> bool:
            assert server.request("POST", "/kv/batch", b"\n".join(lines)).status == 200
            return server.metric("conure_lsm_compactions_total") >= 1

        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        wait_until(has_merged)
        assert server.metric("conure_lsm_flushes_total") >= 4
        workers = server.workers()
        assert list(workers.values()) == [str(root)] * 2
        assert "conure.lsm" not in server.text  # nothing was lost, or done in the server
        server.kill()
        wait_until(lambda: not workers.keys() & command_lines().keys())
    with running(data, "--bootstrap", script=script, **started) as server:
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        assert server.get("99").body == b"v" * 1000


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment into which the wheel was installed, and nothing else."""
    place = tmp_path_factory.mktemp("wheel")
    run(sys.executable, MAKE, "wheel", f"--to={place}", cwd=place)
    home = place / "env"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=place)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
    options = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    run(*pip, "install", *options, *place.glob("*.whl"), cwd=place)
    return home / "bin"


def test_a_wheel_brings_one_name(tmp_path: Path, installed: Path) -> None:
    python = installed / "python"
    (site,) = installed.parent.glob("lib/python*/site-packages")
    assert {each.name for each in site.iterdir()} == {"conure", f"conuredb-{VERSION}.dist-info"}
    assert {str(path.relative_to(site)) for path in site.rglob("*.py")} == CODE
    assert (site / "conure" / "py.typed").exists()
    for name in STEP:
        said = run(python, "-c", f"import {name}", cwd=tmp_path, status=1)
        assert said.endswith(f"No module named '{name}'\n")
    client = "import sys, conure.client; print(*sys.modules)"
    imported = run(python, "-c", client, cwd=tmp_path).split()
    assert "conure.client" in imported
    assert not {*STEP, "conure.commandline"} & set(imported)


def test_its_commands_find_what_is_theirs(tmp_path: Path, installed: Path) -> None:
    """Whatever other modules of these names there are."""
    for name in STEP:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is another one')\n")
    others = {"PYTHONPATH": f"{tmp_path}:{Path(yaml.__file__).parent.parent}"}
    (tmp_path / "config.yaml").write_text("node_id: packed\n")
    data = tmp_path / "data"
    server, shell = installed / "conuredb", installed / "conuresh"
    assert run(server, "--version", cwd=tmp_path, environ=others).startswith(f"ConureDB {VERSION} ")
    itself = ["sh", "-c", f'cd {tmp_path} && shift && exec "$@"', "sh"]  # by its own first line
    flags = ["--config=config.yaml", "--bootstrap"]
    with running(data, *flags, script=server, wrapper=itself, environ=others) as process:
        check_server(process, shell, cwd=tmp_path, environ=others)
        assert json.loads(process.request("GET", "/status").body)["node_id"] == "packed"
        assert process.terminate() == 0
    assert run(server, "check", data, cwd=tmp_path, environ=others)
    ctl = run(installed / "kvctl", f"--data-dir={data}", "get", "k", cwd=tmp_path, environ=others)
    assert ctl == "v"
    job = f"{installed}/python -m conure.ops.scaling begin --peers=none --witness=none"
    begin = ["sh", "-c", f'cd / && shift 2 && exec {job} --data-dir={data} -- "$@"', "sh"]
    with running(data, "--node-id=packed", script=server, wrapper=begin) as process:
        assert process.get("k").body == b"v"


def test_the_workers_of_the_wheel_start_merge_and_end_with_it(
    tmp_path: Path, installed: Path
) -> None:
    (site,) = installed.parent.glob("lib/python*/site-packages")
    itself = ["sh", "-c", 'shift && exec "$@"', "sh"]  # by its own first line
    check_workers(tmp_path / "data", site, installed / "conuredb", wrapper=itself)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file."""
    place = tmp_path_factory.mktemp("pyz")
    run(sys.executable, MAKE, "pyz", f"--to={place}", cwd=place)
    return place / "conuredb.pyz"


def test_the_workers_of_the_archive_start_merge_and_end_with_it(
    tmp_path: Path, archive: Path
) -> None:
    check_workers(tmp_path / "data", archive, archive)


def test_the_archive_is_the_server_and_the_shell(tmp_path: Path, archive: Path) -> None:
    assert os.access(archive, os.X_OK)
    packed = {name for name in zipfile.ZipFile(archive).namelist() if name.endswith(".py")}
    assert packed == {name.removeprefix("conure/_step/") for name in CODE} | {"__main__.py"}
    said = run(sys.executable, archive, "--version", cwd=tmp_path)
    assert said.startswith(f"ConureDB {VERSION} ")
    with running(tmp_path / "data", "--bootstrap", script=archive) as server:
        check_server(server, sys.executable, archive, "sh", cwd=tmp_path)
        assert server.terminate() == 0
    assert run(sys.executable, archive, "check", tmp_path / "data", cwd=tmp_path)
    ctl = (archive, "kvctl", f"--data-dir={tmp_path / 'data'}")
    assert run(sys.executable, *ctl, "get", "k", cwd=tmp_path) == "v"
    old = f"{AS_AN_OLD_ONE} import runpy; runpy.run_path({str(archive)!r}, None, '__main__')"
    assert run(sys.executable, "-c", old, cwd=tmp_path, status=2) == f"conuredb.pyz: {WORDS}"
