"""How far the cluster of a node reaches while nodes prove nothing to each other."""

from __future__ import annotations

import logging

import pytest

from conure.cluster.border import Border, why_refused
from conure.consensus.members import Configuration, Server
from conure.errors import Conflict
from conure.fileio import OsFileSystem

HERE = Server("n1", "127.0.0.1:7001", "http://127.0.0.1:8081")
BESIDE = Server("n2", "127.0.0.1:7002", "http://127.0.0.1:8082")
ELSEWHERE = Server("n2", "10.0.0.2:7001", "http://10.0.0.2:8081")


def border(*members: Server, is_guarded: bool = True, belongs: bool = True) -> Border:
    return Border(is_guarded, "n1", belongs, Configuration(members))


@pytest.mark.parametrize(
    ("tried", "is_closed"),
    [
        (border(belongs=False), True),
        (border(HERE), True),
        (border(HERE, BESIDE), True),
        (border(Server("n1", "10.0.0.1:7001", "")), True),
        (border(HERE, ELSEWHERE), False),
        (border(), False),
        (border(HERE, is_guarded=False), False),
    ],
)
def test_which_clusters_stay_on_their_machine(tried: Border, is_closed: bool) -> None:
    assert tried.is_closed == is_closed
    assert tried.lets_in("127.0.0.1", "127.0.0.1")
    assert tried.lets_in("10.0.0.1", "10.0.0.1")
    assert tried.lets_in("10.0.0.2", "10.0.0.1") != is_closed
    asked = ("10.0.0.3:7001", "127.0.0.1:7003")
    assert tried.of_here(asked) == (asked[1:] if is_closed else asked)
    tried.check_newcomer("n3", "127.0.0.1:7003")
    if is_closed:
        with pytest.raises(Conflict, match=r"--cluster-secret-file.*--peer-tls-cert.*=false"):
            tried.check_newcomer("n3", "10.0.0.3:7001")
    else:
        tried.check_newcomer("n3", "10.0.0.3:7001")


def test_only_a_cluster_that_goes_on_unguarded_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        for tried in (border(HERE), border(HERE, ELSEWHERE, is_guarded=False)):
            tried.warn()
        assert not caplog.records
        border(HERE, ELSEWHERE).warn()
        border().warn()
    first, second = caplog.messages
    assert "10.0.0.2:7001" in first
    assert "members that this node doesn't know yet" in second


def test_who_is_to_ask_other_machines_has_to_belong_to_them(tmp_path: object) -> None:
    fs, place = OsFileSystem(), str(tmp_path)
    assert why_refused(fs, place, ["http://localhost:8081", "127.0.0.1:7001", "[::1]:1"]) == ""
    why = why_refused(fs, place, ["http://10.0.0.2:8081", "db1:7001", "127.0.0.1:7001"])
    assert why.startswith("10.0.0.2, db1: no loopback address")
