"""A Python that is too old says so in one line, whatever was started with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conure import oldpython
from tests.lab.process import ROOT

AS_AN_OLD_ONE = "import sys; sys.version_info = (3, 10, 13, 'final', 0); "
WORDS = f"ConureDB needs Python 3.11 or newer, and this is Python 3.10 ({sys.executable})\n"


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_AN_OLD_ONE + f"sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True, text=True, check=False, timeout=20, cwd=cwd,
    )  # fmt: skip


@pytest.mark.parametrize("program", ["conuredb.py", "conuresh.py", "conure/ops/scaling.py"])
def test_a_program_ends_with_one_line(tmp_path: Path, program: str) -> None:
    done = run(f"import runpy; runpy.run_path({str(ROOT / program)!r}, None, '__main__')", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{Path(program).name}: {WORDS}"


def test_a_program_that_is_a_link_ends_with_one_line(tmp_path: Path) -> None:
    link = tmp_path / "conuredb.py"
    link.symlink_to(ROOT / "conuredb.py")
    done = run(f"import runpy; runpy.run_path({str(link)!r}, None, '__main__')", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f": {WORDS}")
    assert done.stderr.count("\n") == 1


def test_a_program_that_imports_the_client_is_told_by_an_exception(tmp_path: Path) -> None:
    done = run("import conure.client", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(f"\nImportError: {WORDS}")
    done = run("\ntry:\n    import conure.client\nexcept ImportError as e:\n    print(e)", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, WORDS, "")


def test_which_ones_are_too_old() -> None:
    for version in ((2, 7, 18), (3, 6, 15), (3, 10, 99), (3, 9)):
        assert oldpython.complaint(version, "/p").endswith(f" {version[0]}.{version[1]} (/p)")
    for version in ((3, 11, 0), (3, 13, 1), (4, 0)):
        assert oldpython.complaint(version, "/p") == ""
