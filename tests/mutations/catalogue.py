"""All mutations, by the wing of the file that they are put into."""

from __future__ import annotations

from tests.mutations import (
    asking,
    charts,
    client,
    cluster,
    consensus,
    doors,
    forming,
    http,
    jobs,
    joins,
    kvctl,
    lsm,
    net,
    ops,
    paths,
    peers,
    proofs,
    resp,
    rest,
    service,
    state,
    storage,
    tables,
    tls,
)

__all__ = ["MUTATIONS"]

_WINGS = (
    asking,
    charts,
    client,
    cluster,
    consensus,
    doors,
    forming,
    http,
    jobs,
    joins,
    kvctl,
    lsm,
    net,
    ops,
    paths,
    peers,
    proofs,
    resp,
    rest,
    service,
    state,
    storage,
    tables,
    tls,
)

MUTATIONS = [mutation for wing in _WINGS for mutation in wing.MUTATIONS]
