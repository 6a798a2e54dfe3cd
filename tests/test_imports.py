"""The table of wings in docs/architecture.md, held to the code: no circle, and a pure core."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What the files of each wing may import: "" is what lies directly under the roof, and the files on
# the step stand by their own names. A wing's files may import one another, but in no circle.
WINGS: dict[str, set[str]] = {
    "": set(),
    "consensus": {""},
    "storage": {"", "pager", "btree"},
    "net": {""},
    "security": {""},
    "state": {"", "consensus", "storage"},
    "peers": {"", "consensus", "net", "security"},
    "cluster": {"", "consensus", "storage", "net", "state", "peers", "raft"},
    "service": {"", "state"},
    "http": {"", "net", "state", "service"},
    "resp": {"", "net", "state", "service"},
    "client": {"", "net"},
}
ANY = {*WINGS, "ops", "raft", "btree", "pager", "httpapi"}
WINGS["ops"] = ANY
STEP: dict[str, set[str]] = {
    "pager": {"", "storage"},
    "btree": {"", "storage", "pager"},
    "raft": {"", "consensus"},
    "httpapi": {"", "http", "service"},
    "conuresh": {"", "client"},
    "conuredb": ANY,
}

# The core sees no clock, thread, socket, file or randomness of its own (raft.py's docstring).
PURE = {
    "__future__",
    "bisect",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "random",
    "struct",
    "typing",
}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    dotted(path): path for path in sorted([*ROOT.glob("*.py"), *(ROOT / "conure").rglob("*.py")])
}


def wing_of(module: str) -> str:
    """Return the wing of a module: "" for one directly under the roof, its name on the step."""
    first, *rest = module.split(".")
    if first != "conure":
        return first
    return rest[0] if rest and (ROOT / "conure" / rest[0]).is_dir() else ""


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return the modules that one imports: ours by their whole names, others by the first part."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are by whole names"
            both = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in both]
        else:
            continue
        found |= {name if name in FILES else name.partition(".")[0] for name in names}
    return frozenset(found)


def test_every_wing_is_in_the_table() -> None:
    assert {wing_of(module) for module in FILES} == {*WINGS, *STEP}


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    wing = wing_of(module)
    allowed = STEP[wing] if wing in STEP else WINGS[wing] | {wing}
    assert {wing_of(each) for each in imports_of(module) & FILES.keys()} <= allowed


@pytest.mark.parametrize("module", sorted(FILES))
def test_runtime_needs_only_the_standard_library(module: str) -> None:
    outside = imports_of(module) - FILES.keys() - set(sys.stdlib_module_names)
    assert outside <= ({"yaml"} if module == "conure.config" else set())


@pytest.mark.parametrize(
    "module", ["raft", *(f"conure.consensus.{name}" for name in ("members", "messages", "logview"))]
)
def test_the_core_stays_pure(module: str) -> None:
    assert imports_of(module) - FILES.keys() <= PURE


@pytest.mark.parametrize(
    "module",
    [
        "conuredb",
        "conuresh",
        "conure.commandline",
        "conure.ops.kvctl",
        "conure.ops.scaling",
        "conure.client",
    ],
)
def test_what_tells_of_an_old_python_can_be_read_by_it(module: str) -> None:
    """Nothing is imported before, and no syntax is newer than what it has to be told to."""
    parents = [module.rsplit(".", up)[0] for up in range(module.count(".") + 1)]
    for each in (*parents, "conure", "conure.oldpython"):
        ast.parse(FILES[each].read_text(), feature_version=(3, 7))
    imports = [
        node
        for node in ast.parse(FILES[module].read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert isinstance(imports[0], ast.ImportFrom)
    assert imports[0].module == "__future__"
    assert isinstance(imports[1], ast.ImportFrom)
    assert (imports[1].module, imports[1].names[0].name) == ("conure", "oldpython")


def test_nobody_decides_by_the_wall_clock() -> None:
    """It may jump by hours at any moment. It is shown to people, and decides nothing but where a
    leader's time begins (leaderclock.py), which the node gives it, and which certificates are
    valid: these name dates."""
    shown_by = {
        "conuredb",
        "conure.metrics",
        "conure.cluster.node",
        "conure.http.known",
        "conure.net.tlslink",
        "conure.ops.kvstopped",
        "conure.ops.offline",
        "conure.security.tls",
        "conure.security.trial",
    }
    wall = {"time", "time_ns", "gmtime", "localtime", "ctime", "strftime"}
    for module in FILES.keys() - shown_by:
        for node in ast.walk(ast.parse(FILES[module].read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.value.id == "time" and node.attr in wall), module
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {alias.name for alias in node.names} & wall, module
        assert not imports_of(module) & {"datetime", "calendar"}, module


def test_there_is_no_circle() -> None:
    needs = {module: imports_of(module) & FILES.keys() - {module} for module in FILES}
    done: set[str] = set()
    while len(done) < len(needs):
        ready = {name for name, others in needs.items() if name not in done and others <= done}
        assert ready, f"a circle among {sorted(needs.keys() - done)}"
        done |= ready
