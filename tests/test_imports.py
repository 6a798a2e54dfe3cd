"""The import table of docs/architecture.md, held to the code: no circle, and a pure core."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each module may import from this project. A new module gets a line here and there.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"endpoints", "errors", "origins"},
    "endpoints": set(),
    "metrics": set(),
    "fileio": {"errors"},
    "datadir": {"fileio", "errors"},
    "pager": {"fileio", "errors"},
    "nodes": {"pager"},
    "btree": {"nodes", "pager", "fileio", "errors"},
    "raft": {"endpoints", "errors"},
    "commands": set(),
    "wire": {"commands", "raft", "errors"},
    "raftlog": {"fileio", "wire", "raft", "errors"},
    "store": {"btree", "commands", "wire", "raft", "errors"},
    "snapshots": {"btree", "fileio", "raftlog", "store", "transport", "wire", "raft", "errors"},
    "guests": {"wire"},
    "transport": {"endpoints", "guests", "wire", "raft", "metrics", "errors"},
    "divergence": set(),
    "waiting": {"commands", "raft", "errors"},
    "expiry": set(),
    "leases": {"raft", "transport"},
    "watch": {"commands", "metrics", "errors"},
    "backup": {
        "datadir",
        "errors",
        "fileio",
        "raft",
        "raftlog",
        "snapshots",
        "store",
        "transport",
        "wire",
    },
    "addresses": {"raft", "transport"},
    "admission": {"addresses", "datadir", "raft", "transport", "errors"},
    "versions": {"raft", "transport", "errors"},
    "shown": {"datadir", "raft", "raftlog", "store", "versions"},
    "upkeep": {"metrics", "raft", "raftlog", "store", "errors"},
    "membership": {"raft", "transport", "waiting", "errors"},
    "node": {
        "admission",
        "backup",
        "btree",
        "commands",
        "datadir",
        "divergence",
        "errors",
        "expiry",
        "fileio",
        "leases",
        "membership",
        "metrics",
        "raft",
        "raftlog",
        "shown",
        "snapshots",
        "store",
        "transport",
        "upkeep",
        "versions",
        "waiting",
        "watch",
        "wire",
    },
    "offline": {
        "backup",
        "btree",
        "commands",
        "config",
        "datadir",
        "errors",
        "fileio",
        "node",
        "raftlog",
        "snapshots",
        "store",
    },
    "origins": set(),
    "places": set(),
    "httpserver": {"errors", "metrics", "origins", "places"},
    "jsonsteps": {"errors"},
    "kvjson": {"commands", "errors", "jsonsteps"},
    "kvrequests": {"commands", "httpserver", "kvjson", "errors"},
    "kvapi": {"commands", "httpserver", "jsonsteps", "kvjson", "kvrequests", "errors"},
    "streams": {
        "commands",
        "httpserver",
        "jsonsteps",
        "kvapi",
        "kvjson",
        "kvrequests",
        "watch",
        "errors",
    },
    "httpapi": {
        "endpoints",
        "errors",
        "httpserver",
        "kvapi",
        "kvjson",
        "kvrequests",
        "metrics",
        "openapi",
        "streams",
    },
    "openapi": set(),
    "forward": {"httpserver", "errors", "metrics"},
    "discovery": {"errors"},
    "oldpython": set(),
    "client": {"errors", "oldpython"},
    "conuresh": {"client", "errors", "oldpython"},
    "scaling": {"client", "errors", "oldpython"},
    "conuredb": {
        "config",
        "discovery",
        "errors",
        "fileio",
        "forward",
        "httpapi",
        "httpserver",
        "kvjson",
        "metrics",
        "node",
        "offline",
        "oldpython",
        "origins",
        "transport",
        "watch",
    },
}

# The core sees no clock, thread, socket, file or randomness of its own (raft.py's docstring).
PURE = {
    "raft": {
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
}


def imports_of(module: str) -> set[str]:
    tree = ast.parse((ROOT / f"{module}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_every_module_is_in_the_table() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_module_imports_only_what_the_table_allows(module: str) -> None:
    assert imports_of(module) & set(ALLOWED) <= ALLOWED[module]


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_runtime_needs_only_the_standard_library(module: str) -> None:
    outside = imports_of(module) - set(ALLOWED) - set(sys.stdlib_module_names)
    assert outside <= ({"yaml"} if module == "config" else set())


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_module_stays_pure(module: str) -> None:
    assert imports_of(module) - set(ALLOWED) <= PURE[module]


@pytest.mark.parametrize("module", ["conuredb", "conuresh", "scaling", "client"])
def test_what_tells_of_an_old_python_can_be_read_by_it(module: str) -> None:
    """Nothing is imported before, and no syntax is newer than what it has to be told to."""
    for each in (module, "oldpython"):
        ast.parse((ROOT / f"{each}.py").read_text(), feature_version=(3, 7))
    imports = [
        node
        for node in ast.parse((ROOT / f"{module}.py").read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert isinstance(imports[0], ast.ImportFrom)
    assert imports[0].module == "__future__"
    assert isinstance(imports[1], ast.Import)
    assert imports[1].names[0].name == "oldpython"


def test_nobody_decides_by_the_wall_clock() -> None:
    """It may jump by hours at any moment. It is shown to people, and decides nothing but where a
    leader's time begins (expiry.py), which the node gives it."""
    shown_by = {"conuredb", "httpserver", "metrics", "offline", "node"}
    wall = {"time", "time_ns", "gmtime", "localtime", "ctime", "strftime"}
    for module in set(ALLOWED) - shown_by:
        for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.value.id == "time" and node.attr in wall), module
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {alias.name for alias in node.names} & wall, module
        assert not imports_of(module) & {"datetime", "calendar"}, module


def test_table_has_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {name for name, needs in ALLOWED.items() if name not in done and needs <= done}
        assert ready, f"a circle among {sorted(set(ALLOWED) - done)}"
        done |= ready
