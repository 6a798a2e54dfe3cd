#!/usr/bin/env python3
"""The container image held to what it promises: what ``make image-check`` runs.

Builds the image, runs it as its users do, and tries each promise at the head of the Dockerfile.
Needs podman or docker, with a base image that it has or can get. Ports are the engine's choice, so
nothing that runs here is disturbed, and whatever was started is ended and removed.

    python3 tools/image_check.py [--engine=docker] [--tag=NAME] [--dev]

The image stays under NAME (default ``localhost/conuredb:check``). With ``--dev`` the image that
holds the tests and their tools is built and tried as well, as NAME with ``-dev`` after it; that
takes longer than all the rest. Exit status: 0 if all is well, 1 at the first promise that is not
kept.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from steps import ROOT, Failed, run, step, until

STOP_SECONDS = 10.0
"""What ``docker stop`` waits before it kills."""

LONGEST_JOB = 60.0
"""Seconds of writing within which a table is written and merged, also after a process was lost."""

OPEN_WARNING = "protected mode is off"
"""What a server says at its start whose ports are for everybody."""

TRIAL = "/var/lib/conure/tls"
"""Where --tls-auto keeps what it has made."""

FEW_TESTS = ("tests/consensus/test_raft_configuration.py", "tests/system/test_conuredb_process.py")
DOCUMENTED = ("--node-id=node1", "--bootstrap")


class Engine:
    """podman or docker: the same words mean the same to both. Knows what it has to remove."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._own = f"conure-check-{os.getpid()}"
        self._containers: list[str] = []
        self._volumes: list[str] = []
        self._networks: list[str] = []

    def __call__(self, *words: str, stdin: bytes | None = None, status: int = 0) -> str:
        return run(self.program, *words, stdin=stdin, status=status)

    def build(self, target: str, tag: str, **arguments: str) -> None:
        """Build a stage of the Dockerfile."""
        # podman's own format has no health check; docker's is the only one that docker knows.
        form = ["--format=docker"] if self.program.endswith("podman") else []
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        self("build", *form, *given, f"--target={target}", f"--tag={tag}", ".")

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return what the engine knows about a container or an image."""
        (found,) = json.loads(self("inspect", f"--type={kind}", name))
        return dict(found)

    def start(self, image: str, *flags: str, options: Sequence[str] = ()) -> Container:
        """Run a server in the background."""
        name = f"{self._own}-{len(self._containers)}"
        self._containers.append(name)
        self(
            "run",
            "--detach",
            f"--name={name}",
            "--publish=127.0.0.1::8081",
            *options,
            image,
            *flags,
        )
        return Container(self, name)

    def volume(self) -> str:
        """Make a volume."""
        self._volumes.append(f"{self._own}-{len(self._volumes)}")
        self("volume", "create", self._volumes[-1])
        return self._volumes[-1]

    def network(self) -> str:
        """Make a network."""
        self._networks.append(f"{self._own}-{len(self._networks)}")
        self("network", "create", self._networks[-1])
        return self._networks[-1]

    def remove_all(self) -> None:
        """Remove whatever was made, as far as it is still there."""
        for words, names in (
            (("rm", "--force", "--volumes"), self._containers),
            (("volume", "rm"), self._volumes),
            (("network", "rm"), self._networks),
        ):
            for name in names:
                with contextlib.suppress(Failed):
                    self(*words, name)


class Container:
    """A server that runs in a container."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self._engine = engine

    def ask(
        self, method: str, path: str, body: bytes | None = None, tls: ssl.SSLContext | None = None
    ) -> tuple[int, bytes]:
        """Send one request to the published port; return status and body. Failed without one."""
        host, _, port = self._engine("port", self.name, "8081").splitlines()[0].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        if tls is not None:
            connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=tls)
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body)
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                raise Failed(f"{method} {path}: {error!r}") from error

    def wait_ready(self) -> None:
        """Wait until the server says that it is ready."""
        try:
            until(f"{self.name} to be ready", lambda: self.ask("GET", "/readyz")[0] == 200)
        except Failed as error:
            raise Failed(f"{error}\n{self._engine('logs', self.name)}") from error

    def log(self) -> str:
        """Return what the server has said so far."""
        return run("sh", "-c", '"$1" logs "$2" 2>&1', "sh", self._engine.program, self.name)

    def put(self, key: str, value: str) -> None:
        """Put a value."""
        expect((200, b"OK\n"), self.ask("PUT", f"/kv?key={key}&value={value}"))

    def holds(self, key: str, value: str) -> None:
        """Insist on a value."""
        expect((200, value.encode()), self.ask("GET", f"/kv?key={key}"))

    def write_until(self, counter: str) -> None:
        """Write records, the same thousand over and over, until a counter at /metrics grows."""
        lines = [b'{"key": "%d", "value": "%s"}' % (key, b"v" * 1000) for key in range(1000)]
        before = self.metric(counter)
        deadline = time.monotonic() + LONGEST_JOB
        while self.metric(counter) == before:
            if time.monotonic() > deadline:
                raise Failed(f"{counter} is {before:.0f} after {LONGEST_JOB:.0f} s of writes")
            expect(200, self.ask("POST", "/kv/batch", b"\n".join(lines))[0])

    def has_written(self) -> None:
        """Insist on what :meth:`write_until` writes."""
        expect(1000, json.loads(self.ask("GET", "/kv/count")[1])["count"])
        self.holds("999", "v" * 1000)

    def metric(self, name: str) -> float:
        """Return one of the figures at /metrics."""
        for line in self.ask("GET", "/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise Failed(f"{name} is not at /metrics")

    def workers(self) -> set[int]:
        """Return the processes that the server has started, by their ids inside."""
        return set(map(int, self.execute("sh", "-c", "cat /proc/1/task/*/children").split()))

    def execute(self, *command: str, stdin: bytes | None = None, status: int = 0) -> str:
        """Run a command inside."""
        words = ["exec", *(["--interactive"] if stdin is not None else []), self.name, *command]
        return self._engine(*words, stdin=stdin, status=status)

    def members(self) -> dict[str, str]:
        """Return the cluster's members as this server knows them: suffrage by name."""
        servers = json.loads(self.ask("GET", "/raft/config")[1])["servers"]
        return {server["id"]: server["suffrage"] for server in servers}

    def leader(self) -> str:
        """Return the leader's name as this server knows it, "" for none."""
        return str(json.loads(self.ask("GET", "/status")[1])["leader_id"])

    def stop(self) -> float:
        """Stop it as a user does; return the seconds that took. Insist on exit status 0."""
        started = time.monotonic()
        self._engine("stop", "-t", f"{STOP_SECONDS:.0f}", self.name)
        took = time.monotonic() - started
        expect(0, self._engine.inspect("container", self.name)["State"]["ExitCode"])
        return took

    def start(self) -> None:
        """Start it again, and wait until it is ready."""
        self._engine("start", self.name)
        self.wait_ready()

    def kill(self) -> None:
        """End it without warning."""
        self._engine("kill", "--signal=KILL", self.name)

    def remove(self) -> None:
        """Remove it with its anonymous volumes."""
        self._engine("rm", "--force", "--volumes", self.name)


def main() -> int:
    """Check the image; return the exit status."""
    parser = argparse.ArgumentParser(description="Build the image and hold it to its promises.")
    parser.add_argument("--engine", help="podman or docker (default: the first that is there)")
    parser.add_argument("--tag", default="localhost/conuredb:check", help="name for the image")
    parser.add_argument("--cluster", action="store_true", help="try three containers, too")
    parser.add_argument("--dev", action="store_true", help="build and try the dev image, too")
    given = parser.parse_args()
    program = given.engine or shutil.which("podman") or shutil.which("docker")
    if program is None:
        print("image-check: neither podman nor docker is there; install one", file=sys.stderr)
        return 1
    engine = Engine(program)
    try:
        check(engine, given.tag)
        if given.cluster:
            check_cluster(engine, given.tag)
        if given.dev:
            check_dev(engine, f"{given.tag}-dev")
    except Failed as failure:
        print(f"image-check: {failure}", file=sys.stderr)
        return 1
    finally:
        engine.remove_all()
    return 0


def check(engine: Engine, image: str) -> None:
    """Try every promise of the server's image. Raises Failed at the first that is not kept."""
    version = run(sys.executable, "conuredb.py", "--version").split()[1]
    with step("builds, target production") as tell:
        engine.build("production", image, VERSION=version, REVISION=revision())
        tell(f"{engine.inspect('image', image)['Size'] / 1e6:.0f} MB with its base")
    facts = engine.inspect("image", image)
    check_facts(facts["Config"], version)
    check_command_line(engine, image, version)
    check_one(engine, image, health_test(facts))
    check_hardened(engine, image)
    check_locked(engine, image, health_test(facts))
    check_workers(engine, image)


def check_dev(engine: Engine, image: str) -> None:
    """The image for developers: some of its tests, and it serves as well."""
    with step("builds, target dev") as tell:
        engine.build("dev", image)
        tell(f"{engine.inspect('image', image)['Size'] / 1e6:.0f} MB")
    with step(f"runs tests: {' '.join(FEW_TESTS)}") as tell:
        tell(engine("run", "--rm", image, "test", *FEW_TESTS).splitlines()[-1])
    with step("dev serves, too: run -d -p 8081:8081 IMAGE --bootstrap"):
        server = engine.start(image, "--bootstrap")
        server.wait_ready()
        expect("OK", server.execute("conuresh", "put", "hello", "world"))
        server.holds("hello", "world")
        server.remove()


def check_facts(config: dict[str, Any], version: str) -> None:
    """What the image says of itself."""
    with step("says: user 1000, /var/lib/conure, three ports, entrypoint in exec form"):
        expect("1000:1000", config["User"])
        expect(["/var/lib/conure"], list(config["Volumes"]))
        ports = (8081, 7001, 9090, 8080, 2112)
        expect({f"{port}/tcp" for port in ports}, set(config["ExposedPorts"]))
        expect(["python3", "/app/conuredb.py"], config["Entrypoint"])
    with step("labels: version, revision and source") as tell:
        labels = {
            name.removeprefix("org.opencontainers.image."): value
            for name, value in config["Labels"].items()
        }
        expect(version, labels["version"])
        expect(revision(), labels["revision"])
        expect(True, labels["source"].startswith("https://"))
        tell(f"{labels['version']}, {labels['revision'][:12]}, {labels['source']}")


def check_command_line(engine: Engine, image: str, version: str) -> None:
    """What a container that serves nothing answers."""
    with step("--version; an unknown setting ends it with status 2") as tell:
        said = engine("run", "--rm", image, "--version")
        expect(["ConureDB", version], said.split()[:2])
        engine("run", "--rm", image, "--http-adr=:1", status=2)
        tell(said)
    with step("what an orchestrator's jobs run, by either name; the client"):
        for words in (["/app/scaling.py"], ["-m", "conure.ops.scaling"]):
            said = engine("run", "--rm", "--entrypoint=python3", image, *words, "--help")
            expect(True, "{begin,wait,resize,leave}" in said)
        client = "from conure.client import Client; print(Client.__name__)"
        expect("Client", engine("run", "--rm", "--entrypoint=python3", image, "-c", client))
    with step("has neither curl nor a compiler"):
        engine("run", "--rm", "--entrypoint=sh", image, "-c", "! command -v curl gcc cc")


def check_one(engine: Engine, image: str, health: Sequence[str]) -> None:
    """One server, as the documents start it, and what happens to its data."""
    volume = engine.volume()
    options = (f"--volume={volume}:/var/lib/conure",)
    with step(f"run -d -p 8081:8081 IMAGE {' '.join(DOCUMENTED)}"):
        server = engine.start(image, *DOCUMENTED, options=options)
        server.wait_ready()
    with step("PUT and GET from outside; the log says that nobody is asked who they are"):
        server.put("hello", "world")
        server.holds("hello", "world")
        expect(True, OPEN_WARNING in server.log())
    with step("exec conuresh: get, put, and put from standard input"):
        expect("world", server.execute("conuresh", "get", "hello"))
        expect("OK", server.execute("conuresh", "put", "from", "shell"))
        expect("OK", server.execute("conuresh", "put", "piped", "-", stdin=b"a\nb"))
        server.holds("from", "shell")
        server.holds("piped", "a\nb")
    with step("exec conuresh: incr, list, lock and backup") as tell:
        expect("5", server.execute("conuresh", "incr", "counter", "5"))
        expect("1", server.execute("conuresh", "count", "counter"))
        expect("free", server.execute("conuresh", "lock", "job", "--", "echo", "free"))
        tell(server.execute("conuresh", "backup", "/var/lib/conure/backup"))
        server.execute("rm", "/var/lib/conure/backup")
    with step("the health check succeeds, with what is in the image"):
        server.execute(*health)
    with step("runs as user 1000, process 1 is the server, /app is not writable"):
        expect("1000", server.execute("id", "-u"))
        expect("python3\0/app/conuredb.py", server.execute("cat", "/proc/1/cmdline")[:24])
        server.execute("sh", "-c", "! touch /app/x 2>/dev/null && test -O /var/lib/conure/LOCK")
    with step("stops in time, with status 0, and holds its data at the next start") as tell:
        tell(f"stopped within {server.stop():.1f} s")
        server.start()
        server.holds("hello", "world")
    with step("is killed without warning, and holds its data"):
        server.put("last", "word")
        server.kill()
        server.start()
        server.holds("last", "word")
    with step("is removed, and the next container on its volume holds its data"):
        server.stop()
        server.remove()
        after = engine.start(image, *DOCUMENTED, options=options)
        after.wait_ready()
        after.holds("hello", "world")
        after.holds("last", "word")
        after.remove()


def check_hardened(engine: Engine, image: str) -> None:
    """Nothing to write but the volume, no privileges, and a configuration in a file."""
    options = hardening(engine)
    with TemporaryDirectory() as folder:
        file = Path(folder, "conure.yaml")
        file.write_text("node_id: hardened\nbootstrap: true\nlog_format: json\n")
        Path(folder).chmod(0o755)
        file.chmod(0o644)
        options.append(f"--volume={file}:/etc/conure.yaml:ro")
        with step("--read-only, no capabilities, settings from a YAML file") as tell:
            server = engine.start(image, "--config=/etc/conure.yaml", options=options)
            server.wait_ready()
            server.put("hello", "world")
            expect("world", server.execute("conuresh", "get", "hello"))
            expect("hardened", server.leader())
            tell(f"stopped within {server.stop():.1f} s")
            server.remove()


def check_locked(engine: Engine, image: str, health: Sequence[str]) -> None:
    """TLS by certificates made on the spot; clients have to show one; nothing else to write to."""
    options = [*hardening(engine), f"--volume={engine.volume()}:/var/lib/conure"]
    for name, value in (
        ("SERVER", "https://127.0.0.1:8081"),
        ("CA", f"{TRIAL}/ca.pem"),
        ("CERT", f"{TRIAL}/client.pem"),
        ("KEY", f"{TRIAL}/client.key"),
    ):
        options.append(f"--env=CONURE_{name}={value}")
    flags = (*DOCUMENTED, "--tls-auto", "--tls-client-auth=require", "--allowed-hosts=*")
    with TemporaryDirectory() as folder, step("--tls-auto, --read-only: the health check") as tell:
        server = engine.start(image, *flags, options=options)
        until("the server to be well", lambda: server.execute(*health))
        tell(server.execute(*health))
        here = ssl.create_default_context(cadata=server.execute("cat", f"{TRIAL}/ca.pem"))
        own = Path(folder, "client.pem")
        for kind in ("pem", "key"):
            with own.open("a") as file:
                file.write(server.execute("cat", f"{TRIAL}/client.{kind}") + "\n")
        here.load_cert_chain(own)
    with step("exec conuresh put; GET by TLS with a certificate from outside"):
        expect("OK", server.execute("conuresh", "put", "hello", "world"))
        expect((200, b"world"), server.ask("GET", "/kv?key=hello", tls=here))
        expect(False, OPEN_WARNING in server.log())
    with step("whoever shows none, or speaks no TLS, gets no answer"):
        here = ssl.create_default_context(cadata=server.execute("cat", f"{TRIAL}/ca.pem"))
        for tls in (here, None):
            try:
                status, body = server.ask("GET", "/kv?key=hello", tls=tls)
            except Failed:
                continue
            if status == 200 or b"world" in body:
                raise Failed(f"a stranger was answered {status}, {body!r}")
    with step("stops in time, and goes on with the same CA") as tell:
        before = server.execute("cat", f"{TRIAL}/ca.pem")
        tell(f"stopped within {server.stop():.1f} s")
        engine("start", server.name)
        until("the server to be well", lambda: server.execute(*health))
        expect(before, server.execute("cat", f"{TRIAL}/ca.pem"))
        expect("world", server.execute("conuresh", "get", "hello"))
        server.remove()


def check_workers(engine: Engine, image: str) -> None:
    """The processes of the LSM engine, where nothing but the volume may be written to."""
    flags = (*DOCUMENTED, "--engine=lsm", "--max-mem-size=1MiB", "--checkpoint-entries=1000")
    options = [*hardening(engine), f"--volume={engine.volume()}:/var/lib/conure"]
    with step("--engine=lsm, --read-only: two processes write and merge tables") as tell:
        server = engine.start(image, *flags, options=options)
        server.wait_ready()
        server.write_until("conure_lsm_compactions_total")
        expect(2, len(server.workers()))
        flushes = server.metric("conure_lsm_flushes_total")
        tell(f"{flushes:.0f} flushes, {server.metric('conure_lsm_compactions_total'):.0f} merges")
    for signal in ("KILL", "STOP"):
        with step(f"each of them gets SIG{signal} amid the writes, and another one its work"):
            before = server.workers()
            server.execute("sh", "-c", f"kill -{signal} {' '.join(map(str, before))}")
            server.write_until("conure_lsm_flushes_total")
            server.write_until("conure_lsm_compactions_total")
            expect(set(), before & server.workers())
            expect(2, len(server.workers()))
    with step("the server is killed, and its records are there at the next start"):
        server.kill()
        server.start()
        server.has_written()
    with step("it stops in time, with status 0") as tell:
        tell(f"stopped within {server.stop():.1f} s")
        server.start()
        server.has_written()
        said = engine("logs", server.name)
        expect(False, "Traceback" in said or "no process can be started" in said)
        server.remove()


def hardening(engine: Engine) -> list[str]:
    """Return the options that leave a container nothing but its volume."""
    options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    # (podman would give a read-only container writable /tmp, /run and /var/tmp by itself.)
    return options + ["--read-only-tmpfs=false"] * engine.program.endswith("podman")


def check_cluster(engine: Engine, image: str) -> None:
    """Three containers that know each other by name only."""
    network = engine.network()
    names = ("node1", "node2", "node3")
    nodes: dict[str, Container] = {}
    with step("three containers on one network become a cluster") as tell:
        for name in names:
            nodes[name] = engine.start(
                image,
                f"--node-id={name}",
                f"--raft-addr={name}:7001",
                "--bootstrap" if name == "node1" else "--join=http://node1:8081,http://node2:8081",
                options=(
                    f"--network={network}",
                    f"--network-alias={name}",
                    f"--hostname={name}",
                ),
            )
        wanted = dict.fromkeys(names, "voter")
        until("three voters", lambda: nodes["node1"].members() == wanted)
        tell(", ".join(f"{name} {suffrage}" for name, suffrage in wanted.items()))
    with step("what is written at one is read at another"):
        expect("OK", nodes["node2"].execute("conuresh", "put", "shared", "value"))
        expect("value", nodes["node3"].execute("conuresh", "get", "shared"))
    with step("the leader is killed, and another one takes over with everything") as tell:
        leader = nodes["node3"].leader()
        nodes[leader].kill()
        left = nodes[next(name for name in names if name != leader)]
        until("another leader", lambda: left.leader() not in ("", leader))
        expect("OK", left.execute("conuresh", "put", "after", "loss"))
        expect("value", left.execute("conuresh", "get", "shared"))
        tell(f"{left.leader()} after {leader}")
    with step("it comes back, and catches up"):
        nodes[leader].start()
        until(
            "the old leader to catch up",
            lambda: nodes[leader].ask("GET", "/kv?key=after&stale=true") == (200, b"loss"),
        )
    for node in nodes.values():
        node.remove()


def health_test(image: dict[str, Any]) -> list[str]:
    """Return the command of the image's health check."""
    # podman keeps it beside the configuration as well, docker in it only.
    check = image.get("Healthcheck") or image["Config"].get("Healthcheck")
    if not check or check["Test"][0] != "CMD":
        raise Failed("the image has no HEALTHCHECK in exec form")
    return list(check["Test"][1:])


def revision() -> str:
    """Return the commit that is checked out, or ``unknown`` without git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "unknown"
    return run("git", "rev-parse", "HEAD")


def expect(wanted: object, got: object) -> None:
    """Raise Failed unless both are equal."""
    if wanted != got:
        raise Failed(f"wanted {wanted!r}, got {got!r}")


if __name__ == "__main__":
    sys.exit(main())
