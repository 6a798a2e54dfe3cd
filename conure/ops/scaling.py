#!/usr/bin/env python3
"""What an orchestrator asks of a cluster beside running its servers: one founding, growing and
shrinking, and stops in turn.

It knows no orchestrator: only how the pods of the Helm chart are called, their names in DNS, and
the HTTP API. Members are ``NAME-bootstrap-0``, ``NAME-0``, ``NAME-1``, … and ``NAME-arbiter-0``.

=========== ============================ ==========================================================
command     run by                       ends when
=========== ============================ ==========================================================
``begin``   the pod NAME-bootstrap-0     never: it becomes the server, which founds a cluster or
                                         joins one
``wait``    the others, before their     there is somebody to join, or the pod is a member already
            server
``resize``  the job before an upgrade    who will have no pod is no member any more
            or a rollback
``leave``   each pod, before it stops    the others can do without it
=========== ============================ ==========================================================

1. A second cluster is never founded in silence. Whoever lost its disk can't know whether it has
   founded a cluster before; so ``begin`` founds one only while the first of the others say that
   they belong to none, and nobody who has an address says otherwise.
2. ``resize`` removes one member at a time, one that leads only after it has handed over, and none
   that a quorum needs. It may be repeated at any point.
3. ``leave`` removes nobody. It waits while a quorum needs this member, and while another one has
   just gone: several controllers may want to restart members at one time.
4. Servers are asked as the environment says: by https if CONURE_SERVER, the one of this pod, has
   that scheme, or nobody names it and CONURE_CA or CONURE_CERT is there. By CONURE_CA they are
   checked, CONURE_CERT and CONURE_KEY are shown to those who ask. They have to bear the name by
   which they are asked, those that DNS gives for a host that host's, or all of them the one of
   CONURE_TLS_NAME.
5. Every wait but that of ``begin`` and ``wait``, which the start-up probe bounds, has an end.

Exit status: 0, 1 with the reason if members could not be removed, 2 for wrong usage.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
import argparse
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from conure import commandline
from conure.client import DEFAULT_TIMEOUT, Client
from conure.errors import Conflict, ConureError, Unavailable
from conure.values import bracketed, is_https

__all__ = ["Names", "begin", "leave", "main", "resize", "wait"]

HTTP_PORT, RAFT_PORT = 8081, 7001

_FILES = {"ca": "CONURE_CA", "cert": "CONURE_CERT", "key": "CONURE_KEY"}

MOST_ORDINALS = 15
"""How many ordinals are looked at when only DNS can tell which pods there are."""

LOOK = 0.5
"""Seconds between two looks at whatever is waited for."""

ASK_TIMEOUT = 2.0
"""Seconds for one server to say how it is."""

OWN_TIMEOUT = 10.0
"""Seconds for the server of this pod to say so: who is only slow still needs its turn to stop."""

LINGER = 3.0
"""Seconds for which a pod that is to stop still serves: until nobody is sent to it any more."""

PATIENCE = 60.0
"""Seconds after which ``leave`` waits no longer for a member that a quorum can do without."""

FORLORN = 5.0
"""Seconds without a leader after which one more stop makes no difference."""

CHANGE_TIMEOUT = 15.0
"""Seconds for a removal or a hand-over to be agreed on."""

UNREACHABLE = 20.0
"""Seconds for a cluster to answer, if no pod is there that would have to be removed from it."""


class Names(NamedTuple):
    """How a release's pods are called, and where: *domain* is that of its headless Service."""

    name: str
    domain: str
    voters: int
    arbiter: bool

    @property
    def wanted(self) -> list[str]:
        """The members there are to be, those that hold data first."""
        others = [f"{self.name}-{ordinal}" for ordinal in range(self.voters - 1)]
        return [f"{self.name}-bootstrap-0", *others, *[f"{self.name}-arbiter-0"] * self.arbiter]

    def surplus(self, members: Sequence[str]) -> list[str]:
        """Those of *members* that are to go, in that order: the youngest first, and the arbiter
        last, which helps for as long as it is there. Strangers are nobody's business here."""
        ordinals: dict[int, str] = {}
        for member in members:
            match = re.fullmatch(re.escape(self.name) + r"-(\d+)", member)
            if match is not None and int(match[1]) >= self.voters - 1:
                ordinals[int(match[1])] = member
        goes = [] if self.arbiter else [f"{self.name}-arbiter-0"]
        return [ordinals[n] for n in sorted(ordinals, reverse=True)] + [
            member for member in goes if member in members
        ]

    def url(self, member: str) -> str:
        """The base URL of a member."""
        return _url(f"{member}.{self.domain}")

    def raft_address(self, member: str) -> str:
        """Where the others reach a member."""
        return f"{member}.{self.domain}:{RAFT_PORT}"

    def has_surplus_pods(self) -> bool:
        """Tell whether DNS knows a pod that is to go."""
        pods = [f"{self.name}-{n}" for n in range(self.voters - 1, MOST_ORDINALS)]
        return any(
            resolves(f"{pod}.{self.domain}")
            for pod in self.surplus([*pods, f"{self.name}-arbiter-0"])
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the command line; return the exit status. Main thread only."""
    signal.signal(signal.SIGTERM, _on_signal)  # process 1 gets none that it doesn't ask for
    options = _parser().parse_args(argv)
    if options.command == "begin":
        begin(options.data_dir, options.peers, options.witness, options.flags)
    elif options.command == "wait":
        wait(options.data_dir, options.host, options.server)
    elif options.command == "leave":
        with contextlib.suppress(OSError):  # what a hook says is kept nowhere: into the pod's log
            sys.stderr = open("/proc/1/fd/2", "w")  # noqa: SIM115
        leave(_url("127.0.0.1"), settle=options.settle, timeout=options.timeout)
    else:
        names = Names(options.name, options.domain, options.voters, options.arbiter == "true")
        return resize(names, options.timeout)
    return 0


# -- founding and joining --------------------------------------------------------------------------


def begin(data_dir: str, peers: str, witnesses: Sequence[str], flags: Sequence[str]) -> NoReturn:
    """Become the server: with its state, or as the founder of a cluster, or to join one (1).

    *peers* is a host name that stands for all pods, *witnesses* are the base URLs of those that
    have to say that they belong to no cluster.
    """
    say = _Teller()
    while not cluster_of(data_dir):
        url, cluster = _find_cluster(_addresses(peers), peers)
        if not cluster:
            url, cluster = _find_cluster(witnesses)
        if cluster:
            say(
                f"{url} belongs to cluster {cluster}, and there is no data here: not founding "
                "another one but joining. If this node lost its disk, it is refused until its "
                "former self is removed: POST /remove with its ID"
            )
            _become_server(*flags, "--bootstrap=false")
        unheard = [witness for witness in witnesses if _status(witness) is None]
        if not unheard:
            say("nobody belongs to a cluster: founding one")
            _become_server(*flags, "--bootstrap")
        say(f"there is no data here; founding no cluster before {', '.join(unheard)} can be asked")
        time.sleep(LOOK)
    _become_server(*flags, "--bootstrap=false")


def wait(data_dir: str, host: str, server: str) -> None:
    """Return when there is a pod *host*, or a cluster at *server*, or this node has its state."""
    say = _Teller()
    while not cluster_of(data_dir) and not resolves(host) and not _find_cluster([server])[1]:
        say(f"waiting for {host} to begin a cluster, or for {server} to be one")
        time.sleep(LOOK)
    say("there is a cluster to join, or to go on with")


def cluster_of(data_dir: str) -> str:
    """Return the cluster that a data directory belongs to, "" for none.

    A file that can't be read belongs to some cluster: the server says what is wrong with it.
    """
    try:
        with open(os.path.join(data_dir, "identity.json"), "rb") as file:
            return str(json.load(file)["cluster_id"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "unreadable"


def _find_cluster(servers: Sequence[str], name: str = "") -> tuple[str, str]:
    """Return one of *servers* that belongs to a cluster, and that; by TLS all have one *name*."""
    for server in servers:
        status = _status(server, name=name)
        if status is not None and status["cluster_id"]:
            return server, str(status["cluster_id"])
    return "", ""


def _become_server(*flags: str) -> NoReturn:
    script = os.path.join(commandline.step(), "conuredb.py")
    os.execv(sys.executable, [sys.executable, script, *flags])  # noqa: S606


# -- growing and shrinking -------------------------------------------------------------------------


def resize(names: Names, timeout: float) -> int:
    """Remove the members that *names* has no place for; bring back those that it has one for, and
    that were removed before. Return the exit status, 1 if *timeout* seconds were not enough.

    Those that were removed keep out until they are started again, so an upgrade that was given up
    or rolled back has to ask for them.
    """
    say = _Teller()
    begun = time.monotonic()
    while True:
        try:
            leader, members = _find_leader([names.url(member) for member in names.wanted])
        except Unavailable as error:
            reason = str(error)
            if time.monotonic() - begun >= UNREACHABLE and not names.has_surplus_pods():
                say(f"no pod has to be removed from its cluster, so it need not be asked: {reason}")
                return 0
        else:
            try:
                with _client(leader, CHANGE_TIMEOUT) as client:
                    if _remove_one(names, client, members):
                        continue
                    _bring_back(names, client, members)
            except ConureError as error:
                reason = str(error)
            else:
                say(f"the members are as wanted, or will join: {', '.join(names.wanted)}")
                return 0
        if time.monotonic() - begun >= timeout:
            say(f"refused: {reason}")
            return 1
        say(f"trying again: {reason}")
        time.sleep(LOOK)


def _remove_one(names: Names, client: Client, members: dict[str, dict[str, Any]]) -> bool:
    """Go one step further, and tell whether there was one to go."""
    surplus = names.surplus(list(members))
    if not surplus:
        return False
    member = surplus[0]
    if members[member]["is_leader"]:
        heir = _heir(names, members)
        client.hand_over(heir)
        _tell(f"{member} has handed leadership over to {heir}")
    else:
        _check_quorum(member, members, client.raft_config().get("quorum_size") or 0)
        client.remove(member)
        _tell(f"{member} was removed from the cluster")
    return True


def _check_quorum(leaving: str, members: dict[str, dict[str, Any]], quorum_size: int = 0) -> None:
    """Raise Unavailable if too few of the others answer. So does the leader, but it counts on who
    answered an election time-out ago, and a removal can't be taken back without a quorum."""
    others = [m for m in members.values() if m["suffrage"] == "voter" and m["id"] != leaving]
    quorum = len(others) // 2 + 1
    answering = [other for other in others if _status(other["http_address"]) is not None]
    if len(answering) < quorum:
        raise Unavailable(
            f"only {len(answering)} of the {len(others)} voters besides {leaving} answer, "
            f"and {quorum} must; start the others first"
        )
    if quorum_size:  # which the removal lowers to the data voters that are left
        copies = min(quorum_size, sum(other["role"] == "data" for other in others))
        holding = sum(other["role"] == "data" for other in answering)
        if holding < copies:
            raise Unavailable(
                f"only {holding} of the data voters besides {leaving} answer, and by the quorum "
                f"size {copies} must; start the others first, or lower it"
            )


def _heir(names: Names, members: dict[str, dict[str, Any]]) -> str:
    """Return a member that stays and can lead."""
    for name in names.wanted:
        member = members.get(name)
        can_lead = member and (member["suffrage"], member["role"]) == ("voter", "data")
        if member and can_lead and _status(member["http_address"]) is not None:
            return name
    raise Unavailable("none of the members that stay can take leadership over just now")


def _bring_back(names: Names, client: Client, members: dict[str, dict[str, Any]]) -> None:
    for name in names.wanted:
        status = None if name in members else _status(names.url(name))
        if status is not None and not status["member"] and status["cluster_id"]:
            try:
                client.join(name, names.raft_address(name))
                _tell(f"{name} is a member again")
            except Conflict as refusal:
                _tell(f"{name} stays outside: {refusal}")


def _find_leader(servers: Sequence[str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the leader's base URL and the members by ID, with ``is_leader`` among their facts.

    Raises Unavailable.
    """
    for server in servers:
        status = _status(server)
        leader = status["leader_http"] if status is not None else ""
        confirmed = _status(leader) if leader else None
        if confirmed is not None and confirmed["is_leader"]:
            with _client(leader, ASK_TIMEOUT) as client:
                found = client.raft_config()["servers"]
            return leader, {
                server["id"]: server | {"is_leader": server["id"] == confirmed["node_id"]}
                for server in found
            }
    raise Unavailable(f"none of {', '.join(servers)} knows a leader")


# -- stopping in turn ------------------------------------------------------------------------------


def leave(server: str, *, settle: float, timeout: float, linger: float = LINGER) -> None:
    """Return when the member at *server* may stop (3), or after *timeout* seconds; a leader has
    handed over then. No other voter may have been missing in the last *settle* seconds.

    It goes on serving meanwhile, for *linger* seconds at least.
    """
    deadline = time.monotonic() + timeout
    status = _status(server, OWN_TIMEOUT)
    if status is None:
        return
    known_index = status["commit_index"]
    time.sleep(linger)
    say = _Teller()
    turn = _Turn(settle)
    why = turn.look(server, known_index)
    while why and time.monotonic() < deadline:
        say(why)
        time.sleep(LOOK)
        why = turn.look(server, known_index)
    status = _status(server, OWN_TIMEOUT)
    if status is not None and status["is_leader"]:
        with _client(server, DEFAULT_TIMEOUT) as client, contextlib.suppress(ConureError):
            client.hand_over()  # else the server does it again when it gets its signal
            say("leadership was handed over")


class _Turn:
    """Whether it is this member's turn to stop."""

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._complete_since = self._led_at = time.monotonic()
        self._missing_since: dict[str, float] = {}

    def look(self, server: str, known_index: int) -> str:
        """Return why it isn't, or "". *known_index* was committed some time ago: who hasn't
        applied it is not back yet."""
        status = _status(server, OWN_TIMEOUT)
        now = time.monotonic()
        if status is None or not status["member"]:
            return ""
        if status["leader_id"]:
            self._led_at = now
        elif now - self._led_at >= FORLORN:
            return ""
        try:
            with _client(server, OWN_TIMEOUT) as client:
                servers = client.raft_config()["servers"]
        except ConureError:
            return ""  # it has just ended by itself
        voters = [server for server in servers if server["suffrage"] == "voter"]
        others = [voter for voter in voters if voter["id"] != status["node_id"]]
        if len(others) == len(voters):
            return ""  # no voter itself
        if not any(resolves(urlsplit(voter["http_address"]).hostname or "") for voter in others):
            return ""  # all of them are gone, names and all: the release is being uninstalled
        missing = [v["id"] for v in others if not _is_up(v["http_address"], known_index)]
        now = time.monotonic()  # who is missing is waited for
        self._missing_since = {name: self._missing_since.get(name, now) for name in missing}
        # With two voters nothing can be written without either; then both have to be there.
        needed = min(len(voters) // 2 + 1, len(others))
        if len(others) - len(missing) < needed:
            self._complete_since = now
            return f"staying: a quorum needs this member while {', '.join(missing)} is missing"
        if any(now - since < PATIENCE for since in self._missing_since.values()):
            self._complete_since = now
            return f"staying: {', '.join(missing)} has just gone"
        if now - self._complete_since < self._settle:
            return f"staying: the others have to be there for {self._settle:g} s"
        return ""


def _is_up(server: str, known_index: int) -> bool:
    status = _status(server)
    return (
        status is not None
        and bool(status["leader_id"])
        and int(status["applied_index"]) >= known_index
    )


# -- asking ----------------------------------------------------------------------------------------


def resolves(host: str) -> bool:
    """Tell whether DNS knows a host."""
    return bool(_addresses(host))


def _addresses(host: str) -> list[str]:
    """Return the base URLs of all addresses of a host."""
    try:
        found = socket.getaddrinfo(host, HTTP_PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    hosts = {str(address[0]) for *_, address in found}
    return [_url(host) for host in sorted(hosts)]


def _url(host: str) -> str:
    """Return the base URL of a server at a host (4)."""
    own = os.environ.get("CONURE_SERVER", "")
    is_tls = is_https(own) if own else any(map(os.environ.get, ("CONURE_CA", "CONURE_CERT")))
    return f"{'https' if is_tls else 'http'}://{bracketed(host)}:{HTTP_PORT}"


def _client(server: str, timeout: float, name: str = "") -> Client:
    """Return a client of one server (4), which has to be closed."""
    name = os.environ.get("CONURE_TLS_NAME") or name
    files = {each: os.environ.get(variable, "") for each, variable in _FILES.items()}
    return Client(server, timeout, **files, tls_name=name)  # type: ignore[arg-type]


def _status(server: str, timeout: float | None = None, name: str = "") -> dict[str, Any] | None:
    """Return what a server says of itself; None if it doesn't answer, or not like a server."""
    with _client(server, timeout or ASK_TIMEOUT, name) as client:
        try:
            status = client.status()
        except ConureError:
            return None
    return status if "cluster_id" in status else None


class _Teller:
    """Says a line unless it was the last one."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, line: str) -> None:
        if line != self._last:
            _tell(line)
            self._last = line


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scaling.py", description=(__doc__ or "").split("\n\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, purpose: str) -> Callable[..., argparse.Action]:
        return commands.add_parser(name, help=purpose).add_argument

    option = command("begin", "become the server that founds the cluster, unless there is one")
    option("--data-dir", required=True)
    option("--peers", required=True, metavar="HOST", help="stands for all pods")
    option("--witness", action="append", required=True, metavar="URL")
    option("flags", nargs="*", help="for the server")
    option = command("wait", "wait until there is a cluster to join")
    option("--data-dir", required=True)
    option("--host", required=True, help="of the pod that founds the cluster")
    option("--server", required=True, metavar="URL")
    option = command("resize", "remove the members that will have no pod")
    option("--name", required=True)
    option("--domain", required=True)
    option("--voters", required=True, type=int)
    option("--arbiter", required=True, choices=["true", "false"])
    option("--timeout", required=True, type=float, metavar="SECONDS")
    option = command("leave", "wait until this member may stop")
    option("--settle", required=True, type=float, metavar="SECONDS")
    option("--timeout", required=True, type=float, metavar="SECONDS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
