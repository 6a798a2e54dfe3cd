#!/usr/bin/env python3
"""The charts tried on a Kubernetes, the one of kubectl's context: what ``make k8s-check`` runs.

Installs each chart in a namespace of its own, and does to it what happens to a cluster in its life
while four clients write: it grows, shrinks, loses its leader, gets another image, is drained, is
restored from a backup. After each of these every write that was acknowledged is looked for. At the
end the namespaces are removed with everything in them; ``--keep`` leaves them for a look.

    python3 tools/k8s_check.py [--image=REPOSITORY] [--tag=TAG] [--next-tag=TAG] [--keep]
                               [--storage-engine=lsm] [--part=cluster|locked|profile]...
                               [--charts-before=FOLDER] [--tag-before=TAG]

Its parts, each in namespaces of its own, are ``cluster`` (with the single chart at its end),
``locked``, where a release that was open is locked while clients write, and ``profile``. The first
installation of ``locked`` is of the chart and the image of an earlier release, if these are named.
The cluster has to have the images, or be able to pull them, and volumes for six claims a part.
kubectl and helm 3 have to be on the PATH, and openssl. What is asserted:

1. No acknowledged write is lost, whatever happens.
2. While members come and go in order no write fails, nor is the outcome of one unknown; it may
   have to wait for as long as a hand-over takes (GAP_SECONDS).
3. When the leader dies without warning, writes that were under way may be unknown, one a client.

Exit status: 0 if all is well, 1 at the first promise that is not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steps import ROOT, Failed, run, step, until

HA = "charts/conuredb-ha"
SINGLE = "charts/conuredb-single"
SERVER = "http://conure:8081"
PARTS = ("cluster", "locked", "profile")
CLIENT = "client"
CLIENT_SCRIPT = (ROOT / "tools" / "k8s_check_writer.py").read_text()
CLIENTS = 4
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()

FLUSHES, MERGES = "conure_lsm_flushes_total", "conure_lsm_compactions_total"

CERTIFICATES = "certificates"
"""The Secret of a locked release: CA, certificate and key for servers and clients alike."""

ASK_SCRIPT = """
import os, ssl, sys, urllib.request
tls = None
if sys.argv[1].startswith("https:"):
    tls = ssl.create_default_context(cafile=os.environ["CONURE_CA"])
    tls.load_cert_chain(os.environ["CONURE_CERT"], os.environ["CONURE_KEY"])
with urllib.request.urlopen(sys.argv[1], timeout=10, context=tls) as answer:
    sys.stdout.write(answer.read().decode())
"""

STRANGER_SCRIPT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7001), 10) as stranger:
    stranger.sendall(bytes.fromhex("000000027b7d") * 50)
    try:
        print(len(stranger.recv(100)))
    except ConnectionError:
        print(0)
"""
"""Speaks to the Raft port as whoever has no proof, and prints how many bytes it is told."""

REST_SCRIPT = """
import urllib.request
url = "http://conure:8080/rest"
kind = {"Content-Type": "application/json"}
put = urllib.request.Request(url, b'{"value": "value"}', kind, method="PUT")
with urllib.request.urlopen(put, timeout=10) as answer:
    print(answer.status)
with urllib.request.urlopen(url, timeout=10) as answer:
    print(answer.status, answer.read().decode().strip())
"""

METRICS_SCRIPT = """
import urllib.request
with urllib.request.urlopen("http://conure:2112/metrics", timeout=10) as answer:
    print(sum(line.startswith("conure_") for line in answer.read().decode().splitlines()))
"""

RESP_SCRIPT = """
import socket
with socket.create_connection(("conure", 9090), 10) as client, client.makefile("rb") as replies:
    client.sendall(b"SET resp value\\r\\nGET resp\\r\\n")
    print(*[replies.readline().decode().strip() for _ in range(3)])
"""

WRITE_SECONDS = 2.0
ROLLOUT_SECONDS = 300
GAP_SECONDS = 5.0
"""How long a client may have to wait for one write while leadership changes."""


class Written(NamedTuple):
    """What became of the writes of one step: acknowledged ones by client, the others' number."""

    prefix: str
    acknowledged: list[int]
    unknown: int
    refused: int
    reasons: list[str]
    longest_gap: float

    def __str__(self) -> str:
        return (
            f"{sum(self.acknowledged)} writes acknowledged, {self.refused} failed, "
            f"{self.unknown} unknown, longest gap {self.longest_gap:.2f} s"
        )


class Namespace:
    """A namespace of our own in the cluster of kubectl's context, with one release in it."""

    def __init__(self, purpose: str, image: str, tag: str, engine: str) -> None:
        self.name = f"conure-check-{purpose}-{os.getpid()}"
        self.image = image
        self.tag = tag
        self.engine = engine
        self.servers = SERVER
        self.speaks_tls = False

    def kubectl(self, *words: str, stdin: str = "", status: int = 0) -> str:
        """Run kubectl here."""
        return run(
            "kubectl", f"--namespace={self.name}", *words, stdin=stdin.encode(), status=status
        )

    def helm(
        self, verb: str, release: str, chart: str = "", *settings: str, status: int = 0
    ) -> str:
        """Run helm here; what installs or changes something waits until it is there."""
        words = [verb, release, f"--namespace={self.name}", f"--timeout={ROLLOUT_SECONDS}s"]
        if chart:
            words += [
                chart,
                "--wait",
                f"--set=image.repository={self.image}",
                f"--set=image.tag={self.tag}",
                f"--set=engine={self.engine}",
                *(["--set=maxMemSize=64KiB"] if self.engine == "lsm" else []),
                "--set=resp.enabled=true",
                *(f"--set={setting}" for setting in settings),
            ]
        return run("helm", *words, status=status)

    def get(self, kind: str, *selector: str) -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        return list(json.loads(self.kubectl("get", kind, *selector, "--output=json"))["items"])

    def ask(self, path: str, pod: str = "") -> dict[str, Any]:
        """Return what a pod, or whoever the Service chooses, answers as JSON."""
        if self.speaks_tls:
            host = f"{pod}.conure-hs" if pod else "conure"
            url = f"https://{host}.{self.name}.svc:8081{path}"
            inside = ("exec", CLIENT, "--", "python3", "-c", ASK_SCRIPT, url)
            return dict(json.loads(self.kubectl(*inside)))
        target = f"pods/{pod}:8081" if pod else "services/conure:http"
        url = f"/api/v1/namespaces/{self.name}/{target}/proxy{path}"
        return dict(json.loads(self.kubectl("get", "--raw", url)))

    def members(self) -> dict[str, str]:
        """Return the members of the cluster: suffrage by name."""
        return {server["id"]: server["suffrage"] for server in self.ask("/raft/config")["servers"]}

    def check_engine(self, *pods: str) -> str:
        """Return the engine that these pods have, which is one, the one that the chart was told."""
        found = sorted({str(self.ask("/status", pod)["engine"]) for pod in pods})
        if len(found) != 1 or self.engine not in ("", *found):
            raise Failed(f"the chart was told {self.engine or 'none'}, the pods have {found}")
        return found[0]

    def metric(self, name: str, pod: str) -> float:
        """Return one of a pod's figures at /metrics."""
        url = f"/api/v1/namespaces/{self.name}/pods/{pod}:8081/proxy/metrics"
        found = re.search(rf"(?m)^{name} (\S+)$", self.kubectl("get", "--raw", url))
        if not found:
            raise Failed(f"{pod} has no {name}")
        return float(found[1])

    def leader(self) -> str:
        """Return the leader's pod."""
        leader = str(self.ask("/status")["leader_id"])
        if not leader:
            raise Failed("no leader is known")
        return leader

    def ready(self, pod: str) -> bool:
        """Whether a pod is ready and not about to end."""
        facts = json.loads(self.kubectl("get", "pod", pod, "--output=json"))
        conditions = {
            each["type"]: each["status"] for each in facts["status"].get("conditions", [])
        }
        return "deletionTimestamp" not in facts["metadata"] and conditions.get("Ready") == "True"

    def wait_for(self, *pods: str) -> None:
        """Wait until these pods, and no others, are voters, and all are ready."""
        until(f"{', '.join(pods)} to be ready", lambda: all(map(self.ready, pods)), ROLLOUT_SECONDS)
        wanted = dict.fromkeys(pods, "voter")
        until(f"the voters {', '.join(pods)}", lambda: self.members() == wanted, ROLLOUT_SECONDS)

    def wait_until_gone(self) -> None:
        """Wait until there is no member's pod any more."""
        selector = "--selector=conuredb.dev/member=true"
        until("the pods to go", lambda: not self.get("pods", selector), ROLLOUT_SECONDS)

    def kill(self, pod: str) -> None:
        """End a server without warning, and wait until it was started again.

        Nobody inside can send process 1 a signal it doesn't ask for. But who is the same user may
        limit its processor time, and the kernel's own SIGKILL does reach it.
        """
        limit = "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))"
        before = self.restarts(pod)
        self.kubectl("exec", pod, "--", "python3", "-c", limit)
        until(f"{pod} to be started again", lambda: self.restarts(pod) > before, ROLLOUT_SECONDS)

    def restarts(self, pod: str) -> int:
        """Return how often a pod's server was started again."""
        facts = json.loads(self.kubectl("get", "pod", pod, "--output=json"))
        return int(facts["status"]["containerStatuses"][0]["restartCount"])

    def evict(self, pod: str) -> bool:
        """Ask for a pod's eviction, as a drain does; return whether that was granted."""
        versions = self.kubectl("api-versions").split()
        eviction = {
            "apiVersion": "policy/v1" if "policy/v1" in versions else "policy/v1beta1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.name},
        }
        path = f"/api/v1/namespaces/{self.name}/pods/{pod}/eviction"
        try:
            self.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))
        except Failed as failure:
            if "disruption budget" not in str(failure):
                raise
            return False
        return True

    def start_client(self, *, certificates: bool = False) -> None:
        """Start the pod in which the clients run, with certificates to show or without."""
        paths = {"CA": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"} if certificates else {}
        volume = {"name": "tls", "secret": {"secretName": CERTIFICATES}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": CLIENT},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "volumes": [volume] * certificates,
                "containers": [
                    {
                        "name": "client",
                        "image": f"{self.image}:{self.tag}",
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python3", "-c", "import signal; signal.pause()"],
                        "env": [
                            {"name": f"CONURE_{name}", "value": f"/tls/{file}"}
                            for name, file in paths.items()
                        ],
                        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}] * certificates,
                    }
                ],
            },
        }
        self.kubectl("apply", "--filename=-", stdin=json.dumps(pod))
        self.kubectl("wait", "--for=condition=Ready", f"pod/{CLIENT}", "--timeout=60s")

    def client(self, *words: str) -> list[str]:
        """Return the command that runs the client's script."""
        inside = ["python3", "-c", CLIENT_SCRIPT, *words]
        return ["kubectl", f"--namespace={self.name}", "exec", "--stdin", CLIENT, "--", *inside]

    @contextlib.contextmanager
    def writing(self, prefix: str) -> Iterator[list[Written]]:
        """Let clients write during the block; what became of it is in the list afterwards."""
        results: list[Written] = []
        process = subprocess.Popen(  # noqa: S603
            self.client("write", self.servers, prefix),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            yield results
            said, _ = process.communicate(timeout=60)
            results.append(Written(prefix=prefix, **json.loads(said)))
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise Failed(f"the clients did not say what they wrote: {error}") from error
        finally:
            process.kill()
            process.wait()

    def back_up(self, file: Path) -> None:
        """Write a backup to a file. (Users have curl; this needs no port.)"""
        url = f"/api/v1/namespaces/{self.name}/services/conure:http/proxy/backup"
        with file.open("wb") as output:
            words = ("kubectl", "get", "--raw", url)
            done = subprocess.run(words, stdout=output, check=False)  # noqa: S603
        if done.returncode:
            raise Failed(f"{' '.join(words)} ended with status {done.returncode}")

    def restore(self, file: Path, member: str) -> str:
        """Do what the guide says, for the claim of *member*; return what the command said."""
        guide = GUIDE.replace("conure-bootstrap-0", member)
        found = re.search(r"(?s)```yaml\n# restore.yaml\n(.*?)```", guide)
        assert found is not None
        manifest = re.sub(r"image: \S+", f"image: {self.image}:{self.tag}", found[1])
        self.kubectl("apply", "--filename=-", stdin=manifest)
        self.kubectl("wait", "--for=condition=Ready", "pod/restore", "--timeout=120s")
        found = re.search(r"kubectl exec -i restore -- sh -c '([^']*)' <", guide)
        assert found is not None
        words = ["kubectl", f"--namespace={self.name}", "exec", "--stdin", "restore", "--"]
        command = found[1] + (f" --engine={self.engine}" if self.engine else "")
        said = run(*words, "sh", "-c", command, stdin=file.read_bytes())
        self.kubectl("delete", "pod", "restore")
        return said

    def inside(self, script: str, *words: str) -> str:
        """Run a script of Python in the clients' pod, and return what it printed in one line."""
        return " ".join(self.kubectl("exec", CLIENT, "--", "python3", "-c", script, *words).split())

    def make_certificates(self) -> None:
        """Make a CA, a certificate by it for all names of a release, and the Secret of both."""
        pods = f"conure-hs.{self.name}.svc"
        names = ["localhost", "conure", f"conure.{self.name}.svc", f"*.{pods}"]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            new = (
                "openssl",
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            )
            ca = (f"-CA={place / 'ca.crt'}", f"-CAkey={place / 'ca.key'}")
            run(*new, "-x509", "-subj=/CN=k8s-check", "-days", "2",
                "-keyout", str(place / "ca.key"), "-out", str(place / "ca.crt"))  # fmt: skip
            run(*new, "-subj=/CN=conure",
                "-keyout", str(place / "tls.key"), "-out", str(place / "csr"))  # fmt: skip
            extensions = place / "extensions"
            extensions.write_text(
                f"subjectAltName={','.join(f'DNS:{name}' for name in names)},IP:127.0.0.1\n"
                "extendedKeyUsage=serverAuth,clientAuth\n"
            )
            run("openssl", "x509", "-req", "-days", "2", "-CAcreateserial",
                *[word for pair in ca for word in pair.split("=", 1)],
                "-in", str(place / "csr"), "-extfile", str(extensions),
                "-out", str(place / "tls.crt"))  # fmt: skip
            files = [f"--from-file={place / name}" for name in ("tls.crt", "tls.key", "ca.crt")]
            self.kubectl("create", "secret", "generic", CERTIFICATES, *files)

    def auth(self) -> str:
        """Return how the members of the release are told to prove themselves."""
        found: set[str] = set()
        for each in self.get("statefulsets"):
            (server,) = each["spec"]["template"]["spec"]["containers"]
            told = {one["name"]: one.get("value", "") for one in server["env"]}
            found.add(str(told.get("CONURE_PEER_AUTH", "open")))
        (only,) = found
        return only

    def try_resp(self) -> str:
        """Set and get a key by RESP, and get it by HTTP; return the replies."""
        inside = ("exec", CLIENT, "--")
        said = self.kubectl(*inside, "python3", "-c", RESP_SCRIPT)
        by_http = self.kubectl(*inside, "conuresh", f"--server={SERVER}", "get", "resp")
        if (said, by_http) != ("+OK $5 value", "value"):
            raise Failed(f"RESP said {said}, and HTTP {by_http}")
        return said

    def found(self, written: Written) -> int:
        """Return how many of the acknowledged writes are there. Raises Failed if one is not."""
        counts = map(str, written.acknowledged)
        found = int(run(*self.client("find", self.servers, written.prefix, *counts)))
        if found != sum(written.acknowledged):
            raise Failed(f"{sum(written.acknowledged) - found} acknowledged writes are lost")
        return found


def main() -> int:
    """Check the charts; return the exit status."""
    parser = argparse.ArgumentParser(description="Hold the charts to their promises.")
    parser.add_argument("--image", default="docker.io/conuredb/conuredb", help="its repository")
    parser.add_argument("--tag", default="check", help="the tag to begin with")
    parser.add_argument("--next-tag", default="check-next", help="the tag to change to")
    parser.add_argument("--storage-engine", default="", help="btree or lsm (default: the server's)")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this (default: all)")
    parser.add_argument("--charts-before", default="charts", help="of the release that is locked")
    parser.add_argument("--tag-before", default="", help="and its image (default: that of --tag)")
    parser.add_argument("--keep", action="store_true", help="leave everything there at the end")
    given = parser.parse_args()
    facts = (given.image, given.tag, given.storage_engine)
    try:
        with step("Kubernetes") as tell:
            tell(
                json.loads(run("kubectl", "version", "--output=json"))["serverVersion"][
                    "gitVersion"
                ]
            )
            tell(f"helm {run('helm', 'version', '--short')}")
        parts = given.part or PARTS
        if "cluster" in parts:
            with tempfile.TemporaryDirectory() as folder:
                backup = Path(folder, "backup")
                with made(Namespace("ha", *facts), given.keep) as namespace:
                    everything = check_cluster(namespace, given.next_tag, backup)
                with made(Namespace("single", *facts), given.keep) as namespace:
                    check_single(namespace, backup, everything)
        if "locked" in parts:
            with made(Namespace("locked", *facts), given.keep) as namespace:
                check_locked(namespace, given.charts_before, given.tag_before or given.tag)
        if "profile" in parts:
            with made(Namespace("profile", *facts), given.keep) as namespace:
                check_profile(namespace)
    except Failed as failure:
        print(f"k8s-check: {failure}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def made(namespace: Namespace, keep: bool) -> Iterator[Namespace]:
    """Make a namespace for the block, and remove it afterwards unless it is to be kept."""
    run("kubectl", "create", "namespace", namespace.name)
    try:
        yield namespace
    except Failed:
        show_state(namespace)
        raise
    finally:
        if not keep:
            run("kubectl", "delete", "namespace", namespace.name, "--wait=false")


def check_cluster(namespace: Namespace, next_tag: str, backup: Path) -> list[Written]:
    """The chart of a cluster, through its life; return what it holds, as *backup* does then."""
    three = ("conure-bootstrap-0", "conure-0", "conure-1")
    five = (*three, "conure-2", "conure-3")
    everything: list[Written] = []

    def settled(what: str, written: Written, pods: Sequence[str], unknown: int = 0) -> None:
        """Hold a step to its promises, after it."""
        namespace.wait_for(*pods)
        if written.refused or written.unknown > unknown or written.longest_gap > GAP_SECONDS:
            raise Failed(f"{what}: {written} {written.reasons}")
        everything.append(written)
        namespace.found(written)

    with step("helm install, 3 voters") as tell:
        namespace.helm("install", "demo", HA, "voters.replicas=3")
        namespace.wait_for(*three)
        namespace.start_client()
        tell(f"{', '.join(three)}, engine {namespace.check_engine(*three)}")
    with step("helm test"):
        namespace.helm("test", "demo")

    with step("RESP by the Service, in any pod, and what it wrote by HTTP") as tell:
        tell(namespace.try_resp())

    with step("3 -> 5 under load") as tell:
        with namespace.writing("grow") as results:
            namespace.helm("upgrade", "demo", HA, "voters.replicas=5")
            namespace.wait_for(*five)
        tell(str(results[0]))
        settled("3 -> 5", results[0], five)
    with step("5 -> 3 under load") as tell:
        with namespace.writing("shrink") as results:
            namespace.helm("upgrade", "demo", HA, "voters.replicas=3")
            namespace.wait_for(*three)
        tell(str(results[0]))
        settled("5 -> 3", results[0], three)

    with step("the leader's pod is deleted under load") as tell:
        with namespace.writing("delete") as results:
            leader = namespace.leader()
            namespace.kubectl("delete", "pod", leader)
            namespace.wait_for(*three)
        tell(f"{leader}, {results[0]}")
        settled("delete", results[0], three)
    with step("the leader's process is killed under load") as tell:
        with namespace.writing("kill") as results:
            leader = namespace.leader()
            namespace.kill(leader)
            namespace.wait_for(*three)
        tell(f"{leader}, {results[0]}")
        settled("kill", results[0], three, unknown=CLIENTS)

    if namespace.engine == "lsm":
        with step("the LSM engine's processes have written and merged tables meanwhile") as tell:
            until("merges", lambda: any(namespace.metric(MERGES, pod) for pod in three))
            for pod in three:
                counts = [namespace.metric(name, pod) for name in (FLUSHES, MERGES)]
                tell("{} {:.0f} and {:.0f}".format(pod, *counts))

    with step("another image, one pod after the other, under load") as tell:
        namespace.tag = next_tag
        with namespace.writing("roll") as results:
            namespace.helm("upgrade", "demo", HA, "voters.replicas=3")
            namespace.wait_for(*three)
        tell(str(results[0]))
        settled("roll", results[0], three)
        for pod in three:
            facts = json.loads(namespace.kubectl("get", "pod", pod, "--output=json"))
            if not facts["spec"]["containers"][0]["image"].endswith(f":{next_tag}"):
                raise Failed(f"{pod} still runs the old image")

    with step("the disruption budget grants one eviction and refuses the second") as tell:
        if not namespace.evict(three[1]):
            raise Failed("the first eviction was refused")
        if namespace.evict(three[2]):
            raise Failed("a second eviction was granted while the first pod was away")
        namespace.wait_for(*three)
        tell(f"{three[1]} evicted, {three[2]} refused")

    with step("3 -> 5 again, on the claims that were left") as tell:
        with namespace.writing("again") as results:
            namespace.helm("upgrade", "demo", HA, "voters.replicas=5")
            namespace.wait_for(*five)
        tell(str(results[0]))
        settled("3 -> 5 again", results[0], five)
    with step("helm uninstall keeps the claims, and an install finds the data") as tell:
        namespace.helm("uninstall", "demo")
        namespace.wait_until_gone()
        tell(f"{len(namespace.get('persistentvolumeclaims'))} claims")
        namespace.helm("install", "demo", HA, "voters.replicas=5")
        namespace.wait_for(*five)
    with step("everything that was acknowledged is there") as tell:
        tell(f"{sum(map(namespace.found, everything))} writes found again")
    with step("a backup of the running cluster") as tell:
        namespace.back_up(backup)
        tell(f"{backup.stat().st_size / 1e6:.1f} MB")
    with step("the single chart refuses the claim of a cluster's member"):
        namespace.helm("uninstall", "demo")
        said = namespace.helm("install", "one", SINGLE, status=1)
        if "data-conure-0" not in said or "conuredb-ha as release demo" not in said:
            raise Failed(f"it was refused, but not by its name: {said}")
    return everything


def check_single(namespace: Namespace, backup: Path, everything: Sequence[Written]) -> None:
    """The chart of one server, which begins with what the cluster had."""
    pod = "conure-0"
    with step("the cluster's backup is restored into an empty claim") as tell:
        tell(namespace.restore(backup, pod).splitlines()[0])
    with step("the single chart: helm install on that claim") as tell:
        namespace.helm("install", "one", SINGLE)
        namespace.start_client()
        found = sum(map(namespace.found, everything))
        tell(f"{found} writes found again, engine {namespace.check_engine(pod)}")
    with step("RESP by the Service of the single chart") as tell:
        tell(namespace.try_resp())
    with step("the single chart keeps its data over its pod's deletion") as tell:
        with namespace.writing("single") as results:
            time.sleep(WRITE_SECONDS)
        namespace.kubectl("delete", "pod", pod)
        until(f"{pod} to be ready", lambda: namespace.ready(pod), ROLLOUT_SECONDS)
        tell(f"{namespace.found(results[0])} writes found again in {pod}")
    with step("the single chart refuses another engine than the claim has"):
        other = "btree" if namespace.check_engine(pod) == "lsm" else "lsm"
        said = namespace.helm("upgrade", "one", SINGLE, f"engine={other}", status=1)
        if "which can't be changed" not in said:
            raise Failed(f"it was refused, but not for its engine: {said}")
    with step("the single chart refuses a second replica"):
        namespace.helm("upgrade", "one", SINGLE, "replicas=2", status=1)


def check_locked(namespace: Namespace, charts_before: str, tag_before: str) -> None:
    """A release that was open is locked in steps while clients write; then it grows and shrinks."""
    three = ("conure-bootstrap-0", "conure-0", "conure-1")
    five = (*three, "conure-2", "conure-3")
    everything: list[Written] = []
    tag, namespace.tag = namespace.tag, tag_before

    def upgraded(
        what: str, *settings: str, pods: Sequence[str] = three, mixed: bool = False
    ) -> None:
        """Upgrade while clients write. *mixed*: pods speak two protocols meanwhile, so that a
        client has to ask another one when it finds out."""
        with step(f"{what}, under load") as tell:
            with namespace.writing(what.partition(" ")[0] + str(len(everything))) as results:
                namespace.helm("upgrade", "demo", HA, *settings)
                namespace.speaks_tls = "tls" in what or namespace.speaks_tls
                namespace.wait_for(*pods)
            (written,) = results
            tell(f"peerAuth {namespace.auth()}, {written}")
            is_bad = written.refused or written.unknown or written.longest_gap > GAP_SECONDS
            if is_bad and not mixed:
                raise Failed(f"{what}: {written} {written.reasons}")
            everything.append(written)
            namespace.found(written)

    with step("an open release, of 3 voters") as tell:
        is_old = charts_before != "charts"
        chart = HA if not is_old else f"{charts_before}/conuredb-ha"
        open_to_all = (
            "peerAuth=open",
            "clusterSecret.enabled=false",
            "networkPolicy.enabled=false",
        )
        namespace.helm("install", "demo", chart, *(() if is_old else open_to_all))
        namespace.tag = tag
        namespace.make_certificates()
        namespace.start_client(certificates=True)
        namespace.wait_for(*three)
        tell(f"chart {chart}, image {tag_before}, peerAuth {namespace.auth()}")
    upgraded("upgrade with a secret that is made meanwhile")
    upgraded("upgrade when all pods have it")
    with step("who has no proof is told nothing at the Raft port") as tell:
        told = {pod: namespace.inside(STRANGER_SCRIPT, f"{pod}.conure-hs") for pod in three}
        if (namespace.auth(), set(told.values())) != ("require", {"0"}):
            raise Failed(f"peerAuth {namespace.auth()}, bytes told: {told}")
        tell("0 bytes from each pod")
    tls = (
        "tls.enabled=true",
        f"tls.existingSecret={CERTIFICATES}",
        "tls.clientAuth=require",
    )
    upgraded("hand out certificates", *tls)
    namespace.servers = f"https://conure.{namespace.name}.svc:8081,{SERVER}"
    upgraded("tls for clients, who have to show a certificate", *tls, mixed=True)
    namespace.servers = f"https://conure.{namespace.name}.svc:8081"
    with step("helm test, by TLS"):
        namespace.helm("test", "demo")
    with step("conuresh in a pod, by TLS") as tell:
        words = ("exec", three[0], "--", "conuresh")
        namespace.kubectl(*words, "put", "shell", "value")
        tell(namespace.kubectl(*words, "get", "shell"))
    upgraded("3 -> 5", *tls, "voters.replicas=5", pods=five)
    upgraded("5 -> 3", *tls, "voters.replicas=3")
    with step("the leader's pod is deleted under load") as tell:
        with namespace.writing("delete") as results:
            leader = namespace.leader()
            namespace.kubectl("delete", "pod", leader)
            namespace.wait_for(*three)
        tell(f"{leader}, {results[0]}")
        everything.extend(results)
    with step("everything that was acknowledged is there") as tell:
        tell(f"{sum(map(namespace.found, everything))} writes found again")


def check_profile(namespace: Namespace) -> None:
    """The single chart with the profile kvstore: its three ports besides the API."""
    with step("the single chart with profile=kvstore: helm install") as tell:
        namespace.engine = "lsm"
        namespace.helm("install", "one", SINGLE, "profile=kvstore")
        namespace.start_client()
        tell(f"engine {namespace.check_engine('conure-0')}")
    with step("REST by the Service") as tell:
        tell(namespace.inside(REST_SCRIPT))
    with step("RESP by the Service") as tell:
        tell(namespace.try_resp())
    with step("metrics by the Service, at a port of their own") as tell:
        tell(f"{namespace.inside(METRICS_SCRIPT)} lines of conure_")


def show_state(namespace: Namespace) -> None:
    """Print what helps to understand a failure, as far as it can be had."""
    for words in (
        ("get", "pods,pvc,jobs", "--output=wide"),
        ("get", "events", "--sort-by=.lastTimestamp"),
        (
            "logs",
            "--selector=app.kubernetes.io/name=conuredb",
            "--all-containers",
            "--tail=40",
            "--prefix",
        ),
    ):
        with contextlib.suppress(Failed):
            print(namespace.kubectl(*words)[-8000:], file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
