"""Profiles: other defaults under one name, and what the names of settings mean with them.

A profile changes defaults and nothing else: a setting that any source gives wins over it. It may
also let a name that users know from elsewhere mean another setting than it does without the
profile. What it then takes from a setting, another name of that setting gives back, which means
the same with every profile.

======== ===================================================================================
profile  is for
======== ===================================================================================
(none)   a node whose API is ``/kv``, on ``http_addr``
kvstore  a node that is asked by ``GET /key`` and by Redis clients, and keeps its records in
         an LSM tree; ``http_addr`` names the address of the former there, and ``api_addr``
         that of ``/kv``
======== ===================================================================================

``config.py`` reads this table, which knows settings by their names only. Nothing here has state:
any thread may read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = ["KVSTORE", "NONE", "PROFILES", "Profile", "profile_of"]


class Profile(NamedTuple):
    """One row of the table.

    *defaults* are by setting, as users write them. *meanings* are the names that mean another
    setting than the one that is called so. *called* is how users name a setting whose own name
    means another one.
    """

    name: str
    defaults: Mapping[str, str] = MappingProxyType({})
    meanings: Mapping[str, str] = MappingProxyType({})
    called: Mapping[str, str] = MappingProxyType({})


NONE: Final = Profile("")

KVSTORE: Final = Profile(
    "kvstore",
    {
        "http_addr": "127.0.0.1:8081",
        "rest_addr": ":8080",
        "resp_addr": ":9090",
        "metrics_addr": ":2112",
        "engine": "lsm",
        "data_dir": "./data",
        # Nobody but this machine reaches http_addr: a redirect there would lead others astray.
        "follower_mode": "forward",
    },
    meanings={"http_addr": "rest_addr"},
    called={"http_addr": "api_addr"},
)

PROFILES: Final = (KVSTORE,)
"""All that have a name."""


def profile_of(text: str) -> str:
    """Return the name of a profile, "" of none. Raises ValueError with the remedy."""
    if text and text not in {profile.name for profile in PROFILES}:
        known = ", ".join(profile.name for profile in PROFILES)
        raise ValueError(f'{text!r} is no profile; there is {known}, or "" for none')
    return text
