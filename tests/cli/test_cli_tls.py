"""Beyond loopback only with TLS: server, dashboard and command line speak it to each other, or say why they cannot."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import streamlit as st
from trimtab_process import TRIMTAB, trimtab

from controlplane.cli import serve
from controlplane.cli.kube import kube_options
from controlplane.client import Client, Unreachable
from controlplane.settings import HELP, Settings, SettingsError, load
from dashboards import __main__ as dashboard
from dashboards import data
from tests import certificates
from tests.certificates import Papers


@dataclass
class Served:
    """`trimtab serve` with its dashboard on every address of this machine."""

    api: str
    link: str
    token: str
    papers: Papers
    stderr: Callable[[], str]


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return certificates.make(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def served(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    command = [*TRIMTAB, "serve", "--data", str(folder), "--host", "0.0.0.0", "--port", "0", "--dashboard-port", "0"]
    command += ["--tls-cert", str(papers.cert), "--tls-key", str(papers.key), "--tls-ca", str(papers.ca)]
    command += ["--public-url", "https://trimtab.example:8440"]
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("trimtab ready: dashboard https://127.0.0.1:"), (folder / "stderr").read_text()
        words = ready.split()
        token = (folder / "admin-token").read_text()
        yield Served(words[-1], words[3], token, papers, (folder / "stderr").read_text)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def ask(url: str, path: str, ca: Path | None, headers: Mapping[str, str] | None = None) -> tuple[int, Message]:
    """Status and headers of a GET, over TLS checked by an authority, or in the clear."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port
    trusted = ssl.create_default_context(cafile=str(ca)) if ca else None
    with closing(
        http.client.HTTPSConnection(host, port, timeout=20, context=trusted)
        if trusted
        else http.client.HTTPConnection(host, port, timeout=20)
    ) as connection:
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers


def test_the_command_line_checks_the_server_by_its_authority(served: Served, tmp_path: Path) -> None:
    known = {"TRIMTAB_URL": served.api, "TRIMTAB_TOKEN": served.token}
    answer = trimtab("node", "ls", TRIMTAB_TLS_CA=str(served.papers.ca), **known)
    assert answer.returncode == 0, answer.stderr
    stranger = trimtab("node", "ls", **known)
    assert stranger.returncode == 6 and "certificate verify failed" in stranger.stderr
    other = certificates.make(tmp_path, "another authority")
    assert trimtab("node", "ls", TRIMTAB_TLS_CA=str(other.ca), **known).returncode == 6
    missing = trimtab("node", "ls", TRIMTAB_TLS_CA=str(tmp_path / "no"), **known)
    assert missing.returncode == 6 and str(tmp_path / "no") in missing.stderr and "Traceback" not in missing.stderr


def test_nothing_is_answered_in_the_clear(served: Served) -> None:
    for url in (served.api, served.link):
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(url, "/healthz", None)


def test_the_dashboard_serves_and_reads_over_tls(served: Served) -> None:
    ca = served.papers.ca
    assert ask(served.link, "/healthz", ca)[0] == 200
    status, headers = ask(served.link, urlsplit(served.link).path, ca)
    assert status == 303, "the API took the link"
    cookie = str(headers["Set-Cookie"]).split(";")[0]
    assert ask(served.link, "/", ca, {"Cookie": cookie, "Accept": "text/html"})[0] == 200
    named = ask(served.link, "/healthz", ca, {"Host": "trimtab.example"})
    assert named[0] == 200, "the host of public_url is one that browsers may use"
    assert ask(served.link, "/healthz", ca, {"Host": "elsewhere.example"})[0] == 421


def test_a_page_checks_the_api_by_its_authority(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.API_VARIABLE, served.api)
    monkeypatch.setenv(data.CA_VARIABLE, str(served.papers.ca))
    monkeypatch.setattr(st, "session_state", {})
    monkeypatch.setattr(data, "token", lambda: served.token)
    data.close()
    assert data.get("session")["role"] == "admin"
    data.close()
    monkeypatch.setenv(data.CA_VARIABLE, "")
    monkeypatch.setattr(st, "session_state", {})
    with pytest.raises(data.ApiError, match="certificate verify failed"):
        data.get("session")
    data.close()


def test_the_administrators_token_is_not_in_a_clusters_logs(served: Served) -> None:
    assert "is kept in" in served.stderr() and served.token not in served.stderr()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host": "0.0.0.0"}, "tls_cert and tls_key"),
        ({"host": "10.1.2.3", "tls_cert": "a"}, "tls_key is not"),
        ({"tls_key": "b"}, "tls_cert is not"),
        ({"backend": "slurm"}, "local or kube"),
        ({"quarantine_share": "5"}, "quarantine_share .* a share, 0 to 1"),
    ],
)
def test_settings_that_cannot_hold_together_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(given, {})


def test_papers_that_cannot_be_used_are_named(papers: Papers, tmp_path: Path) -> None:
    other = certificates.make(tmp_path / "other")
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for cert, key, ca, said in (
        (papers.cert, other.key, papers.ca, "KEY_VALUES_MISMATCH"),
        (tmp_path / "none", papers.key, papers.ca, "none"),
        (papers.cert, papers.key, broken, "broken.pem"),
    ):
        with pytest.raises(serve.StartError, match=said):
            serve.tls_context(Settings(tls_cert=str(cert), tls_key=str(key), tls_ca=str(ca)))
    words = ["--tls-cert", str(papers.cert), "--tls-key", str(other.key)]
    with pytest.raises(dashboard.StartError, match="KEY_VALUES_MISMATCH"):
        dashboard.tls_context(dashboard.parse(["--api", "x", *words]))


def test_the_dashboard_by_itself_refuses_too() -> None:
    command = [sys.executable, "-m", "dashboards", "--api", "https://127.0.0.1:1", "--port", "0", "--host", "0.0.0.0"]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert plain.returncode == 1 and "--tls-cert and --tls-key" in plain.stderr and "Traceback" not in plain.stderr


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="nothing-here"):
        Client("https://127.0.0.1:1", "", str(tmp_path / "nothing-here"))


def test_settings_of_the_cluster_become_the_backends_options() -> None:
    assert kube_options(Settings()) is None
    others = ("kube_config", "kube_node_actuator", "kube_ray")
    names = [name for name in HELP if name.startswith("kube_") and name not in others]
    values = {f"TRIMTAB_{name.upper()}": f"/the/{name}" for name in names}
    options = kube_options(load({}, {**values, "TRIMTAB_BACKEND": "kube", "TRIMTAB_KUBE_NODE_ACTUATOR": "true"}))
    assert options is not None
    found = {name: getattr(options, name.removeprefix("kube_")) for name in names}
    assert found == {name: f"/the/{name}" for name in names}
