"""JSON in and out: keys and values, transactions, and what came of them.

Text is UTF-8. Where a key or its value isn't, both are base64 and ``"encoding": "base64"`` stands
beside them, on the way in as on the way out. A record, as ``GET /kv?key=K&meta=true`` answers it::

    {"key": "k", "value": "v", "create_revision": 3, "mod_revision": 9, "version": 2, "ttl": 29.7}

with ``ttl``, in seconds, only where it expires. A transaction, and its outcome::

    {"compare": [{"key": "k", "mod_revision": 9}, {"key": "n", "version": 3, "relation": ">"}],
     "success": [{"put": {"key": "k", "value": "w", "ttl": "30s"}}, {"get": {"key": "n"}}],
     "failure": [{"range": {"prefix": "a/", "limit": 10}}, {"delete": {"prefix": "tmp/"}}]}

    {"succeeded": true, "revision": 12, "results": [{"key": "k", ...}, {"key": "n", ...}]}

A comparison names a key, one of ``value``, ``version``, ``create_revision``, ``mod_revision`` and
``exists``, and a ``relation``: ``=`` (if none is named), ``!=``, ``<`` or ``>``. An operation is a
put, delete, get, range, incr or touch; a delete is of a key or, like a range, of a ``prefix`` or
of the keys ``from`` … ``to``. The body of a put by path has the fields of a put, but for the key,
which is the path (restrequests.py).

What a client may make long is read and shown in steps (jsonsteps.py). Nothing here has state: any
thread may call anything. Whatever can't be understood is BadRequest, with the place where it
stands.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from math import inf
from sys import maxsize
from typing import Any, Final, TypeVar

from conure.commands import (
    MAX_KEY_BYTES,
    Compare,
    Delete,
    DeleteRange,
    Get,
    Increment,
    Item,
    Operation,
    Outcome,
    Put,
    Range,
    Relation,
    Result,
    Target,
    Touch,
    Transaction,
    as_text,
    prefix_end,
)
from conure.errors import BadRequest, PayloadTooLarge
from conure.http import jsonsteps
from conure.http.jsonsteps import LongText, Steps
from conure.service.batches import Line
from conure.service.limits import MAX_NUMBER, MAX_OPERATIONS, MAX_WORK, Limits, check_ttl
from conure.service.quoting import shortened
from conure.values import parse_milliseconds

__all__ = [
    "INLINE_BYTES",
    "json_object",
    "parse_batch",
    "parse_duration",
    "parse_transaction",
    "parse_ttl",
    "parse_value",
    "show_item",
    "show_items",
    "show_outcome",
    "show_text",
]

INLINE_BYTES: Final = 16 << 10
"""JSON of up to so many bytes is read in one step: a millisecond, whatever stands there."""

_RELATIONS = {
    "=": Relation.EQUAL,
    "!=": Relation.NOT_EQUAL,
    "<": Relation.LESS,
    ">": Relation.GREATER,
}
_NUMBERS = {
    "version": Target.VERSION,
    "create_revision": Target.CREATE_REVISION,
    "mod_revision": Target.MOD_REVISION,
}
_decode = json.JSONDecoder().decode
_ITEMS_PER_STEP = 32
_SLICE: Final = 64 << 10  # characters of a long value that are read in one step
_WHOLE: Final = 1 << 20  # characters of a string that is put together while it is read
_LONGEST_DURATION = 64  # characters
# What would be a duration if it weren't below 0, or of more digits than any may have.
_is_beyond = re.compile(r"-[0-9.]+[a-z0-9.]*|[0-9]{13,}(?:\.[0-9]*)?[a-z]*", re.ASCII).fullmatch
_PLAIN_LINE = {"key", "value"}

_TRANSACTION = '{"success": [{"put": {"key": "k", "value": "v"}}]}'
_VALUE = '{"value": "v"}'

Object = Mapping[str, Any]

_T = TypeVar("_T")


# -- out -----------------------------------------------------------------------------------------


def show_text(name: str, text: bytes) -> dict[str, Any]:
    """Return bytes as a field of an object."""
    try:
        return {name: text.decode()}
    except UnicodeDecodeError:
        return {name: b64encode(text).decode(), f"{name}_encoding": "base64"}


def show_item(item: Item, now: int) -> dict[str, Any]:
    """Return a record as an object; *now* in milliseconds since the Unix epoch."""
    key, value, is_base64 = as_text(item.key, item.value)
    shown: dict[str, Any] = {"key": key}
    if value is not None:
        shown["value"] = value
    if is_base64:
        shown["encoding"] = "base64"
    shown["create_revision"] = item.create_revision
    shown["mod_revision"] = item.mod_revision
    shown["version"] = item.version
    if item.expiry:
        shown["ttl"] = max(0, item.expiry - now) / 1000
    return shown


def show_outcome(transaction: Transaction, outcome: Outcome, now: int) -> Steps[dict[str, Any]]:
    """Return what came of a transaction as an object."""
    branch = transaction.success if outcome.succeeded else transaction.failure
    results = []
    for operation, result in zip(branch, outcome.results, strict=True):
        results.append((yield from _show_result(operation, result, now)))
        yield
    shown: dict[str, Any] = {
        "succeeded": outcome.succeeded,
        "revision": outcome.revision,
        "results": results,
    }
    if outcome.repeated:
        shown["repeated"] = True
    return shown


def show_items(items: Iterable[Item | None], now: int) -> Steps[list[dict[str, Any]]]:
    """Return records as objects; None among them is a step."""
    shown = []
    for count, item in enumerate(items, 1):
        if item is None:
            yield
            continue
        shown.append(show_item(item, now))
        if count % _ITEMS_PER_STEP == 0 or len(item.value or b"") > INLINE_BYTES:
            yield
    return shown


def _show_result(operation: Operation, result: Result, now: int) -> Steps[dict[str, Any] | None]:
    if isinstance(operation, Delete | DeleteRange):
        return {"deleted": result.total}
    if isinstance(operation, Range):
        items = yield from show_items(result.items, now)
        return {"items": items, "more": result.more}
    if not result.items:
        return None
    shown = show_item(result.items[0], now)
    if isinstance(operation, Increment):
        shown["value"] = str(result.number)
    return shown | {"more": True} if result.more else shown  # of a get whose value was too much


# -- in ------------------------------------------------------------------------------------------


def json_object(text: bytes, example: str) -> dict[str, Any]:
    """Return the JSON object that a short body is. Raises BadRequest, naming *example*."""
    try:
        found = json.loads(text.removeprefix(BOM_UTF8).decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({error}); send {example}") from error
    return _checked_body(found, example)


def parse_duration(name: str, text: str) -> int:
    """Return a duration in milliseconds: ``30s``, ``1m30s``, ``500ms``, or seconds alone.

    Raises BadRequest.
    """
    if len(text) > _LONGEST_DURATION:
        raise BadRequest(f"{name} is {shortened(text)}, which is too long for a duration")
    milliseconds = parse_milliseconds(text)
    if milliseconds is None:
        raise BadRequest(
            f"{name} is {shortened(text)}; it has to be a duration, such as 30s or 500ms"
        )
    return milliseconds


def parse_ttl(text: str, *, least: int = 1, where: str = "") -> int:
    """Return a time to live in milliseconds, *least* at least, written as a duration. Raises
    BadRequest, which says of one that is out of range which range that is."""
    if _is_beyond(text):
        check_ttl(-1, least=least, where=f"{where}ttl is {shortened(text)}; ")
    milliseconds = parse_duration(f"{where}ttl", text)
    return check_ttl(milliseconds, least=least, where=f"{where}ttl is {shortened(text)}; ")


def parse_value(text: bytes, limits: Limits) -> Steps[tuple[bytes, int]]:
    """Return the value that the body of a put by path has, and its time to live in milliseconds, 0
    for ever. Raises BadRequest, and PayloadTooLarge past a limit."""
    body = yield from _read_object(text, _VALUE, limits, whole=_WHOLE)
    _refuse_others(body, {"value", "encoding", "ttl"}, "the body")
    ttl = _ttl(body, "the body")
    value = yield from _long_bytes(body, "value", "the body", len(text))
    return limits.check_value(value), ttl


def parse_transaction(text: bytes, limits: Limits) -> Steps[Transaction]:
    """Return the transaction that the body of ``POST /txn`` describes.

    Raises BadRequest, and PayloadTooLarge past a limit.
    """
    body = yield from _read_object(text, _TRANSACTION, limits)
    _refuse_others(body, {"compare", "success", "failure"}, "the transaction")
    count = sum(len(_list(body, part)) for part in ("compare", "success", "failure"))
    if count > MAX_OPERATIONS:
        raise PayloadTooLarge(
            f"{count} comparisons and operations; a transaction has up to {MAX_OPERATIONS}"
        )
    compares = yield from _parse_each(_compare, body, "compare", limits)
    success = yield from _parse_each(_operation, body, "success", limits)
    failure = yield from _parse_each(_operation, body, "failure", limits)
    if not success and not failure:
        raise BadRequest("the transaction does nothing; name an operation under success or failure")
    operations = (*success, *failure)
    brought = [each.value for each in operations if isinstance(each, Put)]
    brought += [each.operand for each in compares if isinstance(each.operand, bytes)]
    limits.check_change(sum(map(len, brought)))
    return Transaction(
        compares, _bounded("success", success, limits), _bounded("failure", failure, limits)
    )


def _bounded(name: str, branch: tuple[Operation, ...], limits: Limits) -> tuple[Operation, ...]:
    """Let the deletions of ranges share what is left of what a change may do (MAX_WORK).

    Raises BadRequest or PayloadTooLarge for what a branch may not ask for.
    """
    _refuse_double_writes(name, branch)
    read = sum(each.limit for each in branch if isinstance(each, Range))
    written = sum(len(each.value) for each in branch if isinstance(each, Put)) >> 10
    if read > limits.range_items:
        raise PayloadTooLarge(
            f"the ranges of {name} may read {read:,} records; all limits of a transaction "
            f"together may be up to {limits.range_items:,} (max_range_items)"
        )
    left = MAX_WORK - read - written
    if read and left < 0:
        raise PayloadTooLarge(
            f"the ranges of {name} may read {read:,} records, and its values have {written:,} KiB; "
            f"limits and KiB of a transaction together may be up to {MAX_WORK:,}"
        )
    ranges = sum(isinstance(each, DeleteRange) for each in branch)
    share = max(1, min(limits.deleted_items, left) // max(1, ranges))
    return tuple(
        each._replace(limit=share) if isinstance(each, DeleteRange) else each for each in branch
    )


def parse_batch(text: bytes, limits: Limits, most: int) -> Steps[list[Line]]:
    """Return what up to *most* lines of NDJSON say; blank ones count, too.

    Raises BadRequest or PayloadTooLarge, with the line's number.
    """
    found = []
    number = start = 0
    while start < len(text):
        number += 1
        if number > most:
            raise PayloadTooLarge(
                f"more than {most:,} lines, blank ones among them; a batch has up to {most:,}"
            )
        end = text.find(b"\n", start)
        line = text[start:] if end < 0 else text[start:end]
        start += len(line) + 1
        where = f"line {number}"
        if len(line) > INLINE_BYTES:
            if (yield from jsonsteps.is_blank(line)):
                continue
            record = yield from _read_line(line, where, limits)
        elif not line or line.isspace():
            continue
        else:
            try:
                record = _decode(line.decode())
            except (ValueError, RecursionError) as error:
                raise BadRequest(f"{where} is not JSON: {error}") from error
        found.append(_parse_line(record, where, limits))
        yield
    return found


# -- private -------------------------------------------------------------------------------------


def _read_line(line: bytes, where: str, limits: Limits) -> Steps[Any]:
    try:
        return (yield from jsonsteps.read(line, longest=limits.text_length, repeats=True))
    except jsonsteps.Malformed as error:
        raise BadRequest(f"{where} is not JSON: {error}") from error
    except (BadRequest, PayloadTooLarge) as error:
        raise type(error)(f"{where}: {error}") from error


def _parse_line(record: Any, where: str, limits: Limits) -> Line:
    if not isinstance(record, dict):
        raise BadRequest(f'{where} has to be an object, such as {{"key": "k", "value": "v"}}')
    if record.keys() == _PLAIN_LINE:  # quickly: there are many of them
        key, value = record["key"], record["value"]
        if isinstance(key, str) and isinstance(value, str):
            return (
                _checked_key(_encoded(key, where), where),
                limits.check_value(_encoded(value, where), f"{where}: "),
                0,
            )
    _refuse_others(record, {"key", "value", "encoding", "ttl", "delete"}, where)
    found = _key(record, where)
    if _boolean(record, "delete", where):
        if "value" in record or "ttl" in record:
            raise BadRequest(f"{where} deletes the key; a value or ttl makes no sense there")
        return found, None, 0
    return found, _value(record, where, limits), _ttl(record, where)


def _read_object(
    text: bytes, example: str, limits: Limits, whole: int = maxsize
) -> Steps[dict[str, Any]]:
    """Return the JSON object that a body of any length is; in it strings of more than *whole*
    characters are in parts."""
    if len(text) <= INLINE_BYTES:
        return json_object(text, example)
    try:
        found = yield from jsonsteps.read(text, longest=limits.text_length, whole=whole)
    except jsonsteps.Malformed as error:
        raise BadRequest(f"the body is not JSON ({error}); send {example}") from error
    return _checked_body(found, example)


def _checked_body(found: Any, example: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise BadRequest(f"the body has to be a JSON object; send {example}")
    return found


def _parse_each(
    parse: Callable[[Any, str, Limits], _T], body: Object, name: str, limits: Limits
) -> Steps[tuple[_T, ...]]:
    """Return what is made of each element of a list, a step for each."""
    found = []
    for number, each in enumerate(_list(body, name)):
        found.append(parse(each, f"{name}[{number}]", limits))
        yield
    return tuple(found)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(f"{shortened(name)} is given twice in the body; give it once")
        found[name] = value
    return found


def _compare(body: Any, where: str, limits: Limits) -> Compare:
    body = _checked_object(body, where)
    named = [name for name in ("value", "exists", *_NUMBERS) if name in body]
    if len(named) != 1:
        raise BadRequest(
            f"{where} has to name one of value, exists, version, create_revision and mod_revision"
        )
    (name,) = named
    _refuse_others(body, {"key", "encoding", "relation", name}, where)
    key = _key(body, where)
    relation = body.get("relation", "=")
    if not isinstance(relation, str) or relation not in _RELATIONS:
        raise BadRequest(f"{where}: relation is {_shown(relation)}; it has to be =, !=, < or >")
    if name == "exists":
        if "relation" in body:
            raise BadRequest(f"{where}: exists is true or false and takes no relation")
        exists = _boolean(body, "exists", where)
        return Compare(key, Target.VERSION, Relation.GREATER if exists else Relation.EQUAL, 0)
    if name == "value":
        return Compare(key, Target.VALUE, _RELATIONS[relation], _value(body, where, limits))
    return Compare(
        key, _NUMBERS[name], _RELATIONS[relation], _number(body, name, where, 0, MAX_NUMBER)
    )


def _operation(body: Any, where: str, limits: Limits) -> Operation:
    body = _checked_object(body, where)
    if len(body) != 1 or (name := next(iter(body))) not in _OPERATIONS:
        raise BadRequest(f"{where} has to be one of {', '.join(_OPERATIONS)}, with its object")
    return _OPERATIONS[name](
        _checked_object(body[name], f"{where}.{name}"), f"{where}.{name}", limits
    )


def _put(body: Object, where: str, limits: Limits) -> Operation:
    _refuse_others(body, {"key", "value", "encoding", "ttl", "keepttl"}, where)
    keep = _boolean(body, "keepttl", where)
    if keep and "ttl" in body:
        raise BadRequest(f"{where}: ttl and keepttl exclude each other")
    return Put(_key(body, where), _value(body, where, limits), _ttl(body, where), keep)


def _delete(body: Object, where: str, limits: Limits) -> Operation:
    if "key" in body:
        _refuse_others(body, {"key", "encoding"}, where)
        return Delete(_key(body, where))
    return DeleteRange(*_bounds(body, where, set()), limits.deleted_items)


def _get(body: Object, where: str, _: Limits) -> Operation:
    _refuse_others(body, {"key", "encoding"}, where)
    return Get(_key(body, where))


def _range(body: Object, where: str, limits: Limits) -> Operation:
    start, end = _bounds(body, where, {"limit", "reverse", "keys"})
    most = limits.range_items
    limit = _number(body, "limit", where, 1, most) if "limit" in body else min(100, most)
    return Range(start, end, limit, _boolean(body, "reverse", where), _boolean(body, "keys", where))


def _increment(body: Object, where: str, _: Limits) -> Operation:
    _refuse_others(body, {"key", "encoding", "by"}, where)
    by = _number(body, "by", where, -MAX_NUMBER - 1, MAX_NUMBER) if "by" in body else 1
    return Increment(_key(body, where), by)


def _touch(body: Object, where: str, _: Limits) -> Operation:
    _refuse_others(body, {"key", "encoding", "ttl"}, where)
    if "ttl" not in body:
        raise BadRequest(f"{where}: the ttl is missing; 0 stands for ever")
    return Touch(_key(body, where), _ttl(body, where, least=0))


_OPERATIONS: dict[str, Callable[[Object, str, Limits], Operation]] = {
    "put": _put,
    "delete": _delete,
    "get": _get,
    "range": _range,
    "incr": _increment,
    "touch": _touch,
}


def _bounds(body: Object, where: str, others: set[str]) -> tuple[bytes, bytes | None]:
    if "prefix" in body:
        _refuse_others(body, {"prefix", "encoding"} | others, where)
        prefix = _bound(body, "prefix", where)
        return prefix, prefix_end(prefix)
    if "from" not in body and "to" not in body:
        raise BadRequest(f"{where} has to name a prefix, or from and to")
    _refuse_others(body, {"from", "to", "encoding"} | others, where)
    return (
        _bound(body, "from", where) if "from" in body else b"",
        _bound(body, "to", where) if "to" in body else None,
    )


def _bound(body: Object, name: str, where: str) -> bytes:
    """Return what bounds a range of keys; it may be empty, and is no longer than a key."""
    bound = _bytes(body, name, where)
    return _checked_length(bound, f"{where}: {name}")


def _refuse_double_writes(name: str, branch: tuple[Operation, ...]) -> None:
    """Raise BadRequest if two operations write the same key: there is no telling what is meant."""
    written: set[bytes] = set()
    ranges: list[DeleteRange] = []
    for operation in branch:
        if isinstance(operation, DeleteRange):
            ranges.append(operation)
        elif isinstance(operation, Put | Delete | Increment | Touch):
            if operation.key in written:
                raise BadRequest(
                    f"{name} writes {shortened(operation.key.decode(errors='replace'))} twice"
                )
            written.add(operation.key)
    for n, (start, end, _) in enumerate(ranges):
        if any(key >= start and (end is None or key < end) for key in written):
            raise BadRequest(f"{name} deletes a range with a key in it that it writes, too")
        for other_start, other_end, _ in ranges[:n]:
            if (end is None or other_start < end) and (other_end is None or start < other_end):
                raise BadRequest(f"{name} deletes two ranges that overlap")


def _checked_object(body: Any, where: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BadRequest(f"{where} has to be an object")
    return body


def _list(body: Object, name: str) -> list[Any]:
    found = body.get(name, [])
    if not isinstance(found, list):
        raise BadRequest(f"{name} has to be a list")
    return found


def _refuse_others(body: Object, known: set[str], where: str) -> None:
    for name in body:
        if name not in known:
            raise BadRequest(
                f"{where} has no field {shortened(name)}; it takes {', '.join(sorted(known))}"
            )


def _key(body: Object, where: str) -> bytes:
    return _checked_key(_bytes(body, "key", where), where)


def _checked_key(key: bytes, where: str) -> bytes:
    if not key:
        raise BadRequest(f"{where}: the key is empty; a key has 1 byte at least")
    return _checked_length(key, f"{where}: the key")


def _checked_length(key: bytes, what: str) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise PayloadTooLarge(f"{what} has {len(key):,} bytes; the limit is {MAX_KEY_BYTES:,}")
    return key


def _value(body: Object, where: str, limits: Limits) -> bytes:
    return limits.check_value(_bytes(body, "value", where), f"{where}: ")


def _bytes(body: Object, name: str, where: str) -> bytes:
    """Return the bytes that a field stands for, by the encoding that is beside it."""
    text = _string(body, name, where)
    return _decoded(text, name, where) if _is_base64(body, where) else _encoded(text, where)


def _long_bytes(body: Object, name: str, where: str, most: int) -> Steps[bytes]:
    """Return the same of a field that may be long, or a LongText; it has *most* bytes at most.

    A copy of 60 MiB would be a step of tens of milliseconds. So there is room for all from the
    beginning, which the system makes when it is written to, and no other place for it later.
    """
    found = body.get(name)
    parts = found.parts if isinstance(found, LongText) else _sliced(_string(body, name, where))
    is_base64 = _is_base64(body, where)
    octets, last = BytesIO(bytes(most)), ""  # the last group of base64 as far as has been read
    for part in parts:
        if not is_base64:
            octets.write(_encoded(part, where))
        else:
            text = last + part
            begin = max(len(text) - 1, 0) & ~3  # of the last one, which alone may end with a =
            if text.find("=", 0, begin) >= 0:
                raise BadRequest(f"{where}: {name} is no base64: it goes on behind a =")
            octets.write(_decoded(text[:begin], name, where))
            last = text[begin:]
        yield
    octets.write(_decoded(last, name, where))
    octets.truncate()
    return octets.getvalue()


def _sliced(text: str) -> Iterator[str]:
    return (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))


def _is_base64(body: Object, where: str) -> bool:
    if "encoding" not in body:
        return False
    if body["encoding"] != "base64":
        raise BadRequest(f"{where}: encoding is {_shown(body['encoding'])}; only base64 is known")
    return True


def _decoded(text: str, name: str, where: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise BadRequest(f"{where}: {name} is no base64: {error}") from error


def _encoded(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise BadRequest(f"{where}: {error}; send what isn't text as base64") from error


def _string(body: Object, name: str, where: str) -> str:
    found = body.get(name)
    if not isinstance(found, str):
        raise BadRequest(f"{where}: {name} is missing or not a string")
    return found


def _boolean(body: Object, name: str, where: str) -> bool:
    found = body.get(name, False)
    if not isinstance(found, bool):
        raise BadRequest(f"{where}: {name} has to be true or false")
    return found


def _number(body: Object, name: str, where: str, least: int, most: int) -> int:
    found = body.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise BadRequest(
            f"{where}: {name} is {_shown(found)}; it has to be a whole number "
            f"from {least} to {most}"
        )
    return found


def _ttl(body: Object, where: str, *, least: int = 1) -> int:
    if "ttl" not in body:
        return 0
    found = body["ttl"]
    if isinstance(found, str):
        return parse_ttl(found, least=least, where=f"{where}: ")
    if isinstance(found, bool) or not isinstance(found, int | float) or not -inf < found < inf:
        raise BadRequest(f"{where}: ttl has to be a duration, such as 30 or 30s")
    milliseconds = round(max(-1.0, min(found, 1e15)) * 1000)  # of either sign, and out of range
    return check_ttl(milliseconds, least=least, where=f"{where}: ttl is {_shown(found)}; ")


def _shown(found: Any) -> str:
    if isinstance(found, LongText):
        found = found.parts[0]
    if isinstance(found, str):
        return shortened(found)
    if isinstance(found, dict | list):
        return "an object" if isinstance(found, dict) else "a list"
    return shortened(json.dumps(found)).replace("'", "")
