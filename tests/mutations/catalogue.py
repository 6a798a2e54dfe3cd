"""All mutations, by the wing of the file that they are put into."""

from __future__ import annotations

from tests.mutations import (
    charts,
    client,
    cluster,
    consensus,
    forming,
    http,
    jobs,
    kvctl,
    lsm,
    net,
    ops,
    paths,
    peers,
    resp,
    rest,
    service,
    state,
    storage,
    tables,
)

__all__ = ["MUTATIONS"]

_WINGS = (
    charts,
    client,
    cluster,
    consensus,
    forming,
    http,
    jobs,
    kvctl,
    lsm,
    net,
    ops,
    paths,
    peers,
    resp,
    rest,
    service,
    state,
    storage,
    tables,
)

MUTATIONS = [mutation for wing in _WINGS for mutation in wing.MUTATIONS]
