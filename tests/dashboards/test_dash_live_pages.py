"""Now, Fleet and Experts as their readers meet them: normal, empty, broken, hostile; and that a click acts once."""

from collections.abc import Iterator

import fake_api
import pytest
from fake_api import World, incident_row, run_row, serving
from fake_fleet import HOSTILE, Fleet
from fake_training import Training
from pages_under_test import labels, markup, open_page
from streamlit.testing.v1 import AppTest

from dashboards import data
from dashboards.views import fleet_node


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with serving(World(Training(layers=8), Fleet(4), [run_row()])) as found:
        monkeypatch.setenv("TRIMTAB_API_URL", found.url)
        monkeypatch.setattr(data, "token", lambda: "tt_login_operator")
        yield found


def page(name: str, **query: str) -> AppTest:
    opened = open_page(name, **query)
    assert not opened.exception, opened.exception
    return opened


def canvases(opened: AppTest) -> list[str]:
    """The kinds of live pictures on the page, in order."""
    import json

    kinds = []
    for block in opened.get("bidi_component"):
        proto = block.proto
        kinds.append(json.loads(proto.json)["kind"] if proto.json else "")
    return kinds


def test_now_tells_what_needs_a_person_and_the_rest(world: World) -> None:
    opened = page("now")
    text = markup(opened)
    for part in ("Two things need a person.", "Return or replace sim-node-017.", "2 h 12 m, nobody on it", "SIMULATED"):
        assert part in text
    assert "zaya1-8b-pt2" in text and "INC-0415" in text and "23.7 M tok/s" in text
    assert sorted(canvases(opened)) == ["badge", "ribbon"]
    assert labels(opened) == {"Open INC-0412": True, "Take it": True, "Open layer 31": True}


def test_now_without_anything_says_so_and_shows_no_zero(world: World) -> None:
    world.now = {
        **fake_api.now_view(world),
        "sentence": {"lead": "Nothing needs a person.", "rest": ""},
        "fleet": {"nodes": 0, "gpus": 0, "counts": {}},
        "simulated": False,
        "age_s": None,
        **{name: [] for name in ("needs", "tiles", "running", "incidents", "lost")},
    }
    opened = page("now")
    text = markup(opened)
    for part in ("Nothing needs a person.", "No node has reported yet.", "Nothing runs.", "None is open."):
        assert part in text
    assert "SIMULATED" not in text and "ribbon" not in canvases(opened)
    assert not opened.get("echarts_chart")


def test_now_lists_the_worst_needs_and_counts_the_rest(world: World) -> None:
    view = fake_api.now_view(world)
    view["needs"] = [{**view["needs"][0], "incident": number, "link": None} for number in range(1, 8)]
    view["incidents_open"] = 60
    world.now = view
    opened = page("now")
    assert sum(label.startswith("Open INC") for label in labels(opened)) == 4
    text = markup(opened)
    assert "and 3 more" in text and "open 60" in text


def test_now_shows_where_a_restarting_run_starts_from(world: World) -> None:
    world.runs = [run_row(step=480, steps=600, progress=0.8, starts_from=480, eta=None, tokens_per_s=None)]
    assert "starts from 480" in markup(page("now"))


def test_now_takes_an_incident_once(world: World) -> None:
    opened = page("now")
    next(button for button in opened.button if button.label == "Take it").click().run()
    assert [(path, body) for path, _, body in world.posts] == [("incidents/412/ack", {})]
    assert world.posts[0][1]


def test_a_viewer_looks_but_does_not_act(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "token", lambda: "tt_login_viewer")
    assert labels(page("now"))["Take it"] is False
    acts = labels(page("fleet", node="sim-node-00"))
    assert (acts["Cordon…"], acts["Drill…"]) == (False, False)


def test_fleet_names_what_is_out_worst_first(world: World) -> None:
    opened = page("fleet")
    text = markup(opened)
    assert "1 node out: sim-node-02." in text and "GPU 3 reported 1,893 uncorrectable memory errors." in text
    assert "SIMULATED" in text and "training 16" in text
    assert sorted(canvases(opened)) == ["badge", "fleet", "histogram", "histogram"]


def test_fleet_opens_the_node_that_the_address_names(world: World) -> None:
    opened = page("fleet", node="sim-node-02")
    text = markup(opened)
    for part in (
        "<h1>sim-node-02</h1>",
        "quarantined, cordoned",
        "1,893",
        "rule hbm_uncorrectable matched",
        "8 of 8 links up",
    ):
        assert part in text
    assert labels(opened)["Return to service…"]


def test_fleet_real_nodes_have_no_drill_and_no_chip(world: World) -> None:
    world.fleet = Fleet(4, simulated=False)
    opened = page("fleet", node="sim-node-00")
    assert "Drill…" not in labels(opened) and "SIMULATED" not in markup(opened)


def test_fleet_cordons_once_with_its_reason(world: World) -> None:
    opened = page("fleet", node="sim-node-00")
    opened.button(key="node_cordon").click().run()
    opened.text_input(key="node_why").set_value("fan noise").run()
    opened.button(key="node_dialog_do").click().run()
    assert [(path, body) for path, _, body in world.posts] == [("nodes/sim-node-00/cordon", {"reason": "fan noise"})]
    assert world.posts[0][1]
    back = page("fleet", node="sim-node-00")
    assert "Return to service…" in labels(back) and "<b>fan noise</b>" not in markup(back)
    back.button(key="node_uncordon").click().run()
    assert not back.checkbox and len(world.posts) == 1, "nothing is sent before it is said what happens"
    back.button(key="node_dialog_do").click().run()
    assert world.posts[1][::2] == ("nodes/sim-node-00/uncordon", {"reason": ""})


def test_fleet_says_what_draining_means_before_it_drains(world: World) -> None:
    opened = page("fleet", node="sim-node-00")
    opened.button(key="node_drain").click().run()
    assert any("saves, stops and goes on" in str(block.value) for block in opened.markdown) and not world.posts
    opened.text_input(key="node_why").set_value("new fan").run()
    opened.button(key="node_dialog_do").click().run()
    assert [(path, body) for path, _, body in world.posts] == [("nodes/sim-node-00/drain", {"reason": "new fan"})]


def test_fleet_returns_a_faulty_node_only_to_who_says_so_and_why(world: World) -> None:
    opened = page("fleet", node="sim-node-02")
    opened.button(key="node_uncordon").click().run()
    text = markup(opened)
    assert "GPU 3 reported 1,893 uncorrectable memory errors" in text and "INC-0412" in text
    opened.button(key="node_dialog_do").click().run()
    assert any("still fires" in str(block.value) for block in opened.error)
    opened.checkbox(key="node_force").check().run()
    opened.button(key="node_dialog_do").click().run()
    assert any("Say why" in str(block.value) for block in opened.error)
    opened.text_input(key="node_why").set_value("memory replaced").run()
    opened.button(key="node_dialog_do").click().run()
    assert [body for _, _, body in world.posts] == [
        {"reason": ""},
        {"reason": "memory replaced", "force": True},
    ]
    assert len({key for _, key, _ in world.posts}) == 2, "what says more is another request"
    assert "node_dialog" not in opened.session_state


def test_fleet_calls_no_node_healthy_that_has_a_finding(world: World) -> None:
    row = world.fleet.view("sim-node-02")
    assert row is not None
    serving_it = {**row, "state": "healthy", "cordoned": False, "state_reason": "by admin"}
    assert fleet_node.state_words(serving_it) == ("fault", "×", "in service")
    assert "by admin" not in fleet_node.reason(serving_it)
    long = f"{fleet_node.headline(row)} so the run restarts without it."
    assert fleet_node.why_out({**row, "cordoned": True, "state_reason": long}) == "for that finding"
    assert fleet_node.why_out({**row, "cordoned": True, "state_reason": "fan noise"}) == "fan noise"
    assert fleet_node.state_words({**serving_it, "findings": []}) == ("ok", "●", "healthy")
    told = fleet_node.happened(
        [{"at_s": 1.0, "sentence": fleet_node.headline(row), "detail": "hbm-uncorrectable", "level": "fault"}],
        fleet_node.headline(row),
    )
    assert "1,893" not in told and "rule hbm-uncorrectable fires" in told


def test_fleet_starts_a_drill_once(world: World) -> None:
    opened = page("fleet", node="sim-node-00")
    opened.button(key="node_drill").click().run()
    opened.selectbox(key="drill_gpu").set_value(5).run()
    opened.button(key="node_dialog_do").click().run()
    assert [(path, body) for path, _, body in world.posts] == [
        ("nodes/sim-node-00/drills", {"kind": "hbm-uncorrectable", "gpu": 5})
    ]


def test_fleet_without_nodes_says_how_to_get_one(world: World) -> None:
    world.fleet = Fleet(0)
    assert "No node has reported yet." in markup(page("fleet"))


def test_fleet_an_unknown_node_says_so_and_can_be_closed(world: World) -> None:
    opened = page("fleet", node="nobody")
    assert "There is no such node." in markup(opened)
    opened.button(key="node_close").click().run()
    assert "node" not in opened.query_params


@pytest.mark.parametrize(("name", "path"), [("now", "/now"), ("fleet", "/nodes"), ("experts", "/runs")])
@pytest.mark.parametrize(("status", "told"), [(500, "It does not work today."), (401, "Your session has ended.")])
def test_a_page_that_cannot_read_says_what_failed(world: World, name: str, path: str, status: int, told: str) -> None:
    world.broken[path] = status
    assert told in markup(page(name))


@pytest.mark.parametrize("name", ["now", "fleet", "experts"])
def test_an_api_that_does_not_answer_is_named_with_what_goes_on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TRIMTAB_API_URL", "http://127.0.0.1:9")
    text = markup(page(name))
    assert "The control plane does not answer." in text and "Runs go on without this page." in text


def test_no_page_runs_what_the_api_says(world: World) -> None:
    world.runs = [run_row(name=HOSTILE, stage=HOSTILE)]
    world.fleet.name = HOSTILE
    view = fake_api.now_view(world)
    view["needs"][0] |= {"lead": HOSTILE, "rest": HOSTILE, "owner": HOSTILE}
    view["tiles"][0] |= {"label": HOSTILE, "value": HOSTILE, "unit": HOSTILE, "context": HOSTILE}
    view["incidents"] = [incident_row(title=HOSTILE, label=HOSTILE, owner=HOSTILE)]
    view["sentence"] = {"lead": HOSTILE, "rest": HOSTILE}
    world.now = view
    for opened in (page("now"), page("fleet"), page("fleet", node=world.fleet.names()[2])):
        text = markup(opened)
        assert "<img" not in text
        assert "&lt;img src=x" in text
    assert "<img" not in markup(page("experts"))


def test_what_the_cluster_says_of_a_node_is_told_where_it_is_out_of_order() -> None:
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is ready"}
    pressure = {"type": "MemoryPressure", "status": "True", "reason": "Low", "message": "<1 GiB"}
    calm = {"type": "DiskPressure", "status": "False", "reason": "Fine", "message": "nothing of note"}
    theirs = {"type": "amd.com/gpu-remediation", "status": "False", "reason": "Idle", "message": ""}
    row = {"ready": True, "schedulable": False, "cordon": "by Trimtab, this session", "others": "amd-gpu-unhealthy"}
    text = fleet_node.platform_block({**row, "conditions": [ready, pressure, calm, theirs], "lease_age_s": 4.0})
    for part in ("cordoned by Trimtab, this session", "amd-gpu-unhealthy", "4 s old", "&lt;1 GiB", "gpu-remediation"):
        assert part in text
    assert "nothing of note" not in text and "KubeletReady" not in text


def test_fleet_says_what_the_cluster_says_of_a_node(world: World) -> None:
    assert "Kubernetes" not in markup(page("fleet", node="sim-node-02"))
    world.platform = {"platforms": [{"backend": "kube", "ready": False, "schedulable": True}], "problems": []}
    text = markup(page("fleet", node="sim-node-02"))
    assert "Kubernetes" in text and "<span>ready</span><b>no</b>" in text
    world.platform = {"platforms": [], "problems": ["kube: no answer"]}
    assert "The cluster cannot be asked: kube: no answer" in markup(page("fleet", node="sim-node-02"))
