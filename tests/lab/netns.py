"""A small network of hosts for tests, made of network namespaces, whose links can be cut.

Every host hangs on a router of its own lab, so that a packet from one to another can be dropped
there in silence, as a real partition drops it: the sender gets no error and has to find out. ::

    host 1 (10.78.1.2) ──┐
    host 2 (10.78.2.2) ──┼── router, which drops what a rule names
    host 0 (10.78.0.2) ──┘     │     ▲   host 0 is the clients' place: no cut reaches it
                               ▼     │
                             a thread that holds back and loses what an impaired host sends

Many kernels have no netem. So packets of an impaired host make a detour: a rule sends them to a TUN
device of the router, from which a thread reads them, and to which it writes them later, or never.
They are routed from there as if nothing had happened; cuts hold for them too.

Only ``ip`` and root are needed (``/dev/net/tun`` to impair), and nothing is added to the machine's
own network. The thread that has entered a lab (:meth:`Lab.enter`), and those it starts, are on
host 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Impairment", "Lab", "why_not"]

CLONE_NEWNET = 0x40000000
TUN = "/dev/net/tun"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DETOUR = "detour"  # the router's TUN device
DETOUR_TABLE = "78"  # of its routes: all of them lead to that device

# The router's rules, in this order, before those of its main table.
DROP, SPARE_CLIENTS, TAKE_DETOUR = "1000", "1001", "1002"

PACKETS_WAITING = 10_000  # what comes on top is lost, as in a full router

_libc = ctypes.CDLL(None, use_errno=True)
_labs = itertools.count(1)


class Impairment(NamedTuple):
    """What happens to packets: each waits for *delay* and up to *jitter* seconds, or is lost."""

    delay: float = 0.0
    jitter: float = 0.0  # with it, packets overtake each other
    loss: float = 0.0  # the chance of it


class Lab:
    """Hosts 1 to *hosts* and the clients' host 0. One thread at a time may change the links."""

    def __init__(self, hosts: int) -> None:
        self._name = f"conure-{os.getpid()}-{next(_labs)}"
        self._hosts = range(hosts + 1)
        self._cuts: set[tuple[int, int]] = set()
        self._relay: _Relay | None = None
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
        with self._inside(0):
            yield

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

    def impair(self, host: int, how: Impairment) -> None:
        """Hold back and lose what *host* sends to other hosts; what it tells clients passes."""
        if self._relay is None:
            self._relay = self._make_detour()
        if host not in self._relay.impaired:
            self._detour("add", host)
        self._relay.impaired[host] = how

    def heal(self) -> None:
        """Let every packet pass again, and at once."""
        while self._cuts:
            self._rule("del", *self._cuts.pop())
        if self._relay is not None:
            for host in list(self._relay.impaired):
                self._detour("del", host)
                del self._relay.impaired[host]

    def close(self) -> None:
        """Remove the lab. Whatever runs on its hosts has to be ended before."""
        if self._relay is not None:
            self._relay.close()
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

    def _make_detour(self) -> _Relay:
        router = self._place("router")
        with self._inside("router"):
            device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(
                device, TUNSETIFF, struct.pack("16sH22x", DETOUR.encode(), IFF_TUN | IFF_NO_PI)
            )
        _ip("-n", router, "link", "set", DETOUR, "up")
        _ip("-n", router, "route", "add", "default", "dev", DETOUR, "table", DETOUR_TABLE)
        clients = ("to", self.address(0), "lookup", "main")
        _ip("-n", router, "rule", "add", "priority", SPARE_CLIENTS, *clients)
        return _Relay(device)

    def _detour(self, action: str, host: int) -> None:
        rule = ("priority", TAKE_DETOUR, "iif", f"to{host}", "lookup", DETOUR_TABLE)
        _ip("-n", self._place("router"), "rule", action, *rule)

    def _place(self, host: int | str) -> str:
        return f"{self._name}-{host}"

    @contextlib.contextmanager
    def _inside(self, host: int | str) -> Iterator[None]:
        here = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        with open(here, "rb") as home, open(f"/run/netns/{self._place(host)}", "rb") as place:
            _move_to(place.fileno())
            try:
                yield
            finally:
                _move_to(home.fileno())

    def _rule(self, action: str, sender: int, receiver: int) -> None:
        ends = ("from", self.address(sender), "to", self.address(receiver))
        _ip("-n", self._place("router"), "rule", action, "priority", DROP, *ends, "blackhole")


class _Relay:
    """The thread behind a detour. Others change ``impaired``, by whole values."""

    def __init__(self, device: int) -> None:
        self.impaired: dict[int, Impairment] = {}
        self._device = device
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def close(self) -> None:
        os.close(self._ended)
        self._thread.join()
        os.close(self._end)
        os.close(self._device)

    def _run(self) -> None:
        waiting: list[tuple[float, int, bytes]] = []  # when to pass it on, its number, a packet
        numbers = itertools.count()
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([self._device, self._end], [], [], pause)
            if self._end in ready:
                return
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                os.write(self._device, heapq.heappop(waiting)[2])
            if self._device not in ready:
                continue
            packet = os.read(self._device, 1 << 16)
            # The sender is 10.78.host.2, in bytes 12 to 15 of an IPv4 packet.
            how = self.impaired.get(packet[14], Impairment())
            is_lost = random.random() < how.loss or len(waiting) >= PACKETS_WAITING
            if packet[0] >> 4 == 4 and not is_lost:
                when = now + how.delay + random.random() * how.jitter
                heapq.heappush(waiting, (when, next(numbers), packet))


def why_not(*, to_impair: bool = False) -> str:
    """Return why no lab can be made here, or none to impair its hosts; empty if one can."""
    if to_impair and not os.path.exists(TUN):
        return f"holding packets back needs {TUN}"
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
