"""The manifest as bytes: golden ones, any other ones, and a disk that fails while it is written."""

from __future__ import annotations

import random
from zlib import crc32

import pytest

from conure.errors import CorruptionError, DiskFailed, DiskFull, ForeignDirectory, VersionTooNew
from conure.storage.lsm import manifest
from conure.storage.lsm.blobs import BlobFacts
from conure.storage.lsm.manifest import Manifest, decode, encode
from conure.storage.lsm.tables import TableFacts
from tests.lab.crashfs import CrashFileSystem, SimulatedCrash

PLACE = "/home/conure.db"

FULL = Manifest(
    7,
    2,
    0xABCDEF,
    30,
    (
        (TableFacts("t-2.sst", 100, 0x11223344, 10, 1, b"a", b"m", (("b-1.blob", 70),)),),
        (),
        (
            TableFacts("t-0.sst", 90, 5, 20, 0, b"a", b"k", ()),
            TableFacts("t-1.sst", 91, 6, 21, 0, b"l", b"z", ()),
        ),
    ),
    (BlobFacts("b-1.blob", 80),),
    ((b"p", b"q"),),
)


def sealed(data: bytes) -> bytes:
    return data + crc32(data).to_bytes(4, "little")


def disk() -> CrashFileSystem:
    fs = CrashFileSystem()
    fs.make_directory("/home")
    return fs


def test_an_empty_state_is_the_example_in_the_head_of_the_file() -> None:
    data = encode(Manifest(7, 2))
    assert len(data) == 68
    assert data[:-4].hex() == (
        "436f6e7572654c53" "01000000" "44000000"
        "0700000000000000" "0200000000000000" "0000000000000000" "0000000000000000"
        "01000000" "00000000" "00000000"
        "00000000"
    )  # fmt: skip
    assert decode(PLACE, data) == Manifest(7, 2)


def test_what_the_first_release_wrote_is_read() -> None:
    data = bytes.fromhex(
        "436f6e7572654c530100000013010000"
        "07000000000000000200000000000000efcdab00000000001e00000000000000"
        "030000000100000001000000"
        "01000000"
        "0700742d322e737374" "6400000000000000" "44332211" "0a00000000000000" "0100000000000000"
        "0100000061" "010000006d" "01000000" "0800622d312e626c6f62" "4600000000000000"
        "00000000"
        "02000000"
        "0700742d302e737374" "5a00000000000000" "05000000" "1400000000000000" "0000000000000000"
        "0100000061" "010000006b" "00000000"
        "0700742d312e737374" "5b00000000000000" "06000000" "1500000000000000" "0000000000000000"
        "010000006c" "010000007a" "00000000"
        "0800622d312e626c6f62" "5000000000000000"
        "0100000070" "0100000071"
    )  # fmt: skip
    assert encode(FULL)[:-4].hex() == data.hex()
    assert decode(PLACE, sealed(data)) == FULL


def test_a_flipped_bit_is_found_wherever_it_is() -> None:
    data = encode(FULL)
    for at in range(len(data)):
        for bit in (1, 0x80):
            broken = bytearray(data)
            broken[at] ^= bit
            with pytest.raises((CorruptionError, ForeignDirectory)):
                decode(PLACE, bytes(broken))


def test_any_length_is_found() -> None:
    data = encode(FULL)
    for size in range(len(data) - 4):
        with pytest.raises((CorruptionError, ForeignDirectory)):
            decode(PLACE, data[:size])
        with pytest.raises((CorruptionError, ForeignDirectory)):
            decode(PLACE, sealed(data[:size]))
    with pytest.raises(CorruptionError):
        decode(PLACE, data + b"\0")


def test_whatever_has_a_right_checksum_is_a_manifest_or_corrupt() -> None:
    rng = random.Random(5)
    data = encode(FULL)[:-4]
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(16, len(broken))] = rng.choice([0, 1, 255, rng.randrange(256)])
        try:
            found = decode(PLACE, sealed(bytes(broken)))
        except CorruptionError:
            continue
        assert encode(found) == sealed(bytes(broken))


@pytest.mark.parametrize(
    "wrong",
    [
        FULL._replace(levels=((), FULL.levels[2][::-1]), blobs=()),
        FULL._replace(blobs=()),
        FULL._replace(levels=((FULL.levels[2][0],), (FULL.levels[2][0],)), blobs=()),
        FULL._replace(levels=((FULL.levels[2][0]._replace(name="../x"),),), blobs=()),
        FULL._replace(levels=((FULL.levels[2][0]._replace(first=b"x"),),), blobs=()),
        FULL._replace(levels=((FULL.levels[2][0]._replace(tombstones=21),),), blobs=()),
        FULL._replace(levels=()),
    ],
)
def test_a_manifest_that_makes_no_sense_is_corrupt(wrong: Manifest) -> None:
    with pytest.raises(CorruptionError, match=r"conure\.db"):
        decode(PLACE, encode(wrong))


def test_another_version_and_another_file_are_told_apart() -> None:
    newer = bytearray(encode(FULL)[:-4])
    newer[8] = 2
    with pytest.raises(VersionTooNew):
        decode(PLACE, sealed(bytes(newer)))
    with pytest.raises(ForeignDirectory, match="LSM"):
        decode(PLACE, b"ConureKV" + encode(FULL)[8:])
    with pytest.raises(ForeignDirectory):
        decode(PLACE, b"")


def test_there_is_the_old_one_or_the_new_one() -> None:
    at, done = 0, False
    while not done:
        at += 1
        fs = disk()
        manifest.write(fs, PLACE, Manifest(1))
        fs.crash_at_sync = at
        try:
            manifest.write(fs, PLACE, FULL)
            done = True
        except SimulatedCrash:
            pass
        for later in fs.survivors(at):
            found = manifest.read(later, PLACE)
            assert found == FULL or (found == Manifest(1) and not done)
    assert at == 3


@pytest.mark.parametrize("kind", ["io", "full", "half"])
def test_the_old_one_stays_when_a_call_fails(kind: str) -> None:
    at, done = 0, False
    while not done:
        at += 1
        fs = disk()
        manifest.write(fs, PLACE, Manifest(1))
        fs.fail_call(at, kind)  # type: ignore[arg-type]
        try:
            manifest.write(fs, PLACE, FULL)
        except DiskFull:
            assert manifest.read(fs, PLACE) == Manifest(1)
            assert fs.list("/home") == ["conure.db"]
        except DiskFailed:
            assert kind == "io"
        done = fs.failure_is_due
        fs.fail_call(None)
        assert manifest.read(fs, PLACE) in (Manifest(1), FULL)
    assert at > 2
