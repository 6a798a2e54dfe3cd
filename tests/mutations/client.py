"""Faults of the client and the shell."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "a session's life counts from the answer to its renewal",
        "conure/client/locks.py",
        "                self._until = begun + self.ttl\n",
        "                self._until = time.monotonic() + self.ttl\n",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a session's life counts from the answer to its opening",
        "conure/client/locks.py",
        "self._until = begun + ttl  # by",
        "self._until = time.monotonic() + ttl  # by",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a client keeps a connection whose server is unavailable",
        "conure/client/calls.py",
        "elif answer.status == 503:",
        "elif answer.status == 599:",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a client forgets that a request was sent",
        "conure/client/connections.py",
        "            self.was_sent = True\n            self.sock.sendall",
        "            self.sock.sendall",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a list that breaks off ends as if it were whole",
        "conure/client/ranges.py",
        "            self.close()\n            raise Unavailable(",
        "            self.close()\n            raise StopIteration\n            raise Unavailable(",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a watch that lost its connection begins anew",
        "conure/client/watches.py",
        'headers["Last-Event-ID"] = self._position',
        "pass",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a backup that came altered is kept",
        "conure/client/backups.py",
        " or digest.digest() != tail[-32:]",
        "",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a conditional put goes without a key",
        "conure/client/client.py",
        "is_plain=target == plain",
        "is_plain=True",
        ("tests/client/test_client.py",),
    ),
    Mutation(
        "a client takes bytes in base64 for text",
        "conure/client/model.py",
        'if shown.get("encoding") == "base64" else',
        'if shown.get("encoding") == "base46" else',
        ("tests/client/test_client.py", "tests/client/test_client_features.py"),
    ),
    Mutation(
        "a client puts a key twice into one batch",
        "conure/client/texts.py",
        " or name in keys\n",
        "\n",
        ("tests/client/test_client.py", "tests/client/test_client_features.py"),
    ),
    Mutation(
        "the shell drops the quotes of what is nearly JSON",
        "conure/client/shellwords.py",
        "if typed.startswith(_JSON) and any(",
        "if not typed and any(",
        ("tests/client/test_conuresh.py",),
    ),
    Mutation(
        "Ctrl-C ends a watch with a failure",
        "conuresh.py",
        "        except KeyboardInterrupt:  # that is how it ends\n            _end_line()\n",
        "        except SystemError:\n            _end_line()\n",
        ("tests/client/test_client_features.py::test_shell_watch_ends_with_ctrl_c",),
    ),
]
