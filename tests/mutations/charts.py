"""Faults of the Helm charts' locks."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

_HELPERS = "charts/conuredb-ha/templates/_helpers.tpl"
_DOORS = "charts/conuredb-ha/templates/_doors.tpl"
_TESTS = ("tests/ops/test_chart_doors.py",)

MUTATIONS = [
    Mutation(
        "an open release requires a proof at once",
        _HELPERS,
        '{{- if or (eq $before "open") (and',
        '{{- if or (eq $before "shut") (and',
        _TESTS,
    ),
    Mutation(
        "a release requires a proof before all pods can give one",
        _HELPERS,
        '(and (eq $before "offer") (not (include "conuredb.isRolledOut" $set)))',
        '(eq $before "of")',
        _TESTS,
    ),
    Mutation(
        "TLS is served before the pods that run can speak it",
        _HELPERS,
        '{{- if and $set (not (include "conuredb.told"',
        '{{- if and false $set (not (include "conuredb.told"',
        _TESTS,
    ),
    Mutation(
        "the cluster secret is made anew at each upgrade",
        "charts/conuredb-ha/templates/secret.yaml",
        '{{- if not (lookup "v1" "Secret" .Release.Namespace $name) }}',
        "{{- if true }}",
        _TESTS,
    ),
    Mutation(
        "a renderer that cannot look makes a secret each time",
        "charts/conuredb-ha/templates/secret.yaml",
        ' (include "conuredb.canLook" .)',
        "",
        _TESTS,
    ),
    Mutation(
        "an upgrade takes pods away whose secret is missing",
        _DOORS,
        '{{- if not (hasKey (dig "data" dict $found) $key) -}}',
        "{{- if false -}}",
        _TESTS,
    ),
    Mutation(
        "an upgrade after which pods would not let each other in is tried",
        "charts/conuredb-ha/templates/checks.yaml",
        "{{- if not (or $open",
        "{{- if not (or true $open",
        _TESTS,
    ),
    Mutation(
        "every pod of the namespace reaches the Raft port",
        "charts/conuredb-ha/templates/networkpolicy.yaml",
        """              conuredb.dev/member: "true"
    # Clients""",
        "    # Clients",
        _TESTS,
    ),
]
