"""The Job page as its reader meets it: normal, empty, broken; and that a click acts once."""

from collections.abc import Iterator
from typing import Any

import pytest
import samples_runs as samples
from fake_runs import FakeApi, serving
from pages_under_test import labels, markup, open_page
from streamlit.testing.v1 import AppTest

from dashboards import draft

RUN = f"runs/{samples.RUN_ID}"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with serving() as fake:
        monkeypatch.setenv("TRIMTAB_API_URL", fake.url)
        yield fake


def job(**query: str) -> AppTest:
    page = open_page("job", run=samples.RUN_ID, **query)
    assert not page.exception, page.exception
    return page


def test_the_page_tells_the_whole_run(api: FakeApi) -> None:
    page = job()
    text = markup(page)
    for part in ("zaya-toy", "attempt 2 · pretrain · 2 nodes × 8 GPU · admin · local", "SIMULATED", "step 140 of 160"):
        assert part in text
    assert "<b>GPU 3 of sim-node-02 reported 1,893 uncorrectable memory errors</b>" in text
    assert "tainted" in text
    assert len(page.get("echarts_chart")) == 1
    buttons = labels(page)
    assert all(buttons[label] for label in ("Restart from…", "Pause", "Clone", "Stop"))


def test_the_page_says_how_often_a_checkpoint_would_lose_least(api: FakeApi) -> None:
    text = markup(job()).replace("\u00a0", " ")
    for part in ("Cost of a failure", "each 421 steps, 14 m 02 s", "a checkpoint blocks 2.0 s (assumed)"):
        assert part in text


def test_a_tainted_checkpoint_has_no_way_to_restart_from_it(api: FakeApi) -> None:
    page = job()
    assert page.button(key="from_cp-96").disabled
    assert not page.button(key="from_cp-88").disabled


def test_a_run_without_attempts_is_empty_and_not_zero(api: FakeApi) -> None:
    api.answers[f"GET {RUN}"] = samples.new_run_view()
    api.answers[f"GET {RUN}/steps"] = {"attempts": [], "tokens_per_step": None}
    waits = "It is queued: 1 more node of 2 needed: <none> is known."
    api.answers[f"GET {RUN}/why"] = {**samples.NO_WHY, "waits": waits}
    page = job()
    text = markup(page)
    said = "It did not. It is queued: 1 more node of 2 needed: &lt;none&gt; is known."
    for part in ("no attempt yet", "the chart begins with the first one", said, "None yet"):
        assert part in text
    assert ">0<" not in text
    assert not labels(page)["Restart from…"]


def test_no_run_in_the_address_offers_the_list(api: FakeApi) -> None:
    page = open_page("job")
    assert not page.exception
    assert "All jobs" in markup(page)


def test_an_unknown_run_is_said_to_be_unknown(api: FakeApi) -> None:
    page = open_page("job", run="none-such")
    assert not page.exception
    assert "There is no such thing." in markup(page)


def test_a_server_that_refuses_is_told_with_its_code(api: FakeApi) -> None:
    api.refuse(f"GET {RUN}", 503, "store_locked", "The store is busy.", hint="It is tried again.")
    text = markup(job())
    assert "store_locked" in text
    assert "The store is busy." in text


def test_when_the_server_goes_away_the_last_data_stay(api: FakeApi) -> None:
    page = job()
    api.refuse(f"GET {RUN}/why", 503, "store_locked", "The store is busy.")
    page.session_state["tt_reads"] = {}
    page.run()
    assert not page.exception
    assert "1,893 uncorrectable memory errors" in markup(page)


@pytest.mark.parametrize(
    ("verb", "consequence"),
    [
        ("stop", "cannot be resumed"),
        ("pause", "Resume starts the next attempt"),
        ("restart", "attempt 3 starts from step"),
    ],
)
def test_an_act_states_its_consequence_and_is_sent_once_with_its_key(api: FakeApi, verb: str, consequence: str) -> None:
    page = job()
    page.button(key=f"job_{verb}").click().run()
    assert not page.exception, page.exception
    assert not api.writes(), "opening a dialog sends nothing"
    assert any(consequence in str(block.value).replace("\\", "") for block in page.markdown)
    key = page.session_state["job_dialog"]["key"]
    page.button(key="job_dialog_do").click().run()
    assert [(call.path, call.key) for call in api.writes()] == [(f"{RUN}/{verb}", key)]
    assert "job_dialog" not in page.session_state


def test_a_restart_carries_the_chosen_checkpoint(api: FakeApi) -> None:
    page = job()
    page.button(key="from_cp-88").click().run()
    assert page.selectbox(key="restart_from").value == "cp-88"
    assert any("52 steps" in str(block.value) for block in page.markdown)
    page.multiselect(key="restart_without").select("sim-node-03").run()
    page.button(key="job_dialog_do").click().run()
    assert api.writes()[-1].body == {"checkpoint_id": "cp-88", "exclude_nodes": ["sim-node-03"]}


PROPOSAL = {
    "sentence": "Proposed: GPU 3 of sim-node-02 failed, so zaya-toy restarts without sim-node-02.",
    "at_s": 1_790_000_000.0,
    "decision": {"mode": "advise", "excluded_nodes": ["sim-node-02"], "checkpoint_id": "cp-88"},
    "fault": {"rule": "hbm-uncorrectable", "node": "sim-node-02", "entity": "gpu3", "onset_s": 1.0},
}


def test_a_proposal_is_shown_and_opens_the_restart_that_it_means(api: FakeApi) -> None:
    api.answers[f"GET {RUN}/why"] = {**samples.NO_WHY, "proposal": PROPOSAL}
    page = job()
    text = markup(page)
    assert "<b>Proposed:</b> GPU 3 of sim-node-02 failed" in text and "waits for a person" in text
    assert "the only one" not in text and "leaves it to a person" in text
    page.button(key="job_proposal").click().run()
    assert not api.writes()
    assert page.selectbox(key="restart_from").value == "cp-88"
    assert page.multiselect(key="restart_without").value == ["sim-node-02"]
    page.button(key="job_dialog_do").click().run()
    assert api.writes()[-1].body == {"checkpoint_id": "cp-88", "exclude_nodes": ["sim-node-02"]}


def test_no_proposal_no_button(api: FakeApi) -> None:
    assert "job_proposal" not in [button.key for button in job().button]


def test_a_restarting_run_is_not_back_at_nothing(api: FakeApi) -> None:
    api.answers[f"GET {RUN}"] = samples.run_view(step=88, progress=0.55, starts_from=88, loss=None, eta=None)
    text = markup(job())
    assert "starts from step 88 of 160 · 55.0 %" in text and "no step yet, 160 planned" not in text
    assert 'style="width:55.00%"' in text


def test_an_ended_run_says_that_no_more_data_comes(api: FakeApi) -> None:
    api.answers[f"GET {RUN}"] = samples.run_view(status="succeeded")
    assert "run has ended" in markup(job())


def test_every_rank_of_an_attempt_can_be_read(api: FakeApi) -> None:
    spec = draft.with_value(samples.SPEC, "resources.ranksPerNode", 4)
    api.answers[f"GET {RUN}"] = samples.run_view(spec=spec)
    page = job()
    assert page.selectbox(key="job_log_rank").options == [f"rank {number}" for number in range(8)]
    page.selectbox(key="job_log_rank").set_value(7).run()
    assert api.calls[-1].query["rank"] == "7" or any(call.query.get("rank") == "7" for call in api.calls)


def test_only_verified_checkpoints_are_offered(api: FakeApi) -> None:
    rows = [{**row, "state": "complete"} if row["id"] == "cp-88" else row for row in samples.run_view()["checkpoints"]]
    api.answers[f"GET {RUN}"] = samples.run_view(checkpoints=rows)
    page = job()
    assert page.button(key="from_cp-88").disabled
    page.button(key="job_restart").click().run()
    assert not any("step 88" in option for option in page.selectbox(key="restart_from").options)


def test_a_refused_act_keeps_its_dialog_its_reason_and_its_key(api: FakeApi) -> None:
    api.refuse(f"POST {RUN}/stop", 409, "already_ended", "The run has ended.")
    page = job()
    page.button(key="job_stop").click().run()
    key = page.session_state["job_dialog"]["key"]
    page.button(key="job_dialog_do").click().run()
    assert any("The run has ended" in str(block.value) for block in page.error)
    page.button(key="job_dialog_do").click().run()
    assert [call.key for call in api.writes()] == [key, key]


def test_a_paused_run_offers_to_resume_and_sends_one_key(api: FakeApi) -> None:
    api.answers[f"GET {RUN}"] = samples.run_view(desired="pause", status="paused")
    page = job()
    assert "Pause" not in labels(page)
    next(button for button in page.button if button.label == "Resume").click().run()
    assert [call.path for call in api.writes()] == [f"{RUN}/resume"]
    next(button for button in page.button if button.label == "Resume").click().run()
    first, second = (call.key for call in api.writes())
    assert first and first != second, "paused and resumed again before an attempt was planned"


def test_a_viewer_sees_everything_and_may_press_nothing(api: FakeApi) -> None:
    api.answers["GET session"] = {"actor": "guest", "role": "viewer", "kind": "login"}
    page = job()
    assert not any(can for label, can in labels(page).items() if label)
    assert "1,893" in markup(page)


def test_the_address_chooses_the_restart(api: FakeApi) -> None:
    second = {**samples.RESTART, "no": 2, "sentence": "The second one.", "bold": []}
    api.answers[f"GET {RUN}/why"] = {**samples.WHY, "restarts": [samples.RESTART, second]}
    assert "The second one." in markup(job())
    page = job(restart="1")
    assert "The second one." not in markup(page)
    assert "1,893" in markup(page)


@pytest.mark.parametrize(
    ("show", "part"),
    [
        ("Log", "step 2 loss 6.1"),
        ("Events", "First step is 89, as planned"),
        ("Config diff", "Nothing differs from its template"),
    ],
)
def test_the_lowest_section_shows_what_the_address_names(api: FakeApi, show: str, part: str) -> None:
    assert part in markup(job(show=show))


def test_hostile_text_from_the_api_never_becomes_markup(api: FakeApi) -> None:
    hostile = samples.HOSTILE
    restart: dict[str, Any] = {**samples.RESTART, "sentence": hostile, "bold": [hostile]}
    api.answers[f"GET {RUN}"] = samples.run_view(name=hostile, created_by=hostile, stage=hostile)
    api.answers[f"GET {RUN}/why"] = {"run": hostile, "restarts": [restart], "timeline": []}
    api.answers[f"GET {RUN}/logs"] = {"lines": [hostile]}
    text = markup(job())
    assert "<img" not in text
    assert text.count("&lt;img") >= 4


def test_one_drawing_of_the_page_asks_each_address_once(api: FakeApi) -> None:
    job()
    asked = [call.path for call in api.calls]
    assert sorted(asked) == sorted(set(asked))
    assert len(asked) <= 6
