"""Fixtures of http."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conure.http.server import HTTPServer
from tests.lab.httpdriver import (
    Clock,
    serving,
)


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with serving() as running:
        yield running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)
