"""A small network of hosts for tests, made of network namespaces, whose links can be cut.

Every host hangs on a router of its own lab, so that a packet from one to another can be dropped
there in silence, as a real partition drops it: the sender gets no error and has to find out. ::

    host 1 (10.78.1.2) ──┐
    host 2 (10.78.2.2) ──┼── router, which drops what a rule names
    host 0 (10.78.0.2) ──┘   host 0 is the clients' place: no cut reaches it

Only ``ip`` and root are needed, and nothing is added to the machine's own network. The thread
that has entered a lab (:meth:`Lab.enter`), and those it starts, are on host 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator

__all__ = ["Lab", "why_not"]

CLONE_NEWNET = 0x40000000
RULE_PRIORITY = 1000  # of the router's rules that drop packets: before those that forward them

_libc = ctypes.CDLL(None, use_errno=True)
_labs = itertools.count(1)


class Lab:
    """Hosts 1 to *hosts* and the clients' host 0. One thread at a time may cut and heal."""

    def __init__(self, hosts: int) -> None:
        self._name = f"conure-{os.getpid()}-{next(_labs)}"
        self._hosts = range(hosts + 1)
        self._cuts: set[tuple[int, int]] = set()
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def address(host: int) -> str:
        """The IP address of a host."""
        return f"10.78.{host}.2"

    def wrapper(self, host: int) -> list[str]:
        """What to put before a command that is to run on a host; it is replaced by the command."""
        return ["ip", "netns", "exec", self._place(host)]

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Put the calling thread onto host 0 for the length of the block."""
        here = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        with open(here, "rb") as home, open(f"/run/netns/{self._place(0)}", "rb") as place:
            _move_to(place.fileno())
            try:
                yield
            finally:
                _move_to(home.fileno())

    def cut_one_way(self, sender: int, receiver: int) -> None:
        """Lose every packet from *sender* to *receiver*; those of the other way pass."""
        if (sender, receiver) not in self._cuts:
            self._cuts.add((sender, receiver))
            self._rule("add", sender, receiver)

    def cut(self, one: int, *others: int) -> None:
        """Lose every packet between host *one* and each of the *others*."""
        for other in others:
            self.cut_one_way(one, other)
            self.cut_one_way(other, one)

    def heal(self) -> None:
        """Let every packet pass again."""
        while self._cuts:
            self._rule("del", *self._cuts.pop())

    def close(self) -> None:
        """Remove the lab. Whatever runs on its hosts has to be ended before."""
        for host in (*self._hosts, "router"):
            if os.path.exists(f"/run/netns/{self._place(host)}"):
                _ip("netns", "del", self._place(host))

    def _make(self) -> None:
        router = self._place("router")
        for host in (*self._hosts, "router"):
            _ip("netns", "add", self._place(host))
            _ip("-n", self._place(host), "link", "set", "lo", "up")
        for host in self._hosts:
            place, gateway = self._place(host), f"10.78.{host}.1"
            link = f"to{host}"
            _ip("-n", router, *f"link add {link} type veth peer name eth0 netns {place}".split())
            _ip("-n", router, "addr", "add", f"{gateway}/24", "dev", link)
            _ip("-n", router, "link", "set", link, "up")
            _ip("-n", place, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", place, "link", "set", "eth0", "up")
            _ip("-n", place, "route", "add", "default", "via", gateway)
        _ip("netns", "exec", router, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def _place(self, host: int | str) -> str:
        return f"{self._name}-{host}"

    def _rule(self, action: str, sender: int, receiver: int) -> None:
        ends = ("from", self.address(sender), "to", self.address(receiver))
        rule = ("priority", str(RULE_PRIORITY), *ends, "blackhole")
        _ip("-n", self._place("router"), "rule", action, *rule)


def why_not() -> str:
    """Return why no lab can be made here; empty if one can."""
    if shutil.which("ip") is None:
        return "network namespaces need the ip command (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        lab = Lab(1)
    except subprocess.CalledProcessError as error:
        return f"network namespaces can't be made here: {error.stderr.strip()}"
    lab.close()
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _move_to(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
