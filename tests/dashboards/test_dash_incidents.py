"""The Incidents and Incident pages: normal, empty, broken; taking, silencing and resolving act once."""

from collections.abc import Iterator

import pytest
import samples_runs as samples
from fake_runs import FakeApi, serving
from pages_under_test import labels, markup, open_page
from streamlit.testing.v1 import AppTest


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with serving() as fake:
        monkeypatch.setenv("TRIMTAB_API_URL", fake.url)
        yield fake


def incidents(**query: str) -> AppTest:
    page = open_page("incidents", **query)
    assert not page.exception, page.exception
    return page


def incident() -> AppTest:
    page = open_page("incident", number="1")
    assert not page.exception, page.exception
    return page


def test_the_list_says_what_needs_a_person(api: FakeApi) -> None:
    text = markup(incidents())
    for part in (
        "<b>1 incident</b> has nobody on it.",
        'href="/incident?number=1"',
        "GPU 3 of sim-node-02",
        "thermal",
        "ops",
    ):
        assert part in text


def test_filters_choose_by_state(api: FakeApi) -> None:
    over = {**samples.INCIDENT, "number": 2, "label": "INC-0002", "state": "resolved"}
    api.answers["GET incidents"] = {"incidents": [samples.INCIDENT, over]}
    assert "INC-0002" not in markup(incidents())
    assert "INC-0002" in markup(incidents(state="all"))
    text = markup(incidents(state="over"))
    assert "INC-0002" in text
    assert "INC-0001" not in text


def test_no_incident_is_good_news(api: FakeApi) -> None:
    api.answers |= {"GET incidents": {"incidents": []}, "GET channels": {"channels": []}}
    text = markup(incidents())
    for part in ("Nothing needs a person.", "No rule has fired yet.", "Nobody is told yet."):
        assert part in text


def test_a_broken_server_is_told_with_its_code(api: FakeApi) -> None:
    api.refuse("GET incidents", 503, "store_locked", "The store is busy.")
    assert "store_locked" in markup(incidents())


def test_taking_from_the_list_sends_one_request(api: FakeApi) -> None:
    page = incidents()
    page.button(key="ack_1").click().run()
    assert [call.path for call in api.writes()] == ["incidents/1/ack"]
    assert api.writes()[0].key
    assert [toast.value for toast in page.toast] == ["INC-0001 is yours."]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"ok": True, "error": ""}, "ops took the test message\\."),
        ({"ok": False, "error": "503"}, "ops did not take it\\: 503"),
    ],
)
def test_a_channel_is_tested_and_its_answer_told(api: FakeApi, answer: dict[str, object], told: str) -> None:
    api.answers |= {"POST channels/ops/test": answer, "GET session": {"actor": "a", "role": "admin", "kind": "login"}}
    page = incidents()
    page.button(key="channel_test:ops").click().run()
    assert [call.path for call in api.writes()] == ["channels/ops/test"]
    assert [toast.value for toast in page.toast] == [told]
    page.button(key="channel_test:ops").click().run()
    first, second = (call.key for call in api.writes())
    assert first != second, "it answered: the next click is another test"


def test_a_test_message_whose_answer_was_lost_is_not_sent_twice(api: FakeApi) -> None:
    api.answers["GET session"] = {"actor": "a", "role": "admin", "kind": "login"}
    api.refuse("POST channels/ops/test", 503, "unavailable", "No answer.")
    page = incidents()
    for _ in range(2):
        page.button(key="channel_test:ops").click().run()
    assert len({call.key for call in api.writes()}) == 1


def test_only_an_administrator_tests_channels(api: FakeApi) -> None:
    assert incidents().button(key="channel_test:ops").disabled


def test_a_viewer_may_press_nothing(api: FakeApi) -> None:
    api.answers["GET session"] = {"actor": "guest", "role": "viewer", "kind": "login"}
    assert not any(labels(incidents()).values())
    assert not any(labels(incident()).values())


def test_the_incident_tells_its_story_in_order(api: FakeApi) -> None:
    page = incident()
    text = markup(page)
    for part in (
        "Left for you:",
        "time to detect",
        "13:34:22.0",
        "+1.8 s",
        "uncorrectable hardware errors",
        "connection refused",
        "25.3 % of the tokens",
    ):
        assert part in text
    assert len(page.get("echarts_chart")) == 1
    assert "trimtab incident ack 1" in page.code[0].value
    buttons = labels(page)
    assert not buttons["Return to service…"]
    assert buttons["Cordon sim\\-node\\-02…"]
    assert "Off until the errors are gone." in text


def test_a_try_again_is_the_same_act_and_the_next_taking_is_another(api: FakeApi) -> None:
    taken = api.answers["POST incidents/1/ack"]
    api.refuse("POST incidents/1/ack", 503, "unavailable", "The database does not answer.")
    page = incident()
    for _ in range(2):
        page.button(key="incident_ack").click().run()
    api.answers["POST incidents/1/ack"] = taken
    for _ in range(2):  # it was opened again in between
        page.button(key="incident_ack").click().run()
    first, second, third, fourth = (call.key for call in api.writes())
    assert first == second == third, "nobody knew whether it was taken"
    assert fourth != third


@pytest.mark.parametrize(
    ("verb", "body"), [("silence", {"reason": "known", "minutes": 120}), ("resolve", {"reason": "known"})]
)
def test_silence_and_resolve_ask_why_and_act_once(api: FakeApi, verb: str, body: dict[str, object]) -> None:
    page = incident()
    page.button(key=f"incident_{verb}").click().run()
    assert not api.writes()
    key = page.session_state["incident_dialog"]["key"]
    page.text_input(key="incident_reason").set_value("known").run()
    page.button(key="incident_do").click().run()
    assert [(call.path, call.key, call.body) for call in api.writes()] == [(f"incidents/1/{verb}", key, body)]


def test_a_resolved_incident_cannot_be_taken(api: FakeApi) -> None:
    api.answers["GET incidents/1"] = {**samples.INCIDENT_VIEW, "state": "resolved"}
    buttons = labels(incident())
    assert not buttons["Take it"]
    assert not buttons["Resolve…"]


def test_a_refused_act_says_why(api: FakeApi) -> None:
    api.refuse("POST incidents/1/ack", 409, "already_acked", "m.okafor has it.")
    page = incident()
    page.button(key="incident_ack").click().run()
    assert any("okafor has it" in toast.value for toast in page.toast)


def test_cordoning_from_the_incident_names_it_as_the_reason(api: FakeApi) -> None:
    api.answers["POST nodes/sim-node-02/cordon"] = {}
    page = incident()
    page.button(key="incident_act_cordon").click().run()
    assert not api.writes(), "it says first what it stops"
    assert any("No new attempt is placed here" in str(block.value) for block in page.markdown)
    key = page.session_state["node_dialog"]["key"]
    page.button(key="node_dialog_do").click().run()
    assert [(call.path, call.key, call.body) for call in api.writes()] == [
        ("nodes/sim-node-02/cordon", key, {"reason": "INC-0001"})
    ]
    assert any("takes no new work" in toast.value for toast in page.toast)


def test_returning_a_node_from_the_incident_is_the_same_dialog_as_on_the_fleet(api: FakeApi) -> None:
    action = {"verb": "uncordon", "label": "Return sim-node-02 to service…", "enabled": True, "why": "INC-0001 fires."}
    api.answers["GET incidents/1"] = {**samples.INCIDENT_VIEW, "actions": [action]}
    api.refuse("POST nodes/sim-node-02/uncordon", 409, "node_still_fires", "A finding still fires on sim-node-02.")
    page = incident()
    page.button(key="incident_act_uncordon").click().run()
    page.button(key="node_dialog_do").click().run()
    assert any("still fires" in str(block.value) for block in page.error)
    api.answers["POST nodes/sim-node-02/uncordon"] = {}
    page.checkbox(key="node_force").check().run()
    page.text_input(key="node_why").set_value("reset").run()
    page.button(key="node_dialog_do").click().run()
    assert api.writes()[-1].body == {"reason": "reset", "force": True}
    assert api.writes()[-1].key != api.writes()[0].key


def test_an_unknown_incident_and_none_at_all(api: FakeApi) -> None:
    assert "There is no such thing." in markup(open_page("incident", number="99"))
    assert "All incidents" in markup(open_page("incident"))


def test_a_bare_incident_has_no_empty_boxes(api: FakeApi) -> None:
    bare = {
        **samples.INCIDENT_VIEW,
        "timeline": [],
        "kernel": [],
        "series": None,
        "actions": [],
        "deliveries": [],
        "node": None,
    }
    api.answers["GET incidents/1"] = {
        **bare,
        "cli": [],
        "tiles": [],
        "sentence": {"lead": "It fired.", "rest": "", "left": ""},
    }
    page = incident()
    text = markup(page)
    assert "Nothing is recorded yet." in text
    assert "Nobody: no channel" in text
    assert "Left for you" not in text
    assert not page.get("echarts_chart")


def test_hostile_text_never_becomes_markup(api: FakeApi) -> None:
    hostile = samples.HOSTILE
    row = {**samples.INCIDENT, "title": hostile, "node": hostile, "rule": hostile}
    api.answers["GET incidents"] = {"incidents": [row]}
    api.answers["GET channels"] = {"channels": [{"name": hostile, "kind": hostile, "url": hostile}]}
    api.answers["GET incidents/1"] = {
        **samples.INCIDENT_VIEW,
        "rule": hostile,
        "sentence": {"lead": hostile, "rest": hostile, "left": hostile},
        "kernel": [{"at_s": 1.0, "priority": 1, "text": hostile, "pci_address": None}],
        "actions": [{"verb": "cordon", "label": hostile, "enabled": False, "why": hostile}],
    }
    for text in (markup(incidents()), markup(incident())):
        assert "<img" not in text
        assert "&lt;img" in text
