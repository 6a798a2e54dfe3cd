"""What the Dockerfile says, held to the code. The image itself is tried by tools/image_check.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conure import VERSION
from conure.config import load
from tests.lab.process import running

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r" *\\\n *", " ", (ROOT / "Dockerfile").read_text())


def instruction(name: str, stage: str = "production") -> list[str]:
    """Return the arguments of an instruction, wherever it occurs in a stage."""
    _, found, rest = DOCKERFILE.partition(f" AS {stage}\n")
    assert found
    text = re.split(r"^FROM ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def environment() -> dict[str, str]:
    (line,) = instruction("ENV")
    return dict(word.split("=", 1) for word in line.split())


def test_the_version_of_the_label_is_the_server_s() -> None:
    assert f"VERSION={VERSION}" in instruction("ARG")


def test_the_documented_line_listens_where_the_image_says() -> None:
    settings = load(["--node-id=node1", "--bootstrap"], environment())
    assert settings.http_addr.is_wildcard
    assert not settings.protected_mode  # its clients come from other addresses, all of them
    ports = {str(settings.http_addr.port), str(settings.raft_addr.port)}
    assert settings.resp_addr is None  # the third port is for whoever asks for RESP there
    assert settings.rest_addr is None  # and the fourth one for REST
    assert settings.metrics_addr is None  # and the fifth one for metrics alone
    others = load(["--profile=kvstore"], {})
    for address in (others.resp_addr, others.rest_addr, others.metrics_addr):
        assert address is not None
        ports.add(str(address.port))
    assert set(instruction("EXPOSE")[0].split()) == ports
    assert [settings.data_dir] == instruction("VOLUME")
    assert settings.ignored_environment == ()


def test_a_stop_is_over_before_docker_kills() -> None:
    assert load([], environment()).shutdown_timeout < 10


def test_the_build_sees_nothing_that_git_ignores() -> None:
    hidden = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert {name.removeprefix("**/") for name in hidden} >= ignored


@pytest.mark.parametrize("alive", [True, False])
def test_the_health_check_tells_a_live_server_from_none(tmp_path: Path, alive: bool) -> None:
    (line,) = instruction("HEALTHCHECK")
    shell, flag, command = json.loads(line.partition("CMD ")[2])
    assert (shell, flag) == ("sh", "-c")
    with running(tmp_path, "--bootstrap") as server:
        if alive:
            assert check_health(command, server.url) == 0
    if not alive:
        assert check_health(command, server.url) != 0


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["test"], "- -m pytest -n 2"),
        (["test", "-k", "a b"], "- -m pytest -n 2 -k a b"),
        (["--node-id=node1", "--bootstrap"], "set conuredb.py --node-id=node1 --bootstrap"),
        ([], "set conuredb.py"),
    ],
)
def test_the_image_for_developers_tells_tests_from_flags(
    tmp_path: Path, words: list[str], runs: str
) -> None:
    """Building it takes too long to be done each time (see tools/image_check.py --dev)."""
    stand_in = tmp_path / "python3"
    stand_in.write_text('#!/bin/sh\necho "${CONURE_DATA_DIR:--} $*"\n')
    stand_in.chmod(0o755)
    (line,) = instruction("ENTRYPOINT", "dev")
    said = subprocess.run(
        [*json.loads(line), *words],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONURE_DATA_DIR": "set"},
        capture_output=True,
        check=True,
    )
    assert said.stdout.decode() == f"{runs}\n"


def check_health(command: str, url: str) -> int:
    """Run the image's health check against a server of this machine."""
    assert "${CONURE_SERVER:-http://127.0.0.1:8081}" in command
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CONURE_SERVER": url}
    words = ["sh", "-c", command]
    return subprocess.run(words, cwd=ROOT, env=here, capture_output=True, check=False).returncode
