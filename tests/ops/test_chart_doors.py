"""How the Helm charts lock a release: what is said to servers, made, mounted and probed, and in
which order an upgrade closes the locks. What is in a cluster is told to the templates
(tests/lab/charts.py)."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from conure.config import load
from tests.lab.charts import (
    CHARTS,
    HA,
    SINGLE,
    Object,
    Objects,
    container,
    environment,
    notes,
    pods,
    refusal,
    render,
    selects,
)

ASKING = {"CONURE_CA", "CONURE_CERT", "CONURE_KEY", "CONURE_TLS_NAME"}
DOORS = re.compile(r"CONURE_(PEER|CLUSTER|TLS|PROTECTED|CA$|CERT$|KEY$|SERVER$)")
SECRET = {
    "data": {"tls.crt": "eA==", "tls.key": "eA==", "ca.crt": "eA==", "cluster-secret": "eA=="}
}
TLS: Object = {"tls": {"enabled": True, "existingSecret": "my-tls"}}
LOCKED: Object = {
    "clusterSecret": {"existingSecret": "my-cluster"},
    "peerTLS": {"enabled": True, "existingSecret": "my-peers"},
    "tls": {"enabled": True, "existingSecret": "my-tls", "clientAuth": "require"},
}
MANAGED: Object = {
    "certManager": {"enabled": True, "issuerRef": {"name": "ca"}},
    "tls": {"enabled": True, "dnsNames": ["db.example.com"]},
    "peerTLS": {"enabled": True},
}
SECRETS = {("Secret", name): SECRET for name in ("my-cluster", "my-peers", "my-tls")}


def told(objects: Objects, pod: str = "conure") -> dict[str, str]:
    """The environment of a pod's server as far as it is about doors."""
    given = environment(container(objects, pod), f"{pod}-0")
    return {name: value for name, value in given.items() if DOORS.match(name)}


def installed(objects: Objects, *, ready: bool = True, **secrets: Object) -> Objects:
    """What a cluster holds after an installation: its StatefulSets, all pods replaced and ready or
    not, and the Secrets that it has made or that are named."""
    there: Objects = {("Secret", name.replace("_", "-")): one for name, one in secrets.items()}
    for (kind, name), one in objects.items():
        if kind == "StatefulSet":
            found = copy.deepcopy(one)
            count = found["spec"]["replicas"]
            found["metadata"]["generation"] = 3
            found["status"] = {
                "observedGeneration": 3,
                "readyReplicas": count if ready else count - 1,
                "updatedReplicas": count,
            }
            there[kind, name] = found
        elif kind == "Secret":
            there[kind, name] = {"data": one["stringData"]}
    return there


def before_doors(objects: Objects) -> Objects:
    """The same, as a chart has left it that knows of no doors."""
    there = {key: copy.deepcopy(one) for key, one in objects.items() if key[0] != "Secret"}
    for one in there.values():
        pod = one.get("spec", {}).get("template", {}).get("spec", {})
        pod.pop("volumes", None)
        for server in pod.get("containers", []):
            server["env"] = [each for each in server["env"] if not DOORS.match(each["name"])]
    return there


# -- the servers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_a_new_release_has_members_that_prove_themselves(chart: str) -> None:
    objects = render(chart, there={})
    config = load([], environment(container(objects, "conure"), "conure-0"))
    assert config.peer_auth == "require"
    assert config.cluster_secret_file == "/etc/conure/cluster/cluster-secret"
    assert not config.protected_mode
    assert not config.has_tls
    assert not config.ignored_environment
    for name, pod in pods(objects).items():
        volumes = {each["name"]: each for each in pod.get("volumes", [])}
        is_member = ("StatefulSet", name) in objects
        assert set(volumes) == ({"cluster-secret"} if is_member else set())
        if is_member:
            (server,) = pod["containers"]
            mounted = {each["name"]: each["mountPath"] for each in server["volumeMounts"]}
            assert mounted["cluster-secret"] == "/etc/conure/cluster"
            source = volumes["cluster-secret"]["secret"]
            assert source["secretName"] == "conure-cluster"
            assert source["items"] == [{"key": "cluster-secret", "path": "cluster-secret"}]
            assert source["defaultMode"] == 0o440


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_a_locked_release_tells_its_servers_where_everything_is(chart: str) -> None:
    objects = render(chart, LOCKED, there={})
    for name in [name for kind, name in objects if kind == "StatefulSet"]:
        server = container(objects, name)
        given = environment(server, f"{name}-0")
        config = load([], given)
        assert config.tls_client_auth == config.peer_auth == "require"
        assert config.tls_client_ca == config.tls_ca == "/etc/conure/tls/ca.crt"
        assert (config.tls_min_version, config.asks_clients) == ("1.3", True)
        assert not config.ignored_environment
        folders = {each["mountPath"] for each in server["volumeMounts"]}
        for variable, value in given.items():
            if value.startswith("/etc/"):
                assert value.rpartition("/")[0] in folders, variable
        assert given["CONURE_SERVER"] == f"https://{name}-0.conure-hs.shop.svc:8081"
        secrets = {
            each["name"]: each["secret"]["secretName"] for each in pods(objects)[name]["volumes"]
        }
        assert secrets == {
            "cluster-secret": "my-cluster",
            "peer-tls": "my-peers",
            "tls": "my-tls",
        }
    if chart == HA:
        assert config.seeds == (
            "https://conure.shop.svc:8081",
            "https://conure-bootstrap-0.conure-hs.shop.svc:8081",
        )


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_clients_may_have_a_ca_of_their_own(chart: str) -> None:
    for auth in ("none", "request", "require"):
        values = {"tls": {**LOCKED["tls"], "clientAuth": auth, "clientCASecret": "my-clients"}}
        objects = render(chart, values, there={})
        config = load([], environment(container(objects, "conure"), "conure-0"))
        assert config.tls_client_auth == auth
        names = [each["name"] for each in pods(objects)["conure"]["volumes"]]
        assert ("client-ca" in names) == (auth != "none")
        assert config.tls_client_ca == ("" if auth == "none" else "/etc/conure/client-ca/ca.crt")


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_open_values_make_what_charts_made_that_had_no_doors(chart: str) -> None:
    values = yaml.safe_load((CHARTS / chart / "ci" / "open-values.yaml").read_text())
    objects = render(chart, values, there={})
    assert told(objects) == {"CONURE_PROTECTED_MODE": "false", "CONURE_PEER_AUTH": "open"}
    assert not any("volumes" in pod for pod in pods(objects).values())
    assert not {kind for kind, _ in objects} & {"NetworkPolicy", "Secret"}
    load([], environment(container(objects, "conure"), "conure-0"))


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_probes_show_a_certificate_where_one_is_asked_for(chart: str) -> None:
    plain: list[Object] = []
    for values, scheme in (({}, None), (TLS, "HTTPS"), (LOCKED, "exec")):
        server = container(render(chart, values, there={}), "conure")
        for probe, path in (
            ("startupProbe", "/livez"),
            ("livenessProbe", "/livez"),
            ("readinessProbe", "/readyz"),
        ):
            if scheme == "exec":
                command = server[probe]["exec"]["command"]
                assert command[:3] == ["python3", "-m", "conure.ops.probe"]
                assert command[3:] == [f"https://127.0.0.1:8081{path}"]
                assert "httpGet" not in server[probe]
            else:
                asked = server[probe]["httpGet"]
                assert (asked["path"], asked.get("scheme")) == (path, scheme)
                plain.append(asked)
    assert all("host" not in each for each in plain)


# -- the secret ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_the_secret_is_made_once_and_never_anew(chart: str) -> None:
    first, second = (render(chart, there={})["Secret", "conure-cluster"] for _ in range(2))
    (one,), (other,) = first["stringData"].values(), second["stringData"].values()
    assert one != other
    assert len(one) >= 32
    hooks = first["metadata"]["annotations"]
    assert hooks["helm.sh/hook"] == "pre-install,pre-upgrade"  # no rollback, no uninstall
    assert int(hooks["helm.sh/hook-weight"]) < 0  # before the job that may need it
    assert "helm.sh/hook-delete-policy" not in hooks

    there: Objects = {("Secret", "conure-cluster"): {"data": {"cluster-secret": "eA=="}}}
    assert ("Secret", "conure-cluster") not in render(chart, there=there)
    assert ("Secret", "conure-cluster") not in render(chart, LOCKED, there={})


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_who_cannot_look_makes_no_secret_and_says_the_same_each_time(chart: str) -> None:
    assert render(chart) == render(chart)
    assert "Secret" not in {kind for kind, _ in render(chart)}
    volume = pods(render(chart))["conure"]["volumes"][0]["secret"]
    assert (volume["secretName"], volume.get("optional")) == ("conure-cluster", None)


# -- the order of an upgrade -----------------------------------------------------------------------


def test_an_open_release_offers_first_and_requires_next() -> None:
    there = before_doors(installed(render(HA, there={})))
    offering = render(HA, there=there)
    for pod in ("conure", "conure-bootstrap"):
        assert told(offering, pod)["CONURE_PEER_AUTH"] == "offer"
    assert ("Secret", "conure-cluster") in offering
    assert "HALF OPEN" in notes(HA, there=there)
    assert "Repeat it when all are ready: then members require a proof" in notes(HA, there=there)

    half = installed(offering, ready=False)
    assert told(render(HA, there=half))["CONURE_PEER_AUTH"] == "offer"

    whole = installed(offering)
    requiring = render(HA, there=whole)
    assert told(requiring)["CONURE_PEER_AUTH"] == "require"
    assert "Repeat" not in notes(HA, there=whole)
    there = installed(requiring, conure_cluster=SECRET)
    assert told(render(HA, there=there))["CONURE_PEER_AUTH"] == "require"


def test_every_set_of_pods_has_to_offer_before_one_requires() -> None:
    values = {"voters": {"replicas": 4}}
    there = installed(render(HA, {**values, "peerAuth": "offer"}, there={}))
    assert told(render(HA, values, there=there))["CONURE_PEER_AUTH"] == "require"
    for name in ("conure", "conure-bootstrap", "conure-arbiter"):
        behind = copy.deepcopy(there)
        behind["StatefulSet", name]["status"]["updatedReplicas"] = 0
        assert told(render(HA, values, there=behind))["CONURE_PEER_AUTH"] == "offer"
        unseen = copy.deepcopy(there)
        unseen["StatefulSet", name]["metadata"]["generation"] = 4
        assert told(render(HA, values, there=unseen))["CONURE_PEER_AUTH"] == "offer"


def test_an_upgrade_after_which_pods_would_not_let_each_other_in_is_refused() -> None:
    def after(before: Object, values: Object, **options: Any) -> str:
        there = {**installed(render(HA, before, there={}), **options), **SECRETS}
        return refusal(HA, values, there=there)

    off: Object = {"peerAuth": "open", "clusterSecret": {"enabled": False}}
    mine: Object = {"clusterSecret": {"existingSecret": "my-cluster"}}
    peers: Object = {"peerTLS": {"enabled": True, "existingSecret": "my-peers"}}
    only: Object = {**peers, "clusterSecret": {"enabled": False}}
    assert "in two upgrades" in after(off, {**mine, "peerAuth": "require"})
    assert "in two upgrades" in after(mine, off)
    assert "in two upgrades" in after(mine, only)
    assert "in two upgrades" in after(only, mine)
    for before, values in ((mine, {**mine, **peers}), ({**mine, **peers}, only)):
        there = {**installed(render(HA, before, there={})), **SECRETS}
        assert told(render(HA, values, there=there))["CONURE_PEER_AUTH"] == "require"


def test_tls_is_handed_out_first_and_served_next() -> None:
    there = {**before_doors(installed(render(HA, there={}))), **SECRETS}
    handed = render(HA, TLS, there=there)
    given = told(handed)
    assert "CONURE_TLS_CERT" not in given
    assert given["CONURE_CA"] == "/etc/conure/tls/ca.crt"
    assert given["CONURE_SERVER"].startswith("http://")  # which is what is spoken until then
    assert container(handed, "conure")["livenessProbe"]["httpGet"].get("scheme") is None
    assert "clients are served by TLS" in notes(HA, TLS, there=there)
    job = container(handed, "conure-pre-scale-1")
    assert "env" not in job

    there = {**installed(handed), **SECRETS}
    served = render(HA, TLS, there=there)
    assert told(served)["CONURE_TLS_CERT"] == "/etc/conure/tls/tls.crt"
    # The job asks those that run until then.
    assert "env" not in container(served, "conure-pre-scale-1")

    there = {**installed(served), **SECRETS}
    again = render(HA, TLS, there=there)
    job = container(again, "conure-pre-scale-1")
    assert {each["name"] for each in job["env"]} == ASKING
    back = render(HA, there=there)
    job = container(back, "conure-pre-scale-1")
    assert {each["name"] for each in job["env"]} == ASKING
    (volume,) = pods(back)["conure-pre-scale-1"]["volumes"]
    assert volume["secret"]["secretName"] == "my-tls"
    assert "CONURE_TLS_CERT" not in told(back)


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_no_pod_is_taken_away_for_one_whose_secret_is_missing(chart: str) -> None:
    there = installed(render(chart, {"clusterSecret": {"existingSecret": "my-cluster"}}, there={}))
    for missing, value in (
        ("my-cluster", "clusterSecret"),
        ("my-peers", "peerTLS.existingSecret"),
        ("my-tls", "tls.existingSecret"),
    ):
        secrets = {key: one for key, one in SECRETS.items() if key[1] != missing}
        said = refusal(chart, LOCKED, there={**there, **secrets})
        assert f"{value}: the Secret {missing} in namespace shop is not there" in said
        poor = {**SECRETS, ("Secret", missing): {"data": {"other": "eA=="}}}
        assert "has no key" in refusal(chart, LOCKED, there={**there, **poor})
    render(chart, LOCKED, there={**there, **SECRETS})
    render(chart, LOCKED, there={})  # an installation: its pods wait for it


def test_what_cert_manager_has_yet_to_make_is_used_when_it_is_there() -> None:
    there = installed(render(HA, there={}), conure_cluster=SECRET)
    objects = render(HA, MANAGED, there=there)
    assert ("Certificate", "conure-tls") in objects
    assert ("Certificate", "conure-peer-tls") in objects
    given = told(objects)
    assert "CONURE_TLS_CERT" not in given
    assert "CONURE_PEER_TLS_CERT" not in given
    assert given["CONURE_CA"]
    (volume,) = [v for v in pods(objects)["conure"]["volumes"] if v["name"] == "tls"]
    assert volume["secret"]["optional"] is True
    there = installed(objects, conure_cluster=SECRET, conure_tls=SECRET, conure_peer_tls=SECRET)
    given = told(render(HA, MANAGED, there=there))
    assert given["CONURE_TLS_CERT"]
    assert given["CONURE_PEER_TLS_CERT"]


# -- certificates ----------------------------------------------------------------------------------


def test_certificates_name_all_that_is_asked_for() -> None:
    objects = render(HA, MANAGED, there={})
    clients = objects["Certificate", "conure-tls"]["spec"]
    asked_as = environment(container(objects, "conure"), "conure-0")["CONURE_TLS_NAME"]
    assert asked_as in clients["dnsNames"]
    config = load([], environment(container(objects, "conure"), "conure-0"))
    asked = {"conure.shop.svc", "conure", "conure.shop", "db.example.com", "localhost"}
    assert asked <= set(clients["dnsNames"])
    assert "*.conure-hs.shop.svc" in clients["dnsNames"]
    assert config.http_advertised(8081).startswith("https://conure-0.conure-hs.shop.svc:")
    assert "127.0.0.1" in clients["ipAddresses"]  # where probes ask
    assert {"server auth", "client auth"} <= set(clients["usages"])
    assert clients["secretName"] == "conure-tls"
    assert clients["issuerRef"] == {"name": "ca", "kind": "Issuer", "group": "cert-manager.io"}

    peers = set(objects["Certificate", "conure-peer-tls"]["spec"]["dnsNames"])
    for replicas in (3, 4, 15):
        values = {**MANAGED, "voters": {"replicas": replicas}}
        scaled = render(HA, values, there={})
        assert set(scaled["Certificate", "conure-peer-tls"]["spec"]["dnsNames"]) == peers
        for (kind, name), one in scaled.items():
            if kind == "StatefulSet":
                for ordinal in range(one["spec"]["replicas"]):
                    assert f"{name}-{ordinal}" in peers
    single = render(SINGLE, MANAGED, there={})
    assert single["Certificate", "conure-peer-tls"]["spec"]["dnsNames"] == ["conure-0"]


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_a_lock_without_its_key_is_refused(chart: str) -> None:
    assert "tls.existingSecret" in refusal(chart, {"tls": {"enabled": True}})
    assert "peerTLS.existingSecret" in refusal(chart, {"peerTLS": {"enabled": True}})
    nothing = {"peerAuth": "require", "clusterSecret": {"enabled": False}}
    assert "nothing to prove anything by" in refusal(chart, nothing)
    assert "issuerRef.name" in refusal(chart, {"certManager": {"enabled": True}})
    assert "/peerAuth" in refusal(chart, {"peerAuth": "yes"})
    assert "/tls/minVersion" in refusal(chart, {"tls": {"minVersion": "1.1"}})


def test_the_monitor_asks_by_tls() -> None:
    monitor = {"serviceMonitor": {"enabled": True}}
    for values, keys in (
        (TLS, {"serverName", "ca"}),
        (LOCKED, {"serverName", "ca", "cert", "keySecret"}),
    ):
        objects = render(HA, {**monitor, **values}, there={})
        (endpoint,) = objects["ServiceMonitor", "conure"]["spec"]["endpoints"]
        assert endpoint["scheme"] == "https"
        assert set(endpoint["tlsConfig"]) == keys
        assert endpoint["tlsConfig"]["serverName"] == "conure.shop.svc"


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_the_network_lets_in_members_and_clients(chart: str) -> None:
    values = {"profile": "kvstore", "networkPolicy": {"monitoring": [{"namespaceSelector": {}}]}}
    objects = render(chart, values)
    policy = objects["NetworkPolicy", "conure"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for (kind, _), one in objects.items():
        if kind in ("StatefulSet", "Job", "Pod"):
            template = one["spec"].get("template", one)
            is_member = kind == "StatefulSet"
            assert selects(policy["podSelector"]["matchLabels"], template) == is_member

    rules = {tuple(port["port"] for port in rule["ports"]): rule for rule in policy["ingress"]}
    clients = rules[("http", "resp", "rest", "metrics")]
    own, everybody = clients["from"]
    assert everybody == {"podSelector": {}}  # of this namespace
    for (kind, _), one in objects.items():
        if kind in ("StatefulSet", "Job", "Pod"):
            template = one["spec"].get("template", one)
            assert selects(own["podSelector"]["matchLabels"], template)
    assert rules[("metrics",)]["from"] == [{"namespaceSelector": {}}]
    assert (("raft",) in rules) == (chart == HA)
    if chart == HA:
        (members,) = rules[("raft",)]["from"]
        assert members["podSelector"] == policy["podSelector"]

    names, *others = policy["egress"]
    assert "to" not in names
    assert {(each["port"], each["protocol"]) for each in names["ports"]} == {
        (port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")
    }
    assert [each["to"] for each in others] == (
        [[{"podSelector": policy["podSelector"]}]] if chart == HA else []
    )
    anybody = render(chart, {"networkPolicy": {"clients": []}})["NetworkPolicy", "conure"]
    assert "from" not in anybody["spec"]["ingress"][-1]


# -- what is said ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_notes_say_how_locked_a_release_is(chart: str) -> None:
    said = notes(chart, there={})
    assert "prove themselves by the secret in conure-cluster\n" in said
    assert "plain HTTP, nobody is asked who they are" in said
    said = notes(chart, LOCKED, there={})
    assert "by the secret in my-cluster or the certificate in my-peers" in said
    assert "TLS by my-tls, with a certificate of their own" in said
    assert "curl --cacert ca.crt --cert tls.crt --key tls.key" in said
    values = yaml.safe_load((CHARTS / chart / "ci" / "open-values.yaml").read_text())
    assert notes(chart, values, there={}).count("OPEN") == 2
    outside = {"service": {"type": "LoadBalancer"}}
    assert "name those who come from outside in networkPolicy.clients" in notes(chart, outside)
