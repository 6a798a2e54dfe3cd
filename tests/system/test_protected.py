"""Protected mode between machines, which are network namespaces: who is served, and what becomes of
clusters that reach across.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, wait_until
from tests.lab.netns import Lab, why_not
from tests.lab.process import ROOT, running

GUARDED = "--protected-mode=true"


@pytest.fixture
def lab() -> Iterator[Lab]:
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.closing(Lab(3)) as lab:
        yield lab


def test_another_machine_is_answered_nothing_but_probes(lab: Lab, tmp_path: Path) -> None:
    fronts = ("resp", "rest", "metrics")
    with Cluster(tmp_path, lab=lab) as cluster:
        flags = (*[f"--{front}-addr=:{9000 + n}" for n, front in enumerate(fronts)], GUARDED)
        member = cluster.add(*flags)
        with lab.enter():
            member.start("--bootstrap")
            assert member.request("GET", "/livez").status == 200
            assert member.request("GET", "/readyz").status in (200, 503)
            for method, path in (("GET", "/status"), ("PUT", "/kv?key=a&value=b"), ("GET", "/")):
                refused = member.request(method, path)
                assert refused.status == 403
                assert b"--protected-mode=false" in refused.body
                assert b"--tls-client-ca" in refused.body
                assert b"--http-addr=127.0.0.1:8081" in refused.body
            for port, path in ((9001, "/a"), (9002, "/metrics")):
                connection = http.client.HTTPConnection(lab.address(1), port, timeout=10)
                connection.request("GET", path)
                assert connection.getresponse().status == 403
                connection.close()
            with socket.create_connection((lab.address(1), 9000), 10) as resp:
                resp.sendall(b"PING\r\n")
                assert resp.makefile("rb").read().startswith(b"-DENIED protected mode")
            with socket.create_connection((lab.address(1), 7001), 10) as raft:
                raft.settimeout(10)
                assert raft.recv(1) == b"", "the Raft port says nothing and closes"
        wait_until(lambda: "protected mode" in member.text)


@pytest.mark.skipif(not shutil.which("curl"), reason="each node is asked on its own machine")
def test_a_cluster_across_machines_goes_on_with_a_warning(lab: Lab, tmp_path: Path) -> None:
    """What was made before there was protected mode, restarted node by node with it."""

    def ask(number: int, *words: str) -> str:
        url = f"{cluster[number].url}/kv?{words[0]}"
        command = [*lab.wrapper(number), "curl", "-sS", *words[1:], url]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    with lab.enter(), Cluster(tmp_path, "--follower-mode=forward", lab=lab) as cluster:
        cluster.start(3)
        for number in (1, 2, 3):
            other = number % 3 + 1
            cluster[number].terminate()
            wait_until(lambda: ask(other, f"key=without&value={number}", "-XPUT") == "OK")  # noqa: B023
            cluster[number].launch(GUARDED)
            wait_until(lambda: ask(number, f"key=with&value={number}", "-XPUT") == "OK")  # noqa: B023
            assert "It goes on, as it has reached across machines before" in cluster[number].text
        assert [ask(number, "key=with") for number in (1, 2, 3)] == ["3"] * 3
        refused = cluster[1].request("GET", "/status")
        assert refused.status == 403


def test_a_new_cluster_across_machines_is_refused_at_once(tmp_path: Path) -> None:
    for name, flag in (
        ("seeds", "--seeds=http://10.78.1.2:8081"),
        ("seeds", "--seeds=10.78.1.2:7001"),
        ("peers", "--peers=10.78.1.2:7001,10.78.2.2:7001"),
    ):
        flags = ["--node-id=n1", "--raft-addr=127.0.0.1:0", f"--data-dir={tmp_path / 'd'}", flag]
        command = [sys.executable, str(ROOT / "conuredb.py"), *flags]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        line = done.stderr.splitlines()[-1]
        assert line.startswith(f"conuredb: {name} (flag ")
        for remedy in ("--cluster-secret-file", "--peer-tls-cert", "--protected-mode=false"):
            assert remedy in line
        assert not (tmp_path / "d").exists(), "nothing was touched"


def test_a_node_of_another_machine_is_not_added(tmp_path: Path) -> None:
    with running(tmp_path, "--bootstrap") as server:
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        answer = server.request("POST", "/join", b'{"ID": "n2", "RaftAddr": "10.78.2.2:7001"}')
        assert answer.status == 409
        assert b"10.78.2.2:7001 is no loopback address" in answer.body
        assert b"--cluster-secret-file" in answer.body
