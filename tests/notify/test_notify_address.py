"""Where a channel may lead: judged after resolving, connected to what was judged, set by no accident."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

import pytest

from controlplane.notify.address import UrlPolicy, UrlRefused
from controlplane.notify.webhook import WebhookSender, new_secret, secret_key
from controlplane.services import deliveries as service
from controlplane.services.deliveries import ChannelRefused
from controlplane.store import deliveries
from controlplane.store.engine import Store
from tests.notify.receiving import LOCAL, receiver

OUTSIDE = "93.184.215.14"


def resolving(*addresses: str) -> Callable[[str, int], list[str]]:
    return lambda host, port: list(addresses)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("0.0.0.0", "no single machine"),
        ("::", "no single machine"),
        ("224.0.0.1", "no single machine"),
        ("10.0.0.7", "private network"),
        ("192.168.1.1", "private network"),
        ("172.16.0.1", "private network"),
        ("fd00::1", "private network"),
        ("100.64.0.1", "private network"),
        ("255.255.255.255", "private network"),
    ],
)
def test_a_name_that_leads_inside_is_refused(address: str, reason: str) -> None:
    for found in ([address], [OUTSIDE, address]):
        with pytest.raises(UrlRefused, match=reason):
            UrlPolicy(resolve=resolving(*found)).check("https://hook.example/x")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a/",
        "//a/b",
        "https://",
        "https://u:p@a/",
        "https://a:99999/",
        "https://a/ b",
        "https://ä/",
        "file:///x",
    ]
    + ["https://a/\n", "https://[::1", "https://a/" + "b" * 2048, "javascript:alert(1)"],
)
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        UrlPolicy(resolve=resolving(OUTSIDE)).check(url)


def test_what_is_allowed() -> None:
    outside = UrlPolicy(resolve=resolving(OUTSIDE))
    assert outside.check("https://hook.example/x?y=1#z").address_url == f"https://{OUTSIDE}:443/x?y=1"
    assert outside.check("https://hook.example:8443/").authority == "hook.example:8443"
    with pytest.raises(UrlRefused, match="https"):
        outside.check("http://hook.example/x")
    inside = UrlPolicy(resolve=resolving("10.1.2.3"), networks=(ip_network("10.0.0.0/8"),))
    assert inside.check("http://alerts.cluster/").address == "10.1.2.3"
    linked = UrlPolicy(resolve=resolving("169.254.1.1"), networks=(ip_network("169.254.0.0/16"),), allow_loopback=True)
    with pytest.raises(UrlRefused, match="link-local"):
        linked.check("http://metadata/")
    assert LOCAL.check("http://127.0.0.1:9/x").port == 9
    six = UrlPolicy(resolve=resolving("2606:2800::1")).check("https://hook.example/")
    assert six.address_url == "https://[2606:2800::1]:443/"


@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
def test_the_own_api_is_refused_where_loopback_is_allowed(listening: str) -> None:
    policy = UrlPolicy(allow_loopback=True, own=frozenset({(listening, 8080)}))
    with pytest.raises(UrlRefused, match="this server itself"):
        policy.check("http://127.0.0.1:8080/api/v1/runs")
    assert policy.check("http://127.0.0.1:8081/").port == 8081


def test_a_name_that_cannot_be_found_now_is_told_apart() -> None:
    def fails(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    with pytest.raises(UrlRefused) as refused:
        UrlPolicy(resolve=fails).check("https://hook.example/")
    assert refused.value.unresolved


def test_the_sender_connects_to_the_judged_address_under_the_urls_own_name() -> None:
    """A name that resolves to another address the second time is not asked a second time."""
    answers = [["127.0.0.1"], ["169.254.169.254"]]
    policy = UrlPolicy(allow_loopback=True, resolve=lambda host, port: answers.pop(0))
    with receiver() as hook:
        sender = WebhookSender(policy)
        config = {"url": f"http://hook.example:{hook.server_port}/a", "secret": hook.secret}
        assert sender.send(config, "id-1", {"type": "x"}, 1_800_000_000.0).ok
        assert (hook.taken[0].host, hook.taken[0].path) == (f"hook.example:{hook.server_port}", "/a")
        again = sender.send(config, "id-2", {"type": "x"}, 1_800_000_000.0)
        sender.close()
        assert again.unsent and "link-local" in again.error and len(hook.taken) == 1


def test_what_cannot_be_sent_is_an_outcome() -> None:
    sender = WebhookSender(LOCAL)
    url = "http://127.0.0.1:9/"
    outcomes = [
        sender.send({"url": url, "secret": new_secret()}, "i", {"text": "x" * 20_000}, 1.8e9),
        sender.send({"url": url}, "i", {}, 1.8e9),
        sender.send({"url": url, "secret": "whsec_AAAA"}, "i", {}, 1.8e9),
        sender.send({"secret": new_secret()}, "i", {}, 1.8e9),
    ]
    sender.close()
    assert all(outcome.unsent and not outcome.ok and outcome.error for outcome in outcomes)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!!", "whsec_" + "A" * 8, "whsec_" + "A" * 400, "ä"])
def test_a_secret_must_be_long_base64(secret: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        secret_key(secret)
    assert len(secret_key(new_secret())) == 32


# --- channels, as an administrator sets them ---


def put(store: Store, **changes: object) -> dict[str, object]:
    values: dict[str, object] = {"kind": "webhook", "url": "http://127.0.0.1:9/a?token=t", **changes}
    name = str(values.pop("name", "ops"))
    return service.put_channel(store, LOCAL, name, **values)  # type: ignore[arg-type]  # a test's shorthand


def secret_of(store: Store) -> str:
    with store.read() as session:
        found = deliveries.channel(session, "ops")
        assert found is not None
        return str(found.config["secret"])


def test_a_secret_is_shown_once_when_it_is_made_and_never_again(store: Store) -> None:
    made = put(store)
    assert made["secret"] == secret_of(store)
    again = put(store)
    assert "secret" not in again and secret_of(store) == made["secret"], "the same URL keeps its secret"
    shown = service.list_channels(store)
    assert shown == [
        {"name": "ops", "kind": "webhook", "url": "http://127.0.0.1:9/a?…", "enabled": True, "signed": True}
    ]


def test_a_changed_url_does_not_inherit_the_secret(store: Store) -> None:
    known = new_secret()
    assert "secret" not in put(store, secret=known)
    moved = put(store, url="http://127.0.0.1:10/")
    assert moved["secret"] == secret_of(store) != known


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"kind": "slack"}, "kind"),
        ({"name": ""}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"url": "http://169.254.169.254/latest"}, "url"),
        ({"secret": "hunter2"}, "secret"),
    ],
)
def test_a_bad_channel_is_refused_with_its_field(sqlite_store: Store, changes: dict[str, object], path: str) -> None:
    with pytest.raises(ChannelRefused) as refused:
        put(sqlite_store, **changes)
    assert refused.value.path == path
    assert service.list_channels(sqlite_store) == []


def test_a_channel_can_be_tried(sqlite_store: Store) -> None:
    sender = WebhookSender(LOCAL)
    with receiver() as hook:
        put(sqlite_store, url=hook.url, secret=hook.secret)
        outcome = service.test_channel(sqlite_store, {"webhook": sender}, "ops", actor="ada", now=1.8e9)
        assert outcome.ok and hook.taken[0].message["type"] == "channel.test"
        assert "ada" in hook.taken[0].message["data"]["sentence"]
    failed = service.test_channel(sqlite_store, {"webhook": sender}, "ops", actor="ada", now=1.8e9)
    sender.close()
    assert not failed.ok and failed.status is None
    with pytest.raises(LookupError):
        service.test_channel(sqlite_store, {}, "nobody", actor="ada", now=1.8e9)
