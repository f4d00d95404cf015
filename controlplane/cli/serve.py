"""`trimtab serve`: the composition root. Builds the parts, starts loops, API and dashboard, says one ready line, stops.

This is the only place that wires; everything it wires is testable without it.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog
import uvicorn

from controlplane.api.app import create_app
from controlplane.api.context import RAY, Context
from controlplane.backends.base import Backend, BackendUnavailable
from controlplane.backends.local import LocalBackend
from controlplane.cli.dashboard import Dashboard, address
from controlplane.cli.ray import open_ray
from controlplane.clock import Clock, SystemClock
from controlplane.ids import uuid7
from controlplane.loops import Leadership, Loop
from controlplane.notify.address import UrlPolicy
from controlplane.notify.webhook import Sender, WebhookSender
from controlplane.rules import book as rule_book
from controlplane.services import deliveries, incidents, lifecycles_cost, quarantine, suspicion, tokens
from controlplane.services.findings import Watch
from controlplane.services.ingest import Ingest
from controlplane.services.lifecycles_conductor import Conductor
from controlplane.services.lifecycles_messages import Pages, no_pages
from controlplane.services.live import Live
from controlplane.services.metering import Metering
from controlplane.services.plans import Places
from controlplane.services.pulses import Pulses
from controlplane.services.reconcile import Controller
from controlplane.services.runs import on_what
from controlplane.settings import LOOPBACK, Settings
from controlplane.store import expert_thinning, keys, leases, upkeep
from controlplane.store import tokens as token_rows
from controlplane.store.engine import Store
from jobs.spec import JobSpec

RULES_S, RUNS_S, DELIVERIES_S, METERS_S, COMPACT_S, PRUNE_S, CAMPAIGN_S = 0.5, 0.5, 0.5, 1.0, 10.0, 600.0, 2.0
COSTS_S = 10.0
ADMIN_FILE = "admin-token"
_log = structlog.get_logger()


class StartError(Exception):
    """The server cannot start; the message says what to do."""


@dataclass
class Server:
    """Everything that runs, in the order in which it is stopped."""

    context: Context
    loops: list[Loop]
    leadership: Leadership
    ingest: Ingest
    store: Store

    def start(self) -> None:
        """Ingest first: agents' batches are taken whoever leads."""
        self.ingest.start()
        for backend in self.context.backends.values():
            backend.start()
        self.leadership.campaign_once()
        for loop in self.loops:
            loop.start()

    def stop(self) -> None:
        """Loops, then the lease, then what still waits to be written."""
        for loop in self.loops:
            loop.stop()
        for backend in self.context.backends.values():
            backend.stop_watching()
        self.leadership.release()
        self.ingest.stop()
        self.store.close()


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket; StartError naming the option when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise StartError(
            f"port {port} on {host} cannot be used ({error.strerror}): choose another with {flag}"
        ) from error
    return listening


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What the API answers with; None without TLS, StartError when the files cannot be used."""
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.tls_ca:
            ssl.create_default_context(cafile=settings.tls_ca)
    except OSError as error:  # ssl.SSLError is one as well
        named = f"tls_cert {settings.tls_cert}, tls_key {settings.tls_key}, tls_ca {settings.tls_ca or '(none)'}"
        raise StartError(f"TLS cannot be set up: {error}; the files are {named}") from error
    return context


def build(settings: Settings, own: tuple[str, int], clock: Clock, pages: Pages = no_pages) -> Server:
    """The parts of one server, wired; nothing runs yet. `pages`: the dashboard's address, for links in messages."""
    data = settings.data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    store = Store(settings.database_url)
    store.migrate()
    book = rule_book.load()
    live = Live(store, clock, book)
    live.rebuild()
    ingest = Ingest(store, live, clock)
    policy = UrlPolicy(allow_loopback=settings.webhook_loopback, own=frozenset({own}))
    senders = {"webhook": WebhookSender(policy)}
    leadership = Leadership(store, leases.this_process(f"{os.uname().nodename}/{uuid7(clock.now())}"), clock)
    backends = open_backends(settings, store, leadership, clock)
    places = _places(settings, data, own[1])
    controller = Controller(
        store,
        backends,
        book,
        places,
        live.expect,
        leads=leadership.holds,
        quarantine_share=settings.quarantine_share,
    )
    pulses = Pulses(backends.values())
    watch = Watch(book, since_s=clock.now(), quarantine_share=settings.quarantine_share, pulses=pulses.stopped)
    thinning = expert_thinning.Policy(settings.expert_raw_days, settings.expert_eighth_days)
    conductor = Conductor(store, places, controller, lambda spec: _where(backends, settings, spec), pages)
    loops = wire_loops(
        store, leadership, watch, controller, backends, senders, ingest, clock, pulses, thinning, conductor
    )
    metering = Metering(store, places, backends)
    loops["meters"] = Loop("meters", METERS_S, leadership.leading(metering.read_once), clock)
    loops["costs"] = Loop("costs", COSTS_S, leadership.leading(partial(lifecycles_cost.keep_once, store)), clock)
    context = Context(
        store=store,
        live=live,
        ingest=ingest,
        book=book,
        backends=backends,
        default_backend=settings.backend,
        places=places,
        leadership=leadership,
        policy=policy,
        senders=senders,
        clock=clock,
        loops=loops,
        wake=loops["runs"].wake,
    )
    return Server(context, list(loops.values()), leadership, ingest, store)


def _places(settings: Settings, data: Path, port: int) -> Places:
    """Where runs live, and where their trainers find this server."""
    runs = {"kube": Path(settings.kube_volume_path), "ray": Path(settings.ray_runs_path or data / "runs")}
    authority = settings.tls_ca if settings.backend == "local" else ""  # elsewhere the file is not there
    url = settings.public_url or address(settings, port)
    return Places(runs.get(settings.backend, data / "runs"), url, authority)


def open_backends(settings: Settings, store: Store, leadership: Leadership, clock: Clock) -> dict[str, Backend]:
    """This machine, and the cluster if attempts run there. StartError when there is no way to it."""

    def ray_key() -> bytes:
        with store.write() as session:
            return keys.kept(session, "ray", now=clock.now())

    settings.runtime_dir.mkdir(parents=True, exist_ok=True)
    local = LocalBackend(settings.data.resolve() / "attempts", settings.runtime_dir)
    backends: dict[str, Backend] = {local.name: local}
    if settings.backend == "kube":
        from controlplane.cli.kube import open_kube  # the official client takes most of a second to import

        try:
            found = open_kube(settings, clock, lambda: leadership.epoch is not None, ray_key)
        except BackendUnavailable as error:
            raise StartError(f"{error}: name a kubeconfig with --kube-config") from error
        backends |= {backend.name: backend for backend in found}
    if settings.backend == "ray":
        cluster = open_ray(settings, lambda: leadership.epoch is not None)
        backends[cluster.name] = cluster
    return backends


def _where(backends: Mapping[str, Backend], settings: Settings, spec: JobSpec) -> str:
    """The backend on which a job of a lifecycle runs."""
    return on_what(spec, backends[settings.backend], backends.get(RAY)).name


def wire_loops(
    store: Store,
    leadership: Leadership,
    watch: Watch,
    controller: Controller,
    backends: Mapping[str, Backend],
    senders: Mapping[str, Sender],
    ingest: Ingest,
    clock: Clock,
    pulses: Pulses,
    thinning: expert_thinning.Policy | None = None,
    conductor: Conductor | None = None,
) -> dict[str, Loop]:
    """The server's loops by name, and who wakes whom: news wakes the rules, an incident wakes runs and messages."""

    def check(epoch: int, now: float) -> None:
        if incidents.check_once(store, watch, epoch, now):
            loops["runs"].wake()
            loops["deliveries"].wake()
            loops["nodes"].wake()

    def mind_runs(epoch: int, now: float) -> None:
        controller.reconcile_once(epoch, now)  # first: runs do not wait for those who wait for a person
        if conductor is not None:
            conductor.reconcile_once(epoch, now)

    def mind_nodes(epoch: int, now: float) -> None:
        pulses.look(store, now)
        suspicion.suspect_once(store, epoch, now)
        quarantine.take_out_once(store, watch.book, watch.quarantine_share, epoch, now)
        quarantine.mark_once(store, backends, epoch, now)

    acts: dict[str, tuple[float, Callable[[int, float], object]]] = {
        "rules": (RULES_S, check),
        "runs": (RUNS_S, mind_runs),
        "nodes": (RUNS_S, mind_nodes),
        "deliveries": (DELIVERIES_S, lambda _epoch, now: deliveries.deliver_once(store, senders, now)),
        "compaction": (COMPACT_S, lambda _epoch, now: upkeep.compact_once(store, now)),
        "pruning": (PRUNE_S, lambda _epoch, now: upkeep.prune_once(store, now, thinning=thinning)),
    }
    loops = {"lease": Loop("lease", CAMPAIGN_S, leadership.campaign_once, clock)}
    loops |= {name: Loop(name, each_s, leadership.leading(act), clock) for name, (each_s, act) in acts.items()}
    ingest.on_commit(lambda summary: loops["rules"].wake() if summary.faults else None)
    ingest.on_commit(lambda summary: loops["runs"].wake() if summary.runs else None)
    return loops


def first_admin(store: Store, data: Path, now: float) -> str | None:
    """On the first run: makes the administrator's token, keeps it for this machine's operator, and returns it."""
    with store.write() as session:
        if token_rows.listed(session, ("personal",), limit=1):
            return None
        token = tokens.issue(
            session, kind="personal", subject="admin", now=now, created_by="first run", life_s=None, role="admin"
        )
    descriptor = os.open(data / ADMIN_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    return token


def new_admin(settings: Settings) -> str:
    """An administrator's token for whoever can reach the database: they could write it there as well."""
    store = Store(settings.database_url)
    try:
        store.check()
        now = SystemClock().now()
        with store.write() as session:
            return tokens.issue(
                session,
                kind="personal",
                subject="admin",
                now=now,
                created_by="token admin",
                life_s=tokens.PERSONAL_S,
                role="admin",
            )
    finally:
        store.close()


def one_time_link(store: Store, now: float) -> str:
    """A code that opens one session of the administrator."""
    with store.write() as session:
        return tokens.issue(
            session, kind="link", subject="admin", now=now, created_by="serve", life_s=tokens.LINK_S, role="admin"
        )


def configure_log(level: str) -> None:
    """JSON lines on stderr."""
    order = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(order.get(level, 20)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def serve(settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT; 0 after a clean stop. StartError if it cannot begin."""
    configure_log(settings.log)
    clock = SystemClock()
    context = tls_context(settings)
    api = listen(settings.host, settings.port, "--port")
    port = int(api.getsockname()[1])
    if settings.dashboard and settings.dashboard_port:
        listen(settings.host, settings.dashboard_port, "--dashboard-port").close()
    dashboard = Dashboard(address(settings, port), settings)
    server = build(settings, (settings.host, port), clock, dashboard.link)
    token = first_admin(server.store, settings.data.resolve(), clock.now())
    if token is not None:
        _say_token(settings, token)
    app = create_app(replace(server.context, dashboard=dashboard.address))
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    if context is not None:
        config.ssl_context_factory = lambda _config, _default: context
    web = uvicorn.Server(config)
    web.install_signal_handlers = lambda: None  # type: ignore[attr-defined] # ours end the loops as well
    thread = threading.Thread(target=lambda: web.run(sockets=[api]), name="api", daemon=True)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        server.start()
        thread.start()
        if settings.dashboard:
            dashboard.start()
        _say_ready(server, settings, port, dashboard, stopping, clock)
        stopping.wait()
    finally:
        web.should_exit = True
        dashboard.stop()
        if thread.is_alive():
            thread.join(10)
        server.stop()
    return 0


def _say_token(settings: Settings, token: str) -> None:
    """Where the administrator's token is; itself only to whoever sits at this machine, not to a cluster's logs."""
    kept = settings.data.resolve() / ADMIN_FILE
    shown = f", shown once: {token}\n  (kept in {kept})" if settings.host in LOOPBACK else f" is kept in {kept}"
    print(f"trimtab: the administrator's token{shown}", file=sys.stderr, flush=True)


def _say_ready(
    server: Server, settings: Settings, port: int, dashboard: Dashboard, stopping: threading.Event, clock: Clock
) -> None:
    """The one ready line, when both answer."""
    api = address(settings, port)
    if not settings.dashboard:
        print(f"trimtab ready: api {api}", flush=True)
        return
    while not dashboard.ready.wait(0.1):
        if stopping.is_set():
            return
    link = f"{dashboard.address()}/open/{one_time_link(server.store, clock.now())}"
    print(f"trimtab ready: dashboard {link}  api {api}", flush=True)
