"""The Helm charts: rendered by helm's own library, and held to the code and to the documents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conure import VERSION
from conure.config import Config, load
from conure.ops import scaling
from conure.values import Address
from tests.lab.charts import (
    CHARTS,
    HA,
    SINGLE,
    Object,
    Objects,
    container,
    environment,
    pods,
    refusal,
    render,
    selects,
)
from tests.lab.process import ROOT, running

# -- the documents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_a_chart_runs_the_version_it_is_beside(chart: str) -> None:
    facts = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
    assert facts["appVersion"] == facts["version"] == VERSION
    for pod in pods(render(chart)).values():
        assert pod["containers"][0]["image"] == f"conuredb/conuredb:{VERSION}"


def test_the_documented_names() -> None:
    objects = render(HA, {"voters": {"replicas": 4}}, revision=7)
    for wanted in [
        ("Service", "conure"),
        ("Service", "conure-hs"),
        ("StatefulSet", "conure-bootstrap"),
        ("StatefulSet", "conure"),
        ("StatefulSet", "conure-arbiter"),
        ("Job", "conure-pre-scale-7"),
        ("PodDisruptionBudget", "conure"),
    ]:
        assert wanted in objects
    (waiting,) = pods(objects)["conure"]["initContainers"]
    assert waiting["name"] == "wait-for-bootstrap"
    for one in objects.values():
        assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "conuredb"
        template = one["spec"].get("template", one)
        assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "conuredb"


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_two_releases_fit_in_a_namespace(chart: str) -> None:
    values = {"fullnameOverride": ""}
    first, second = render(chart, values, name="a"), render(chart, values, name="b")
    assert not set(first) & set(second)
    assert ("Service", "a-conure") in first
    for (kind, _), one in first.items():
        if kind == "Service":
            for other in second.values():
                assert not selects(one["spec"]["selector"], other["spec"].get("template", other))


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_every_value_is_used_and_known_to_the_schema(chart: str) -> None:
    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    templates = "".join(path.read_text() for path in (CHARTS / chart / "templates").rglob("*.*"))
    assert set(schema["properties"]) == set(values) | {"global"}
    for name, value in values.items():
        assert f".Values.{name}" in templates
        properties = schema["properties"][name].get("properties")
        if isinstance(value, dict) and properties:
            assert set(properties) == set(value)


def test_what_both_charts_define_is_the_same() -> None:
    defined = []
    for chart in (HA, SINGLE):
        text = "".join(path.read_text() for path in (CHARTS / chart / "templates").glob("_*.tpl"))
        defined.append(
            dict(re.findall(r'(?ms)^\{\{- define "(\S+)" -\}\}(.*?)^\{\{- end -\}\}$', text))
        )
    own = {"conuredb.podCommon", "conuredb.peerAuth", "conuredb.servesTls"}
    shared = set(defined[0]) & set(defined[1]) - own
    assert len(shared) >= 30
    for name in shared:
        assert defined[0][name] == defined[1][name]


# -- the code --------------------------------------------------------------------------------------


def test_the_servers_take_what_the_charts_tell_them() -> None:
    values = {"voters": {"replicas": 4}, "extraArgs": ["--read-mode=lease"]}
    objects = render(HA, values)
    for pod, role in [
        ("conure-bootstrap", "data"),
        ("conure", "data"),
        ("conure-arbiter", "arbiter"),
    ]:
        server = container(objects, pod)
        args = server["args"]
        if pod == "conure-bootstrap":
            assert server["command"] == ["python3", "/app/scaling.py", "begin"]
            args = scaling._parser().parse_args([*server["command"][2:], *args]).flags
        config = load(args, environment(server, f"{pod}-0"))
        assert config.node_id == f"{pod}-0"
        assert config.role == role
        assert not config.bootstrap  # only scaling.py decides that
        assert config.read_mode == "lease"
        assert config.follower_mode == "forward"
        assert config.data_dir == server["volumeMounts"][0]["mountPath"] == "/var/lib/conure"
        assert config.raft_advertised(7001) == f"{pod}-0.conure-hs.shop.svc:7001"
        assert config.http_advertised(8081) == f"http://{pod}-0.conure-hs.shop.svc:8081"
        assert config.seeds == (
            "http://conure.shop.svc:8081",
            "http://conure-bootstrap-0.conure-hs.shop.svc:8081",
        )
        assert not config.ignored_environment

    config = load([], environment(container(render(SINGLE), "conure"), "conure-0"))
    assert config.bootstrap
    assert config.node_id == "conure-0"
    assert config.raft_advertised(7001) == "conure-0.conure-hs.shop.svc:7001"


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_any_setting_reaches_the_server_as_a_variable_or_as_a_flag(chart: str) -> None:
    values = {
        "extraEnv": [
            {"name": "CONURE_MAX_WATCHES", "value": "7"},
            {"name": "CONURE_WATCH_HISTORY_BYTES", "value": "8MiB"},
            {"name": "CONURE_IDEMPOTENCY_WINDOW", "value": "1m"},
        ],
        "extraArgs": ["--max-scans=3", "--max-range-items=9"],
    }
    server = container(render(chart, values), "conure")
    config = load(server["args"], environment(server, "conure-0"))
    assert (config.max_watches, config.watch_history_bytes) == (7, 8 << 20)
    assert (config.idempotency_window, config.max_scans, config.max_range_items) == (60.0, 3, 9)
    assert not config.ignored_environment


def test_a_quorum_size_reaches_the_servers() -> None:
    for values, size in (({}, 0), ({"quorumSize": 3}, 3)):
        server = container(render(HA, values), "conure")
        config = load([], environment(server, "conure-0"))
        assert config.quorum_size == size
        assert not config.ignored_environment


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_an_engine_reaches_the_servers_and_nothing_is_said_of_none(chart: str) -> None:
    for values, told in (({}, False), ({"engine": "lsm", "maxMemSize": "3MB"}, True)):
        server = container(render(chart, values), "conure")
        config = load([], environment(server, "conure-0"))
        assert config.told_engine == told
        assert config.engine == ("lsm" if told else "btree")
        assert config.max_mem_size == (3_000_000 if told else 10_000_000)
        assert not config.ignored_environment


FRONTS = {"resp": 9090, "rest": 8080, "metrics": 2112}


def fronts_of(config: Config) -> dict[str, Address | None]:
    return {name: getattr(config, f"{name}_addr") for name in FRONTS}


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_a_profile_reaches_the_servers_and_opens_its_ports(chart: str) -> None:
    values = {"profile": "kvstore", "rest": {"enabled": False, "port": 80}}
    objects = render(chart, values)
    server = container(objects, "conure")
    config = load(server.get("args", []), environment(server, "conure-0"))
    assert not config.ignored_environment
    assert (config.profile, config.engine) == ("kvstore", "lsm")
    assert config.http_addr == ("", 8081), "the probes and the other pods ask there"
    assert fronts_of(config) == {name: ("", port) for name, port in FRONTS.items()}
    inside = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert inside == {"http": 8081, "raft": 7001, **FRONTS}
    ports = {port["name"]: port for port in objects["Service", "conure"]["spec"]["ports"]}
    assert {name: port["port"] for name, port in ports.items()} == {
        "http": 8081, "resp": 9090, "rest": 80, "metrics": 2112,
    }  # fmt: skip
    assert all(port["targetPort"] == name for name, port in ports.items())
    behind = objects["Service", "conure-hs"]["spec"]["ports"]
    assert {port["name"]: port["port"] for port in behind} == inside


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_a_port_of_its_own_for_each_front(chart: str) -> None:
    for front, port in FRONTS.items():
        objects = render(chart, {front: {"enabled": True, "port": 1234}})
        server = container(objects, "conure")
        config = load([], environment(server, "conure-0"))
        assert config.engine == "btree"
        assert fronts_of(config) == {**dict.fromkeys(FRONTS), front: ("", port)}
        ports = {
            each["name"]: each["port"] for each in objects["Service", "conure"]["spec"]["ports"]
        }
        assert ports == {"http": 8081, front: 1234}
    config = load([], environment(container(render(chart), "conure"), "conure-0"))
    assert fronts_of(config) == dict.fromkeys(FRONTS)
    assert not config.ignored_environment


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_an_engine_wins_over_the_profile(chart: str) -> None:
    objects = render(chart, {"profile": "kvstore", "engine": "btree"})
    config = load([], environment(container(objects, "conure"), "conure-0"))
    assert (config.engine, config.told_engine) == ("btree", True)
    assert "/profile" in refusal(chart, {"profile": "kvstor"})


def test_the_monitor_asks_at_the_port_of_metrics_if_there_is_one() -> None:
    for values, port in (({}, "http"), ({"metrics": {"enabled": True}}, "metrics")):
        objects = render(HA, {"serviceMonitor": {"enabled": True}, **values})
        (endpoint,) = objects["ServiceMonitor", "conure"]["spec"]["endpoints"]
        assert endpoint["port"] == port


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_what_helm_test_runs_puts_and_gets(chart: str, tmp_path: Path) -> None:
    one = container(render(chart), "conure-test")
    assert one["workingDir"] == "/app"
    program, *words, url = one["command"]
    assert (program, url) == ("python3", "http://conure.shop.svc:8081")
    with running(tmp_path, "--bootstrap") as server:
        command = [sys.executable, *words, server.url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bare_founder_gets_no_flags() -> None:
    server = container(render(HA), "conure-bootstrap")
    assert scaling._parser().parse_args([*server["command"][2:], *server["args"]]).flags == []


def test_scaling_takes_what_the_charts_tell_it() -> None:
    objects = render(HA, {"voters": {"replicas": 4}, "service": {"port": 80}}, revision=3)
    parse = scaling._parser().parse_args

    server = container(objects, "conure-bootstrap")
    begin = parse([*server["command"][2:], *server["args"]])
    names = scaling.Names("conure", "conure-hs.shop.svc", 4, True)
    assert begin.data_dir == "/var/lib/conure"
    assert begin.peers == names.domain
    assert begin.witness == [names.url("conure-0"), names.url("conure-1")]

    (waiting,) = pods(objects)["conure"]["initContainers"]
    wait = parse([*waiting["command"][2:], *waiting["args"]])
    assert f"http://{wait.host}:8081" == names.url("conure-bootstrap-0")
    assert wait.server == "http://conure.shop.svc:80"

    job = container(objects, "conure-pre-scale-3")
    resize = parse([*job["command"][2:], *job["args"]])
    assert (resize.name, resize.domain) == (names.name, names.domain)
    assert (resize.voters, resize.arbiter) == (4, "true")
    limit = objects["Job", "conure-pre-scale-3"]["spec"]["activeDeadlineSeconds"]
    assert resize.timeout < limit < 300  # helm's own time-out

    settles = []
    for pod in ("conure", "conure-bootstrap", "conure-arbiter"):
        leave = parse(container(objects, pod)["lifecycle"]["preStop"]["exec"]["command"][2:])
        assert leave.command == "leave"
        assert leave.timeout + 20 <= pods(objects)[pod]["terminationGracePeriodSeconds"]
        settles.append(leave.settle)
    assert settles == sorted(set(settles))  # no two controllers have the same patience


def test_the_members_that_scaling_wants_are_the_pods_there_are() -> None:
    for replicas in (2, 3, 4, 7):
        for mode in ("auto", "always"):
            objects = render(HA, {"voters": {"replicas": replicas}, "arbiter": {"mode": mode}})
            there = {
                f"{name}-{ordinal}"
                for (kind, name), one in objects.items()
                if kind == "StatefulSet"
                for ordinal in range(one["spec"]["replicas"])
            }
            job = container(objects, "conure-pre-scale-1")
            options = scaling._parser().parse_args([*job["command"][2:], *job["args"]])
            names = scaling.Names("conure", "", options.voters, options.arbiter == "true")
            assert set(names.wanted) == there


# -- design rules ----------------------------------------------------------------------------------


def test_scaling_restarts_no_member() -> None:
    """The pods' template doesn't depend on how many there are."""
    three, five, four = (render(HA, {"voters": {"replicas": n}}) for n in (3, 5, 4))
    for name in ("conure", "conure-bootstrap"):
        template = three["StatefulSet", name]["spec"]["template"]
        assert template == five["StatefulSet", name]["spec"]["template"]
        assert template == four["StatefulSet", name]["spec"]["template"]


@pytest.mark.parametrize(
    ("replicas", "mode", "arbiter"),
    [
        (2, "auto", True),
        (3, "auto", False),
        (4, "auto", True),
        (5, "auto", False),
        (3, "always", True),
        (4, "never", False),
    ],
)
def test_an_arbiter_is_there_when_it_is_wanted(replicas: int, mode: str, arbiter: bool) -> None:
    objects = render(HA, {"voters": {"replicas": replicas}, "arbiter": {"mode": mode}})
    assert (("StatefulSet", "conure-arbiter") in objects) == arbiter
    assert objects["StatefulSet", "conure"]["spec"]["replicas"] == replicas - 1


def test_what_makes_no_sense_is_refused_by_name() -> None:
    two = {"voters": {"replicas": 2}, "arbiter": {"mode": "never"}}
    assert "voters.replicas is 2 and arbiter.mode is never" in refusal(HA, two)
    assert "/voters/replicas" in refusal(HA, {"voters": {"replicas": 1}})
    assert "'replcas' not allowed" in refusal(HA, {"voters": {"replcas": 3}})
    assert "/arbiter/mode" in refusal(HA, {"arbiter": {"mode": "no"}})
    assert "the chart conuredb-ha" in refusal(SINGLE, {"replicas": 3})
    assert "'voters' not allowed" in refusal(SINGLE, {"voters": {"replicas": 3}})


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_every_pod_has_no_rights_to_speak_of(chart: str) -> None:
    for pod in pods(render(chart, {"voters": {"replicas": 4}} if chart == HA else {})).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["fsGroup"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in pod["containers"] + pod.get("initContainers", []):
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
    kinds = {kind for kind, _ in render(chart)}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ServiceAccount", "Secret"}


def test_a_security_field_that_is_null_is_left_out() -> None:
    values = {"security": {"runAsUser": None, "fsGroup": None}}
    context = pods(render(HA, values))["conure"]["securityContext"]
    assert "runAsUser" not in context
    assert "fsGroup" not in context
    assert context["runAsNonRoot"] is True


def test_health_is_asked_of_the_right_pages() -> None:
    for objects, names in [
        (render(HA, {"voters": {"replicas": 4}}), ("conure", "conure-bootstrap", "conure-arbiter")),
        (render(SINGLE), ("conure",)),
    ]:
        for name in names:
            server = container(objects, name)
            assert server["livenessProbe"]["httpGet"]["path"] == "/livez"
            assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
            start = server["startupProbe"]
            assert start["httpGet"]["path"] == "/livez"
            assert start["periodSeconds"] * start["failureThreshold"] >= 600


def test_services_and_the_budget_find_the_right_pods() -> None:
    objects = render(HA, {"voters": {"replicas": 4}})
    clients = objects["Service", "conure"]["spec"]["selector"]
    members = objects["Service", "conure-hs"]["spec"]
    budget = objects["PodDisruptionBudget", "conure"]["spec"]
    assert members["clusterIP"] == "None"
    assert members["publishNotReadyAddresses"] is True
    assert budget["maxUnavailable"] == 1
    for (kind, name), one in objects.items():
        if kind == "Service":
            continue
        template = one["spec"].get("template", one)
        is_member = kind == "StatefulSet"
        assert selects(clients, template) == (is_member and name != "conure-arbiter")
        assert selects(members["selector"], template) == is_member
        assert selects(budget["selector"]["matchLabels"], template) == is_member
        if is_member:
            assert one["spec"]["podManagementPolicy"] == "Parallel"
            assert one["spec"]["serviceName"] == "conure-hs"
            assert selects(one["spec"]["selector"]["matchLabels"], template)
            others = [o for (k, n), o in objects.items() if k == "StatefulSet" and n != name]
            for other in others:
                own = one["spec"]["selector"]["matchLabels"]
                assert not selects(own, other["spec"]["template"])


def test_members_go_before_their_pods() -> None:
    job = render(HA)["Job", "conure-pre-scale-1"]
    hooks = job["metadata"]["annotations"]
    assert hooks["helm.sh/hook"] == "pre-upgrade,pre-rollback"
    assert hooks["helm.sh/hook-delete-policy"] == "before-hook-creation"  # its log stays
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_what_is_off_by_default() -> None:
    assert "ServiceMonitor" not in {kind for kind, _ in render(HA)}

    objects = render(
        HA,
        {
            "pdb": {"enabled": False},
            "serviceMonitor": {"enabled": True, "labels": {"team": "db"}},
            "networkPolicy": {"enabled": True, "clients": [{"podSelector": {}}]},
        },
    )
    assert ("PodDisruptionBudget", "conure") not in objects
    monitor = objects["ServiceMonitor", "conure"]
    assert monitor["metadata"]["labels"]["team"] == "db"
    watched = [
        name
        for (kind, name), one in objects.items()
        if kind == "Service" and selects(monitor["spec"]["selector"]["matchLabels"], one)
    ]
    assert watched == ["conure-hs"]
    raft, http = objects["NetworkPolicy", "conure"]["spec"]["ingress"]
    (own,) = raft["from"]
    assert own["podSelector"]["matchLabels"]["conuredb.dev/member"] == "true"
    assert {"podSelector": {}} in http["from"]
    job = objects["Job", "conure-pre-scale-1"]["spec"]["template"]
    assert any(selects(peer["podSelector"].get("matchLabels", {"no": "no"}), job)
               for peer in http["from"])  # fmt: skip


@pytest.mark.parametrize("chart", [HA, SINGLE])
def test_a_port_for_redis_clients_is_there_if_it_is_asked_for(chart: str) -> None:
    values = {"resp": {"enabled": True, "port": 6379}, "networkPolicy": {"enabled": True}}
    if chart == SINGLE:
        del values["networkPolicy"]

    def ports(objects: Objects, name: str) -> dict[str, Object]:
        return {port["name"]: port for port in objects["Service", name]["spec"]["ports"]}

    plain, asked = render(chart), render(chart, values)
    for pod in pods(plain).values():
        for each in pod["containers"]:
            assert "resp" not in [port["name"] for port in each.get("ports", [])]
            assert "CONURE_RESP_ADDR" not in [one["name"] for one in each.get("env", [])]
    for name in ("conure", "conure-hs"):
        assert "resp" not in ports(plain, name)
        assert ports(asked, name)["resp"]["targetPort"] == "resp"
    assert ports(asked, "conure")["resp"]["port"] == 6379
    served = container(asked, "conure")
    (port,) = [port for port in served["ports"] if port["name"] == "resp"]
    given = environment(served, "conure-0")
    settings = load([], given)
    assert settings.resp_addr is not None
    assert settings.resp_addr.port == port["containerPort"]
    if chart == HA:
        _, clients = asked["NetworkPolicy", "conure"]["spec"]["ingress"]
        assert "resp" in [each["port"] for each in clients["ports"]]


@pytest.mark.parametrize("chart", [HA, SINGLE])
@pytest.mark.parametrize("front", FRONTS)
def test_the_port_of_a_front_is_there_for_whoever_asks_for_it(chart: str, front: str) -> None:
    for is_on in (False, True):
        values: Object = {front: {"enabled": True, "port": 4321}} if is_on else {}
        if chart == HA:
            values |= {"networkPolicy": {"enabled": True}}
        objects = render(chart, values)
        server = container(objects, "conure")
        config = load([], environment(server, "conure-0"))
        listening = getattr(config, f"{front}_addr")
        assert (listening is not None) is is_on
        ports = {port["name"]: port["containerPort"] for port in server["ports"]}
        assert ports.get(front) == (listening.port if is_on else None)
        for name, port in (("conure", 4321), ("conure-hs", ports.get(front))):
            offered = {
                each["name"]: (each["port"], each["targetPort"])
                for each in objects["Service", name]["spec"]["ports"]
            }
            assert offered.get(front) == ((port, front) if is_on else None)
        if chart == HA:
            _, clients = objects["NetworkPolicy", "conure"]["spec"]["ingress"]
            assert ({"port": front} in clients["ports"]) is is_on


def test_where_pods_go() -> None:
    spread = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    objects = render(
        HA,
        {
            "nodeSelector": {"node-type": "database"},
            "tolerations": [{"key": "database", "operator": "Exists"}],
            "topologySpreadConstraints": [spread],
            "priorityClassName": "high",
            "podAnnotations": {"a": "b"},
        },
    )
    pod = pods(objects)["conure"]
    assert pod["nodeSelector"] == {"node-type": "database"}
    assert pod["tolerations"] == [{"key": "database", "operator": "Exists"}]
    assert pod["priorityClassName"] == "high"
    template = objects["StatefulSet", "conure"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"a": "b"}
    (constraint,) = pod["topologySpreadConstraints"]
    assert constraint.items() >= spread.items()
    assert selects(constraint["labelSelector"]["matchLabels"], template)
    apart = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert selects(apart[0]["podAffinityTerm"]["labelSelector"]["matchLabels"], template)

    own: Object = {"nodeAffinity": {}}
    assert pods(render(HA, {"affinity": own}))["conure"]["affinity"] == own
