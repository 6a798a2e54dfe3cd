"""A RESP service for a test, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.respclient import RespClient
from tests.lab.respservice import RespService


@pytest.fixture
def service() -> Iterator[RespService]:
    """A service over a store without consensus."""
    service = RespService()
    yield service
    service.close()


@pytest.fixture
def client(service: RespService) -> Iterator[RespClient]:
    """A client of the service."""
    with service.client() as client:
        yield client
