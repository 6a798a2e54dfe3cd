"""The cluster secret: its file, its proofs, its keys and its seals."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.errors import ConfigError
from conure.security import secret
from conure.security.reloading import GivenFile
from conure.security.secret import (
    ACCEPTOR,
    DIALLER,
    MAX_PAYLOAD,
    RECORD_BYTES,
    Nonces,
    Seal,
    expand,
    extract,
    prove,
    seals_of,
    secrets_in,
    who_proved,
)

ONE, OTHER = b"1" * 32, b"2" * 40
NONCES = Nonces(bytes(32), b"\x01" * 32)


def read(path: Path) -> tuple[bytes, ...]:
    file = GivenFile("cluster_secret_file", "flag --cluster-secret-file", str(path))
    return secrets_in(file)


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ONE, (ONE,)),
        (ONE + b"\n", (ONE,)),
        (b"\r\n  " + ONE + b"\t\r\n\n" + OTHER + b"\r\n", (ONE, OTHER)),
        (ONE + b"\n" + ONE, (ONE,)),
        (b"\xff" * 32, (b"\xff" * 32,)),
        (b"\n".join(b"%032d" % i for i in range(8)), tuple(b"%032d" % i for i in range(8))),
    ],
)
def test_a_file_has_a_secret_a_line(tmp_path: Path, text: bytes, found: tuple[bytes, ...]) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text)
    assert read(path) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "has no secret in it"),
        (b" \n\n", "has no secret in it"),
        (b"tooshort-tooshort-tooshort-31by", "has a line 1 that"),
        (ONE + b"\nswordfish", "has a line 2 that"),
        (b"\n".join(b"%032d" % i for i in range(9)), "more than 8 secrets"),
        (b"x" * (2 << 20), "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_good_is_refused_and_not_quoted(
    tmp_path: Path, text: bytes, why: str
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert why in str(caught.value)
    assert str(caught.value).startswith("cluster_secret_file (flag --cluster-secret-file): ")
    for said in text.split():
        assert said.decode("latin-1")[:9] not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere can't be read: No such file or directory"):
        read(tmp_path / "nowhere")


# -- proofs ----------------------------------------------------------------------------------------


def test_any_of_the_secrets_is_found_and_no_other() -> None:
    for known in (ONE, OTHER):
        assert who_proved([ONE, OTHER], DIALLER, NONCES, prove(known, DIALLER, NONCES)) == known
    assert who_proved([ONE, OTHER], DIALLER, NONCES, prove(b"3" * 32, DIALLER, NONCES)) is None
    assert who_proved([], DIALLER, NONCES, prove(ONE, DIALLER, NONCES)) is None
    assert who_proved([ONE], DIALLER, NONCES, b"") is None


def test_a_proof_is_of_one_role_on_one_connection() -> None:
    shown = prove(ONE, DIALLER, NONCES)
    assert who_proved([ONE], ACCEPTOR, NONCES, shown) is None  # reflected
    assert who_proved([ONE], DIALLER, Nonces(*reversed(NONCES)), shown) is None
    for other in (Nonces(b"\x02" * 32, NONCES.acceptor), Nonces(NONCES.dialler, b"\x02" * 32)):
        assert who_proved([ONE], DIALLER, other, shown) is None  # replayed


def test_a_proof_is_the_mac_that_is_drawn() -> None:
    said = b"CDB\x01" + b"D" + NONCES.dialler + NONCES.acceptor
    assert prove(ONE, DIALLER, NONCES) == hmac.digest(ONE, said, "sha256")


# -- keys: RFC 5869, appendix A.1 to A.3 -----------------------------------------------------------


@pytest.mark.parametrize(
    ("material", "salt", "info", "size", "key", "output"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            82,
            "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
            (
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac782"
                "7271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
            ),
        ),
        (
            "0b" * 22,
            "",
            "",
            42,
            "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_hkdf(material: str, salt: str, info: str, size: int, key: str, output: str) -> None:
    found = extract(bytes.fromhex(salt), bytes.fromhex(material))
    assert found.hex() == key
    assert expand(found, bytes.fromhex(info), size).hex() == output


def test_each_direction_has_a_key_of_its_own() -> None:
    dialler, acceptor = seals_of(ONE, NONCES)
    record = dialler.seal(b"hi")
    assert not acceptor.proves(memoryview(record))  # what comes back to whoever sent it
    assert seals_of(ONE, NONCES)[0].proves(memoryview(record))
    assert not seals_of(OTHER, NONCES)[0].proves(memoryview(record))
    for other in (Nonces(b"\x02" * 32, NONCES.acceptor), Nonces(NONCES.dialler, b"\x02" * 32)):
        assert not seals_of(ONE, other)[0].proves(memoryview(record))


# -- records ---------------------------------------------------------------------------------------


def test_the_example_of_the_head() -> None:
    record = Seal(bytes(range(32))).seal(b"hi")
    assert record.hex() == "000000026869" + "ecc9b5e4700749c39a559fcaac6aa3b7"
    assert f"00000002 6869 {record[6:].hex()}" in (secret.__doc__ or "")


@settings(deadline=None)
@given(st.binary(max_size=64), st.lists(st.binary(max_size=300), max_size=5))
def test_a_seal_is_the_mac_that_is_drawn(key: bytes, payloads: list[bytes]) -> None:
    sealing, proving = Seal(key), Seal(key)
    for counter, payload in enumerate(payloads):
        record = sealing.seal(payload)
        head = len(payload).to_bytes(4, "big")
        tag = hmac.digest(key, counter.to_bytes(8, "big") + head + payload, "sha256")[:16]
        assert record == head + payload + tag
        assert proving.length(record) == len(record)
        assert proving.proves(memoryview(record))


def test_a_length_is_checked_before_anything_is_held() -> None:
    seal = Seal(ONE)
    assert seal.length(MAX_PAYLOAD.to_bytes(4, "big")) == MAX_PAYLOAD + RECORD_BYTES
    assert seal.length((MAX_PAYLOAD + 1).to_bytes(4, "big")) == -1
    assert seal.length(b"\xff\xff\xff\xff") == -1
