"""The description of the HTTP API for programs: an OpenAPI 3.1 document (``GET /openapi.json``).

It says which paths, methods, parameters, statuses and bodies there are, in the words of
docs/http-api.md; what they mean for consistency and failure stands there. Tests hold it to the
routes and to the answers of a running node. What JSON Schema can't say, such as which parameters
exclude each other, or that keys and values are any bytes, is said in words.

Nothing here has state: any thread may call anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from conure.values import MAX_QUORUM_SIZE

__all__ = ["document"]

Schema = dict[str, Any]

TEXT: Final = "text/plain"
JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
OCTETS: Final = "application/octet-stream"

_MAX = (1 << 63) - 1
_DURATION = r"^([0-9]{1,12}(\.[0-9]{1,9})?|([0-9]{1,15}(\.[0-9]{1,9})?(ms|s|m|h|d))+)$"


@lru_cache(1)
def document(version: str) -> bytes:
    """Return the document, as JSON in UTF-8; *version* is that of the server."""
    return json.dumps(_document(version), indent=1).encode() + b"\n"


def _document(version: str) -> Schema:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ConureDB",
            "version": version,
            "description": "A key-value store: linearizable reads, writes agreed on by Raft. "
            "Keys and values are any bytes: percent-encoded in a query, base64 with "
            '"encoding": "base64" in JSON where they are not UTF-8.',
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "keys", "description": "Single keys, ranges, transactions and batches."},
            {"name": "changes", "description": "Watches."},
            {"name": "sessions", "description": "Sessions, which may hold keys as locks."},
            {"name": "cluster", "description": "Members, state and backup of the cluster."},
            {"name": "health", "description": "What monitoring asks for."},
        ],
        "paths": {**_keys(), **_sessions(), **_cluster(), **_health()},
        "components": {"schemas": _schemas(), "responses": _errors(), "headers": _headers()},
    }


# -- paths ---------------------------------------------------------------------------------------


def _keys() -> Schema:
    return {
        "/kv": {
            "get": _read(
                "Read a key, or a range of keys",
                "With key: the value as it was put, or with meta=true or Accept: application/json "
                "its record. Without: the records of a range, at most limit of them; with Accept: "
                "application/x-ndjson all of them, a line each, as of one revision. With index the "
                "answer waits until the key changes behind that revision.",
                [
                    _key(required=False),
                    _query("meta", _flag(), "true: answer with the record as JSON"),
                    _query("index", _whole(0), "wait until the key changes behind this revision"),
                    _query("wait", _duration(), "how long, 30s if not said, 600s at most"),
                    *_RANGE,
                    _query("limit", _whole(1), "how many records, 100 if not said"),
                    _query("after", _bound(), "begin behind this key: next of the answer before"),
                    _query("reverse", _flag(), "from the last key to the first"),
                    _query("keys", _flag(), "leave the values out"),
                    *_STALENESS,
                    _header("If-None-Match", "answer 304 if the key has this ETag"),
                ],
                {
                    "200": _answer(
                        "The value, its record, or records.",
                        {
                            OCTETS: {},
                            JSON: {"schema": {"anyOf": [_ref("Record"), _ref("Records")]}},
                            LINES: {},
                        },
                        optional=_RECORD_HEADERS,
                    ),
                    "304": _answer("The key has the ETag that was named.", {}, _RECORD_HEADERS),
                },
                404,
            ),
            "put": _write(
                "Set a key",
                "The value is the parameter or the body; an empty one has to be said, by value= or "
                "Content-Length: 0, unless acquire or release leaves the value alone. ttl, "
                "keepttl, acquire and release exclude each other.",
                [
                    _key(),
                    _query("value", {"type": "string"}, "the value; without it, the body is"),
                    _query("ttl", _duration(), "let the key expire after this time"),
                    _query("keepttl", _flag(), "leave it as it is when the key expires"),
                    _CAS,
                    _query("acquire", _session(), "let this session hold the key, as a lock"),
                    _query("release", _session(), "let go of the key, which this session holds"),
                    *_IF,
                ],
                {"200": _ok(("X-Conure-Fencing-Token", *_RECORD_HEADERS))},
                415,
                404,
                409,
                412,
                body={OCTETS: {}},
            ),
            "delete": _write(
                "Remove a key, or a range of keys",
                "Either key, with conditions, or a range, of which limit says how many keys, the "
                "first ones, go at most. A key that isn't there is no error.",
                [
                    _key(required=False),
                    *_RANGE,
                    _query("limit", _whole(1), "delete a part; the answer has more then"),
                    _CAS,
                    *_IF,
                ],
                {
                    "200": _answer(
                        "Done; of a range, how many keys were deleted, of a part whether there "
                        "are more.",
                        {
                            TEXT: {},
                            JSON: {
                                "schema": {
                                    "type": "object",
                                    "required": ["deleted"],
                                    "properties": {
                                        "deleted": _whole(0),
                                        "more": {"type": "boolean"},
                                    },
                                }
                            },
                        },
                    )
                },
                412,
            ),
        },
        "/kv/count": {
            "get": _read(
                "Count keys",
                "All of them, or those of a range.",
                [*_RANGE, *_STALENESS],
                {"200": _json(_object(count=_whole(0), index=_whole(0)))},
            )
        },
        "/kv/incr": {
            "post": _write(
                "Add to a number",
                "The value is a decimal number of 64 bits, signed; a key that isn't there counts "
                "as 0. When it expires stays.",
                [
                    _key(),
                    _query("by", _whole(-_MAX - 1), "what to add, 1 if not said"),
                    _query("ttl", _duration(), "when a key that isn't there yet is to expire"),
                ],
                {
                    "200": _answer(
                        "The sum.",
                        {TEXT: {"schema": {"type": "string", "pattern": r"^-?[0-9]+\n$"}}},
                        _RECORD_HEADERS,
                    )
                },
                409,
            )
        },
        "/kv/touch": {
            "post": _write(
                "Set when a key expires",
                "Nothing else of the record changes, its revision neither.",
                [_key(), _query("ttl", _duration(), "0: never", required=True)],
                {"200": _ok(_RECORD_HEADERS)},
                404,
            )
        },
        "/kv/batch": {
            "post": _write(
                "Store many records",
                'A line of JSON each: {"key": "k", "value": "v"}, with "ttl" where it is to '
                'expire, or {"key": "k", "delete": true}. Not atomic, unless there is an '
                "Idempotency-Key.",
                [],
                {"200": _json(_object(written=_whole(1), revision=_whole(1)))},
                415,
                body={LINES: {"schema": {"type": "string"}}},
            )
        },
        "/txn": {
            "post": _write(
                "Do all of several things, or none",
                "If all comparisons hold, what stands under success happens, else what stands "
                "under failure. No two operations of a branch may write the same key.",
                [],
                {"200": _json(_ref("Outcome"))},
                404,
                409,
                415,
                body={JSON: {"schema": _ref("Transaction")}},
            )
        },
        "/watch": {
            "get": _read(
                "Follow changes",
                "Server-sent events: put, delete and expire, whose data is an Event, progress, and "
                "end when the watch is over. Of a key, of a prefix, or of everything.",
                [
                    _key(required=False),
                    _query("prefix", _bound(), "all keys that begin with this"),
                    _query("from", _whole(1), "the first revision of interest; without it: now"),
                    _query("prev", _flag(), "show the value before each change, where it is known"),
                    _header("Last-Event-ID", "go on behind this event; beats from"),
                ],
                {
                    "200": {
                        "description": "Events, until one side ends it.",
                        "content": {"text/event-stream": {}},
                    }
                },
                410,
                tag="changes",
            )
        },
    }


def _sessions() -> Schema:
    the_id = _query("id", _session(), "what POST /session answered", required=True)
    return {
        "/session": {
            "post": _write(
                "Begin a session",
                "It ends when it was not renewed for its ttl.",
                [
                    _query("ttl", _duration(), "15s is usual", required=True),
                    _query("name", {"type": "string", "maxLength": 1024}, "for people"),
                    _query(
                        "behavior",
                        {"enum": ["release", "delete"]},
                        "what becomes of the keys that it holds at its end",
                    ),
                ],
                {"200": _json(_object(id=_session(), ttl={"type": "number"}))},
                tag="sessions",
            ),
            "get": _read(
                "Look at a session",
                "",
                [the_id, *_STALENESS],
                {
                    "200": _json(
                        _object(
                            id=_session(),
                            name={"type": "string"},
                            behavior={"enum": ["release", "delete"]},
                            ttl={"type": "number"},
                            left={"type": "number", "minimum": 0},
                        )
                    )
                },
                404,
                tag="sessions",
            ),
            "put": _write(
                "Renew a session",
                "Its time begins anew.",
                [the_id],
                {"200": _ok()},
                404,
                tag="sessions",
            ),
            "delete": _write(
                "End a session",
                "What it holds is released, or deleted.",
                [the_id],
                {"200": _ok()},
                404,
                tag="sessions",
            ),
        }
    }


def _cluster() -> Schema:
    dry_run = _query("dry_run", _flag(), "say what it would mean, and do nothing")
    changed = {
        "200": _answer(
            "Done; of a dry run, what it would mean.",
            {TEXT: {}, JSON: {"schema": _ref("Preview")}},
            index=False,
        )
    }
    plain = {"200": _json({"type": "object"}, index=False)}
    name = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}
    return {
        "/backup": {
            "get": _read(
                "Take a backup",
                "Everything, as of one revision: a file for conuredb.py restore.",
                [],
                {"200": _answer("The backup.", {OCTETS: {}})},
                tag="cluster",
            )
        },
        "/status": {"get": _plain("Who this node is, and whom it follows", plain)},
        "/raft/config": {"get": _plain("The leader and the members", plain)},
        "/raft/stats": {"get": _plain("The state of consensus", plain)},
        "/join": {
            "post": _change(
                "Make a node a member",
                [dry_run],
                changed,
                {
                    "type": "object",
                    "required": ["ID", "RaftAddr"],
                    "properties": {
                        "ID": name,
                        "RaftAddr": {"type": "string", "description": "host:port"},
                        "HTTPAddr": {"type": "string", "description": "http://host:port"},
                        "NonVoter": {"type": "boolean"},
                        "Role": {"enum": ["", "data", "arbiter"]},
                        "Incarnation": {
                            "type": "string",
                            "pattern": "^([0-9a-f]{32})?$",
                            "description": "of its data directory, as it names it itself",
                        },
                    },
                },
            )
        },
        "/remove": {
            "post": _change(
                "End a membership",
                [dry_run, _query("force", _flag(), "even if it costs the quorum")],
                changed,
                {
                    "type": "object",
                    "required": ["ID"],
                    "properties": {"ID": name, "Force": {"type": "boolean"}},
                },
            )
        },
        "/quorum": {
            "post": _change(
                "Change the quorum size",
                [dry_run],
                changed,
                {
                    "type": "object",
                    "required": ["size"],
                    "additionalProperties": False,
                    "properties": {
                        "size": {
                            "description": "how many data voters, the leader among them, have to "
                            "have a write on disk besides a majority of the voters; null or 0: a "
                            "majority decides alone",
                            "anyOf": [
                                {"type": "integer", "minimum": 2, "maximum": MAX_QUORUM_SIZE},
                                {"enum": [0, None]},
                            ],
                        }
                    },
                },
            )
        },
        "/leader": {
            "post": _change(
                "Hand leadership over",
                [],
                {"200": _answer("The other node leads.", {TEXT: {}}, index=False)},
                {"type": "object", "properties": {"ID": name}},
                required=False,
            )
        },
    }


def _health() -> Schema:
    verbose = _query("verbose", {"type": "string"}, "list the checks", allowEmptyValue=True)
    well = {
        "200": _answer("It is well.", {TEXT: {}}, index=False),
        "503": _answer("It is not, and why.", {TEXT: {}}, index=False),
    }
    page = {"200": _answer("A page of text.", {TEXT: {}}, index=False)}
    described = {"200": _json({"type": "object"}, index=False)}
    return {
        "/livez": {"get": _plain("Whether the process can serve at all", well, verbose)},
        "/readyz": {"get": _plain("Whether this node can serve requests", well, verbose)},
        "/metrics": {"get": _plain("Metrics, for Prometheus", page)},
        "/openapi.json": {"get": _plain("This document", described)},
        "/": {"get": _plain("The paths and their methods", page)},
    }


# -- operations ----------------------------------------------------------------------------------


def _operation(
    summary: str, description: str, parameters: list[Schema], answers: Schema, tag: str
) -> Schema:
    found: Schema = {"summary": summary, "tags": [tag]}
    if description:
        found["description"] = description
    if parameters:
        found["parameters"] = parameters
    found["responses"] = answers
    return found


def _read(
    summary: str,
    description: str,
    parameters: list[Schema],
    answers: Schema,
    *errors: int,
    tag: str = "keys",
) -> Schema:
    own = _refer(307, 400, 403, 414, 421, 429, 431, 500, 503, *errors)
    return _operation(summary, description, parameters, answers | own, tag)


def _write(
    summary: str,
    description: str,
    parameters: list[Schema],
    answers: Schema,
    *errors: int,
    body: Schema | None = None,
    tag: str = "keys",
) -> Schema:
    own = _refer(307, 400, 403, 413, 414, 421, 422, 429, 431, 500, 503, 504, 507, *errors)
    found = _operation(summary, description, [*parameters, _ONCE], answers | own, tag)
    if body is not None:
        found["requestBody"] = {"content": body, "required": summary != "Set a key"}
    return found


def _change(
    summary: str,
    parameters: list[Schema],
    answers: Schema,
    schema: Schema,
    *,
    required: bool = True,
) -> Schema:
    own = _refer(307, 400, 403, 404, 409, 413, 414, 421, 429, 431, 500, 503, 504, 507)
    found = _operation(summary, "", parameters, answers | own, "cluster")
    found["requestBody"] = {"content": {JSON: {"schema": schema}}, "required": required}
    return found


def _plain(summary: str, answers: Schema, *parameters: Schema) -> Schema:
    return _operation(
        summary, "", [*parameters], _refer(400, 403, 414, 421, 429, 431, 503) | answers, "health"
    )


def _refer(*statuses: int) -> Schema:
    return {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)
    }


def _answer(
    description: str,
    content: Mapping[str, Schema],
    optional: tuple[str, ...] = (),
    *,
    index: bool = True,
) -> Schema:
    found: Schema = {"description": description}
    names = ("X-Conure-Index", *optional) if index else optional
    if names:
        found["headers"] = {
            name: {"$ref": f"#/components/headers/{name}"} for name in dict.fromkeys(names)
        }
    if content:
        found["content"] = dict(content)
    return found


def _json(schema: Schema, *, index: bool = True) -> Schema:
    return _answer("Done.", {JSON: {"schema": schema}}, index=index)


def _ok(optional: tuple[str, ...] = ()) -> Schema:
    return _answer("Done.", {TEXT: {"schema": {"const": "OK\n"}}}, optional)


# -- parameters ----------------------------------------------------------------------------------


def _query(
    name: str, schema: Schema, description: str, *, required: bool = False, **more: bool
) -> Schema:
    found: Schema = {"name": name, "in": "query", "schema": schema, "description": description}
    if required:
        found["required"] = True
    return found | more


def _header(name: str, description: str, **schema: int) -> Schema:
    return {
        "name": name,
        "in": "header",
        "schema": {"type": "string", **schema},
        "description": description,
    }


def _key(*, required: bool = True) -> Schema:
    schema = {"type": "string", "minLength": 1, "maxLength": 1024}
    return _query("key", schema, "up to 1,024 bytes", required=required)


def _bound() -> Schema:
    return {"type": "string", "maxLength": 1024}


def _flag() -> Schema:
    return {"enum": ["true", "1", "false", "0"]}


def _whole(least: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": _MAX}


def _duration() -> Schema:
    return {"type": "string", "pattern": _DURATION, "examples": ["30s", "1m30s", "500ms", "30"]}


def _session() -> Schema:
    return {"type": "string", "pattern": "^[0-9a-f]{32}$"}


_RANGE = (
    _query("prefix", _bound(), "all keys that begin with this; instead of from and to"),
    _query("from", _bound(), "the first key of the range"),
    _query("to", _bound(), "the first key behind the range"),
)
_STALENESS = (
    _query("stale", _flag(), "true: from this node's own state, without asking anybody"),
    _query("max_stale", _duration(), "503 if no leader was heard for longer; needs stale"),
)
_CAS = _query("cas", _whole(0), "only if this is the key's revision; 0: only if there is no key")
_IF = (
    _header("If-Match", 'only if the key has this ETag, such as "17"; *: if there is the key'),
    _header("If-None-Match", "only if it has another ETag; *: if there is no such key"),
)
_ONCE = _header(
    "Idempotency-Key",
    "a name for this one write: a repetition is answered with the first one's outcome",
    minLength=1,
    maxLength=128,
)
_RECORD_HEADERS = (
    "ETag",
    "X-Conure-Create-Revision",
    "X-Conure-Version",
    "X-Conure-TTL",
    "X-Conure-Last-Contact",
)


# -- components ----------------------------------------------------------------------------------


def _headers() -> Schema:
    def header(description: str, schema: Schema, *, required: bool = False) -> Schema:
        return {"description": description, "schema": schema, "required": required}

    return {
        "X-Conure-Index": header("As of which revision the answer is true.", _whole(0)),
        "ETag": header("The key's revision, in quotes.", {"type": "string"}),
        "X-Conure-Create-Revision": header("Since which revision there is the key.", _whole(1)),
        "X-Conure-Version": header("How often it was written since then.", _whole(1)),
        "X-Conure-TTL": header("Seconds until it expires.", {"type": "number", "minimum": 0}),
        "X-Conure-Fencing-Token": header("Of the lock; it grows with each holder.", _whole(1)),
        "X-Conure-Last-Contact": header(
            "Of a stale read: milliseconds since a leader was heard, or never.",
            {"type": "string", "pattern": "^([0-9]+|never)$"},
        ),
        "Retry-After": header("Seconds after which to try again.", _whole(1)),
        "Location": header("The same request at the leader.", {"type": "string"}),
    }


def _errors() -> Schema:
    said = {
        400: "Malformed; nothing has changed.",
        403: "A web page of another origin asked; nothing has changed.",
        404: "There is no such key, session or member.",
        409: "It contradicts what there is; nothing has changed.",
        410: "Events that old are no longer kept; read the keys again, and watch from there.",
        412: "A condition does not hold; nothing has changed. ETag has the key's revision.",
        413: "Larger than the limit; nothing has changed.",
        414: "The query, or a key in it, is too long; nothing has changed.",
        415: "A body with a Content-Encoding; nothing has changed.",
        421: "The server is not known by the name in Host; nothing has changed.",
        422: "The Idempotency-Key was used for another request; nothing has changed.",
        429: "Too much is under way; nothing has changed.",
        431: "Too many header fields; nothing has changed.",
        500: "A damaged page, or a bug; of a write it is unknown whether it happened.",
        503: "No leader or quorum, or the node is stopping; nothing has changed.",
        504: "Not committed in time; of a write it is unknown whether it happened.",
        507: "The disk is full; nothing has changed.",
    }
    content = {TEXT: {}, "application/problem+json": {"schema": _ref("Problem")}}
    found = {str(status): _answer(text, content, index=False) for status, text in said.items()}
    for status in ("429", "503"):
        found[status]["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    leader = _object(
        leader={"type": "string"}, leader_id={"type": "string"}, leader_http={"type": "string"}
    )
    found["307"] = _answer(
        "Another node leads.", {JSON: {"schema": leader}}, ("Location",), index=False
    )
    return found


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _closed(required: list[str], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas() -> Schema:
    encoding: Schema = {"const": "base64", "description": "key and value are base64"}
    key: Schema = {"type": "string", "minLength": 1, "maxLength": 1024}
    ttl = {"anyOf": [{"type": "number", "minimum": 0.001, "maximum": 315_360_000}, _duration()]}
    any_ttl = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 315_360_000}, _duration()]}
    bounds: Schema = {"prefix": _bound(), "from": _bound(), "to": _bound(), "encoding": encoding}
    revisions: Schema = {
        "create_revision": _whole(1),
        "mod_revision": _whole(1),
        "version": _whole(1),
    }
    item = {
        "type": "object",
        "required": ["key", *revisions],
        "properties": {
            "key": {"type": "string"},
            "value": {"type": "string"},
            "encoding": encoding,
            **revisions,
            "ttl": {"type": "number", "minimum": 0, "description": "seconds until it expires"},
            "session": {"type": "string", "description": "which holds the key"},
            "fencing_token": _whole(1),
        },
    }
    records = _object(
        items={"type": "array", "items": _ref("Record")},
        more={"type": "boolean", "description": "whether there are more; go on with after=next"},
        index=_whole(0),
    )
    records["properties"] |= {"next": {"type": "string"}, "next_encoding": {"const": "base64"}}
    operations = {
        "put": _closed(
            ["key", "value"], key=key, value={"type": "string"}, encoding=encoding, ttl=ttl,
            keepttl={"type": "boolean"},
        ),
        "delete": {
            "oneOf": [_closed(["key"], key=key, encoding=encoding), *_ranges(bounds, {})],
        },
        "get": _closed(["key"], key=key, encoding=encoding),
        "range": {
            "oneOf": _ranges(
                bounds,
                {"limit": _whole(1), "reverse": {"type": "boolean"}, "keys": {"type": "boolean"}},
            )
        },
        "incr": _closed(["key"], key=key, encoding=encoding, by=_whole(-_MAX - 1)),
        "touch": _closed(["key", "ttl"], key=key, encoding=encoding, ttl=any_ttl),
    }  # fmt: skip
    branch = {"type": "array", "items": _ref("Operation"), "maxItems": 128}
    compared: Schema = {
        "value": {"type": "string"},
        "version": _whole(0),
        "create_revision": _whole(0),
        "mod_revision": _whole(0),
    }
    relation: Schema = {"enum": ["=", "!=", "<", ">"]}
    return {
        "Record": item,
        "Records": records,
        "Comparison": {
            "description": "a key that isn't there has version and revisions 0, and no value",
            "oneOf": [
                *(
                    _closed(
                        ["key", name],
                        **{"key": key, "encoding": encoding, name: what, "relation": relation},
                    )
                    for name, what in compared.items()
                ),
                _closed(["key", "exists"], key=key, encoding=encoding, exists={"type": "boolean"}),
            ],
        },
        "Operation": {
            "oneOf": [_closed([name], **{name: what}) for name, what in operations.items()]
        },
        "Transaction": _closed(
            [],
            compare={"type": "array", "items": _ref("Comparison"), "maxItems": 128},
            success=branch,
            failure=branch,
        )
        | {"description": "up to 128 comparisons and operations together, one operation at least"},
        "Outcome": _object(
            succeeded={"type": "boolean"},
            revision=_whole(1),
            results={
                "type": "array",
                "description": "one for each operation of the branch that was taken: the record "
                "that a get found (null: none) or a put, incr or touch left, of these only an "
                "incr's with its value; "
                "of a range items and more, of a delete the number of keys",
                "items": {
                    "anyOf": [
                        {"type": "null"},
                        _ref("Record"),
                        _object(
                            items={"type": "array", "items": _ref("Record")},
                            more={"type": "boolean"},
                        ),
                        _object(deleted=_whole(0)),
                    ]
                },
            },
        ),
        "Event": {
            "type": "object",
            "required": ["key", "value", "revision", "version"],
            "properties": {
                "key": {"type": "string"},
                "value": {"type": ["string", "null"]},
                "encoding": {"const": "base64"},
                "revision": _whole(1),
                "version": _whole(0),
                "prev": {
                    "type": ["string", "null"],
                    "description": "the value before, where it was asked for and is known",
                },
            },
        },
        "Preview": _object(
            allowed={"type": "boolean"}, reason={"type": "string"}, warning={"type": "string"}
        ),
        "Problem": _object(
            type={"type": "string"},
            title={"type": "string"},
            status={"type": "integer"},
            detail={"type": "string"},
        ),
    }


def _ranges(bounds: Schema, more: Schema) -> list[Schema]:
    """Return the ways to name a range: by a prefix, or by its ends."""
    encoding, prefix = bounds["encoding"], bounds["prefix"]
    ends = {name: bounds[name] for name in ("from", "to")}
    by_ends = {
        "type": "object",
        "anyOf": [{"required": ["from"]}, {"required": ["to"]}],
        "properties": {**ends, "encoding": encoding, **more},
        "additionalProperties": False,
    }
    return [_closed(["prefix"], prefix=prefix, encoding=encoding, **more), by_ends]
