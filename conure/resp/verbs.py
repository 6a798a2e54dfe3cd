"""The table of data commands by name. Nothing here has state."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from conure.resp.keyverbs import KEY_VERBS
from conure.resp.scripts import SCRIPT_VERBS
from conure.resp.stringverbs import STRING_VERBS
from conure.resp.verb import Verb

__all__ = ["VERBS"]

VERBS: Final[Mapping[str, Verb]] = MappingProxyType(
    {verb.name: verb for verb in (*STRING_VERBS, *KEY_VERBS, *SCRIPT_VERBS)}
)
"""By name, in small letters. A verb of a container has a space in it: ``script load``."""
