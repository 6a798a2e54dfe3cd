"""The cases of the public RESP compatibility suite whose commands are data commands.

tests/testdata/resp-cts.json has all of its cases, resp-cts.LICENSE its licence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conure.resp.verbs import VERBS
from tests.lab.respclient import ErrorReply, parse_all
from tests.lab.verbmachine import VerbMachine

CASES = json.loads((Path(__file__).parent.parent / "testdata/resp-cts.json").read_text())


def name_of(line: str) -> str:
    first, *rest = line.lower().split()
    return f"{first} {rest[0]}" if first == "script" else first


COVERED = [case for case in CASES if all(name_of(line) in VERBS for line in case["command"])]


def text(reply: Any) -> Any:
    """Return a reply as the suite writes it."""
    if isinstance(reply, bytes):
        return reply.decode()
    if isinstance(reply, list):
        return [text(each) for each in reply]
    assert not isinstance(reply, ErrorReply), reply
    return reply


def test_no_case_is_lost() -> None:
    assert len(COVERED) == 81


@pytest.mark.parametrize("case", COVERED, ids=[case["name"] for case in COVERED])
def test_a_case_of_the_suite(case: dict[str, Any]) -> None:
    machine = VerbMachine()
    replies = [machine.run(*line.encode().split()) for line in case["command"]]
    assert [text(parse_all(reply)[0]) for reply in replies] == case["result"]
