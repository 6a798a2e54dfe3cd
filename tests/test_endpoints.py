"""Addresses of nodes: what may stand in a log, in JSON and in a header field as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.config import load
from conure.values import is_address, is_base_url

ADDRESSES = ["h:1", "10.0.0.2:7001", "node-1.db_x.svc:65535", "[::1]:7001", "[fe80::1%eth0]:7001"]
HOSTS = ["", "a b", "a\r\nb", "a\tb", "h/x", "u@h", "é", "[::1", "[::g]", "[]", "::1", "h" * 254]
HOSTS += ["[fe80::1%\r\nX: y]", "[fe80::1%]", "h?x", "h#x", "\0"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses(address: str) -> None:
    assert is_address(address)
    for scheme in ("http", "https"):
        assert is_base_url(f"{scheme}://{address}")
        assert is_base_url(f"{scheme}://{address}/")
        assert is_base_url(f"{scheme}://{address.rpartition(':')[0]}")


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_that_are_none(host: str) -> None:
    assert not is_address(f"{host}:7001")
    for url in (f"http://{host}:8081", f"http://{host}"):
        assert not is_base_url(url)


@pytest.mark.parametrize(
    "port", ["", "0", "65536", "100000", "-1", "+1", "1 ", "x", "\u0661", "1\n"]
)
def test_ports_that_are_none(port: str) -> None:
    assert not is_address(f"h:{port}")
    assert not is_base_url(f"http://h:{port}")


@pytest.mark.parametrize(
    "url", ["", "h:1", "ftp://h:1", "HTTP://h:1", "http:/h", "http://h:1//", "http://h:1/p"]
)
def test_urls_that_are_none(url: str) -> None:
    assert not is_base_url(url)


@given(st.text(max_size=40) | st.from_regex(r"https?://[^/]{1,20}:\d{1,6}/?"))
def test_what_passes_breaks_no_line(text: str) -> None:
    if is_address(text) or is_base_url(text):
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set(' "<>@?#\\')


@pytest.mark.parametrize("address", ADDRESSES)
def test_whatever_a_node_can_be_told_to_advertise_passes(address: str) -> None:
    config = load([f"--raft-advertise={address}", f"--http-advertise=http://{address}"], {})
    assert is_address(config.raft_advertised(1))
    assert is_base_url(config.http_advertised(1))
