"""TLS of a node that asks other nodes' fronts: the seeds that are to add it.

They are checked by ``tls_ca``, or the system's CAs, and are shown the node's own certificate where
they ask for one. With ``tls_auto`` the trial's CA takes the place of ``tls_ca``, unless that is
given.

Made by the main thread; the context is for any.
"""

from __future__ import annotations

from conure.config import Config
from conure.security.fronts import given
from conure.security.reloading import GivenFile, Watcher
from conure.security.tls import ClientTls
from conure.security.trial import Trial
from conure.values import is_https

__all__ = ["tls_for_asking"]


def tls_for_asking(config: Config, trial: Trial | None, watcher: Watcher) -> ClientTls | None:
    """Return by what other nodes are asked, None for a node that has nothing to do with TLS; its
    files are looked at by *watcher*, *trial* is what --tls-auto has made. Raises ConfigError."""
    asks = bool(config.seeds or config.peers)
    if not (config.tls_ca or (asks and config.has_tls) or any(map(is_https, config.seeds))):
        return None
    ca, cert, key = (given(config, name) for name in ("tls_ca", "tls_cert", "tls_key"))
    if trial is not None:
        source = config.sources["tls_auto"]
        names = ("ca.pem", "server.pem", "server.key")
        own_ca, cert, key = (GivenFile("tls_auto", source, trial.path(name)) for name in names)
        ca = ca or own_ca
    tls = ClientTls(ca, cert, key)
    watcher.add(tls.look)
    return tls
