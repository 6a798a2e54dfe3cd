"""Clusters that are formed by a list of names which resolve late, as those of pods do: each node is
on a host of its own, and their names are learned one after the other (tests/lab/names.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, Member, wait_until
from tests.lab.names import Names, resolved_by, serving_names
from tests.lab.netns import Lab, why_not
from tests.system.test_forming import cluster_ids, is_formed

SECRET = "0123456789abcdef0123456789abcdef\n"


def name_of(member: Member) -> str:
    return f"{member.name}.conure-hs.shop.svc"


@pytest.fixture
def network() -> Iterator[tuple[Lab, Names]]:
    if reason := why_not():
        pytest.skip(reason)
    with (
        contextlib.closing(Lab(3)) as lab,
        lab.enter(),
        serving_names(lab.address(0)) as names,
    ):
        yield lab, names


def three_pods(cluster: Cluster, lab: Lab, folder: Path) -> list[Member]:
    """Three members that are told each other's names, as a StatefulSet's pods would be."""
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    wrapper = resolved_by(lab.address(0), folder)
    members = [cluster.add(wrapper=wrapper) for _ in range(3)]
    for member in members:
        others = [f"{each.name}@{name_of(each)}:7001" for each in members if each is not member]
        member.flags += [
            "--raft-addr=:7001",
            "--http-addr=:8081",
            f"--raft-advertise={name_of(member)}:7001",
            f"--cluster-secret-file={secret}",
            "--follower-mode=forward",  # this process knows none of the names
            "--protected-mode=false",  # and is on another host
            f"--peers={','.join(others)}",
        ]
    return members


def test_names_that_resolve_one_after_the_other_become_one_cluster(
    network: tuple[Lab, Names], tmp_path: Path
) -> None:
    lab, names = network
    with Cluster(tmp_path, lab=lab) as cluster:
        first, second, third = members = three_pods(cluster, lab, tmp_path)

        def learn(member: Member, address: str | None = None) -> None:
            host = lab.address(members.index(member) + 1)
            names.addresses[name_of(member)] = host if address is None else address

        def wait_until_asked() -> None:
            """Wait until each name that has no address was asked for again."""
            names.asked.clear()
            missing = {name_of(each) for each in members if not names.addresses.get(name_of(each))}
            wait_until(lambda: missing <= names.asked)

        for member in members:
            member.launch()
        for member in members:
            member.wait_until_listening()
        wait_until_asked()  # no name is known
        names.is_silent = True
        wait_until_asked()  # nobody answers
        names.is_silent = False
        for member in members:
            learn(member, "")  # names without addresses
        wait_until_asked()
        learn(first)
        wait_until_asked()
        learn(second)
        wait_until_asked()
        assert cluster_ids(members) == {""}  # two of three begin nothing
        learn(third)
        wait_until(lambda: is_formed(members))
        cluster.wait_until_voters(3)
        (formed,) = cluster_ids(members)
        assert first.put("k", b"v").status == 200

        # A pod's name goes with it, and is back later than its process is.
        third.terminate()
        del names.addresses[name_of(third)]
        third.launch()
        wait_until(lambda: name_of(third) in names.asked)
        learn(third)
        third.wait_until_listening()
        wait_until(lambda: bool(third.status().get("leader_id")))
        cluster.wait_until_equal()
        assert cluster_ids(members) == {formed}
        assert third.get("k").body == b"v"


def test_a_wiped_pod_forms_no_second_cluster_while_names_come_and_go(
    network: tuple[Lab, Names], tmp_path: Path
) -> None:
    lab, names = network
    with Cluster(tmp_path, lab=lab) as cluster:
        members = three_pods(cluster, lab, tmp_path)
        for number, member in enumerate(members, 1):
            names.addresses[name_of(member)] = lab.address(number)
            member.launch()
        wait_until(lambda: is_formed(members))
        (formed,) = cluster_ids(members)
        wiped = members[-1]
        wiped.kill()
        wiped.wipe()
        known = dict(names.addresses)
        names.addresses.clear()
        wiped.start()
        names.asked.clear()
        wait_until(lambda: {name_of(each) for each in members[:-1]} <= names.asked)
        for name, address in known.items():
            names.addresses[name] = address
        wait_until(lambda: formed in wiped.text or wiped.status().get("cluster_id") == formed)
        assert cluster_ids(members) <= {"", formed}
