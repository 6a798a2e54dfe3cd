"""Data commands: what Redis 7.0 can't be asked about, bounds, and that the table is whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.resp import lcs
from conure.resp.verb import Context
from conure.resp.verbs import VERBS
from conure.resp.words import TOO_MUCH
from conure.service.limits import Limits
from conure.steps import reads_only
from tests.lab.verbmachine import VerbMachine

NULL, OK, ONE, NONE = b"$-1\r\n", b"+OK\r\n", b":1\r\n", b":0\r\n"


@pytest.fixture
def machine() -> VerbMachine:
    return VerbMachine(value_bytes=1000, now=1_000_000)


def test_every_command_is_described() -> None:
    groups = {"string", "generic", "scripting"}
    for name, verb in VERBS.items():
        assert name == verb.name == name.lower()
        assert verb.group in groups
        assert verb.summary.endswith(".")
        assert verb.arity
        assert bool(verb.keys[0]) == (verb.group != "scripting")
        assert ("readonly" in verb.flags) + ("write" in verb.flags) == (verb.group != "scripting")


READ_ONLY = [
    [b"get", b"k"], [b"mget", b"k", b"l"], [b"strlen", b"k"], [b"getrange", b"k", b"0", b"1"],
    [b"lcs", b"k", b"l"], [b"exists", b"k"], [b"type", b"k"], [b"ttl", b"k"], [b"getex", b"k"],
]  # fmt: skip


@pytest.mark.parametrize("words", READ_ONLY, ids=lambda words: words[0].decode())
def test_what_only_reads_is_no_entry_of_the_log(machine: VerbMachine, words: list[bytes]) -> None:
    assert reads_only(machine.plan(*words).steps)
    machine.run(*words)
    assert machine.store.applied_index == 0


# -- later than Redis 7.0 --------------------------------------------------------------------------


def test_set_if_equal_or_not(machine: VerbMachine) -> None:
    assert machine.run(b"SET", b"k", b"1", b"IFEQ", b"0") == NULL
    assert machine.run(b"SET", b"k", b"1", b"IFNE", b"0") == OK
    assert machine.run(b"SET", b"k", b"2", b"IFNE", b"1") == NULL
    assert machine.run(b"SET", b"k", b"2", b"ifeq", b"1", b"GET") == b"$1\r\n1\r\n"
    assert machine.run(b"GET", b"k") == b"$1\r\n2\r\n"
    for options in ((b"IFEQ",), (b"IFEQ", b"1", b"NX"), (b"IFEQ", b"1", b"IFNE", b"2")):
        assert machine.run(b"SET", b"k", b"3", *options) == b"-ERR syntax error\r\n"


def test_delete_if_equal_or_not(machine: VerbMachine) -> None:
    assert machine.run(b"DELEX", b"k") == NONE
    machine.run(b"SET", b"k", b"1")
    assert machine.run(b"DELEX", b"k", b"IFEQ", b"2") == NONE
    assert machine.run(b"DELEX", b"k", b"IFNE", b"1") == NONE
    assert machine.run(b"DELEX", b"k", b"ifeq", b"1") == ONE
    assert machine.run(b"DELEX", b"k", b"IFNE", b"1") == NONE  # there is none
    machine.run(b"SET", b"k", b"1")
    assert machine.run(b"DELEX", b"k", b"IFNE", b"2") == ONE
    assert machine.run(b"DELEX", b"k", b"IFXX", b"2").startswith(b"-ERR Invalid condition")
    assert machine.run(b"DELEX", b"k", b"IFEQ").startswith(b"-ERR wrong number of arguments")


def test_a_copy_is_another_record(machine: VerbMachine) -> None:
    machine.run(b"SET", b"k", b"v", b"PX", b"900")
    assert machine.run(b"COPY", b"k", b"l", b"DB", b"1") == b"-ERR DB index is out of range\r\n"
    assert machine.run(b"COPY", b"k", b"l", b"DB", b"0") == ONE
    assert machine.run(b"MGET", b"k", b"l") == b"*2\r\n$1\r\nv\r\n$1\r\nv\r\n"
    assert machine.run(b"PTTL", b"l") == b":900\r\n"
    machine.run(b"SET", b"k", b"w")
    assert machine.run(b"COPY", b"k", b"l") == NONE
    assert machine.run(b"COPY", b"k", b"l", b"replace") == ONE
    assert machine.run(b"GET", b"l") == b"$1\r\nw\r\n"


# -- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"", bytes(1025)])
@pytest.mark.parametrize(
    "words",
    [
        [b"get", b"*"], [b"mget", b"k", b"*"], [b"set", b"*", b"v"], [b"mset", b"*", b"v"],
        [b"msetnx", b"k", b"v", b"*", b"v"], [b"del", b"k", b"*"], [b"rename", b"k", b"*"],
        [b"copy", b"*", b"k"], [b"lcs", b"k", b"*"], [b"expire", b"*", b"1"], [b"delex", b"*"],
        [b"incr", b"*"], [b"incrbyfloat", b"*", b"1"], [b"append", b"*", b"v"], [b"ttl", b"*"],
        [b"setrange", b"*", b"0", b"v"], [b"getdel", b"*"], [b"getex", b"*"], [b"setnx", b"*", b""],
        [b"evalsha", b"c3f8721cbb97f72bc19e972846bd7aaf91901658", b"1", b"*", b"v"],
    ],
    ids=lambda words: words[0].decode(),
)  # fmt: skip
def test_no_key_gets_past_that_nobody_may_have(
    machine: VerbMachine, words: list[bytes], key: bytes
) -> None:
    reply = machine.run(*[key if word == b"*" else word for word in words])
    assert reply.startswith(b"-ERR a key has 1 to 1,024 bytes, and this one ")
    assert machine.store.applied_index == 0


def test_no_value_is_longer_than_values_may_be(machine: VerbMachine) -> None:
    long = bytes(1001)
    commands = [
        [b"set", b"k", long], [b"setnx", b"k", long], [b"setex", b"k", b"9", long],
        [b"getset", b"k", long], [b"mset", b"k", long], [b"append", b"k", long],
        [b"setrange", b"k", b"0", long], [b"setrange", b"k", b"1000", b"v"],
    ]  # fmt: skip
    for words in commands:
        assert machine.run(*words).startswith(b"-ERR string exceeds maximum allowed size"), words
    machine.run(b"SET", b"k", bytes(1000))
    assert machine.run(b"APPEND", b"k", b"v").startswith(b"-ERR string exceeds")
    assert machine.run(b"STRLEN", b"k") == b":1000\r\n"


def test_what_could_not_be_read_is_not_removed(
    machine: VerbMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conure.state.stepping.READ_BYTES", 10)
    machine.run(b"MSET", b"long", bytes(20), b"k", b"v")
    too_much = b"-%b\r\n" % TOO_MUCH.encode()
    for words in (
        [b"getdel", b"k"], [b"getset", b"k", b"w"], [b"set", b"k", b"w", b"get"],
        [b"getex", b"k", b"ex", b"9"],
    ):  # fmt: skip
        replies = machine.run_all([[b"get", b"long"], words, [b"exists", b"k"]])
        assert replies.endswith(too_much + ONE), words
    assert machine.run(b"GET", b"k") == b"$1\r\nv\r\n"
    assert machine.run(b"TTL", b"k") == b":-1\r\n"


def test_a_time_that_is_over_removes_the_key(machine: VerbMachine) -> None:
    for words in (
        [b"expire", b"k", b"0"], [b"pexpire", b"k", b"-1"], [b"expireat", b"k", b"1000"],
        [b"pexpireat", b"k", b"999999"], [b"getex", b"k", b"pxat", b"5"],
        [b"set", b"k", b"w", b"exat", b"5"],
    ):  # fmt: skip
        machine.run(b"SET", b"k", b"v")
        machine.run(*words)
        assert machine.run(b"EXISTS", b"k") == NONE, words


# -- LCS -----------------------------------------------------------------------------------------


def subsequence_length(one: bytes, other: bytes) -> int:
    row = [0] * (len(other) + 1)
    for byte in one:
        before = 0
        for place, found in enumerate(other, 1):
            before, row[place] = (
                row[place],
                before + 1 if byte == found else max(row[place], row[place - 1]),
            )
    return row[-1]


@given(
    st.lists(st.sampled_from(b"abc"), max_size=40), st.lists(st.sampled_from(b"abc"), max_size=40)
)
def test_a_longest_common_subsequence(one: list[int], other: list[int]) -> None:
    value, matches = lcs.longest(bytes(one), bytes(other))
    assert len(value) == subsequence_length(bytes(one), bytes(other))
    parts = [bytes(one[start : start + size]) for start, _, size in reversed(matches)]
    assert b"".join(parts) == value
    parts = [bytes(other[start : start + size]) for _, start, size in reversed(matches)]
    assert b"".join(parts) == value


def test_the_table_of_an_lcs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = VerbMachine(value_bytes=1000)
    machine.run(b"MSET", b"a", b"x" * 30, b"b", b"x" * 20)
    monkeypatch.setattr(lcs, "MAX_CELLS", 600)
    assert machine.run(b"LCS", b"a", b"b", b"LEN") == b":20\r\n"
    monkeypatch.setattr(lcs, "MAX_CELLS", 599)
    assert machine.run(b"LCS", b"a", b"b").startswith(b"-ERR Insufficient memory")
    monkeypatch.setattr(lcs, "MAX_CELLS", 600)
    monkeypatch.setattr(lcs, "MAX_LENGTH", 29)
    assert machine.run(b"LCS", b"a", b"b").startswith(b"-ERR Insufficient memory")

    monkeypatch.setattr(lcs, "MAX_LENGTH", 30)
    assert machine.run(b"LCS", b"b", b"a", b"LEN") == b":20\r\n"
    monkeypatch.setattr(lcs, "MAX_CELLS", 1000)
    machine.run(b"SET", b"b", b"b" * 31)
    for keys in ((b"a", b"b"), (b"b", b"a")):
        assert machine.run(b"LCS", *keys).startswith(b"-ERR Insufficient memory")


def test_an_lcs_with_indexes_is_a_map_in_resp3(machine: VerbMachine) -> None:
    machine.run(b"MSET", b"a", b"oh", b"b", b"och")
    found = machine.run(b"LCS", b"a", b"b", b"IDX", b"WITHMATCHLEN", protocol=3)
    assert found == (
        b"%2\r\n$7\r\nmatches\r\n*2\r\n"
        b"*3\r\n*2\r\n:1\r\n:1\r\n*2\r\n:2\r\n:2\r\n:1\r\n"
        b"*3\r\n*2\r\n:0\r\n:0\r\n*2\r\n:0\r\n:0\r\n:1\r\n"
        b"$3\r\nlen\r\n:2\r\n"
    )


# -- several in one entry ------------------------------------------------------------------------


def test_commands_of_one_entry_see_what_the_former_did(machine: VerbMachine) -> None:
    replies = machine.run_all(
        [
            [b"set", b"k", b"1"], [b"incr", b"k"], [b"msetnx", b"a", b"1", b"k", b"1"],
            [b"get", b"k"], [b"msetnx", b"a", b"1", b"b", b"1", b"a", b"2"], [b"mget", b"a", b"b"],
        ]
    )  # fmt: skip
    assert replies == b"*6\r\n" + OK + b":2\r\n:0\r\n$1\r\n2\r\n:1\r\n*2\r\n$1\r\n2\r\n$1\r\n1\r\n"
    assert machine.store.applied_index == 1


def test_of_a_key_that_mset_has_twice_the_last_value_is_written(machine: VerbMachine) -> None:
    many = [b"k", b"v"] * 10_000
    assert len(machine.plan(b"MSET", *many).steps) == 1
    assert machine.run(b"MSET", b"k", b"1", b"j", b"2", b"k", b"3") == OK
    assert machine.run(b"MGET", b"k", b"j") == b"*2\r\n$1\r\n3\r\n$1\r\n2\r\n"


def test_any_words_are_a_plan_or_an_error() -> None:
    """Which the store then can do: nothing else gets to it."""

    @given(
        st.sampled_from(sorted(VERBS)),
        st.lists(
            st.sampled_from([b"k", b"", b"GET", b"NX", b"EX", b"1", b"-1", b"\xff"]), max_size=6
        ),
    )
    def check(name: str, words: list[bytes]) -> None:
        machine = VerbMachine(now=5)
        reply = machine.run(*name.encode().split(), *words)
        assert reply.endswith(b"\r\n")

    check()


def test_a_context_is_all_that_a_plan_depends_on(machine: VerbMachine) -> None:
    context = Context(Limits(value_bytes=9, range_items=9), 5)
    one, other = (VERBS["set"].plan([b"k", b"v", b"EX", b"9"], context) for _ in range(2))
    assert one.steps == other.steps
