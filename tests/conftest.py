"""Fixtures that several files of tests share."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conure.net import reactor
from tests.lab import engines
from tests.lab.httpservice import FakeBackend, Service
from tests.lab.stubserver import MakeStub, StubServer


@pytest.fixture(scope="session", autouse=True)
def _patient_rounds() -> Iterator[None]:
    """Let no machine under load split a round of a test's own server: tests count rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reactor, "_ROUND_TIME", 60.0)
        patch.setattr(reactor, "_SENDING_TIME", 60.0)
        yield


@pytest.fixture(params=engines.ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs with each engine, and with that one wherever nobody says anything else."""
    engines.use(request.param)
    yield request.param
    engines.use("")


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[Path, list[str]]:
    """A mount point, and the command that gives a process a disk of 3 MiB there."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = f'mount -t tmpfs -o size=3m tmpfs "{point}" && exec "$@"'
    wrapper = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk needs root and unshare")
    return point, wrapper


@pytest.fixture(name="make_stub")
def _make_stub() -> Iterator[MakeStub]:
    stubs: list[StubServer] = []

    def make(tls: ssl.SSLContext | None = None) -> StubServer:
        stubs.append(StubServer(tls))
        return stubs[-1]

    yield make
    for stub in stubs:
        stub.stop()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> Iterator[Service]:
    service = Service(backend)
    yield service
    service.close()
    assert backend.open_states == 0
