"""Faults of kvctl, and of what it shares with the commands for a node that doesn't run."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

_WORDS = ("tests/ops/test_kvctl.py",)
_SERVER = ("tests/ops/test_kvserver.py",)
_STOPPED = ("tests/ops/test_kvstopped.py",)
_CLIENT = ("tests/ops/test_respclient.py",)
_OFFLINE = ("tests/ops/test_offline.py",)

MUTATIONS = [
    Mutation(
        "kvctl imports the engines before it knows that it needs them",
        "conure/ops/kvctl.py",
        "import importlib\n",
        "import importlib\nimport conure.ops.kvstopped\n",
        _WORDS,
    ),
    Mutation(
        "kvctl says something of a pipe that was closed",
        "conure/standardio.py",
        "    except BrokenPipeError:  # whoever read the output has gone\n",
        "    except ZeroDivisionError:\n",
        (*_SERVER, *_STOPPED),
    ),
    Mutation(
        "kvctl takes a mistyped option for a key",
        "conure/ops/kvwords.py",
        "        if option is None:\n",
        '        if option is None and not word.startswith("--"):\n'
        "            words.append(word)\n"
        "            continue\n"
        "        if option is None:\n",
        _WORDS,
    ),
    Mutation(
        "kvctl takes a server beside a directory",
        "conure/ops/kvwords.py",
        '    if "addr" in options and "data-dir" in options:\n',
        "    if not options and own:\n",
        _WORDS,
    ),
    Mutation(
        "kvctl takes a limit of nothing",
        "conure/ops/kvcommands.py",
        ' or not int(text):\n        raise Usage(f"--{name}={text}: it has to be',
        ':\n        raise Usage(f"--{name}={text}: it has to be',
        _WORDS,
    ),
    Mutation(
        "bash completes no directory",
        "conure/ops/kvcompletion.py",
        "compgen -d -- ",
        "compgen -c -- ",
        _WORDS,
    ),
    Mutation(
        "kvctl hands a terminal whatever is stored",
        "conure/ops/kvoutput.py",
        "        if self.is_terminal:\n            text =",
        "        if False:\n            text =",
        _SERVER,
    ),
    Mutation(
        "kvctl shows bytes that are no text as if they were",
        "conure/ops/kvoutput.py",
        'return {**facts, "encoding": "base64"} if is_base64 else facts',
        "return facts",
        (*_SERVER, *_STOPPED),
    ),
    Mutation(
        "kvctl scans by a pattern where a prefix was named",
        "conure/ops/kvserver.py",
        '_SPECIAL: Final = b"*?[\\\\"',
        '_SPECIAL: Final = b"?["',
        _SERVER,
    ),
    Mutation(
        "kvctl shows a key twice that a server sends twice",
        "conure/ops/kvserver.py",
        "            keys = [key for key in keys if key > last]\n",
        "",
        _SERVER,
    ),
    Mutation(
        "a server keeps kvctl scanning for ever",
        "conure/ops/kvserver.py",
        "            if repeated == _MOST_REPEATED:\n",
        "            if repeated < 0:\n",
        _SERVER,
    ),
    Mutation(
        "kvctl forgets what others want to be notified of",
        "conure/ops/kvserver.py",
        '(letters + missing).encode("latin-1")',
        'missing.encode("latin-1")',
        _SERVER,
    ),
    Mutation(
        "kvctl says OK whatever the server has answered",
        "conure/ops/kvserver.py",
        '    if _write(server, words) != b"OK":\n',
        "    if _write(server, words) is None:\n",
        _SERVER,
    ),
    Mutation(
        "a watch of kvctl waits for ever for a server that is gone",
        "conure/ops/kvserver.py",
        "            is_asked = True\n",
        "",
        _SERVER,
    ),
    Mutation(
        "kvctl check is content with a server that knows no leader",
        "conure/ops/kvhealth.py",
        "    if not leader:\n",
        "    if leader is None:\n",
        _SERVER,
    ),
    Mutation(
        "kvctl check writes though nobody has said so",
        "conure/ops/kvhealth.py",
        '    if line.options.get("write"):\n',
        "    if line:\n",
        _SERVER,
    ),
    Mutation(
        "kvctl says that a write has failed whose outcome is unknown",
        "conure/ops/respclient.py",
        "            return self.ask(*words)\n        except (NoAnswer, Garbled) as error:\n",
        "            return self.ask(*words)\n        except ZeroDivisionError as error:\n",
        (*_CLIENT, *_SERVER),
    ),
    Mutation(
        "a hostile server makes kvctl wait for a value that can't be",
        "conure/ops/respclient.py",
        "        if size > MAX_BULK:\n",
        "        if size < 0:\n",
        _CLIENT,
    ),
    Mutation(
        "a hostile server fills the memory of kvctl with one line",
        "conure/ops/respclient.py",
        "            if len(self._buffer) - self._at > MAX_LINE:\n",
        "            if False:\n",
        _CLIENT,
    ),
    Mutation(
        "a hostile server fills the memory of kvctl with many values",
        "conure/ops/respclient.py",
        "        self._left -= size\n",
        "",
        _CLIENT,
    ),
    Mutation(
        "each byte that trickles in renews the time-out of kvctl",
        "conure/ops/respclient.py",
        "        if self._fresh >= _PIECE:\n",
        "        if self._fresh:\n",
        _CLIENT,
    ),
    Mutation(
        "each message that nobody asked for renews the time-out of kvctl",
        "conure/ops/respclient.py",
        "self._reply(self.timeout, anew=False)",
        "self._reply(self.timeout)",
        _CLIENT,
    ),
    Mutation(
        "a write of kvctl into a stopped directory goes around the log",
        "conure/ops/kvstopped.py",
        "    if line.command in _REFUSED:\n",
        '    if line.command == "watch":\n',
        _STOPPED,
    ),
    Mutation(
        "kvctl shows the engine's keys in place of the users'",
        "conure/ops/kvstopped.py",
        "    if key[:1] == _USER:\n",
        "    if not key:\n",
        _STOPPED,
    ),
    Mutation(
        "kvctl says nothing of entries that the log alone has",
        "conure/ops/kvstopped.py",
        "    if note:\n",
        "    if not store:\n",
        _STOPPED,
    ),
    Mutation(
        "a look into a stopped directory finishes what a crash has left",
        "conure/ops/stopped.py",
        '        self._names[new] = self._real(old)\n        self._names[old] = ""\n',
        "        self._fs.rename(old, new)\n",
        _OFFLINE,
    ),
    Mutation(
        "a look into a stopped directory fails for what a start would make",
        "conure/ops/stopped.py",
        "        if (create or exclusive) and not self.exists(path):\n",
        "        if exclusive and not create:\n",
        _OFFLINE,
    ),
    Mutation(
        "an arbiter's directory is taken for one with records",
        "conure/ops/stopped.py",
        "        if not self.holds_records:\n            raise ForeignDirectory(",
        "        if False:\n            raise ForeignDirectory(",
        (*_OFFLINE, *_STOPPED),
    ),
    Mutation(
        "a check ends at the first fault",
        "conure/ops/reports.py",
        "    raft_log = _attempt(stopped.open_log, faults)\n",
        "    raft_log = None if faults else _attempt(stopped.open_log, faults)\n",
        _OFFLINE,
    ),
    Mutation(
        "progress stays on the terminal",
        "conure/ops/progress.py",
        "        if self._is_shown:\n            print(",
        "        if False:\n            print(",
        _OFFLINE,
    ),
]
