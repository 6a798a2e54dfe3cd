"""Why TLS came to nothing, in words that a person can act on.

OpenSSL tells of the other side's complaint by an alert (RFC 8446 section 6.2) and of its own by a
reason; both are one word in capitals, made for programmers. :func:`reason_of` says what such a word
means for who runs the two sides, and keeps the word, to look it up by. What it doesn't know it
passes on as it is.

Nothing here has state: any thread may call it. What is said is for this side's own log; the other
side is told nothing but TLS's alert.
"""

from __future__ import annotations

import ssl
from typing import Final

__all__ = ["reason_of"]

# What the other side says of us.
_ALERTS: Final = {
    "UNKNOWN_CA": "it does not know the CA of our certificate; it needs that CA's certificate",
    "CERTIFICATE_EXPIRED": "it says that our certificate has expired; look at both clocks, too",
    "BAD_CERTIFICATE": "it does not accept our certificate: its name or its purpose is wrong",
    "CERTIFICATE_UNKNOWN": "it does not accept our certificate; its own log may say why",
    "CERTIFICATE_REVOKED": "it says that our certificate is revoked",
    "UNSUPPORTED_CERTIFICATE": "it can't use a certificate of our kind",
    "CERTIFICATE_REQUIRED": "it wants a certificate of us, and there was none",
    "ACCESS_DENIED": "it accepts our certificate and lets it do nothing",
    "PROTOCOL_VERSION": "it speaks no version of TLS that we do (see tls_min_version)",
    "HANDSHAKE_FAILURE": "it shares no cipher with us, or wants a certificate and got none",
    "INSUFFICIENT_SECURITY": "it wants stronger ciphers than ours",
    "UNRECOGNIZED_NAME": "it serves nothing under the name that it was asked by",
    "INTERNAL_ERROR": "it failed by itself; its own log may say why",
}

# What OpenSSL on our side says of the other.
_FINDINGS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has shown no certificate, and has to",
    "NO_SHARED_CIPHER": "it shares no cipher with us",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "it can't check a signature by a key of our kind",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS that we do (see tls_min_version)",
    "WRONG_VERSION_NUMBER": "it doesn't speak TLS: plain text at that port?",
    "HTTP_REQUEST": "it doesn't speak TLS but plain HTTP",
    "HTTPS_PROXY_REQUEST": "it doesn't speak TLS but plain HTTP, as to a proxy",
    "EE_KEY_TOO_SMALL": "the key of its certificate is too small",
    "CA_MD_TOO_WEAK": "its certificate was signed by a hash that is too weak",
}

# X509_V_ERR_…, of the check of the other side's certificate.
_VERIFICATION: Final = {
    9: "its certificate is not valid yet; look at both clocks",
    10: "its certificate has expired; look at both clocks, too",
    18: "its certificate is signed by itself and is none of the CAs that we know",
    19: "the CA at the end of its chain is none of those that we know",
    20: "the CA of its certificate is none of those that we know, or its chain has a gap",
    21: "the CA of its certificate is none of those that we know, or its chain has a gap",
    22: "the chain of its certificate is too long",
    23: "its certificate is revoked",
    24: "a certificate of its chain is none of a CA",
    26: "its certificate is for another purpose: a server's shown by a client, or the reverse",
    62: "its certificate does not have the name that it was asked by",
    64: "its certificate does not have the address that it was asked by",
}


def reason_of(error: ssl.SSLError) -> str:
    """Return in words why a handshake, or what came after it, failed, and OpenSSL's own word."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = _VERIFICATION.get(error.verify_code, "its certificate was not accepted")
        return f"{said} ({error.verify_message.rstrip('.')})"
    word = error.reason or ""
    name = word.partition("_ALERT_")[2]
    if name:
        said = _ALERTS.get(name, "it ended the connection by an alert")
    elif word in _FINDINGS:
        said = _FINDINGS[word]
    else:
        return word or str(error)
    return f"{said} ({word})"
