"""Expert records over HTTP: a step as a table, a run as a file, and what is said when there is none."""

from __future__ import annotations

import csv
import io
import time

import numpy as np
import pytest

from controlplane.services import frames
from controlplane.store import expert_merging, expert_thinning
from controlplane.store.expert_records import ExpertStep
from controlplane.store.expert_thinning import DAY_S, Policy
from controlplane.store.tables import Run
from tests.api.conftest import Api
from tests.services.batches import add_run
from tests.store.test_store_experts import record, write

RUN = "runs/run-1/experts"


@pytest.fixture
def steps(api: Api) -> list[ExpertStep]:
    """A run whose old steps were thinned; its newest are in memory as well."""
    store = api.context.store
    found = [record(step) for step in range(1, 700)]
    add_run(store)
    write(store, found, size=64)
    expert_merging.compact_once(store)
    expert_thinning.thin_once(store, 1.8e9 + 60 * DAY_S, Policy())
    api.context.live.take_steps(found[-64:], simulated=True, received_s=time.time() - 100)
    return found


def test_the_newest_step_is_a_table(api: Api, steps: list[ExpertStep]) -> None:
    token = api.token(role="viewer")
    found = api.call("GET", f"{RUN}/table?layer=2", token).json()
    assert (found["run"], found["step"], found["layers"], found["stale"]) == ("run-1", 699, 3, True)
    assert [row["layer"] for row in found["by_layer"]] == [0, 1, 2]
    assert found["sentence"]["lead"] and len(found["tiles"]) == 6
    last = steps[-1]
    assert [row["count"] for row in found["by_slot"]] == last.counts[2].tolist()
    assert [row["skip"] for row in found["by_slot"]] == [False] * 4 + [True]
    loads = last.counts[2, :4] * 4 / last.counts[2, :4].sum()
    np.testing.assert_allclose([row["load"] for row in found["by_slot"][:4]], loads)
    worst = max(found["by_layer"], key=lambda row: row["cv_floor"])
    frame = api.call("GET", f"{RUN}/summary", token).json()
    assert frame["worst_layer"] == {"layer": worst["layer"], "cv_floor": worst["cv_floor"]}


def test_a_summary_is_of_the_step_that_is_asked_for(api: Api, steps: list[ExpertStep]) -> None:
    token = api.token(role="viewer")
    past = api.call("GET", f"{RUN}/summary?step=200", token).json()
    assert (past["step"], past["asked"], past["stale"]) == (200, 200, False)
    thinned = api.call("GET", f"{RUN}/summary?step=450", token).json()
    assert (thinned["step"], thinned["asked"]) == (448, 450), "the nearest whose counts are there"
    none = api.call("GET", f"{RUN}/summary?step=9999", token)
    assert none.status_code == 404 and "no record of step 9999" in none.text
    head = frames.unpack(api.call("GET", f"{RUN}/frame", token).content)[0]
    assert head["rules"]["expert-imbalance"] == dict(api.context.book["expert-imbalance"].thresholds)


def test_a_run_that_has_ended_did_not_end_at_every_step_of_its_past(api: Api, steps: list[ExpertStep]) -> None:
    with api.context.store.write() as session:
        session.get_one(Run, "run-1").status = "succeeded"
    token = api.token(role="viewer")
    for asked in ("table", "summary"):
        told = api.call("GET", f"{RUN}/{asked}?step=5", token).json()["sentence"]["lead"]
        assert told == "Step 5: the balancing biases are still settling.", asked


def test_a_step_of_the_past_knows_only_its_neighbours(api: Api, steps: list[ExpertStep]) -> None:
    token = api.token(role="viewer")
    alone = api.call("GET", f"{RUN}/table?step=448", token).json()
    assert (alone["step"], alone["stale"]) == (448, False)
    assert {row["lag1"] for row in alone["by_layer"]} == {None}, "the step before it that is kept is no neighbour"
    among = api.call("GET", f"{RUN}/table?step=200", token).json()
    assert None not in {row["lag1"] for row in among["by_layer"]}


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ("table?step=450", "thinned", "the nearest step that has them is 448."),
        ("table?step=5000", "no_data", "There is no record of step 5000 of run-1"),
        ("table?layer=9", "not_found", "It has layers 0 to 2."),
        ("export?from=800", "no_data", "There are steps 1 to 699."),
        ("export?from=450&to=455", "thinned", "ask for what=layers. The nearest step that has them is 448."),
        ("export?layers=0,7", "not_found", "It has layers 0 to 2."),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    api: Api, steps: list[ExpertStep], asked: str, code: str, said: str
) -> None:
    answer = api.call("GET", f"{RUN}/{asked}", api.token(role="viewer"))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (404, code)
    assert said in f"{problem['title']} {problem['detail']} {problem['hint']}"


@pytest.mark.parametrize("asked", ["layers=5-1", "layers=a", "layers=1,", "layers=0-99999", "format=xls", "what=all"])
def test_a_request_that_says_nothing_is_refused(api: Api, asked: str) -> None:
    add_run(api.context.store)
    answer = api.call("GET", f"{RUN}/export?{asked}", api.token(role="viewer"))
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_request")
    assert answer.json()["problems"][0]["path"] == asked.split("=")[0]


def test_an_export_is_a_file_for_whoever_may_read(api: Api, steps: list[ExpertStep]) -> None:
    path = f"{RUN}/export?layers=0-1&from=690"
    assert api.call("GET", path).status_code == 401
    assert api.call("GET", path, api.token("agent", node="node-a")).status_code == 403
    answer = api.call("GET", path, api.token(role="viewer"))
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="run-1-experts-loads.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {int(row["step"]) for row in rows} == set(range(690, 700))
    assert sum(int(row["count"]) for row in rows) == sum(int(one.counts[:2].sum()) for one in steps[689:])
    for form, kind in (("parquet", "application/vnd.apache.parquet"), ("npz", "application/zip")):
        answer = api.call("GET", f"{path}&format={form}", api.token(role="viewer"))
        assert answer.headers["content-type"] == kind and answer.content[:2] in (b"PA", b"PK")


def test_a_run_without_records_says_so(api: Api) -> None:
    add_run(api.context.store)
    token = api.token(role="viewer")
    for asked in ("table", "export"):
        answer = api.call("GET", f"{RUN}/{asked}", token)
        assert (answer.status_code, answer.json()["code"]) == (404, "no_data")
        assert api.call("GET", f"runs/none/experts/{asked}", token).json()["code"] == "not_found"


@pytest.mark.parametrize("path", ["table?step=", "frame?step=", "export?to=", "raster?layer=0&from=", "layers?steps="])
def test_a_number_that_is_no_step_is_refused(api: Api, path: str) -> None:
    assert api.call("GET", f"{RUN}/{path}{10**20}", api.token(role="viewer")).status_code == 422
