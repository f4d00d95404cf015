"""The Experts page's frames over HTTP: stretches by length and by ends, swings, a thinned step; tags; nothing there."""

from __future__ import annotations

import time

import pytest

from controlplane.services import frames
from controlplane.store import expert_merging, expert_thinning
from controlplane.store.expert_thinning import DAY_S, Policy
from tests.api.conftest import Api
from tests.services.batches import add_run
from tests.store.test_store_experts import record, write

RUN = "runs/run-1/experts"


@pytest.fixture
def token(api: Api) -> str:
    """A viewer's, over a run of 699 steps of which the old ones were thinned."""
    found = [record(step) for step in range(1, 700)]
    add_run(api.context.store)
    write(api.context.store, found, size=64)
    expert_merging.compact_once(api.context.store)
    expert_thinning.thin_once(api.context.store, 1.8e9 + 60 * DAY_S, Policy())
    api.context.live.take_steps(found[-64:], simulated=True, received_s=time.time())
    return api.token(role="viewer")


def test_stretches_are_named_by_length_or_by_ends_and_have_tags(api: Api, token: str) -> None:
    for asked, kind, first, last in (
        ("raster?layer=2&steps=50", "raster", 650, 699),
        ("raster?layer=2&from=10&to=40&columns=31", "raster", 10, 40),
        ("layers?steps=50", "layers", 650, 699),
        ("layers?to=500&steps=100", "layers", 401, 500),
    ):
        answer = api.call("GET", f"{RUN}/{asked}", token)
        head, arrays = frames.unpack(answer.content)
        assert (head["kind"], arrays["steps"][0], arrays["steps"][-1]) == (kind, first, last), asked
        headers = {"If-None-Match": answer.headers["etag"]}
        assert api.call("GET", f"{RUN}/{asked}", token, headers=headers).status_code == 304


def test_swings_and_a_step_that_was_thinned(api: Api, token: str) -> None:
    for asked, step, steps in (("swings", 699, 64), ("swings?step=200", 200, 64), ("swings?step=450", 448, 1)):
        head, arrays = frames.unpack(api.call("GET", f"{RUN}/{asked}", token).content)
        assert (head["step"], head["steps"], arrays["autocorrelation"].shape) == (step, steps, (3, 32))
    head, _ = frames.unpack(api.call("GET", f"{RUN}/frame?step=450", token).content)
    assert (head["step"], head["asked"]) == (448, 450)


def test_a_run_that_is_not_in_memory_has_its_newest_frame_all_the_same(api: Api) -> None:
    add_run(api.context.store)
    found = [record(step) for step in range(301, 400)]
    write(api.context.store, found, size=64)
    token = api.token(role="viewer")
    stored = api.call("GET", f"{RUN}/frame", token)
    assert stored.status_code == 200
    headers = {"If-None-Match": stored.headers["etag"]}
    assert api.call("GET", f"{RUN}/frame", token, headers=headers).status_code == 304
    api.context.live.take_steps(found[-64:], simulated=False, received_s=found[-1].at_s)
    (head, arrays), (now, drawn) = (
        frames.unpack(one.content) for one in (stored, api.call("GET", f"{RUN}/frame", token))
    )
    assert {**head, "age_s": None} == {**now, "age_s": None} and head["step"] == 399
    assert all(arrays[name].tobytes() == drawn[name].tobytes() for name in drawn)


@pytest.mark.parametrize("asked", ["layers?from=900", "raster?layer=9", "swings?step=5000", "frame?step=5000"])
def test_where_nothing_is_stored_there_is_no_frame(api: Api, token: str, asked: str) -> None:
    assert api.call("GET", f"{RUN}/{asked}", token).status_code == 404
    assert api.call("GET", f"runs/none/experts/{asked}", token).status_code == 404
