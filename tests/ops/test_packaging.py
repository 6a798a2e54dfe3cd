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

import pytest
import yaml

from conure import VERSION
from tests.lab.process import ROOT, ServerProcess, running
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
    job = f"{installed}/python -m conure.ops.scaling begin --peers=none --witness=none"
    begin = ["sh", "-c", f'cd / && shift 2 && exec {job} --data-dir={data} -- "$@"', "sh"]
    with running(data, "--node-id=packed", script=server, wrapper=begin) as process:
        assert process.get("k").body == b"v"


def test_the_archive_is_the_server_and_the_shell(tmp_path: Path) -> None:
    run(sys.executable, MAKE, "pyz", f"--to={tmp_path}", cwd=tmp_path)
    archive = tmp_path / "conuredb.pyz"
    assert os.access(archive, os.X_OK)
    packed = {name for name in zipfile.ZipFile(archive).namelist() if name.endswith(".py")}
    assert packed == {name.removeprefix("conure/_step/") for name in CODE} | {"__main__.py"}
    said = run(sys.executable, archive, "--version", cwd=tmp_path)
    assert said.startswith(f"ConureDB {VERSION} ")
    with running(tmp_path / "data", "--bootstrap", script=archive) as server:
        check_server(server, sys.executable, archive, "sh", cwd=tmp_path)
        assert server.terminate() == 0
    assert run(sys.executable, archive, "check", tmp_path / "data", cwd=tmp_path)
    old = f"{AS_AN_OLD_ONE} import runpy; runpy.run_path({str(archive)!r}, None, '__main__')"
    assert run(sys.executable, "-c", old, cwd=tmp_path, status=2) == f"conuredb.pyz: {WORDS}"
