"""`trimtab serve`: the composition root. Builds the parts, starts loops, API and dashboard, says one ready line, stops.

This is the only place that wires; everything it wires is testable without it.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import structlog
import uvicorn

from controlplane.api.app import create_app
from controlplane.api.context import Context
from controlplane.backends.base import Backend, BackendUnavailable
from controlplane.backends.local import LocalBackend
from controlplane.clock import Clock, SystemClock
from controlplane.ids import uuid7
from controlplane.loops import Leadership, Loop
from controlplane.notify.address import UrlPolicy
from controlplane.notify.webhook import Sender, WebhookSender
from controlplane.rules import book as rule_book
from controlplane.services import deliveries, incidents, quarantine, suspicion, tokens
from controlplane.services.findings import Watch
from controlplane.services.ingest import Ingest
from controlplane.services.live import Live
from controlplane.services.plans import Places
from controlplane.services.pulses import Pulses
from controlplane.services.reconcile import Controller
from controlplane.settings import LOOPBACK, Settings
from controlplane.store import expert_thinning, keys, leases, upkeep
from controlplane.store import tokens as token_rows
from controlplane.store.engine import Store

RULES_S, RUNS_S, DELIVERIES_S, COMPACT_S, PRUNE_S, CAMPAIGN_S = 0.5, 0.5, 0.5, 10.0, 600.0, 2.0
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


def address(settings: Settings, port: int) -> str:
    """The URL of one of our ports, as this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


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


def build(settings: Settings, own: tuple[str, int], clock: Clock) -> Server:
    """The parts of one server, wired; nothing runs yet."""
    data = settings.data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    store = Store(settings.database_url)
    store.migrate()
    book = rule_book.load()
    live = Live(store, clock)
    live.rebuild()
    ingest = Ingest(store, live, clock)
    policy = UrlPolicy(allow_loopback=settings.webhook_loopback, own=frozenset({own}))
    senders = {"webhook": WebhookSender(policy)}
    leadership = Leadership(store, leases.this_process(f"{os.uname().nodename}/{uuid7(clock.now())}"), clock)
    backends = open_backends(settings, store, leadership, clock)
    runs = Path(settings.kube_volume_path) if settings.backend == "kube" else data / "runs"
    places = Places(runs, settings.public_url or address(settings, own[1]))
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
    loops = wire_loops(store, leadership, watch, controller, backends, senders, ingest, clock, pulses, thinning)
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
    return backends


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
) -> dict[str, Loop]:
    """The server's loops by name, and who wakes whom: news wakes the rules, an incident wakes runs and messages."""

    def check(epoch: int, now: float) -> None:
        if incidents.check_once(store, watch, epoch, now):
            loops["runs"].wake()
            loops["deliveries"].wake()
            loops["nodes"].wake()

    def mind_nodes(epoch: int, now: float) -> None:
        pulses.look(store, now)
        suspicion.suspect_once(store, epoch, now)
        quarantine.take_out_once(store, watch.book, watch.quarantine_share, epoch, now)
        quarantine.mark_once(store, backends, epoch, now)

    acts: dict[str, tuple[float, Callable[[int, float], object]]] = {
        "rules": (RULES_S, check),
        "runs": (RUNS_S, controller.reconcile_once),
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


class Dashboard:
    """The dashboard's process: started by module name, started again with back-off when it dies, ended with us."""

    def __init__(self, api: str, settings: Settings) -> None:
        given = {
            "--api": api,
            "--host": settings.host,
            "--port": str(settings.dashboard_port),
            "--tls-cert": settings.tls_cert,
            "--tls-key": settings.tls_key,
            "--ca-file": settings.tls_ca,
            "--allow-host": urlsplit(settings.public_url).hostname or "",
        }
        self.command = [sys.executable, "-m", "dashboards"]
        self.command += [word for flag, value in given.items() if value for word in (flag, value)]
        self._settings, self.port = settings, settings.dashboard_port
        self._stop = threading.Event()
        self.ready = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def address(self) -> str:
        """Where it answers; empty before it has said so."""
        return address(self._settings, self.port) if self.ready.is_set() else ""

    def _run(self) -> None:
        wait_s = 1.0
        while not self._stop.is_set():
            self._process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            first = self._process.stdout.readline() if self._process.stdout else ""
            if first.startswith("dashboard on "):
                self.port = int(first.strip().rsplit(":", 1)[1])
                self.ready.set()
                wait_s = 1.0
            self._process.wait()
            if not self._stop.wait(wait_s):
                _log.warning("the dashboard ended and is started again", code=self._process.returncode, wait_s=wait_s)
                wait_s = min(30.0, wait_s * 2)

    def stop(self) -> None:
        self._stop.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()


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
    server = build(settings, (settings.host, port), clock)
    token = first_admin(server.store, settings.data.resolve(), clock.now())
    if token is not None:
        _say_token(settings, token)
    dashboard = Dashboard(address(settings, port), settings)
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
