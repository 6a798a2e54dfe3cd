"""Whoever asks, by TLS, a real server: client, shell, kvctl, probe, and a node that is to join."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import conuresh
from conure.client import Client
from conure.errors import Untrusted
from conure.ops import probe
from tests.lab.certificates import Authority, Certificate
from tests.lab.kvctltool import Kvctl, ScriptedServer
from tests.lab.process import resp_port, running, wait_until

RESP = "--resp-addr=127.0.0.1:0"


@pytest.fixture(name="authority")
def _authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def tls(made: Certificate, *more: str) -> tuple[str, ...]:
    return f"--tls-cert={made.cert}", f"--tls-key={made.key}", *more


def test_all_of_them_ask_a_server_that_asks_them(
    tmp_path: Path, authority: Authority, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    made, mine = authority.issue("127.0.0.1"), authority.issue("me")
    ca, cert, key = str(authority.root), str(mine.cert), str(mine.key)
    environ: dict[str, Any] = {"CONURE_CA": ca, "CONURE_CERT": cert, "CONURE_KEY": key}
    flags = tls(made, f"--tls-client-ca={ca}", RESP)
    with running(tmp_path / "data", "--bootstrap", *flags) as server:
        url = f"https://127.0.0.1:{server.port}"
        large = os.urandom(1 << 20)
        with Client(url, ca=ca, cert=cert, key=key) as db:
            db.put("large", large)
            assert db.get("large") == large
            with db.watch(prefix="") as watch, db.lock("l"):
                db.put("k", "v")
                assert any(event.key == b"k" for event in watch)
            assert db.backup(str(tmp_path / "backup")) > 0
            assert len(list(db.items())) == 2
        with Client(url, ca=ca) as db, pytest.raises(Untrusted, match="asks for a certificate"):
            db.get("k")
        assert conuresh.main([f"--server={url}", "get", "k"], environ) == 0
        assert conuresh.main([f"--server={url}", "get", "k"], {"CONURE_CA": ca}) == 1
        assert probe.main([f"{url}/readyz"], environ) == 0
        assert probe.main([f"{url}/readyz", f"--ca={ca}"], {}) == 1
        ask = Kvctl(capsysbinary, f"--addr=127.0.0.1:{resp_port(server)}")
        assert ask("get", "k", f"--ca={ca}", f"--cert={cert}", f"--key={key}").out == b"v"
        assert ask("check", "--write", "--tls", **environ).status == 0
        assert ask("get", "large", "--tls", **environ).out == large
        assert "asks for a certificate" in ask.fails("get", "k", "--tls", CONURE_CA=ca)
        assert "isn't signed" in ask.fails("get", "k", "--tls")
        said = ask.fails("get", "k", "--tls", "--tls-name=db.example", **environ)
        assert "another name" in said
        assert "TLS" in ask.fails("get", "k", **environ)
        assert "ca (/none)" in ask.fails("get", "k", "--ca=/none", status=2)
        assert "--data-dir" in ask.at("--data-dir=x").fails("get", "k", "--tls", status=2)


def test_kvctl_and_a_server_without_tls(
    tmp_path: Path, authority: Authority, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    server = ScriptedServer([b"-ERR Protocol error\r\n"])
    try:
        ask = Kvctl(capsysbinary, f"--addr={server.address}", f"--ca={authority.root}")
        assert "doesn't speak TLS there" in ask.fails("get", "k")
    finally:
        server.close()
    assert tmp_path.exists()


def test_a_node_is_added_by_https(tmp_path: Path, authority: Authority) -> None:
    made = authority.issue("127.0.0.1")
    ca = str(authority.root)
    flags = tls(made, f"--tls-client-ca={ca}", f"--tls-ca={ca}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with running(tmp_path / "a", "--bootstrap", "--node-id=a", *flags) as first:
        seed = f"https://127.0.0.1:{first.port}"
        more = (f"--seeds={seed}", "--node-id=b", f"--raft-addr=127.0.0.1:{port}", *flags)
        with (
            running(tmp_path / "b", *more),
            Client(seed, ca=ca, cert=str(made.cert), key=str(made.key)) as db,
        ):
            wait_until(lambda: len(db.raft_config()["servers"]) == 2)
            urls = [server["http_address"] for server in db.raft_config()["servers"]]
            assert seed in urls, json.dumps(urls)
            assert all(url.startswith("https://127.0.0.1:") for url in urls)
