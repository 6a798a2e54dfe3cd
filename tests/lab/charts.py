"""The Helm charts as tests see them: rendered by helm's own library, without a cluster.

``render`` gives a chart's objects by kind and name. What a template looks up in the cluster is
told to it as *there*: helm's library answers no ``lookup``, so the charts are rendered from a copy
in which each of them reads from that instead.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import helm_python
import pytest
import yaml

from tests.lab.process import ROOT

__all__ = [
    "CHARTS",
    "HA",
    "SINGLE",
    "Object",
    "Objects",
    "container",
    "environment",
    "notes",
    "pods",
    "refusal",
    "render",
    "selects",
]

CHARTS = ROOT / "charts"
HA, SINGLE = "conuredb-ha", "conuredb-single"

Object = dict[str, Any]
Objects = dict[tuple[str, str], Object]

_LOOKUP = re.compile(
    r"""lookup\ "[\w/]+"\ "(?P<kind>\w+)"\ (?P<root>[$\w]*)\.Release\.Namespace
    \ (?P<name>\$\w+|""|\(include\ "[\w.]+"\ [$.\w]+\)|\.\w+)""",
    re.VERBOSE,
)


def files(
    chart: str,
    values: Object | None = None,
    *,
    there: Mapping[tuple[str, str], Object] | None = None,
    name: str = "mydb",
    **options: Any,
) -> dict[str, str]:
    """What each template of a chart makes, by its name; *there*: what it finds in the cluster."""
    with tempfile.TemporaryDirectory() as folder:
        place = CHARTS / chart
        given = values or {}
        if there is not None:
            place = Path(shutil.copytree(place, Path(folder, chart)))
            _answer_lookups(place)
            answers = {f"{kind}/{one}": found for (kind, one), found in there.items()}
            answers["Service/"] = {"kind": "ServiceList", "items": []}
            given = {**given, "global": {"there": answers}}
        with helm_python.Chart.load(str(place)) as loaded:
            return loaded.render(given, name=name, namespace="shop", **options)


def _answer_lookups(place: Path) -> None:
    for template in (place / "templates").rglob("*.*"):
        text = template.read_text()
        replaced, count = _LOOKUP.subn(
            r"(get \g<root>.Values.global.there "
            r'(printf "\g<kind>/%s" \g<name>) | default dict)',
            text,
        )
        assert count == len(re.findall(r"[( ]lookup ", text)), template
        template.write_text(replaced)


def render(chart: str, values: Object | None = None, **options: Any) -> Objects:
    """The objects of a chart, by kind and name. *options* are those of ``files``."""
    made = files(chart, values, **options)
    texts = (text for file, text in made.items() if file.endswith(".yaml"))
    objects = [o for text in texts for o in yaml.safe_load_all(text) if o]
    found = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    assert len(found) == len(objects)
    return found


def notes(chart: str, values: Object | None = None, **options: Any) -> str:
    """What an installation says at its end. *options* are those of ``files``."""
    (text,) = (
        text for file, text in files(chart, values, **options).items() if file.endswith("NOTES.txt")
    )
    return text


def refusal(chart: str, values: Object, **options: Any) -> str:
    """What a chart says that refuses these values."""
    with pytest.raises(helm_python.HelmError) as refused:
        render(chart, values, **options)
    return str(refused.value)


def pods(objects: Objects) -> dict[str, Object]:
    """The specifications of all pods, by the name of what makes them."""
    found = {}
    for (kind, name), one in objects.items():
        if kind in ("StatefulSet", "Job"):
            found[name] = one["spec"]["template"]["spec"]
        elif kind == "Pod":
            found[name] = one["spec"]
    return found


def container(objects: Objects, pod: str) -> Object:
    (only,) = pods(objects)[pod]["containers"]
    return cast(Object, only)


def environment(one: Object, pod: str) -> dict[str, str]:
    """A container's environment, as it is in the pod of that name."""
    found: dict[str, str] = {}
    for variable in one["env"]:
        value = variable.get("value", pod)
        found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda m: found[m[1]], value)
    return found


def selects(selector: Object, template: Object) -> bool:
    labels = template["metadata"]["labels"]
    return all(labels.get(name) == value for name, value in selector.items())
