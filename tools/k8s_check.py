#!/usr/bin/env python3
"""The charts tried on a Kubernetes, the one of kubectl's context: what ``make k8s-check`` runs.

Installs each chart in a namespace of its own, and does to it what happens to a cluster in its life
while four clients write: it grows, shrinks, loses its leader, gets another image, is drained, is
restored from a backup. After each of these every write that was acknowledged is looked for. At the
end the namespaces are removed with everything in them; ``--keep`` leaves them for a look.

    python3 tools/k8s_check.py [--image=REPOSITORY] [--tag=TAG] [--next-tag=TAG] [--keep]
                               [--storage-engine=lsm]

The cluster has to have the image under both tags, or be able to pull it, and to have volumes for
six claims. kubectl and helm 3 have to be on the PATH. What is asserted:

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
CLIENT = "client"
CLIENT_SCRIPT = (ROOT / "tools" / "k8s_check_writer.py").read_text()
CLIENTS = 4
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()

FLUSHES, MERGES = "conure_lsm_flushes_total", "conure_lsm_compactions_total"

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

    def start_client(self) -> None:
        """Start the pod in which the clients run."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": CLIENT},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "containers": [
                    {
                        "name": "client",
                        "image": f"{self.image}:{self.tag}",
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python3", "-c", "import signal; signal.pause()"],
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
            self.client("write", SERVER, prefix), stdin=subprocess.PIPE, stdout=subprocess.PIPE
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
        found = int(run(*self.client("find", SERVER, written.prefix, *counts)))
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
        with tempfile.TemporaryDirectory() as folder:
            backup = Path(folder, "backup")
            with made(Namespace("ha", *facts), given.keep) as namespace:
                everything = check_cluster(namespace, given.next_tag, backup)
            with made(Namespace("single", *facts), given.keep) as namespace:
                check_single(namespace, backup, everything)
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
