"""For a trial: a CA and certificates that are made on the spot, and thrown away with the data.

::

    data_dir/tls/
      ca.pem      ca.key        the CA, for ten years
      server.pem  server.key    for the names of this node and this machine, 90 days at a time
      client.pem  client.key    for a client, as long; made where clients have to show one

Keys are for their owner alone (0600). What is there is used on, across restarts; a certificate is
made anew when a third of its time is left, when its CA is another one or when a name is missing,
and takes the place of the old one whole. The program ``openssl`` makes them: the standard library
can use certificates, and make none.

Whoever reads ca.key can pretend to be this server, and one CA per node is nothing that nodes could
know each other by: this is for a trial.

One thread at a time.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import ssl
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from time import time
from typing import Final

from conure.errors import ConfigError
from conure.security.x509 import Facts, certificates_in, facts_of

__all__ = ["Trial"]

_DAYS, _CA_DAYS = 90, 3650
_DAY: Final = 86400.0
_PATIENCE: Final = 30.0  # seconds for openssl, which takes a tenth of one
_IS_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?").fullmatch

_CONFIGURATION: Final = """\
[req]
distinguished_name = subject
x509_extensions = ca
prompt = no
[subject]
CN = {name}
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
authorityKeyIdentifier = keyid
subjectAltName = {alternatives}
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
subjectAltName = {alternatives}
"""

log = logging.getLogger("conure.security")


class Trial:
    """The files in *place*, a directory. *hosts* are names and addresses of the server; with
    *has_client* there is a client's certificate as well. *source* is where the setting was given.
    """

    def __init__(self, place: str, hosts: Iterable[str], source: str, *, has_client: bool) -> None:
        self.place = place
        names = [host for host in map(_usable, hosts) if host]
        self._names = list(dict.fromkeys(["localhost", "127.0.0.1", "::1", *names]))
        self._source = source
        self._has_client = has_client

    def path(self, name: str) -> str:
        """Return where a file is, such as ``ca.pem``."""
        return os.path.join(self.place, name)

    def renew(self) -> bool:
        """Make what is missing, or soon will be of no use; return whether anything was. Raises
        ConfigError."""
        try:
            return self._renew()
        except OSError as error:
            raise self._error(f"can't make certificates in {self.place}: {error}") from error

    def look(self) -> None:
        """Do the same later on: what can't be made now is logged, and tried again."""
        try:
            self.renew()
        except ConfigError as error:
            log.error("%s", error)

    def how_to_ask(self, url: str) -> str:
        """Return the command line of a client that asks the server at a base URL."""
        words = ["curl", "--cacert", self.path("ca.pem")]
        if self._has_client:
            words += ["--cert", self.path("client.pem"), "--key", self.path("client.key")]
        return " ".join([*words, f"{url}/status"])

    # -- private ---------------------------------------------------------------------------------

    def _renew(self) -> bool:
        os.makedirs(self.place, mode=0o700, exist_ok=True)
        ca = self._usable_facts("ca")
        is_new = ca is None
        if ca is None:
            name = f"ConureDB trial CA {secrets.token_hex(4)}"
            self._make("ca", name, (), name)
            ca = self._usable_facts("ca")
            if ca is None:
                raise self._error("openssl made a CA that can't be used; look at its version")
        kinds = [("server", "ConureDB", self._names)]
        if self._has_client:
            kinds.append(("client", "trial client", ["trial-client"]))
        for kind, name, names in kinds:
            facts = self._usable_facts(kind)
            if facts is None or facts.issuer != ca.subject or not {*names} <= {*facts.names}:
                self._make(kind, name, names, ca.subject)
                is_new = True
        return is_new

    def _usable_facts(self, kind: str) -> Facts | None:
        """Return what a certificate says, None if it is of no use for long, or without its key."""
        cert, key = self.path(f"{kind}.pem"), self.path(f"{kind}.key")
        try:
            with open(cert, "rb") as file:
                facts = facts_of(certificates_in(file.read())[0])
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, lambda: b"")
        except (OSError, ValueError, IndexError):
            return None
        left = facts.ends - time()
        return facts if left > (facts.ends - facts.begins) / 3 else None

    def _make(self, kind: str, name: str, names: Iterable[str], issuer: str) -> None:
        """Make a key and a certificate, and put both in their place."""
        log.info("making %s, by %s, with openssl", self.path(f"{kind}.pem"), issuer)
        new = {part: self.path(f"{kind}.{part}.new") for part in ("cnf", "key", "csr", "pem")}
        alternatives = ", ".join(f"{_kind(each)}:{each}" for each in names) or "DNS:none"
        with open(new["cnf"], "w", encoding="ascii") as file:
            file.write(_CONFIGURATION.format(name=name, alternatives=alternatives))
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        request = ("req", *key, "-keyout", new["key"], "-config", new["cnf"])
        try:
            if kind == "ca":
                self._openssl(*request, "-x509", "-days", str(_CA_DAYS), "-out", new["pem"])
            else:
                self._openssl(*request, "-new", "-out", new["csr"])
                signer = ("-CA", self.path("ca.pem"), "-CAkey", self.path("ca.key"))
                serial = f"0x{secrets.randbits(127) | 1 << 126:x}"
                self._openssl(
                    *("x509", "-req", "-in", new["csr"], *signer, "-set_serial", serial),
                    *("-days", str(_DAYS), "-sha256", "-out", new["pem"]),
                    *("-extfile", new["cnf"], "-extensions", kind),
                )
            os.chmod(new["key"], 0o600)
            for part in ("key", "pem"):
                os.replace(new[part], self.path(f"{kind}.{part}"))
        finally:
            for path in new.values():
                with suppress(FileNotFoundError):
                    os.remove(path)

    def _openssl(self, *arguments: str) -> None:
        try:
            done = subprocess.run(  # noqa: S603 - nothing but names that were looked at
                ["openssl", *arguments],  # noqa: S607 - wherever it is
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
                umask=0o077,
            )
        except FileNotFoundError as error:
            raise self._error(
                "it takes the program openssl, which isn't there; install it, or make "
                "certificates elsewhere and name them with --tls-cert and --tls-key"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise self._error(f"openssl took more than {_PATIENCE:.0f} s") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise self._error(f"openssl failed: {said[-1] if said else done.returncode}")

    def _error(self, why: str) -> ConfigError:
        return ConfigError("tls_auto", self._source, why)


def _usable(host: str) -> str:
    """Return a name or an address as it stands in certificates; "" for what stands in none."""
    host = host.strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() if _IS_NAME(host) else ""
    return "" if address.is_unspecified else str(address)


def _kind(name: str) -> str:
    try:
        ip_address(name)
    except ValueError:
        return "DNS"
    return "IP"
