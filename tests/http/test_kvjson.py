"""JSON in and out: everything that is understood, and everything that isn't."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conure.commands import (
    Compare,
    Delete,
    DeleteRange,
    Get,
    Increment,
    Item,
    Outcome,
    Put,
    Range,
    Relation,
    Result,
    Target,
    Touch,
    Transaction,
    prefix_end,
)
from conure.errors import BadRequest, PayloadTooLarge, RequestError
from conure.http import documents
from conure.http.jsonsteps import all_of
from conure.service.limits import MAX_NUMBER, MAX_OPERATIONS, Limits

LIMITS = Limits(value_bytes=100, range_items=1000)


def parsed(body: object) -> Transaction:
    return all_of(documents.parse_transaction(json.dumps(body).encode(), LIMITS))


def parsed_operation(operation: object) -> object:
    return parsed({"success": [operation]}).success[0]


@pytest.mark.parametrize(
    ("operation", "meaning"),
    [
        ({"put": {"key": "k", "value": "v"}}, Put(b"k", b"v")),
        ({"put": {"key": "ä", "value": "", "ttl": 1.5}}, Put("ä".encode(), b"", 1500)),
        ({"put": {"key": "k", "value": "v", "keepttl": True}}, Put(b"k", b"v", keep_ttl=True)),
        ({"put": {"key": "/w==", "value": "AA==", "encoding": "base64"}}, Put(b"\xff", b"\0")),
        ({"delete": {"key": "k"}}, Delete(b"k")),
        ({"delete": {"prefix": "a/"}}, DeleteRange(b"a/", b"a0", 1000)),
        ({"delete": {"from": "a"}}, DeleteRange(b"a", None, 1000)),
        ({"get": {"key": "k"}}, Get(b"k")),
        ({"range": {"prefix": ""}}, Range(b"", None, 100)),
        (
            {"range": {"from": "a", "to": "b", "limit": 1000, "reverse": True, "keys": True}},
            Range(b"a", b"b", 1000, True, True),
        ),
        ({"range": {"prefix": "/w==", "encoding": "base64"}}, Range(b"\xff", None, 100)),
        ({"incr": {"key": "k"}}, Increment(b"k", 1)),
        ({"incr": {"key": "k", "by": -MAX_NUMBER - 1}}, Increment(b"k", -MAX_NUMBER - 1)),
        ({"touch": {"key": "k", "ttl": "1h"}}, Touch(b"k", 3_600_000)),
        ({"touch": {"key": "k", "ttl": 0}}, Touch(b"k", 0)),
    ],
)
def test_operations(operation: object, meaning: object) -> None:
    assert parsed_operation(operation) == meaning


@pytest.mark.parametrize(
    ("compare", "meaning"),
    [
        ({"value": "v"}, (Target.VALUE, Relation.EQUAL, b"v")),
        ({"value": "v", "relation": "<"}, (Target.VALUE, Relation.LESS, b"v")),
        ({"version": 0}, (Target.VERSION, Relation.EQUAL, 0)),
        ({"mod_revision": 9, "relation": "!="}, (Target.MOD_REVISION, Relation.NOT_EQUAL, 9)),
        (
            {"create_revision": MAX_NUMBER, "relation": ">"},
            (Target.CREATE_REVISION, Relation.GREATER, MAX_NUMBER),
        ),
        ({"exists": True}, (Target.VERSION, Relation.GREATER, 0)),
        ({"exists": False}, (Target.VERSION, Relation.EQUAL, 0)),
    ],
)
def test_comparisons(compare: dict[str, Any], meaning: tuple[Any, ...]) -> None:
    body = {"compare": [{"key": "k", **compare}], "success": [{"get": {"key": "k"}}]}
    assert parsed(body).compares == (Compare(b"k", *meaning),)


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ("get", "success[0] has to be an object"),
        ({}, "success[0] has to be one of put, delete"),
        ({"fetch": {"key": "k"}}, "one of put"),
        ({"get": "k"}, "success[0].get has to be an object"),
        ({"get": {}}, "key is missing"),
        ({"get": {"key": 1}}, "key is missing or not a string"),
        ({"get": {"key": ""}}, "key is empty"),
        ({"get": {"key": "k", "encoding": "hex"}}, "encoding is 'hex'"),
        ({"get": {"key": "k", "encoding": None}}, "encoding is null"),
        ({"get": {"key": "k", "encoding": {"a": 1}}}, "encoding is an object"),
        ({"get": {"key": "no base64!", "encoding": "base64"}}, "key is no base64"),
        ({"get": {"key": "\ud800"}}, "base64"),
        ({"put": {"key": "k", "value": None}}, "value is missing"),
        ({"put": {"key": "k", "value": "v", "ttl": 0}}, "1 ms at least"),
        ({"put": {"key": "k", "value": "v", "ttl": ""}}, "duration"),
        ({"put": {"key": "k", "value": "v", "ttl": True}}, "duration"),
        ({"put": {"key": "k", "value": "v", "ttl": float("nan")}}, "duration"),
        ({"put": {"key": "k", "value": "v", "ttl": "1s", "keepttl": True}}, "exclude"),
        ({"put": {"key": "k", "value": "v", "keepttl": 1}}, "true or false"),
        ({"delete": {"key": "k", "prefix": "k"}}, "no field 'prefix'"),
        ({"delete": {"prefix": "k", "from": "k"}}, "no field 'from'"),
        ({"range": {"prefix": "k", "limit": 0}}, "from 1 to 1000"),
        ({"range": {"prefix": "k", "limit": True}}, "limit is true"),
        ({"range": {"prefix": "k", "limit": [1]}}, "limit is a list"),
        ({"incr": {"key": "k", "by": MAX_NUMBER + 1}}, "whole number"),
        ({"incr": {"key": "k", "by": 1.0}}, "whole number"),
        ({"touch": {"key": "k"}}, "ttl is missing"),
    ],
)
def test_operations_that_mean_nothing(operation: object, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed_operation(operation)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("compare", "says"),
    [
        ({"key": "k"}, "has to name one of"),
        ({"key": "k", "value": "v", "version": 1}, "has to name one of"),
        ({"key": "k", "version": -1}, "from 0 to"),
        ({"key": "k", "version": 1, "relation": ">="}, "relation is '>='"),
        ({"key": "k", "version": 1, "relation": []}, "relation is a list"),
        ({"key": "k", "exists": True, "relation": "="}, "takes no relation"),
        ({"key": "k", "exists": 1}, "true or false"),
        ({"key": "k", "version": 1, "target": 2}, "no field 'target'"),
        ({"version": 1}, "key is missing"),
    ],
)
def test_comparisons_that_mean_nothing(compare: object, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed({"compare": [compare], "success": [{"get": {"key": "k"}}]})
    assert "compare[0]" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "operations",
    [
        [{"put": {"key": "k", "value": "1"}}, {"put": {"key": "k", "value": "2"}}],
        [{"incr": {"key": "k"}}, {"delete": {"key": "k"}}],
        [{"touch": {"key": "k", "ttl": 1}}, {"delete": {"prefix": ""}}],
        [{"delete": {"prefix": "a"}}, {"delete": {"from": "ab", "to": "ac"}}],
    ],
)
def test_nothing_is_written_twice(operations: list[object]) -> None:
    with pytest.raises(BadRequest):
        parsed({"success": operations})
    parsed({"success": operations[:1], "failure": operations[1:]})


def test_sizes_are_bounded() -> None:
    get = {"get": {"key": "k"}}
    parsed({"success": [get] * MAX_OPERATIONS})
    for body in (
        {"success": [get] * (MAX_OPERATIONS + 1)},
        {"compare": [{"key": "k", "version": 1}], "success": [get] * MAX_OPERATIONS},
        {"success": [{"put": {"key": "k", "value": "v" * 101}}]},
        {"success": [{"get": {"key": "k" * 1025}}]},
        {"success": [{"range": {"prefix": "p" * 1025}}]},
        {"success": [{"range": {"prefix": "", "limit": 501}}] * 2},
    ):
        with pytest.raises(PayloadTooLarge):
            parsed(body)
    parsed({"success": [{"range": {"prefix": "", "limit": 500}}] * 2})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff", b'{"success": {}}', b'{"success": []}',
        b'{"success": [], "success": []}', b'{"other": []}',
        b'{"success": [{"get": {"key": "a", "key": "b"}}]}',
        b'{"success": ' + b"[" * 100_000, b'{"compare": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_bodies_that_are_no_transaction(body: bytes) -> None:
    with pytest.raises(BadRequest):
        all_of(documents.parse_transaction(body, LIMITS))


def test_a_batch_line_by_line() -> None:
    lines = [
        b'{"key": "a", "value": "1"}',
        b"  ",
        b'{"key": "b", "value": "2", "ttl": "1m"}\r',
        b'{"key": "/w==", "value": "/w==", "encoding": "base64"}',
        b'{"key": "c", "delete": true}',
        b'{"key": "d", "value": "", "delete": false}',
    ]
    assert all_of(documents.parse_batch(b"\n".join(lines), LIMITS, 100)) == [
        (b"a", b"1", 0),
        (b"b", b"2", 60_000),
        (b"\xff", b"\xff", 0),
        (b"c", None, 0),
        (b"d", b"", 0),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "nothing", "[]", "{}", '{"key": "a"}', '{"value": "v"}', '{"key": "", "value": "v"}',
        '{"key": 1, "value": "v"}', '{"key": "a", "value": 1}', '{"key": "\\ud800", "value": "v"}',
        '{"key": "a", "value": "v", "ttl": 0}', '{"key": "a", "value": "v", "more": 1}',
        '{"key": "a", "delete": true, "ttl": 1}', '{"key": "a", "delete": "yes"}',
        '{"key": "%s", "value": "v"}' % ("k" * 1025), '{"key": "a", "value": "%s"}' % ("v" * 101),
        '{"key": "a", "value": "%s", "ttl": 1}' % ("v" * 101), "[" * 100_000,
    ],
)  # fmt: skip
def test_a_batch_names_the_line_that_is_wrong(line: str) -> None:
    good = '{"key": "k", "value": "v"}'
    with pytest.raises(RequestError) as caught:
        all_of(documents.parse_batch(f"{good}\n\n{line}\n{good}".encode(), LIMITS, 100))
    assert str(caught.value).startswith("line 3")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("0.5s", 500), ("2h", 7_200_000),
        ("1d", 86_400_000), ("30", 30_000), ("1.25", 1250), ("0", 0), ("0.0004", 0),
    ],
)  # fmt: skip
def test_durations(text: str, milliseconds: int) -> None:
    assert documents.parse_duration("ttl", text) == milliseconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1e3", "1 s", "1S", "5y", "٣s", "1.s", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadRequest, match="ttl is"):
        documents.parse_duration("ttl", text)


@given(st.binary(max_size=20), st.binary(min_size=1, max_size=8))
def test_what_begins_with_a_prefix_is_before_what_is_behind_it(key: bytes, prefix: bytes) -> None:
    end = prefix_end(prefix)
    is_within = prefix <= key and (end is None or key < end)
    assert is_within == key.startswith(prefix)


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_a_record_that_is_shown_can_be_read_back(key: bytes, value: bytes) -> None:
    shown = json.loads(json.dumps(documents.show_item(Item(b"k" + key, value, 3, 9, 2), 0)))
    line = {name: shown[name] for name in ("key", "value", "encoding") if name in shown}
    assert all_of(documents.parse_batch(json.dumps(line).encode(), LIMITS, 100)) == [
        (b"k" + key, value, 0)
    ]
    assert (shown["create_revision"], shown["mod_revision"], shown["version"]) == (3, 9, 2)
    assert "ttl" not in shown


def test_what_is_left_of_a_time_is_never_negative() -> None:
    item = Item(b"k", b"v", 1, 1, 1, 5000)
    assert documents.show_item(item, 2500)["ttl"] == 2.5
    assert documents.show_item(item, 6000)["ttl"] == 0


def test_outcomes() -> None:
    transaction = parsed(
        {
            "success": [
                {"put": {"key": "a", "value": "1"}},
                {"delete": {"key": "b"}},
                {"get": {"key": "c"}},
                {"get": {"key": "d"}},
                {"range": {"prefix": "e"}},
                {"get": {"key": "f"}},
            ]
        }
    )
    left = Item(b"a", None, 7, 7, 1)
    found = Item(b"d", b"\xff", 2, 3, 2)
    results = (
        Result(items=(left,)),
        Result(total=1),
        Result(),
        Result(1, items=(found,)),
        Result(1, more=True, items=(found,)),
        Result(1, True, items=(left,)),
    )
    shown = all_of(documents.show_outcome(transaction, Outcome(7, True, results, repeated=True), 0))
    record = {"create_revision": 7, "mod_revision": 7, "version": 1}
    binary = {
        "key": base64.b64encode(b"d").decode(), "value": "/w==", "encoding": "base64",
        "create_revision": 2, "mod_revision": 3, "version": 2,
    }  # fmt: skip
    assert shown == {
        "succeeded": True,
        "revision": 7,
        "repeated": True,
        "results": [
            {"key": "a", **record},
            {"deleted": 1},
            None,
            binary,
            {"items": [binary], "more": True},
            {"key": "a", **record, "more": True},
        ],
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["key", "value", "ttl", "put", "range", "prefix", "limit", "encoding"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["compare", "success", "failure"]), st.lists(JSON, max_size=2))
)
def test_any_json_is_a_transaction_or_a_refusal(body: object) -> None:
    said = ""
    try:
        parsed(body)
    except RequestError as error:
        said = str(error)
    assert len(said) < 500


# -- long bodies -----------------------------------------------------------------------------------


def outcome_of(steps: Any) -> object:
    try:
        return all_of(steps)
    except RequestError as error:
        return type(error)


@pytest.mark.parametrize(
    "body",
    [
        b'{"success": [{"put": {"key": "k", "value": "v", "ttl": "30s"}}, {"get": {"key": "a"}}]}',
        b'{"compare": [{"key": "k", "version": 1}], "failure": [{"incr": {"key": "n", "by": -5}}]}',
        b'\xef\xbb\xbf{"success": [{"get": {"key": "a"}}]}',
        b'{"success": [{"put": {"key": "k", "value": NaN}}]}',
        b'{"success": [{"put": {"key": "k", "key": "l", "value": "v"}}]}',
        b'{"success": [{"put": {"key": "k", "value": "\\ud800"}}]}',
        b'{"success": [{"get": {"key": "\xed\xa0\x80"}}]}',
        b'{"success": [' + b",".join([b'{"get": {"key": "k"}}'] * 129) + b"]}",
        '{"success": [{"get": {"key": "a"}}]}'.encode("utf-16"),
        b"[]",
        b"1" * 5000,
        b'{"success": ' + b"[" * 5000,
        b"",
    ],
)
def test_a_long_body_is_judged_as_a_short_one(body: bytes) -> None:
    """White space makes a body long, and changes nothing else."""
    long = body + b" " * documents.INLINE_BYTES
    assert outcome_of(documents.parse_transaction(long, LIMITS)) == outcome_of(
        documents.parse_transaction(body, LIMITS)
    )
    line = body.replace(b"\n", b" ")
    assert outcome_of(documents.parse_batch(line + b" " * documents.INLINE_BYTES, LIMITS, 9)) == (
        outcome_of(documents.parse_batch(line, LIMITS, 9))
    )


def test_a_string_that_is_too_long_for_a_value_is_refused_early() -> None:
    body = b'{"success": [{"put": {"key": "k", "value": "' + b"v" * 10_000_000 + b'"}}]}'
    with pytest.raises(PayloadTooLarge, match="max_value_bytes"):
        all_of(documents.parse_transaction(body, LIMITS))
    with pytest.raises(PayloadTooLarge, match="line 2: a string of more than"):
        all_of(documents.parse_batch(b"\n" + body[21:-3] + b"\n", LIMITS, 9))


def test_the_longest_value_fits_as_base64() -> None:
    limits = Limits(value_bytes=100_000, range_items=10)
    value = bytes(range(256)) * 390 + b"\xff" * 160
    text = base64.b64encode(value).decode()
    body = {"success": [{"put": {"key": "aw==", "value": text, "encoding": "base64"}}]}
    found = all_of(documents.parse_transaction(json.dumps(body).encode(), limits))
    assert found.success == (Put(b"k", value),)


def test_the_deletions_of_a_branch_share_what_a_change_may_delete() -> None:
    def limits_of(count: int, most: int) -> list[int]:
        branch = [{"delete": {"prefix": f"{n}/"}} for n in range(count)]
        body = json.dumps({"success": [*branch, {"get": {"key": "k"}}], "failure": branch[:1]})
        limits = Limits(value_bytes=100, range_items=most)
        found = all_of(documents.parse_transaction(body.encode(), limits))
        assert [each.limit for each in found.failure if isinstance(each, DeleteRange)] == [
            min(most, 5000)
        ]
        return [each.limit for each in found.success if isinstance(each, DeleteRange)]

    assert limits_of(1, 1_000_000) == [5000]
    assert limits_of(4, 1_000_000) == [1250] * 4
    assert limits_of(3, 1000) == [333] * 3
    assert limits_of(100, 10) == [1] * 100


def test_the_values_of_a_transaction_are_bounded_together() -> None:
    limits = Limits(value_bytes=1 << 20, range_items=10)
    puts = [{"put": {"key": str(n), "value": "x" * (1 << 20)}} for n in range(3)]
    for success, failure, fits in ((2, 0, True), (1, 1, True), (3, 0, False), (1, 2, False)):
        body = json.dumps({"success": puts[:success], "failure": puts[:failure]}).encode()
        if fits:
            all_of(documents.parse_transaction(body, limits))
        else:
            with pytest.raises(PayloadTooLarge, match="may write up to 2,097,152"):
                all_of(documents.parse_transaction(body, limits))
    Limits(value_bytes=8 << 20, range_items=10).check_change(8 << 20)  # one that long is allowed


@pytest.mark.parametrize("blank", [b"", b" ", b" " * 20_000, b"\r"])
def test_blank_lines_of_a_batch_count(blank: bytes) -> None:
    line = b'{"key": "k", "value": "v"}'
    lines = (blank + b"\n") * 8 + line
    assert all_of(documents.parse_batch(lines, LIMITS, 9)) == [(b"k", b"v", 0)]
    assert all_of(documents.parse_batch(lines + b"\n", LIMITS, 9)) == [(b"k", b"v", 0)]
    with pytest.raises(PayloadTooLarge, match="more than 9 lines"):
        all_of(documents.parse_batch(blank + b"\n" + lines, LIMITS, 9))


def test_a_batch_of_millions_of_blank_lines_is_not_read_to_its_end() -> None:
    with pytest.raises(PayloadTooLarge, match="more than 10 lines"):
        next(iter(documents.parse_batch(b"\n" * (16 << 20), LIMITS, 10)))


def test_a_batch_is_read_a_line_a_step() -> None:
    text = b'{"key": "k", "value": "v"}\n' * 100
    assert sum(1 for _ in documents.parse_batch(text, LIMITS, 100)) == 100


def test_what_a_change_reads_deletes_and_writes_is_bounded_together() -> None:
    limits = Limits(value_bytes=2 << 20, range_items=10_000)

    def parse(*operations: dict[str, Any], compare: str = "") -> Transaction:
        compares = [{"key": "k", "value": compare}] if compare else []
        body = json.dumps({"compare": compares, "success": operations}).encode()
        return all_of(documents.parse_transaction(body, limits))

    delete = {"delete": {"prefix": "d"}}
    put = {"put": {"key": "k", "value": "v" * (1 << 20)}}
    branch = parse(delete, {"range": {"prefix": "r", "limit": 1000}}, put).success
    assert isinstance(branch[0], DeleteRange)
    assert branch[0].limit == 5000 - 1000 - 1024
    ranges = [{"range": {"prefix": "r", "limit": 2500}}, {"range": {"prefix": "s", "limit": 2500}}]
    assert len(parse(*ranges).success) == 2
    with pytest.raises(PayloadTooLarge, match=r"5,000 records.* 1,024 KiB.* up to 5,000"):
        parse(*ranges, put)
    with pytest.raises(PayloadTooLarge, match=r"in all; one change may write up to 2,097,152"):
        parse(put, compare="w" * (1 << 20) + "x")
    assert parse(put, compare="w" * (1 << 20)).compares
