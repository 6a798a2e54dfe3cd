"""Faults of the reactor, its listeners and links, and of asking other servers."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS"]

MUTATIONS = [
    Mutation(
        "http: a client has as many places as there are",
        "conure/net/places.py",
        "        most = self.ordinary if client == UNCOUNTED else self.share",
        "        most = self.ordinary",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: the reserve may be taken",
        "conure/net/places.py",
        " or self._total >= self.ordinary:",
        " or self._total >= self.ordinary + self.reserve:",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: each IPv6 address is a client",
        "conure/net/places.py",
        "            return str(ip_network((ip, 64), strict=False))",
        "            return str(ip)",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: a mapped address is another client",
        "conure/net/places.py",
        "            ip = ip.ipv4_mapped or ip",
        "            pass",
        ("tests/net/test_places.py",),
    ),
    Mutation(
        "http: who keeps too much is never ended",
        "conure/net/reactor.py",
        "            self._blocked += self._find_blocked()\n",
        "            pass\n",
        (
            "tests/http/test_streams_order.py",
            "tests/http/test_streams_many.py",
        ),
    ),
    Mutation(
        "http: the fastest streams are ended",
        "conure/net/reactor.py",
        "        blocked.sort(key=lambda pair: pair[0])",
        "        blocked.sort(key=lambda pair: -pair[0])",
        (
            "tests/http/test_streams_order.py",
            "tests/http/test_streams_many.py",
        ),
    ),
    Mutation(
        "net: all who take nothing are dropped in one go",
        "conure/net/reactor.py",
        "self.guard(connection.drop, connection)\n            if perf_counter() > until:",
        "self.guard(connection.drop, connection)\n            if False:",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: who has taken something meanwhile is dropped",
        "conure/net/reactor.py",
        "if is_there and connection.blocked_since() is not None:",
        "if is_there:",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: thousands are closed in one go",
        "conure/net/reactor.py",
        "(connection.close, connection)\n            if perf_counter() > until:",
        "(connection.close, connection)\n            if False:",
        ("tests/resp/test_bounds.py",),
    ),
    Mutation(
        "net: who is not looked at in time never is",
        "conure/net/reactor.py",
        "            connection = unchecked.popleft()",
        "            connection = unchecked.pop()\n            unchecked.clear()",
        ("tests/resp/test_bounds.py",),
    ),
    Mutation(
        "net: what a link has decrypted is left until more comes",
        "conure/net/reactor.py",
        "                if connection.link.pending:\n"
        "                    self._note_pending(connection)\n",
        "",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: who begins to listen again forgets what its link has decrypted",
        "conure/net/reactor.py",
        "        if link.pending:\n            self._note_pending(connection)\n",
        "",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: what nobody wants to read is looked at without end",
        "conure/net/reactor.py",
        "        if connection.interest & IN and self.connections",
        "        if self.connections",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: only the first front end ends a round",
        "conure/net/reactor.py",
        "        self._round_ends = (*self._round_ends, action)",
        "        self._round_ends = self._round_ends or (action,)",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: a link that was cut ends as any other",
        "conure/net/link.py",
        "        reset_on_close(self.socket, resets=resets)",
        "        reset_on_close(self.socket, resets=False)",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: who comes last when the reactor has ended keeps the process from ending",
        "conure/net/listener.py",
        "                except (OSError, ValueError):",
        "                except OSError:",
        ("tests/net/test_reactor.py",),
    ),
    Mutation(
        "net: clients in the backlog are left there",
        "conure/net/listener.py",
        "            for _ in range(_BACKLOG):",
        "            for _ in range(0):",
        (
            "tests/http/test_httpserver_rfc.py",
            "tests/http/test_httpserver_clients.py",
            "tests/http/test_httpserver_rounds.py",
        ),
    ),
    Mutation(
        "net: nobody asks whether silent machines are there",
        "conure/net/sockets.py",
        "    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n",
        "",
        (
            "tests/http/test_streams_order.py",
            "tests/http/test_streams_many.py",
        ),
    ),
    Mutation(
        "who sends many requests at once has a round for itself",
        "conure/net/reactor.py",
        "self.leave = min(self.until, now + visit)",
        "self.leave = self.until",
        (
            "tests/http/test_httpserver_rfc.py",
            "tests/http/test_httpserver_clients.py",
            "tests/http/test_httpserver_rounds.py",
        ),
    ),
    Mutation(
        "who is sent little waits for who is sent much",
        "conure/net/reactor.py",
        "        if len(dirty) > _FEW:\n            long",
        "        if len(dirty) > 10 * _FEW:\n            long",
        (
            "tests/http/test_httpserver_rfc.py",
            "tests/http/test_httpserver_clients.py",
            "tests/http/test_httpserver_rounds.py",
        ),
    ),
    Mutation(
        "who is sent much waits for all who are sent little",
        "conure/net/reactor.py",
        "            for each in long[:1]:\n"
        "                self.guard(each.send, each)\n            dirty += long[1:]\n",
        "            dirty += long\n",
        (
            "tests/http/test_httpserver_rfc.py",
            "tests/http/test_httpserver_clients.py",
            "tests/http/test_httpserver_rounds.py",
        ),
    ),
    Mutation(
        "an answer takes any number of bytes if it lies about its length",
        "conure/net/outbound.py",
        "        if self.room < 0:\n",
        "        if self.room is None:\n",
        ("tests/net/test_outbound.py",),
    ),
    Mutation(
        "an answer that the library can't read ends the thread",
        "conure/net/outbound.py",
        "    except Exception as error:  # what the library",
        "    except UnicodeEncodeError as error:  # what the library",
        ("tests/net/test_outbound.py",),
    ),
]
