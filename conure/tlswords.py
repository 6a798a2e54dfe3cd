"""What it means that TLS with a server has failed, in words, with what to do about it.

For whoever asks a server: the client library and the shell, kvctl, the probe, a node that asks its
seeds. OpenSSL's own words name neither the file nor the option that would help. What is known of an
error are its ``reason`` and ``verify_code``, which it has if it is an ``ssl.SSLError``; so nothing
here imports ``ssl``, and who asks without TLS starts without it.

Functions only; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["ASKING", "JOINING", "TLS_ALERT", "Remedies", "is_refusal", "why_failed"]

TLS_ALERT: Final = b"\x15\x03"
"""How the answer begins of a server that speaks TLS and was asked without it."""


class Remedies(NamedTuple):
    """By which settings a user can help: the CA, an own certificate, the name, and TLS itself."""

    ca: str
    certificate: str
    name: str
    plain: str


ASKING: Final = Remedies(
    "name the file of the CA that has (--ca, in Python ca=)",
    "name one that it takes (--cert and --key, in Python cert= and key=)",
    "ask it by a name that it bears, or say which that is (--tls-name, in Python tls_name=)",
    "leave TLS out (http://, kvctl: no --tls), or serve by it (--tls-cert and --tls-key)",
)
"""Those of clients."""

JOINING: Final = Remedies(
    "name the file of the CA that has by --tls-ca",
    "name one that it takes by --tls-cert and --tls-key",
    "name the seed by a name that it bears",
    "write the seed with http://, or let it serve by --tls-cert and --tls-key",
)
"""Those of a node that asks another one."""

_UNKNOWN_CA: Final = "its certificate isn't signed by a CA that is known here; {ca}"
_OTHER_NAME: Final = "its certificate bears another name: {detail}; {name}"

# By X509_V_ERR_…, which verify_code is.
_BY_CODE: Final[Mapping[int, str]] = {
    9: "its certificate is not valid yet; see whether the clocks here and there are right",
    10: "its certificate has expired; renew it there, and see whether the clock here is right",
    18: _UNKNOWN_CA,
    19: _UNKNOWN_CA,
    20: _UNKNOWN_CA,
    21: _UNKNOWN_CA,
    23: "its certificate was revoked",
    26: "its certificate is none for a server; have one issued for serverAuth",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}

_ASKS: Final = "it asks for a certificate; {certificate}"
_NO_TLS: Final = "it doesn't speak TLS there; {plain}"
_OTHER_VERSION: Final = "it speaks no version of TLS that is spoken here; see its --tls-min-version"

# What the server has refused about this side, by reason.
_REFUSALS: Final[Mapping[str, str]] = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _ASKS,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"no agreement was found, or {_ASKS}",
    "TLSV1_ALERT_UNKNOWN_CA": "it doesn't know the CA of this side's certificate; {certificate}",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses this side's certificate; {certificate}",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "this side's certificate is none for a client; "
    "have one issued for clientAuth",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "this side's certificate has expired; renew it",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "this side's certificate was revoked; {certificate}",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refuses this side's certificate; {certificate}",
    "TLSV1_ALERT_DECRYPT_ERROR": "it can't check this side's certificate; {certificate}",
    "TLSV1_ALERT_ACCESS_DENIED": "it admits nobody with this side's certificate; {certificate}",
}

_BY_REASON: Final[Mapping[str, str]] = {
    **_REFUSALS,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "TLSV1_ALERT_PROTOCOL_VERSION": _OTHER_VERSION,
    "UNSUPPORTED_PROTOCOL": _OTHER_VERSION,
    "UNEXPECTED_EOF_WHILE_READING": "it has ended the connection before its end, and what it has "
    "sent may lack a part",
}


def why_failed(error: Exception, remedies: Remedies = ASKING) -> str:
    """Return what a failure of TLS means and what to do; "" for an error that is no such one."""
    reason: str | None = getattr(error, "reason", None)
    if not reason:
        return ""
    code: int = getattr(error, "verify_code", 0)
    text = _BY_CODE.get(code) or _BY_REASON.get(reason)
    detail = str(getattr(error, "verify_message", None) or reason).rstrip(".")
    if text is None:
        text = "its certificate is no good: {detail}" if code else "TLS failed: {detail}"
    return text.format(detail=detail, **remedies._asdict())


def is_refusal(error: Exception) -> bool:
    """Tell whether both sides could not come together, so that nothing was asked at all: a
    certificate, on either side, was no good. Trying again would end the same way."""
    reason = getattr(error, "reason", None)
    return bool(getattr(error, "verify_code", 0)) or reason in _REFUSALS
