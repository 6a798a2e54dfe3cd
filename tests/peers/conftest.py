"""Fixtures of peers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from conure.peers import accepting, peer, sockets, transfer
from tests.lab.transports import Net, descriptors, eventually


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    monkeypatch.setattr(sockets, "HANDSHAKE_TIME", 1.0)
    monkeypatch.setattr(transfer, "RESUMPTION_PAUSE", 0.01)
    monkeypatch.setattr(peer, "MAX_BACKOFF", 0.1)
    monkeypatch.setattr(accepting, "_ACCEPT_TICK", 0.005)
    threads, before = set(threading.enumerate()), descriptors()
    net = Net()
    with net.stack:
        yield net
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    # A thread that has done all it does is there for another moment.
    eventually(lambda: set(threading.enumerate()) <= threads)
    assert descriptors() <= before
