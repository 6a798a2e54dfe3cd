"""Fixtures of http."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import queue
import re
import resource
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from conure.errors import BadRequest, ConureError, KeyNotFound, NotLeader
from conure.http import connection as connection_module
from conure.http import known as known_module
from conure.http.limits import Limits
from conure.http.request import Body, Request, decode_form, error_body
from conure.http.server import HTTPServer
from conure.net import listener as listener_module
from conure.net import reactor as reactor_module
from tests.lab.httpdriver import (
    Clock,
    Recorder,
    Stepped,
    bytewise,
    connect,
    connections_of,
    exchange,
    play,
    read_all,
    read_answers,
    serving,
    statuses,
    wait_until,
    without_dates,
)
from tests.lab.httpapps import (Custom, GET, HOST, Late, PUT, chunked, fail_if_logged, get, reset, rounds)



@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with serving() as running:
        yield running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)

