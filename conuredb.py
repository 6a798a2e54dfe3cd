#!/usr/bin/env python3
"""The server: reads the configuration, composes the modules, runs until it is told to stop.

``python3 conuredb.py --bootstrap`` is all it takes; ``--help`` lists the settings. Where a command
comes first, such as in ``python3 conuredb.py check ./data``, it is offline.py that carries it out.

Exit status: 0 after SIGTERM or SIGINT, 2 if a setting can't be used, 1 for a failure later on.
"""

from __future__ import annotations

from conure import oldpython  # noqa: F401  # before all that an older Python can't read

# isort: split
import contextlib
import gc
import json
import logging
import os
import resource
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from types import FrameType

from conure import VERSION
from conure.cluster import border
from conure.cluster.joining import Joiner
from conure.cluster.node import Node
from conure.cluster.options import NodeOptions
from conure.collector import Collector
from conure.config import Config, load
from conure.errors import ConfigError, ConureError, DirectoryInUse, ForeignDirectory
from conure.fileio import OsFileSystem, others_who_may_write
from conure.http.counts import RequestMetrics
from conure.http.limits import Limits
from conure.http.origins import Access, Names
from conure.http.rest import Rest
from conure.http.restmeters import add_rest_metrics
from conure.http.server import SPEAKS_TLS, Application, HTTPServer, bounds_of
from conure.http.stream import Stream, broadcast
from conure.metrics import Registry, add_build_info, add_process_metrics
from conure.net.listener import Listener, MakeLink, bind
from conure.net.rates import Rates
from conure.net.reactor import Reactor
from conure.net.tlslink import ServerLinks
from conure.operations import Operations
from conure.ops import offline
from conure.peers.proving import PeerSecurity
from conure.peers.transport import Transport
from conure.protection import Door, is_elsewhere
from conure.resp.assembly import Resp
from conure.resp.frontend import SPEAKS_TLS as RESP_SPEAKS_TLS
from conure.resp.limits import Limits as RespLimits
from conure.security.asking import tls_for_asking
from conure.security.fronts import FrontTls
from conure.security.nodes import NodeProofs
from conure.security.reloading import Watcher
from conure.security.tls import ClientTls
from conure.service.gate import AllowAll
from conure.service.limits import Limits as RequestLimits
from conure.service.requests import Requests
from conure.service.watchers import Watchers
from conure.settings import flag_of
from conure.state.history import History
from conure.storage.datadir import engine_in
from conure.storage.engines import LSM
from conure.values import Address, host_of
from httpapi import API, PROBES, PUBLIC, SHORT_BODIES, MetricsAPI

__all__ = ["main"]

SWITCH_INTERVAL = 0.0005
"""Seconds after which a busy thread gives way: requests must not wait for a checkpoint."""

MAX_OPEN_FILES = 1 << 16
"""What the soft limit of open files is raised to at most; every connection needs one."""

KEPT_FILES = 192
"""Open files that connections have to leave: for the node's own, and for turning clients away.

A node that can't open its next log segment ends: idle clients must not bring it there.
"""

TABLE_FILES = 512
"""Open files that they have to leave besides where tables may be mapped, each of which is one."""

UNWRITTEN_SHARE = 4
"""How many times ``cache_bytes`` changed pages may take before writers are slowed down."""

log = logging.getLogger("conure")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a node until it stops, or a command; return the process' exit status. Main thread."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments and arguments[0] in offline.COMMANDS:
            return offline.run(arguments, os.environ)
        config = load(arguments, os.environ)
        set_up_logging(config.log_level, config.log_format)
        return Process(config).run()
    except ConfigError as error:
        print(f"conuredb: {error}", file=sys.stderr)
        return 2
    except ConureError as error:
        print(f"conuredb: {error}", file=sys.stderr)
        return 1


class Process:
    """One running node: its modules, put together and taken apart in order."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._registry = Registry()
        self._operations = Operations(self._registry)
        self._reasons: SimpleQueue[str] = SimpleQueue()  # to stop; one is enough
        self._max_connections = config.max_connections
        self._max_resp_connections = config.resp_max_connections
        self._failed = False
        self._wakened: socket.socket  # a byte in it: look at the reasons
        self._waker: socket.socket
        # What runs, in the order of being started.
        self._bound: dict[str, socket.socket] = {}  # by the setting that names the address
        self._reactors: dict[str, Reactor] = {}  # by the same
        self._servers: list[HTTPServer] = []
        self._resp: Listener | None = None
        self._rest: HTTPServer | None = None
        self._transport: Transport | None = None
        self._node: Node | None = None
        self._watchers: Watchers[Stream] | None = None
        self._joiner: Joiner | None = None
        self._watcher = Watcher()
        self._tls: FrontTls | None = None
        self._asking: ClientTls | None = None
        self._collector = Collector()
        limits = config.rate_limit, config.rate_limit_bytes
        self._rates = Rates(*limits, config.trusted_proxies) if any(limits) else None

    def run(self) -> int:
        """Start, serve until a signal or a failure, stop; return the exit status."""
        config = self._config
        for line in config.describe():
            log.debug("setting %s", line)
        for name in config.ignored_environment:
            log.warning("environment %s names no setting and is ignored", name)
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._bound_connections(raise_file_limit())
        threading.excepthook = self._on_thread_exception
        self._wakened, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

        try:
            # These first: if a file can't be used or an address is taken, nothing has been touched.
            if not config.tls_auto:
                self._make_tls()
            security = self._peer_security()
            self._refuse_strangers()
            self._bind_addresses()
            metrics = RequestMetrics(self._registry)
            self._operations.add(metrics.operations)
            transport = self._listen_to_peers(security)
            reactor = self._reactors["http_addr"]
            history = History(max_bytes=config.watch_history_bytes)
            node = self._open_node(transport, reactor, history)
            if config.tls_auto:  # it writes to the data directory, which is this node's by now
                self._make_tls()
            watchers = self._watchers = Watchers(
                history,
                self._registry,
                broadcast=partial(broadcast, reactor),
                is_full=reactor.is_full,
            )
            limits = RequestLimits(
                value_bytes=config.max_value_bytes, range_items=config.max_range_items
            )
            requests = Requests(node, AllowAll(), watchers, limits, max_workers=config.max_scans)
            api = self._make_api(node, requests, limits, metrics)
            server = self._serve_clients(api)
            self._serve_resp(reactor, node, requests, limits, history)
            self._serve_rest(node, requests, limits, metrics)
            self._add_metrics(server)
            transport.start(node, reactor, node.lets_in)
            # No collection while the log is applied: that would take a quarter of the time.
            gc.collect()
            gc.disable()
            try:
                node.start()
            finally:
                self._collector.start()
                gc.enable()
            watchers.start()
            self._watcher.start()
            if self._watcher.has_work:
                signal.signal(signal.SIGHUP, self._on_hang_up)
            for each in self._listeners():
                each.start()
            if config.seeds or config.peers:
                seeds = partial(tuple, config.seeds) if config.seeds else node.seeds
                asking = self._asking
                self._joiner = Joiner(
                    seeds,
                    node.facts,
                    node.wants_to_join,
                    None if asking is None else lambda: asking.context,
                    roads=transport,
                    applicant=node.applicant,
                )
                self._joiner.start()
            self._tell_of_doors()
            url = _shown(config.http_addr, server.port, has_tls=config.has_tls)
            log.info("ConureDB %s listens on %s", VERSION, url)
            if self._tls is not None and self._tls.trial is not None:
                log.info("ask it so: %s", self._tls.trial.how_to_ask(url))
            if self._resp is not None:
                log.info("RESP is served at %s", self._address_of("resp_addr"))
            if self._rest is not None:
                log.info("REST is served at %s", self._address_of("rest_addr"))
            log.info("%s: stopping", self._wait_for_a_reason())
        finally:
            try:
                self._shut_down()
            finally:
                signal.set_wakeup_fd(-1)
                self._waker.close()
                self._wakened.close()
        return 1 if self._failed else 0

    def _bound_connections(self, open_files: int) -> None:
        """Take care that connections leave the node the open files it needs itself."""
        config = self._config
        others = (config.metrics_addr, config.resp_addr, config.rest_addr)
        servers = 1 + sum(address is not None for address in others)
        engine = engine_in(OsFileSystem(), config.data_dir) or config.engine
        kept = KEPT_FILES + (TABLE_FILES if engine == LSM else 0)
        most = max(1, open_files // servers - kept)
        if self._max_connections > most:
            self._max_connections = most
            log.warning(
                "max_connections is %d here, not %d: this process may open %d files only "
                "(raise its limit, ulimit -n)",
                *(most, config.max_connections, open_files),
            )
        if self._max_resp_connections > most and config.resp_addr is not None:
            self._max_resp_connections = most
            log.warning(
                "resp_max_connections is %d here, not %d: this process may open %d files only "
                "(raise its limit, ulimit -n)",
                *(most, config.resp_max_connections, open_files),
            )

    def _refuse_strangers(self) -> None:
        """Refuse to begin or join a cluster across machines whose nodes prove nothing. Raises
        ConfigError."""
        config = self._config
        if not config.protected_mode or config.asks_peers:
            return
        asked = {"seeds": config.seeds, "peers": [p.rpartition("@")[2] for p in config.peers]}
        for setting, addresses in asked.items():
            why = border.why_refused(OsFileSystem(), config.data_dir, addresses)
            if why:
                raise ConfigError(config.called(setting), config.sources[setting], why)

    def _bind_addresses(self) -> None:
        """Take the addresses for clients, and what serving them takes; nobody is accepted yet."""
        for setting in ("http_addr", "metrics_addr", "resp_addr", "rest_addr"):
            address = getattr(self._config, setting)
            if address is None:
                continue
            try:
                self._bound[setting] = bind(address)
                if setting in ("http_addr", "metrics_addr"):  # the others share the first one's
                    self._reactors[setting] = Reactor(
                        bounds_of(self._limits()), self._on_fatal, "http"
                    )
            except OSError as error:
                raise self._taken(setting, address, error) from error

    def _serve_clients(self, api: Application) -> HTTPServer:
        """Make the servers for what is bound; the one for clients has the node's reactor."""
        access = self._access("http_addr", PROBES)
        access = replace(access, public=PUBLIC, probes=PROBES, rates=self._rates)
        server = self._serve("http_addr", api, access)
        if "metrics_addr" in self._bound:  # of its own, so that it answers whatever clients do
            access = replace(self._access("metrics_addr"), probes=frozenset({"/metrics"}))
            self._serve("metrics_addr", MetricsAPI(self._registry), access)
        return server

    def _access(self, setting: str, always: frozenset[str] = frozenset()) -> Access:
        """Return whom the front at an address answers; *always*: paths for everybody."""
        config = self._config
        return Access(
            self._names(),
            origins=frozenset(config.cors_origins),
            scheme="https" if config.has_tls else "http",
            door=self._door(setting, always),
        )

    def _door(self, setting: str, always: frozenset[str] = frozenset()) -> Door:
        """Return who is barred from the front at an address."""
        config = self._config
        address: Address = getattr(config, setting)
        name = config.called(setting)
        listening = f"{flag_of(name)}={Address('127.0.0.1', address.port)}"
        return Door(
            name, listening, always, is_closed=config.protected_mode and not config.asks_clients
        )

    def _serve(self, setting: str, application: Application, access: Access) -> HTTPServer:
        bound, reactor = self._bound[setting], self._reactors[setting]
        server = HTTPServer(
            bound,
            application,
            self._limits(),
            self._on_fatal,
            access,
            reactor,
            make_link=self._links(setting.removesuffix("_addr"), SPEAKS_TLS),
        )
        self._servers.append(server)
        return server

    def _serve_resp(
        self,
        reactor: Reactor,
        node: Node,
        requests: Requests,
        limits: RequestLimits,
        history: History,
    ) -> None:
        """Let clients of RESP be accepted, too, for the node's reactor."""
        bound = self._bound.get("resp_addr")
        if bound is None:
            return
        config = self._config
        proxies = config.trusted_proxies
        resp = Resp(
            reactor,
            requests,
            limits,
            RespLimits(
                max_connections=self._max_resp_connections,
                trusted_proxies=proxies,
                max_command_bytes=max(config.max_body_bytes, config.max_value_bytes),
                request_timeout=config.request_timeout,
                idle_timeout=config.resp_idle_timeout,
                slow_command=config.slow_request,
            ),
            node.status,
            self._registry,
            node.messages,
            history,
            self._door("resp_addr"),
            self._rates,
        )
        self._operations.add(resp.operations)
        self._resp = Listener(
            bound,
            reactor,
            resp.front,
            self._on_fatal,
            "resp",
            self._links("resp", RESP_SPEAKS_TLS),
        )

    def _serve_rest(
        self, node: Node, requests: Requests, limits: RequestLimits, metrics: RequestMetrics
    ) -> None:
        """Let clients that name keys by paths be accepted, too, for the node's reactor."""
        bound = self._bound.get("rest_addr")
        if bound is None:
            return
        rest = Rest(node, requests, metrics, limits, idempotency_window=self._idempotency_window())
        self._rest = HTTPServer(
            bound,
            rest,
            replace(self._limits(), max_body_bytes_at={}),  # every path is a key
            self._on_fatal,
            replace(self._access("rest_addr"), rates=self._rates),
            self._reactors["http_addr"],
            "rest",
            self._links("rest", SPEAKS_TLS),
        )

    def _make_tls(self) -> None:
        """Read, or make, what the fronts prove themselves by, and other nodes are checked by."""
        config, trial = self._config, None
        if config.has_tls:
            hosts = (*config.own_hosts(), socket.gethostname())
            self._tls = FrontTls(config, hosts, self._watcher, self._registry)
            trial = self._tls.trial
        self._asking = tls_for_asking(config, trial, self._watcher)

    def _links(self, front: str, plain_reply: bytes) -> MakeLink | None:
        """Return how a front's links are made: None for plain ones."""
        tls = self._tls
        if tls is None:
            return None
        return ServerLinks(lambda: tls.context, plain_reply, partial(tls.failed, front))

    def _tell_of_doors(self) -> None:
        """Say in the log whom the fronts answer that aren't on loopback."""
        config = self._config
        fronts = {config.called(name): str(getattr(config, name)) for name in self._bound}
        open_to_all = [f"{n} {a}" for n, a in fronts.items() if is_elsewhere(a)]
        if not open_to_all or config.asks_clients:
            return
        if config.protected_mode:
            log.info("protected mode: %s answer this machine alone", ", ".join(open_to_all))
        else:
            log.warning(
                "whoever reaches %s may read and write everything: protected mode is off, and "
                "nobody is asked for a certificate",
                ", ".join(open_to_all),
            )

    def _address_of(self, setting: str) -> str:
        """Return where the front of a setting is served; empty: nowhere."""
        bound, address = self._bound.get(setting), getattr(self._config, setting)
        if bound is None or address is None:
            return ""
        return str(Address(address.host, bound.getsockname()[1]))

    def _listeners(self) -> list[Listener]:
        fronts = (self._resp, self._rest)
        return [*self._servers, *[front for front in fronts if front is not None]]

    def _names(self) -> Names:
        """Return the names that a server here answers to: any, where nobody is answered without
        a certificate."""
        if self._config.asks_clients:
            return Names(["*"])
        own = (*self._config.own_hosts(), socket.gethostname())
        # Whoever has to prove who they are can't be a page under a name that leads here.
        allowed = ("*",) if self._config.asks_clients else self._config.allowed_hosts
        return Names(allowed, own, self._known_as)

    def _known_as(self) -> list[str]:
        """Return the hosts by which the cluster knows this node, once there is one."""
        return [host_of(address) for address in self._node.names()] if self._node else []

    def _limits(self) -> Limits:
        config = self._config
        return Limits(
            max_body_bytes=max(config.max_body_bytes, config.max_value_bytes),
            max_body_bytes_at=SHORT_BODIES,
            max_connections=self._max_connections,
            trusted_proxies=config.trusted_proxies,
            max_requests_in_flight=config.max_requests_in_flight,
            max_streams=config.max_watches + config.max_scans,
            slow_request=config.slow_request,
            request_timeout=config.request_timeout,
            idle_timeout=config.idle_timeout,
        )

    def _peer_security(self) -> PeerSecurity:
        """Read what this node proves itself by to others. Raises ConfigError."""
        proofs = NodeProofs(self._config, self._watcher, self._registry)
        return PeerSecurity(
            self._config.peer_auth,
            proofs.secrets,
            proofs.client,
            proofs.server,
            takes_anybody=not self._config.protected_mode,
        )

    def _listen_to_peers(self, security: PeerSecurity) -> Transport:
        address = self._config.raft_addr
        try:
            self._transport = Transport(address, self._registry, security)
        except OSError as error:
            raise self._taken("raft_addr", address, error) from error
        return self._transport

    def _taken(self, setting: str, address: Address, error: OSError) -> ConfigError:
        why = f"can't listen on {address}: {error.strerror or error}"
        remedy = "stop whatever uses it, or choose another address"
        name = self._config.called(setting)
        return ConfigError(name, self._config.sources[setting], f"{why}; {remedy}")

    def _open_node(self, transport: Transport, reactor: Reactor, history: History) -> Node:
        config = self._config
        http_port = self._bound["http_addr"].getsockname()[1]
        options = NodeOptions(
            node_id=config.node_id,
            told_node_id=config.told_node_id,
            data_dir=config.data_dir,
            raft_address=config.raft_advertised(transport.port),
            http_address=config.http_advertised(http_port),
            http_port=http_port,
            https=config.has_tls,
            bootstrap=config.bootstrap,
            version=VERSION,
            role=config.role,
            quorum_size=config.quorum_size,
            peers=config.peers,
            is_guarded=config.protected_mode and not config.asks_peers,
            engine=config.engine,
            told_engine=config.told_engine,
            election_timeout=config.election_timeout,
            read_mode=config.read_mode,
            barrier_timeout=config.barrier_timeout,
            write_timeout=config.write_timeout,
            page_size=config.page_size,
            cache_bytes=config.cache_bytes,
            memtable_bytes=config.max_mem_size,
            mapped_reads=config.lsm_reads == "map",
            workers=True,
            log_segment_bytes=config.log_segment_bytes,
            checkpoint_log_bytes=config.checkpoint_log_bytes,
            checkpoint_entries=config.checkpoint_entries,
            checkpoint_interval=config.checkpoint_interval,
            max_unwritten_bytes=UNWRITTEN_SHARE * config.cache_bytes,
        )
        try:
            self._node = Node.open(
                options,
                OsFileSystem(),
                transport,
                self._registry,
                self._on_failure,
                history,
                call_later=reactor.call_later,
            )
        except (DirectoryInUse, ForeignDirectory) as error:
            raise ConfigError("data_dir", config.sources["data_dir"], str(error)) from error
        others = others_who_may_write(config.data_dir)
        if others:
            log.warning(
                "data_dir %s may be written by %s, who could replace any file in it; "
                "take that away: chmod go-w %s",
                config.data_dir,
                others,
                shlex.quote(config.data_dir),
            )
        return self._node

    def _make_api(
        self, node: Node, requests: Requests, limits: RequestLimits, metrics: RequestMetrics
    ) -> API:
        config = self._config
        return API(
            node,
            requests,
            self._registry,
            metrics,
            limits,
            idempotency_window=self._idempotency_window(),
            forward=config.follower_mode == "forward",
            version=VERSION,
            resp=self._address_of("resp_addr"),
            rest=self._address_of("rest_addr"),
        )

    def _idempotency_window(self) -> int:
        """Return it in milliseconds."""
        return round(self._config.idempotency_window * 1000)

    def _shut_down(self) -> None:
        """Stop in order: readiness fails, leadership is handed over, requests in flight finish,
        the others are let go, a checkpoint is written."""
        node = self._node
        if node is not None:
            node.begin_stop()
        self._watcher.stop()
        if self._joiner is not None:
            self._joiner.stop()
        if node is not None:
            node.resign()
        if self._watchers is not None:
            self._watchers.stop()
        self._drain()
        for bound in self._bound.values():  # those for which no server was made
            bound.close()
        for reactor in list(self._reactors.values())[len(self._servers) :]:
            reactor.close()
        if self._transport is not None:
            self._transport.close()
        if node is not None:
            node.stop()
            log.info("stopped")

    def _drain(self) -> None:
        """Let what is in flight finish, of clients of every protocol."""
        for front in (self._resp, self._rest):  # whose connections rest in a server's reactor
            if front is not None:
                front.stop()
        for server in self._servers:
            if not server.drain(self._config.shutdown_timeout):
                log.warning("some requests were still in flight and have been cut off")

    def _add_metrics(self, server: HTTPServer) -> None:
        registry = self._registry
        if self._rest is not None:
            add_rest_metrics(registry, self._rest)
        add_build_info(registry, VERSION)
        add_process_metrics(registry)
        registry.gauge_callback(
            "conure_http_connections", "Open HTTP connections.", lambda: server.connections_open
        )
        registry.counter_callback(
            "conure_http_connections_accepted_total",
            "HTTP connections accepted.",
            lambda: server.connections_accepted,
        )
        if self._rates is not None:
            rates = self._rates
            registry.counter_callback(
                "conure_rate_limited_total",
                "Requests and commands refused because their client sent too many.",
                lambda: rates.refused,
            )
        registry.labelled_callback(
            "conure_http_refused_total",
            "counter",
            "Requests and connections refused before they reached a route, by status code.",
            ("code",),
            lambda: [((str(status),), count) for status, count in server.refused.items()],
        )
        registry.counter_callback(
            "conure_http_received_bytes_total", "Bytes read.", lambda: server.bytes_in
        )
        registry.counter_callback(
            "conure_http_sent_bytes_total", "Bytes written.", lambda: server.bytes_out
        )
        registry.gauge_callback(
            "conure_http_requests_in_flight",
            "Requests being worked on.",
            lambda: server.requests_in_flight,
        )
        registry.gauge_callback(
            "conure_http_streams", "Answers without an end yet.", lambda: server.streams_open
        )
        registry.counter_callback(
            "conure_http_streams_dropped_total",
            "Streams ended because their clients read too slowly.",
            lambda: server.streams_dropped,
        )
        registry.counter_callback(
            "conure_http_slow_requests_total",
            "Requests that took longer than slow_request.",
            lambda: server.slow_requests,
        )

    # -- reasons to stop; any thread -------------------------------------------------------------

    def _wait_for_a_reason(self) -> str:
        # A signal may be taken by a thread that is just being made, and the main thread's wait on
        # a lock goes on then as if nothing had come. A byte that the signal writes is not lost.
        while self._reasons.empty():
            self._wakened.recv(1)
        return self._reasons.get()

    def _stop_for(self, reason: str) -> None:
        self._reasons.put(reason)
        with contextlib.suppress(OSError):  # full: it is awake; closed: nobody waits any more
            self._waker.send(b"\0")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Nothing that takes a lock: it runs between any two lines of the main thread, which may
        # hold that lock just then. SimpleQueue is made for this; Event and logging are not.
        self._reasons.put(signal.Signals(number).name)

    def _on_hang_up(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._watcher.hurry()  # as above

    def _on_failure(self) -> None:
        self._failed = True
        self._stop_for("a failure")

    def _on_fatal(self, error: BaseException) -> None:
        log.critical("the HTTP server has ended: %s", error, exc_info=error)
        self._on_failure()

    def _on_thread_exception(self, args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "?"
        log.critical("thread %s has ended", name, exc_info=args.exc_value)
        self._on_failure()


class TextFormatter(logging.Formatter):
    """One line a record: time in UTC, level, logger, message; a traceback follows indented."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s: %(message)s")

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802
        return "  " + super().formatException(ei).replace("\n", "\n  ")


class JSONFormatter(TextFormatter):
    """One JSON object a line: time, level, logger, message and, where there is one, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            facts["traceback"] = logging.Formatter.formatException(self, record.exc_info)
        return json.dumps(facts, ensure_ascii=False)


def set_up_logging(level: str, style: str) -> None:
    """Send the log to standard error, in *style* ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def raise_file_limit() -> int:
    """Let the process have as many open files as it may, up to MAX_OPEN_FILES; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def _shown(address: Address, port: int, *, has_tls: bool) -> str:
    host = "localhost" if address.is_wildcard else address.host
    return f"{'https' if has_tls else 'http'}://{Address(host, port)}"


if __name__ == "__main__":
    sys.exit(main())
