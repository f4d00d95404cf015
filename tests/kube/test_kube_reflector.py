"""The copy of a collection against a real API server: lists, watches, versions that are gone, silence, storms."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx2
import pytest

from controlplane.backends.base import BackendUnavailable
from controlplane.backends.kube.api import Gone, Json, KubeApi
from controlplane.backends.kube.bucket import TokenBucket
from controlplane.backends.kube.reflector import RESYNC_S, Reflector
from controlplane.cli import cluster_nodes
from controlplane.clock import ManualClock
from tests.kube.conftest import NAMESPACE, World, until

MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"


def config_map(name: str, value: str = "1") -> Json:
    head = {"name": name, "namespace": NAMESPACE, "labels": {"case": "reflector"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": head, "data": {"value": value}}


@pytest.fixture(autouse=True)
def clean(world: World) -> Iterator[None]:
    yield
    world.admin.delete_all(MAPS, "case=reflector")


def copy(world: World, clock: ManualClock) -> Reflector:
    return Reflector(world.admin, MAPS, clock, selector="case=reflector")


def names(found: Reflector) -> set[str]:
    return {name for _, name in found.objects()}


def test_a_list_comes_in_pages_and_is_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.backends.kube.reflector.PAGE", 2)
    for index in range(5):
        world.admin.create(MAPS, config_map(f"m{index}"))
    found = copy(world, ManualClock())
    assert found.age_s == float("inf"), "nobody has looked yet"
    found.list_once()
    assert names(found) == {f"m{index}" for index in range(5)} and found.age_s == 0.0


def test_a_watch_follows_what_happens(world: World) -> None:
    found = copy(world, ManualClock())
    found.start()
    until(lambda: found.age_s == 0.0)
    world.admin.create(MAPS, config_map("one"))
    until(lambda: names(found) == {"one"})
    world.admin.patch(f"{MAPS}/one", {"data": {"value": "2"}}, kind="merge")
    until(lambda: (found.get("one", NAMESPACE) or {})["data"]["value"] == "2")
    world.admin.delete(f"{MAPS}/one")
    until(lambda: names(found) == set())
    found.stop()


def test_a_version_that_is_gone_leads_to_a_list(world: World) -> None:
    found = copy(world, ManualClock())
    found.list_once()
    world.admin.create(MAPS, config_map("late"))
    gone = 0

    def answer(*_: object, **__: object) -> Iterator[Json]:
        nonlocal gone
        gone += 1
        raise Gone("watch", 410, "Expired", "too old resource version")
        yield

    found._api = Listing(world.admin, answer)  # type: ignore[assignment]  # the real server, but for its watch
    assert found.run_once() == 0.0 and found.counters.gone == 1
    found.run_once()
    assert names(found) == {"late"} and gone == 2


class Listing:
    """A real API whose watch is another."""

    def __init__(self, api: KubeApi, watch: object) -> None:
        self.get, self.watch = api.get, watch


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An API server without a watch cache: what etcd has compacted is gone for it too."""
    cluster = cluster_nodes.open_cluster(tmp_path_factory.mktemp("forgetful"), 0, lambda _: None, watch_cache=False)
    try:
        admin = cluster_nodes.administrator(cluster)
        admin.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        yield World(cluster, admin)
    finally:
        cluster.end()


def compact(world: World) -> None:
    """Makes etcd forget all but its newest revision."""
    newest = httpx2.post(f"{world.cluster.etcd}/v3/kv/range", json={"key": "AA=="}).json()["header"]["revision"]
    httpx2.post(
        f"{world.cluster.etcd}/v3/kv/compaction", json={"revision": newest, "physical": True}
    ).raise_for_status()


def test_a_real_watch_of_a_compacted_version_is_gone_and_the_copy_goes_on(forgetful: World) -> None:
    found = copy(forgetful, ManualClock())
    found.list_once()
    for name in ("one", "two"):
        forgetful.admin.create(MAPS, config_map(name))
    compact(forgetful)
    with pytest.raises(Gone):
        found.watch_once()
    found.list_once()
    assert names(found) == {"one", "two"}


def test_a_list_whose_next_page_is_gone_changes_nothing_and_is_begun_anew(
    forgetful: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.backends.kube.reflector.PAGE", 1)
    for name in ("three", "four"):
        forgetful.admin.create(MAPS, config_map(name))
    found = copy(forgetful, ManualClock())
    pages = iter((lambda: None, lambda: meddle(forgetful)))

    def meddle(world: World) -> None:
        world.admin.create(MAPS, config_map("five"))
        compact(world)

    forgetful.admin.before_call = lambda _call: next(pages, lambda: None)()
    try:
        assert found.run_once() == 0.0, "HTTP 410, not an event: the same answer"
    finally:
        forgetful.admin.before_call = lambda _call: None
    assert found.counters.gone == 1 and names(found) == set()
    found.list_once()
    assert {"three", "four", "five"} <= names(found)


def test_a_copy_is_made_anew_after_five_minutes_whatever_the_watch_says(world: World) -> None:
    clock = ManualClock()
    found = copy(world, clock)

    def silent(*_: object, **__: object) -> Iterator[Json]:
        return iter(())

    found._api = Listing(world.admin, silent)  # type: ignore[assignment]  # a watch that lies by saying nothing
    found.run_once()
    world.admin.create(MAPS, config_map("unheard"))
    found.run_once()
    assert names(found) == set()
    clock.advance(RESYNC_S)
    found.run_once()
    assert names(found) == {"unheard"} and found.counters.lists == 2


def test_a_server_that_does_not_answer_ages_the_copy_and_is_asked_less_and_less(world: World) -> None:
    clock = ManualClock()
    found = copy(world, clock)
    found.list_once()
    found._version = ""

    def dead(*_: object, **__: object) -> Json:
        raise BackendUnavailable("no answer")

    found._api = type("Dead", (), {"get": staticmethod(dead), "watch": staticmethod(dead)})()  # type: ignore[assignment]  # no API
    waits = []
    for _ in range(8):
        clock.advance(10)
        waits.append(found.run_once())
    assert found.age_s == 80.0 and waits[0] >= 0.5 and waits[-1] >= 15.0, "a storm is one call in half a minute"


def test_the_bucket_lets_a_burst_through_then_a_rate_and_holds_when_told() -> None:
    clock, slept = ManualClock(), []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        clock.advance(seconds)

    bucket = TokenBucket(rate_per_s=10, burst=3, monotonic=clock.monotonic, sleep=sleep)
    for _ in range(5):
        bucket.take()
    assert slept == [0.1, 0.1]
    bucket.hold(7.0)
    bucket.take()
    assert slept[-1] == 7.0


def test_callers_of_the_bucket_do_not_starve_each_other() -> None:
    bucket = TokenBucket(rate_per_s=10_000, burst=1)
    threads = [threading.Thread(target=lambda: [bucket.take() for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_a_storm_of_500_is_one_request_a_second(world: World) -> None:
    clock, calls = ManualClock(), []
    bucket = TokenBucket(monotonic=clock.monotonic, sleep=lambda seconds: clock.advance(seconds) and None)
    api = KubeApi(world.admin._client, bucket)

    class Storm:
        def request(self, *_: object, **__: object) -> object:
            calls.append(clock.monotonic())
            return Answer()

    class Answer:
        status, headers = 500, dict[str, str]()

        def read(self) -> bytes:
            return b'{"message": "etcdserver: request timed out"}'

        def close(self) -> None:
            return None

    api._pool = Storm()  # type: ignore[assignment]  # a server that answers 500 to everything
    for _ in range(10):
        with pytest.raises(BackendUnavailable, match="timed out"):
            api.get("/api/v1/nodes")
    assert calls[-1] - calls[0] >= 9.0
