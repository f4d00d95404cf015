"""`python -m dashboards --api URL --port P`: the dashboard as a process of its own, holding no token.

Why it exists: `trimtab serve` starts it as a child by this name and never imports it; on Kubernetes it is a Deployment.
Loopback unless told otherwise, and nothing beyond loopback without TLS.
"""

import argparse
import socket
import ssl
import sys

import uvicorn

from controlplane.client import Unreachable
from dashboards import asgi

ANY = frozenset({"0.0.0.0", "::"})


class StartError(Exception):
    """The dashboard cannot start; the message says what to do."""


def main() -> int:
    """Parse the options, bind, say where, serve until stopped; 1 when it cannot start."""
    options = parse()
    try:
        context = tls_context(options)
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listening = socket.create_server((options.host, options.port), family=family, reuse_port=False)
        hosts = frozenset({*asgi.LOOPBACK, *options.allow_host, *({options.host} - ANY)})
        app = asgi.build(options.api.rstrip("/"), hosts, options.ca_file)
    except (StartError, Unreachable, OSError) as error:
        print(f"dashboard: {error}", file=sys.stderr, flush=True)
        return 1
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="websockets-sansio", ws_ping_interval=20, server_header=False
    )
    if context is not None:
        config.ssl_context_factory = lambda _config, _default: context
    shown = f"[{options.host}]" if ":" in options.host else options.host
    print(f"dashboard on http{'s' if context else ''}://{shown}:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """What browsers are answered with; None on loopback without TLS. StartError."""
    if not (options.tls_cert and options.tls_key):
        if options.host not in asgi.LOOPBACK or options.tls_cert or options.tls_key:
            raise StartError(
                f"--host {options.host} needs --tls-cert and --tls-key: nothing is served beyond loopback without TLS"
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as error:  # ssl.SSLError is one as well
        raise StartError(f"--tls-cert {options.tls_cert} and --tls-key {options.tls_key}: {error}") from error
    return context


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description="the Trimtab dashboard")
    parser.add_argument("--api", required=True, help="address of the API, e.g. http://127.0.0.1:8440")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback only with TLS")
    parser.add_argument("--port", type=int, default=8501, help="port to listen on; 0 takes a free one")
    parser.add_argument("--allow-host", action="append", default=[], help="a further host name that browsers may use")
    parser.add_argument("--tls-cert", default="", help="PEM file of the certificate, with its chain")
    parser.add_argument("--tls-key", default="", help="PEM file of that certificate's key")
    parser.add_argument("--ca-file", default="", help="PEM file of the authority that the API's certificate is of")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
