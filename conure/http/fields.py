"""The header fields of answers about keys: ETag and X-Conure-…, as lines that are ready to be sent.

Nothing here has state: any thread may call anything.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from conure.commands import Item
from conure.service.backend import Record
from conure.service.freshness import Contact

__all__ = [
    "OF_RECORD",
    "contact_field",
    "etag_field",
    "index_field",
    "record_fields",
    "token_field",
    "ttl_field",
]

OF_RECORD: Final = b'%bETag: "%d"\r\nX-Conure-Create-Revision: %d\r\nX-Conure-Version: %d\r\n'


def index_field(revision: int) -> bytes:
    """Return the header field that says as of which revision an answer is true."""
    return b"X-Conure-Index: %d\r\n" % revision


def etag_field(revision: int) -> bytes:
    """Return the header field that names the revision of a key."""
    return b'ETag: "%d"\r\n' % revision


def contact_field(contact: Contact | None) -> bytes:
    """Return the header field that says how many milliseconds ago this node had heard a leader when
    it was asked for a stale read, or that it never had; nothing for a linearizable read."""
    if contact is None:
        return b""
    seconds = contact.seconds
    shown = "never" if seconds is None else str(ceil(seconds * 1000))
    return b"X-Conure-Last-Contact: %b\r\n" % shown.encode()


def record_fields(record: Record | Item, now: int) -> bytes:
    """Return the header fields of a record; *now* in milliseconds since the Unix epoch, of a record
    that expires."""
    revisions = record.mod_revision, record.create_revision, record.version
    fields = OF_RECORD % (b"", *revisions)
    return fields + ttl_field(record.expiry, now) if record.expiry else fields


def ttl_field(expiry: int, now: int) -> bytes:
    """Return the header field that says for how many seconds a key lives."""
    return b"X-Conure-TTL: %.3f\r\n" % (max(0, expiry - now) / 1000)


def token_field(token: int) -> bytes:
    """Return the header field of a fencing token."""
    return b"X-Conure-Fencing-Token: %d\r\n" % token
