"""Faults of links that encrypt, and of the files that this takes."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

_LINK = ("tests/net/test_tlslink.py",)
_FILES = ("tests/security/test_tls.py",)

MUTATIONS = [
    Mutation(
        "tls: a connection that was cut is taken for whole",
        "conure/net/tlslink.py",
        '        raise ConnectionResetError("the connection ended and',
        '        self._has_ended = True\n        raise BlockingIOError("the connection ended and',
        _LINK,
    ),
    Mutation(
        "tls: all bytes count as sent when some have left",
        "conure/net/tlslink.py",
        "        gone = self._claimed * sent // before",
        "        gone = self._claimed",
        _LINK,
    ),
    Mutation(
        "tls: an end that was said is forgotten",
        "conure/net/tlslink.py",
        """                if not data:
                    self._has_ended = self.pending = True""",
        """                if not data:
                    self._has_ended = True""",
        _LINK,
    ),
    Mutation(
        "tls: what has come is lost to a link that is shut",
        "conure/net/tlslink.py",
        "        while not self._has_ended and (more := self._decrypt(_FETCH)):",
        "        while False and (more := self._decrypt(_FETCH)):",
        _LINK,
    ),
    Mutation(
        "tls: a close says nothing",
        "conure/net/tlslink.py",
        "            if not self._resets:\n                with suppress(OSError):",
        "            if self._resets:\n                with suppress(OSError):",
        _LINK,
    ),
    Mutation(
        "tls: a complaint of the other side is one word in capitals",
        "conure/net/tlsreasons.py",
        "    if name:",
        "    if False:",
        _LINK,
    ),
    Mutation(
        "tls: a file that changes is not looked at",
        "conure/security/reloading.py",
        "        if seen == self._seen:",
        "        if seen:",
        _FILES,
    ),
    Mutation(
        "tls: half of a change ends what serves",
        "conure/security/reloading.py",
        "        except (ConfigError, OSError) as error:",
        "        except ZeroDivisionError as error:",
        _FILES,
    ),
    Mutation(
        "tls: a key that fits nothing is told to be a wrong one",
        "conure/security/tls.py",
        '        if error.reason == "KEY_VALUES_MISMATCH":',
        "        if False:",
        _FILES,
    ),
    Mutation(
        "tls: clients' certificates are not asked for",
        "conure/security/tls.py",
        "        context.verify_mode = self._verify_mode\n",
        "",
        _FILES,
    ),
    Mutation(
        "tls: old versions are spoken",
        "conure/security/tls.py",
        "    context.minimum_version = _VERSIONS[min_version]",
        "    context.minimum_version = ssl.TLSVersion.TLSv1_2",
        _FILES,
    ),
    Mutation(
        "tls: a server's name is not checked",
        "conure/security/tls.py",
        "context.check_hostname = not self._checks_names",
        "context.check_hostname = False",
        _FILES,
    ),
    Mutation(
        "tls: a key that all may read is nothing",
        "conure/security/reloading.py",
        "    if found.st_mode & (",
        "    if 0 & (",
        _FILES,
    ),
    Mutation(
        "tls: the last certificate of a file counts",
        "conure/security/tls.py",
        "min(ends) - time()",
        "max(ends) - time()",
        _FILES,
    ),
    Mutation(
        "tls: a client that comes again fills the log",
        "conure/security/handshakes.py",
        "if failure in self._told or",
        "if",
        _FILES,
    ),
    Mutation(
        "tls: clients that come from everywhere fill the log",
        "conure/security/handshakes.py",
        " or len(self._told) >= _MOST_TOLD:",
        ":",
        _FILES,
    ),
    Mutation(
        "tls: a trial's certificate lacks names",
        "conure/security/trial.py",
        " or not {*names} <= {*facts.names}:",
        ":",
        _FILES,
    ),
    Mutation(
        "tls: a trial's certificate is used with another key",
        "conure/security/trial.py",
        '(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, lambda: b"")',
        "(ssl.PROTOCOL_TLS_SERVER)",
        _FILES,
    ),
    Mutation(
        "tls: a trial's certificate is used until its end",
        "conure/security/trial.py",
        "return facts if left > (facts.ends - facts.begins) / 3 else None",
        "return facts",
        _FILES,
    ),
    Mutation(
        "tls: the CAs of clients are asked of nobody",
        "conure/security/fronts.py",
        "        config.tls_client_auth,\n",
        '        "request" if config.tls_client_auth == "require" else config.tls_client_auth,\n',
        _FILES,
    ),
    Mutation(
        "tls: a certificate that is cut off is one",
        "conure/security/x509.py",
        "        if position + length > len(data):",
        "        if False:",
        _FILES,
    ),
    Mutation(
        "tls: one call decrypts all there is",
        "conure/net/tlslink.py",
        "_MOST_RECORDS: Final = 64 ",
        "_MOST_RECORDS: Final = 1 << 20 ",
        _LINK,
    ),
    Mutation(
        "tls: an object is made for whoever connects",
        "conure/net/tlslink.py",
        "                self._held = self._receive_raw()\n            if self._held[0]",
        "                pass\n            if self._held and self._held[0]",
        _LINK,
    ),
    Mutation(
        "tls: whoever makes OpenSSL speak takes what memory there is",
        "conure/net/tlslink.py",
        "            if len(self._unsent) > _MOST_UNSENT:",
        "            if False:",
        _LINK,
    ),
    Mutation(
        "tls: a session outlives its certificate",
        "conure/net/tlslink.py",
        "if self._object.session_reused and time() > expiry:",
        "if False:",
        _LINK,
    ),
    Mutation(
        "tls: something is sent before the handshake is done",
        "conure/net/tlslink.py",
        "            raise ConnectionAbortedError(",
        "            return len(data)\n            raise ConnectionAbortedError(",
        _LINK,
    ),
    Mutation(
        "tls: a common name stands beside others",
        "conure/net/tlslink.py",
        "        if not alternatives:\n            names = _common_names",
        "        if not names:\n            names = _common_names",
        _LINK,
    ),
    Mutation(
        "tls: plain text is told nothing",
        "conure/net/tlslink.py",
        "            self.socket.send(self._plain_reply)\n",
        "",
        _LINK,
    ),
    Mutation(
        "tls: an error forgets what came before it",
        "conure/net/tlslink.py",
        "            self._note_error(error)\n            if not pieces:",
        "            self._note_error(error)\n            if pieces or not pieces:",
        _LINK,
    ),
    Mutation(
        "tls: a handshake may take for ever",
        "conure/net/reactor.py",
        "                late = connection.link.deadline < self.now",
        "                late = False",
        ("tests/net/test_tlsfronts.py",),
    ),
    Mutation(
        "tls: who doesn't fit into the socket is never sent to again",
        "conure/net/reactor.py",
        "        if is_stalled:",
        "        if False:",
        ("tests/net/test_tlsfronts.py",),
    ),
]
