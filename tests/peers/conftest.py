"""Fixtures of peers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import select
import socket
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conure.consensus import records as records_module
from conure.consensus.messages import (
    COMMAND,
    Entry,
    Message,
    MessageType,
    SnapshotHeader,
    SnapshotMeta,
)
from conure.errors import ConureError, Refused, StorageError, Unavailable
from conure.http.server import HTTPServer
from conure.metrics import Registry
from conure.peers import accepting, dialling, frames, guests, inbox, peer, sockets, transfer
from conure.peers.accepting import Registrar
from conure.peers.protocol import Greeting
from conure.peers.transport import Transport
from conure.state import codec
from tests.lab.httpdriver import Recorder
from tests.lab.transports import (CLUSTER, Net, Node, PATIENCE, Staged, State, accept, address, descriptors, eventually, frame, header_fields, hello, indexes, is_closed, message_to, probe, read_exactly, read_frame, read_json, waits_for)



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
    assert set(threading.enumerate()) <= threads
    assert descriptors() <= before

