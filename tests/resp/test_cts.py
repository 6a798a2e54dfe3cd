"""The cases of the public RESP compatibility suite whose commands are offered.

Those of data commands are done by a store, too. All others of its cases need commands that
aren't offered: other types, operations on bits, dumps, and databases.

tests/testdata/resp-cts.json has all of its cases, resp-cts.LICENSE its licence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conure.resp.verbs import VERBS
from tests.lab.process import resp_port, running
from tests.lab.respclient import ErrorReply, RespClient, parse_all
from tests.lab.respservice import RespService
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


def offered_cases() -> list[dict[str, Any]]:
    """Return the cases all of whose commands a server has."""
    service = RespService()
    table = service.resp.front.commands
    service.close()

    def is_offered(line: str) -> bool:
        first, *rest = line.lower().encode().split()
        command = table.get(first)
        if command is None or not (command.subcommands and rest):
            return command is not None
        return rest[0] in command.subcommands

    return [case for case in CASES if all(map(is_offered, case["command"]))]


def test_all_cases_of_offered_commands_over_a_socket(tmp_path: Path) -> None:
    offered = offered_cases()
    assert (len(offered), len(CASES)) == (114, 416)
    with running(tmp_path / "data", "--bootstrap", "--resp-addr=127.0.0.1:0") as server:
        for case in offered:
            with RespClient(resp_port(server)) as client:  # of its own: some quit, some listen
                client.ask("FLUSHALL")
                replies = [text(client.ask(*line.split())) for line in case["command"]]
            assert replies == case["result"], case["name"]
