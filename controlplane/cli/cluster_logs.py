"""The one page of a kubelet that `kubectl logs` needs: /containerLogs/NAMESPACE/POD/CONTAINER, over TLS on loopback."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MOST_BYTES = 16 << 20


def kubelets_part(log: bytes, lines: int | None, limit: int | None) -> bytes:
    """What a kubelet sends of a log: of the last so many lines the first so many bytes."""
    at = len(log.rstrip(b"\n"))
    for _ in range(lines if lines is not None else 0):
        at = log.rfind(b"\n", 0, at)
        if at < 0:
            break
    tail = log if lines is None else log[at + 1 :] if lines else b""
    return tail[: min(limit or MOST_BYTES, MOST_BYTES)]


def _number(query: dict[str, list[str]], name: str) -> int | None:
    return int(query[name][0]) if query.get(name) else None


def certificate(folder: Path, now_s: float) -> tuple[Path, Path]:
    """(certificate, key) files of a self-signed certificate for 127.0.0.1; as a kubelet makes its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trimtab-runner")])
    begin = datetime.fromtimestamp(now_s, UTC) - timedelta(minutes=5)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "runner.crt", folder / "runner.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


class LogServer:
    """Serves the end of a pod's log; `path_of(pod)` is its file, None for a pod that is not ours."""

    def __init__(self, folder: Path, now_s: float, path_of: Callable[[str], Path | None]) -> None:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                parts = asked.path.strip("/").split("/")
                path = path_of(parts[2]) if len(parts) == 4 and parts[0] == "containerLogs" else None
                if path is None or not path.exists():
                    self.send_error(404, "no such pod here")
                    return
                query = parse_qs(asked.query)
                body = kubelets_part(path.read_bytes(), _number(query, "tailLines"), _number(query, "limitBytes"))
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing: the API server asks, people read its log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(folder, now_s))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="kubelet", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
