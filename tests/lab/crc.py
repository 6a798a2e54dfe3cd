"""Keys that collide in CRC-32, as somebody makes them who wishes a hash index ill.

For messages of one length, CRC-32 is linear but for a constant: a message can be changed by any sum
of differences that each leave the CRC alone, and it stays what it was.
"""

from __future__ import annotations

from zlib import crc32

__all__ = ["colliding_keys"]


def colliding_keys(count: int, seed: bytes = b"collide!") -> list[bytes]:
    """Return that many keys as long as *seed*, which is one of them, all with its CRC, sorted."""
    size = len(seed)
    constant = crc32(bytes(size))
    rows = [
        (crc32((1 << bit).to_bytes(size, "big")) ^ constant, 1 << bit) for bit in range(8 * size)
    ]
    for bit in range(32):  # Gauss: what is left of the rows changes no bit of a CRC
        pivot = next((row for row in rows if row[0] >> bit & 1), None)
        if pivot is not None:
            rows.remove(pivot)
            rows = [
                (crc ^ pivot[0], change ^ pivot[1]) if crc >> bit & 1 else (crc, change)
                for crc, change in rows
            ]
    changes = [change for _, change in rows]
    assert count <= 1 << len(changes)
    keys = []
    for number in range(count):
        key = int.from_bytes(seed, "big")
        for at, change in enumerate(changes):
            key ^= change * (number >> at & 1)
        keys.append(key.to_bytes(size, "big"))
    return sorted(keys)
