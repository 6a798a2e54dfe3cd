"""kvctl itself: its words, help, errors, completion, and how it ends; whatever it asks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure import VERSION
from conure.ops import kvctl as starter
from conure.ops import kvoutput
from conure.ops.kvcommands import COMMANDS, DEFAULT_ADDRESS, GENERAL, OPTIONS, SHELLS, Usage
from conure.ops.kvcompletion import script_for
from conure.ops.kvoutput import shown_bytes, shown_duration
from conure.ops.kvwords import parse
from conure.values import COMMAND
from tests.lab.kvctltool import Kvctl
from tests.lab.process import ROOT

PYTHON = shlex.quote(sys.executable)


@pytest.fixture(name="kvctl")
def _kvctl(capsysbinary: pytest.CaptureFixture[bytes]) -> Kvctl:
    return Kvctl(capsysbinary)


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "say what to do; kvctl --help"),
        (["fetch", "k"], "fetch: no such command"),
        (["gett", "k"], "gett: no such command; did you mean get?"),
        (["put", "k"], "usage: kvctl put KEY VALUE [--ttl=DURATION]"),
        (["put", "k", "a", "b"], "put quotes around what holds spaces"),
        (["get"], "usage: kvctl get KEY"),
        (["delete"], "usage: kvctl delete KEY..."),
        (["scan", "a", "b"], "usage: kvctl scan [PREFIX]"),
        (["scan", "--limt=5"], "--limt=5: no such option; did you mean --limit?"),
        (["scan", "-limt=5"], "did you mean --limit?"),
        (["get", "-k"], "-k: no such option; kvctl --help lists them; behind -- "),
        (["get", "k", "--limit=5"], "get has no option --limit"),
        (["scan", "--limit=0"], "--limit=0: it has to be a whole number from 1 on"),
        (["scan", "--limit=many"], "whole number"),
        (["scan", "--limit"], "--limit needs a value, N"),
        (["scan", "--reverse=yes"], "--reverse takes no value"),
        (["put", "k", "v", "--ttl=5"], "--ttl=5: write it like 500ms, 30s"),
        (["put", "k", "v", "--ttl=0s"], "write it like"),
        (["put", "k", "v", "--ttl=3651d"], "3650d is the most"),
        (["put", "k", "v", "--ttl=1s", "-ttl", "2s"], "--ttl is there twice"),
        (["get", "k", "--addr=localhost"], "--addr 'localhost' is no address; write it like"),
        (["get", "k", "--addr=h:0"], "is no address"),
        (["get", "k", "--addr=h:1", "--data-dir=d"], "name one of them"),
        (["get", "k", "--data-dir="], "--data-dir is empty"),
        (["get", "k", "--timeout=25h"], "24h is the most"),
        (["completion", "tcsh"], "tcsh: no such shell that is completed"),
        (["completion", "bsh"], "did you mean bash?"),
        (["help", "scam"], "scam: no such command; did you mean scan?"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(kvctl: Kvctl, argv: list[str], told: str) -> None:
    assert told in kvctl.fails(*argv, status=2)


def test_the_address_is_checked_wherever_it_comes_from(kvctl: Kvctl) -> None:
    assert "KVCTL_ADDR 'x' is no address" in kvctl.fails("get", "k", status=2, KVCTL_ADDR="x")
    assert kvctl("help", KVCTL_ADDR="x").status == 0


def test_options_have_one_dash_or_two_before_and_behind() -> None:
    for argv in (
        ["--addr=h:1", "scan", "p", "--limit=3", "--json"],
        ["-addr", "h:1", "-limit", "3", "-json", "scan", "p"],
        ["scan", "-limit=3", "p", "--addr", "h:1", "-json"],
    ):
        line = parse(argv, {})
        assert (line.command, line.arguments, line.options) == ("scan", ["p"], {"limit": 3})
        assert (line.host, line.port, line.as_json, line.data_dir) == ("h", 1, True, "")
    assert parse(["get", "k"], {}).address == DEFAULT_ADDRESS
    assert parse(["get", "k"], {"KVCTL_ADDR": "[::1]:9"}).address == "[::1]:9"
    assert parse(["get", "k", "--addr=:9"], {"KVCTL_ADDR": "x:8"}).address == "127.0.0.1:9"
    assert parse(["put", "k", "v", "--ttl=1m30s"], {}).options == {"ttl": 90.0}
    assert parse(["get", "k", "--data-dir", "./d"], {}).data_dir == "./d"


def test_what_looks_like_an_option_can_be_a_word() -> None:
    assert parse(["put", "k", "-"], {}).arguments == ["k", "-"]
    assert parse(["put", "-5", "-1.5"], {}).arguments == ["-5", "-1.5"]
    assert parse(["put", "--", "--ttl=5s", "-v"], {}).arguments == ["--ttl=5s", "-v"]
    assert parse(["get", "--json", "--", "--json"], {}).arguments == ["--json"]


@given(st.lists(st.text(max_size=12) | st.sampled_from([*COMMANDS, "--addr=h:1", "--", "-json"])))
def test_any_words_are_a_line_or_wrong_usage(words: list[str]) -> None:
    """And what comes through has as many arguments as its command takes."""
    try:
        line = parse(words, {})
    except Usage:
        return
    if line.command != "version":
        least, most = COMMANDS[line.command].bounds()
        assert least <= len(line.arguments) <= most


# -- help, version, completion ---------------------------------------------------------------------


def test_help_describes_everything(kvctl: Kvctl) -> None:
    for words in (["--help"], ["-h"], ["help"], ["-help"]):
        said = kvctl(*words)
        assert (said.status, said.err) == (0, "")
        text = said.out.decode()
        for name, command in COMMANDS.items():
            assert re.search(rf"^  {name} .*{re.escape(command.summary)}$", text, re.MULTILINE)
        for name in GENERAL:
            assert f"  --{name}" in text
    for name, command in COMMANDS.items():
        for words in (["help", name], [name, "--help"], ["-h", name]):
            text = kvctl(*words).out.decode()
            assert text.startswith(f"usage: kvctl {name}")
            assert all(f"--{each}" in text for each in command.options)
        assert max(map(len, text.splitlines())) <= 100


def test_the_version(kvctl: Kvctl) -> None:
    assert kvctl("--version").out.decode() == f"kvctl of ConureDB {VERSION}\n"
    assert kvctl("get", "-version").status == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_a_script_of_that_shell(kvctl: Kvctl, shell: str) -> None:
    said = kvctl("completion", shell)
    assert (said.status, said.err) == (0, "")
    assert said.out.decode() == script_for(shell)
    text = said.out.decode()
    dashes = "-l " if shell == "fish" else "--"
    assert all(f"{dashes}{name}" in text for name in OPTIONS)
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} to try it with")
    done = subprocess.run([shell, "-n"], input=said.out, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["kvctl", "sc"], ["scan"]),
        (["kvctl", "--data"], ["--data-dir"]),
        (["kvctl", "scan", "--l"], ["--limit"]),
        (["kvctl", "--json", "scan", "--rev"], ["--reverse"]),
        (["kvctl", "get", "--li"], []),
        (["kvctl", "completion", ""], [*SHELLS, *(f"--{name}" for name in GENERAL)]),
        (["kvctl", "--data-dir", "=", "te"], ["tests"]),
        (["kvctl", "--data-dir", "te"], ["tests"]),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes(typed: list[str], offered: list[str]) -> None:
    assert bash_completes(typed, ROOT) == sorted(offered)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_folders_of_any_name(tmp_path: Path) -> None:
    for name in ("a b", "a*", "a$(touch made)", "c"):
        (tmp_path / name).mkdir()
    assert bash_completes(["kvctl", "--data-dir", "a"], tmp_path) == ["a b", "a$(touch made)", "a*"]
    assert not (tmp_path / "made").exists()


def bash_completes(typed: list[str], folder: Path) -> list[str]:
    """Return what a bash offers for the last of some words."""
    words = " ".join(map(shlex.quote, typed))
    ask = f"COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _kvctl"
    show = 'for word in "${COMPREPLY[@]}"; do echo "$word"; done'
    done = subprocess.run(
        ["bash", "-c", f"{script_for('bash')}\n{ask}; {show}"],
        capture_output=True, text=True, check=True, cwd=folder,
    )  # fmt: skip
    assert done.stderr == ""
    return sorted(done.stdout.splitlines())


# -- what is shown ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1300, "1.3 KiB"),
        (1_048_575, "1.0 MiB"), (1_258_291, "1.2 MiB"), (5 << 40, "5.0 TiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)  # fmt: skip
def test_sizes_as_people_read_them(size: int, shown: str) -> None:
    assert shown_bytes(size) == shown


@given(st.integers(0, 10**12))
def test_a_duration_can_be_read_again(milliseconds: int) -> None:
    seconds = COMMAND.parse(shown_duration(milliseconds))
    assert seconds is not None
    assert round(seconds * 1000) == milliseconds


def test_columns_are_aligned_and_disturb_no_terminal(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    output = kvoutput.Output(as_json=False)
    output.table([("1", "a\x1b[2J", "x"), ("23", "b", "yy")], ("n", "key", "end"), right=(0,))
    assert capsysbinary.readouterr().out == (
        b" n  key       end\n 1  a\\x1b[2J  x\n23  b         yy\n"
    )
    output.json({"key": "a\x9b2J\x07é𝄞\U000e0001"})
    assert capsysbinary.readouterr().out.decode() == (
        '{"key": "a\\u009b2J\\u0007é𝄞\\udb40\\udc01"}\n'
    )
    output.line(b"\xff\n", "\r")
    output.pairs({"file_bytes": 5000, "records": 5000})
    assert capsysbinary.readouterr().out == (
        b"\\xff\\n\t\\r\nfile_bytes  4.9 KiB (5,000)\nrecords     5000\n"
    )


# -- how it starts and ends ------------------------------------------------------------------------


def process(*words: str) -> list[str]:
    return [sys.executable, "-m", "conure.ops.kvctl", *words]


def test_a_server_is_asked_without_what_a_directory_needs() -> None:
    """Or else each command would take three times as long to start."""
    code = (
        "import sys; from conure.ops import kvctl;"
        "status = kvctl.main(['get', 'k', '--addr=127.0.0.1:1'], {});"
        "print(status, *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    status, *modules = done.stdout.split()
    assert status == "1"
    assert "conure.ops.kvserver" in modules
    assert not {"btree", "raft", "argparse", "conure.state.machine", "asyncio"} & set(modules)
    assert sum(name.startswith("conure.") for name in modules) < 20


def test_closed_streams(tmp_path: Path) -> None:
    command = shlex.join(process("put", "k", "-", "--addr=127.0.0.1:1"))
    for closed, status in (("<&-", 1), (">&-", 1), ("2>&-", 1)):
        done = subprocess.run(
            ["bash", "-c", f"{command} {closed}"],
            capture_output=True, check=False, cwd=ROOT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == status
        assert b"Traceback" not in done.stderr


def test_a_full_disk_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(process('help'))} > /dev/full"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr == "kvctl: can't read the input or write the output: No space left on device\n"
    )


def test_who_has_seen_enough_ends_it_quietly() -> None:
    command = shlex.join(process("completion", "fish"))
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip() in ("0", "1")  # 0 if it was done before
    assert done.stderr == ""


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch, kvctl: Kvctl) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(starter, "parse", interrupted)
    assert kvctl("get", "k") == (128 + signal.SIGINT, b"", "")


def test_it_starts_from_anywhere_as_a_command(tmp_path: Path) -> None:
    """commandline.py is what a wheel's command and bin/kvctl go through."""
    code = (
        "import sys; sys.argv[0] = 'kvctl'; from conure.commandline import kvctl; sys.exit(kvctl())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--data-dir=nowhere", "stats"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("kvctl: nowhere is no data directory")
