"""origins: which names a server answers to, and which web pages may ask."""

from __future__ import annotations

import pytest

from conure.http.origins import Access, Names
from conure.values import Authority, host_of, parse_authority, parse_pattern

TOLD = Names(
    ["db.example.com", ".inside.example", "*.below.example"],
    ["Node1.Example.NET.", "machine.lan"],
    lambda: ["moved.example"],
)


def judged(host: str, origin: str | None = None, site: str | None = None) -> int:
    """Return the status that a request to *host* is refused with, 0 if it isn't."""
    asked = parse_authority(host)
    assert asked is not None
    judgement = Access(TOLD).judge(asked, origin, site)
    return judgement[0] if judgement else 0


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8081", "localhost.", "app.localhost", "127.0.0.1:8081", "127.1"),
        *("10.0.0.5", "203.0.113.9:80", "[::1]", "[::1]:8081", "[fe80::1%25eth0]:80"),
        *("[2001:DB8::5]",),
        *("node1", "conure_1", "NODE1.", "node1:", "", ":8081"),
        *("conure.default.svc", "conure-0.conure-hs.default.svc:8081"),
        *("conure.default.svc.cluster.local", "Conure.Default.SVC.Cluster.Local."),
        *("db.example.com", "DB.Example.Com.:8081", "inside.example", "a.b.inside.example"),
        *("a.below.example", "node1.example.net", "machine.lan", "moved.example:80"),
    ],
)  # fmt: skip
def test_names_that_are_answered_to(host: str) -> None:
    assert judged(host) == 0


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evillocalhost.example", "svc.example", "a.svc.cluster.local.example", "1.2.3.4.5"),
        *("below.example", "xinside.example", "x.db.example.com", "db.example.com.evil.example"),
        *("evil%2eexample", "evil%2Eexample", "a,b", "a=b", "a..b", ".localhost", "256.1.1.1"),
    ],
)
def test_names_that_are_not(host: str) -> None:
    assert judged(host) == 421


def test_any_name_will_do_if_that_is_asked_for() -> None:
    names = Names(["*"])
    assert "evil.example" in names
    assert "a,b" in names


def test_the_refusal_tells_what_to_add() -> None:
    judgement = Access().judge(Authority("db.corp.example", 8081), None, None)
    assert judgement is not None
    assert "--allowed-hosts=db.corp.example" in judgement[1]
    judgement = Access().judge(Authority("a." * 20_000 + "b", None), None, None)
    assert judgement is not None
    assert len(judgement[1]) < 500


@pytest.mark.parametrize(
    "text",
    [
        *("a:b", "a:1:2", "[", "[]", "[a]", "[::1", "::1", "[::1]x", "[1.2.3.4]", "a:65536"),
        *("a:123456", "a b", "a/b", "u@a", "%zz", "%4", "a\0b", "\u00e4", "a:\u0661", "[v1.a]"),
        *('"a"', "<a>", "a\\b"),
    ],
)  # fmt: skip
def test_what_names_nobody(text: str) -> None:
    assert parse_authority(text) is None


def test_what_names_somebody() -> None:
    assert parse_authority("A.B.:80") == ("a.b", 80)
    assert parse_authority("[::0:1]:080") == ("[::1]", 80)
    assert parse_authority("a:") == ("a", None)
    assert host_of("http://db1.example:8081") == host_of("db1.example:7001") == "db1.example"
    assert host_of("") == host_of("no address") == ""


OWN = [
    ("node1:8081", "http://node1:8081", None),
    ("NODE1.:8081", "http://node1:8081", "same-origin"),
    ("localhost:80", "http://localhost", None),
    ("localhost", "http://localhost:80", "none"),
    ("[::1]:8081", "http://[0::1]:8081", None),
    ("node1:8081", "http://node1:8081", "same-site"),
    ("node1", None, "none"),
    ("node1", None, "same-origin"),
    ("node1", None, None),
    # Behind a proxy that speaks https, as its browser confirms.
    ("db.example.com", "https://db.example.com", "same-origin"),
]


@pytest.mark.parametrize(("host", "origin", "site"), OWN)
def test_pages_of_this_server(host: str, origin: str | None, site: str | None) -> None:
    assert judged(host, origin, site) == 0


FOREIGN = [
    ("node1:8081", "http://evil.example", None),
    ("node1:8081", "http://evil.example", "same-origin"),
    ("node1:8081", "http://node1", None),
    ("node1:8081", "http://node1:8082", None),
    ("node1", "https://node1", None),
    ("node1:8081", "https://node1:8081", "same-site"),
    ("db.example.com", "https://db.example.com", None),
    ("db.example.com", "https://db.example.com:8443", "same-origin"),
    ("node1:8081", "null", None),
    ("node1:8081", "", None),
    ("node1:8081", "http://node1:8081, http://evil.example", None),
    ("node1:8081", "http://node1:8081/", None),
    ("node1:8081", "http://u@node1:8081", None),
    ("node1:8081", "file://", None),
    ("node1:8081", "http://node1:8081", "cross-site"),
    ("node1:8081", None, "cross-site"),
    ("node1:8081", None, "same-site"),
    ("node1:8081", None, "none, cross-site"),
    ("", "http://", None),
    ("", "http://:80", None),
]


@pytest.mark.parametrize(("host", "origin", "site"), FOREIGN)
def test_pages_of_other_origins(host: str, origin: str | None, site: str | None) -> None:
    assert judged(host, origin, site) == 403


def test_who_does_not_say_whom_it_asks_is_no_page_of_ours() -> None:
    assert Access().judge(None, None, None) is None
    judgement = Access().judge(None, "http://node1", None)
    assert judgement is not None
    assert judgement[0] == 403
    assert "http://node1" in judgement[1]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("db.example.com", "db.example.com"),
        ("DB.Example.com.", "db.example.com"),
        (".example.com", ".example.com"),
        ("*.example.com", "*.example.com"),
        ("*", "*"),
        ("node_1", "node_1"),
    ],
)
def test_patterns(text: str, pattern: str) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize(
    "text", ["http://db", "db:8081", "*db", "d*b", "..db", "*.", ".", "*.*", "d b", "d,b", "[::1]"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"write it like|without a scheme"):
        parse_pattern(text)
