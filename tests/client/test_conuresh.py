"""conuresh.py: as one command, as a script and at a terminal (a pseudo-terminal here)."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.client.shellwords import NotWords, split
from conuresh import COMMANDS, _completion
from tests.lab import forkserver
from tests.lab.stubserver import (
    MakeStub,
    StubServer,
    close,
    close_and_stop_listening,
    hang,
    refuse,
)
from tests.lab.tlsfiles import Issuer

SHELL = Path(__file__).parents[2] / "conuresh.py"


@pytest.fixture(name="stub")
def _stub() -> Iterator[StubServer]:
    stub = StubServer()
    yield stub
    stub.stop()


def run(
    stub: StubServer | None, *args: str | bytes, stdin: bytes = b"", **environ: str
) -> tuple[int, bytes, bytes]:
    """Run the shell to its end; return exit status, standard output and standard error."""
    server = [f"--server={stub.url}"] if stub else []
    result = forkserver.run([SHELL, *server, *args], input=stdin, timeout=20, environ=environ)
    return result.returncode, result.stdout, result.stderr


# -- one command -----------------------------------------------------------------------------------


def test_put_get_delete(stub: StubServer) -> None:
    assert run(stub, "put", "greeting", "hello world") == (0, b"OK\n", b"")
    assert stub.values == {b"greeting": b"hello world"}
    assert run(stub, "get", "greeting") == (0, b"hello world", b"")
    assert run(stub, "delete", "greeting") == (0, b"OK\n", b"")
    assert run(stub, "get", "greeting") == (1, b"", b"conuresh: key not found\n")


def test_any_bytes_come_and_go_unchanged(stub: StubServer) -> None:
    content = bytes(range(256)) + b"\n"
    assert run(stub, "put", b"\xff k", "-", stdin=content)[0] == 0
    assert stub.values == {b"\xff k": content}
    assert run(stub, "get", b"\xff k") == (0, content, b"")


def test_values_that_look_like_options(stub: StubServer) -> None:
    assert run(stub, "put", "-k", "--server=x")[0] == 0
    assert stub.values == {b"-k": b"--server=x"}


def test_status(stub: StubServer) -> None:
    code, out, _ = run(stub, "status")
    assert code == 0
    assert b'"path": "/status"' in out


def test_the_server_can_be_named_by_the_environment(stub: StubServer) -> None:
    stub.values[b"k"] = b"v"
    assert run(None, "get", "k", CONURE_SERVER=stub.url) == (0, b"v", b"")
    bad = "http://127.0.0.1:1"
    assert run(None, f"--server={bad},{stub.url}", "get", "k", CONURE_SERVER=bad)[1] == b"v"
    assert run(None, "-server", bad, "-server", stub.url, "get", "k")[1] == b"v"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["put", "k"], b"usage: put <key> <value>"),
        (["put", "k", "a", "b"], b"quotes"),
        (["get"], b"usage: get <key>"),
        (["fetch", "k"], b"fetch: no such command"),
        (["help", "fetch"], b"no such command"),
        (["--sever=x", "get", "k"], b"--sever: no such option"),
        (["--server"], b"needs a value"),
        (["--server=localhost", "get", "k"], b"write it like http://127.0.0.1:8081"),
        (["--timeout=5", "get", "k"], b"write it like 5s"),
        (["--timeout=0s", "get", "k"], b"write it like 5s"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(args: list[str], told: bytes) -> None:
    code, out, err = run(None, *args)
    assert (code, out) == (2, b"")
    assert told in err
    assert err.startswith(b"conuresh: ")
    assert err.count(b"\n") == 1


def test_refusals_are_status_1_and_one_line(stub: StubServer) -> None:
    stub.acts = [refuse(413, "the value has 2 bytes;\x1b[2J too many"), close]
    assert run(stub, "put", "k", "vv") == (
        1, b"", b"conuresh: the value has 2 bytes;\\x1b[2J too many\n",
    )  # fmt: skip
    code, out, err = run(stub, "put", "k", "v")
    assert (code, out) == (1, b"")
    assert b"may or may not have been carried out" in err
    code, _, err = run(None, "--server=http://127.0.0.1:1", "--timeout=100ms", "get", "k")
    assert code == 1
    assert b"connection refused" in err


def test_help_describes_every_command() -> None:
    code, out, _ = run(None, "--help")
    assert code == 0
    for command in COMMANDS.values():
        assert command.usage.encode() in out
        assert command.summary.encode() in out
    assert b"CONURE_SERVER" in out
    assert run(None, "help", "put")[1].startswith(b"put <key> <value> [--ttl 30s] ")


def test_it_can_be_put_on_the_path() -> None:
    assert os.access(SHELL, os.X_OK)
    assert SHELL.read_text().startswith("#!/usr/bin/env python3\n")


def test_a_reader_that_leaves_is_no_failure_worth_words(stub: StubServer) -> None:
    stub.values[b"k"] = b"x" * (1 << 20)
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, str(SHELL), f"--server={stub.url}", "get", "k"],
        stdout=writing, stderr=subprocess.PIPE, timeout=20, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


def test_an_error_is_never_taken_for_a_value(stub: StubServer) -> None:
    """With standard error closed there is no place for it; standard output isn't one."""
    command = f"{sys.executable} {SHELL} --server={stub.url} get missing 2>&-"
    result = subprocess.run(command, shell=True, capture_output=True, timeout=20, check=False)
    assert (result.returncode, result.stdout) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_can_not_be_written_is_told(stub: StubServer) -> None:
    stub.values[b"k"] = b"v"
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, str(SHELL), f"--server={stub.url}", "get", "k"],
            stdout=full, stderr=subprocess.PIPE, timeout=20, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1
    assert b"No space left" in result.stderr


# -- a script --------------------------------------------------------------------------------------


def test_a_script_goes_on_after_errors_and_tells_of_them_in_its_status(stub: StubServer) -> None:
    script = b"put k 'a b'\n\nget k\nget missing\nget 'open\nput j -\nget j\nexit\nget k\n"
    code, out, err = run(stub, stdin=script)
    assert code == 2
    assert out == b"OK\na b\nOK\n-\n", "- stands for standard input on the command line only"
    assert err.splitlines()[0] == b"key not found"
    assert b"no closing quotation" in err.splitlines()[1]
    assert run(stub, stdin=b"get k\n") == (0, b"a b\n", b"")


def test_a_script_may_hold_any_bytes(stub: StubServer) -> None:
    run(stub, stdin=b"put '\xff' '\xfe \"'\n")
    assert stub.values == {b"\xff": b'\xfe "'}


# -- a terminal ------------------------------------------------------------------------------------


# Makes standard input the terminal that Ctrl-C comes from, heeds it though the tests' own process
# was told to ignore it, as those in the background are, then becomes the command given.
_WITH_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """The shell at a pseudo-terminal."""

    def __init__(
        self, stub: StubServer, home: Path, *prefix: str, others: Sequence[StubServer] = ()
    ) -> None:
        environ = {**os.environ, "HOME": str(home), "TERM": "dumb", "INPUTRC": "/dev/null"}
        environ.pop("XDG_STATE_HOME", None)
        ours, theirs = pty.openpty()
        self._fd = ours
        self._prompt = f"{stub.url.removeprefix('http://')}> "
        servers = [f"--server={each.url}" for each in (stub, *others)]
        command = [sys.executable, *prefix, str(SHELL), *servers]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WITH_TERMINAL, *command],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.banner = self.until(self._prompt)

    def until(self, text: str) -> str:
        """Return what is shown until *text* has been."""
        shown = b""
        deadline = time.monotonic() + 10
        while text.encode() not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    shown += os.read(self._fd, 4096)
                except OSError:  # EIO: the other side is closed
                    raise AssertionError(shown) from None
        return shown.decode().replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def command(self, line: str) -> str:
        """Type a line and return what was shown for it."""
        self.type(line + "\n")
        return self.until("\r\n" + self._prompt).partition("\n")[2].removesuffix(self._prompt)

    def interrupt(self) -> None:
        """Press Ctrl-C until it is noticed: a signal between readline's two looks waits for one."""
        for _ in range(20):
            self.type("\x03")
            if select.select([self._fd], [], [], 0.5)[0]:
                break
        self.until(self._prompt)

    def wait(self) -> int:
        try:
            return self.process.wait(10)
        finally:
            os.close(self._fd)


@pytest.fixture(name="terminal")
def _terminal(stub: StubServer, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(stub, tmp_path)
    yield terminal
    if terminal.process.poll() is None:
        terminal.process.kill()
        terminal.wait()


def test_a_session(terminal: Terminal, stub: StubServer, tmp_path: Path) -> None:
    assert "help" in terminal.banner
    assert terminal.command("put k 'hello world'") == "OK\n"
    assert terminal.command("get k") == "hello world\n"
    assert terminal.command("get missing") == "key not found\n"
    assert terminal.command("get k a b") == (
        "usage: get <key>; put quotes around what holds spaces\n"
    )
    assert terminal.command("get 'k").startswith("no closing quotation")
    assert terminal.command("nonsense").startswith("nonsense: no such command")
    assert "delete <key>" in terminal.command("help")
    assert terminal.command("delete k") == "OK\n"
    stub.acts = [refuse(507, "the disk is full; free some space")]
    assert terminal.command("put k v") == "the disk is full; free some space\n"
    terminal.type("quit\n")
    assert terminal.wait() == 0
    history = tmp_path / ".conuresh_history"
    if history.exists():  # not every Python has readline
        assert "put k 'hello world'" in history.read_text()
        assert history.stat().st_mode & 0o077 == 0


def test_values_can_not_disturb_the_terminal(terminal: Terminal, stub: StubServer) -> None:
    stub.values[b"k"] = b"a\x1b[31m\x07\r\x9b\xff\tb\nc"
    assert terminal.command("get k") == "a\\x1b[31m\\x07\\r\\x9b\\xff\tb\nc\n".expandtabs(
        1
    ).replace("\\xff b", "\\xff\tb")


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves(terminal: Terminal, stub: StubServer) -> None:
    terminal.type("put k wro")
    terminal.until("wro")
    terminal.interrupt()
    assert terminal.command("get k") == "key not found\n"
    assert stub.values == {}
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_ctrl_c_gives_up_a_command(terminal: Terminal, stub: StubServer) -> None:
    stub.acts = [hang]
    terminal.type("put k v\n")
    while not stub.requests:
        time.sleep(0.005)
    terminal.process.send_signal(signal.SIGINT)
    assert "may or may not" in terminal.until("> ")
    assert terminal.command("get k") == "key not found\n"


def test_following_a_leader_is_told_and_shown_in_the_prompt(
    terminal: Terminal, stub: StubServer
) -> None:
    leader = StubServer()
    try:
        stub.leader = leader.url
        terminal.type("put k v\n")
        shown = terminal.until(f"{leader.port}> ")
        assert f"OK\n(now talking to {leader.url})\n" in shown
        assert leader.values == {b"k": b"v"}
    finally:
        leader.stop()


def test_a_session_survives_its_leader(stub: StubServer, tmp_path: Path) -> None:
    leader, third = StubServer(), StubServer()
    terminal = Terminal(leader, tmp_path, others=[stub, third])
    try:
        assert terminal.command("put k 1") == "OK\n"
        # The others learn of its end in their own time, and one of them leads at last.
        leader.stop()
        stub.acts = [refuse(307, "", Location=f"{leader.url}/kv?key=k"), refuse(503, "no leader")]
        third.leader = stub.url
        terminal.type("put k 2\n")
        shown = terminal.until(f"{stub.port}> ")
        assert f"OK\n(now talking to {stub.url})\n" in shown
        terminal.type("get k\n")
        assert "\n2\n" in terminal.until(f"{stub.port}> ")
        assert stub.values == {b"k": b"2"}
        terminal.type("exit\n")
        assert terminal.wait() == 0
    finally:
        third.stop()


def test_a_script_survives_its_leader(stub: StubServer) -> None:
    leader = StubServer()
    leader.acts = [close_and_stop_listening]
    stub.acts = [refuse(503, "no leader")]
    result = forkserver.run(
        [SHELL, f"--server={leader.url}", f"--server={stub.url}"],
        input=b"put k 1\nput k 2\nget k\n",
        timeout=20,
    )
    leader.stop()
    assert result.returncode == 1
    assert result.stdout == b"OK\n2\n"
    assert result.stderr.count(b"\n") == 1, "of the first write nobody knows"
    assert b"may or may not" in result.stderr
    assert [body for method, _, body in stub.requests if method == "PUT"] == [b"2", b"2"]


def test_a_python_without_readline(stub: StubServer, tmp_path: Path) -> None:
    without = "import sys, runpy; sys.modules['readline'] = None; del sys.argv[0]; "
    run_it = "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    code = without + run_it + "runpy.run_path(sys.argv[0], run_name='__main__')"
    terminal = Terminal(stub, tmp_path, "-c", code)
    assert terminal.command("put k v") == "OK\n"
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_can_not_be_written_is_no_failure(stub: StubServer) -> None:
    terminal = Terminal(stub, Path("/proc/nowhere"))
    assert terminal.command("put k v") == "OK\n"
    terminal.type("exit\n")
    assert terminal.wait() == 0


def test_completion() -> None:
    def completions(line: str) -> list[str]:
        text = re.split(r"[ \t]", line)[-1]
        found: list[str] = []
        while (word := _completion(line, text, len(found))) is not None:
            found.append(word)
        return found

    assert completions("") == [f"{name} " for name in COMMANDS]
    assert completions("d") == ["delete "]
    assert completions("help p") == ["put "]
    assert completions("help ") == completions("")
    assert completions("get d") == []
    assert completions("put k v --") == [f"{name} " for name in COMMANDS["put"].options]
    assert completions("put k v --ttl 5s --ke") == ["--keep-ttl "]
    assert completions("delete --p") == ["--prefix "]
    assert completions("lock k -- delete --p") == []
    assert completions("nonsense --") == []
    assert completions("get ") == []


# -- lines, and the words they have --------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('put k {"a":1}', ["put", "k", '{"a":1}']),
        ('put k {"a": [1, "b c"], "d": null} --ttl 5s',
         ["put", "k", '{"a": [1, "b c"], "d": null}', "--ttl", "5s"]),
        ('put k ["x", {"y": "it\'s"}]\n', ["put", "k", '["x", {"y": "it\'s"}]']),
        (r'put k {"path": "a\\b\n"}', ["put", "k", r'{"path": "a\\b\n"}']),
        ("put k '{\"a\":1}'", ["put", "k", '{"a":1}']),
        (r'put k "{\"a\":1}"', ["put", "k", '{"a":1}']),
        ("put k {a}", ["put", "k", "{a}"]),
        ("put k [", ["put", "k", "["]),
        ("put k '[' x", ["put", "k", "[", "x"]),
        ("put 'a b' x\"y z\"", ["put", "a b", "xy z"]),
        ("list --prefix='a b'", ["list", "--prefix=a b"]),
        ('put # {"a":1}', ["put", "#", '{"a":1}']),
        ("  \t ", []),
        ("", []),
    ],
)  # fmt: skip
def test_json_is_one_word_as_it_stands(line: str, words: list[str]) -> None:
    assert split(line) == words


@pytest.mark.parametrize(
    "word", ['{"a":1', '{"a":1}x', '{a:"1"}', "['x']", '[1,"2"', "[" * 5000 + '"x"', r"{a\ b}"]
)
def test_quotes_that_would_be_lost_are_refused(word: str) -> None:
    with pytest.raises(NotWords, match=r"is no JSON, and its quotes would be lost; put '"):
        split(f"put k {word}")


@given(st.text(alphabet="ab \t\"'\\\\-=#\r\n\x0b\u00a0"))
def test_all_other_lines_are_split_as_ever(line: str) -> None:
    try:
        expected = shlex.split(line)
    except ValueError:
        with pytest.raises(NotWords):
            split(line)
    else:
        assert split(line) == expected


def test_a_script_stores_json_as_it_was_typed(stub: StubServer) -> None:
    script = b'put k {"a":1}\nget k\nput l {"a":1\nget l\n'
    status, output, complaints = run(stub, stdin=script)
    assert (status, output) == (2, b'OK\n{"a":1}\n')
    assert b"its quotes would be lost" in complaints
    assert stub.values == {b"k": b'{"a":1}'}


# -- by https --------------------------------------------------------------------------------------


def test_a_server_of_https(make_stub: MakeStub, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    mine = issuer.issue("me")
    stub = make_stub(issuer.issue("127.0.0.1").server_context(issuer.file))
    own: dict[str, Any] = {"CONURE_CERT": mine.cert, "CONURE_KEY": mine.key}
    assert run(stub, f"--ca={issuer.file}", "put", "k", "v", **own) == (0, b"OK\n", b"")
    flags = ("--cert", mine.cert, "--key", mine.key)
    stale: dict[str, Any] = {"CONURE_CA": issuer.file, "CONURE_KEY": "/none"}
    assert run(stub, *flags, "get", "k", **stale) == (0, b"v", b"")
    status, out, err = run(stub, "get", "k", **own)
    assert (status, out, err.count(b"\n")) == (1, b"", 1)
    assert err.startswith(b"conuresh: " + stub.url.encode() + b": its certificate isn't signed")
    assert b"--ca" in err
    status, _, err = run(stub, "get", "k", CONURE_CA=issuer.file)
    assert (status, b"--cert and --key" in err) == (1, True)
    status, _, err = run(stub, "--tls-name=db.example", "get", "k", CONURE_CA=issuer.file, **own)
    assert (status, b"another name" in err) == (1, True)
    assert len(stub.requests) == 2
    for flag, why in (("--ca=/none", b"ca (/none): it can't be read"), ("--cb=x", b"no such")):
        status, _, err = run(stub, flag, "get", "k")
        assert (status, why in err) == (2, True)
