"""protection: which connections and addresses are of this machine, and what the others hear."""

from __future__ import annotations

import logging

import pytest

from conure import protection
from conure.protection import NODES_REMEDIES, OPEN, Door, is_elsewhere, is_same_machine
from tests.lab.visitors import never_ours


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.3", "127.0.0.2"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("10.0.0.5", "10.0.0.5"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("2001:db8::5", "2001:db8:0::5"),
        ("fe80::5%eth0", "fe80::5%eth0"),
    ],
)
def test_connections_of_this_machine(peer: str, local: str) -> None:
    assert is_same_machine(peer, local)
    assert not Door("http_addr", "--http-addr=127.0.0.1:1").bars(peer, lambda: local)


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("10.0.0.5", "10.0.0.6"),
        ("10.0.0.5", "127.0.0.1"),
        ("192.168.0.1", "10.0.0.1"),
        ("128.0.0.1", "10.0.0.1"),
        ("0.0.0.0", "10.0.0.1"),
        ("::ffff:10.0.0.5", "10.0.0.6"),
        ("2001:db8::5", "2001:db8::6"),
        ("2001:db8::7f00:1", "2001:db8::6"),
        ("::127.0.0.1", "2001:db8::6"),  # an IPv6 address of its own
        ("fe80::5%eth0", "fe80::6%eth0"),
    ],
)
def test_connections_of_others(peer: str, local: str) -> None:
    assert not is_same_machine(peer, local)
    assert Door("http_addr", "--http-addr=127.0.0.1:1").bars(peer, lambda: local)
    assert not OPEN.bars(peer, lambda: local)


def test_who_has_gone_is_not_let_in() -> None:
    def gone() -> str:
        raise OSError("not connected")

    assert Door("http_addr", "--http-addr=127.0.0.1:1").bars("127.0.0.1", gone)
    assert not OPEN.bars("192.0.2.7", gone)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:7001", "127.9.9.9:7001", "[::1]:7001", "localhost:7001", "LOCALHOST:1"),
        *("http://127.0.0.1:8081", "http://localhost:8081", "a.localhost:7001"),
        "[::ffff:127.0.0.1]:7001",
    ],
)
def test_addresses_on_loopback(address: str) -> None:
    assert not is_elsewhere(address)


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.5:7001", "node2:7001", "http://node2:8081", "[2001:db8::5]:7001", ":7001"),
        *("0.0.0.0:7001", "localhost.example:7001", "127.0.0.1.example:7001", "128.0.0.1:7001"),
        *("", "no address", "[::ffff:10.0.0.5]:7001", "notlocalhost:7001"),
    ],
)
def test_addresses_elsewhere(address: str) -> None:
    assert is_elsewhere(address)


def test_who_is_barred_hears_all_ways_on() -> None:
    door = Door("http_addr", "--http-addr=127.0.0.1:8081")
    for word in ("--tls-client-ca", "--http-addr=127.0.0.1:8081", "--protected-mode=false"):
        assert word in door.why
    assert "\n" not in door.why
    for word in ("--cluster-secret-file", "--peer-tls-cert", "--protected-mode=false"):
        assert word in NODES_REMEDIES


def test_the_log_hears_of_many_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(protection, "monotonic", lambda: now)
    door = Door("http_addr", "--http-addr=127.0.0.1:1", is_ours=never_ours)
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            assert door.bars(f"192.0.2.{number}", lambda: "10.0.0.1")
        assert len(caplog.messages) == 1
        now += 61
        assert door.bars("192.0.2.77", lambda: "10.0.0.1")
    assert len(caplog.messages) == 2
    assert "http_addr" in caplog.messages[1]
    assert "50 connections" in caplog.messages[1]
    assert "192.0.2.77" in caplog.messages[1]
