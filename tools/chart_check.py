#!/usr/bin/env python3
"""The Helm charts held to what they promise: what ``make chart-check`` runs.

Each chart is linted and rendered with its own values, with each ``ci/*-values.yaml`` and with what
the documents set on the command line; all that comes out is checked against the schemas of two
Kubernetes versions. Values that make no sense have to be refused, by name.

    python3 tools/chart_check.py

Needs ``helm`` on the PATH, and kubernetes-validate from requirements-dev.txt for the schemas; what
can't be done without them is skipped, in a line that says so. Custom resources have no schema
there: serviceMonitor is tried in tests/ops/test_charts.py.

Exit status: 0 if all is well or skipped, 1 at the first promise that is not kept.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path

import yaml
from steps import ROOT, Failed, run, step

CHARTS = ROOT / "charts"
KUBERNETES = ("1.25", "1.37")
"""The oldest and the newest that kubernetes-validate knows."""

RELEASE = "mydb"

DOCUMENTED = (
    ("conuredb-ha", "voters.replicas=3", "voters.pvc.size=20Gi"),
    (
        "conuredb-ha",
        "voters.replicas=5",
        "voters.pvc.size=100Gi",
        "voters.pvc.storageClassName=fast-ssd",
        "voters.resources.requests.cpu=500m",
        "voters.resources.requests.memory=1Gi",
    ),
    ("conuredb-ha", "image.tag=dev"),
    ("conuredb-ha", "voters.replicas=4", "arbiter.mode=never"),
    ("conuredb-ha", "voters.replicas=3", "arbiter.mode=always"),
    ("conuredb-ha", "voters.replicas=15"),
    ("conuredb-ha", "networkPolicy.enabled=true"),
    ("conuredb-single", "image.tag=v1.0.0", "pvc.size=5Gi"),
)

REFUSED = (
    # chart, what is set, what the refusal has to name (helm 4 writes /voters/replicas)
    ("conuredb-ha", "voters.replicas=1", "voters.replicas"),
    ("conuredb-ha", "voters.replicas=16", "voters.replicas"),
    ("conuredb-ha", "voters.replicas=three", "voters.replicas"),
    ("conuredb-ha", "voters.replicas=2,arbiter.mode=never", "voters.replicas is 2"),
    ("conuredb-ha", "voters.replcas=3", "replcas"),
    ("conuredb-ha", "replicas=3", "replicas"),
    ("conuredb-ha", "arbiter.mode=sometimes", "arbiter.mode"),
    ("conuredb-ha", "voters.pvc.size=plenty", "voters.pvc.size"),
    ("conuredb-ha", "voters.pvc.class=fast", "class"),
    ("conuredb-ha", "service.type=ExternalName", "service.type"),
    ("conuredb-ha", "service.port=0", "service.port"),
    ("conuredb-ha", "security.runAsUser=conure", "security.runAsUser"),
    ("conuredb-ha", "pdb.enabled=maybe", "pdb.enabled"),
    ("conuredb-ha", "fullnameOverride=My_DB", "fullnameOverride"),
    ("conuredb-ha", "scaling.timeoutSeconds=1", "scaling.timeoutSeconds"),
    ("conuredb-ha", "terminationGracePeriodSeconds=10", "terminationGracePeriodSeconds"),
    ("conuredb-ha", "image.pullPolicy=Sometimes", "image.pullPolicy"),
    ("conuredb-single", "replicas=3", "replicas is 3"),
    ("conuredb-single", "voters.replicas=3", "voters"),
    ("conuredb-single", "pvc.size=plenty", "pvc.size"),
)


def main() -> int:
    """Check the charts; return the exit status."""
    if shutil.which("helm") is None:
        print("skipped: the charts were not checked, because there is no helm on the PATH")
        return 0
    has_schemas = importlib.util.find_spec("kubernetes_validate") is not None
    if not has_schemas:
        print("skipped: no schemas, because kubernetes-validate is not installed (PyPI)")
    try:
        for chart in sorted(path.parent.name for path in CHARTS.glob("*/Chart.yaml")):
            check(chart, [], has_schemas)
            for values in sorted((CHARTS / chart / "ci").glob("*-values.yaml")):
                check(chart, ["-f", str(values.relative_to(ROOT))], has_schemas)
        for chart, *settings in DOCUMENTED:
            check(chart, [f"--set={setting}" for setting in settings], has_schemas)
        for chart, setting, named in REFUSED:
            with step(f"{chart}: refused, {setting}"):
                refuse(chart, setting, named)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def check(chart: str, arguments: list[str], has_schemas: bool) -> None:
    """Lint and render a chart, and hold what comes out to the schemas. Raises Failed."""
    with step(" ".join([f"{chart}:", *(arguments or ["its own values"])])) as tell:
        run("helm", "lint", "--strict", place(chart), *arguments)
        for version in KUBERNETES:
            text = run(
                "helm", "template", RELEASE, place(chart), f"--kube-version={version}", *arguments
            )
            objects = [found for found in yaml.safe_load_all(text) if found]
            names = [(found["kind"], found["metadata"]["name"]) for found in objects]
            if len(set(names)) < len(names):
                raise Failed(f"two objects of one kind and name: {sorted(names)}")
            if has_schemas:
                for found in objects:
                    validate(found, version)
        tell(f"{len(names)} objects")


def validate(found: dict[str, object], version: str) -> None:
    """Hold one object to its schema. Raises Failed."""
    schemas = importlib.import_module("kubernetes_validate")
    try:
        schemas.validate(found, version, strict=True)
    except (
        schemas.ValidationError,
        schemas.SchemaNotFoundError,
        schemas.InvalidSchemaError,
    ) as error:
        raise Failed(f"Kubernetes {version}, {found['kind']}: {error.message}") from error


def refuse(chart: str, setting: str, named: str) -> None:
    """See that helm refuses a setting and names it. Raises Failed."""
    said = run("helm", "template", RELEASE, place(chart), f"--set={setting}", status=1)
    if named not in said.replace("/", "."):
        raise Failed(f"{setting} was refused, but not by the name {named}:\n{said}")


def place(chart: str) -> str:
    """The chart's folder, as a user names it."""
    return f"./{Path('charts', chart)}"


if __name__ == "__main__":
    sys.exit(main())
