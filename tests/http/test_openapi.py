"""The OpenAPI document: held to the routes, and to a running node by schemathesis."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conure.commands import MAX_KEY_BYTES
from conure.errors import ConureError
from conure.http import openapi
from conure.http.parameters import PLAIN
from conure.service.limits import MAX_NUMBER, MAX_OPERATIONS
from tests.lab.httpservice import routes
from tests.lab.process import ROOT, running

BEYOND = {
    "/watch",  # its answer has no end
    "/join",  # it would ask strangers who they are
    "/leader",  # 503 is its answer where nobody else could lead
    "/kv/batch",  # schemathesis does not know its media type
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return dict(json.loads(openapi.document("1.2.3")))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_it_has_exactly_the_routes(document: dict[str, Any]) -> None:
    answered = {
        (path, method)
        for path, methods in routes().items()  # the same that GET / lists
        for method in methods
        if method != "HEAD"
    }
    assert {(path, method) for path, method, _ in operations(document)} == answered


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 20
    for reference in found:
        part = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
    components = {
        f"#/components/{kind}/{name}"
        for kind, members in document["components"].items()
        for name in members
    }
    assert components - found == {"#/components/schemas/Event"}  # what a watch sends is no JSON


def test_every_status_of_ours_is_in_it(document: dict[str, Any]) -> None:
    kinds: list[type[ConureError]] = [ConureError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    ours = {kind.status for kind in kinds} - {405, 501}  # of no operation in particular
    told = {int(code) for _, _, each in operations(document) for code in each["responses"]}
    assert ours <= told


def test_it_tells_the_limits(document: dict[str, Any]) -> None:
    get = document["paths"]["/kv"]["get"]
    schemas = {each["name"]: each["schema"] for each in get["parameters"]}
    assert schemas["key"]["maxLength"] == schemas["prefix"]["maxLength"] == MAX_KEY_BYTES
    assert schemas["index"]["maximum"] == MAX_NUMBER
    transaction = document["components"]["schemas"]["Transaction"]
    assert transaction["properties"]["success"]["maxItems"] == MAX_OPERATIONS
    assert document["info"]["version"] == "1.2.3"


def test_conditions_are_told_where_they_count(document: dict[str, Any]) -> None:
    fields = {name.replace("_", "-") for name in PLAIN.__slots__} - {"coding", "objects", "lines"}
    told = {
        each["name"].lower()
        for _, _, operation in operations(document)
        for each in operation.get("parameters", ())
        if each["in"] == "header"
    }
    assert told == fields | {"last-event-id"}


@pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--bootstrap") as server:
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli",
                f"--config-file={ROOT / 'tests' / 'lab' / 'schemathesis.toml'}",
                "run", f"{server.url}/openapi.json",
                "--phases=examples,coverage,fuzzing", "--max-examples=5", "--seed=1",
                "--request-timeout=10", "--suppress-health-check=all", "--no-color",
                *(f"--exclude-path={path}" for path in BEYOND),
            ],
            capture_output=True,
            cwd=tmp_path,
            timeout=110,
            check=False,
        )  # fmt: skip
    report = done.stdout.decode()
    assert done.returncode == 0, report
    cases = re.search(r"(\d+) generated, (\d+) passed", report)
    assert cases, report
    assert cases[1] == cases[2]
    assert int(cases[1]) > 1000
