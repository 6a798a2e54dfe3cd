"""What nodes prove themselves by to each other, as the settings ask for it: one for a process.

:class:`NodeProofs` turns settings into a secret (secret.py) and contexts (tls.py), which are read
again when their files change. Those that count now are asked for by each new connection: one that
is open stays open, whatever has become of the files, and whose certificate no CA of the file has
signed any more is refused the next time.

Made by the main thread; what is said of a member says who else may use it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence

from conure.config import Config
from conure.metrics import Registry
from conure.security.fronts import given
from conure.security.reloading import GivenFile, Reloaded, Watcher, warn_of_mode
from conure.security.secret import secrets_in
from conure.security.tls import ClientTls, ServerTls, expiries

__all__ = ["NodeProofs"]


class NodeProofs:
    """The secret and the certificate of this node, if it has them; *watcher* looks at their files,
    and *registry* has their metrics. Raises ConfigError."""

    client: Callable[[], ssl.SSLContext] | None = None
    server: Callable[[], ssl.SSLContext] | None = None
    """Return the context of a new connection that this node opens, or accepts; None where it has no
    certificate. Any thread."""

    def __init__(self, config: Config, watcher: Watcher, registry: Registry) -> None:
        self._secrets = _secrets(given(config, "cluster_secret_file"), watcher)
        cert, key = given(config, "peer_tls_cert"), given(config, "peer_tls_key")
        ca = given(config, "peer_tls_ca")
        if cert is None or key is None or ca is None:
            return
        client = ClientTls(ca, cert, key, "1.3", checks_names=True)
        server = ServerTls(cert, key, ca, "require", "1.3")
        watcher.add(client.look)
        watcher.add(server.look)
        self.client, self.server = lambda: client.context, lambda: server.context
        registry.labelled_callback(
            "conure_peer_tls_certificate_expiry_seconds",
            "gauge",
            "Seconds until a file's first certificate for other nodes expires; or since.",
            ("setting", "file"),
            lambda: list(expiries(server.files)),
        )

    def secrets(self) -> Sequence[bytes]:
        """Return the secrets that count now, the one for dialling first. Any thread."""
        return () if self._secrets is None else self._secrets.value


def _secrets(file: GivenFile | None, watcher: Watcher) -> Reloaded[tuple[bytes, ...]] | None:
    if file is None:
        return None

    def read() -> tuple[bytes, ...]:
        secrets = secrets_in(file)
        warn_of_mode(file)
        return secrets

    read_again = Reloaded([file], read)
    watcher.add(read_again.look)
    return read_again
