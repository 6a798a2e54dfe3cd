"""The search for secrets finds what it is to find."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.lab.secretsearch import Heard, Search

SECRET = bytes(range(97, 123)) + b"\xff\x00\x80\x7f" + b"0123456789"


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        SECRET[5:31],
        SECRET.hex().encode(),
        SECRET.hex().upper().encode(),
        base64.b64encode(SECRET),
        base64.urlsafe_b64encode(b"x" + SECRET),
        base64.b64encode(b"xy" + SECRET + b"more"),
        quote(SECRET).encode(),
        repr(SECRET).encode(),
        json.dumps({"secret": SECRET.decode("latin-1")}).encode(),
    ],
)
def test_a_secret_is_found_however_it_is_written(written: bytes) -> None:
    search = Search()
    search.add("the secret", SECRET)
    assert search.found([Heard("a log", b"said " + written + b" here")]) == ["the secret in a log"]
    assert search.found([Heard("a log", b"another line, 0f" * 40)]) == []


def test_what_is_kept_from_clients_may_stand_in_a_log() -> None:
    search = Search()
    search.add("the incarnation", SECRET, from_clients_only=True)
    assert search.found([Heard("a log", SECRET)]) == []
    assert search.found([Heard("/status", SECRET, by_clients=True)]) == [
        "the incarnation in /status"
    ]


def test_a_private_key_is_found_as_pem_der_and_number(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "node.key").write_bytes(b"# mine\n" + pem)
    (tmp_path / "note").write_text("nothing")
    search = Search()
    search.add_private_keys_of(tmp_path)
    number = key.private_numbers().private_value
    for shown in (pem, der.hex().encode(), f"{number:064x}".encode()):
        assert search.found([Heard("a traceback", shown)]) == ["node.key in a traceback"]
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert search.found([Heard("s_client", b"x" + public)]) == []
