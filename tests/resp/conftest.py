"""A RESP service for a test, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.respclient import RespClient
from tests.lab.respservice import RespService
from tests.lab.tlstunnel import over_tls


@pytest.fixture
def service() -> Iterator[RespService]:
    """A service over a store without consensus, by TLS where TEST_TLS asks for it."""
    service = RespService(tls=over_tls())
    yield service
    service.close()


@pytest.fixture
def plain_service() -> Iterator[RespService]:
    """A service that a test sends to at a moment that it chooses: nothing is between them."""
    service = RespService()
    yield service
    service.close()


@pytest.fixture
def client(service: RespService) -> Iterator[RespClient]:
    """A client of the service."""
    with service.client() as client:
        yield client
