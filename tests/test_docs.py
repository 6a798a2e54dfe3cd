"""README.md and docs/ held to the code: names, tables, links, error texts, and their tours."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conure import errors
from conure.config import load
from conure.errors import ConfigError, ConureError
from conure.ops.kvcommands import COMMANDS, OPTIONS
from conure.settings import SETTINGS
from tests.lab.cluster import free_port
from tests.lab.httpservice import routes
from tests.lab.process import ServerProcess, running, wait_until
from tests.test_imports import ANY, FILES, STEP, WINGS, wing_of

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "RESULTS.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
CLUSTER = ROOT / "docs" / "cluster.md"
ENGINES = ROOT / "docs" / "engines.md"
KVCTL = ROOT / "docs" / "kvctl.md"
OPERATIONS = ROOT / "docs" / "operations.md"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

# What the pages name and no checkout holds.
MADE_LATER = {
    "conure.db", "incoming-1.db", "identity.json", "bench/RESULTS.md", "raft/*.log",
    "/openapi.json", "RESTORE-UNFINISHED.json", "/app/scaling.py", "locked.yaml",
}  # fmt: skip
OTHER_FLAGS = {
    "--version", "--help", "--server", "--timeout", "--flag", "--http-adr",
    "--ca", "--cert", "--key", "--tls-name",
}  # fmt: skip
# Files of a Secret and values of the charts, whose first word is a module's name as well.
OF_KUBERNETES = {"tls.crt", "tls.key", "tls.enabled", "tls.clientCASecret"}
TOOLS_FLAGS = {
    "--parallel-max", "--data-binary", "--quick", "--jobs", "--json", "--prefix", "--python",
    "--storage-engine", "--path-as-is", "--before", "--part", "--charts-before", "--tag-before",
}  # fmt: skip
OTHER_VARIABLES = {
    "CONURE_SERVER", "CONURE_SPEED", "CONURE_CA", "CONURE_CERT", "CONURE_KEY", "CONURE_TLS_NAME",
}  # fmt: skip

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


MODULES: dict[str, Path] = {}
"""The pages call a module by the last part of its name; an inner one that is called like one before
it by its folder, too."""
for _dotted, _path in sorted(FILES.items(), key=lambda each: (-each[0].count("."), each[0]))[::-1]:
    if _path.stem != "__init__":
        _folder, _, _name = _dotted.rpartition(".")
        MODULES[_name if _name not in MODULES else f"{_folder.rpartition('.')[2]}.{_name}"] = _path


@cache
def source(module: str) -> str:
    return MODULES[module].read_text()


@cache
def nodes(module: str) -> list[ast.AST]:
    return list(ast.walk(parsed(module)))


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(source(module))


@cache
def members() -> dict[str, set[str]]:
    """Return what each module and each class of the project defines, private names included."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        found[module] = names_in(parsed(module).body)
        for node in nodes(module):
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
    return frozenset(re.findall(r"\w+", "\n".join(map(source, MODULES))))


@cache
def texts() -> set[tuple[str, ...]]:
    """Return what the code's longer strings say, in pieces between what they insert."""
    found = set()
    for module in MODULES:
        inner = {
            id(part)
            for node in nodes(module)
            if isinstance(node, ast.JoinedStr)
            for part in node.values
        }
        for node in nodes(module):
            if id(node) in inner:
                continue
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            said = [
                part.value
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                else "%s"
                for part in parts
            ]
            fixed = tuple(filter(None, re.split("%[srd]", "".join(said))))
            if len("".join(fixed)) > 15:
                found.add(fixed)
    return found


def is_said(line: str) -> bool:
    """Whether the code has a text whose pieces stand in *line*, one after the other."""
    line = line.rpartition(" was not added: ")[2]  # the reason is what matters
    for pieces in texts():
        at = 0
        for piece in pieces:
            at = line.find(piece, at)
            if at < 0:
                break
            at += len(piece)
        else:
            return True
    return False


@cache
def names_of_tests() -> frozenset[str]:
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_code_style_exist(page: Path) -> None:
    strangers: list[str] = []
    for span in spans(page):
        if re.fullmatch(r"[\w./*-]+\.(py|md|yaml|toml|txt|c|db|json|log)", span):
            known = span in MADE_LATER or (ROOT / span).exists()
        elif span.startswith("test_"):
            known = span in names_of_tests()
        elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", span) and span.split(".")[0] in members():
            known = resolves(span) or span in OF_KUBERNETES
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
    ours = {flag for setting in SETTINGS for flag in setting.flags} | OTHER_FLAGS
    if page == KVCTL:
        ours |= {f"--{name}" for name in OPTIONS}
    assert flags <= ours | TOOLS_FLAGS
    variables = set(re.findall(r"CONURE_[A-Z_]*[A-Z]", page.read_text()))
    assert variables <= {setting.variable for setting in SETTINGS} | OTHER_VARIABLES


METRIC = r"\b(?:conure|kvstore|process)_[a-z_]+[a-z]\b"


def test_the_table_of_metrics_has_each_of_them() -> None:
    code = "\n".join(map(source, MODULES))
    ours = set(re.findall(rf'"({METRIC})"', code))
    shown = "".join(row[0] for row in rows(section(OPERATIONS, "## Metrics")))
    assert set(re.findall(METRIC, shown)) == ours
    elsewhere = {name for page in PAGES for name in re.findall(rf"`({METRIC})`", prose(page))}
    assert elsewhere <= ours


def test_the_table_of_header_fields_has_our_own() -> None:
    table = {row[0].strip("`") for row in rows(section(README, "### Header fields"))}
    code = "\n".join(map(source, MODULES))
    assert set(re.findall(r'"(X-Conure-[A-Za-z-]+)"', code)) <= table


def test_the_table_of_checks_has_each_of_them() -> None:
    table = [row[0].strip("`") for row in rows(section(OPERATIONS, "## Health"))]
    assert table == re.findall(
        r'\("(\w+)", \w', source("status")[source("status").index("def liveness") :]
    )


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


def test_the_tables_of_kvctl_are_what_it_reads() -> None:
    table = [row[0].strip("`") for row in rows(section(KVCTL, "## Commands"))]
    assert table == [f"{name} {each.arguments}".rstrip() for name, each in COMMANDS.items()]
    told = set(re.findall(r"--([a-z-]+)", KVCTL.read_text()))
    assert {*OPTIONS} <= told


def test_the_table_of_wings_is_the_one_that_is_enforced() -> None:
    allowed = {f"`{name}.py`": may for name, may in STEP.items()}
    allowed |= {f"`conure/{name}/`" if name else "`conure/`": may for name, may in WINGS.items()}
    table = rows(section(ARCHITECTURE, "## The house"))
    assert {wing for wing, _, _ in table} == allowed.keys()
    for wing, files, may in table:
        shown = {f"`{name}.py`" if name in STEP else f"`{name}/`" for name in allowed[wing] - {""}}
        shown |= {"`conure/`"} if "" in allowed[wing] else set()
        assert may == "any" if allowed[wing] is ANY else set(may.split(", ")) == (shown or {"none"})
        if wing.startswith("`conure/"):
            name = wing.strip("`").removeprefix("conure/").rstrip("/")
            there = {
                path.stem
                for module, path in FILES.items()
                if path.stem != "__init__" and wing_of(module) == name
            }
            assert set(re.findall(r"`(\w+)`: ", files)) == there


def test_the_http_table_has_exactly_the_routes() -> None:
    answered = {
        (method, path) for path, methods in routes().items() for method in methods
    }  # the same that GET / lists
    table = set()
    for request, _ in rows(section(README, "## HTTP API").partition("\n### ")[0]):
        method, target = request.strip("`").split(" ")
        table.add((method, target.partition("?")[0]))
    assert table == {(method, path) for method, path in answered if method != "HEAD"}


def test_the_error_table_has_every_status_of_ours() -> None:
    table = {
        int(status)
        for row in rows(section(README, "### Errors"))
        for status in re.findall(r"\d{3}", row[0])
    }
    classes = [getattr(errors, name) for name in errors.__all__]
    ours = {kind.status for kind in classes if issubclass(kind, ConureError)}
    assert ours <= table
    refused = {int(code) for code in re.findall(r"_Refusal\(\s*(\d{3})", source("server"))}
    assert refused <= table


def test_the_tour_of_the_files_is_complete_and_about_right() -> None:
    table: dict[str, int] = {}
    for file, lines, _ in rows(section(README, "## The files, in reading order")):
        found = re.fullmatch(r"\[`([\w/.]+)`\]\(\1\)", file)
        assert found, file
        table[found[1]] = int(lines.replace(",", ""))
    folders = {str(path.parent.relative_to(ROOT)) for path in FILES.values()} - {"."}
    assert set(table) == folders | {f"{name}.py" for name in STEP}
    for name, about in table.items():
        files = [ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py")
        assert about / 2 < sum(len(path.read_text().splitlines()) for path in files) < about * 2, (
            name
        )


def test_every_invariant_has_its_row() -> None:
    table = {row[0] for row in rows(section(ARCHITECTURE, "## Invariants"))}
    assert table == {f"S{n}" for n in range(1, 8)} | {f"R{n}" for n in range(1, 12)} | {
        f"{family}{n}" for family in "FP" for n in range(1, 5)
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["--http-adr=:8081"],
        ["--barrier-timeout=3"],
        ["--raft-addr=:7001"],
        ["--peers=db2:7001", "--bootstrap"],
    ],
)
def test_lines_in_troubleshooting_are_what_is_said(argv: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(argv, {})
    assert f"`conuredb: {caught.value}`" in TROUBLESHOOTING.read_text()


def test_the_readme_repeats_the_page_about_trouble() -> None:
    page = TROUBLESHOOTING.read_text().replace("](cluster.md", "](docs/cluster.md").splitlines()
    repeated = rows(section(README, "## Troubleshooting"))
    assert len(repeated) > 5
    assert all(row in rows("\n".join(page)) for row in repeated)


def test_what_is_quoted_in_troubleshooting_is_said_by_the_code() -> None:
    quoted = [row[0] for row in rows(TROUBLESHOOTING.read_text())]
    lines = [span for cell in quoted for span in re.findall(r"`([^`]+)`", cell) if len(span) > 40]
    assert len(lines) > 25
    assert [line for line in lines if not is_said(line)] == []


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

# Loading and killing take their time and are tests/system/test_durability.py's; the terminal is
# tests/client/test_conuresh.py's.
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
        (r"127\.0\.0\.1:(?!8081)\d+", "<raft>"),
    ):
        output = re.sub(pattern, instead, output)
    return "\n".join(line.rstrip() for line in output.splitlines())


@pytest.mark.skipif(not shutil.which("curl"), reason="the tour is made with curl")
def test_the_tour_prints_what_it_says(tmp_path: Path) -> None:
    tour = commands(section(README, "## Five minutes"))
    assert len(tour) > 20
    with running(tmp_path / "data", "--bootstrap", "--engine=btree") as server:
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


PORT = re.compile(r"\b(?:70|80)\d\d\b")  # of the nodes in the pages
POLL = 0.05
ELSEWHERE = (  # what differs from run to run
    (r"[0-9a-f]{32}", "<cluster>"),
    (r"Date: .*", "Date: <date>"),
    (r"Content-Length: \d+", "Content-Length: <bytes>"),  # ports have other lengths
    (r"(X-Conure-Last-Contact:) \d+", r"\1 <milliseconds>"),
    (r"\d+\.\d{3} s", "<seconds>"),
    (r'("leader_id": "node)[23]"', r'\1<either>"'),
)


class Tour:
    """Carries out the commands of a page: servers become processes, all else is bash's.

    Every port in the page stands for a free one here. Servers that are started one after the
    other start together. A command that asks for something is repeated until the answer is the
    one shown, as its reader would do.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ports: dict[str, str] = {}
        self._servers: dict[str, ServerProcess] = {}

    def run(self, command: str, shown: str = "") -> None:
        node = re.search(r"\./data/(\w+)|data/(\w+)", command)
        if command.startswith("python3 conuredb.py"):
            assert node
            flags = shlex.split(command.replace("\\\n", " "))[2:]
            path = self._home / "data" / node[1]
            self._servers[node[1]] = ServerProcess(path, "--engine=btree", *map(self._here, flags))
            return
        for server in self._servers.values():
            server.wait_until_listening()
        if command.startswith("kill "):
            assert node
            self.output(command)
            self._servers[node[2]].wait()
        elif command.startswith("rm "):
            self.output(command)
        else:
            self._ask(command, self.normalised(shown))

    def output(self, command: str) -> str:
        """Return what a command prints, with the page's ports in place of ours."""
        done = subprocess.run(
            ["bash", "-c", self._here(command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._home,
            env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
            timeout=30,
            check=False,
        )
        output = done.stdout.decode()
        for port, ours in self._ports.items():
            output = output.replace(f":{ours}", f":{port}")
        return output

    def close(self) -> None:
        for server in self._servers.values():
            server.kill()

    @staticmethod
    def normalised(output: str) -> str:
        for pattern, instead in ELSEWHERE:
            output = re.sub(pattern, instead, output)
        return "\n".join(line.rstrip() for line in output.splitlines())

    def _ask(self, command: str, shown: str) -> None:
        deadline = time.monotonic() + 20
        while (output := self.normalised(self.output(command))) != shown:
            assert time.monotonic() < deadline, f"{command}{output}\ninstead of\n{shown}"
            time.sleep(POLL)

    def _here(self, text: str) -> str:
        text = text.replace("./data/", f"{self._home}/data/")
        return PORT.sub(lambda port: self._port(port[0]), text)

    def _port(self, port: str) -> str:
        while port not in self._ports:
            ours = str(free_port("127.0.0.1"))
            if ours not in self._ports.values():
                self._ports[port] = ours
        return self._ports[port]


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    made = Tour(tmp_path)
    yield made
    made.close()


@pytest.mark.skipif(not shutil.which("curl"), reason="the tours are made with curl")
@pytest.mark.parametrize(
    ("page", "heading"),
    [(README, "## A cluster by hand"), (CLUSTER, "")],
    ids=["readme", "cluster"],
)
def test_the_tours_of_clusters_print_what_they_say(tour: Tour, page: Path, heading: str) -> None:
    steps = commands(section(page, heading) if heading else page.read_text())
    assert len(steps) > 10
    for command, shown in steps:
        tour.run(command, shown)


MEASURED = {
    "load": "load, 1,000 a commit",
    "overwrite": "overwrite, 1,000 a commit",
    "put, 100 a commit": "put, 100 a commit",
    "put, 1 a commit": "put, 1 a commit",
    "get": "get, settled",
    "of a missing key": "get of a missing key, settled",
    "range of 100": "range of 100, settled",
    "scan, a key": "scan, a key",
    "scan, a record": "scan, a record",
}
"""The columns of docs/engines.md, and what they are called where they were measured."""


def test_the_figures_of_the_engines_are_those_that_were_measured() -> None:
    ours = {"ConureDB, `btree`": "ConureDB B-tree + log", "ConureDB, `lsm`": "ConureDB LSM + log"}
    measured = section(RESULTS, "## Storage engines, in process").split("**1,000,000 records: ")
    times, space = (part for part in measured if part.startswith(("microsec", "space")))
    shown = ENGINES.read_text().partition("<!-- engines: begin")[2].partition("<!-- engines: end")
    columns = [head(times).index(MEASURED[column]) for column in head(shown[0])[1:-1]]
    assert len(rows(shown[0])) == 6
    for name, *figures in rows(shown[0]):
        (took,) = [row for row in rows(times) if row[0] == ours.get(name, name)]
        (takes,) = [row for row in rows(space) if row[0] == ours.get(name, name)]
        assert figures == [*(took[column] for column in columns), takes[4]], name


def head(text: str) -> list[str]:
    """Return the cells of the head of the first table in *text*."""
    line = next(line for line in text.splitlines() if line.startswith("|"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.skipif(not shutil.which("curl"), reason="the way begins with curl")
def test_the_way_from_one_engine_to_the_other(tmp_path: Path) -> None:
    way = [block for _, block in FENCE.findall(section(ENGINES, "## From one to the other"))]
    back_up, restore, start = (
        way[0].replace("python3 conuredb.py", f"{ROOT}/conuredb.py").splitlines()
    )
    with running(tmp_path / "data", "--bootstrap", "--engine=btree") as server:
        assert server.put("key", b"value").status == 200
        here = back_up.replace("localhost:8081", f"127.0.0.1:{server.port}")
        subprocess.run(["bash", "-c", here], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(
        [sys.executable, *restore.split()], cwd=tmp_path, check=True, capture_output=True
    )
    _, directory = start.split()
    with running(tmp_path / directory.removeprefix("--data-dir=")) as server:
        wait_until(lambda: server.request("GET", "/readyz").status == 200)
        assert server.get("key").body == b"value"
        assert b'"engine": "lsm"' in server.request("GET", "/status").body


def test_the_clients_example_runs(tmp_path: Path) -> None:
    [example] = [block for kind, block in FENCE.findall(README.read_text()) if kind == "python"]
    with running(tmp_path / "data", "--bootstrap", "--engine=btree") as server:
        scope: dict[str, Any] = {}
        exec(example.replace("http://127.0.0.1:8081", server.url), scope)  # our own README
        assert server.get("greeting").body == b"hello"


def test_the_walk_names_each_function_in_its_file() -> None:
    walk = rows(section(ARCHITECTURE, "## A walk from a socket to a page"))
    steps = [row for row in walk if row[0].isdecimal()]
    assert [int(row[0]) for row in steps] == list(range(1, len(steps) + 1))
    for _, file, functions, _ in steps:
        code = (ROOT / file.strip("`")).read_text()
        for name in functions.split(", "):
            owner, function = name.strip("`").split(".")
            bodies = re.split(rf"^class {owner}\b", code, flags=re.MULTILINE)[1:]
            assert bodies, name
            assert f"    def {function}(" in bodies[0].partition("\nclass ")[0], name
