"""probe.py: what kubelet and Docker are told of a server, with and without TLS."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from conure.ops import probe
from tests.lab.process import ROOT
from tests.lab.stubserver import MakeStub, drip, hang, raw, refuse
from tests.lab.tlsfiles import Issuer

HOST = "127.0.0.1"


@pytest.fixture(scope="module", name="issuer")
def _issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("ca"))


@pytest.fixture(name="run")
def _run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


class Run:
    """Runs the probe; returns its status and the one line that it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str, **environ: str) -> tuple[int, str]:
        status = probe.main(argv, environ)
        out, err = self._capsys.readouterr()
        said = out if status == 0 else err.removeprefix("probe: ")
        assert (out + err).count("\n") == 1, out + err
        return status, said.rstrip("\n")


def test_a_server_that_is_well(make_stub: MakeStub, run: Run) -> None:
    stub = make_stub()
    stub.acts = [refuse(200, "ready"), refuse(200, ""), raw(b"HTTP/1.0 200\r\n\r\n")]
    assert run(f"{stub.url}/readyz") == (0, "ready")
    assert run(stub.url) == (0, "OK")
    assert run(f"{stub.url}?a=b") == (0, "OK")
    assert [target for _, target, _ in stub.requests] == ["/readyz", "/", "/?a=b"]
    assert stub.headers[0]["Host"] == stub.url.removeprefix("http://")


def test_a_server_that_is_not(make_stub: MakeStub, run: Run) -> None:
    stub = make_stub()
    url = f"{stub.url}/readyz"
    leads = refuse(307, "", Location="http://h:1/")
    stub.acts = [refuse(503, "no leader\x1b[1m\nmore"), leads, raw(b"SSH-2\r\n"), hang, drip]
    assert run(url) == (1, f"{url}: it answers 503: no leader[1m")
    assert run(url) == (1, f"{url}: it answers 307")
    assert run(url, "--timeout=200ms")[0] == 1
    begun = time.monotonic()
    assert run(url, "--timeout=200ms") == (1, f"{url}: no answer within 0.2 s")
    assert run(url, "--timeout", "200ms") == (1, f"{url}: no answer within 0.2 s")
    assert time.monotonic() - begun < 5
    stub.stop()
    status, said = run(url)
    assert status == 1
    assert "refused" in said


def test_by_tls(make_stub: MakeStub, run: Run, issuer: Issuer) -> None:
    stub = make_stub(issuer.issue(HOST).server_context())
    assert run(f"{stub.url}/status", f"--ca={issuer.file}")[0] == 0
    assert run(f"{stub.url}/status", CONURE_CA=issuer.file)[0] == 0
    status, said = run(f"{stub.url}/status")
    assert status == 1
    assert said.startswith(f"{stub.url}/status: its certificate isn't signed by a CA")
    assert len(stub.requests) == 2
    status, said = run(f"{stub.url}/status".replace("https:", "http:"))
    assert status == 1
    plain = make_stub()
    status, said = run(f"{plain.url}/status".replace("http:", "https:"), "--ca", issuer.file)
    assert (status, "doesn't speak TLS" in said) == (1, True)
    plain.acts = [raw(b"\x15\x03\x03\x00\x02\x02\x46")]
    status, said = run(f"{plain.url}/status", "--timeout=300ms")
    assert status == 1


def test_names_and_certificates(make_stub: MakeStub, run: Run, issuer: Issuer) -> None:
    stub = make_stub(issuer.issue("db.example").server_context(issuer.file))
    mine = issuer.issue("me")
    url, asks = f"{stub.url}/status", (f"--ca={issuer.file}", f"--cert={mine.cert}")
    assert "another name" in run(url, *asks, f"--key={mine.key}")[1]
    assert run(url, *asks, f"--key={mine.key}", "--tls-name=db.example")[0] == 0
    assert run(url, *asks, f"--key={mine.key}", "--insecure-name")[0] == 0
    status, said = run(url, f"--ca={issuer.file}", "--insecure-name")
    assert (status, "asks for a certificate" in said) == (1, True)
    others = Issuer(Path(issuer.file).parent, "others")
    status, said = run(url, f"--ca={others.file}", "--insecure-name")  # a CA is always asked for
    assert (status, "isn't signed" in said) == (1, True)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "no URL"), (["h:1"], "no URL"), (["ftp://h/"], "no URL"), (["http://h:1/a b"], "URL"),
        (["http://h", "http://h"], "one URL"), (["http://h", "--c=x"], "no such option"),
        (["http://h", "--ca"], "needs a value"), (["http://h", "--timeout=2"], "2s"),
        (["https://h", "--ca=/none"], "ca (/none): it can't be read"),
    ],
)  # fmt: skip
def test_wrong_usage(run: Run, argv: list[str], why: str, make_stub: MakeStub) -> None:
    argv = [word.replace("https://h", make_stub().url.replace("http:", "https:")) for word in argv]
    status, said = run(*argv)
    assert status == 2
    assert why in said


def test_it_starts_without_what_it_does_not_need(make_stub: MakeStub) -> None:
    stub = make_stub()
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from conure.ops.probe import main; sys.exit(main(sys.argv[1:], {}))"
    )
    command = [sys.executable, "-I", "-X", "importtime", "-c", program]
    done = subprocess.run([*command, f"{stub.url}/status"], capture_output=True, check=True)
    imported = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert b"conure.tlswords" in imported
    assert not imported & {b"ssl", b"http.client", b"json", b"email", b"logging", b"argparse"}
