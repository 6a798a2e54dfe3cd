"""README.md and docs/architecture.md held to the code: names, tables, links and the tour itself."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import errors
from config import SETTINGS, load
from errors import ConfigError, ConureError
from httpapi import API
from metrics import Registry
from tests.process import running
from tests.test_imports import ALLOWED

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

# What the pages name and no checkout holds.
MADE_LATER = {"conure.db", "identity.json", "bench/RESULTS.md", "raft/*.log"}
OTHER_FLAGS = {"--version", "--help", "--server", "--timeout", "--flag", "--http-adr"}
OTHER_VARIABLES = {"CONURE_SERVER", "CONURE_SPEED"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


# -- reading the pages -----------------------------------------------------------------------------


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def section(page: Path, heading: str) -> str:
    """Return what is below *heading*, up to the next one of the same or a higher level."""
    level = len(heading.split(maxsplit=1)[0])
    _, found, rest = page.read_text().partition(f"\n{heading}\n")
    assert found, f"{page.name} has no {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in *text*, without their heads."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|---"):
            found.pop()  # the head
        elif line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def spans(page: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", prose(page)))


# -- reading the code ------------------------------------------------------------------------------


def source(module: str) -> str:
    return (ROOT / f"{module}.py").read_text()


@cache
def members() -> dict[str, set[str]]:
    """Return what each module and each class of the project defines, private names included."""
    found: dict[str, set[str]] = {}
    for module in ALLOWED:
        tree = ast.parse(source(module))
        found[module] = names_in(tree.body)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own = names_in(node.body)
                own |= {
                    target.attr
                    for target in ast.walk(node)
                    if isinstance(target, ast.Attribute)
                    and isinstance(target.ctx, ast.Store)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                }
                found.setdefault(node.name, set()).update(own)
    return found


def names_in(body: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                found |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@cache
def words() -> frozenset[str]:
    """Return every identifier-like word of the server's and the client's code."""
    return frozenset(re.findall(r"\w+", "\n".join(map(source, ALLOWED))))


@cache
def names_of_tests() -> frozenset[str]:
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    return frozenset(re.findall(r"^\s*def (test_\w+)", code, re.MULTILINE))


def resolves(name: str) -> bool:
    """Whether ``Class.member``, ``module.name`` or ``module.Class.member`` exists."""
    owner, *rest = name.split(".")
    known = members()
    while rest:
        if owner not in known or rest[0] not in known[owner]:
            return False
        owner, *rest = rest
    return True


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [README, ARCHITECTURE], ids=lambda page: page.name)
def test_names_in_code_style_exist(page: Path) -> None:
    strangers: list[str] = []
    for span in spans(page):
        if re.fullmatch(r"[\w./*-]+\.(py|md|yaml|toml|txt|c|db|json|log)", span):
            known = span in MADE_LATER or (ROOT / span).exists()
        elif span.startswith("test_"):
            known = span in names_of_tests()
        elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", span) and span.split(".")[0] in members():
            known = resolves(span)
        elif re.fullmatch(r"_*[A-Z][A-Za-z]*[a-z]\w*|[a-z_]\w*_\w*", span):
            known = span in words()
        else:
            continue
        if not known:
            strangers.append(span)
    assert not strangers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_variables_exist(page: Path) -> None:
    flags = {flag.rstrip("-") for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose(page))}
    ours = {setting.flag for setting in SETTINGS} | OTHER_FLAGS
    assert flags <= ours | {"--parallel-max", "--data-binary"}
    variables = set(re.findall(r"CONURE_[A-Z_]*[A-Z]", page.read_text()))
    assert variables <= {setting.variable for setting in SETTINGS} | OTHER_VARIABLES


def test_metrics_exist() -> None:
    shown = set(re.findall(r"(?:conure|process)_[a-z_]+[a-z]", section(README, "## Operating")))
    code = "\n".join(map(source, ALLOWED))
    assert shown - set(re.findall(r'"((?:conure|process)_[a-z_]+)"', code)) == set()


# -- tables ----------------------------------------------------------------------------------------


def test_the_flag_table_is_the_table_of_settings() -> None:
    table = {}
    for flag, default, _ in rows(section(README, "## Settings")):
        name = re.split(r"[=\[]", flag.strip("`"))[0]
        table[name] = default.strip("`")
    expected = {
        setting.flag: "see below" if setting.default is None else setting.default
        for setting in SETTINGS
    }
    assert table == expected
    assert list(table) == list(expected)


def test_the_import_table_is_the_one_that_is_enforced() -> None:
    table = {
        file.strip("`").removesuffix(".py"): set() if may == "none" else set(may.split(", "))
        for file, _, may in rows(section(ARCHITECTURE, "## The modules"))
    }
    assert table == ALLOWED


def test_the_http_table_has_exactly_the_routes() -> None:
    api = API(Registry(), max_value_bytes=1, version="")
    routes = {
        (method, path) for path, methods in api._routes.items() for method in methods
    }  # the same that GET / lists
    table = set()
    for request, _ in rows(section(README, "## HTTP API").partition("\n### ")[0]):
        method, target = request.strip("`").split(" ")
        table.add((method, target.partition("?")[0]))
    assert table == {(method, path) for method, path in routes if method != "HEAD"}


def test_the_error_table_has_every_status_of_ours() -> None:
    table = {
        int(status)
        for row in rows(section(README, "### Errors"))
        for status in re.findall(r"\d{3}", row[0])
    }
    classes = [getattr(errors, name) for name in errors.__all__]
    ours = {kind.status for kind in classes if issubclass(kind, ConureError)}
    assert ours <= table
    refused = {int(code) for code in re.findall(r"_Refusal\(\s*(\d{3})", source("httpserver"))}
    assert refused <= table


def test_the_tour_of_the_files_is_complete_and_about_right() -> None:
    table: dict[str, int] = {}
    for file, lines, _ in rows(section(README, "## The files, in reading order")):
        found = re.fullmatch(r"\[`(\w+)\.py`\]\(\1\.py\)", file)
        assert found, file
        table[found[1]] = int(lines.replace(",", ""))
    assert set(table) == set(ALLOWED)
    for module, about in table.items():
        assert about / 2 < len(source(module).splitlines()) < about * 2, module


def test_every_invariant_has_its_row() -> None:
    table = {row[0] for row in rows(section(ARCHITECTURE, "## Invariants"))}
    assert table == {f"S{n}" for n in range(1, 8)} | {f"R{n}" for n in range(1, 9)}


@pytest.mark.parametrize(
    "argv", [["--http-adr=:8081"], ["--barrier-timeout=3"], ["--raft-addr=:7001"]]
)
def test_lines_in_troubleshooting_are_what_is_said(argv: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(argv, {})
    assert f"`conuredb: {caught.value}`" in section(README, "## Troubleshooting")


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# -- the tour --------------------------------------------------------------------------------------

# Loading and killing take their time and are tests/test_durability.py's; the terminal is
# tests/test_conuresh.py's.
NOT_HERE = ("python3 conuredb.py", "kill ", "curl -sZ", "python3 conuresh.py\n")
AFTER_LOADING = "write_batch_size"


def commands(text: str) -> list[tuple[str, str]]:
    """Return the commands of the console blocks in *text*, each with the output shown."""
    found: list[tuple[str, str]] = []
    for kind, block in FENCE.findall(text):
        if kind == "console":
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command = re.match(r"(?:.*\\\n)*.*\n", part)
                assert command
                found.append((command[0], part[command.end() :]))
    return found


def normalised(output: str, port: int) -> str:
    output = output.replace(f":{port}", ":8081")
    for pattern, instead in (
        (r"[0-9a-f]{32}", "<cluster>"),
        (r"Date: .*", "Date: <date>"),
        (r"\w{3} \w{3} [ \d]\d [\d:]{8} \w+ \d{4}", "<date>"),
        (r"127\.0\.0\.1:7001", "<raft>"),
    ):
        output = re.sub(pattern, instead, output)
    return "\n".join(line.rstrip() for line in output.splitlines())


@pytest.mark.skipif(not shutil.which("curl"), reason="the tour is made with curl")
def test_the_tour_prints_what_it_says(tmp_path: Path) -> None:
    tour = commands(section(README, "## Five minutes"))
    assert len(tour) > 20
    with running(tmp_path / "data", "--bootstrap") as server:
        environ = {
            **os.environ,
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",  # for python3
            "CONURE_SERVER": server.url,
            "LC_ALL": "C",
            "TZ": "UTC",
        }
        seen = 0
        for command, shown in tour:
            if command.startswith(NOT_HERE) or AFTER_LOADING in command:
                continue
            done = subprocess.run(
                ["bash", "-c", command.replace("localhost:8081", f"127.0.0.1:{server.port}")],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if "conuresh" in command else subprocess.DEVNULL,
                cwd=ROOT,
                env=environ,
                timeout=30,
                check=False,
            )
            output = done.stdout.decode()
            assert normalised(output, server.port) == normalised(shown, server.port), command
            seen += 1
        assert seen > 15


def test_the_clients_example_runs(tmp_path: Path) -> None:
    [example] = [block for kind, block in FENCE.findall(README.read_text()) if kind == "python"]
    with running(tmp_path / "data", "--bootstrap") as server:
        scope: dict[str, Any] = {}
        exec(example.replace("http://127.0.0.1:8081", server.url), scope)  # our own README
        assert server.get("greeting").body == b"hello"
