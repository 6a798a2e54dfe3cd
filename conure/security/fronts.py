"""TLS for clients, as the settings ask for it: one for all fronts of a process.

:func:`given` and :class:`FrontTls` turn settings into what the files beside this one know of. Links
are none of its business: a listener makes them of :attr:`FrontTls.context`, and tells
:meth:`FrontTls.failed` of handshakes that came to nothing.

Made by the main thread; what is said of a method says who else may call it.
"""

from __future__ import annotations

import os
import ssl

from conure.config import Config
from conure.metrics import Registry
from conure.security.handshakes import Handshakes
from conure.security.reloading import GivenFile, Watcher
from conure.security.tls import ServerTls, expiries
from conure.security.trial import Trial

__all__ = ["FrontTls", "given"]


class FrontTls:
    """TLS of a node's fronts; its files are looked at by *watcher*, and its metrics are in
    *registry*. *hosts* name this node, for certificates that it makes itself. Raises
    ConfigError."""

    def __init__(
        self, config: Config, hosts: tuple[str, ...], watcher: Watcher, registry: Registry
    ) -> None:
        self.trial = _trial(config, hosts)
        """What --tls-auto has made, if it has."""
        if self.trial is not None:
            self.trial.renew()
            watcher.add(self.trial.look)
        self._server = _server(config, self.trial)
        watcher.add(self._server.look)
        handshakes = Handshakes(lambda: self._server.shown)
        self.failed = handshakes.failed
        """Is told front, client's address and reason of a handshake that failed. Any thread."""
        registry.labelled_callback(
            "conure_tls_certificate_expiry_seconds",
            "gauge",
            "Seconds until the first certificate of a file expires; below 0: since it has.",
            ("setting", "file"),
            lambda: list(expiries(self._server.files)),
        )
        registry.labelled_callback(
            "conure_tls_handshake_failures_total",
            "counter",
            "Handshakes with clients that had begun and came to nothing.",
            ("front",),
            lambda: [((front,), count) for front, count in handshakes.failures.items()],
        )

    @property
    def context(self) -> ssl.SSLContext:
        """The context of new connections. Any thread."""
        return self._server.context


def given(config: Config, setting: str) -> GivenFile | None:
    """Return the file that a setting names, if it names one."""
    path = getattr(config, setting)
    return GivenFile(config.called(setting), config.sources[setting], path) if path else None


def _trial(config: Config, hosts: tuple[str, ...]) -> Trial | None:
    if not config.tls_auto:
        return None
    place = os.path.join(config.data_dir, "tls")
    has_client = config.tls_client_auth != "none"
    return Trial(place, hosts, config.sources["tls_auto"], has_client=has_client)


def _server(config: Config, trial: Trial | None) -> ServerTls:
    if trial is None:
        cert, key = given(config, "tls_cert"), given(config, "tls_key")
        ca = given(config, "tls_client_ca")
    else:
        source = config.sources["tls_auto"]
        cert, key, ca = (
            GivenFile("tls_auto", source, trial.path(name))
            for name in ("server.pem", "server.key", "ca.pem")
        )
    assert cert is not None
    assert key is not None
    return ServerTls(
        cert,
        key,
        ca if config.tls_client_auth != "none" else None,
        config.tls_client_auth,
        config.tls_min_version,
    )
