"""What a request about keys asks for: its parameters and header fields, read and checked.

Every function takes what came from outside and returns what the routes work with, or raises the
error that the request is answered with; nothing has been changed by then. A parameter that means
nothing where it stands is refused, and so is a condition that a route would not look at: a client
that asked for more than it gets has to hear of it.

Nothing here has state but what :func:`conditions_of` notes in header blocks and :func:`named_by`
in targets: many requests share them. The reactor thread only, but for what returns a plain value:
any thread may call that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from conure.commands import MAX_KEY_BYTES, Compare, Relation, Target, prefix_end
from conure.errors import BadRequest, TargetTooLong, UnsupportedMediaType
from conure.http import documents
from conure.http.head import Headers, elements
from conure.http.request import Request
from conure.service.freshness import LINEARIZABLE, STALE, Freshness
from conure.service.limits import MAX_NUMBER
from conure.service.quoting import shortened, shown
from conure.service.scans import Scan

__all__ = [
    "PLAIN",
    "STALENESS",
    "Conditions",
    "Named",
    "Query",
    "bounds",
    "compares",
    "conditions_of",
    "duration",
    "flag",
    "freshness_of",
    "key_of",
    "named_by",
    "names_revision",
    "number",
    "refuse_coding",
    "refuse_conditions",
    "refuse_conditions_of_read",
    "refuse_others",
    "scan_of",
    "session_id",
    "ttl_of",
]

DEFAULT_ITEMS: Final = 100
"""Records of an answer whose request names no limit."""

STALENESS: Final = frozenset({b"stale", b"max_stale"})
"""The parameters of every read."""

_BOUNDS = frozenset({b"prefix", b"from", b"to"})
_SCAN = STALENESS | _BOUNDS | {b"limit", b"after", b"reverse", b"keys"}
_AS_IT_IS = frozenset({"", "identity"})  # content codings that change nothing
_YES, _NO = frozenset({b"true", b"1"}), frozenset({b"false", b"0"})
_SESSION = re.compile(rb"[0-9a-f]{32}")
_ENTITY_TAG = re.compile(r'(?:W/)?"?([0-9]{1,19})"?')

Query = Mapping[bytes, bytes]


class Conditions:
    """What the header fields of a request ask for, beyond the plain."""

    __slots__ = ("coding", "idempotency_key", "if_match", "if_none_match", "lines", "objects")

    def __init__(self, headers: Headers) -> None:
        accept = headers.get("accept", "")
        assert accept is not None
        self.if_match = headers.get("if-match")
        self.if_none_match = headers.get("if-none-match")
        self.idempotency_key = headers.get("idempotency-key")
        coding = headers.get("content-encoding") or ""
        self.coding = "" if elements(coding) <= _AS_IT_IS else coding
        accept = accept.lower()
        self.objects = "application/json" in accept and "*/*" not in accept
        self.lines = "application/x-ndjson" in accept

    def is_plain(self) -> bool:
        """Tell whether nothing is asked for."""
        return (
            self.if_match is self.if_none_match is self.idempotency_key is None
            and not self.objects
            and not self.lines
            and not self.coding
        )


PLAIN: Final = Conditions(Headers({}))
"""The conditions of each request that has none."""


class Named(NamedTuple):
    """A query; and its *key*, if it says nothing else but perhaps ``stale=true``, else b""."""

    key: bytes
    is_stale: bool
    query: Query


# -- header fields -------------------------------------------------------------------------------


def conditions_of(headers: Headers) -> Conditions:
    """Read the header fields, once for all requests that send the same ones."""
    conditions = Conditions(headers)
    if conditions.is_plain():
        conditions = PLAIN
    headers.note = conditions
    return conditions


def compares(key: bytes, query: Query, conditions: Conditions) -> tuple[Compare, ...]:
    """Return what has to hold for a write of one key to happen. Raises BadRequest."""
    found = []
    if b"cas" in query:
        revision = number(query, b"cas", 0)
        found.append(Compare(key, Target.MOD_REVISION, Relation.EQUAL, revision))
    if conditions.if_match == "*":
        found.append(Compare(key, Target.VERSION, Relation.GREATER, 0))
    elif conditions.if_match is not None:
        revision = _revision("If-Match", conditions.if_match)
        found.append(Compare(key, Target.MOD_REVISION, Relation.EQUAL, revision))
    if conditions.if_none_match == "*":
        found.append(Compare(key, Target.VERSION, Relation.EQUAL, 0))
    elif conditions.if_none_match is not None:
        revision = _revision("If-None-Match", conditions.if_none_match)
        found.append(Compare(key, Target.MOD_REVISION, Relation.NOT_EQUAL, revision))
    return tuple(found)


def refuse_conditions(conditions: Conditions) -> None:
    """Raise BadRequest if a write that takes no conditions was given one."""
    if not conditions.if_match is conditions.if_none_match is None:
        raise BadRequest(
            "If-Match and If-None-Match go with PUT and DELETE /kv?key=K only; "
            "compare in a transaction (POST /txn) instead"
        )


def refuse_conditions_of_read(conditions: Conditions, *, of_range: bool = False) -> None:
    """Raise BadRequest if a read was given a condition that it would not look at."""
    if conditions.if_match is not None:
        raise BadRequest(
            "If-Match goes with PUT and DELETE /kv?key=K only; compare what the answer's ETag says"
        )
    if of_range and conditions.if_none_match is not None:
        raise BadRequest(
            "If-None-Match goes with one key only, and this answer has no ETag to compare"
        )


def names_revision(none_match: str, revision: int) -> bool:
    """Tell whether a list of entity tags has the one of a revision (RFC 9110 section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/").strip('"') for tag in none_match.split(",")}
    return "*" in tags or str(revision) in tags


def refuse_coding(conditions: Conditions) -> None:
    """Raise UnsupportedMediaType for a body that is compressed or coded otherwise: it would be
    stored as it is, and nobody who gets it would be told of that."""
    if conditions.coding:
        raise UnsupportedMediaType(
            f"Content-Encoding is {shortened(conditions.coding)}, and no coding is undone here; "
            "send the body as it is, without the field (to store compressed bytes, too)"
        )


# -- the query -----------------------------------------------------------------------------------


def key_of(query: Query) -> bytes:
    """Return the key. Raises BadRequest, TargetTooLong."""
    key = query.get(b"key")
    if not key:
        raise BadRequest("the key is missing; name it in the query: key=K")
    return _checked(key, "key")


def named_by(request: Request) -> Named:
    """Read the query, once for all requests with the same target.

    Raises BadRequest, TargetTooLong.
    """
    query = request.parameters()
    is_stale = query.get(b"stale") == b"true"
    is_plain = b"key" in query and len(query) == 1 + is_stale
    named = Named(key_of(query) if is_plain else b"", is_stale, query)
    request.target.note = named
    return named


def session_id(query: Query, name: bytes) -> bytes:
    """Return the session that a parameter names. Raises BadRequest."""
    found = query.get(name, b"")
    if not _SESSION.fullmatch(found):
        raise BadRequest(
            f"{name.decode()} is {shown(found)}; it has to be the id that POST /session answered"
        )
    return found


def bounds(query: Query) -> tuple[bytes, bytes | None]:
    """Return the first key of a range and the first after it, None if it has no end.

    Without bounds that is all keys. Raises BadRequest, TargetTooLong.
    """
    prefix = query.get(b"prefix")
    if prefix is not None:
        if b"from" in query or b"to" in query:
            raise BadRequest("prefix goes without from and to")
        return _checked(prefix, "prefix"), prefix_end(prefix)
    end = query.get(b"to")
    return (
        _checked(query.get(b"from", b""), "from"),
        None if end is None else _checked(end, "to"),
    )


def scan_of(query: Query, *, most: int, as_lines: bool) -> Scan:
    """Return which records a request asks for, up to *most* unless *as_lines*.

    Raises BadRequest, TargetTooLong.
    """
    refuse_others(query, _SCAN)
    limit = None if as_lines else min(DEFAULT_ITEMS, most)
    if b"limit" in query:
        limit = number(query, b"limit", 1)
        if limit > most and not as_lines:
            raise BadRequest(
                f"limit may be up to {most:,} (max_range_items); ask for the rest with after, "
                "or for all of it with Accept: application/x-ndjson"
            )
    start, end = bounds(query)
    reverse = flag(query, b"reverse")
    if b"after" in query:
        after = _checked(query[b"after"], "after")
        if reverse:
            end = after if end is None else min(end, after)
        else:
            start = max(start, after + b"\0")
    return Scan(start, end, limit, reverse=reverse, keys_only=flag(query, b"keys"))


def flag(query: Query, name: bytes) -> bool:
    """Return a parameter that is true or false; false if it is missing. Raises BadRequest."""
    value = query.get(name, b"false")
    if value in _YES:
        return True
    if value in _NO:
        return False
    raise BadRequest(f"{name.decode()} is {shown(value)}; it has to be true or false")


def number(query: Query, name: bytes, least: int) -> int:
    """Return a parameter that is a whole number of 64 bits. Raises BadRequest."""
    text = query[name]
    digits = text.removeprefix(b"-")
    found = int(text) if digits.isdigit() and len(digits) <= 19 else None
    if found is None or not least <= found <= MAX_NUMBER:
        raise BadRequest(
            f"{name.decode()} is {shown(text)}; it has to be a whole number "
            f"from {least} to {MAX_NUMBER}"
        )
    return found


def duration(query: Query, name: bytes) -> int:
    """Return a parameter that is a duration, in milliseconds. Raises BadRequest."""
    return documents.parse_duration(name.decode(), query[name].decode(errors="replace"))


def ttl_of(query: Query, example: str, *, least: int = 1) -> int:
    """Return the time to live in milliseconds, *least* at least. Raises BadRequest."""
    if b"ttl" not in query:
        raise BadRequest(f"the ttl is missing; name it in the query: {example}")
    return documents.parse_ttl(query[b"ttl"].decode(errors="replace"), least=least)


def freshness_of(query: Query) -> Freshness:
    """Return how old what a read finds may be. Raises BadRequest."""
    limit = duration(query, b"max_stale") / 1000 if b"max_stale" in query else None
    is_stale = flag(query, b"stale")
    if limit is not None:
        if not is_stale:
            raise BadRequest("max_stale bounds a stale read; add stale=true, or leave it out")
        return Freshness(is_stale, limit)
    return STALE if is_stale else LINEARIZABLE


def refuse_others(query: Query, known: frozenset[bytes] | set[bytes]) -> None:
    """Raise BadRequest for a parameter that means nothing here."""
    for name in query:
        if name not in known:
            takes = b", ".join(sorted(known)).decode() or "none"
            raise BadRequest(f"there is no parameter {shown(name)} here; there are: {takes}")


# -- private -------------------------------------------------------------------------------------


def _checked(key: bytes, name: str) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise TargetTooLong(f"the {name} has {len(key):,} bytes; the limit is {MAX_KEY_BYTES:,}")
    return key


def _revision(name: str, tag: str) -> int:
    match = _ENTITY_TAG.fullmatch(tag.strip())
    if match is None:
        raise BadRequest(
            f'{name} is {shortened(tag)}; it has to be * or one entity tag, such as "17"'
        )
    return int(match[1])
