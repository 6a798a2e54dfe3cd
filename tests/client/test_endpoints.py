"""values.py: what may stand in a log, in JSON and in a header field as it is; and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.config import load
from conure.values import (
    COMMAND,
    REQUEST,
    SETTING,
    is_address,
    is_base_url,
    parse_server,
    redirected_to,
    split_address,
    split_base_url,
)

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


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://h:1", ("h", 1)), ("http://h", ("h", 80)), ("http://h:1/", ("h", 1)),
        ("http://[fe80::1%eth0]:7001", ("fe80::1%eth0", 7001)), ("http://[::1]", ("::1", 80)),
        ("https://h:1/", ("h", 1)), ("https://h", ("h", 443)), ("https://[::1]", ("::1", 443)),
    ],
)  # fmt: skip
def test_what_is_connected_to(url: str, place: tuple[str, int]) -> None:
    assert split_base_url(url) == place


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h:1", "http://:1", "http://h:65536"])
def test_what_can_not_be_connected_to(url: str) -> None:
    with pytest.raises(ValueError, match="isn't"):
        split_base_url(url)


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_address_can_be_split(address: str) -> None:
    host, port = split_address(address)
    assert address in (f"{host}:{port}", f"[{host}]:{port}")


@pytest.mark.parametrize(
    ("location", "server"),
    [
        ("http://h:1/kv?key=a", "http://h:1"), ("http://h", "http://h:80"),
        ("http://[::1]:1/", "http://[::1]:1"), ("http://h.?x", "http://h.:80"),
        ("https://h:1/kv", "https://h:1"), ("https://h", "https://h:443"),
        ("/kv", None), ("ftp://h:1/", None), ("http://u@h:1/", None), ("http://h:0/", None),
        ("http://h:70000/", None), ("http://a..b/", None), ("http://h:1/a b", None),
    ],
)  # fmt: skip
def test_where_a_redirect_leads(location: str, server: str | None) -> None:
    assert redirected_to(location, "http://h:2") == server
    by_tls = server if server is None or server.startswith("https:") else None
    assert redirected_to(location, "https://h:2") == by_tls
    if server is not None:
        assert parse_server(server) == server


def test_units_are_those_of_each_way_to_write_durations() -> None:
    assert (SETTING.parse("1h30m"), COMMAND.parse("1h30m")) == (5400.0, 5400.0)
    assert (REQUEST.parse("1d"), COMMAND.parse("1d"), SETTING.parse("1d")) == (86.4e6, 86400, None)
    assert (REQUEST.parse("1us"), COMMAND.parse("1us"), SETTING.parse("1us")) == (None, None, 1e-6)
    long = "1" * 10
    assert (REQUEST.parse(f"{long}ms"), COMMAND.parse(f"{long}ms")) == (1111111111, None)
